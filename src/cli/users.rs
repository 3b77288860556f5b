//! Owns `users list` and `users show`: rows, and what happened to one user.

use super::{
    UserList, UserShow, Users,
    output::{Failure, Output},
};
use crate::{
    app,
    config::Config,
    store::{Store, User, UserHistory, UserQuery},
};

/// Prints what was asked for.
///
/// # Errors
/// The store does not answer, or there is no such user.
pub async fn run(args: Users, config: &Config, output: &mut Output) -> Result<(), Failure> {
    let store = app::look_at_store(config).await?;
    store.check_schema().await.map_err(|error| app::store_failure(&error))?;
    let result = match args {
        Users::List(args) => list(&args, store.as_ref(), output).await,
        Users::Show(args) => show(&args, store.as_ref(), output).await,
    };
    store.close().await;
    result
}

async fn list(args: &UserList, store: &dyn Store, output: &mut Output) -> Result<(), Failure> {
    let query =
        UserQuery { limit: args.limit, after: args.after, deleted: args.deleted, text: args.text.clone() };
    let users = store.users(&query).await.map_err(|error| app::store_failure(&error))?;
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
            output.line(format!("\nmore: --after {}", last.id))
        }
        _ => Ok(()),
    }
}

async fn show(args: &UserShow, store: &dyn Store, output: &mut Output) -> Result<(), Failure> {
    let found = store.user(&args.reference).await.map_err(|error| app::store_failure(&error))?;
    let history = found.ok_or_else(|| {
        Failure::new(format!("no user is known by {:?}", args.reference))
            .hint("give our id, a Clerk id (also a former one) or an e-mail address; `headcount users list TEXT` searches")
    })?;
    if args.listing.json {
        return output.json(&history);
    }
    describe(&history, output)
}

fn describe(history: &UserHistory, output: &mut Output) -> Result<(), Failure> {
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
                ("tier, credits", format!("{}, {}", user.subscription_tier, user.credits_balance)),
                ("created", user.created_at.clone()),
                ("updated", user.updated_at.clone()),
            ] {
                output.line(format!("{label:<14} {value}"))?;
            }
        }
        None => output.line("deleted before it was ever seen: there is no row")?,
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
    output.table(&["processed", "event", "outcome", "clerk's time", "clerk id", "message"], &rows)
}

fn text(value: Option<&String>) -> String {
    value.cloned().unwrap_or_else(|| "-".into())
}

fn name(user: &User) -> String {
    let parts: Vec<&str> =
        [&user.first_name, &user.last_name].into_iter().flatten().map(String::as_str).collect();
    if parts.is_empty() { text(user.username.as_ref()) } else { parts.join(" ") }
}
