//! Owns the routes that replay: a replay runs in this process, beside the requests, and is asked how far it is.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Api, json,
    letters::{Counted, counted, select},
    problem::Problem,
    request::{Json, Named},
};
use crate::{
    letters::{
        replay::{Order, nobody_works},
        select::Selection,
    },
    ops::replays::Operation,
    store::letters::Status,
};

/// Which letters, and how.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplayRequest {
    filter: Selection,
    #[serde(default = "thousand")]
    limit: u64,
    #[serde(default)]
    rate: Option<f64>,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    note: Option<String>,
}

fn thousand() -> u64 {
    1000
}

#[derive(Serialize)]
struct Operations {
    operations: Vec<Operation>,
}

pub(super) async fn start(
    State(api): State<Arc<Api>>,
    Json(request): Json<ReplayRequest>,
) -> Result<Response, Problem> {
    request.filter.check_action()?;
    if request.limit == 0 {
        return Err(Problem::bad_request("limit has to be at least 1"));
    }
    if request.rate.is_some_and(|rate| !(0.001..=1_000_000.0).contains(&rate)) {
        return Err(Problem::bad_request("rate has to be between 0.001 and 1000000 per second"));
    }
    if request.filter.status.as_deref().is_some_and(|status| status != Status::Open.as_str()) {
        return Err(Problem::bad_request("only open letters are replayed: leave the status out"));
    }
    let mut filter = select(&api, &request.filter, Some(Status::Open)).await?.filter;
    filter.status = Some(Status::Open);
    let Counted { letters, by } = counted(&api, filter.clone()).await?;
    if request.dry_run {
        return Ok(json(StatusCode::OK, &Counted { letters: letters.min(request.limit), by }));
    }
    let by = api.actor(request.note.as_deref());
    let order = Order { filter, limit: request.limit, rate: request.rate, by };
    let warnings = nobody_works(api.queue.as_ref()).await.into_iter().collect();
    let operation = api.operations.start(order, letters.min(request.limit), warnings)?;
    let place = format!("/api/v1/dead/operations/{}", operation.id);
    Ok(([(header::LOCATION, place)], json(StatusCode::ACCEPTED, &operation)).into_response())
}

pub(super) async fn list(State(api): State<Arc<Api>>) -> Response {
    json(StatusCode::OK, &Operations { operations: api.operations.list() })
}

pub(super) async fn show(State(api): State<Arc<Api>>, Named(id): Named) -> Result<Response, Problem> {
    found(Uuid::try_parse(&id).ok().and_then(|id| api.operations.get(id)))
}

pub(super) async fn stop(State(api): State<Arc<Api>>, Named(id): Named) -> Result<Response, Problem> {
    found(Uuid::try_parse(&id).ok().and_then(|id| api.operations.stop(id)))
}

fn found(operation: Option<Operation>) -> Result<Response, Problem> {
    let operation = operation.ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, "unknown_operation", "no replay of this process has this id")
            .hint("a process remembers its own replays, and those since its start; the letters remember all")
    })?;
    Ok(json(StatusCode::OK, &operation))
}
