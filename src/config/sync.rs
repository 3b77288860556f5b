//! Owns reading where Clerk's API is, with which key, and which instance the table belongs to; and what the demo sets in their
//! place. Pure. Promises that no error and no warning holds the key or anything of a URL that may be a password.

use std::time::Duration;

use url::Url;

use super::{Config, ConfigError, raw::Raw, wrong};
use crate::{net::is_loopback, secret::Secret};

/// A setting, and what looks like a mistake in it.
type Read<T> = Result<(T, Option<String>), ConfigError>;

/// `CLERK_SECRET_KEY`.
pub(super) fn secret_key(raw: &Raw) -> Read<Option<Secret>> {
    const VARIABLE: &str = "CLERK_SECRET_KEY";
    let Some(key) = raw.written(VARIABLE) else { return Ok((None, None)) };
    let hint =
        "copy the secret key, sk_live_… or sk_test_…, from the page of API keys in the Clerk dashboard";
    let refuse = |problem: &str| Err(wrong(format!("{} {problem}", raw.name(VARIABLE)), hint));
    if key.starts_with("pk_") {
        return refuse("is a publishable key, which the API does not take");
    }
    if key.starts_with("whsec_") {
        return refuse("is a webhook signing secret, which the API does not take");
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refuse("holds white space, a control character or another character that no key has");
    }
    let rest = ["sk_live_", "sk_test_"].iter().find_map(|start| key.strip_prefix(start));
    if rest == Some("") {
        return refuse("ends after its first part");
    }
    let usual = rest.is_some();
    let warning = "begins with neither sk_live_ nor sk_test_; headcount asks no faster than a test key may";
    Ok((Some(Secret::new(key)), (!usual).then(|| warning.into())))
}

/// `CLERK_API_URL`, without a trailing slash and without `/v1`.
pub(super) fn api_url(raw: &Raw) -> Read<String> {
    const VARIABLE: &str = "CLERK_API_URL";
    let refuse = |problem: &str, hint: &str| wrong(format!("{} {problem}", raw.name(VARIABLE)), hint);
    let usual = "write it as https://api.clerk.com, or leave it unset";
    let text = raw.get(VARIABLE).unwrap_or_default();
    let url = Url::parse(text).map_err(|_| refuse("is no URL", usual))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse("starts with neither http:// nor https://", usual));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse(
            "holds a user or a password",
            "write it without them: the key is CLERK_SECRET_KEY",
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refuse("has something behind its path", usual));
    }
    let base = url.as_str().trim_end_matches('/');
    let base = base.strip_suffix("/v1").unwrap_or(base).trim_end_matches('/').to_owned();
    if base.contains("/v1/") {
        return Err(refuse("names a path of the API", usual));
    }
    let in_the_clear = url.scheme() == "http" && !is_loopback(&url);
    if in_the_clear && raw.written("CLERK_SECRET_KEY").is_some_and(|key| key.starts_with("sk_live_")) {
        return Err(refuse(
            "is http:// to another machine: the key of a live instance would travel unencrypted",
            "write it with https://",
        ));
    }
    let warning = "is http:// to another machine: the key travels unencrypted";
    Ok((base, in_the_clear.then(|| warning.into())))
}

/// `HEADCOUNT_CLERK_INSTANCE`.
pub(super) fn instance(raw: &Raw) -> Result<Option<String>, ConfigError> {
    const VARIABLE: &str = "HEADCOUNT_CLERK_INSTANCE";
    if raw.written(VARIABLE).is_none() {
        return Ok(None);
    }
    raw.parse(VARIABLE, "write the id of the instance, ins_…, or leave it unset", |text| {
        let plain = |id: &str| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let whole = text.len() <= 255 && text.strip_prefix("ins_").is_some_and(plain);
        whole.then(|| Some(text.to_owned())).ok_or_else(|| "is not the id of an instance".into())
    })
}

/// The demo's own pace, so that people need not wait long to see what it does: how often the watch looks, and its grace.
const DEMO_WATCH: Duration = Duration::from_secs(10);
/// How often the demo's whole table is compared.
const DEMO_SYNC: Duration = Duration::from_secs(120);

