//! Owns who may do what at the operators' listener: two tokens, the session of a browser, and the check of each request
//! against the access that its route asks for.
//!
//! Promises that a stranger's browser cannot be made to read or to act, that with a token nothing answers without it but
//! [`Access::Open`] routes, and that each route names its access in one table. A session is a signed cookie: it ends by itself,
//! and each process with the same tokens takes it that listens at the same port.

use std::{net::SocketAddr, sync::Arc};

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac};
use axum::{
    Router,
    extract::{OriginalUri, Request, State},
    handler::Handler,
    middleware::{self, Next},
    response::{IntoResponse, Redirect, Response},
    routing::{MethodRouter, delete, get, post, put},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, uri::Authority};
use serde::{Deserialize, Serialize};
use tracing::warn;
use url::form_urlencoded;

use super::api::problem::Problem;
use crate::{
    digest::sha256,
    net::{Visitor, problem},
    secret::Secret,
    store::letters::Actor,
    telemetry::tally::Tally,
    text::clean,
    time::{Millis, now},
};

/// How long a session lasts, in milliseconds.
const SESSION: Millis = 12 * 60 * 60 * 1000;
/// The longest name of a person, in bytes.
const NAME_MAX: usize = 60;
/// The longest note, in bytes.
const NOTE_MAX: usize = 1024;

/// What a request may do, from the least to the most; also what a route asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Anybody.
    Open,
    /// See everything but the bodies of letters.
    Look,
    /// Change things, and see bodies.
    Operate,
}

/// The tokens of the operators' listener.
#[derive(Clone, Debug, Default)]
pub struct OpsTokens {
    /// `HEADCOUNT_OPS_TOKEN`
    pub operate: Option<Secret>,
    /// `HEADCOUNT_OPS_LOOK_TOKEN`
    pub look: Option<Secret>,
}

/// Who sent a request. In the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) access: Access,
    pub(super) by: By,
    /// When the session ends.
    pub(super) ends: Option<Millis>,
}

/// What a request was let in by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// No token is set.
    Nothing,
    /// A token in the request itself, which no browser sends by itself.
    Token,
    /// A browser's cookie, with the name that the person gave.
    Session(Option<String>),
}

impl Caller {
    /// The name of who acts through `way`.
    pub(super) fn name(&self, way: &str) -> String {
        match &self.by {
            By::Nothing => way.to_owned(),
            By::Token => "token".to_owned(),
            By::Session(name) => {
                name.as_ref().map_or_else(|| way.to_owned(), |name| format!("{name} ({way})"))
            }
        }
    }

    /// The actor who acts through `way`, and why.
    pub(super) fn actor(&self, way: &str, note: Option<&str>) -> Actor {
        let note = note.map(|note| clean(note.trim(), NOTE_MAX)).filter(|note| !note.is_empty());
        Actor { name: self.name(way), note }
    }
}

/// A route: its method, its path, what it asks for, and its handler.
pub(super) struct Route<S> {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) access: Access,
    answer: MethodRouter<S>,
}

impl<S: Clone + Send + Sync + 'static> Route<S> {
    /// Shows something.
    pub(super) fn get<T: 'static>(access: Access, path: &'static str, handler: impl Handler<T, S>) -> Self {
        Self { method: Method::GET, path, access, answer: get(handler) }
    }

    /// Does something.
    pub(super) fn post<T: 'static>(access: Access, path: &'static str, handler: impl Handler<T, S>) -> Self {
        Self { method: Method::POST, path, access, answer: post(handler) }
    }

    /// Does something.
    pub(super) fn put<T: 'static>(access: Access, path: &'static str, handler: impl Handler<T, S>) -> Self {
        Self { method: Method::PUT, path, access, answer: put(handler) }
    }

    /// Does something.
    pub(super) fn delete<T: 'static>(
        access: Access,
        path: &'static str,
        handler: impl Handler<T, S>,
    ) -> Self {
        Self { method: Method::DELETE, path, access, answer: delete(handler) }
    }

    /// The same, with its answer changed.
    pub(super) fn with(self, change: impl FnOnce(MethodRouter<S>) -> MethodRouter<S>) -> Self {
        Self { answer: change(self.answer), ..self }
    }
}

/// Serves routes, each to callers with its access only.
pub(super) fn router<S: Clone + Send + Sync + 'static>(routes: Vec<Route<S>>) -> Router<S> {
    routes.into_iter().fold(Router::new(), |router, route| {
        let needs = middleware::from_fn_with_state((route.access, route.method != Method::GET), checked);
        router.route(route.path, route.answer.route_layer(needs))
    })
}

