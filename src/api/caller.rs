//! Owns who asks: the session token of a request, where it is believed, and what is said to whoever has none. A cookie, which
//! browsers send by themselves, counts only where no foreign page can have made the browser send it with effect.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};

use super::{Api, later, limits::Spent};
use crate::{
    clerk::token::{Caller, Terms, Unknown, Verifier},
    net::{Peer, Problem, Visitor},
    time::now,
};

/// The name of Clerk's cookie.
const COOKIE: &str = "__session";

/// A user who asks, known by a session token.
pub(super) struct Known(pub(super) Caller);

impl FromRequestParts<Arc<Api>> for Known {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Response> {
        let peer = parts.extensions.get::<Peer>().map(|peer| peer.0);
        // Whoever has a valid token is no stranger, whoever else is at the address: an application's own server, say.
        let refuse = |code, detail| match peer.and_then(|peer| api.limits.stranger(peer).err()) {
            None => unauthorized(code, detail),
            Some(Spent { seconds }) => {
                let much = "too many requests without a valid token came from this address";
                later(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", much), seconds)
            }
        };
        let caller = match token(&parts.headers, api.cookie_suffix.as_deref(), &api.verifier) {
            Some(Token { text, from_cookie }) => {
                if from_cookie && !is_meant(&parts.method, &parts.headers, api.verifier.terms()) {
                    return Err(foreign().into_response());
                }
                api.verifier.verify(text, now()).await
            }
            None => {
                return Err(refuse(
                    "token_missing",
                    "send Clerk's session token as  Authorization: Bearer <token>",
                ));
            }
        };
        match caller {
            Ok(caller) => {
                if let Some(visitor) = parts.extensions.get::<Visitor>() {
                    visitor.verified();
                }
                match api.limits.user(&caller.clerk_id) {
                    Ok(()) => Ok(Self(caller)),
                    Err(Spent { seconds }) => {
                        let much = "this user sends too many requests";
                        let much = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", much);
                        Err(later(much, seconds))
                    }
                }
            }
            Err(Unknown::Refused(refused)) => Err(refuse(refused.code(), refused.says())),
            Err(Unknown::KeysAway(why)) => {
                Err(Problem::unavailable(format!("nobody can say who signed this token: {why}"))
                    .into_response())
            }
        }
    }
}

/// An answer to whom nobody is signed in by.
pub(super) fn unauthorized(code: &'static str, detail: &str) -> Response {
    let mut response = Problem::new(StatusCode::UNAUTHORIZED, code, detail).into_response();
    let scheme = HeaderValue::from_static("Bearer realm=\"headcount\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
    response
}

fn foreign() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "foreign_origin",
        "a cookie counts here only in requests of the application's own pages",
    )
    .hint("name the page's origin in HEADCOUNT_AUTHORIZED_PARTIES, or send the token as  Authorization: Bearer <token>")
}

/// The token that a request carries.
#[derive(Debug, PartialEq, Eq)]
struct Token<'h> {
    text: &'h str,
    from_cookie: bool,
}

/// The token: that of the header, else that of a cookie. Of several cookies the one whose issuer is ours, and of those the one
/// that is named after our instance.
fn token<'h>(headers: &'h HeaderMap, suffix: Option<&str>, verifier: &Verifier) -> Option<Token<'h>> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, text) = value.to_str().ok()?.split_once(' ')?;
        let text = text.trim();
        return (scheme.eq_ignore_ascii_case("bearer") && !text.is_empty())
            .then_some(Token { text, from_cookie: false });
    }
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut found: Vec<(u8, &str)> = cookies
        .flat_map(|line| line.split(';'))
        .filter_map(|cookie| {
            let (name, text) = cookie.trim().split_once('=')?;
            let rest = name.strip_prefix(COOKIE)?;
            let rank = match rest.strip_prefix('_') {
                Some(theirs) if Some(theirs) == suffix => 0,
                None if rest.is_empty() => 1,
                // Without our publishable key nobody knows which suffix is ours.
                Some(_) if suffix.is_none() => 2,
                _ => return None,
            };
            (!text.is_empty()).then_some((rank, text))
        })
        .collect();
    found.sort_by_key(|(rank, _)| *rank);
    let ours =
        |text: &str| Verifier::named_issuer(text).is_some_and(|issuer| issuer == verifier.terms().issuer);
    let text = found.iter().find(|(_, text)| ours(text)).or(found.first()).map(|(_, text)| *text)?;
    Some(Token { text, from_cookie: true })
}

