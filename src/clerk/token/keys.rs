//! Owns the keys that an instance signs with: one that people gave, or those that the instance publishes. Promises that whoever
//! brings an unknown key id causes at most one request in half a minute; that keys stay while their source is away; and
//! that a key which its source has dropped is dropped here too, within minutes.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::Full;
use jsonwebtoken::{
    DecodingKey,
    jwk::{AlgorithmParameters, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{sync::Mutex, time::Instant};
use tracing::{debug, info, warn};
use url::Url;

use super::{Refused, Unknown};
use crate::{net::Client, secret::Secret};

/// How often keys are fetched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// An unknown key id has them fetched at most this often.
    pub(super) unknown: Duration,
    /// Keys that are older are fetched again, beside the request that notices.
    pub(super) stale: Duration,
}

const PACE: Pace = Pace { unknown: Duration::from_secs(30), stale: Duration::from_secs(300) };
/// How long one fetch may take.
const LIMIT: Duration = Duration::from_secs(2);
/// The longest answer that is read, in bytes, ...
const BYTES_MAX: usize = 256 * 1024;
/// ... and the most keys of it.
const KEYS_MAX: usize = 64;

/// Where keys come from.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// `CLERK_JWT_KEY`: a public key in PEM. It is the only one, whatever id a token names.
    Pem(String),
    /// Published keys: addresses that are tried in this order.
    Published(Vec<Address>),
}

/// Where an instance publishes its keys.
#[derive(Clone, Debug)]
pub struct Address {
    /// Of the document.
    pub url: String,
    /// What it is asked with, where it does not answer everybody.
    pub key: Option<Secret>,
}

/// The keys of an instance.
pub struct Keys(Source);

enum Source {
    One(Arc<DecodingKey>),
    Published(Arc<Published>),
}

struct Published {
    places: Vec<Place>,
    pace: Pace,
    known: RwLock<Known>,
    /// When they were last asked for. Whoever holds it asks.
    asked: Mutex<Option<Instant>>,
}

struct Place {
    client: Client,
    url: Url,
    /// Marked as sensitive.
    authorization: Option<HeaderValue>,
}

#[derive(Default)]
struct Known {
    keys: HashMap<String, Arc<DecodingKey>>,
    fetched: Option<Instant>,
    /// Why the last fetch failed.
    trouble: Option<String>,
}

impl Keys {
    /// Asks nothing yet.
    ///
    /// # Errors
    /// The PEM holds no RSA key, an address is no URL, or this machine's certificates cannot be read: what is wrong.
    pub fn new(source: &KeySource) -> Result<Self, String> {
        Self::with_pace(source, PACE)
    }

    pub(super) fn with_pace(source: &KeySource, pace: Pace) -> Result<Self, String> {
        let addresses = match source {
            KeySource::Pem(pem) => {
                let key = DecodingKey::from_rsa_pem(pem.as_bytes())
                    .map_err(|_| "holds no RSA public key in PEM".to_owned())?;
                return Ok(Self(Source::One(Arc::new(key))));
            }
            KeySource::Published(addresses) => addresses,
        };
        let mut places = Vec::new();
        for Address { url, key } in addresses {
            let url = Url::parse(url).map_err(|_| "is no URL".to_owned())?;
            let authorization =
                key.as_ref().map(|key| HeaderValue::from_str(&format!("Bearer {}", key.expose())));
            let mut authorization =
                authorization.transpose().map_err(|_| "cannot be asked with such a key".to_owned())?;
            if let Some(authorization) = &mut authorization {
                authorization.set_sensitive(true);
            }
            let client = if url.scheme() == "https" { Client::https() } else { Ok(Client::http()) };
            let client = client.map_err(|error| {
                format!("cannot be asked: this machine's certificates cannot be read: {error}")
            })?;
            places.push(Place { client, url, authorization });
        }
        Ok(Self(Source::Published(Arc::new(Published {
            places,
            pace,
            known: RwLock::default(),
            asked: Mutex::default(),
        }))))
    }

    /// The ids of the keys that the instance publishes now, sorted; `None` where people gave one.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub async fn published(&self) -> Option<Result<Vec<String>, String>> {
        let Source::Published(published) = &self.0 else { return None };
        Some(
            published.ask().await.map(|keys| keys.into_keys().collect::<BTreeSet<_>>().into_iter().collect()),
        )
    }

    /// The key of this id.
    ///
    /// # Errors
    /// There is none, or nobody can say: the keys are away.
    pub(super) async fn key(&self, id: Option<&str>) -> Result<Arc<DecodingKey>, Unknown> {
        match &self.0 {
            Source::One(key) => Ok(Arc::clone(key)),
            Source::Published(published) => {
                let id = id.ok_or(Refused::Key)?;
                published.key(id).await
            }
        }
    }
}