/// The code of what the look token does not let somebody do.
const LOOK_ONLY: &str = "look_only";

/// Lets a request through to its route.
async fn checked(State((needed, acts)): State<(Access, bool)>, request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>();
    let access = caller.map_or(Access::Open, |caller| caller.access);
    if access < needed {
        return refusal(
            &request,
            StatusCode::FORBIDDEN,
            LOOK_ONLY,
            "HEADCOUNT_OPS_LOOK_TOKEN lets you look; this takes HEADCOUNT_OPS_TOKEN",
        );
    }
    let by_token = caller.is_some_and(|caller| caller.by == By::Token);
    if acts && !by_token && !is_ours(request.headers()) {
        return refusal(
            &request,
            StatusCode::FORBIDDEN,
            "foreign_origin",
            "without a token in the request only pages of this listener may act; a proxy before it has to pass the Host header on",
        );
    }
    next.run(request).await
}

/// Whether no other site's page sent the request. No page can forge `Sec-Fetch-Site`. Where a browser sends none, its `Origin` has
/// to be the host that is asked. A request without either comes from no page.
fn is_ours(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("unreadable"));
    if let Some(site) = text("sec-fetch-site") {
        return matches!(site, "same-origin" | "none");
    }
    let host = text("host").unwrap_or_default();
    text("origin").is_none_or(|origin| {
        let of_http = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        headers.get_all("origin").iter().count() == 1
            && of_http.is_some_and(|authority| !host.is_empty() && authority.eq_ignore_ascii_case(host))
    })
}

/// Whether a person looks at the answer, in a browser.
pub(super) fn is_browser(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accepted.contains("text/html")
}

/// Where a person signs in, and goes on to the page that was asked for.
fn sign_in_and_on(request: &Request) -> String {
    match *request.method() == Method::GET {
        true => sign_in(request.uri().path_and_query().map_or("/", |wanted| wanted.as_str())),
        // What a form asked for is not done later by itself.
        false => sign_in("/"),
    }
}

/// An error in the format of the path's other errors.
fn refusal(request: &Request, status: StatusCode, code: &'static str, message: &str) -> Response {
    // Inside of a nested router the path is what is left of it.
    let asked =
        request.extensions().get::<OriginalUri>().map_or_else(|| request.uri(), |original| &original.0);
    match asked.path().starts_with("/api/") {
        true => Problem::new(status, code, message).into_response(),
        false if is_browser(request.headers()) => {
            let again = (code == LOOK_ONLY).then(|| sign_in_and_on(request));
            super::console::refused(status, message, again.as_deref())
        }
        false => problem(status, code, message),
    }
}

/// What a session says, and is signed.
#[derive(Debug, Serialize, Deserialize)]
struct Session {
    access: Access,
    name: Option<String>,
    ends: Millis,
}

struct Token {
    digest: [u8; 32],
    access: Access,
    key: hmac::Key,
}

fn say_refused(counts: &str) {
    warn!("more wrong tokens were given to the operators' listener in the last minute: {counts}");
}

/// Decides which requests are let in, and as whom.
pub(super) struct Guard {
    /// SHA-256 of each token, with what it gives, and what signs its sessions. Each token has a key of its own, so that whoever
    /// looks holds nothing that is made of the operators' token.
    tokens: Vec<Token>,
    /// The name of the cookie: browsers share cookies between the ports of a host.
    cookie: String,
    /// Where there is no token: the names under which a browser may ask for this listener.
    hosts: Vec<String>,
    /// Paths that the tables of routes open to anybody.
    open: Vec<String>,
    /// There is a page to sign in.
    has_pages: bool,
    /// Wrong tokens.
    refused: Tally,
}

