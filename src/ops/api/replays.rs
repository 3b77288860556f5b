//! Owns the routes that start replays, pause, resume and stop them, and show how far they are, whichever process runs them.

use std::sync::Arc;

use axum::{
    Extension,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Api,
    dead::{Counted, counted, select},
    json,
    problem::Problem,
    request::{Json, Named},
};
use crate::{
    letters::{
        operations::{NewReplay, Operations, Shown, StartError, halt_at},
        replay::nobody_works,
        select::Selection,
    },
    ops::access::Caller,
    store::{
        letters::{Filter, Status},
        operations::{Operation, Wish},
    },
};

/// The body of a request to replay.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplayRequest {
    filter: Selection,
    #[serde(default = "thousand")]
    limit: u64,
    #[serde(default)]
    rate: Option<f64>,
    #[serde(default)]
    ramp: bool,
    #[serde(default)]
    halt_at: Option<f64>,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    note: Option<String>,
}

fn thousand() -> u64 {
    1000
}

#[derive(Serialize)]
struct Listed {
    operations: Vec<Shown>,
}

pub(super) async fn start(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<ReplayRequest>,
) -> Result<Response, Problem> {
    request.filter.check_action()?;
    if request.halt_at.is_some() && !request.ramp {
        return Err(Problem::bad_request("halt_at needs \"ramp\": true"));
    }
    if request.filter.status.as_deref().is_some_and(|status| status != Status::Open.as_str()) {
        return Err(Problem::bad_request("only open letters are replayed: leave the status out"));
    }
    let mut new = NewReplay {
        filter: Filter::default(),
        limit: request.limit,
        rate: request.rate,
        halt_at: halt_at(request.ramp, request.halt_at),
        by: caller.actor("api", request.note.as_deref()),
        open: 0,
        warnings: Vec::new(),
    };
    new.check().map_err(Problem::bad_request)?;
    new.filter = select(&api, &request.filter, Some(Status::Open)).await?.filter;
    new.filter.status = Some(Status::Open);
    let Counted { letters, by } = counted(&api, new.filter.clone()).await?;
    if request.dry_run {
        return Ok(json(StatusCode::OK, &Counted { letters: letters.min(request.limit), by }));
    }
    new.open = letters;
    new.warnings.extend(nobody_works(api.queue.as_ref()).await);
    let operations = Arc::clone(&api.operations);
    let started = api.ask(|_| async move { StartError::apart(operations.start(&new).await) });
    let operation = Shown::from(started.await??);
    let place = format!("/api/v1/dead/operations/{}", operation.id);
    Ok(([(header::LOCATION, place)], json(StatusCode::ACCEPTED, &operation)).into_response())
}

pub(super) async fn list(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    let operations = Arc::clone(&api.operations);
    let listed = api.ask(|_| async move { operations.list().await }).await?;
    Ok(json(StatusCode::OK, &Listed { operations: listed.into_iter().map(Shown::from).collect() }))
}

pub(super) async fn show(State(api): State<Arc<Api>>, Named(id): Named) -> Result<Response, Problem> {
    found(
        &api,
        &id,
        |operations, id| async move { Ok(operations.get(id).await?.map(|(operation, _)| operation)) },
    )
    .await
}

pub(super) async fn pause(
    State(api): State<Arc<Api>>,
    Named(id): Named,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Problem> {
    wished(&api, &caller, &id, Wish::Pause).await
}

pub(super) async fn resume(
    State(api): State<Arc<Api>>,
    Named(id): Named,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Problem> {
    wished(&api, &caller, &id, Wish::Run).await
}

pub(super) async fn stop(
    State(api): State<Arc<Api>>,
    Named(id): Named,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Problem> {
    wished(&api, &caller, &id, Wish::Stop).await
}

async fn wished(api: &Api, caller: &Caller, id: &str, wish: Wish) -> Result<Response, Problem> {
    let by = caller.actor("api", None);
    found(api, id, |operations, id| async move { operations.wish(id, wish, &by).await }).await
}

/// What is asked of the replays about one of them.
type Answer = Result<Option<Operation>, StartError>;

async fn found<F>(
    api: &Api,
    id: &str,
    ask: impl FnOnce(Arc<Operations>, Uuid) -> F,
) -> Result<Response, Problem>
where
    F: Future<Output = Answer> + Send + 'static,
{
    let found = match Uuid::try_parse(id) {
        Ok(id) => {
            let operations = Arc::clone(&api.operations);
            let asked = ask(operations, id);
            api.ask(|_| async move { StartError::apart(asked.await) }).await??
        }
        Err(_) => None,
    };
    let operation = found.ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, "unknown_operation", "no replay has this id")
            .hint("GET /api/v1/dead/operations lists them; a replay is forgotten some time after its end")
    })?;
    Ok(json(StatusCode::OK, &Shown::from(operation)))
}
