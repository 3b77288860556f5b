//! Tokens to accept and to refuse, and keys that come, go and are away.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use axum::{Router, routing::get};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::clerk::stand_in::tokens::Signer;

const VECTORS: &str = include_str!("signed-tokens.json");
const JWKS: &str = include_str!("jwks.json");
const PEM: &str = include_str!("jwt-key.pem");
const ISSUER: &str = "https://clerk.example.com";
const APP: &str = "https://app.example.com";
const SOON: std::time::Duration = std::time::Duration::from_millis(50);
const NOW: Millis = 1_795_600_805_000;

fn terms() -> Terms {
    Terms { issuer: ISSUER.into(), parties: vec![APP.into()], allow_missing_party: false }
}

fn with_pem(pem: &str) -> Verifier {
    Verifier::new(terms(), Keys::new(&KeySource::Pem(pem.into())).unwrap())
}

/// A place where an instance publishes its keys, which may be away.
struct Place {
    url: String,
    asked: Arc<AtomicUsize>,
    says: Arc<std::sync::Mutex<Option<String>>>,
}

impl Place {
    async fn open(says: &str) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let says = Arc::new(std::sync::Mutex::new(Some(says.to_owned())));
        let (counted, said) = (Arc::clone(&asked), Arc::clone(&says));
        let answer = move || {
            counted.fetch_add(1, SeqCst);
            let said = said.lock().unwrap().clone();
            async move { said.ok_or(http::StatusCode::BAD_GATEWAY) }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/.well-known/jwks.json", listener.local_addr().unwrap());
        let router = Router::new().route("/.well-known/jwks.json", get(answer));
        let (stop, stopped) = tokio::sync::watch::channel(false);
        tokio::spawn(async move {
            let _stop = stop;
            let metrics = crate::telemetry::metrics::ListenerMetrics::new("keys");
            crate::net::serve(listener, router, crate::net::Bounds::default(), metrics, stopped).await;
        });
        Self { url, asked, says }
    }

    fn source(&self) -> KeySource {
        KeySource::Published(vec![Address { url: self.url.clone(), key: None }])
    }

    fn verifier(&self) -> Verifier {
        Verifier::new(terms(), Keys::new(&self.source()).unwrap())
    }

    /// One that fetches again soon.
    fn hurried(&self) -> Verifier {
        let pace = super::keys::Pace { unknown: SOON, stale: SOON };
        Verifier::new(terms(), Keys::with_pace(&self.source(), pace).unwrap())
    }

    fn says(&self, keys: Option<&Value>) {
        *self.says.lock().unwrap() = keys.map(Value::to_string);
    }

    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }
}

#[tokio::test]
async fn each_signed_token_has_its_verdict() {
    let vectors: Value = serde_json::from_str(VECTORS).unwrap();
    let place = Place::open(JWKS).await;
    for verifier in [with_pem(PEM), place.verifier()] {
        for (name, token) in vectors["accept"].as_object().unwrap() {
            let caller = verifier.verify(token.as_str().unwrap(), NOW).await;
            let caller = caller.unwrap_or_else(|unknown| panic!("{name}: {unknown:?}"));
            assert_eq!(caller.clerk_id, "user_3semJtesl21dIwkfaBd5FHRgKnF", "{name}");
            assert_eq!(caller.session_id, "sess_3pQQn4FiFMwQSUmjd33qmZ7beAn", "{name}");
        }
        for (name, refused) in [
            ("jwt_template", Refused::Class),
            ("m2m", Refused::Class),
            ("oauth_access_token", Refused::Class),
            ("pending_session", Refused::Pending),
            ("other_issuer", Refused::Issuer),
            ("other_azp", Refused::Party),
            ("expired", Refused::Expired),
            ("broken_signature", Refused::Signature),
            ("alg_none", Refused::Algorithm),
        ] {
            let token = vectors["refuse"][name].as_str().unwrap();
            assert_eq!(verifier.verify(token, NOW).await, Err(refused.into()), "{name}");
        }
    }
    assert_eq!(vectors["refuse"].as_object().unwrap().len(), 9, "each of them is above");
    assert_eq!(place.asked(), 1);
}

#[tokio::test]
async fn what_is_no_token_is_refused() {
    let verifier = with_pem(PEM);
    let long = "a".repeat(TOKEN_MAX);
    for text in [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "e30.e30.",
        "e30.e30.e30.e30",
        "null.e30.e30",
        &format!("{long}.e30.e30"),
    ] {
        assert_eq!(verifier.verify(text, NOW).await, Err(Refused::Malformed.into()), "{text:.20}");
    }
}

