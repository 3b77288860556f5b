//! Owns the console: what people see and do in a browser, on the modules that the command line uses too.
//!
//! In a request's order: [`routes`] is the one table of its pages, `form` reads what a page sends, `views` answer with what
//! belongs on the page, `frame` puts that into its place, with the verdict of `pulse`, which is `kept` for all pages, and `live`
//! sends what has changed. `parts` are the pieces that pages are made of, `mask` hides what is personal in a body.
//!
//! Promises that reading needs no script, that every view is a URL, that what comes from outside is shown as text, and that
//! nothing is loaded from elsewhere. An action takes a page that says what it will do, and one more click.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use axum::{
    Router, middleware,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use maud::{Markup, html};
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use self::{kept::Kept, pulse::Moment};
use super::{
    access::{self, Access, Guard, Route},
    api::{Api, problem::Problem},
};
use crate::sync::Sync;

mod form;
mod frame;
mod kept;
mod live;
mod mask;
mod parts;
mod pulse;
mod views;
mod work;

use frame::View;
use views::{
    dead, flow, home, keys, letter, operations, processes, rejected, search, settle, sign_in, sync, users,
};

/// Results of actions that are remembered for the page that follows.
const RESULTS: usize = 100;

/// What the pages share.
pub(super) struct Console {
    api: Arc<Api>,
    guard: Arc<Guard>,
    /// Clerk's API, where there is a key.
    clerk: Option<Sync>,
    pulse: Arc<Kept<Moment>>,
    causes: Arc<Kept<work::Causes>>,
    memory: work::Memory,
    /// What became of actions, the newest last.
    results: Mutex<VecDeque<(Uuid, Markup)>>,
    /// The pages themselves, for those that are live.
    pages: OnceLock<Router>,
    streams: Arc<Semaphore>,
    /// Turns of live pages at the database.
    turns: Semaphore,
    /// The process is asked to stop.
    stop: watch::Receiver<bool>,
}

impl Console {
    pub(super) fn new(
        api: Arc<Api>,
        guard: Arc<Guard>,
        clerk: Option<Sync>,
        stop: watch::Receiver<bool>,
    ) -> Arc<Self> {
        Arc::new(Self {
            api,
            guard,
            clerk,
            pulse: Arc::default(),
            causes: Arc::default(),
            memory: work::Memory::default(),
            results: Mutex::default(),
            pages: OnceLock::new(),
            streams: live::places(),
            turns: Semaphore::new(live::TURNS),
            stop,
        })
    }

    /// How things stand.
    async fn now(&self) -> Arc<Moment> {
        pulse::now_at(&self.pulse, &self.api).await
    }

    /// Whether nobody could tell when it was asked last: a page that only looks will hardly be told either.
    fn is_unanswered(&self) -> bool {
        let failed = self.pulse.last().is_some_and(|last| last.value.known.is_err());
        failed || self.pulse.is_unanswered()
    }

    /// Keeps what became of an action for the page that follows. A result is lost with the process; what was done is not.
    fn keep(&self, result: Markup) -> Uuid {
        let id = Uuid::now_v7();
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        if results.len() >= RESULTS {
            results.pop_front();
        }
        results.push_back((id, result));
        id
    }

    /// What became of the action that led to this page.
    fn result(&self, id: Option<&str>) -> Option<Markup> {
        let id = Uuid::try_parse(id?).ok()?;
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.iter().find(|(known, _)| *known == id).map(|(_, result)| result.clone())
    }
}

