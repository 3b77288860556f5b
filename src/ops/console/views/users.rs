//! Owns the pages of users: the list, one user with all that happened, and the row beside Clerk's present answer.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use axum::{Extension, extract::State, response::IntoResponse};
use maud::{Markup, html};
use tokio::{sync::watch, time::timeout};
use uuid::Uuid;

use super::super::{
    Answer, Console,
    form::{Fields, Name},
    frame::{Section, View, on_to, sentence},
    parts::{
        Tone, badge, command, empty, id, nothing, path, said, said_or_dash, table, under, user, when,
        when_or_dash, when_told,
    },
};
use crate::{
    clerk::api::Snapshot,
    letters::outcomes::meaning,
    net::Problem,
    ops::access::{Access, Caller},
    rules::{Outcome, sessions::Status as SessionStatus, users::Upsert},
    store::{
        PastEvent, User, UserHistory, UserQuery,
        letters::{Filter, Letter, Page, Status},
        sessions::Session,
        tiers::TierReport,
    },
    sync::{One, Order, Sync, owner::Unknown},
    text::{number, quoted},
    time::{Millis, millis, rfc3339},
};

/// Users of one page.
const PAGE: u32 = 50;
/// How long Clerk's answer is waited for.
const CLERK: Duration = Duration::from_secs(20);

/// `GET /users`
pub(in super::super) async fn list(State(console): State<Arc<Console>>, fields: Fields) -> Answer {
    let after = fields.get("after").map(Uuid::try_parse).transpose();
    let after = after.map_err(|_| Problem::bad_request("the page's address has no readable cursor"))?;
    let (text, deleted) =
        (fields.get("text").map(|text| text.trim().to_owned()), fields.get("deleted").is_some());
    let query = UserQuery { limit: PAGE, after, deleted, text: text.clone() };
    let users = console.api.ask(|store| async move { store.users(&query).await }).await?;
    let next = users.last().filter(|_| users.len() == PAGE as usize).map(|user| user.id.to_string());
    let deleted_field = if deleted { "true" } else { "" };
    let main = html! {
        h1 { "Users" }
        form.filters action="/users" method="get" role="search" aria-label="Users" {
            label { "Name, address or id contains " input type="search" name="text" value=(text.as_deref().unwrap_or_default()) maxlength="320"; }
            label.check { input type="checkbox" name="deleted" value="true" checked[deleted]; " deleted ones too" }
            button type="submit" { "Show" }
        }
        @if users.is_empty() {
            @if text.is_some() || after.is_some() {
                (empty("Nobody here", html! { "No user matches. " a href="/users" { "Show all" } }))
            } @else {
                (empty("No users yet", html! {
                    "The first webhook makes the first row. To send one by hand: " (command("headcount send user.created"))
                    " To start with the users that Clerk has: " (command("headcount sync"))
                }))
            }
        } @else {
            (table("Users", &["Name", "Address", "Clerk id", "Tier", "State", "Changed"], html! {
                @for user in &users {
                    tr data-row {
                        td { a href=(under("/users", &user.clerk_id)) { (name(user)) } }
                        td { (said_or_dash(user.email.as_ref())) }
                        td { code { (said(&user.clerk_id)) } }
                        td { (said(&user.subscription_tier)) }
                        td { (state(user)) }
                        td { (when_told(&user.updated_at)) }
                    }
                }
            }))
            @if let Some(next) = next {
                p.more { a href=(path("/users", &[("text", text.as_deref().unwrap_or_default()), ("deleted", deleted_field), ("after", &next)])) rel="next" { "Older ones" } }
            }
        }
    };
    Ok(View::new(Section::Users, "Users", main).into_response())
}

fn name(user: &User) -> String {
    let parts: Vec<&str> =
        [&user.first_name, &user.last_name].into_iter().flatten().map(String::as_str).collect();
    let name = parts.join(" ");
    match name.trim() {
        "" => said(user.username.as_deref().or(user.email.as_deref()).unwrap_or(&user.clerk_id)),
        name => said(name),
    }
}

fn state(user: &User) -> Markup {
    html! {
        @match &user.deleted_at {
            Some(_) => (badge(Tone::Plain, "deleted")),
            None => (badge(Tone::Good, "live")),
        }
        @if user.banned == Some(true) { " " (badge(Tone::Warn, "banned")) }
        @if user.locked == Some(true) { " " (badge(Tone::Warn, "locked")) }
    }
}

