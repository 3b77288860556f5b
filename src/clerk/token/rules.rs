//! Owns which tokens sign a person in. Pure: the time comes in. The signature is checked elsewhere.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::time::Millis;

/// Clocks may differ by so much, in milliseconds. Clerk's own verifiers allow the same.
const LEEWAY: Millis = 5_000;

/// The classes of tokens that sign a person in, by the header `cat`. The same key signs templates, and tokens of machines.
const SESSIONS: [&str; 2] = ["cl_B7d4PD111AAA", "cl_I7d4PD111III"];

/// The longest id, in bytes.
const ID_MAX: usize = 255;

/// What a token has to be beside signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The instance's issuer, such as `https://clerk.example.com`.
    pub issuer: String,
    /// `HEADCOUNT_AUTHORIZED_PARTIES`: origins whose pages tokens are issued to. Empty: any.
    pub parties: Vec<String>,
    /// `HEADCOUNT_ALLOW_MISSING_AZP`: a token that names no party is taken too.
    pub allow_missing_party: bool,
}

impl Terms {
    /// Whether an origin is one of the application's own.
    pub fn is_party(&self, origin: &str) -> bool {
        self.parties.iter().any(|party| party.eq_ignore_ascii_case(origin))
    }
}

/// Whom a token signs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Clerk's id of the user.
    pub clerk_id: String,
    /// Clerk's id of the session.
    pub session_id: String,
    /// When the token was issued, in milliseconds since the Unix epoch.
    pub issued_at: Option<Millis>,
    /// Who acts as this user, where somebody does.
    pub act: Option<Actor>,
}

/// Who acts as a user: the claim `act`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Actor {
    /// Clerk's id of the impersonator.
    pub sub: Option<String>,
    /// The impersonator's own session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sid: Option<String>,
    /// Who says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
}

/// Which rule a token breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refused {
    /// It is no JSON Web Token, or it lacks what every session token has.
    Malformed,
    /// It is not signed by RS256.
    Algorithm,
    /// It is of a class that signs nobody in: a template, a machine's, or OAuth's.
    Class,
    /// No key of the instance has its id.
    Key,
    /// The key did not sign this.
    Signature,
    /// Another instance issued it.
    Issuer,
    /// It is over.
    Expired,
    /// It is of the future.
    NotYet,
    /// It is about nobody, or about something else than a user.
    Subject,
    /// It belongs to no session.
    Session,
    /// Its session waits for something that the user has to do first.
    Pending,
    /// It was issued to another page than the application's.
    Party,
}

impl Refused {
    /// Every refusal.
    pub const ALL: [Self; 12] = [
        Self::Malformed,
        Self::Algorithm,
        Self::Class,
        Self::Key,
        Self::Signature,
        Self::Issuer,
        Self::Expired,
        Self::NotYet,
        Self::Subject,
        Self::Session,
        Self::Pending,
        Self::Party,
    ];

    /// The stable name: on the wire and in metrics.
    pub fn code(self) -> &'static str {
        match self {
            Self::Malformed => "token_malformed",
            Self::Algorithm => "token_algorithm",
            Self::Class => "token_class",
            Self::Key => "token_key",
            Self::Signature => "token_signature",
            Self::Issuer => "token_issuer",
            Self::Expired => "token_expired",
            Self::NotYet => "token_not_yet_valid",
            Self::Subject => "token_subject",
            Self::Session => "token_session",
            Self::Pending => "session_pending",
            Self::Party => "token_party",
        }
    }

    /// What is wrong, for people.
    pub fn says(self) -> &'static str {
        match self {
            Self::Malformed => "this is no session token of Clerk's",
            Self::Algorithm => "the token is not signed by RS256",
            Self::Class => "tokens of this class sign nobody in: send a session token",
            Self::Key => "the token is signed by a key that the Clerk instance does not have",
            Self::Signature => "the token's signature is wrong",
            Self::Issuer => "another Clerk instance issued the token",
            Self::Expired => "the token is over: get a new one from Clerk",
            Self::NotYet => "the token is of the future: a clock is wrong",
            Self::Subject => "the token is not about a user",
            Self::Session => "the token belongs to no session",
            Self::Pending => "the session is pending: the user has something to do first",
            Self::Party => "the token was issued to another page; see HEADCOUNT_AUTHORIZED_PARTIES",
        }
    }
}

/// What is read of a token's header.
#[derive(Debug, Deserialize)]
pub(super) struct Header {
    pub(super) alg: String,
    pub(super) kid: Option<String>,
    typ: Option<String>,
    cat: Option<String>,
    crit: Option<Value>,
}