/// Whether a request with a cookie was sent by one of the application's own pages, or changes nothing.
fn is_meant(method: &Method, headers: &HeaderMap, terms: &Terms) -> bool {
    if matches!(*method, Method::GET | Method::HEAD) {
        return true;
    }
    let text = |name: &str| match headers.get_all(name).iter().collect::<Vec<_>>()[..] {
        [] => None,
        [one] => Some(one.to_str().unwrap_or("unreadable")),
        _ => Some("several"),
    };
    if let Some(origin) = text("origin") {
        return terms.is_party(origin) || is_same_origin(origin, headers);
    }
    text("sec-fetch-site") == Some("same-origin")
}

fn is_same_origin(origin: &str, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    let fetched = headers.get("sec-fetch-site").is_none_or(|site| site == "same-origin");
    !host.is_empty() && fetched && authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clerk::{
        stand_in::tokens::Signer,
        token::{KeySource, Keys},
    };

    const ISSUER: &str = "https://clerk.example.com";

    fn terms() -> Terms {
        Terms {
            issuer: ISSUER.into(),
            parties: vec!["https://app.example.com".into()],
            allow_missing_party: false,
        }
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_token_is_that_of_the_header_else_of_the_cookie_of_our_instance() {
        let signer = Signer::new("ins_1").unwrap();
        let verifier = Verifier::new(terms(), Keys::new(&KeySource::Pem(signer.pem())).unwrap());
        let by = |issuer: &str| signer.session(issuer, "user_1", "sess_1", "", 0);
        let (ours, also_ours, theirs) = (by(ISSUER), by(ISSUER), by("https://clerk.elsewhere.example"));
        let found = |lines: &[(&'static str, &str)], suffix: Option<&str>| {
            token(&headers(lines), suffix, &verifier).map(|token| (token.text.to_owned(), token.from_cookie))
        };
        let cookie = |pairs: &[(&str, &str)]| {
            let pairs: Vec<_> = pairs.iter().map(|(name, text)| format!("{name}={text}")).collect();
            pairs.join("; ")
        };
        let bearer = format!("bearer  {ours}");
        let both = cookie(&[("__session", &theirs)]);
        assert_eq!(
            found(&[("authorization", &bearer), ("cookie", &both)], None),
            Some((ours.clone(), false))
        );
        for (pairs, suffix, taken) in [
            (&[("__session", &*ours)][..], None, Some(&ours)),
            (&[("a", "b"), ("__session", &ours)], Some("abcd1234"), Some(&ours)),
            (&[("__session", &theirs), ("__session_abcd1234", &ours)], None, Some(&ours)),
            (&[("__session", &also_ours), ("__session_abcd1234", &ours)], Some("abcd1234"), Some(&ours)),
            (
                &[("__session", &also_ours), ("__session_abcd1234", &theirs)],
                Some("abcd1234"),
                Some(&also_ours),
            ),
            (&[("__session_other", &ours)], Some("abcd1234"), None),
            (&[("__session", &theirs)], None, Some(&theirs)),
            (&[("__sessions", &ours), ("session", &ours), ("__session", "")], None, None),
        ] {
            let lines = [("cookie", &*cookie(pairs))];
            assert_eq!(found(&lines, suffix), taken.map(|text| (text.clone(), true)), "{pairs:?}");
        }
        for none in ["Basic x", "Bearer", "Bearer ", ""] {
            assert_eq!(found(&[("authorization", none), ("cookie", &both)], None), None, "{none:?}");
        }
    }

    #[test]
    fn a_cookie_counts_only_where_no_foreign_page_can_have_sent_it() {
        let host = ("host", "api.example.com");
        let meant =
            |method: Method, lines: &[(&'static str, &str)]| is_meant(&method, &headers(lines), &terms());
        assert!(meant(Method::GET, &[host, ("origin", "https://evil.example")]), "it changes nothing");
        for good in [
            &[host, ("origin", "https://app.example.com")][..],
            &[host, ("origin", "https://app.example.com"), ("sec-fetch-site", "same-site")],
            &[host, ("origin", "https://api.example.com"), ("sec-fetch-site", "same-origin")],
            &[host, ("sec-fetch-site", "same-origin")],
        ] {
            assert!(meant(Method::POST, good), "{good:?}");
        }
        for bad in [
            &[host][..],
            &[host, ("origin", "https://evil.example")],
            &[host, ("origin", "https://evil.example"), ("sec-fetch-site", "same-origin")],
            &[host, ("origin", "https://api.example.com"), ("sec-fetch-site", "cross-site")],
            &[host, ("origin", "null")],
            &[host, ("origin", "https://app.example.com"), ("origin", "https://evil.example")],
            &[host, ("sec-fetch-site", "same-site")],
            &[host, ("sec-fetch-site", "cross-site")],
            &[host, ("sec-fetch-site", "none")],
            &[("origin", "https://")],
        ] {
            assert!(!meant(Method::POST, bad), "{bad:?}");
        }
    }
}
