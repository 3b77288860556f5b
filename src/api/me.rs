//! Owns the answers about the caller: their row, made first where there is none, and what Clerk's present answer changes in it.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::{
    Api,
    caller::{Known, unauthorized},
    first::Made,
    json, later,
    limits::Spent,
    text,
};
use crate::{
    clerk::token::Caller,
    digest::{hex, sha256},
    net::Problem,
    store::{User, accounts::Account},
    time::Millis,
};

/// How long a client waits for a row that only a webhook can bring, in seconds.
const NOT_SYNCED: u64 = 5;

/// The caller's row, as the application's browsers may see it: without `private_metadata` and without Clerk's whole object.
#[derive(Serialize)]
struct Me<'u> {
    id: Uuid,
    clerk_id: &'u str,
    email: Option<&'u str>,
    email_verified: bool,
    phone: Option<&'u str>,
    username: Option<&'u str>,
    first_name: Option<&'u str>,
    last_name: Option<&'u str>,
    image_url: Option<&'u str>,
    external_id: Option<&'u str>,
    public_metadata: Option<&'u Value>,
    unsafe_metadata: Option<&'u Value>,
    banned: Option<bool>,
    locked: Option<bool>,
    subscription_tier: &'u str,
    credits_balance: i64,
    last_sign_in_at: Option<&'u str>,
    clerk_created_at: Option<&'u str>,
    clerk_updated_at: Option<&'u str>,
    version: Millis,
    created_at: &'u str,
    updated_at: &'u str,
}

impl<'u> Me<'u> {
    fn of(user: &'u User) -> Self {
        Self {
            id: user.id,
            clerk_id: &user.clerk_id,
            email: user.email.as_deref(),
            email_verified: user.email_verified,
            phone: user.phone.as_deref(),
            username: user.username.as_deref(),
            first_name: user.first_name.as_deref(),
            last_name: user.last_name.as_deref(),
            image_url: user.image_url.as_deref(),
            external_id: user.external_id.as_deref(),
            public_metadata: user.public_metadata.as_ref(),
            unsafe_metadata: user.unsafe_metadata.as_ref(),
            banned: user.banned,
            locked: user.locked,
            subscription_tier: &user.subscription_tier,
            credits_balance: user.credits_balance,
            last_sign_in_at: user.last_sign_in_at.as_deref(),
            clerk_created_at: user.clerk_created_at.as_deref(),
            clerk_updated_at: user.clerk_updated_at.as_deref(),
            version: user.version,
            created_at: &user.created_at,
            updated_at: &user.updated_at,
        }
    }
}

/// A row as it is shown, and the tag that differs once that does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) json: String,
    pub(super) tag: String,
}

impl Shown {
    pub(super) fn of(user: &User) -> Result<Self, Problem> {
        let json = text(&Me::of(user))?;
        let tag = hex(&sha256(json.as_bytes())[..12]);
        Ok(Self { json, tag })
    }
}

/// What the table says of a caller who is live.
pub(super) type Found = Arc<Account>;

impl Api {
    /// The caller's row, committed. It is made first where there is none. The caller's session is noted.
    pub(super) async fn row(&self, caller: &Caller) -> Result<Found, Response> {
        let found = match self.look(caller).await? {
            Some(found) => found,
            None => match self.first.make(&caller.clerk_id).await {
                Made::Done => self.look(caller).await?.ok_or_else(|| {
                    Problem::unavailable("the user is being made at this moment").into_response()
                })?,
                made => return Err(refusal(made)),
            },
        };
        if let Some(sessions) = &self.sessions {
            sessions.saw(caller);
        }
        Ok(found)
    }

    /// The account of a live user who is signed in; `None` where the table knows nobody.
    async fn look(&self, caller: &Caller) -> Result<Option<Found>, Response> {
        let session = self.sessions.as_ref().map(|_| caller.session_id.as_str());
        let looked = self.lookups.account(&caller.clerk_id, session).await;
        let looked = looked.ok_or_else(|| Problem::unavailable("this process stops").into_response())?;
        let (account, has_ended) = looked.map_err(|error| self.unavailable(&error))?;
        match account.as_deref() {
            Some(Account::Row(user)) if user.deleted_at.is_none() => {}
            Some(Account::Row(_) | Account::Former { .. }) => return Err(deleted().into_response()),
            None => {}
        }
        match has_ended {
            true => Err(unauthorized("session_ended", "this session has ended")),
            false => Ok(account),
        }
    }
}

/// The user behind an account that [`Api::row`] found.
pub(super) fn user(found: &Account) -> Result<&User, Problem> {
    match found {
        Account::Row(user) => Ok(user),
        Account::Former { .. } => Err(deleted()),
    }
}

pub(super) fn deleted() -> Problem {
    Problem::new(StatusCode::GONE, "deleted", "this user was deleted")
}

fn refusal(made: Made) -> Response {
    match made {
        Made::Done => deleted().into_response(),
        Made::Nobody => Problem::new(StatusCode::NOT_FOUND, "unknown_user", "Clerk knows no user of this id")
            .into_response(),
        Made::NoKey => later(
            Problem::new(StatusCode::NOT_FOUND, "not_synced", "there is no row of this user yet")
                .hint("Clerk's webhook brings it; with CLERK_SECRET_KEY it is made at once"),
            NOT_SYNCED,
        ),
        Made::Unreadable(why) => {
            Problem::unavailable(format!("what Clerk says of this user cannot be read: {why}"))
                .hint("an upgrade of headcount may know how to read it")
                .into_response()
        }
        Made::Away => Problem::unavailable(
            "Clerk or the database does not answer, and there is no row of this user yet",
        )
        .into_response(),
    }
}

/// `GET /v1/me`
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    Known(caller): Known,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let found = api.row(&caller).await?;
    let Shown { json, tag } = user(&found).and_then(Shown::of).map_err(IntoResponse::into_response)?;
    let tag = format!("\"{tag}\"");
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut known = known.flat_map(|value| value.split(',')).map(|one| one.trim().trim_start_matches("W/"));
    let mut response = match known.any(|one| one == tag || one == "*") {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}

/// What `POST /v1/me/sync` answers.
#[derive(Serialize)]
struct Synced<'s> {
    user: Value,
    /// The fields of the row that differ from before.
    changed: Vec<&'s str>,
}

/// `POST /v1/me/sync`
pub(super) async fn sync(State(api): State<Arc<Api>>, Known(caller): Known) -> Result<Response, Response> {
    if let Err(Spent { seconds }) = api.limits.sync(&caller.clerk_id) {
        let soon = "this user was read from Clerk less than 10 s ago";
        return Err(later(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", soon), seconds));
    }
    let before = match api.look(&caller).await? {
        Some(found) => fields(&found).map_err(IntoResponse::into_response)?,
        None => Value::Null,
    };
    match api.first.refresh(&caller.clerk_id).await {
        Made::Done => {}
        made => return Err(refusal(made)),
    }
    let found = api.row(&caller).await?;
    let after = fields(&found).map_err(IntoResponse::into_response)?;
    let changed = after.as_object().into_iter().flatten();
    let changed = changed.filter(|(name, value)| before.get(name) != Some(value));
    let changed: Vec<&str> = changed.map(|(name, _)| name.as_str()).collect();
    Ok(json(&Synced { user: after.clone(), changed }))
}

fn fields(found: &Account) -> Result<Value, Problem> {
    serde_json::to_value(Me::of(user(found)?)).map_err(|error| Problem::unavailable(error.to_string()))
}