/// What is read of a token's claims.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Claims {
    iss: Option<String>,
    sub: Option<String>,
    sid: Option<String>,
    exp: Option<i64>,
    nbf: Option<i64>,
    iat: Option<i64>,
    azp: Option<String>,
    sts: Option<String>,
    act: Option<Value>,
}

/// Judges by the header alone whether a token can sign anybody in.
pub(super) fn class(header: &Header) -> Result<(), Refused> {
    if header.alg != "RS256" {
        return Err(Refused::Algorithm);
    }
    // An extension that is critical and unknown (RFC 7515, 4.1.11).
    if header.crit.is_some() {
        return Err(Refused::Malformed);
    }
    let is_jwt = header.typ.as_deref().is_none_or(|typ| typ.eq_ignore_ascii_case("JWT"));
    let is_session = header.cat.as_deref().is_none_or(|cat| SESSIONS.contains(&cat));
    if is_jwt && is_session { Ok(()) } else { Err(Refused::Class) }
}

/// Judges what a signed token claims at `now`.
pub(super) fn judge(claims: Claims, terms: &Terms, now: Millis) -> Result<Caller, Refused> {
    let Claims { iss, sub, sid, exp, nbf, iat, azp, sts, act } = claims;
    if iss.as_deref() != Some(&terms.issuer) {
        return Err(Refused::Issuer);
    }
    let millis = |seconds: i64| seconds.saturating_mul(1000);
    let expires_at = exp.map(millis).ok_or(Refused::Malformed)?;
    if expires_at <= now - LEEWAY {
        return Err(Refused::Expired);
    }
    if [nbf, iat].into_iter().flatten().any(|seconds| millis(seconds) > now + LEEWAY) {
        return Err(Refused::NotYet);
    }
    let clerk_id = sub.filter(|sub| sub.starts_with("user_") && is_id(sub)).ok_or(Refused::Subject)?;
    let session_id = sid.filter(|sid| is_id(sid)).ok_or(Refused::Session)?;
    if sts.as_deref() == Some("pending") {
        return Err(Refused::Pending);
    }
    if !terms.parties.is_empty() {
        match azp.as_deref().filter(|azp| !azp.is_empty()) {
            Some(azp) if terms.is_party(azp) => {}
            None if terms.allow_missing_party => {}
            _ => return Err(Refused::Party),
        }
    }
    let act = act.as_ref().map(|act| {
        let id = |name: &str| act.get(name)?.as_str().filter(|id| is_id(id)).map(str::to_owned);
        Actor { sub: id("sub"), sid: id("sid"), iss: id("iss") }
    });
    Ok(Caller { clerk_id, session_id, issued_at: iat.map(millis), act })
}