#[tokio::test]
async fn only_the_instances_own_key_signs() {
    let (ours, theirs) = (Signer::new("ins_1").unwrap(), Signer::new("ins_1").unwrap());
    let verifier = with_pem(&ours.pem());
    let token = |signer: &Signer| signer.session(ISSUER, "user_1", "sess_1", APP, NOW);
    assert_eq!(verifier.verify(&token(&ours), NOW).await.unwrap().clerk_id, "user_1");
    assert_eq!(verifier.verify(&token(&theirs), NOW).await, Err(Refused::Signature.into()));
    // The public key as the secret of a symmetric signature, the classic confusion.
    let claims =
        json!({ "iss": ISSUER, "sub": "user_1", "sid": "sess_1", "exp": NOW / 1000 + 60, "azp": APP });
    let secret = jsonwebtoken::EncodingKey::from_secret(ours.pem().as_bytes());
    let mixed = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &secret).unwrap();
    assert_eq!(verifier.verify(&mixed, NOW).await, Err(Refused::Algorithm.into()));
    // One character of the claims changed.
    let good = token(&ours);
    let (head, rest) = good.split_once('.').unwrap();
    let (claims, signature) = rest.split_once('.').unwrap();
    let swapped = if claims.ends_with('A') { 'B' } else { 'A' };
    let forged = format!("{head}.{}{swapped}.{signature}", &claims[..claims.len() - 1]);
    assert!(matches!(verifier.verify(&forged, NOW).await, Err(Unknown::Refused(_))));
}

#[tokio::test]
async fn unknown_keys_cost_one_request_in_half_a_minute_whoever_asks() {
    let signer = Signer::new("ins_1").unwrap();
    let place = Place::open(&signer.key_set().to_string()).await;
    let verifier = Arc::new(place.verifier());
    let strangers = (0..50).map(|n| {
        let (verifier, stranger) = (Arc::clone(&verifier), format!("ins_{n}x"));
        let header = json!({ "alg": "RS256", "kid": stranger, "typ": "JWT" });
        let token = signer.sign(&header, &json!({ "iss": ISSUER }));
        tokio::spawn(async move { verifier.verify(&token, NOW).await })
    });
    for stranger in strangers.collect::<Vec<_>>() {
        assert_eq!(stranger.await.unwrap(), Err(Refused::Key.into()));
    }
    assert_eq!(place.asked(), 1);
    let token = signer.session(ISSUER, "user_1", "sess_1", APP, NOW);
    assert!(verifier.verify(&token, NOW).await.is_ok());
    assert_eq!(place.asked(), 1);
}

#[tokio::test]
async fn a_new_key_is_found_and_an_old_one_goes() {
    let (old, new) = (Signer::new("ins_old").unwrap(), Signer::new("ins_new").unwrap());
    let place = Place::open(&old.key_set().to_string()).await;
    let verifier = place.hurried();
    let token = |signer: &Signer| signer.session(ISSUER, "user_1", "sess_1", APP, NOW);
    assert!(verifier.verify(&token(&old), NOW).await.is_ok());
    place.says(Some(&new.key_set()));
    tokio::time::sleep(SOON).await;
    assert!(verifier.verify(&token(&new), NOW).await.is_ok());
    assert_eq!(verifier.verify(&token(&old), NOW).await, Err(Refused::Key.into()));
}

#[tokio::test]
async fn while_the_keys_are_away_known_ones_stay_and_of_others_nobody_can_say() {
    let (known, other) = (Signer::new("ins_1").unwrap(), Signer::new("ins_2").unwrap());
    let place = Place::open(&known.key_set().to_string()).await;
    let verifier = place.hurried();
    let token = |signer: &Signer| signer.session(ISSUER, "user_1", "sess_1", APP, NOW);
    assert!(verifier.verify(&token(&known), NOW).await.is_ok());
    place.says(None);
    for _ in 0..5 {
        tokio::time::sleep(SOON).await;
        assert!(verifier.verify(&token(&known), NOW).await.is_ok());
        assert!(matches!(verifier.verify(&token(&other), NOW).await, Err(Unknown::KeysAway(_))));
    }
}

#[test]
fn of_a_key_set_only_what_signs_by_rs256_is_used() {
    let signer = Signer::new("ins_1").unwrap();
    let mut set = signer.key_set();
    let good = set["keys"][0].clone();
    let but = |name: &str, value: Value| {
        let mut key = good.clone();
        key["kid"] = json!(format!("{name}_{value}"));
        key[name] = value;
        key
    };
    set["keys"] = json!([
        good,
        but("use", json!("enc")),
        but("alg", json!("RS512")),
        but("kty", json!("EC")),
        but("n", json!("!")),
        7,
        {}
    ]);
    let keys = super::keys::read(set.to_string().as_bytes()).unwrap();
    assert_eq!(keys.keys().collect::<Vec<_>>(), ["ins_1"]);
    for none in ["", "{}", "[]", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"AA","kid":"x"}]}"#] {
        assert!(super::keys::read(none.as_bytes()).is_none(), "{none}");
    }
}
