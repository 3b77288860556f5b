//! Owns the routes about users and their tiers, rejected requests, processes, keeping in step with Clerk, and the status of headcount as a whole.

use std::{sync::Arc, time::Duration};

use axum::{Extension, extract::State, response::Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    Api,
    dead::NoteRequest,
    json,
    problem::Problem,
    request::{Json, Named, Query},
};
use crate::{
    ops::{
        access::Caller,
        processes,
        status::{self, Status, StatusError},
        sync,
    },
    rejections::{Explanation, SAMPLES, Sample, explain},
    store::{
        Class, StoreError, User, UserHistory, UserQuery,
        letters::{Filter, Page},
        tiers::TierReport,
    },
    tiers::grant::{self, GrantError, Wish},
    time::now,
};

#[derive(Serialize)]
struct Users {
    users: Vec<User>,
    next: Option<Uuid>,
}

/// A user, and where the tier comes from; null where there is no row.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    user: UserHistory,
    tier: Option<TierReport>,
}

/// The body of a request to grant a tier.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GrantRequest {
    tier: String,
    #[serde(default)]
    until: Option<String>,
    #[serde(default)]
    note: Option<String>,
}

#[derive(Serialize)]
struct Rejections {
    rejections: Vec<Sample>,
    explanations: Vec<Explanation>,
}

/// How long whoever watches headcount waits for how it stands: in an outage most of all it has to be told.
const STANDING: Duration = Duration::from_secs(5);

impl Api {
    /// How everything stands.
    pub(in crate::ops) async fn standing(&self) -> Result<Status, Problem> {
        let queue = Arc::clone(&self.queue);
        let paused = self.worker.as_ref().and_then(|worker| worker.borrow().paused.clone());
        let read = self.ask(|store| async move {
            match status::read(queue.as_ref(), &store, paused).await {
                Ok(status) => Ok(Ok(status)),
                Err(StatusError::Store(error)) => Err(error),
                Err(StatusError::Queue(error)) => Ok(Err(error)),
            }
        });
        Ok(read.await??)
    }
}

pub(super) async fn status(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    let standing = timeout(STANDING, api.standing()).await.unwrap_or_else(|_| {
        let late = format!("the database or the queue gave no answer within {} s", STANDING.as_secs());
        Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", late))
    });
    Ok(json(StatusCode::OK, &standing?))
}

pub(super) async fn processes(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    let processes = api.ask(|store| async move { processes::read(&store).await }).await?;
    Ok(json(StatusCode::OK, &processes))
}

pub(super) async fn sync(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    let whole = api.ask(|store| async move { sync::read(&store).await }).await?;
    Ok(json(StatusCode::OK, &whole))
}

pub(super) async fn users(State(api): State<Arc<Api>>, mut query: Query) -> Result<Response, Problem> {
    let limit = query.number("limit", 50, 1000)? as u32;
    let deleted = query.flag("deleted")?;
    let after = query.take("cursor").map(|cursor| {
        Uuid::try_parse(&cursor).map_err(|_| Problem::bad_request(format!("{cursor:?} is no cursor")))
    });
    let wanted = UserQuery { limit, after: after.transpose()?, deleted, text: query.take("text") };
    query.end()?;
    let users = api.ask(|store| async move { store.users(&wanted).await }).await?;
    let next = users.last().filter(|_| users.len() == limit as usize).map(|user| user.id);
    Ok(json(StatusCode::OK, &Users { users, next }))
}

pub(super) async fn user(State(api): State<Arc<Api>>, Named(reference): Named) -> Result<Response, Problem> {
    let wanted = reference.clone();
    let found = api.ask(|store| async move { store.user(&wanted).await }).await?;
    let Some(user) = found else {
        let about = Filter { clerk_id: Some(reference), ..Filter::default() };
        let page = Page { limit: 1, after: None };
        let letters = api.ask(|store| async move { store.list(&about, &page).await }).await?;
        let unknown =
            Problem::new(StatusCode::NOT_FOUND, "unknown_user", "no user is known by this id or address");
        return Err(unknown.hint(match letters.first() {
            Some(letter) => format!("a dead letter is about it: GET /api/v1/dead/{}", letter.id),
            None => "give our id, a Clerk id (also a former one) or an e-mail address".into(),
        }));
    };
    let tier = match &user.user {
        Some(User { id, .. }) => {
            let id = *id;
            api.ask(|store| async move { store.tier(id).await }).await?
        }
        None => None,
    };
    Ok(json(StatusCode::OK, &Shown { user, tier }))
}

pub(super) async fn grant(
    State(api): State<Arc<Api>>,
    Named(reference): Named,
    Extension(caller): Extension<Caller>,
    Json(request): Json<GrantRequest>,
) -> Result<Response, Problem> {
    let wish = Wish::read(&request.tier, request.until.as_deref(), now())?;
    let by = caller.actor("api", request.note.as_deref());
    let granted = api.ask(|store| async move { passed(wish.grant(store.as_ref(), &reference, &by).await) });
    Ok(json(StatusCode::OK, &granted.await??))
}

pub(super) async fn revoke(
    State(api): State<Arc<Api>>,
    Named(reference): Named,
    Extension(caller): Extension<Caller>,
    Json(request): Json<NoteRequest>,
) -> Result<Response, Problem> {
    let by = caller.actor("api", request.note.as_deref());
    let revoked =
        api.ask(|store| async move { passed(grant::revoke(store.as_ref(), &reference, &by).await) });
    let (tier, _) = revoked.await??;
    Ok(json(StatusCode::OK, &tier))
}

/// What the database says stands apart from the rest.
fn passed<T>(result: Result<T, GrantError>) -> Result<Result<T, GrantError>, StoreError> {
    match result {
        Err(GrantError::Store(error)) if error.class != Class::Permanent => Err(error),
        other => Ok(other),
    }
}

impl From<GrantError> for Problem {
    fn from(error: GrantError) -> Self {
        let problem = match &error {
            GrantError::Unreadable { .. } => Problem::bad_request(error.to_string()),
            GrantError::Unknown(_) => {
                Problem::new(StatusCode::NOT_FOUND, "unknown_user", "no user is known by this id or address")
            }
            GrantError::NoRow(_) | GrantError::Unproved { .. } => Problem::conflict(error.to_string()),
            // Trying again would not help.
            GrantError::Store(error) if error.class == Class::Permanent => {
                Problem::conflict(format!("the database refuses this tier: {error}"))
            }
            GrantError::Store(error) => Problem::unavailable(error.to_string()),
        };
        error.hint().into_iter().fold(problem, Problem::hint)
    }
}

pub(super) async fn rejections(State(api): State<Arc<Api>>, mut query: Query) -> Result<Response, Problem> {
    let limit = query.number("limit", 50, 1000)? as u32;
    query.end()?;
    let samples = api.ask(|store| async move { store.newest(limit.max(SAMPLES)).await }).await?;
    let explanations = explain(&samples, now());
    let rejections = samples.iter().take(limit as usize).map(Sample::from).collect();
    Ok(json(StatusCode::OK, &Rejections { rejections, explanations }))
}
