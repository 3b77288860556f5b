//! Owns reading who may ask the application's API: the instance whose session tokens count, its keys, and the application's
//! origins; and which plans give which of its tiers. Pure. Promises that no error holds a key.

use std::{net::SocketAddr, sync::Arc};

use url::Url;

use super::{Config, ConfigError, raw::Raw, wrong};
use crate::{
    clerk::token::{Address, Issuer, KeySource, Terms, cookie_suffix},
    net::is_loopback,
    rules::subscriptions::tiers::{PastDue, Tiers},
};

/// Whose session tokens count.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// The instance's issuer, and the application's origins.
    pub terms: Terms,
    /// The instance's keys.
    pub keys: KeySource,
    /// The suffix of the instance's cookie, where its publishable key is known.
    pub cookie_suffix: Option<String>,
}

/// What the settings say of the instance, `None` where they name none; and what looks like a mistake.
pub(super) fn tokens(raw: &Raw) -> Result<(Option<Tokens>, Option<String>), ConfigError> {
    const KEY: &str = "CLERK_PUBLISHABLE_KEY";
    const DOMAIN: &str = "CLERK_JWT_ISSUER_DOMAIN";
    let of_key = raw.written(KEY).map(|key| {
        Issuer::of_publishable_key(key).map_err(|problem| {
            wrong(
                format!("{} {problem}", raw.name(KEY)),
                "copy the publishable key, pk_live_… or pk_test_…, from the page of API keys in the Clerk dashboard",
            )
        })
    });
    let of_domain = raw.written(DOMAIN).map(|domain| {
        Issuer::parse(domain).map_err(|problem| {
            wrong(format!("{} {problem}", raw.name(DOMAIN)), "write it as https://clerk.example.com")
        })
    });
    let (of_key, warning) = match of_key.transpose() {
        // Another tool's placeholder keeps nothing from starting.
        Err(error) if raw.is_borrowed(KEY) => (None, Some(format!("{}: it is not used", error.message))),
        of_key => (of_key?, None),
    };
    let of_domain = of_domain.transpose()?;
    let (parties, jwt_key, jwks_url) = (parties(raw)?, jwt_key(raw)?, jwks_url(raw)?);
    let allow_missing_party =
        raw.choice("HEADCOUNT_ALLOW_MISSING_AZP", &[("true", true), ("false", false)])?;
    let Some(issuer) = of_domain.or(of_key) else { return Ok((None, warning)) };
    let published = jwks_url.unwrap_or_else(|| issuer.keys_url());
    let published = KeySource::Published(vec![Address { url: published, key: None }]);
    let tokens = Tokens {
        terms: Terms { issuer: issuer.as_str().to_owned(), parties, allow_missing_party },
        keys: jwt_key.map_or(published, KeySource::Pem),
        cookie_suffix: raw.written(KEY).map(cookie_suffix),
    };
    Ok((Some(tokens), warning))
}

impl Config {
    /// Whose session tokens count. Where the instance's published keys are away, Clerk's API is asked for them, if there is a key
    /// for that.
    pub fn tokens(&self) -> Option<Tokens> {
        let mut tokens = self.tokens.clone()?;
        if let (KeySource::Published(addresses), Some(key)) = (&mut tokens.keys, &self.clerk_secret_key) {
            let url = format!("{}/v1/jwks", self.clerk_api_url);
            addresses.push(Address { url, key: Some(key.clone()) });
        }
        Some(tokens)
    }
}

impl Config {
    /// Has the demo's tokens count, and no others, and lets tiers follow subscriptions. `is_taken` tells whether somebody listens at an
    /// address: then the demo listens for applications at another port, if none was chosen.
    #[must_use]
    pub fn with_demo_tokens(mut self, tokens: Tokens, is_taken: impl Fn(SocketAddr) -> bool) -> Self {
        if self.tokens.is_some() {
            let warning = "session tokens of your Clerk instance do not count: the demo signs up made-up people, with tokens of its own";
            self.warnings.push(warning.into());
        }
        self.tokens = Some(tokens);
        if self.billing.is_none() {
            self.billing = Tiers::parse("", PastDue::Keep).ok().map(Arc::new);
        }
        let taken = [self.listen, self.ops_listen].contains(&self.api_listen) || is_taken(self.api_listen);
        if taken && !self.chosen.api_listen {
            self.api_listen.set_port(0);
        }
        self
    }
}

