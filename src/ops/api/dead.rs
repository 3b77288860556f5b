//! Owns the routes that show dead letters, and those that edit, discard or restore one.

use std::sync::Arc;

use axum::{
    Extension,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};

use super::{
    Api, json,
    problem::Problem,
    request::{Json, Named, Query},
};
use crate::{
    letters::{
        diff,
        edit::check,
        export::{Encoding, Export, Whole},
        operations,
        replay::nobody_works,
        select::{SelectError, Selected, Selection, cursor, parse_cursor},
    },
    ops::access::Caller,
    store::{
        letters::{Actor, Count, Filter, Group, Letter, LetterDetail, Page, Status},
        operations::Kind,
    },
    terminal::safe_json,
    time::{Millis, now},
};

/// The most letters of one export. The next one goes on with the last line's cursor.
const EXPORT_MAX: u64 = 100_000;

#[derive(Serialize)]
struct Groups {
    groups: Vec<Group>,
}

#[derive(Serialize)]
struct Listed {
    letters: Vec<Letter>,
    next: Option<String>,
}

/// How many letters an action would touch, in all and by event type and reason.
#[derive(Serialize)]
pub(in crate::ops) struct Counted {
    pub(in crate::ops) letters: u64,
    pub(in crate::ops) by: Vec<Count>,
}

/// The body of a request to edit a letter.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EditRequest {
    body: String,
    #[serde(default)]
    encoding: Encoding,
    #[serde(default)]
    note: Option<String>,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Edited {
    /// The round that began; null after a dry run.
    round: Option<u32>,
    difference: Vec<String>,
    /// What the person may not have meant, and why no worker would take the message at once.
    warnings: Vec<String>,
}

/// The body of a request to discard or restore a letter.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct NoteRequest {
    pub(super) note: Option<String>,
}

pub(in crate::ops) async fn select(
    api: &Api,
    selection: &Selection,
    status: Option<Status>,
) -> Result<Selected, Problem> {
    let (letters, selection) = (api.letters(), selection.clone());
    let selected = api.ask(|_| async move {
        match selection.resolve(&letters, status, now()).await {
            Err(SelectError::Store(error)) => Err(error),
            other => Ok(other),
        }
    });
    Ok(selected.await??)
}

fn after(query: &mut Query) -> Result<Option<(Millis, uuid::Uuid)>, Problem> {
    Ok(query.take("cursor").map(|cursor| parse_cursor(&cursor)).transpose()?)
}

pub(super) async fn groups(State(api): State<Arc<Api>>, mut query: Query) -> Result<Response, Problem> {
    let selection = query.selection()?;
    query.end()?;
    let filter = select(&api, &selection, Some(Status::Open)).await?.filter;
    let groups = api.ask(|store| async move { store.groups(&filter).await }).await?;
    Ok(json(StatusCode::OK, &Groups { groups }))
}

pub(super) async fn list(State(api): State<Arc<Api>>, mut query: Query) -> Result<Response, Problem> {
    let (selection, after) = (query.selection()?, after(&mut query)?);
    let limit = query.number("limit", 50, 1000)? as u32;
    query.end()?;
    let filter = select(&api, &selection, Some(Status::Open)).await?.filter;
    let page = Page { limit, after };
    let letters = api.ask(|store| async move { store.list(&filter, &page).await }).await?;
    let next = letters.last().filter(|_| letters.len() == limit as usize).map(cursor);
    Ok(json(StatusCode::OK, &Listed { letters, next }))
}

pub(super) async fn count(State(api): State<Arc<Api>>, mut query: Query) -> Result<Response, Problem> {
    let selection = query.selection()?;
    query.end()?;
    let filter = select(&api, &selection, Some(Status::Open)).await?.filter;
    Ok(json(StatusCode::OK, &counted(&api, filter).await?))
}

pub(in crate::ops) async fn counted(api: &Api, filter: Filter) -> Result<Counted, Problem> {
    let by = api.ask(|store| async move { store.count(&filter).await }).await?;
    Ok(Counted { letters: by.iter().map(|count| count.letters).sum(), by })
}

