//! Owns `users list`, `users show`, `users grant` and `users revoke`: rows, what happened to one user, and which tier people gave it.

use std::sync::Arc;

use serde::Serialize;

use crate::{
    app,
    cli::{UserGrant, UserList, UserRevoke, UserShow, Users, dead::actor, output::Output},
    config::Config,
    failure::Failure,
    store::{
        Store, StoreError, User, UserHistory, UserQuery,
        letters::{Filter, Letter, Letters, Page, Status},
        tiers::TierReport,
    },
    text::quoted,
    tiers::grant::{self, GrantError, Wish},
    time::now,
};

/// Prints what was asked for.
///
/// # Errors
/// The store does not answer, or there is no such user.
pub async fn run(args: Users, config: &Config, output: &mut Output) -> Result<(), Failure> {
    let store = app::existing_store(config).await?;
    store.check_schema().await?;
    let result = match args {
        Users::List(args) => list(&args, store.as_ref(), output).await,
        Users::Show(args) => show(&args, &store, output).await,
        Users::Grant(args) => granted(&args, store.as_ref(), output).await,
        Users::Revoke(args) => revoked(&args, store.as_ref(), output).await,
    };
    store.close().await;
    result
}

/// What `users show --json` prints.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    history: UserHistory,
    tier: Option<TierReport>,
}

async fn list(args: &UserList, store: &dyn Store, output: &mut Output) -> Result<(), Failure> {
    let query =
        UserQuery { limit: args.limit, after: args.after, deleted: args.deleted, text: args.text.clone() };
    let users = store.users(&query).await?;
    if args.listing.json {
        return output.json(&users);
    }
    if users.is_empty() {
        return output.line("no users");
    }
    let rows: Vec<Vec<String>> = users
        .iter()
        .map(|user| {
            let state = if user.deleted_at.is_some() { "deleted" } else { "live" };
            vec![
                user.id.to_string(),
                user.clerk_id.clone(),
                text(user.email.as_ref()),
                name(user),
                state.into(),
                user.updated_at.clone(),
            ]
        })
        .collect();
    output.table(&["id", "clerk id", "email", "name", "state", "updated"], &rows)?;
    match users.last() {
        Some(last) if users.len() == args.limit as usize => {
            output.line("")?;
            output.line(format!("more: --after {}", last.id))
        }
        _ => Ok(()),
    }
}

async fn show(args: &UserShow, store: &Arc<dyn Store>, output: &mut Output) -> Result<(), Failure> {
    let found = store.user(&args.reference).await?;
    let Some(history) = found else {
        return Err(unknown(&args.reference, app::letters(store).as_ref()).await);
    };
    let tier = match &history.user {
        Some(user) => store.tier(user.id).await?,
        None => None,
    };
    if args.listing.json {
        return output.json(&Shown { history, tier });
    }
    describe(&history, tier.as_ref(), output)?;
    let ids = history.user.iter().map(|user| user.clerk_id.as_str());
    for id in ids.chain(history.former.iter().map(|former| former.clerk_id.as_str())) {
        let open = about(id, Some(Status::Open), app::letters(store).as_ref()).await;
        if let Some(letter) = open?.first() {
            output.line("")?;
            output.line(format!("a dead letter about {id} is open: {}: {}", letter.reason, letter.detail))?;
            output.line(format!("hint: see it: headcount dead list --user {}", quoted(id)))?;
        }
    }
    Ok(())
}

async fn granted(args: &UserGrant, store: &dyn Store, output: &mut Output) -> Result<(), Failure> {
    let wish = Wish::read(&args.tier, args.until.as_deref(), now())?;
    let tier = wish.grant(store, &args.reference, &actor(args.note.as_deref())).await?;
    if args.listing.json {
        return output.json(&tier);
    }
    output.line(stands(&tier))
}

/// Whose row it is, too: an address may be another account's than was meant.
fn stands(report: &TierReport) -> String {
    format!("{} (row {}) is on {}: {}", report.clerk_id, report.user_id, report.tier, report.why())
}

async fn revoked(args: &UserRevoke, store: &dyn Store, output: &mut Output) -> Result<(), Failure> {
    let (tier, had) = grant::revoke(store, &args.reference, &actor(args.note.as_deref())).await?;
    if args.listing.json {
        return output.json(&tier);
    }
    if !had {
        output.line(format!("nothing was granted to {}", args.reference))?;
    }
    output.line(stands(&tier))
}

