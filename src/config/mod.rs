//! Owns the configuration: environment, then `headcount.toml`, then defaults, all in one table of [`SETTINGS`].
//! Every wrong value is named with a hint. Never prints a secret.
//!
//! `raw` reads what is written and where, `settings` lists them and tells what a mistyped name means, `sync` reads those of
//! Clerk's API.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::{
    address::{self, Database},
    clerk::{self, api},
    failure::Failure,
    net::TrustedProxies,
    ops::OpsTokens,
    queue::{Ladder, QueueConfig},
    rules::{
        subscriptions::tiers::Tiers,
        users::{OnDelete, Policy, Relink},
    },
    secret::Secret,
    store::{Backend, StoreConfig, housekeeping::Retention},
    telemetry::logs::LogFormat,
    worker,
};

mod app;
mod raw;
mod settings;
mod sync;

pub use app::Tokens;
use raw::Raw;
pub use settings::{SETTINGS, Setting};

/// The typed configuration: one field per setting of [`SETTINGS`], in its order.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // Each field is documented by its setting in SETTINGS.
pub struct Config {
    pub signing_secrets: Vec<Secret>,
    pub clerk_secret_key: Option<Secret>,
    /// Without a trailing slash and without `/v1`.
    pub clerk_api_url: String,
    /// What the settings of session tokens come to; `None` where they name no Clerk instance.
    tokens: Option<Tokens>,
    pub amqp_url: Option<Secret>,
    pub database_url: Option<Secret>,
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub trusted_proxies: TrustedProxies,
    pub ops_listen: SocketAddr,
    pub ops_token: Option<Secret>,
    pub ops_look_token: Option<Secret>,
    pub api_listen: SocketAddr,
    pub webhook_path: String,
    pub queue_prefix: String,
    pub retry_delays: Ladder,
    pub schema: String,
    pub relink: Relink,
    pub conflict_patience: u32,
    pub prefetch: u16,
    pub batch_max: usize,
    pub batch_wait: Duration,
    pub on_delete: OnDelete,
    pub default_credits: i64,
    pub keep_clerk_object: bool,
    pub sessions: bool,
    /// `HEADCOUNT_BILLING`, `HEADCOUNT_TIERS` and `HEADCOUNT_PAST_DUE`; `None` is off.
    pub billing: Option<Arc<Tiers>>,
    pub clerk_instance: Option<String>,
    /// Zero is off.
    pub watch: Duration,
    pub watch_grace: Duration,
    /// `None` is off.
    pub sync_every: Option<Duration>,
    pub inbox_retention: Duration,
    pub dead_retention: Duration,
    pub session_retention: Duration,
    pub anonymous_retention: Duration,
    pub rejection_retention: Duration,
    pub drain_limit: Duration,
    pub log_filter: String,
    pub log_format: LogFormat,
    /// What looks like a mistake but can be used, one sentence each.
    pub warnings: Vec<String>,
    /// Which settings are written, of those for which it matters.
    chosen: Chosen,
}

/// The settings that choose the backends, as they are called where they are written, `None` where they are not set; and whether
/// those are set that the demo would choose.
#[derive(Clone, Debug, Default)]
struct Chosen {
    queue: Option<String>,
    store: Option<String>,
    watch: bool,
    watch_grace: bool,
    sync_every: bool,
    api_listen: bool,
}

/// A setting that cannot be used, and what to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{message}")]
pub struct ConfigError {
    /// Names the setting and what is wrong with it. Never holds a secret.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// The error of a variable whose address cannot be used.
fn of(variable: &str, wrong: address::Wrong) -> ConfigError {
    ConfigError { message: format!("{variable} {}", wrong.problem), hint: wrong.hint }
}

fn wrong(message: impl Into<String>, hint: impl Into<String>) -> ConfigError {
    ConfigError { message: message.into(), hint: hint.into() }
}

/// The file in the working directory that is read where it exists.
pub const FILE: &str = "headcount.toml";

impl Config {
    /// Reads the process's environment and `headcount.toml` (or `file`).
    ///
    /// # Errors
    /// The first setting that is wrong, with a hint.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let environment = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        });
        Self::from(environment, file)
    }

