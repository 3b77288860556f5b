//! Owns `dead groups`, `list`, `show` and `export`, which change nothing.

use std::sync::Arc;

use serde::Serialize;

use super::{Export, Groups, List, Show, find};
use crate::{
    cli::output::Output,
    failure::Failure,
    letters::{
        diff,
        export::{self, Whole},
        outcomes,
        select::{cursor, parse_cursor},
    },
    store::letters::{Letter, LetterDetail, Letters, Page, Status, group_id},
    text::number,
    time::{Millis, now, rfc3339},
};

/// A page, as JSON.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    letters: &'a [Letter],
    next: Option<String>,
}

pub(super) async fn groups(
    args: &Groups,
    letters: &Arc<dyn Letters>,
    output: &mut Output,
) -> Result<(), Failure> {
    let selection = args.select.selection(args.status, false);
    let selected = selection.resolve(letters, Some(Status::Open), now()).await?;
    let groups = letters.groups(&selected.filter).await?;
    if args.listing.json {
        return output.json(&groups);
    }
    if groups.is_empty() {
        return output.line("no dead letters");
    }
    let rows: Vec<Vec<String>> = groups
        .iter()
        .map(|group| {
            vec![
                group.id.clone(),
                number(group.letters),
                told(group.first_died_at),
                told(group.last_died_at),
                group.group.clone(),
            ]
        })
        .collect();
    output.table(&["id", "letters", "first", "last", "group"], &rows)?;
    match groups.first() {
        Some(group) => {
            output.line("")?;
            let status =
                args.status.map(|status| format!(" --status {}", status.as_str())).unwrap_or_default();
            output.line(format!("see the letters of one: headcount dead list --group {}{status}", group.id))
        }
        None => Ok(()),
    }
}

pub(super) async fn list(
    args: &List,
    letters: &Arc<dyn Letters>,
    output: &mut Output,
) -> Result<(), Failure> {
    let selection = args.select.selection(args.status, false);
    let selected = selection.resolve(letters, Some(Status::Open), now()).await?;
    let after = args.after.as_deref().map(parse_cursor).transpose()?;
    let page = Page { limit: args.limit, after };
    let listed = letters.list(&selected.filter, &page).await?;
    let next = listed.last().filter(|_| listed.len() == args.limit as usize).map(cursor);
    if args.listing.json {
        return output.json(&Listed { letters: &listed, next });
    }
    if listed.is_empty() {
        return output.line("no dead letters");
    }
    let rows: Vec<Vec<String>> = listed
        .iter()
        .map(|letter| {
            vec![
                letter.id.to_string(),
                rfc3339(letter.died_at),
                letter.standing(),
                letter.event_type.clone(),
                letter.clerk_id.clone().unwrap_or_else(|| "-".into()),
                letter.message_id.clone(),
                format!("{}: {}", letter.reason, letter.detail),
            ]
        })
        .collect();
    output.table(&["id", "died", "status", "event", "clerk id", "message", "reason"], &rows)?;
    match next {
        Some(next) => {
            output.line("")?;
            output.line(format!("more: --after {next}"))
        }
        None => Ok(()),
    }
}

pub(super) async fn show(
    args: &Show,
    letters: &Arc<dyn Letters>,
    output: &mut Output,
) -> Result<(), Failure> {
    let detail = find(letters, &args.id).await?;
    if args.listing.json {
        return output.json(&Whole::from(detail));
    }
    describe(&detail, output)
}

fn outcome(letter: &Letter) -> String {
    let Some(outcome) = letter.outcome else { return "-".into() };
    match outcomes::meaning(outcome) {
        Some(meaning) => format!("{}: {meaning}", outcome.as_str()),
        None => outcome.as_str().into(),
    }
}

/// A time; nothing where it is missing.
fn told(at: Option<Millis>) -> String {
    at.map(rfc3339).unwrap_or_default()
}

fn describe(detail: &LetterDetail, output: &mut Output) -> Result<(), Failure> {
    let letter = &detail.letter;
    for (label, value) in [
        ("id", letter.id.to_string()),
        ("message", letter.message_id.clone()),
        ("status", letter.status.as_str().into()),
        ("outcome", outcome(letter)),
        ("round", letter.round.to_string()),
        ("event", letter.event_type.clone()),
        ("clerk id", letter.clerk_id.clone().unwrap_or_else(|| "-".into())),
        ("reason", letter.reason.clone()),
        ("detail", letter.detail.clone()),
        ("group", format!("{} {}", group_id(&letter.group), letter.group)),
        ("attempts", letter.attempts.to_string()),
        ("received", rfc3339(letter.first_seen)),
        ("died", rfc3339(letter.died_at)),
    ] {
        output.line(format!("{label:<10} {value}"))?;
    }
    output.line("")?;
    output.line("history")?;
    let rows: Vec<Vec<String>> = detail
        .history
        .iter()
        .map(|entry| {
            vec![
                rfc3339(entry.at),
                entry.round.to_string(),
                entry.action.as_str().to_owned(),
                entry.by.clone(),
                entry.note.clone().unwrap_or_else(|| "-".into()),
            ]
        })
        .collect();
    output.whole_table(&["at", "round", "what", "who", "note"], &rows)?;
    output.line("")?;
    output.line("headers")?;
    for (name, value) in &detail.headers {
        // Indented, so that no header and no line of a body reads like one of ours.
        output.line(format!("  {name}: {value}"))?;
    }
    output.line("")?;
    output.line("body")?;
    for line in diff::readable(&detail.body) {
        output.line(format!("  {line}"))?;
    }
    Ok(())
}

pub(super) async fn export(
    args: &Export,
    letters: &Arc<dyn Letters>,
    output: &mut Output,
) -> Result<(), Failure> {
    let selection = args.select.selection(args.status, false);
    let selected = selection.resolve(letters, Some(Status::Open), now()).await?;
    let after = args.after.as_deref().map(parse_cursor).transpose()?;
    let limit = args.limit.unwrap_or(u64::MAX);
    let mut export = export::Export::new(Arc::clone(letters), selected.filter, after, limit);
    while output.is_open() {
        let page = export.next().await?;
        if page.is_empty() {
            break;
        }
        for whole in page {
            output.json_line(&whole)?;
        }
    }
    Ok(())
}
