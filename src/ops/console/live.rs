//! Owns what is live: a stream for each open page that sends the page's own part and the verdict again when they have changed.
//! Promises that a page's part is made by the page itself, as its caller may see it, and that the streams are bounded in number
//! and end with the process.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    response::IntoResponse,
};
use futures_util::stream;
use http::{Method, StatusCode, header};
use serde_json::json;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tower::ServiceExt as _;

use super::{
    Answer, Console,
    form::Fields,
    frame::{Bare, verdict},
    is_live,
};
use crate::{
    net::Problem,
    ops::access::{Caller, next_path},
    stop::until,
    time::{now, rfc3339},
};

/// Streams of one process.
pub(super) const STREAMS: usize = 100;
/// Between two looks.
const TICK: Duration = Duration::from_secs(2);
/// The largest page that is sent again, in bytes.
const PAGE_MAX: usize = 4 * 1024 * 1024;

struct Open {
    console: Arc<Console>,
    caller: Option<Caller>,
    path: String,
    /// What was sent last: the page's part, the verdict, and when that was.
    sent: [Option<String>; 3],
    begun: bool,
    _place: OwnedSemaphorePermit,
}

/// `GET /live?path=…`
pub(super) async fn stream(State(console): State<Arc<Console>>, fields: Fields, request: Request) -> Answer {
    let path = next_path(fields.get("path").unwrap_or("/")).to_owned();
    if !is_live(path.split('?').next().unwrap_or_default()) {
        return Err(Problem::bad_request("this page is not kept live").into());
    }
    let Ok(place) = Arc::clone(&console.streams).try_acquire_owned() else {
        return Err(Problem::unavailable("too many pages are live in this process").into());
    };
    let open = Open {
        caller: request.extensions().get::<Caller>().cloned(),
        path,
        console,
        sent: [None, None, None],
        begun: false,
        _place: place,
    };
    let body = Body::from_stream(stream::unfold(open, |mut open| async {
        let told = open.told().await?;
        Some((Ok::<_, Infallible>(told), open))
    }));
    let headers = [(header::CONTENT_TYPE.as_str(), "text/event-stream"), ("x-accel-buffering", "no")];
    Ok((StatusCode::OK, headers, body).into_response())
}

impl Open {
    /// What is to be sent next; `None` once the process stops, or the session has ended.
    async fn told(&mut self) -> Option<Bytes> {
        if !std::mem::replace(&mut self.begun, true) {
            return Some(Bytes::from_static(b"retry: 3000\n\n"));
        }
        loop {
            let stop = self.console.stop.clone();
            tokio::select! {
                () = sleep(TICK) => {}
                () = until(&stop, |stop| *stop) => return None,
            }
            if self.caller.as_ref().and_then(|caller| caller.ends).is_some_and(|ends| ends <= now()) {
                return None;
            }
            let moment = self.console.now().await;
            let stands = json!({ "at": rfc3339(moment.at), "open": moment.open_letters() });
            let parts = [
                ("main", self.main().await.map(|main| json!(main).to_string())),
                ("verdict", Some(json!(verdict(&moment.verdict).into_string()).to_string())),
                ("moment", Some(stands.to_string())),
            ];
            let mut events = String::new();
            for ((name, now), sent) in parts.into_iter().zip(&mut self.sent) {
                let Some(now) = now else { continue };
                if sent.as_ref().is_none_or(|sent| without_ages(sent) != without_ages(&now)) {
                    events.push_str(&format!("event: {name}\ndata: {now}\n\n"));
                    *sent = Some(now);
                }
            }
            if !events.is_empty() {
                return Some(Bytes::from(events));
            }
        }
    }

    /// The page's own part, as the caller would get it now; `None` where it does not answer.
    async fn main(&self) -> Option<String> {
        // However many tabs are open, they leave the database's connections to the worker.
        let _turn = self.console.turns.acquire().await.ok()?;
        let mut request = Request::builder().method(Method::GET).uri(&self.path).body(Body::empty()).ok()?;
        request.extensions_mut().insert(Bare);
        if let Some(caller) = &self.caller {
            request.extensions_mut().insert(caller.clone());
        }
        let response = self.console.pages.get()?.clone().oneshot(request).await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        let bytes = to_bytes(response.into_body(), PAGE_MAX).await.ok()?;
        String::from_utf8(bytes.into()).ok()
    }
}

/// A page without how long ago things were: the browser keeps that up to date by itself.
fn without_ages(page: &str) -> String {
    // As it stands in a page, or in the JSON that carries it.
    let mut parts = page.split("<time ");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (tag, rest) = part.split_once("</time>").unwrap_or((part, ""));
        out.push_str(tag.split_once('>').map_or(tag, |(tag, _)| tag));
        out.push_str(rest);
    }
    out
}

/// Live pages that are made at a time.
pub(super) const TURNS: usize = 2;

/// The places of streams.
pub(super) fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(STREAMS))
}

#[cfg(test)]
mod tests {
    use maud::html;

    use super::{super::parts::when, *};

    #[test]
    fn a_page_on_which_only_time_has_passed_is_the_same() {
        let page = |text: &str| format!("<p>a <time datetime=\"x\">{text}</time> b</p>");
        assert_eq!(without_ages(&page("1s ago")), without_ages(&page("2s ago")));
        assert_ne!(without_ages(&page("x")), without_ages(&page("x").replace('b', "c")));
        assert_ne!(
            without_ages(&html! { (when(0)) }.into_string()),
            without_ages(&html! { (when(1)) }.into_string())
        );
    }
}
