//! Owns what the stand-in answers to a request, in Clerk's shapes, and what a fault makes of it. Never stores anything.

use std::io;

use axum::body::Body;
use bytes::Bytes;
use chrono::DateTime;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri, header};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::{
    faults::{Faults, Wrong},
    listing::{Listing, Refusal},
    world::World,
};
use crate::time::now;

/// What a user's path ends in where the subscription is asked for.
const SUBSCRIPTION: &str = "/billing/subscription";

/// Answers a request.
pub(super) async fn answer(world: &World, uri: &Uri, headers: &HeaderMap) -> Response<Body> {
    let path = match uri.path().strip_prefix("/v1/users/") {
        Some(rest) if rest.ends_with(SUBSCRIPTION) => "/v1/users/{id}/billing/subscription",
        Some(id) if id != "count" => "/v1/users/{id}",
        _ => uri.path(),
    };
    let (number, faults, before) = world.arrives(path);
    if let Some(before) = before {
        before(world, uri.path_and_query().map_or(path, |asked| asked.as_str()));
    }
    if let Some(id) = uri.path().strip_prefix("/v1/users/").filter(|_| path == "/v1/users/{id}") {
        world.look_for(id).await;
    }
    tokio::time::sleep(faults.delay).await;
    let hit = number.is_multiple_of(faults.each) && faults.path.is_none_or(|only| only == path);
    let mut response = match faults.wrong.as_ref().filter(|_| hit) {
        None => respond(sound(world, uri, headers, &faults)),
        Some(Wrong::Cut) => cut(sound(world, uri, headers, &faults)),
        Some(Wrong::Hang) => std::future::pending().await,
        Some(Wrong::Status(status)) => instead(*status, "text/plain", None, ""),
        Some(Wrong::Limited(seconds)) => {
            instead(429, "text/plain", Some((header::RETRY_AFTER, seconds.to_string())), "")
        }
        Some(Wrong::Body(body)) => instead(200, "application/json", None, body),
        Some(Wrong::Page) => instead(200, "text/html", None, "<!doctype html><title>Sign in</title>"),
        Some(Wrong::Redirect(to)) => instead(302, "text/html", Some((header::LOCATION, to.clone())), ""),
    };
    let date = DateTime::from_timestamp_millis(now() + faults.clock_ahead).unwrap_or_default();
    // Hyper would write the time of this machine.
    if let Ok(date) = HeaderValue::from_str(&date.format("%a, %d %b %Y %H:%M:%S GMT").to_string()) {
        response.headers_mut().insert(header::DATE, date);
    }
    response
}

/// A sound answer: a status and JSON, and the seconds to wait where it is 429.
struct Sound {
    status: StatusCode,
    body: Vec<u8>,
    retry_after: Option<u64>,
}

impl Sound {
    fn ok(body: Vec<u8>) -> Self {
        Self { status: StatusCode::OK, body, retry_after: None }
    }

    fn json(value: &Value) -> Self {
        Self::ok(value.to_string().into_bytes())
    }

    fn error(status: StatusCode, code: &str, message: &str, parameter: Option<&str>) -> Self {
        let mut error = json!({ "code": code, "long_message": message, "message": message });
        if let Some(parameter) = parameter {
            error["meta"] = json!({ "param_name": parameter });
        }
        let body = json!({ "clerk_trace_id": "3ff6c2477a6326af839deb628abd4321", "errors": [error] });
        Self { status, body: body.to_string().into_bytes(), retry_after: None }
    }
}

impl From<Refusal> for Sound {
    fn from(refusal: Refusal) -> Self {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Self::error(status, "form_param_value_invalid", refusal.words, Some(refusal.parameter))
    }
}