impl Published {
    async fn key(self: &Arc<Self>, id: &str) -> Result<Arc<DecodingKey>, Unknown> {
        let (found, is_stale) = self.look(id);
        if let Some(key) = found {
            if is_stale {
                let published = Arc::clone(self);
                tokio::spawn(async move { published.fetch(published.pace.stale).await });
            }
            return Ok(key);
        }
        self.fetch(self.pace.unknown).await;
        match self.look(id).0 {
            Some(key) => Ok(key),
            None => Err(match self.known().trouble.clone() {
                Some(why) => Unknown::KeysAway(why),
                None => Refused::Key.into(),
            }),
        }
    }

    fn look(&self, id: &str) -> (Option<Arc<DecodingKey>>, bool) {
        let known = self.known();
        (known.keys.get(id).cloned(), known.fetched.is_none_or(|at| at.elapsed() > self.pace.stale))
    }

    fn known(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches the keys, unless they were asked for within this time. Whoever comes meanwhile waits for the same answer.
    async fn fetch(&self, every: Duration) {
        let mut asked = self.asked.lock().await;
        if asked.is_some_and(|at| at.elapsed() < every) {
            return;
        }
        *asked = Some(Instant::now());
        let answer = self.ask().await;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(keys) => {
                if known.trouble.is_some() {
                    info!("the keys of session tokens can be read again");
                }
                *known = Known { keys, fetched: Some(Instant::now()), trouble: None };
            }
            Err(why) => {
                if known.trouble.is_none() {
                    warn!("the keys of session tokens cannot be read: {why}; known keys stay valid");
                }
                known.trouble = Some(why);
            }
        }
    }

    /// Asks one place after the other.
    async fn ask(&self) -> Result<HashMap<String, Arc<DecodingKey>>, String> {
        let mut trouble = None;
        for place in &self.places {
            match place.ask().await {
                Ok(keys) => return Ok(keys),
                Err(why) => trouble = Some(format!("{} {why}", host(&place.url))),
            }
        }
        Err(trouble.unwrap_or_else(|| "there is no address to ask".to_owned()))
    }
}

impl Place {
    async fn ask(&self) -> Result<HashMap<String, Arc<DecodingKey>>, String> {
        let mut request = Request::get(self.url.as_str())
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("headcount/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Full::<Bytes>::default()).map_err(|_| "cannot be asked".to_owned())?;
        let answer = self.client.exchange(request, LIMIT, BYTES_MAX).await;
        let answer = answer.map_err(|why| format!("gives no answer: {}", why.as_str()))?;
        if answer.status != http::StatusCode::OK {
            return Err(format!("answered {}", answer.status.as_u16()));
        }
        let body = answer.body.map_err(|_| "gives no whole answer".to_owned())?;
        let keys = read(&body).ok_or("does not answer with keys")?;
        debug!("read {} keys of session tokens from {}", keys.len(), host(&self.url));
        Ok(keys)
    }
}

fn host(url: &Url) -> &str {
    url.host_str().unwrap_or("the address of the keys")
}

/// The usable keys of a key set (RFC 7517), by id; `None` where it is none, or has none of use. Keys of other kinds are left out.
pub(super) fn read(body: &[u8]) -> Option<HashMap<String, Arc<DecodingKey>>> {
    #[derive(Deserialize)]
    struct Set<'a> {
        #[serde(borrow)]
        keys: Vec<&'a RawValue>,
    }
    let set: Set<'_> = serde_json::from_slice(body).ok()?;
    let keys: HashMap<_, _> = set.keys.into_iter().take(KEYS_MAX).filter_map(usable).collect();
    (!keys.is_empty()).then_some(keys)
}

fn usable(raw: &RawValue) -> Option<(String, Arc<DecodingKey>)> {
    let jwk: Jwk = serde_json::from_str(raw.get()).ok()?;
    let AlgorithmParameters::RSA(_) = jwk.algorithm else { return None };
    let signs = jwk.common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature);
    let rs256 = jwk.common.key_algorithm.is_none_or(|algorithm| algorithm == KeyAlgorithm::RS256);
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    (signs && rs256).then_some((jwk.common.key_id?, Arc::new(key)))
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}
