//! Owns which pages' scripts may read answers: those of the application's own origins, and no other. Bounds the
//! time to an answer, and counts the answers.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use tokio::time::timeout;

use super::{Api, PATIENCE};
use crate::{net::Problem, telemetry::metrics::ApiAnswer};

/// How long a browser remembers what a page may send, in seconds.
const REMEMBERED: HeaderValue = HeaderValue::from_static("600");

/// Answers what a browser asks before a page's request, and tells it which pages may read the answer.
pub(super) async fn answer(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let party = request
        .headers()
        .get(header::ORIGIN)
        .filter(|origin| origin.to_str().is_ok_and(|origin| api.verifier.terms().is_party(origin)));
    let party = party.cloned();
    let asks = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match asks {
        true => StatusCode::NO_CONTENT.into_response(),
        // The head of a stream comes at once; what it goes on with is its own.
        false => timeout(PATIENCE, next.run(request)).await.unwrap_or_else(|_| late().into_response()),
    };
    api.metrics.answered(match response.status() {
        StatusCode::UNAUTHORIZED => ApiAnswer::Unauthorized,
        StatusCode::TOO_MANY_REQUESTS => ApiAnswer::Limited,
        status if status.is_server_error() => ApiAnswer::Unavailable,
        status if status.is_client_error() => ApiAnswer::Refused,
        _ => ApiAnswer::Answered,
    });
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("Origin, Authorization, Cookie"));
    if let Some(party) = party {
        allow(headers, party, asks);
    }
    response
}

fn late() -> Problem {
    Problem::unavailable("there was no answer in time")
}

fn allow(headers: &mut HeaderMap, party: HeaderValue, asks: bool) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, party);
    headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    if asks {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        let sent = "Authorization, Content-Type, If-None-Match, Last-Event-ID";
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(sent));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, REMEMBERED);
    } else {
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("ETag, Retry-After"));
    }
}