/// `HEADCOUNT_BILLING`, `HEADCOUNT_TIERS`, `HEADCOUNT_PAST_DUE`; `None` is off. And what looks like a mistake.
pub(super) fn billing(raw: &Raw) -> Result<(Option<Arc<Tiers>>, Option<String>), ConfigError> {
    let on = raw.choice("HEADCOUNT_BILLING", &[("off", false), ("clerk", true)])?;
    let past_due = raw.choice("HEADCOUNT_PAST_DUE", &[("keep", PastDue::Keep), ("drop", PastDue::Drop)])?;
    let hint =
        "write slugs of plans with their tiers, the best first, such as pro_annual=premium,pro=premium,basic";
    let tiers = raw.parse("HEADCOUNT_TIERS", hint, |text| Tiers::parse(text, past_due))?;
    let unused = match past_due {
        _ if on => None,
        _ if raw.written("HEADCOUNT_TIERS").is_some() => Some("HEADCOUNT_TIERS"),
        PastDue::Drop => Some("HEADCOUNT_PAST_DUE"),
        PastDue::Keep => None,
    };
    let warning =
        unused.map(|name| format!("{} has no effect, because HEADCOUNT_BILLING is off", raw.name(name)));
    Ok((on.then(|| Arc::new(tiers)), warning))
}

/// `HEADCOUNT_AUTHORIZED_PARTIES`: origins, as browsers write them.
fn parties(raw: &Raw) -> Result<Vec<String>, ConfigError> {
    const VARIABLE: &str = "HEADCOUNT_AUTHORIZED_PARTIES";
    let origin = |text: &str| {
        let url = Url::parse(text)
            .ok()
            .filter(|url| url.has_host() && !text.contains('*') && url.path().trim_matches('/').is_empty());
        let origin = url.map(|url| url.origin().ascii_serialization());
        origin.ok_or_else(|| format!("{text:?} is no origin"))
    };
    raw.parse(VARIABLE, "write origins, such as https://app.example.com,http://localhost:3000", |text| {
        text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(origin).collect()
    })
}

/// `CLERK_JWT_KEY`: PEM, in which `\n` may stand for the end of a line.
fn jwt_key(raw: &Raw) -> Result<Option<String>, ConfigError> {
    const VARIABLE: &str = "CLERK_JWT_KEY";
    let Some(written) = raw.written(VARIABLE) else { return Ok(None) };
    let pem = written.replace("\\n", "\n");
    let refuse = |problem: &str| {
        wrong(
            format!("{} {problem}", raw.name(VARIABLE)),
            "copy the JWKS public key in PEM, with its first and last line, from the page of API keys in the Clerk dashboard",
        )
    };
    if pem.contains("PRIVATE KEY") {
        return Err(refuse("is a private key, which headcount needs to never see"));
    }
    match crate::clerk::token::Keys::new(&KeySource::Pem(pem.clone())) {
        Ok(_) => Ok(Some(pem)),
        Err(problem) => Err(refuse(&problem)),
    }
}