fn table() -> Vec<Route<Arc<Console>>> {
    use Access::{Look, Open, Operate};
    vec![
        Route::get(Look, "/", home::show),
        Route::get(Look, "/search", search::find),
        Route::get(Look, "/users", users::list),
        Route::get(Look, "/users/{ref}", users::show),
        Route::get(Look, "/users/{ref}/clerk", users::beside),
        Route::post(Operate, "/users/{ref}/sync", users::bring),
        Route::get(Look, "/dead", dead::causes),
        Route::post(Operate, "/dead/note", dead::keep_note),
        Route::get(Look, "/dead/letters", dead::list),
        Route::get(Look, "/dead/letters/{id}", letter::show),
        Route::post(Operate, "/dead/letters/{id}/reveal", letter::reveal),
        Route::get(Operate, "/dead/letters/{id}/edit", letter::begin_edit),
        Route::post(Operate, "/dead/letters/{id}/edit", letter::edit),
        Route::get(Operate, "/dead/replay", settle::preview_replay),
        Route::post(Operate, "/dead/replay", settle::replay),
        Route::get(Operate, "/dead/discard", settle::preview_discard),
        Route::post(Operate, "/dead/discard", settle::discard),
        Route::get(Operate, "/dead/restore", settle::preview_restore),
        Route::post(Operate, "/dead/restore", settle::restore),
        Route::get(Look, "/rejections", rejected::list),
        Route::get(Look, "/flow", flow::show),
        Route::get(Look, "/sync", sync::show),
        Route::post(Operate, "/sync/dry-run", sync::dry_run),
        Route::get(Look, "/operations", operations::list),
        Route::get(Look, "/operations/{id}", operations::show),
        Route::post(Operate, "/operations/{id}/pause", operations::pause),
        Route::post(Operate, "/operations/{id}/resume", operations::resume),
        Route::post(Operate, "/operations/{id}/stop", operations::stop),
        Route::get(Look, "/processes", processes::list),
        Route::get(Look, "/keys", keys::show),
        Route::get(Look, "/live", live::stream),
        Route::get(Open, "/sign-in", sign_in::form),
        Route::post(Open, "/sign-in", sign_in::begin),
        Route::post(Look, "/sign-out", sign_in::end),
        Route::get(Open, "/console.css", frame::style),
        Route::get(Open, "/console.js", frame::script),
    ]
}

/// The pages that may be kept live: what they ask is cheap, and asking leaves no trace.
const LIVE: [&str; 10] = [
    "/",
    "/users/{ref}",
    "/dead",
    "/dead/letters/{id}",
    "/rejections",
    "/flow",
    "/sync",
    "/operations",
    "/operations/{id}",
    "/processes",
];

/// Whether a path is that of a page that may be kept live.
fn is_live(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    LIVE.iter().any(|page| {
        let page: Vec<&str> = page.split('/').collect();
        page.len() == parts.len()
            && page
                .iter()
                .zip(&parts)
                .all(|(page, part)| page == part || (page.starts_with('{') && !part.is_empty()))
    })
}

/// Every page and action: method, path, and what it asks for.
pub(super) fn routes() -> Vec<(String, String, Access)> {
    let told = |route: Route<Arc<Console>>| (route.method.to_string(), route.path.to_owned(), route.access);
    table().into_iter().map(told).collect()
}

/// Serves the pages.
pub(super) fn router(console: Arc<Console>) -> Router {
    let framed = middleware::from_fn_with_state(Arc::clone(&console), frame::framed);
    let routes = table().into_iter().map(|route| route.with(|answer| answer.route_layer(framed.clone())));
    let router = access::router(routes.collect()).with_state(Arc::clone(&console));
    let _ = console.pages.set(router.clone());
    router
}

/// What a process without a database says in place of the pages.
pub(super) fn absent() -> Router {
    let text = "headcount, for operators\n\n\
         This process has no database. The console is at the operators' listener of a worker, or of: headcount console\n\n\
         /livez    the process runs\n\
         /readyz   what it needs can do its work\n\
         /metrics  for Prometheus\n";
    Router::new().route("/", axum::routing::get(move || async move { text }))
}

/// A page that says why a request was turned away, and leads to where another token can be given, if that helps.
pub(super) fn refused(status: StatusCode, message: &str, sign_in: Option<&str>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
    frame::with_policy((status, kind, frame::bare(status, message, sign_in).into_string()).into_response())
}

/// A page for a person whose session has ended, and whose form was not done.
pub(super) fn signed_out(sign_in: &str) -> Response {
    let page = frame::of_stranger(
        "Your session has ended",
        html! {
            p.lead { "Nothing was done. Sign in, and send the form again: the browser's back button leads to what you typed." }
            p { a.button href=(sign_in) { "Sign in" } }
        },
    );
    let kind = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
    frame::with_policy((StatusCode::UNAUTHORIZED, kind, page.into_string()).into_response())
}

/// An error, as a page.
#[derive(Debug)]
struct Refused(Problem);

impl<E: Into<Problem>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        View::of_problem(&self.0).into_response()
    }
}

/// What a page answers.
type Answer = Result<Response, Refused>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_that_leave_no_trace_are_live() {
        for path in ["/", "/dead", "/users/user_1", "/dead/letters/x", "/operations", "/operations/x"] {
            assert!(is_live(path), "{path}");
        }
        for path in [
            "/live",
            "/users",
            "/users/x/clerk",
            "/dead/letters/x/edit",
            "/dead/replay",
            "/sign-in",
            "/users/",
            "",
            "/x",
        ] {
            assert!(!is_live(path), "{path}");
        }
        let pages: Vec<&str> = table().iter().map(|route| route.path).collect();
        assert!(LIVE.iter().all(|page| pages.contains(page)));
    }
}