impl From<GrantError> for Failure {
    fn from(error: GrantError) -> Self {
        let failure = match &error {
            GrantError::Unreadable { .. } => Failure::usage(error.to_string()),
            GrantError::Unknown(_)
            | GrantError::Unproved { .. }
            | GrantError::NoRow(_)
            | GrantError::Store(_) => Failure::new(error.to_string()),
        };
        error.hint().into_iter().fold(failure, Failure::hint)
    }
}

/// A user without a row may have dead letters all the same.
async fn unknown(reference: &str, letters: &dyn Letters) -> Failure {
    let unknown = format!("no user is known by {reference:?}");
    match about(reference, None, letters).await.ok().as_deref() {
        Some([letter, ..]) => Failure::new(format!(
            "{unknown}, but a dead letter is about it: {} died for {} and is {}",
            letter.event_type,
            letter.reason,
            letter.standing()
        ))
        .hint(format!("see it: headcount dead show {}", letter.id))
        .hint(format!("see all about it: headcount dead list --status all --user {}", quoted(reference))),
        _ => Failure::new(unknown)
            .hint("give our id, a Clerk id (also a former one) or an e-mail address; `headcount users list TEXT` searches"),
    }
}

/// The last dead letter about a Clerk id.
async fn about(
    clerk_id: &str,
    status: Option<Status>,
    letters: &dyn Letters,
) -> Result<Vec<Letter>, StoreError> {
    let filter = Filter { clerk_id: Some(clerk_id.to_owned()), status, ..Filter::default() };
    letters.list(&filter, &Page { limit: 1, after: None }).await
}

fn describe(history: &UserHistory, tier: Option<&TierReport>, output: &mut Output) -> Result<(), Failure> {
    match &history.user {
        Some(user) => {
            let claim = match (&user.email, &user.clerk_email) {
                (None, Some(_)) if user.deleted_at.is_none() => " (another account shows this address)",
                _ => "",
            };
            let verified = if user.email_verified { "verified" } else { "not verified" };
            for (label, value) in [
                ("id", user.id.to_string()),
                ("clerk id", user.clerk_id.clone()),
                (
                    "state",
                    user.deleted_at.as_ref().map_or_else(|| "live".into(), |at| format!("deleted {at}")),
                ),
                ("name", name(user)),
                ("email", format!("{}{claim}", text(user.email.as_ref()))),
                (
                    "clerk's email",
                    user.clerk_email
                        .as_ref()
                        .map_or_else(|| "-".into(), |email| format!("{email} ({verified})")),
                ),
                ("phone", text(user.phone.as_ref())),
                ("username", text(user.username.as_ref())),
                (
                    "tier",
                    match tier {
                        Some(tier) => format!("{} ({})", tier.tier, tier.why()),
                        None => user.subscription_tier.clone(),
                    },
                ),
                ("credits", user.credits_balance.to_string()),
                ("created", user.created_at.clone()),
                ("updated", user.updated_at.clone()),
            ] {
                output.line(format!("{label:<14} {value}"))?;
            }
        }
        None => output.line("deleted before it was ever seen: there is no row")?,
    }
    for item in tier.iter().flat_map(|tier| &tier.items) {
        output.line(format!("{:<14} {}", "item", item.says()))?;
    }
    for past in tier.iter().flat_map(|tier| &tier.past_grants) {
        output.line(format!("{:<14} {}, {}", "past grant", past.tier, past.says()))?;
    }
    for former in &history.former {
        output.line(format!("{:<14} {} (deleted {})", "former id", former.clerk_id, former.deleted_at))?;
    }
    output.line("")?;
    if history.events.is_empty() {
        return output.line("no events in the inbox (it reaches back as far as HEADCOUNT_INBOX_RETENTION)");
    }
    let rows: Vec<Vec<String>> = history
        .events
        .iter()
        .map(|event| {
            vec![
                event.processed_at.clone(),
                event.event_type.clone(),
                event.outcome.clone(),
                text(event.event_at.as_ref()),
                text(event.clerk_id.as_ref()),
                event.message_id.clone(),
            ]
        })
        .collect();
    output.whole_table(&["processed", "event", "outcome", "clerk's time", "clerk id", "message"], &rows)
}

fn text(value: Option<&String>) -> String {
    value.cloned().unwrap_or_else(|| "-".into())
}

fn name(user: &User) -> String {
    let parts: Vec<&str> =
        [&user.first_name, &user.last_name].into_iter().flatten().map(String::as_str).collect();
    if parts.is_empty() { text(user.username.as_ref()) } else { parts.join(" ") }
}