impl Config {
    /// Has a stand-in take the place of Clerk's API, whatever key is set, and looks at it often unless the settings say how
    /// often.
    #[must_use]
    pub fn with_stand_in(mut self, url: &str, key: Secret, instance: &str) -> Self {
        // Whoever followed the demo's own advice has exported the stand-in's key.
        if self.clerk_secret_key.as_ref().is_some_and(|set| set.expose() != key.expose()) {
            let warning = "CLERK_SECRET_KEY is not used: the demo reads a stand-in for Clerk's API, so that made-up people do not mix with yours";
            self.warnings.push(warning.into());
        }
        self.clerk_secret_key = Some(key);
        self.clerk_api_url = url.to_owned();
        self.clerk_instance = Some(instance.to_owned());
        if !self.chosen.watch {
            self.watch = DEMO_WATCH;
        }
        if !self.chosen.watch_grace {
            self.watch_grace = DEMO_WATCH;
        }
        if !self.chosen.sync_every {
            self.sync_every = Some(DEMO_SYNC);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::super::{Config, ConfigError};
    use crate::secret::Secret;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let pairs = pairs.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Config::from(pairs, Some(Path::new("/dev/null")))
    }

    fn with(pairs: &[(&str, &str)]) -> Config {
        read(pairs).unwrap()
    }

    #[test]
    fn without_a_key_nothing_of_clerks_api_is_on() {
        for config in [with(&[]), with(&[("CLERK_SECRET_KEY", " ")])] {
            assert_eq!((config.clerk_secret_key, config.clerk_instance), (None, None));
            assert_eq!(config.clerk_api_url, "https://api.clerk.com");
            assert_eq!(
                (config.watch, config.watch_grace),
                (Duration::from_secs(60), Duration::from_secs(60))
            );
            assert_eq!((config.sync_every, config.keep_clerk_object), (None, false));
        }
    }

    #[test]
    fn a_key_of_an_unusual_kind_is_taken_with_a_warning() {
        for (key, warnings) in [("sk_live_abc", 0), ("sk_test_abc", 0), ("live_abc", 1)] {
            let config = with(&[("CLERK_SECRET_KEY", key)]);
            assert_eq!(config.clerk_secret_key.unwrap().expose(), key);
            assert_eq!(config.warnings.len(), warnings, "{:?}", config.warnings);
            assert!(!config.warnings.concat().contains(key));
        }
    }

    #[test]
    fn the_address_of_the_api_is_read_with_and_without_its_version() {
        for (written, base) in [
            ("https://api.clerk.com", "https://api.clerk.com"),
            ("https://api.clerk.com/", "https://api.clerk.com"),
            ("https://api.clerk.com/v1", "https://api.clerk.com"),
            ("https://API.clerk.com/v1/", "https://api.clerk.com"),
            ("http://127.0.0.1:4711//v1//", "http://127.0.0.1:4711"),
            ("http://[::1]:4711/clerk/v1", "http://[::1]:4711/clerk"),
            ("http://localhost", "http://localhost"),
        ] {
            let config = with(&[("CLERK_API_URL", written)]);
            assert_eq!(config.clerk_api_url, base, "{written}");
            assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        }
    }

    #[test]
    fn a_key_that_would_travel_unencrypted_is_warned_of_and_a_live_one_does_not_travel() {
        let (url, live) = (("CLERK_API_URL", "http://clerk.internal"), ("CLERK_SECRET_KEY", "sk_live_x"));
        let config = with(&[url, ("CLERK_SECRET_KEY", "sk_test_x")]);
        assert!(config.warnings.concat().contains("CLERK_API_URL is http://"), "{:?}", config.warnings);
        let error = read(&[url, live]).unwrap_err().to_string();
        assert!(error.contains("CLERK_API_URL is http:// to another machine"), "{error}");
        assert!(with(&[("CLERK_API_URL", "http://localhost:9000"), live]).warnings.is_empty());
    }

    #[test]
    fn zero_turns_the_watch_and_the_scheduled_sync_off() {
        for off in ["0", "0s"] {
            let config = with(&[("HEADCOUNT_WATCH", off), ("HEADCOUNT_SYNC_EVERY", off)]);
            assert_eq!((config.watch, config.sync_every), (Duration::ZERO, None));
        }
        let config = with(&[("HEADCOUNT_WATCH", "5s"), ("HEADCOUNT_SYNC_EVERY", "24h")]);
        assert_eq!(config.watch, Duration::from_secs(5));
        assert_eq!(config.sync_every, Some(Duration::from_secs(24 * 3600)));
    }

    #[test]
    fn a_stand_in_takes_clerks_place_whatever_key_is_set() {
        let stand_in =
            |pairs| with(pairs).with_stand_in("http://127.0.0.1:1", Secret::new("sk_test_x"), "ins_x");
        let config = stand_in(&[
            ("CLERK_SECRET_KEY", "sk_live_real"),
            ("CLERK_API_URL", "https://api.clerk.com"),
            ("HEADCOUNT_WATCH_GRACE", "60s"),
            ("HEADCOUNT_SYNC_EVERY", "0"),
        ]);
        assert_eq!(config.clerk_secret_key.unwrap().expose(), "sk_test_x");
        assert_eq!(config.clerk_api_url, "http://127.0.0.1:1");
        assert_eq!(config.clerk_instance.as_deref(), Some("ins_x"));
        assert_eq!((config.watch.as_secs(), config.watch_grace.as_secs()), (10, 60));
        assert_eq!(config.sync_every, None);
        assert_eq!(config.warnings.len(), 1);
        assert!(config.warnings[0].starts_with("CLERK_SECRET_KEY is not used"), "{:?}", config.warnings);
        for pairs in [&[][..], &[("CLERK_SECRET_KEY", "sk_test_x")]] {
            assert!(stand_in(pairs).warnings.is_empty(), "{pairs:?}");
        }
    }
}