/// All that is shown of one user.
struct Whole {
    history: UserHistory,
    tier: Option<TierReport>,
    sessions: Vec<Session>,
    letters: Vec<Letter>,
    /// Who shows the address that the user claims too.
    rival: Option<User>,
}

impl Whole {
    fn clerk_ids(history: &UserHistory) -> Vec<String> {
        let ids = history.user.iter().map(|user| user.clerk_id.clone());
        let mut ids: Vec<String> =
            ids.chain(history.former.iter().map(|former| former.clerk_id.clone())).collect();
        ids.dedup();
        ids
    }

    async fn read(console: &Console, reference: &str) -> Result<Option<Self>, Problem> {
        let reference = reference.to_owned();
        console
            .api
            .ask(|store| async move {
                let Some(history) = store.user(&reference).await? else { return Ok(None) };
                let (mut tier, mut sessions, mut rival) = (None, Vec::new(), None);
                if let Some(user) = &history.user {
                    tier = store.tier(user.id).await?;
                    sessions = store.sessions_of(&user.clerk_id).await?;
                    if let (None, Some(claimed), None) = (&user.email, &user.clerk_email, &user.deleted_at) {
                        let other = store.user(claimed).await?.and_then(|other| other.user);
                        rival = other.filter(|other| other.id != user.id);
                    }
                }
                let mut letters = Vec::new();
                for clerk_id in Self::clerk_ids(&history) {
                    let about = Filter { clerk_id: Some(clerk_id), ..Filter::default() };
                    letters.extend(store.list(&about, &Page { limit: 20, after: None }).await?);
                }
                Ok(Some(Self { history, tier, sessions, letters, rival }))
            })
            .await
    }
}

/// `GET /users/{ref}`
pub(in super::super) async fn show(
    State(console): State<Arc<Console>>,
    Name(reference): Name,
    Extension(caller): Extension<Caller>,
    fields: Fields,
) -> Answer {
    let Some(whole) = Whole::read(&console, &reference).await? else {
        return Ok(on_to(&path("/search", &[("q", &reference)])));
    };
    let result = console.result(fields.get("result"));
    let may = caller.access >= Access::Operate;
    let title = whole.history.user.as_ref().map_or_else(|| said(&reference), name);
    let main = html! {
        @if let Some(result) = result { div.note.good role="status" { (result) } }
        (heading(&whole, &title))
        (asking(&console, &whole, may))
        div.columns {
            div {
                (happened(&whole))
            }
            div {
                @if let Some(user) = &whole.history.user { (row(user, whole.rival.as_ref())) }
                (tier(&whole))
                (sessions(&whole.sessions))
            }
        }
    };
    Ok(View::live(Section::Users, title, main).into_response())
}

fn heading(whole: &Whole, title: &str) -> Markup {
    html! {
        div.heading {
            h1 { (title) }
            @match &whole.history.user {
                Some(user) => { (state(user)) " " (id(&user.clerk_id)) },
                None => (badge(Tone::Plain, "deleted before it was ever seen")),
            }
        }
        @if whole.history.user.is_none() {
            p.lead { "The id was deleted before any news of the account came, so that there is no row. News that comes late changes nothing." }
        }
        @let open = whole.letters.iter().filter(|letter| letter.status == Status::Open).count();
        @if open > 0 {
            p.note.warn {
                @let about = &whole.letters.iter().find(|letter| letter.status == Status::Open).and_then(|letter| letter.clerk_id.clone()).unwrap_or_default();
                a href=(path("/dead/letters", &[("user", about)])) { (crate::text::letters(open as u64)) " about this user " (if open == 1 { "is" } else { "are" }) " open" }
                ": the row may lack what they say."
            }
        }
    }
}

fn asking(console: &Console, whole: &Whole, may: bool) -> Markup {
    let Some(clerk_id) = whole.history.user.as_ref().map(|user| user.clerk_id.clone()) else {
        return nothing();
    };
    if console.clerk.is_none() {
        return nothing();
    }
    html! {
        div.actions {
            a.button href={ (under("/users", &clerk_id)) "/clerk" } { "Compare with Clerk" }
            @if may {
                form action={ (under("/users", &clerk_id)) "/sync" } method="post" {
                    button type="submit" { "Sync now" }
                }
            }
        }
    }
}

