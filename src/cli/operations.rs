//! Owns `operations`: what people did, and how it ended.

use clap::Args;
use serde::Serialize;

use crate::{
    app,
    cli::{Listing, output::Output},
    config::Config,
    failure::Failure,
    letters::{
        operations::log::{Entry, Wanted},
        select::parse_time,
    },
    store::operations::{Kind, LogPage, OperationRow, State},
    text::number,
    time::now,
};

/// Arguments of `operations`.
#[derive(Debug, Args)]
pub struct Operations {
    /// Only of these kinds: replay, edit, discard, restore, reveal, note, sync, grant, revoke; several with commas
    #[arg(long, value_name = "KIND")]
    pub kind: Option<String>,

    /// Only by this actor: a user of the operating system, api or token
    #[arg(long, value_name = "NAME")]
    pub who: Option<String>,

    /// Only what began at or after this time: 2026-01-31T12:00:00Z, 2026-01-31, or how long ago: 2h
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,

    /// At most this many
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,

    /// Go on where the last page ended, with the cursor that it printed
    #[arg(long, value_name = "CURSOR")]
    pub after: Option<String>,

    /// How to print it.
    #[command(flatten)]
    pub listing: Listing,
}

#[derive(Serialize)]
struct Listed {
    operations: Vec<Entry>,
    next: Option<String>,
}

/// Prints the log.
///
/// # Errors
/// It cannot be asked for so, or the store does not answer.
pub async fn run(args: Operations, config: &Config, output: &mut Output) -> Result<(), Failure> {
    let since = args.since.as_deref().map(|since| parse_time(since, now())).transpose()?;
    let is_filtered = args.kind.is_some() || args.who.is_some() || args.since.is_some();
    let wanted = Wanted { kind: args.kind, who: args.who, since, after: args.after };
    let (filter, after) = wanted.read()?;
    let store = app::existing_store(config).await?;
    store.check_schema().await?;
    let rows = store.operations(&filter, &LogPage { limit: args.limit, after }).await;
    store.close().await;
    print(args.listing, rows?, args.limit, is_filtered, output)
}

fn print(
    listing: Listing,
    rows: Vec<OperationRow>,
    limit: u32,
    is_filtered: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    let next = rows.last().filter(|_| rows.len() == limit as usize).map(|row| Entry::cursor(&row.place()));
    let operations: Vec<Entry> = rows.into_iter().map(Entry::from).collect();
    if listing.json {
        return output.json(&Listed { operations, next });
    }
    if operations.is_empty() {
        return output.line(match is_filtered {
            true => "no operation matches; --who takes the whole name, such as \"Ada (console)\"",
            false => "nobody did anything yet",
        });
    }
    let rows: Vec<Vec<String>> = operations.iter().map(row).collect();
    output.table(&["at", "kind", "by", "what", "result", "note"], &rows)?;
    match next {
        Some(next) => {
            output.line("")?;
            output.line(format!("more: --after {next}"))
        }
        None => Ok(()),
    }
}

fn row(entry: &Entry) -> Vec<String> {
    let about = entry.clerk_id.as_ref().filter(|_| entry.what.get("user").is_none());
    let what: Vec<String> =
        about.map(|user| format!("user {user}")).into_iter().chain([entry.in_words()]).collect();
    let what = what.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ");
    vec![
        entry.at.clone(),
        entry.kind.as_str().to_owned(),
        entry.who.clone(),
        what,
        result(entry),
        entry.note.clone().unwrap_or_default(),
    ]
}

/// `complete, 10 of 10, 1 died again`.
fn result(entry: &Entry) -> String {
    let mut result = entry.state.as_str().to_owned();
    let counts = !matches!(entry.kind, Kind::Reveal | Kind::Note | Kind::Grant | Kind::Revoke);
    if counts && entry.expected > 0 {
        result.push_str(&format!(", {} of {}", number(entry.published), number(entry.expected)));
    }
    if entry.died > 0 {
        result.push_str(&format!(", {} died again", number(entry.died)));
    }
    // Of one user's sync the detail says what was found.
    let says = entry.state != State::Complete || entry.kind == Kind::Sync;
    if let Some(detail) = entry.detail.as_ref().filter(|_| says) {
        result.push_str(&format!(": {detail}"));
    }
    result
}