impl Guard {
    pub(super) fn new(tokens: &OpsTokens, address: Option<SocketAddr>, has_pages: bool) -> Self {
        let mut hosts = vec!["localhost".to_owned(), "127.0.0.1".into(), "[::1]".into()];
        hosts.extend(address.map(|address| match address {
            SocketAddr::V4(address) => address.ip().to_string(),
            SocketAddr::V6(address) => format!("[{}]", address.ip()),
        }));
        let kinds = [(&tokens.operate, Access::Operate), (&tokens.look, Access::Look)];
        let tokens = kinds.into_iter().filter_map(|(token, access)| {
            let token = token.as_ref()?.expose().as_bytes();
            let key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, token), b"headcount session");
            let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_ref());
            Some(Token { digest: sha256(token), access, key })
        });
        let tokens = tokens.collect();
        let open = super::routes()
            .into_iter()
            .filter(|(.., access)| *access == Access::Open)
            .map(|(_, path, _)| path);
        let port = address.map_or(0, |address| address.port());
        Self {
            tokens,
            cookie: format!("headcount-{port}"),
            hosts,
            open: open.collect(),
            has_pages,
            refused: Tally::new(say_refused),
        }
    }

    /// Whether callers have to prove themselves.
    pub(super) fn has_tokens(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// What a token gives. Compares digests, in constant time. Says so where it is none of ours.
    pub(super) fn of_token(&self, given: &[u8]) -> Option<Access> {
        let access = self.access_of(given);
        if access.is_none() && self.refused.is_first("wrong token") {
            warn!("somebody gave a wrong token to the operators' listener");
        }
        access
    }

    fn access_of(&self, given: &[u8]) -> Option<Access> {
        let digest = sha256(given);
        let such = |token: &&Token| verify_slices_are_equal(&token.digest, &digest).is_ok();
        self.tokens.iter().find(such).map(|token| token.access)
    }

    /// Who sent a request; `None` for a stranger.
    fn caller(&self, headers: &HeaderMap, uri: &Uri) -> Option<Caller> {
        if !self.has_tokens() {
            return self.is_called(headers, uri).then_some(Caller {
                access: Access::Operate,
                by: By::Nothing,
                ends: None,
            });
        }
        let bearer =
            headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().split_at_checked(7));
        if let Some((scheme, given)) = bearer
            && scheme.eq_ignore_ascii_case(b"bearer ")
        {
            return self.of_token(given.trim_ascii()).map(|access| Caller {
                access,
                by: By::Token,
                ends: None,
            });
        }
        let session = self.session(headers)?;
        let ends = Some(session.ends);
        Some(Caller { access: session.access, by: By::Session(session.name), ends })
    }

    fn session(&self, headers: &HeaderMap) -> Option<Session> {
        let lines = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let cookies = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        cookies.filter(|(name, _)| *name == self.cookie).find_map(|(_, value)| self.read(value, now()))
    }

    /// Reads a session; `None` where it is not signed by these tokens, or over.
    fn read(&self, value: &str, now: Millis) -> Option<Session> {
        let (said, signature) = value.split_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let session: Session = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(said).ok()?).ok()?;
        let token = self.tokens.iter().find(|token| token.access == session.access)?;
        let is_signed = hmac::verify(&token.key, said.as_bytes(), &signature).is_ok();
        (is_signed && session.ends > now).then_some(session)
    }

    fn sign(&self, session: &Session) -> String {
        let said = URL_SAFE_NO_PAD.encode(serde_json::to_vec(session).unwrap_or_default());
        let token = self.tokens.iter().find(|token| token.access == session.access);
        // Nobody signs in where there are no tokens.
        let signature = token.map(|token| hmac::sign(&token.key, said.as_bytes()));
        let signature = signature.map(|tag| URL_SAFE_NO_PAD.encode(tag)).unwrap_or_default();
        format!("{said}.{signature}")
    }

    /// The cookie of a new session, for a person of this name.
    pub(super) fn begin(&self, access: Access, name: &str, headers: &HeaderMap) -> HeaderValue {
        let name = clean(name.trim(), NAME_MAX);
        let session =
            Session { access, name: Some(name).filter(|name| !name.is_empty()), ends: now() + SESSION };
        self.set(&self.sign(&session), SESSION / 1000, headers)
    }

    /// The cookie that ends a session.
    pub(super) fn end(&self, headers: &HeaderMap) -> HeaderValue {
        self.set("", 0, headers)
    }

    fn set(&self, value: &str, seconds: Millis, headers: &HeaderMap) -> HeaderValue {
        // A proxy that ends TLS says so. A browser that is lied to keeps its cookie to itself, no more.
        let secure = headers.get("x-forwarded-proto").is_some_and(|value| value == "https");
        let secure = if secure { "; Secure" } else { "" };
        let cookie =
            format!("{}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}", self.cookie);
        HeaderValue::try_from(cookie).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// Whether the request was meant for this listener. A foreign page whose name was rebound to the loopback address sends
    /// its own name: without this check it could read what needs no token. A client that sends no name is no browser.
    fn is_called(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        let ours = |host: &str| self.hosts.iter().any(|ours| ours.eq_ignore_ascii_case(host));
        uri.host().is_none_or(ours)
            && headers.get_all(header::HOST).iter().all(|host| {
                host.to_str()
                    .ok()
                    .and_then(|host| host.parse::<Authority>().ok())
                    .is_some_and(|authority| ours(authority.host()))
            })
    }
}