/// What happened, the newest first.
struct Happened {
    at: Millis,
    what: Markup,
    detail: Markup,
    tone: Tone,
    anchor: Option<String>,
}

fn told(at: &str) -> Millis {
    chrono::DateTime::parse_from_rfc3339(at).map(|at| at.timestamp_millis()).unwrap_or_default()
}

/// The reason of an outcome, in words.
fn why(event: &PastEvent, row: Option<&User>) -> Option<String> {
    let outcome = Outcome::ALL.into_iter().find(|outcome| outcome.as_str() == event.outcome)?;
    if outcome == Outcome::Stale
        && let (Some(row), Some(at)) = (row, &event.event_at)
        && event.event_type.starts_with("user.")
    {
        let newer = row.version - told(at);
        return Some(match newer {
            1.. => format!("the row is {} newer", millis(newer.unsigned_abs())),
            _ => "the row says it already".to_owned(),
        });
    }
    let words = meaning(outcome).or(match outcome {
        Outcome::Created => Some("a new row"),
        Outcome::Relinked => Some("the returning user got the former row back"),
        Outcome::Deleted => Some("the account is deleted from then on"),
        Outcome::Revived => Some("somebody asked for the user to live again"),
        _ => None,
    });
    words.map(str::to_owned)
}

fn happened(whole: &Whole) -> Markup {
    let row = whole.history.user.as_ref();
    let events = whole.history.events.iter().rev().take(200).map(|event| {
        let (received, processed) = (told(&event.received_at), told(&event.processed_at));
        Happened {
            at: processed,
            what: html! { (said(&event.event_type)) " " (badge(outcome_tone(&event.outcome), &event.outcome)) },
            detail: html! {
                @if let Some(why) = why(event, row) { span { (why) } }
                dl.times {
                    @if let Some(at) = &event.event_at { div { dt { "in Clerk" } dd { (when_told(at)) } } }
                    div { dt { "received" } dd { (when_told(&event.received_at)) } }
                    div { dt { "committed" } dd { (when_told(&event.processed_at)) @if processed >= received { span.muted { " after " (millis(processed.abs_diff(received))) } } } }
                }
                code.muted { (said(&event.message_id)) }
                @if event.clerk_id.as_deref() != row.map(|row| row.clerk_id.as_str())
                    && let Some(other) = &event.clerk_id { span.muted { " about " (said(other)) } }
            },
            tone: outcome_tone(&event.outcome),
            anchor: Some(event.message_id.clone()),
        }
    });
    let letters = whole.letters.iter().map(|letter| Happened {
        at: letter.died_at,
        what: html! { "Died: " a href=(under("/dead/letters", &letter.id.to_string())) { (said(&letter.event_type)) } " "
            (badge(letter_tone(letter.status), letter.standing())) },
        detail: html! { span { (said(&letter.reason)) ": " (said(&letter.detail)) } },
        tone: letter_tone(letter.status),
        anchor: None,
    });
    let former = whole.history.former.iter().filter(|_| row.is_some()).map(|former| Happened {
        at: told(&former.deleted_at),
        what: html! { "Former account deleted" },
        detail: html! { "The row was " code { (said(&former.clerk_id)) } "'s before." },
        tone: Tone::Plain,
        anchor: None,
    });
    let grants =
        whole.tier.iter().flat_map(|tier| tier.grant.iter().chain(&tier.past_grants)).map(|grant| Happened {
            at: told(&grant.granted_at),
            what: html! { "Granted " strong { (said(&grant.tier)) } },
            detail: html! { (said(grant.says())) },
            tone: Tone::Plain,
            anchor: None,
        });
    let mut all: Vec<Happened> = events.chain(letters).chain(former).chain(grants).collect();
    all.sort_by_key(|one| Reverse(one.at));
    html! {
        section #happened aria-labelledby="what-happened" {
            h2 #what-happened { "What happened" }
            @if all.is_empty() {
                (empty("Nothing that is still known", html! { "Events are kept for HEADCOUNT_INBOX_RETENTION. What they changed stays." }))
            } @else {
                ol.timeline {
                    @for one in &all {
                        li.(one.tone.class()) id=[one.anchor.as_ref()] {
                            p.what { (one.what) span.at { (when(one.at)) } }
                            div.detail { (one.detail) }
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn outcome_tone(outcome: &str) -> Tone {
    match outcome {
        "created" | "updated" | "relinked" | "revived" => Tone::Good,
        "buried" => Tone::Bad,
        "waiting" => Tone::Warn,
        _ => Tone::Plain,
    }
}

pub(super) fn letter_tone(status: Status) -> Tone {
    match status {
        Status::Open => Tone::Bad,
        Status::Replayed => Tone::Warn,
        Status::Applied => Tone::Good,
        Status::Discarded => Tone::Plain,
    }
}

fn yes(flag: bool) -> &'static str {
    if flag { "yes" } else { "no" }
}

fn row(user: &User, rival: Option<&User>) -> Markup {
    let json = |value: &Option<serde_json::Value>| {
        value.as_ref().map(|value| serde_json::to_string_pretty(value).unwrap_or_default())
    };
    let metadata = [
        ("public", json(&user.public_metadata)),
        ("private", json(&user.private_metadata)),
        ("unsafe", json(&user.unsafe_metadata)),
    ];
    html! {
        section #row aria-labelledby="the-row" {
            h2 #the-row { "The row" }
            @if let Some(rival) = rival {
                p.note.warn { "Another account shows this address: " (crate::ops::console::parts::user(&rival.clerk_id)) ". It is " strong { "email" } " here as soon as that account gives it up." }
            }
            dl.facts {
                dt { "id" } dd { (id(user.id.to_string())) }
                dt { "email" } dd { (said_or_dash(user.email.as_ref())) }
                dt { "clerk_email" } dd { (said_or_dash(user.clerk_email.as_ref())) " " @if user.clerk_email.is_some() { span.muted { (if user.email_verified { "verified" } else { "not verified" }) } } }
                dt { "first_name" } dd { (said_or_dash(user.first_name.as_ref())) }
                dt { "last_name" } dd { (said_or_dash(user.last_name.as_ref())) }
                dt { "username" } dd { (said_or_dash(user.username.as_ref())) }
                dt { "phone" } dd { (said_or_dash(user.phone.as_ref())) }
                dt { "external_id" } dd { (said_or_dash(user.external_id.as_ref())) }
                dt { "banned, locked" } dd { (yes(user.banned == Some(true))) ", " (yes(user.locked == Some(true))) }
                dt { "credits_balance" } dd { (user.credits_balance) }
                dt { "last_sign_in_at" } dd { (when_or_dash(user.last_sign_in_at.as_ref())) }
                dt { "clerk_created_at" } dd { (when_or_dash(user.clerk_created_at.as_ref())) }
                dt { "clerk_updated_at" } dd { (when_or_dash(user.clerk_updated_at.as_ref())) }
                @if user.deleted_at.is_some() { dt { "deleted_at" } dd { (when_or_dash(user.deleted_at.as_ref())) } }
                dt { "created_at" } dd { (when_told(&user.created_at)) }
                dt { "updated_at" } dd { (when_told(&user.updated_at)) }
            }
            @for (name, text) in metadata.iter().filter(|(_, text)| text.as_ref().is_some_and(|text| text != "{}")) {
                details { summary { (name) "_metadata" } pre { (lines(text.as_deref().unwrap_or_default())) } }
            }
        }
    }
}

/// Text of several lines.
pub(super) fn lines(text: &str) -> Markup {
    let lines: Vec<String> = text.lines().map(said).collect();
    html! { (lines.join("\n")) }
}

fn tier(whole: &Whole) -> Markup {
    let Some(report) = &whole.tier else { return nothing() };
    html! {
        section #tier aria-labelledby="the-tier" {
            h2 #the-tier { "Tier" }
            p { strong { (said(&report.tier)) } ": " (said(report.why())) }
            @if !report.items.is_empty() {
                ul { @for item in &report.items { li { (said(item.says())) " " code.muted { (said(&item.id)) } } } }
            }
            p.muted { "To grant one: " (command(&format!("headcount users grant {} TIER", quoted(&report.clerk_id)))) }
        }
    }
}

fn sessions(sessions: &[Session]) -> Markup {
    if sessions.is_empty() {
        return nothing();
    }
    html! {
        section #sessions aria-labelledby="the-sessions" {
            h2 #the-sessions { "Sessions" }
            (table("Sessions", &["State", "Began", "Last seen", "Id"], html! {
                @for session in sessions.iter().take(20) {
                    tr {
                        td { (badge(if session.status == SessionStatus::Active { Tone::Good } else { Tone::Plain }, session.status.as_str())) }
                        td { (when(session.created_at)) }
                        td { (when(session.last_seen_at)) }
                        td { code { (said(&session.id)) } }
                    }
                }
            }))
        }
    }
}

/// The client of Clerk's API, or why there is none.
fn clerk(console: &Console) -> Result<&Sync, Problem> {
    console.clerk.as_ref().ok_or_else(|| {
        Problem::conflict("CLERK_SECRET_KEY is not set: without it Clerk's API cannot be read")
            .hint("copy the secret key from the page of API keys in the Clerk dashboard, and set it where this process runs")
    })
}

fn late() -> Problem {
    Problem::unavailable("Clerk's API did not answer in time")
}

/// `GET /users/{ref}/clerk`
pub(in super::super) async fn beside(
    State(console): State<Arc<Console>>,
    Name(reference): Name,
    Extension(caller): Extension<Caller>,
) -> Answer {
    let sync = clerk(&console)?;
    let wanted = reference.clone();
    let found = console.api.ask(|store| async move { store.user(&wanted).await }).await?;
    let row = found.and_then(|history| history.user);
    let asked = async {
        match (&row, reference.contains('@')) {
            (Some(row), _) => sync.api.user(&row.clerk_id).await.map(|user| user.into_iter().collect()),
            (None, true) => sync.api.users_by_address(&reference).await,
            (None, false) => sync.api.user(&reference).await.map(|user| user.into_iter().collect()),
        }
    };
    let answers: Vec<Snapshot> = timeout(CLERK, asked)
        .await
        .map_err(|_| late())?
        .map_err(|error| Problem::unavailable(error.to_string()).hint(error.hint()))?;
    let may = caller.access >= Access::Operate;
    let title = row.as_ref().map_or_else(|| said(&reference), name);
    let main = html! {
        h1 { (title) " beside Clerk" }
        @if let Some(row) = &row { p { a href=(under("/users", &row.clerk_id)) { "Back to the user" } } }
        @if answers.is_empty() {
            p.note.warn {
                @match &row {
                    Some(row) if row.deleted_at.is_some() => "Clerk does not know this account either: it is deleted there and here.",
                    Some(_) => "Clerk does not know this account any more, and it is live here.",
                    None => "Clerk does not know this id or address either.",
                }
            }
        }
        @for answer in &answers {
            @match &answer.upsert {
                Ok(upsert) => (compared(row.as_ref(), upsert)),
                Err(error) => p.note.bad { "Clerk's answer cannot be read: " (said(&error.detail)) },
            }
        }
        @if may && (row.is_some() || !answers.is_empty()) {
            @let clerk_id = answers.first().and_then(|answer| answer.clerk_id.clone()).or_else(|| row.as_ref().map(|row| row.clerk_id.clone())).unwrap_or_default();
            form.actions action={ (under("/users", &clerk_id)) "/sync" } method="post" {
                button.primary type="submit" { "Sync now" }
                span.muted { "publishes what differs; a worker applies it as it would a webhook." }
            }
        }
    };
    Ok(View::new(Section::Users, format!("{title} beside Clerk"), main).into_response())
}

/// Each mirrored column, here and in Clerk.
fn compared(row: Option<&User>, upsert: &Upsert) -> Markup {
    let at = |at: Option<Millis>| at.map(rfc3339);
    let flag = |flag: Option<bool>| flag.map(|flag| yes(flag).to_owned());
    let document = |text: Option<&str>| {
        text.and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok())
            .map(|value| value.to_string())
    };
    let held = |value: Option<&serde_json::Value>| value.map(ToString::to_string);
    let there = &upsert.profile;
    let claim = upsert.claim.as_ref();
    let of = |get: fn(&User) -> Option<String>| row.and_then(get);
    let columns = [
        ("clerk_email", of(|row| row.clerk_email.clone()), claim.map(|claim| claim.address.clone())),
        (
            "email_verified",
            row.map(|row| yes(row.email_verified).to_owned()),
            Some(yes(claim.is_some_and(|claim| claim.verified)).to_owned()),
        ),
        ("first_name", of(|row| row.first_name.clone()), there.first_name.clone()),
        ("last_name", of(|row| row.last_name.clone()), there.last_name.clone()),
        ("username", of(|row| row.username.clone()), there.username.clone()),
        ("phone", of(|row| row.phone.clone()), there.phone.clone()),
        ("image_url", of(|row| row.image_url.clone()), there.image_url.clone()),
        ("external_id", of(|row| row.external_id.clone()), there.external_id.clone()),
        ("banned", row.and_then(|row| flag(row.banned)), flag(there.banned)),
        ("locked", row.and_then(|row| flag(row.locked)), flag(there.locked)),
        (
            "public_metadata",
            row.and_then(|row| held(row.public_metadata.as_ref())),
            document(there.public_metadata.as_deref()),
        ),
        (
            "private_metadata",
            row.and_then(|row| held(row.private_metadata.as_ref())),
            document(there.private_metadata.as_deref()),
        ),
        (
            "unsafe_metadata",
            row.and_then(|row| held(row.unsafe_metadata.as_ref())),
            document(there.unsafe_metadata.as_deref()),
        ),
        ("last_sign_in_at", of(|row| row.last_sign_in_at.clone()), at(there.last_sign_in_at)),
        ("clerk_created_at", of(|row| row.clerk_created_at.clone()), at(there.created_at)),
        ("clerk_updated_at", of(|row| row.clerk_updated_at.clone()), at(there.updated_at)),
    ];
    let differ = columns.iter().filter(|(_, here, there)| here != there).count();
    html! {
        @match (row, differ) {
            (None, _) => p.note.warn { "There is no row for " (user(&upsert.clerk_id)) " here." },
            (Some(_), 0) => p.note.good { "The row says what Clerk says." },
            (Some(_), _) => p.note.warn { (number(differ as u64)) (if differ == 1 { " column differs." } else { " columns differ." }) " A change of the last minute may still be on its way." },
        }
        (table("The row beside Clerk's answer", &["Column", "Here", "In Clerk"], html! {
            @for (name, here, there) in &columns {
                tr.differs[here != there] {
                    th scope="row" { (name) @if here != there { span.unseen { " differs" } } }
                    td.long { (said_or_dash(here.as_ref())) }
                    td.long { (said_or_dash(there.as_ref())) }
                }
            }
        }))
    }
}

/// `POST /users/{ref}/sync`
pub(in super::super) async fn bring(
    State(console): State<Arc<Console>>,
    Name(reference): Name,
    Extension(caller): Extension<Caller>,
) -> Answer {
    let sync = clerk(&console)?.clone();
    let (who, wanted) = (caller.name("console"), reference.clone());
    // A task of its own: also when the client hangs up, what was published is followed.
    let work = tokio::spawn(async move {
        let (_stop, stopped) = watch::channel(false);
        sync.some(&[wanted], &Order::by(who), Unknown::Check, &|_| {}, &stopped).await
    });
    let found = timeout(CLERK, work).await.map_err(|_| late())?;
    let found = found.map_err(|_| Problem::unavailable("the sync broke off"))?;
    let (_, found) = found.map_err(|error| {
        let problem = Problem::unavailable(error.to_string());
        match error.hint() {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    })?;
    let said_of = html! { @for one in &found { p { (says(one)) } } };
    let clerk_id = found.iter().find_map(|one| one.clerk_id.clone()).unwrap_or(reference);
    let result = console.keep(said_of).to_string();
    Ok(on_to(&path(&under("/users", &clerk_id), &[("result", &result)])))
}

/// What a sync found and did, in a sentence.
fn says(one: &One) -> String {
    let found = one.standing.as_ref().map_or_else(
        || "Clerk knows nobody by this id or address".to_owned(),
        |standing| format!("compared with Clerk: {standing}"),
    );
    let became = match (&one.problem, one.outcome) {
        (Some(problem), _) => format!("; {problem}"),
        (None, Some(outcome)) => format!("; now {}", outcome.as_str()),
        (None, None) if one.is_under_way() => "; what differs is on its way".to_owned(),
        (None, None) => String::new(),
    };
    let paid = match &one.subscription {
        Some(paid) if paid.differs => "; what the user pays for differed too",
        _ => "",
    };
    sentence(&format!("{found}{became}{paid}"))
}
