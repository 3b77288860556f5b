//! Owns the page of the demo at the application's listener: an application that signs made-up people up, and asks headcount about
//! them. Promises that its tokens are of a key that is made anew at each start, and that only people who signed up here get one.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use http::{HeaderName, StatusCode, header};
use serde::{Deserialize, Serialize};

use super::people::People;
use crate::{
    clerk::{
        made_up::{Person, message_id, user_id, world::Happened},
        stand_in::tokens::Signer,
        token::{KeySource, Terms},
    },
    cli::post::Poster,
    config::Tokens,
    time::now,
};

/// Whose tokens the demo signs. No such host can exist.
const ISSUER: &str = "https://clerk.demo.invalid";
/// The plan that is sold.
const PLAN: &str = "premium_monthly";
/// So many people can sign up.
const PEOPLE_MAX: usize = 10_000;
/// The longest first name, in characters.
const NAME_MAX: usize = 60;

/// What the page's own requests need.
#[derive(Clone)]
pub(super) struct Desk(Arc<Inner>);

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

struct Inner {
    signer: Signer,
    party: String,
    people: People,
    signed_up: Mutex<HashSet<String>>,
    /// Posts webhooks as Clerk would, once the ingress listens.
    poster: OnceLock<Poster>,
}

#[derive(Deserialize)]
struct SignUp {
    name: String,
}

#[derive(Deserialize)]
struct Renew {
    clerk_id: String,
    session_id: String,
}

#[derive(Deserialize)]
struct Deal {
    clerk_id: String,
    verb: Verb,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verb {
    Buy,
    End,
}

#[derive(Serialize)]
struct SignedIn {
    clerk_id: String,
    session_id: String,
    token: String,
}

impl Desk {
    /// With a new key, for pages of this origin.
    pub(super) fn new(people: People, party: String) -> Result<Self, String> {
        Ok(Self(Arc::new(Inner {
            signer: Signer::new("demo")?,
            party,
            people,
            signed_up: Mutex::default(),
            poster: OnceLock::new(),
        })))
    }

    /// Whose tokens count: this desk's, for any page, because the demo cannot know by which name it is opened.
    pub(super) fn tokens(&self) -> Tokens {
        Tokens {
            terms: Terms { issuer: ISSUER.to_owned(), parties: Vec::new(), allow_missing_party: false },
            keys: KeySource::Pem(self.0.signer.pem()),
            cookie_suffix: None,
        }
    }

    /// From now on webhooks can be posted.
    pub(super) fn post_with(&self, poster: Poster) {
        let _ = self.0.poster.set(poster);
    }

    /// The page, and what it asks the demo itself.
    pub(super) fn pages(&self) -> Router {
        Router::new()
            .route("/", get(|| file("text/html; charset=utf-8", include_str!("page/index.html"))))
            .route("/demo.css", get(|| file("text/css; charset=utf-8", include_str!("page/demo.css"))))
            .route("/demo.js", get(|| file("text/javascript; charset=utf-8", include_str!("page/demo.js"))))
            .route("/demo/sign-up", post(sign_up))
            .route("/demo/token", post(renew))
            .route("/demo/plan", post(plan))
            .with_state(self.clone())
    }

    fn signed_in(&self, clerk_id: String, session_id: String) -> SignedIn {
        let Inner { signer, party, .. } = &*self.0;
        let token = signer.session(ISSUER, &clerk_id, &session_id, party, now());
        SignedIn { clerk_id, session_id, token }
    }

    fn knows(&self, clerk_id: &str) -> bool {
        self.0.signed_up.lock().unwrap_or_else(PoisonError::into_inner).contains(clerk_id)
    }
}

async fn file(kind: &'static str, text: &'static str) -> Response {
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'";
    let headers: [(HeaderName, &str); 2] =
        [(header::CONTENT_TYPE, kind), (header::CONTENT_SECURITY_POLICY, POLICY)];
    (headers, text).into_response()
}

// Axum takes JSON only with its content type, which no other site's form can send.
async fn sign_up(State(desk): State<Desk>, Json(asked): Json<SignUp>) -> Response {
    let clerk_id = user_id(&mut rand::rng());
    let mut person = Person::of(&*clerk_id, now());
    let name: String = asked.name.trim().chars().filter(|c| !c.is_control()).take(NAME_MAX).collect();
    if !name.is_empty() {
        person.first_name = Some(name);
    }
    {
        let mut signed_up = desk.0.signed_up.lock().unwrap_or_else(PoisonError::into_inner);
        if signed_up.len() >= PEOPLE_MAX {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        signed_up.insert(clerk_id.clone());
    }
    desk.0.people.happen(Happened::Lives(Box::new(person)));
    let session_id = clerk_id.replacen("user_", "sess_", 1);
    Json(desk.signed_in(clerk_id, session_id)).into_response()
}

async fn renew(State(desk): State<Desk>, Json(asked): Json<Renew>) -> Response {
    match desk.knows(&asked.clerk_id) {
        true => Json(desk.signed_in(asked.clerk_id, asked.session_id)).into_response(),
        false => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Buys a plan or ends it, as Clerk would tell it: at once in its API, and by a webhook.
async fn plan(State(desk): State<Desk>, Json(asked): Json<Deal>) -> Response {
    let Inner { people, poster, .. } = &*desk.0;
    let known = people.known().person(&asked.clerk_id).filter(|_| desk.knows(&asked.clerk_id));
    let (Some(mut person), Some(poster)) = (known, poster.get()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let (event_type, status) = match asked.verb {
        Verb::Buy => ("subscriptionItem.active", "active"),
        Verb::End => ("subscriptionItem.ended", "ended"),
    };
    person.plan = Some(PLAN.to_owned());
    let at = now();
    people.known().set_items(&person.id, vec![person.item(status, at)]);
    let id = message_id(&mut rand::rng());
    match poster.post(&id, Bytes::from(person.event(event_type, at))).await {
        Ok(status) if status.is_success() => StatusCode::NO_CONTENT.into_response(),
        _ => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}
