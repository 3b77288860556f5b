//! Owns `dead groups`, `list`, `show` and `export`: looking, without touching.

use std::sync::Arc;

use serde::Serialize;

use super::{Export, Groups, List, Show, find, select_failure};
use crate::{
    app,
    cli::output::{Failure, Output, number, quoted},
    dead::{
        diff,
        export::{self, Whole},
        select::{cursor, parse_cursor},
    },
    message::{clean, now},
    store::letters::{Letter, LetterDetail, Letters, Page, Status},
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
    let selected = selection.resolve(letters, Some(Status::Open), now()).await;
    let selected = selected.map_err(|error| select_failure(&error))?;
    let groups = letters.groups(&selected.filter).await.map_err(|error| app::store_failure(&error))?;
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
                number(group.letters),
                group.first_died_at.clone(),
                group.last_died_at.clone(),
                group.group.clone(),
            ]
        })
        .collect();
    output.table(&["letters", "first", "last", "group"], &rows)?;
    match groups.first() {
        Some(group) => {
            output.line(format!("\nsee one: headcount dead list --group {}", quoted(&group.group)))
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
    let selected = selection.resolve(letters, Some(Status::Open), now()).await;
    let selected = selected.map_err(|error| select_failure(&error))?;
    let after =
        args.after.as_deref().map(parse_cursor).transpose().map_err(|error| select_failure(&error))?;
    let page = Page { limit: args.limit, after };
    let listed =
        letters.letters(&selected.filter, &page).await.map_err(|error| app::store_failure(&error))?;
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
                letter.died_at.clone(),
                letter.status.as_str().into(),
                letter.event_type.clone(),
                letter.clerk_id.clone().unwrap_or_else(|| "-".into()),
                letter.message_id.clone(),
                clean(&format!("{}: {}", letter.reason, letter.detail), 100),
            ]
        })
        .collect();
    output.table(&["id", "died", "status", "event", "clerk id", "message", "reason"], &rows)?;
    match next {
        Some(next) => output.line(format!("\nmore: --after {next}")),
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

fn describe(detail: &LetterDetail, output: &mut Output) -> Result<(), Failure> {
    let letter = &detail.letter;
    for (label, value) in [
        ("id", letter.id.to_string()),
        ("message", letter.message_id.clone()),
        ("status", letter.status.as_str().into()),
        ("round", letter.round.to_string()),
        ("event", letter.event_type.clone()),
        ("clerk id", letter.clerk_id.clone().unwrap_or_else(|| "-".into())),
        ("reason", letter.reason.clone()),
        ("detail", letter.detail.clone()),
        ("group", letter.group.clone()),
        ("attempts", letter.attempts.to_string()),
        ("received", letter.first_seen.clone()),
        ("died", letter.died_at.clone()),
    ] {
        output.line(format!("{label:<10} {}", clean(&value, usize::MAX)))?;
    }
    output.line("\nhistory")?;
    let rows: Vec<Vec<String>> = detail
        .history
        .iter()
        .map(|entry| {
            vec![
                entry.at.clone(),
                entry.round.to_string(),
                entry.action.clone(),
                entry.by.clone(),
                entry.note.clone().unwrap_or_else(|| "-".into()),
            ]
        })
        .collect();
    output.table(&["at", "round", "what", "who", "note"], &rows)?;
    output.line("\nheaders")?;
    for (name, value) in &detail.headers {
        output.line(format!("{}: {}", clean(name, usize::MAX), clean(value, usize::MAX)))?;
    }
    output.line("\nbody")?;
    for line in diff::readable(&detail.body) {
        output.line(line)?;
    }
    Ok(())
}

pub(super) async fn export(
    args: &Export,
    letters: &Arc<dyn Letters>,
    output: &mut Output,
) -> Result<(), Failure> {
    let selection = args.select.selection(args.status, false);
    let selected = selection.resolve(letters, Some(Status::Open), now()).await;
    let selected = selected.map_err(|error| select_failure(&error))?;
    let after =
        args.after.as_deref().map(parse_cursor).transpose().map_err(|error| select_failure(&error))?;
    let limit = args.limit.unwrap_or(u64::MAX);
    let mut export = export::Export::new(Arc::clone(letters), selected.filter, after, limit);
    while output.is_open() {
        let page = export.next().await.map_err(|error| app::store_failure(&error))?;
        if page.is_empty() {
            break;
        }
        for whole in page {
            let line = serde_json::to_string(&whole)
                .map_err(|error| Failure::new(format!("a letter cannot be written as JSON: {error}")))?;
            output.line(line)?;
        }
    }
    Ok(())
}
