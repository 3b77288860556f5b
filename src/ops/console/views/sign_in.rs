//! Owns signing in: a token for a session, and signing out.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, header};
use maud::{Markup, html};

use super::super::{
    Answer, Console,
    form::{Fields, Form},
    frame::{Section, View, on_to},
    parts::hidden,
};
use crate::ops::access::next_path;

/// The largest form that a stranger may send, in bytes.
const SMALL: usize = 8 * 1024;

/// `GET /sign-in`
pub(in super::super) async fn form(State(console): State<Arc<Console>>, fields: Fields) -> Answer {
    if !console.guard.has_tokens() {
        return Ok(on_to("/"));
    }
    Ok(View::new(Section::Elsewhere, "Sign in", page(&fields, None)).into_response())
}

fn page(fields: &Fields, wrong: Option<&str>) -> Markup {
    html! {
        div.narrow {
            h1 { "Sign in" }
            form.stack action="/sign-in" method="post" {
                (hidden(&[("next", next_path(fields.get("next").unwrap_or("/")))]))
                @if let Some(wrong) = wrong { p.note.bad role="alert" { (wrong) } }
                label for="token" { "Token" }
                input #token type="password" name="token" required autocomplete="current-password" autofocus
                    aria-describedby="token-help";
                p #token-help.muted { "HEADCOUNT_OPS_TOKEN to operate, or HEADCOUNT_OPS_LOOK_TOKEN to look." }
                label for="name" { "Your name " span.muted { "(optional, for the log of operations)" } }
                input #name type="text" name="name" maxlength="60" autocomplete="name";
                button.primary type="submit" { "Sign in" }
            }
        }
    }
}

/// `POST /sign-in`
pub(in super::super) async fn begin(
    State(console): State<Arc<Console>>,
    headers: HeaderMap,
    Form(fields): Form<SMALL>,
) -> Answer {
    let given = fields.get("token").unwrap_or_default().trim();
    let Some(access) = console.guard.of_token(given.as_bytes()) else {
        let wrong = page(&fields, Some("This is neither of the two tokens."));
        let view = View::new(Section::Elsewhere, "Sign in", wrong).status(StatusCode::UNAUTHORIZED);
        return Ok(view.into_response());
    };
    let cookie = console.guard.begin(access, fields.get("name").unwrap_or_default(), &headers);
    Ok(with_cookie(on_to(next_path(fields.get("next").unwrap_or("/"))), cookie))
}

/// `POST /sign-out`
pub(in super::super) async fn end(State(console): State<Arc<Console>>, headers: HeaderMap) -> Answer {
    Ok(with_cookie(on_to("/sign-in"), console.guard.end(&headers)))
}

fn with_cookie(mut response: Response, cookie: http::HeaderValue) -> Response {
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    response
}