fn is_id(text: &str) -> bool {
    (1..=ID_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_795_600_805;

    fn terms(parties: &[&str], allow_missing_party: bool) -> Terms {
        let parties = parties.iter().map(|party| (*party).to_owned()).collect();
        Terms { issuer: "https://clerk.example.com".into(), parties, allow_missing_party }
    }

    /// A good token's claims, with some replaced; null takes one away.
    fn with(changes: Value) -> Claims {
        let mut claims = json!({
            "iss": "https://clerk.example.com", "sub": "user_1", "sid": "sess_1", "exp": NOW + 55, "nbf": NOW - 15,
            "iat": NOW - 5, "azp": "https://app.example.com", "sts": "active", "v": 2, "o": { "id": "org_1" },
        });
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        serde_json::from_value(claims).unwrap()
    }

    #[test]
    fn each_rule_has_its_verdict() {
        let any = terms(&[], false);
        let ours = terms(&["https://app.example.com", "http://localhost:3000"], false);
        let native = terms(&["https://app.example.com"], true);
        for (changes, terms, verdict) in [
            (json!({}), &any, Ok(())),
            (json!({}), &ours, Ok(())),
            (json!({ "sts": null, "nbf": null, "iat": null }), &any, Ok(())),
            (json!({ "azp": null }), &any, Ok(())),
            (json!({ "azp": "HTTPS://APP.example.com" }), &ours, Ok(())),
            (json!({ "azp": "http://localhost:3000" }), &ours, Ok(())),
            (json!({ "azp": "https://evil.example" }), &ours, Err(Refused::Party)),
            (json!({ "azp": null }), &ours, Err(Refused::Party)),
            (json!({ "azp": "" }), &ours, Err(Refused::Party)),
            (json!({ "azp": null }), &native, Ok(())),
            (json!({ "azp": "https://evil.example" }), &native, Err(Refused::Party)),
            (json!({ "iss": "https://clerk.elsewhere.example" }), &any, Err(Refused::Issuer)),
            (json!({ "iss": "https://clerk.example.com/" }), &any, Err(Refused::Issuer)),
            (json!({ "iss": null }), &any, Err(Refused::Issuer)),
            (json!({ "exp": NOW - 4 }), &any, Ok(())),
            (json!({ "exp": NOW - 5 }), &any, Err(Refused::Expired)),
            (json!({ "exp": null }), &any, Err(Refused::Malformed)),
            (json!({ "exp": i64::MIN }), &any, Err(Refused::Expired)),
            (json!({ "exp": i64::MAX }), &any, Ok(())),
            (json!({ "nbf": NOW + 5 }), &any, Ok(())),
            (json!({ "nbf": NOW + 6 }), &any, Err(Refused::NotYet)),
            (json!({ "iat": NOW + 6 }), &any, Err(Refused::NotYet)),
            (json!({ "sub": "mch_1" }), &any, Err(Refused::Subject)),
            (json!({ "sub": "" }), &any, Err(Refused::Subject)),
            (json!({ "sub": "user_1 or 1=1" }), &any, Err(Refused::Subject)),
            (json!({ "sub": format!("user_{}", "x".repeat(300)) }), &any, Err(Refused::Subject)),
            (json!({ "sub": null }), &any, Err(Refused::Subject)),
            (json!({ "sid": null }), &any, Err(Refused::Session)),
            (json!({ "sid": "" }), &any, Err(Refused::Session)),
            (json!({ "sts": "pending" }), &any, Err(Refused::Pending)),
        ] {
            let judged = judge(with(changes.clone()), terms, NOW * 1000).map(drop);
            assert_eq!(judged, verdict, "{changes}");
        }
    }

    #[test]
    fn who_acts_for_somebody_is_told() {
        let claims = with(
            json!({ "act": { "iss": "https://dashboard.clerk.com", "sid": "sess_2", "sub": "user_2" } }),
        );
        let caller = judge(claims, &terms(&[], false), NOW * 1000).unwrap();
        assert_eq!(caller.clerk_id, "user_1");
        let act = serde_json::to_value(caller.act).unwrap();
        assert_eq!(act, json!({ "iss": "https://dashboard.clerk.com", "sid": "sess_2", "sub": "user_2" }));
        assert_eq!(caller.issued_at, Some((NOW - 5) * 1000));
    }

    #[test]
    fn only_classes_that_sign_a_person_in_are_taken() {
        let header = |text: Value| class(&serde_json::from_value(text).unwrap());
        for good in [
            json!({ "alg": "RS256" }),
            json!({ "alg": "RS256", "typ": "JWT", "kid": "ins_1" }),
            json!({ "alg": "RS256", "typ": "jwt", "cat": "cl_B7d4PD111AAA" }),
            json!({ "alg": "RS256", "cat": "cl_I7d4PD111III" }),
        ] {
            assert_eq!(header(good.clone()), Ok(()), "{good}");
        }
        for (bad, refused) in [
            (json!({ "alg": "none" }), Refused::Algorithm),
            (json!({ "alg": "HS256" }), Refused::Algorithm),
            (json!({ "alg": "rs256" }), Refused::Algorithm),
            (json!({ "alg": "RS512" }), Refused::Algorithm),
            (json!({ "alg": "PS256" }), Refused::Algorithm),
            (json!({ "alg": "RS256", "typ": "at+jwt" }), Refused::Class),
            (json!({ "alg": "RS256", "typ": "" }), Refused::Class),
            (json!({ "alg": "RS256", "cat": "cl_B7d4PD222AAA" }), Refused::Class),
            (json!({ "alg": "RS256", "cat": "cl_B7d4PD333AAA" }), Refused::Class),
            (json!({ "alg": "RS256", "cat": "" }), Refused::Class),
            (json!({ "alg": "RS256", "crit": ["b64"], "b64": false }), Refused::Malformed),
        ] {
            assert_eq!(header(bad.clone()), Err(refused), "{bad}");
        }
    }

    #[test]
    fn every_refusal_has_a_code_of_its_own() {
        let codes: std::collections::HashSet<_> = Refused::ALL.iter().map(|refused| refused.code()).collect();
        assert_eq!(codes.len(), Refused::ALL.len());
    }
}