fn sound(world: &World, uri: &Uri, headers: &HeaderMap, faults: &Faults) -> Sound {
    if let Some(Err(seconds)) = faults.quota.map(|quota| world.within(quota)) {
        let message = "Too many requests. Please try again in a bit.";
        let limited = Sound::error(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", message, None);
        return Sound { retry_after: Some(seconds), ..limited };
    }
    let bearer = format!("Bearer {}", world.key().expose());
    if headers.get(header::AUTHORIZATION).is_none_or(|given| given.as_bytes() != bearer.as_bytes()) {
        let message =
            "The provided Clerk Secret Key is invalid. Make sure that your Clerk Secret Key is correct.";
        return Sound::error(StatusCode::UNAUTHORIZED, "clerk_key_invalid", message, None);
    }
    let query = uri.query().unwrap_or_default();
    match uri.path() {
        "/v1/instance" => Sound::json(&json!({
            "allowed_origins": [],
            "environment_type": "development",
            "id": world.instance(),
            "object": "instance",
        })),
        "/v1/users" => list(world, query, faults),
        "/v1/users/count" => match Listing::read(query) {
            Ok(listing) => {
                let count = world.look(|orders| listing.count(orders));
                Sound::json(&json!({ "object": "total_count", "total_count": count }))
            }
            Err(refusal) => refusal.into(),
        },
        "/v1/billing/subscription_items" => items(world, query),
        path => {
            let rest = path.strip_prefix("/v1/users/").unwrap_or_default();
            let found = match rest.strip_suffix(SUBSCRIPTION) {
                Some(id) => subscription(world, id),
                None => user(world, rest, faults),
            };
            match found {
                Some(found) => Sound::ok(found.into_bytes()),
                None => Sound::error(StatusCode::NOT_FOUND, "resource_not_found", "not found", None),
            }
        }
    }
}

/// What a user pays for, as JSON.
fn subscription(world: &World, id: &str) -> Option<String> {
    let items = world.items(id)?;
    let subscription = json!({
        "id": format!("csub_{id}"),
        "object": "commerce_subscription",
        "instance_id": world.instance(),
        "payer_id": format!("cpayer_{id}"),
        "status": "active",
        "subscription_items": items,
    });
    Some(subscription.to_string())
}

/// A page of what all users pay for, each item with its payer.
fn items(world: &World, query: &str) -> Sound {
    let number = |wanted: &str, default: usize| {
        let found = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == wanted);
        found.and_then(|(_, value)| value.parse().ok()).unwrap_or(default)
    };
    let all = world.all_items();
    let page = all.iter().skip(number("offset", 0)).take(number("limit", 10)).map(|(user, item)| {
        let mut item = item.clone();
        item["payer"] = json!({ "id": format!("cpayer_{user}"), "user_id": user });
        item
    });
    let page: Vec<Value> = page.collect();
    Sound::json(&json!({ "data": page, "total_count": all.len() }))
}

fn list(world: &World, query: &str, faults: &Faults) -> Sound {
    let page =
        Listing::read(query).and_then(|listing| world.look(|orders| listing.page(orders, faults.cursor)));
    match page {
        // Whoever is deleted meanwhile is left out.
        Ok(ids) => {
            let users: Vec<String> = ids.iter().filter_map(|id| user(world, id, faults)).collect();
            Sound::ok(format!("[{}]", users.join(",")).into_bytes())
        }
        Err(refusal) => refusal.into(),
    }
}

/// A user as JSON.
fn user(world: &World, id: &str, faults: &Faults) -> Option<String> {
    let person = world.person(id)?;
    Some(faults.garbled.get(id).cloned().unwrap_or_else(|| person.data().to_string()))
}

fn respond(sound: Sound) -> Response<Body> {
    let mut response = Response::new(Body::from(sound.body));
    *response.status_mut() = sound.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = sound.retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// A sound answer whose connection ends in the middle of its body.
fn cut(mut sound: Sound) -> Response<Body> {
    sound.body.truncate(sound.body.len() / 2);
    let half = Frame::data(Bytes::from(std::mem::take(&mut sound.body)));
    let end = async {
        // So that hyper writes the head and the half before.
        tokio::task::yield_now().await;
        Err(io::Error::from(io::ErrorKind::ConnectionReset))
    };
    let body = Body::new(StreamBody::new(stream::iter([Ok(half)]).chain(stream::once(end))));
    respond(sound).map(|_| body)
}

/// What comes in place of a sound answer.
fn instead(
    status: u16,
    kind: &'static str,
    extra: Option<(HeaderName, String)>,
    body: &str,
) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_owned()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some((name, value)) = extra
        && let Ok(value) = HeaderValue::from_str(&value)
    {
        headers.insert(name, value);
    }
    response
}