/// Finds out who sent a request, and turns strangers away from everything but what is open.
pub(super) async fn guarded(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    let caller = guard.caller(request.headers(), request.uri());
    // A request without a token has no claim on its connection, even where no token is set.
    if caller.as_ref().is_some_and(|caller| caller.by != By::Nothing)
        && let Some(visitor) = request.extensions().get::<Visitor>()
    {
        visitor.verified();
    }
    let Some(caller) = caller else {
        if !guard.has_tokens() {
            return refusal(
                &request,
                StatusCode::MISDIRECTED_REQUEST,
                "misdirected",
                "without HEADCOUNT_OPS_TOKEN this listener answers to localhost and its own address only",
            );
        }
        return match guard.open.iter().any(|open| open == request.uri().path()) {
            true => next.run(request).await,
            false => guard.unknown(&request),
        };
    };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

impl Guard {
    /// The answer to a stranger: a person is led to where to sign in.
    fn unknown(&self, request: &Request) -> Response {
        let is_person =
            self.has_pages && is_browser(request.headers()) && !request.uri().path().starts_with("/api/");
        if is_person {
            let sign_in = sign_in_and_on(request);
            return match *request.method() == Method::GET {
                true => Redirect::to(&sign_in).into_response(),
                false => super::console::signed_out(&sign_in),
            };
        }
        let message =
            "send HEADCOUNT_OPS_TOKEN or HEADCOUNT_OPS_LOOK_TOKEN as  Authorization: Bearer <token>";
        let mut response = refusal(request, StatusCode::UNAUTHORIZED, "unauthorized", message);
        let scheme = HeaderValue::from_static("Bearer realm=\"headcount\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        response
    }
}

fn sign_in(next: &str) -> String {
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("next", next).finish();
    format!("/sign-in?{query}")
}

/// Where a person who signed in goes: a path of this listener, and nowhere else.
pub(super) fn next_path(wanted: &str) -> &str {
    let bytes = wanted.as_bytes();
    let is_path = bytes.first() == Some(&b'/') && !matches!(bytes.get(1), Some(b'/' | b'\\'));
    if is_path && wanted.bytes().all(|b| (b'!'..=b'~').contains(&b)) { wanted } else { "/" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(tokens: &[(&str, Access)], address: Option<&str>) -> Guard {
        let of = |wanted: Access| {
            tokens.iter().find(|(_, access)| *access == wanted).map(|(token, _)| Secret::new(*token))
        };
        let tokens = OpsTokens { operate: of(Access::Operate), look: of(Access::Look) };
        Guard::new(&tokens, address.map(|address| address.parse().unwrap()), true)
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_our_own_names_are_answered() {
        let guard = guard(&[], Some("127.0.0.2:8081"));
        let called = |host: &str| guard.is_called(&headers(&[("host", host)]), &Uri::from_static("/"));
        for host in ["localhost", "LOCALHOST:8081", "127.0.0.1:1", "[::1]:8081", "[::1]", "127.0.0.2"] {
            assert!(called(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:8081", "127.0.0.3", "::1", "", "a@localhost b"] {
            assert!(!called(host), "{host}");
        }
        assert!(guard.is_called(&HeaderMap::new(), &Uri::from_static("/")));
        assert!(!guard.is_called(&HeaderMap::new(), &Uri::from_static("http://evil.example/")));
    }

    #[tokio::test]
    async fn a_token_is_compared_whole_and_gives_its_access() {
        let guard = guard(&[("hunter2-operate", Access::Operate), ("hunter2-look", Access::Look)], None);
        let of = |value: &str| {
            let caller = guard.caller(&headers(&[("authorization", value)]), &Uri::from_static("/"));
            caller.map(|caller| caller.access)
        };
        assert_eq!(of("Bearer hunter2-operate"), Some(Access::Operate));
        assert_eq!(of("bearer  hunter2-look"), Some(Access::Look));
        for wrong in ["Bearer hunter2", "Bearer hunter2-look2", "Bearer ", "Bearer", "Basic hunter2-look", ""]
        {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        assert_eq!(guard.caller(&HeaderMap::new(), &Uri::from_static("/")), None);
    }

    #[test]
    fn a_session_holds_for_its_tokens_and_its_time_only() {
        let both = [("hunter2-operate", Access::Operate), ("hunter2-look", Access::Look)];
        let ours = guard(&both, Some("127.0.0.1:8081"));
        let cookie = ours.begin(Access::Look, " Ada\u{7} ", &headers(&[("x-forwarded-proto", "https")]));
        let cookie = cookie.to_str().unwrap();
        for part in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200", "Secure"] {
            assert!(cookie.contains(part), "{cookie}");
        }
        assert!(!ours.begin(Access::Look, "", &HeaderMap::new()).to_str().unwrap().contains("Secure"));
        let pair = cookie.split(';').next().unwrap();
        let caller = |guard: &Guard, pair: &str| {
            guard.caller(&headers(&[("cookie", &format!("other=1; {pair}"))]), &Uri::from_static("/"))
        };
        let ada = caller(&ours, pair).unwrap();
        assert_eq!((ada.access, ada.name("console").as_str()), (Access::Look, "Ada\u{fffd} (console)"));
        assert!(ada.ends.is_some_and(|ends| ends > now() + SESSION - 60_000));

        let value = pair.split_once('=').unwrap().1;
        assert!(ours.read(value, now() + SESSION + 1).is_none());
        let (said, signature) = value.split_once('.').unwrap();
        let operate = Session { access: Access::Operate, name: None, ends: Millis::MAX };
        let forged = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&operate).unwrap());
        for bad in [
            format!("{forged}.{signature}"),
            format!("{said}."),
            said.to_owned(),
            format!("{said}.{}", "A".repeat(43)),
            String::new(),
        ] {
            assert_eq!(caller(&ours, &format!("headcount-8081={bad}")), None, "{bad}");
        }
        // A session outlives an upgrade: it is signed as it always was.
        let key = hmac_sha256::HMAC::mac(b"headcount session", b"hunter2-look");
        let signed = URL_SAFE_NO_PAD.encode(hmac_sha256::HMAC::mac(said, key));
        assert_eq!(signature, signed);
        let others = [("hunter2-operate", Access::Operate), ("hunter3-look", Access::Look)];
        assert_eq!(caller(&guard(&others, Some("127.0.0.1:8081")), pair), None);
        // Who looks holds nothing that is made of the operators' token.
        let renewed = [("hunter3-operate", Access::Operate), ("hunter2-look", Access::Look)];
        assert_eq!(
            caller(&guard(&renewed, Some("127.0.0.1:8081")), pair).map(|ada| ada.access),
            Some(Access::Look)
        );
    }

    #[test]
    fn only_our_own_pages_and_no_pages_at_all_may_act() {
        let host = ("host", "localhost:8081");
        for good in [
            &[host][..],
            &[],
            &[host, ("origin", "http://localhost:8081")],
            &[host, ("origin", "http://LOCALHOST:8081"), ("sec-fetch-site", "same-origin")],
            &[host, ("sec-fetch-site", "none")],
            // A proxy that asks by another name.
            &[host, ("origin", "https://headcount.example.com"), ("sec-fetch-site", "same-origin")],
        ] {
            assert!(is_ours(&headers(good)), "{good:?}");
        }
        for bad in [
            &[host, ("origin", "http://evil.example")][..],
            &[host, ("origin", "http://localhost:3000")],
            &[host, ("origin", "http://localhost")],
            &[host, ("origin", "null")],
            &[host, ("origin", "")],
            &[("origin", "http://")],
            &[host, ("origin", "file://localhost:8081")],
            &[host, ("origin", "http://localhost:8081"), ("origin", "http://evil.example")],
            &[host, ("sec-fetch-site", "cross-site")],
            &[host, ("sec-fetch-site", "same-site")],
        ] {
            assert!(!is_ours(&headers(bad)), "{bad:?}");
        }
    }

    #[test]
    fn who_signed_in_stays_at_this_listener() {
        for path in ["/", "/dead?reason=rejected", "/users/user_1"] {
            assert_eq!(next_path(path), path);
        }
        for other in ["", "//evil.example", "/\\evil.example", "https://evil.example", "/a\r\nb", "x"] {
            assert_eq!(next_path(other), "/", "{other:?}");
        }
    }
}