/// `CLERK_JWKS_URL`.
fn jwks_url(raw: &Raw) -> Result<Option<String>, ConfigError> {
    const VARIABLE: &str = "CLERK_JWKS_URL";
    let Some(text) = raw.written(VARIABLE) else { return Ok(None) };
    let refuse = |problem: &str| {
        wrong(
            format!("{} {problem}", raw.name(VARIABLE)),
            "write it as https://clerk.example.com/.well-known/jwks.json, or leave it unset",
        )
    };
    let url = Url::parse(text).map_err(|_| refuse("is no URL"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("holds a user or a password"));
    }
    match url.scheme() {
        "https" => Ok(Some(text.to_owned())),
        "http" if is_loopback(&url) => Ok(Some(text.to_owned())),
        "http" => Err(refuse("is http:// to another machine: whoever is in between could sign anybody in")),
        _ => Err(refuse("does not begin with https://")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const PEM: &str = include_str!("../clerk/token/jwt-key.pem");

    fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let pairs = pairs.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Config::from(pairs, Some(Path::new("/dev/null")))
    }

    fn tokens(pairs: &[(&str, &str)]) -> Tokens {
        read(pairs).unwrap().tokens().unwrap()
    }

    const KEY: (&str, &str) = ("CLERK_PUBLISHABLE_KEY", "pk_live_Y2xlcmsuZXhhbXBsZS5jb20k");

    #[test]
    fn without_an_instance_no_token_counts() {
        assert!(read(&[]).unwrap().tokens().is_none());
        assert!(read(&[("CLERK_JWT_KEY", PEM)]).unwrap().tokens().is_none());
    }

    #[test]
    fn the_issuer_follows_from_the_publishable_key_or_is_written() {
        for pairs in [
            &[KEY][..],
            &[("NEXT_PUBLIC_CLERK_PUBLISHABLE_KEY", KEY.1)],
            &[("CLERK_JWT_ISSUER_DOMAIN", "clerk.example.com")],
            &[
                ("CLERK_PUBLISHABLE_KEY", "pk_test_ZWxzZXdoZXJlLmV4YW1wbGUk"),
                ("CLERK_JWT_ISSUER_DOMAIN", "https://clerk.example.com/"),
            ],
        ] {
            assert_eq!(tokens(pairs).terms.issuer, "https://clerk.example.com", "{pairs:?}");
        }
        assert_eq!(tokens(&[KEY]).cookie_suffix.as_deref(), Some("naoXFJnI"));
    }

    #[test]
    fn keys_are_asked_for_where_the_instance_publishes_them_then_at_clerks_api() {
        let urls = |pairs: &[(&str, &str)]| match tokens(pairs).keys {
            KeySource::Published(addresses) => addresses.into_iter().map(|address| address.url).collect(),
            KeySource::Pem(_) => Vec::new(),
        };
        let own = "https://clerk.example.com/.well-known/jwks.json";
        assert_eq!(urls(&[KEY]), [own]);
        assert_eq!(urls(&[KEY, ("CLERK_SECRET_KEY", "sk_live_x")]), [own, "https://api.clerk.com/v1/jwks"]);
        assert_eq!(urls(&[KEY, ("CLERK_JWKS_URL", "http://127.0.0.1:9/k")]), ["http://127.0.0.1:9/k"]);
        assert_eq!(urls(&[KEY, ("CLERK_JWT_KEY", PEM)]), [""; 0]);
        assert_eq!(urls(&[KEY, ("CLERK_JWT_KEY", &PEM.replace('\n', "\\n"))]), [""; 0]);
    }

    #[test]
    fn parties_are_origins() {
        let parties = ("HEADCOUNT_AUTHORIZED_PARTIES", "https://App.example.com/, http://localhost:3000");
        assert_eq!(
            tokens(&[KEY, parties]).terms.parties,
            ["https://app.example.com", "http://localhost:3000"]
        );
    }

    #[test]
    fn a_placeholder_of_another_tool_is_only_warned_of() {
        let config = read(&[("NEXT_PUBLIC_CLERK_PUBLISHABLE_KEY", "pk_test_xxx")]).unwrap();
        assert!(config.tokens().is_none());
        assert!(
            config.warnings[0].starts_with("NEXT_PUBLIC_CLERK_PUBLISHABLE_KEY "),
            "{:?}",
            config.warnings
        );
    }

    #[test]
    fn the_listener_has_a_port_of_its_own_where_it_is_on() {
        let taken = ("HEADCOUNT_OPS_LISTEN", "127.0.0.1:8082");
        assert!(read(&[taken]).is_ok(), "it is off");
        let error = read(&[taken, KEY]).unwrap_err();
        assert!(
            error.message.contains("HEADCOUNT_API_LISTEN") && error.message.contains("8082"),
            "{error:?}"
        );
    }

    #[test]
    fn tiers_without_billing_are_warned_of() {
        for (pairs, warned, on) in [
            (&[][..], None, false),
            (&[("HEADCOUNT_TIERS", "pro=premium")], Some("HEADCOUNT_TIERS has no effect"), false),
            (&[("HEADCOUNT_PAST_DUE", "drop")], Some("HEADCOUNT_PAST_DUE has no effect"), false),
            (&[("HEADCOUNT_PAST_DUE", "keep")], None, false),
            (&[("HEADCOUNT_BILLING", "clerk"), ("HEADCOUNT_TIERS", "pro=premium")], None, true),
        ] {
            let config = read(pairs).unwrap();
            assert_eq!(config.billing.is_some(), on, "{pairs:?}");
            assert_eq!(config.warnings.len(), usize::from(warned.is_some()), "{:?}", config.warnings);
            assert!(
                warned.is_none_or(|warned| config.warnings[0].starts_with(warned)),
                "{:?}",
                config.warnings
            );
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_a_hint() {
        for (variable, value) in [
            ("CLERK_PUBLISHABLE_KEY", "sk_live_hunter2"),
            ("CLERK_PUBLISHABLE_KEY", "pk_live_hunter2"),
            ("CLERK_JWT_ISSUER_DOMAIN", "http://clerk.example.com"),
            ("CLERK_JWT_KEY", "hunter2"),
            ("CLERK_JWT_KEY", "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----"),
            ("CLERK_JWKS_URL", "http://clerk.example.com/.well-known/jwks.json"),
            ("CLERK_JWKS_URL", "https://app:hunter2@clerk.example.com"),
            ("HEADCOUNT_AUTHORIZED_PARTIES", "app.example.com"),
            ("HEADCOUNT_AUTHORIZED_PARTIES", "https://app.example.com/path"),
            ("HEADCOUNT_AUTHORIZED_PARTIES", "https://*.example.com"),
            ("HEADCOUNT_ALLOW_MISSING_AZP", "maybe"),
        ] {
            let error = read(&[KEY, (variable, value)]).unwrap_err();
            assert!(error.message.contains(variable) && !error.hint.is_empty(), "{error:?}");
            assert!(!error.message.contains("hunter2"), "{error:?}");
        }
    }
}