    /// Reads an environment given as pairs, and the file.
    ///
    /// # Errors
    /// The first setting that is wrong, with a hint.
    pub fn from(
        environment: impl IntoIterator<Item = (String, String)>,
        file: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        let (raw, mut warnings) = Raw::read(environment, file)?;
        let config = Self::build(&raw)?;
        warnings.extend(config.warnings.iter().cloned());
        Ok(Self { warnings, ..config })
    }

    fn build(raw: &Raw) -> Result<Self, ConfigError> {
        let secret = |variable: &'static str| raw.written(variable).map(Secret::new);
        let address = |variable: &'static str| {
            raw.parse(variable, "write an address and a port, such as 127.0.0.1:8080", |text| {
                text.parse::<SocketAddr>().map_err(|_| "has to be an address with a port".into())
            })
        };
        let mut warnings = Vec::new();
        let mut warn = |variable: &'static str, more: Vec<String>| {
            warnings.extend(more.into_iter().map(|warning| format!("{} {warning}", raw.name(variable))));
        };
        let of = |variable: &'static str, wrong: address::Wrong| of(&raw.name(variable), wrong);
        let (clerk_secret_key, warning) = sync::secret_key(raw)?;
        warn("CLERK_SECRET_KEY", warning.into_iter().collect());
        let (clerk_api_url, warning) = sync::api_url(raw)?;
        warn("CLERK_API_URL", warning.into_iter().collect());
        let (tokens, of_tokens) = app::tokens(raw)?;
        let (billing, of_billing) = app::billing(raw)?;
        let amqp_url = secret("AMQP_URL");
        if let Some(url) = &amqp_url {
            warn("AMQP_URL", address::amqp(url.expose()).map_err(|wrong| of("AMQP_URL", wrong))?.warnings);
        }
        let database_url = secret("DATABASE_URL");
        let database = database_url.as_ref().map(|url| address::database(url.expose())).transpose();
        if let Some(Database::Postgres(address)) = database.map_err(|wrong| of("DATABASE_URL", wrong))? {
            let schema = raw.get("HEADCOUNT_SCHEMA").unwrap_or_default();
            address.agrees(schema).map_err(|wrong| of("DATABASE_URL", wrong))?;
            warn("DATABASE_URL", address.warnings);
        }
        warnings.extend(of_tokens.into_iter().chain(of_billing));
        let day = Duration::from_secs(24 * 3600);
        let config = Self {
            signing_secrets: clerk::secret::list(
                raw.written("CLERK_WEBHOOK_SIGNING_SECRET").unwrap_or_default(),
            )
            .map_err(|bad| wrong(bad.named(&raw.name("CLERK_WEBHOOK_SIGNING_SECRET")), bad.hint))?,
            clerk_secret_key,
            clerk_api_url,
            tokens,
            amqp_url,
            database_url,
            data_dir: raw.get("HEADCOUNT_DATA_DIR").unwrap_or_default().into(),
            listen: address("HEADCOUNT_LISTEN")?,
            trusted_proxies: raw.parse(
                "HEADCOUNT_TRUSTED_PROXIES",
                "write addresses or networks, such as 10.0.0.7,192.0.2.0/24",
                TrustedProxies::parse,
            )?,
            ops_listen: address("HEADCOUNT_OPS_LISTEN")?,
            ops_token: token(raw, "HEADCOUNT_OPS_TOKEN")?,
            ops_look_token: token(raw, "HEADCOUNT_OPS_LOOK_TOKEN")?,
            api_listen: address("HEADCOUNT_API_LISTEN")?,
            webhook_path: raw.parse(
                "HEADCOUNT_WEBHOOK_PATH",
                "write a path such as /webhooks/clerk",
                |text| {
                    // What is sent to /a/../b arrives at /b.
                    let plain = text.starts_with('/')
                        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_-.~".contains(&b))
                        && text.split('/').all(|part| ![".", ".."].contains(&part));
                    plain
                        .then(|| text.to_owned())
                        .ok_or_else(|| "has to start with / and hold plain characters, and neither . nor .. between slashes".into())
                },
            )?,
            queue_prefix: raw.parse(
                "HEADCOUNT_QUEUE_PREFIX",
                "use letters, digits, - and _, 1 to 100 of them",
                |text| {
                    let plain = text.len() <= 100
                        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
                    plain.then(|| text.to_owned()).ok_or_else(|| "has to be a plain name".into())
                },
            )?,
            retry_delays: raw.parse(
                "HEADCOUNT_RETRY_DELAYS",
                "write delays such as 1s,5s,30s,2m,10m,1h",
                |text| {
                    let delays = text.split(',').map(|part| {
                        humantime::parse_duration(part.trim())
                            .map_err(|_| format!("{part:?} has to be a time"))
                    });
                    Ladder::new(delays.collect::<Result<_, _>>()?)
                },
            )?,
            schema: raw.parse(
                "HEADCOUNT_SCHEMA",
                "use lower-case letters, digits and _, 1 to 63 of them",
                |text| {
                    if text == "information_schema" || text.starts_with("pg_") {
                        return Err("has to be another one than PostgreSQL's own".into());
                    }
                    let plain = text.len() <= 63
                        && !text.starts_with(|c: char| c.is_ascii_digit())
                        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
                    plain.then(|| text.to_owned()).ok_or_else(|| "has to be a plain schema name".into())
                },
            )?,
            relink: raw.choice(
                "HEADCOUNT_RELINK",
                &[("deleted", Relink::Deleted), ("match", Relink::Match), ("never", Relink::Never)],
            )?,
            conflict_patience: raw.number("HEADCOUNT_CONFLICT_PATIENCE", 0, 1000)?,
            prefetch: raw.number("HEADCOUNT_PREFETCH", 1, 2000)?,
            batch_max: raw.number("HEADCOUNT_BATCH_MAX", 1, 2000)?,
            batch_wait: raw.duration("HEADCOUNT_BATCH_WAIT", Duration::ZERO, Duration::from_secs(10))?,
            on_delete: raw
                .choice("HEADCOUNT_ON_DELETE", &[("keep", OnDelete::Keep), ("erase", OnDelete::Erase)])?,
            default_credits: raw.number("HEADCOUNT_DEFAULT_CREDITS", i64::MIN, i64::MAX)?,
            keep_clerk_object: raw
                .choice("HEADCOUNT_KEEP_CLERK_OBJECT", &[("true", true), ("false", false)])?,
            sessions: raw.choice("HEADCOUNT_SESSIONS", &[("true", true), ("false", false)])?,
            billing,
            clerk_instance: sync::instance(raw)?,
            watch: raw
                .duration_or_off("HEADCOUNT_WATCH", Duration::from_secs(1), Duration::from_secs(3600))?
                .unwrap_or_default(),
            watch_grace: raw.duration("HEADCOUNT_WATCH_GRACE", Duration::ZERO, Duration::from_secs(3600))?,
            sync_every: raw.duration_or_off("HEADCOUNT_SYNC_EVERY", Duration::from_secs(60), 365 * day)?,
            inbox_retention: raw.duration("HEADCOUNT_INBOX_RETENTION", day, 3650 * day)?,
            dead_retention: raw.duration("HEADCOUNT_DEAD_RETENTION", day, 3650 * day)?,
            session_retention: raw.duration("HEADCOUNT_SESSION_RETENTION", day, 3650 * day)?,
            anonymous_retention: raw.duration("HEADCOUNT_ANONYMOUS_RETENTION", day / 24, 3650 * day)?,
            rejection_retention: raw.duration("HEADCOUNT_REJECTION_RETENTION", day, 3650 * day)?,
            drain_limit: raw.duration(
                "HEADCOUNT_DRAIN_LIMIT",
                Duration::from_secs(1),
                Duration::from_secs(3600),
            )?,
            log_filter: raw.get("RUST_LOG").unwrap_or_default().to_owned(),
            log_format: raw
                .choice("HEADCOUNT_LOG_FORMAT", &[("text", LogFormat::Text), ("json", LogFormat::Json)])?,
            warnings,
            chosen: Chosen {
                queue: raw.written("AMQP_URL").map(|_| raw.name("AMQP_URL")),
                store: raw.written("DATABASE_URL").map(|_| raw.name("DATABASE_URL")),
                watch: raw.written("HEADCOUNT_WATCH").is_some(),
                watch_grace: raw.written("HEADCOUNT_WATCH_GRACE").is_some(),
                sync_every: raw.written("HEADCOUNT_SYNC_EVERY").is_some(),
                api_listen: raw.written("HEADCOUNT_API_LISTEN").is_some(),
            },
        };
        if config.listen == config.ops_listen && config.listen.port() != 0 {
            let (listen, ops_listen) = (raw.name("HEADCOUNT_LISTEN"), raw.name("HEADCOUNT_OPS_LISTEN"));
            return Err(wrong(
                format!("{listen} and {ops_listen} are both {}", config.listen),
                "give each listener a port of its own: operators' pages are never on the public one",
            ));
        }
        for (variable, other) in
            [("HEADCOUNT_LISTEN", config.listen), ("HEADCOUNT_OPS_LISTEN", config.ops_listen)]
        {
            if config.tokens.is_some() && config.api_listen == other && other.port() != 0 {
                let (one, two) = (raw.name("HEADCOUNT_API_LISTEN"), raw.name(variable));
                return Err(wrong(
                    format!("{one} and {two} are both {other}"),
                    "give each listener a port of its own",
                ));
            }
        }
        if !config.ops_listen.ip().is_loopback() && config.ops_token.is_none() {
            return Err(wrong(
                format!(
                    "HEADCOUNT_OPS_LISTEN is {}, which others can reach, and HEADCOUNT_OPS_TOKEN is not set",
                    config.ops_listen
                ),
                "set HEADCOUNT_OPS_TOKEN to a long random value, or listen on 127.0.0.1",
            ));
        }
        if let Some(look) = &config.ops_look_token {
            let (name, operate) = (raw.name("HEADCOUNT_OPS_LOOK_TOKEN"), raw.name("HEADCOUNT_OPS_TOKEN"));
            match &config.ops_token {
                None => {
                    return Err(wrong(
                        format!("{name} is set, and {operate} is not"),
                        "set HEADCOUNT_OPS_TOKEN too: without it anybody on this machine could operate",
                    ));
                }
                Some(token) if token.expose() == look.expose() => {
                    return Err(wrong(
                        format!("{name} and {operate} are the same"),
                        "give each a long random value of its own, such as that of: openssl rand -hex 32",
                    ));
                }
                Some(_) => {}
            }
        }
        Ok(config)
    }

    /// Who may look at the operators' listener, and who may operate.
    pub fn ops_tokens(&self) -> OpsTokens {
        OpsTokens { operate: self.ops_token.clone(), look: self.ops_look_token.clone() }
    }

    /// Which queue is used, and why, for people.
    pub fn queue_choice(&self) -> String {
        match &self.chosen.queue {
            Some(setting) => format!("RabbitMQ, because {setting} is set"),
            None => format!("embedded, in {}, because AMQP_URL is not set", self.data_dir.display()),
        }
    }

    /// Which store is used, and why, for people.
    pub fn store_choice(&self) -> String {
        match (&self.chosen.store, self.store().backend.file()) {
            (Some(setting), None) => format!("PostgreSQL, schema {}, because {setting} is set", self.schema),
            (Some(setting), Some(path)) => {
                format!("embedded, in {}, because {setting} names it", path.display())
            }
            (None, _) => format!("embedded, in {}, because DATABASE_URL is not set", self.data_dir.display()),
        }
    }

    /// The configured queue.
    pub fn queue(&self) -> QueueConfig {
        match &self.amqp_url {
            Some(url) => QueueConfig::RabbitMq {
                url: url.clone(),
                prefix: self.queue_prefix.clone(),
                ladder: self.retry_delays.clone(),
            },
            None => {
                QueueConfig::Embedded { directory: self.data_dir.clone(), ladder: self.retry_delays.clone() }
            }
        }
    }

    /// The configured store.
    pub fn store(&self) -> StoreConfig {
        let backend = match &self.database_url {
            Some(url) => match address::sqlite(url.expose()) {
                Some(path) => Backend::Sqlite { path },
                None => Backend::Postgres { url: url.clone(), schema: self.schema.clone() },
            },
            None => Backend::Sqlite { path: self.data_dir.join("headcount.db") },
        };
        StoreConfig {
            backend,
            policy: Policy { relink: self.relink, on_delete: self.on_delete },
            default_credits: self.default_credits,
            sessions: self.sessions,
            billing: self.billing.clone(),
            // One for each transaction of a worker, and four for readiness, dead letters and people.
            connections: worker::TRANSACTIONS + 4,
        }
    }

    /// The settings of a worker.
    pub fn worker(&self) -> worker::Settings {
        worker::Settings {
            prefetch: self.prefetch,
            batch_max: self.batch_max,
            batch_wait: self.batch_wait,
            patience: self.conflict_patience,
            ladder: self.retry_delays.clone(),
            instance: self.clerk_instance.clone(),
            keep_object: self.keep_clerk_object,
            sessions: self.sessions,
            billing: self.billing.is_some(),
            silence: worker::SILENCE,
        }
    }

    /// How Clerk's API is asked, where there is a key. `patience`: how long a request that fails for a passing reason is tried
    /// again.
    pub fn clerk_api(&self, patience: Duration) -> Option<api::Settings> {
        Some(api::Settings {
            key: self.clerk_secret_key.clone()?,
            url: self.clerk_api_url.clone(),
            rate: None,
            patience,
            keep_object: self.keep_clerk_object,
        })
    }

    /// How long things are kept.
    pub fn retention(&self) -> Retention {
        Retention {
            inbox: self.inbox_retention,
            dead: self.dead_retention,
            sessions: self.session_retention,
            rejections: self.rejection_retention,
        }
    }
}

