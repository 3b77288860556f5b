//! Owns anonymous visitors of the application: giving each an id and a secret token, and giving the id to the user who brings
//! that token, once. The token is shown once, and kept as a hash only.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody as _, to_bytes},
    extract::State,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderValue, StatusCode, header, request::Parts};
use rand::{RngExt as _, distr::Alphanumeric};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use uuid::Uuid;

use super::{Api, caller::Known, json, later, limits::Spent, me::deleted};
use crate::{
    digest::{hex, sha256},
    net::{Peer, Problem},
    store::visitors::{Claim, Claimed, Visitor},
    time::{Millis, now, rfc3339},
};

/// The characters of an id after its prefix.
const ID: usize = 24;
/// The bytes of a token.
const TOKEN: usize = 32;

/// The longest body, in bytes, ...
const BODY_MAX: usize = 4 * 1024;
/// ... and how long it may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(2);

/// What `POST /v1/anonymous` answers.
#[derive(Serialize)]
struct Begun<'v> {
    id: &'v str,
    token: &'v str,
    expires_at: String,
}

/// `POST /v1/anonymous`
pub(super) async fn begin(State(api): State<Arc<Api>>, parts: Parts) -> Result<Response, Response> {
    let peer = parts.extensions.get::<Peer>().map(|peer| peer.0);
    if let Err(Spent { seconds }) = api.limits.visitor(peer) {
        let much = "too many visitors began here";
        let much = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", much);
        return Err(later(much, seconds));
    }
    let (visitor, token) = visitor(api.anonymous_retention);
    let _turn = api.turns.acquire().await;
    api.store.begin_visitor(&visitor).await.map_err(|error| api.unavailable(&error))?;
    let begun = Begun { id: &visitor.id, token: &token, expires_at: rfc3339(visitor.expires_at) };
    let mut response = json(&begun);
    *response.status_mut() = StatusCode::CREATED;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// What `POST /v1/me/claim` is sent.
#[derive(Deserialize)]
struct Asked {
    token: String,
}

/// What it answers.
#[derive(Serialize)]
struct Answer {
    anonymous_id: String,
    claimed_by: Uuid,
    claimed_at: String,
}

/// `POST /v1/me/claim`
pub(super) async fn claim(
    State(api): State<Arc<Api>>,
    Known(caller): Known,
    body: Body,
) -> Result<Response, Response> {
    let large = || {
        let large = format!("the body is longer than {BODY_MAX} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", large).into_response()
    };
    if body.size_hint().lower() > BODY_MAX as u64 {
        return Err(large());
    }
    let body = timeout(ARRIVAL, to_bytes(body, BODY_MAX)).await.map_err(|_| {
        let slow = "the body did not arrive in time";
        Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", slow).into_response()
    })?;
    let body = body.map_err(|_| large())?;
    let asked: Asked = serde_json::from_slice(&body).map_err(|_| {
        Problem::new(StatusCode::BAD_REQUEST, "bad_request", "the body is no JSON object with a token")
            .hint("send {\"token\":\"…\"}, the token of POST /v1/anonymous")
            .into_response()
    })?;
    api.row(&caller).await?;
    let _turn = api.turns.acquire().await;
    let claimed = api.store.claim_visitor(&hash(&asked.token), &caller.clerk_id, now()).await;
    match claimed.map_err(|error| api.unavailable(&error))? {
        Claim::Yours(Claimed { anonymous_id, claimed_by, claimed_at }) => {
            Ok(json(&Answer { anonymous_id, claimed_by, claimed_at: rfc3339(claimed_at) }))
        }
        Claim::Another => {
            let other = "another user has claimed this visitor";
            Err(Problem::new(StatusCode::CONFLICT, "claimed_by_another", other).into_response())
        }
        Claim::Unknown => {
            let unknown = "no visitor has this token, or it has expired";
            Err(Problem::new(StatusCode::NOT_FOUND, "unknown_token", unknown).into_response())
        }
        Claim::Nobody => Err(deleted().into_response()),
    }
}

/// A new one, with its token.
fn visitor(kept: Duration) -> (Visitor, String) {
    let (mut rng, began) = (rand::rng(), now());
    let id: String = (0..ID).map(|_| char::from(rng.sample(Alphanumeric))).collect();
    let token = URL_SAFE_NO_PAD.encode(rng.random::<[u8; TOKEN]>());
    let kept = Millis::try_from(kept.as_millis()).unwrap_or(Millis::MAX);
    let visitor = Visitor {
        id: format!("anon_{id}"),
        token_hash: hash(&token),
        created_at: began,
        expires_at: began.saturating_add(kept),
    };
    (visitor, token)
}

fn hash(token: &str) -> String {
    hex(&sha256(token.as_bytes()))
}