/// Writes letters as JSON lines. Where the database fails halfway the connection breaks off, so that no client takes a part
/// for the whole.
pub(super) async fn export(State(api): State<Arc<Api>>, mut query: Query) -> Result<Response, Problem> {
    let (selection, after) = (query.selection()?, after(&mut query)?);
    let limit = query.number("limit", 10_000, EXPORT_MAX)?;
    query.end()?;
    let filter = select(&api, &selection, Some(Status::Open)).await?.filter;
    let export = Export::new(api.letters(), filter, after, limit);
    let pages = stream::try_unfold(export, |mut export| async move {
        let page = export.next().await?;
        let mut lines = String::new();
        for whole in &page {
            lines.push_str(&safe_json(&serde_json::to_string(whole)?));
            lines.push('\n');
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(
            (!page.is_empty()).then_some((Bytes::from(lines), export)),
        )
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(pages)).into_response())
}

pub(in crate::ops) async fn find(api: &Api, reference: String) -> Result<LetterDetail, Problem> {
    let wanted = reference.clone();
    let found = api.ask(|store| async move { store.show(&wanted).await }).await?;
    Ok(found.ok_or(SelectError::Unknown(reference))?)
}

pub(super) async fn show(State(api): State<Arc<Api>>, Named(reference): Named) -> Result<Response, Problem> {
    Ok(json(StatusCode::OK, &Whole::from(find(&api, reference).await?)))
}

pub(super) async fn edit(
    State(api): State<Arc<Api>>,
    Named(reference): Named,
    Extension(caller): Extension<Caller>,
    Json(request): Json<EditRequest>,
) -> Result<Response, Problem> {
    let letter = find(&api, reference).await?;
    let body = request.encoding.decode(request.body);
    let body = body.map_err(|error| Problem::bad_request(format!("the body is no base64: {error}")))?;
    let mended = check(&letter, body.into())?;
    let difference = mended.difference.iter().map(diff::Line::to_string).collect();
    let mut warnings = mended.warnings.clone();
    warnings.extend(nobody_works(api.queue.as_ref()).await);
    if request.dry_run {
        return Ok(json(StatusCode::OK, &Edited { round: None, difference, warnings }));
    }
    let round = api.send_edit(letter, mended, caller.actor("api", request.note.as_deref())).await?;
    Ok(json(StatusCode::OK, &Edited { round: Some(round), difference, warnings }))
}

pub(super) async fn discard(
    State(api): State<Arc<Api>>,
    Named(reference): Named,
    Extension(caller): Extension<Caller>,
    Json(request): Json<NoteRequest>,
) -> Result<Response, Problem> {
    let by = caller.actor("api", request.note.as_deref());
    if by.note.is_none() {
        return Err(Problem::bad_request("a discarded letter needs a note that says why"));
    }
    settle(&api, Kind::Discard, by, reference, Status::Open).await
}

pub(super) async fn restore(
    State(api): State<Arc<Api>>,
    Named(reference): Named,
    Extension(caller): Extension<Caller>,
    Json(request): Json<NoteRequest>,
) -> Result<Response, Problem> {
    let by = caller.actor("api", request.note.as_deref());
    settle(&api, Kind::Restore, by, reference, Status::Discarded).await
}

/// Answers with the letter as it is now, or with why nothing was done.
async fn settle(
    api: &Api,
    kind: Kind,
    by: Actor,
    reference: String,
    from: Status,
) -> Result<Response, Problem> {
    let letter = find(api, reference).await?.letter;
    let (id, standing) = (letter.id, letter.standing());
    let settled =
        api.ask(|store| async move { operations::settle(&store, kind, &by, &letter).await }).await?;
    if !settled {
        let wanted = from.as_str();
        return Err(Problem::conflict(format!("the letter is {standing}, not {wanted}, or is erased")));
    }
    Ok(json(StatusCode::OK, &Whole::from(find(api, id.to_string()).await?)))
}