/// The fewest characters of a token: a shorter one can be guessed.
const TOKEN_LEAST: usize = 8;

/// A token of the operators.
fn token(raw: &Raw, variable: &'static str) -> Result<Option<Secret>, ConfigError> {
    let Some(token) = raw.written(variable) else { return Ok(None) };
    if token.chars().count() < TOKEN_LEAST {
        let name = raw.name(variable);
        return Err(wrong(
            format!("{name} is too short: it has fewer than {TOKEN_LEAST} characters"),
            "use a long random value, such as that of: openssl rand -hex 32",
        ));
    }
    Ok(Some(Secret::new(token)))
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::usage(error.message).hint(error.hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from(
            pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())),
            Some(Path::new("/dev/null")),
        )
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let config = with(&[]).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(config.ops_listen.to_string(), "127.0.0.1:8081");
        assert_eq!(config.retry_delays, Ladder::default());
        assert_eq!(
            (config.prefetch, config.batch_max, config.batch_wait),
            (600, 200, Duration::from_millis(10))
        );
        assert_eq!((config.relink, config.on_delete), (Relink::Deleted, OnDelete::Keep));
        assert!(matches!(config.queue(), QueueConfig::Embedded { .. }));
        assert!(matches!(config.store().backend, Backend::Sqlite { .. }));
    }

    #[test]
    fn every_wrong_value_is_named_with_a_hint() {
        let cases = [
            ("CLERK_WEBHOOK_SIGNING_SECRET", "hunter2"),
            ("AMQP_URL", "http://localhost"),
            ("AMQP_URL", "amqp://user:p a/ss@host:port"),
            ("DATABASE_URL", "mysql://localhost"),
            ("DATABASE_URL", "sqlite::memory:"),
            ("HEADCOUNT_LISTEN", "8080"),
            ("HEADCOUNT_TRUSTED_PROXIES", "proxy.example"),
            ("HEADCOUNT_OPS_LISTEN", "0.0.0.0:8081"),
            ("HEADCOUNT_OPS_LISTEN", "127.0.0.1:8080"),
            ("HEADCOUNT_WEBHOOK_PATH", "hooks"),
            ("HEADCOUNT_WEBHOOK_PATH", "/a/../hooks"),
            ("HEADCOUNT_QUEUE_PREFIX", "a b"),
            ("HEADCOUNT_RETRY_DELAYS", "1s,soon"),
            ("HEADCOUNT_RETRY_DELAYS", "1s,8d"),
            ("HEADCOUNT_SCHEMA", "Public"),
            ("HEADCOUNT_SCHEMA", "information_schema"),
            ("HEADCOUNT_SCHEMA", "pg_catalog"),
            ("HEADCOUNT_OPS_TOKEN", "short"),
            ("HEADCOUNT_RELINK", "always"),
            ("HEADCOUNT_CONFLICT_PATIENCE", "-1"),
            ("HEADCOUNT_PREFETCH", "0"),
            ("HEADCOUNT_BATCH_MAX", "many"),
            ("HEADCOUNT_BATCH_WAIT", "10"),
            ("HEADCOUNT_ON_DELETE", "drop"),
            ("HEADCOUNT_DEFAULT_CREDITS", "1.5"),
            ("CLERK_SECRET_KEY", "pk_live_Y2xlcmsuZXhhbXBsZS5jb20k"),
            ("CLERK_SECRET_KEY", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
            ("CLERK_SECRET_KEY", "sk_live_abc def"),
            ("CLERK_SECRET_KEY", "sk_live_…"),
            ("CLERK_SECRET_KEY", "sk_live_"),
            ("CLERK_API_URL", "api.clerk.com"),
            ("CLERK_API_URL", "ftp://api.clerk.com"),
            ("CLERK_API_URL", "https://sk_live_abc@api.clerk.com"),
            ("CLERK_API_URL", "https://api.clerk.com/v1/users?limit=1"),
            ("CLERK_API_URL", "https://api.clerk.com/v1/users"),
            ("HEADCOUNT_CLERK_INSTANCE", "app_2abc"),
            ("HEADCOUNT_CLERK_INSTANCE", "ins_"),
            ("HEADCOUNT_CLERK_INSTANCE", "ins_a b"),
            ("HEADCOUNT_WATCH", "500ms"),
            ("HEADCOUNT_WATCH", "2h"),
            ("HEADCOUNT_WATCH_GRACE", "2h"),
            ("HEADCOUNT_SYNC_EVERY", "30s"),
            ("HEADCOUNT_SYNC_EVERY", "366d"),
            ("HEADCOUNT_KEEP_CLERK_OBJECT", "yes"),
            ("HEADCOUNT_BILLING", "on"),
            ("HEADCOUNT_TIERS", "pro=a=b"),
            ("HEADCOUNT_TIERS", "pro,pro"),
            ("HEADCOUNT_PAST_DUE", "maybe"),
            ("HEADCOUNT_INBOX_RETENTION", "0s"),
            ("HEADCOUNT_DRAIN_LIMIT", "0s"),
            ("HEADCOUNT_LOG_FORMAT", "xml"),
        ];
        for (variable, value) in cases {
            let error = with(&[(variable, value)]).expect_err(variable);
            assert!(error.message.contains(variable), "{variable}: {}", error.message);
            assert!(!error.hint.is_empty(), "{variable}");
        }
    }

    #[test]
    fn an_error_never_shows_a_secret() {
        for (variable, value) in [
            ("CLERK_WEBHOOK_SIGNING_SECRET", "hunter2"),
            ("CLERK_SECRET_KEY", "whsec_hunter2"),
            ("CLERK_SECRET_KEY", "sk_live_hunter2\u{7f}x"),
            ("CLERK_API_URL", "https://app:hunter2@host"),
            ("CLERK_API_URL", "https://host/?key=hunter2"),
            ("HEADCOUNT_OPS_TOKEN", "hunter2"),
            ("AMQP_URL", "hunter2"),
            ("DATABASE_URL", "postgres://app:hunter2@host:port/db"),
        ] {
            let error = with(&[(variable, value)]).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
        let config =
            with(&[("HEADCOUNT_OPS_TOKEN", "hunter2 hunter2 hunter2"), ("CLERK_SECRET_KEY", "hunter2")])
                .unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn a_mistyped_name_points_to_the_right_one() {
        let config = with(&[
            ("HEADCOUNT_PREFECH", "600"),
            ("HEADCOUNT_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("HEADCOUNT_ERASE", "1"),
            ("AMPQ_URL", "amqp://localhost"),
            ("DATABASE_URI", "postgres://localhost/app"),
            // Other software's: ours is set.
            ("CLERK_WEBHOOK_SECRET", "hunter2"),
            ("CLERK_WEBHOOK_SIGNING_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        ]);
        assert_eq!(
            config.unwrap().warnings,
            [
                "AMPQ_URL is not a setting; did you mean AMQP_URL?",
                "DATABASE_URI is not a setting; did you mean DATABASE_URL?",
                "HEADCOUNT_ERASE is not a setting",
                "HEADCOUNT_PREFECH is not a setting; did you mean HEADCOUNT_PREFETCH?",
            ]
        );
    }

    #[test]
    fn the_choice_of_the_backends_is_told_with_its_reason() {
        let config = with(&[("HEADCOUNT_DATA_DIR", "/data")]).unwrap();
        assert_eq!(config.queue_choice(), "embedded, in /data, because AMQP_URL is not set");
        assert_eq!(config.store_choice(), "embedded, in /data, because DATABASE_URL is not set");
        let config = with(&[("AMQP_URL", "amqp://localhost"), ("DATABASE_URL", "sqlite:///a.db")]).unwrap();
        assert_eq!(config.queue_choice(), "RabbitMQ, because AMQP_URL is set");
        assert_eq!(config.store_choice(), "embedded, in /a.db, because DATABASE_URL names it");
        let config = in_file("database_url = \"postgres://localhost/app\"", &[("HEADCOUNT_SCHEMA", "mine")]);
        let choice = config.unwrap().store_choice();
        assert!(choice.starts_with("PostgreSQL, schema mine, because "), "{choice}");
        assert!(choice.ends_with("headcount.toml: database_url is set"), "{choice}");
    }

    fn in_file(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE);
        std::fs::write(&file, text).unwrap();
        let pairs = environment.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Config::from(pairs, Some(&file))
    }

    #[test]
    fn the_environment_goes_before_the_file() {
        let text = "listen = \"127.0.0.1:1\"\nprefetch = 7\n";
        let config = in_file(text, &[("HEADCOUNT_LISTEN", "127.0.0.1:2")]).unwrap();
        assert_eq!((config.listen.port(), config.prefetch), (2, 7));
    }

    #[test]
    fn an_error_in_the_file_names_the_file_its_line_and_its_key() {
        for (text, said, hint) in [
            ("prefetch = 0", "headcount.toml: prefetch is \"0\": has to be", "plain number"),
            ("prefetch = 1.5", "headcount.toml: prefetch is a number with a fraction", "string"),
            ("listen = [1]", "headcount.toml: listen is a list of other things than strings", "string"),
            ("[listen]\nport = 1", "headcount.toml: listen is a table", "string"),
            ("schema = true", "headcount.toml: schema is true or false", "string"),
            ("keep_clerk_object = 1", "headcount.toml: keep_clerk_object is \"1\"", "true or false"),
            (
                "\nlisten = 127.0.0.1:80",
                "headcount.toml, line 2 (listen), is not valid TOML",
                "lines such as",
            ),
            ("\n\nhunter2", "headcount.toml, line 3, is not valid TOML", "lines such as"),
            ("log = \"a\"\nlog = \"b\"", "headcount.toml, line 2 (log), is not valid TOML", "lines such as"),
            ("lisen = \"x\"", "headcount.toml: lisen is not a setting", "did you mean listen?"),
            ("DATABASE_URL = \"x\"", "headcount.toml: DATABASE_URL is not a setting", "mean database_url?"),
            ("inbox_retention = \"1h\"", "has to be between 1d and 3650d", "14d"),
            ("batch_wait = \"soon\"", "batch_wait is \"soon\": has to be a time", "10ms"),
            ("listen = \"8080\"", "listen is \"8080\": has to be an address with a port", "127.0.0.1:8080"),
            ("schema = \"pg_x\"", "schema is \"pg_x\": has to be another one", "lower-case"),
            ("queue_prefix = \"a b\"", "queue_prefix is \"a b\": has to be a plain name", "letters"),
        ] {
            let error = in_file(text, &[]).expect_err(text);
            assert!(error.message.contains(said), "{text}: {}", error.message);
            assert!(error.hint.contains(hint), "{text}: {}", error.hint);
            assert!(!error.message.contains("hunter2"), "{}", error.message);
        }
    }

    #[test]
    fn a_file_that_leads_nowhere_is_no_missing_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE);
        assert!(Raw::read([], Some(&file)).is_err(), "it was asked for");
        std::os::unix::fs::symlink(directory.path().join("nowhere"), &file).unwrap();
        let mut raw = Raw::at(&file);
        let error = raw.read_file(false).unwrap_err();
        assert!(error.message.contains("cannot be read"), "{}", error.message);
        std::fs::remove_file(&file).unwrap();
        raw.read_file(false).unwrap();
    }

    #[test]
    fn quotes_around_a_value_are_named() {
        for (variable, value) in [
            ("HEADCOUNT_LISTEN", "\"127.0.0.1:8080\""),
            ("AMQP_URL", "'amqp://app:hunter2@localhost'"),
            ("CLERK_WEBHOOK_SIGNING_SECRET", "\"whsec_hunter2\""),
        ] {
            let error = with(&[(variable, value)]).unwrap_err();
            assert_eq!(error.message, format!("{variable} has quotes around its value"));
        }
    }
}
