//! Owns the configuration: environment, then `headcount.toml`, then defaults, all in one table of settings.
//! Every wrong value is named with a hint. Never prints a secret.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    address::{self, Database},
    http::TrustedProxies,
    queue::{Ladder, QueueConfig},
    roster::{OnDelete, Policy, Relink},
    store::{Backend, StoreConfig},
};

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes it in.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// Hands it to what needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The typed configuration: one field per setting of [`SETTINGS`], in its order.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // Each field is documented by its setting in SETTINGS.
pub struct Config {
    pub signing_secrets: Vec<Secret>,
    pub amqp_url: Option<Secret>,
    pub database_url: Option<Secret>,
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub trusted_proxies: TrustedProxies,
    pub ops_listen: SocketAddr,
    pub ops_token: Option<Secret>,
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
    pub inbox_retention: Duration,
    pub dead_retention: Duration,
    pub rejection_retention: Duration,
    pub drain_limit: Duration,
    pub log_filter: String,
    pub log_format: LogFormat,
    /// What looks like a mistake and is none for sure.
    pub warnings: Vec<String>,
}

/// One setting: its variable, its default, and what it means.
#[derive(Debug)]
pub struct Setting {
    /// The environment variable.
    pub variable: &'static str,
    /// The key in `headcount.toml`.
    pub key: &'static str,
    /// As it would be written; empty for unset.
    pub default: &'static str,
}

/// Every setting, in the order of the documentation.
pub const SETTINGS: &[Setting] = &[
    Setting { variable: "CLERK_WEBHOOK_SIGNING_SECRET", key: "clerk_webhook_signing_secret", default: "" },
    Setting { variable: "AMQP_URL", key: "amqp_url", default: "" },
    Setting { variable: "DATABASE_URL", key: "database_url", default: "" },
    Setting { variable: "HEADCOUNT_DATA_DIR", key: "data_dir", default: ".headcount" },
    Setting { variable: "HEADCOUNT_LISTEN", key: "listen", default: "127.0.0.1:8080" },
    Setting { variable: "HEADCOUNT_TRUSTED_PROXIES", key: "trusted_proxies", default: "" },
    Setting { variable: "HEADCOUNT_OPS_LISTEN", key: "ops_listen", default: "127.0.0.1:8081" },
    Setting { variable: "HEADCOUNT_OPS_TOKEN", key: "ops_token", default: "" },
    Setting { variable: "HEADCOUNT_WEBHOOK_PATH", key: "webhook_path", default: "/webhooks/clerk" },
    Setting { variable: "HEADCOUNT_QUEUE_PREFIX", key: "queue_prefix", default: "headcount" },
    Setting { variable: "HEADCOUNT_RETRY_DELAYS", key: "retry_delays", default: "1s,5s,30s,2m,10m,1h" },
    Setting { variable: "HEADCOUNT_SCHEMA", key: "schema", default: "public" },
    Setting { variable: "HEADCOUNT_RELINK", key: "relink", default: "deleted" },
    Setting { variable: "HEADCOUNT_CONFLICT_PATIENCE", key: "conflict_patience", default: "3" },
    Setting { variable: "HEADCOUNT_PREFETCH", key: "prefetch", default: "600" },
    Setting { variable: "HEADCOUNT_BATCH_MAX", key: "batch_max", default: "200" },
    Setting { variable: "HEADCOUNT_BATCH_WAIT", key: "batch_wait", default: "10ms" },
    Setting { variable: "HEADCOUNT_ON_DELETE", key: "on_delete", default: "keep" },
    Setting { variable: "HEADCOUNT_DEFAULT_CREDITS", key: "default_credits", default: "10000" },
    Setting { variable: "HEADCOUNT_INBOX_RETENTION", key: "inbox_retention", default: "14d" },
    Setting { variable: "HEADCOUNT_DEAD_RETENTION", key: "dead_retention", default: "90d" },
    Setting { variable: "HEADCOUNT_REJECTION_RETENTION", key: "rejection_retention", default: "7d" },
    Setting { variable: "HEADCOUNT_DRAIN_LIMIT", key: "drain_limit", default: "25s" },
    Setting { variable: "RUST_LOG", key: "log", default: "info" },
    Setting { variable: "HEADCOUNT_LOG_FORMAT", key: "log_format", default: "text" },
];

/// A setting that cannot be used, and what to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{message}")]
pub struct ConfigError {
    /// Names the setting and what is wrong with it. Never holds a secret.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// An address that cannot be used, of a variable.
fn of(variable: &str, wrong: address::Wrong) -> ConfigError {
    ConfigError { message: format!("{variable} {}", wrong.problem), hint: wrong.hint }
}

fn wrong(message: impl Into<String>, hint: impl Into<String>) -> ConfigError {
    ConfigError { message: message.into(), hint: hint.into() }
}

/// The values as written, by variable, with where each came from.
#[derive(Debug, Default)]
struct Raw {
    values: HashMap<&'static str, String>,
}

impl Raw {
    /// The written value, else the default; `None` where both are empty.
    fn get(&self, variable: &'static str) -> Option<String> {
        let written =
            self.values.get(variable).map(String::as_str).map(str::trim).filter(|text| !text.is_empty());
        let default = SETTINGS
            .iter()
            .find(|setting| setting.variable == variable)
            .map_or("", |setting| setting.default);
        written.or(Some(default)).filter(|text| !text.is_empty()).map(str::to_owned)
    }

    fn parse<T>(
        &self,
        variable: &'static str,
        hint: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        let text = self.get(variable).unwrap_or_default();
        parse(&text).map_err(|problem| wrong(format!("{variable} is {text:?}: {problem}"), hint))
    }

    fn duration(
        &self,
        variable: &'static str,
        least: Duration,
        most: Duration,
    ) -> Result<Duration, ConfigError> {
        self.parse(variable, "write a time such as 10ms, 25s, 5m, 1h or 14d", |text| {
            let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
            if duration < least || duration > most {
                let (least, most) = (humantime::format_duration(least), humantime::format_duration(most));
                return Err(format!("has to be between {least} and {most}"));
            }
            Ok(duration)
        })
    }

    fn number<T: TryFrom<i64>>(
        &self,
        variable: &'static str,
        least: i64,
        most: i64,
    ) -> Result<T, ConfigError> {
        let problem = format!("has to be a whole number between {least} and {most}");
        self.parse(variable, "write a plain number", |text| {
            let number: i64 = text.parse().map_err(|_| problem.clone())?;
            if number < least || number > most {
                return Err(problem.clone());
            }
            T::try_from(number).map_err(|_| problem.clone())
        })
    }
}

/// The name of the file that is read where it exists, in the working directory.
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
        let mut raw = Raw { values: read_file(file)? };
        let mut warnings = Vec::new();
        for (name, value) in environment {
            if let Some(setting) = SETTINGS.iter().find(|setting| setting.variable == name) {
                raw.values.insert(setting.variable, value);
            } else if name.starts_with("HEADCOUNT_")
                && let Some(near) = nearest(&name)
            {
                // No error: Kubernetes, for one, sets HEADCOUNT_PORT and the like for a service called headcount.
                warnings.push(format!("{name} is not a setting; did you mean {near}?"));
            }
        }
        let config = Self::build(&raw)?;
        warnings.extend(config.warnings.iter().cloned());
        Ok(Self { warnings, ..config })
    }

    fn build(raw: &Raw) -> Result<Self, ConfigError> {
        let secret = |variable| raw.get(variable).map(Secret::new);
        let address = |variable| {
            raw.parse(variable, "write an address and a port, such as 127.0.0.1:8080", |text| {
                text.parse::<SocketAddr>().map_err(|_| "is not an address with a port".into())
            })
        };
        let mut warnings = Vec::new();
        let mut warn = |variable: &str, more: Vec<String>| {
            warnings.extend(more.into_iter().map(|warning| format!("{variable} {warning}")));
        };
        let amqp_url = secret("AMQP_URL");
        if let Some(url) = &amqp_url {
            warn("AMQP_URL", address::amqp(url.expose()).map_err(|wrong| of("AMQP_URL", wrong))?.warnings);
        }
        let database_url = secret("DATABASE_URL");
        let database = database_url.as_ref().map(|url| address::database(url.expose())).transpose();
        if let Some(Database::Postgres(address)) = database.map_err(|wrong| of("DATABASE_URL", wrong))? {
            let schema = raw.get("HEADCOUNT_SCHEMA").unwrap_or_default();
            address.agrees(&schema).map_err(|wrong| of("DATABASE_URL", wrong))?;
            warn("DATABASE_URL", address.warnings);
        }
        let day = Duration::from_secs(24 * 3600);
        let config = Self {
            signing_secrets: signing_secrets(raw.get("CLERK_WEBHOOK_SIGNING_SECRET").as_deref())?,
            amqp_url,
            database_url,
            data_dir: PathBuf::from(raw.get("HEADCOUNT_DATA_DIR").unwrap_or_default()),
            listen: address("HEADCOUNT_LISTEN")?,
            trusted_proxies: raw.parse(
                "HEADCOUNT_TRUSTED_PROXIES",
                "write addresses or networks, such as 10.0.0.7,192.0.2.0/24",
                TrustedProxies::parse,
            )?,
            ops_listen: address("HEADCOUNT_OPS_LISTEN")?,
            ops_token: secret("HEADCOUNT_OPS_TOKEN"),
            webhook_path: raw.parse(
                "HEADCOUNT_WEBHOOK_PATH",
                "write a path such as /webhooks/clerk",
                |text| {
                    let plain = text.starts_with('/')
                        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_-.~".contains(&b));
                    plain
                        .then(|| text.to_owned())
                        .ok_or_else(|| "has to start with / and hold plain characters".into())
                },
            )?,
            queue_prefix: raw.parse(
                "HEADCOUNT_QUEUE_PREFIX",
                "use letters, digits, - and _, 1 to 100 of them",
                |text| {
                    let plain = text.len() <= 100
                        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
                    plain.then(|| text.to_owned()).ok_or_else(|| "is not a plain name".into())
                },
            )?,
            retry_delays: raw.parse(
                "HEADCOUNT_RETRY_DELAYS",
                "write delays such as 1s,5s,30s,2m,10m,1h",
                |text| {
                    let delays = text.split(',').map(|part| {
                        humantime::parse_duration(part.trim()).map_err(|error| format!("{part:?}: {error}"))
                    });
                    Ladder::new(delays.collect::<Result<_, _>>()?)
                },
            )?,
            schema: raw.parse(
                "HEADCOUNT_SCHEMA",
                "use lower-case letters, digits and _, 1 to 63 of them",
                |text| {
                    let plain = text.len() <= 63
                        && !text.starts_with(|c: char| c.is_ascii_digit())
                        && !text.starts_with("pg_")
                        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
                    plain.then(|| text.to_owned()).ok_or_else(|| "is not a plain schema name".into())
                },
            )?,
            relink: raw.parse("HEADCOUNT_RELINK", "use deleted, match or never", |text| match text {
                "deleted" => Ok(Relink::Deleted),
                "match" => Ok(Relink::Match),
                "never" => Ok(Relink::Never),
                _ => Err("is none of the choices".into()),
            })?,
            conflict_patience: raw.number("HEADCOUNT_CONFLICT_PATIENCE", 0, 1000)?,
            prefetch: raw.number("HEADCOUNT_PREFETCH", 1, 2000)?,
            batch_max: raw.number("HEADCOUNT_BATCH_MAX", 1, 2000)?,
            batch_wait: raw.duration("HEADCOUNT_BATCH_WAIT", Duration::ZERO, Duration::from_secs(10))?,
            on_delete: raw.parse("HEADCOUNT_ON_DELETE", "use keep or erase", |text| match text {
                "keep" => Ok(OnDelete::Keep),
                "erase" => Ok(OnDelete::Erase),
                _ => Err("is none of the choices".into()),
            })?,
            default_credits: raw.number("HEADCOUNT_DEFAULT_CREDITS", i64::MIN, i64::MAX)?,
            inbox_retention: raw.duration("HEADCOUNT_INBOX_RETENTION", day, 3650 * day)?,
            dead_retention: raw.duration("HEADCOUNT_DEAD_RETENTION", day, 3650 * day)?,
            rejection_retention: raw.duration("HEADCOUNT_REJECTION_RETENTION", day, 3650 * day)?,
            drain_limit: raw.duration(
                "HEADCOUNT_DRAIN_LIMIT",
                Duration::from_secs(1),
                Duration::from_secs(3600),
            )?,
            log_filter: raw.get("RUST_LOG").unwrap_or_default(),
            log_format: raw.parse("HEADCOUNT_LOG_FORMAT", "use text or json", |text| match text {
                "text" => Ok(LogFormat::Text),
                "json" => Ok(LogFormat::Json),
                _ => Err("is none of the choices".into()),
            })?,
            warnings,
        };
        if !config.ops_listen.ip().is_loopback() && config.ops_token.is_none() {
            return Err(wrong(
                format!(
                    "HEADCOUNT_OPS_LISTEN is {}, which others can reach, and HEADCOUNT_OPS_TOKEN is not set",
                    config.ops_listen
                ),
                "set HEADCOUNT_OPS_TOKEN to a long random value, or listen on 127.0.0.1",
            ));
        }
        Ok(config)
    }

    /// The queue that is configured.
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

    /// The store that is configured.
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
            // Each transaction of a worker's has its own, and some are left for readiness, dead letters and people.
            connections: crate::worker::TRANSACTIONS + 4,
        }
    }
}

/// The signing secrets, checked; none where unset.
fn signing_secrets(text: Option<&str>) -> Result<Vec<Secret>, ConfigError> {
    let hint = "copy it from the endpoint's page in the Clerk dashboard; it starts with whsec_, several are separated by commas";
    let mut secrets = Vec::new();
    for (index, part) in
        text.unwrap_or_default().split(',').map(str::trim).filter(|part| !part.is_empty()).enumerate()
    {
        if !part.starts_with("whsec_") || svix::webhooks::Webhook::new(part).is_err() {
            return Err(wrong(
                format!("CLERK_WEBHOOK_SIGNING_SECRET: value {} is not a signing secret", index + 1),
                hint,
            ));
        }
        secrets.push(Secret::new(part));
    }
    Ok(secrets)
}

fn read_file(file: Option<&Path>) -> Result<HashMap<&'static str, String>, ConfigError> {
    let path = file.unwrap_or(Path::new(FILE));
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => {
            return Ok(HashMap::new());
        }
        Err(error) => {
            return Err(wrong(
                format!("{} cannot be read: {error}", path.display()),
                "check the path and its permissions",
            ));
        }
    };
    let table: BTreeMap<String, toml::Value> = toml::from_str(&text).map_err(|error| {
        // The message alone: the error's rendering would quote the line, which may hold a secret.
        wrong(
            format!("{} is not valid TOML: {}", path.display(), error.message()),
            "write lines such as  listen = \"127.0.0.1:8080\"",
        )
    })?;
    let mut values = HashMap::new();
    for (key, value) in table {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
            let hint = nearest(&key).map_or_else(
                || "see the headcount.toml that headcount ships with".into(),
                |near| format!("did you mean {near}?"),
            );
            return Err(wrong(format!("{}: {key} is not a setting", path.display()), hint));
        };
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Array(parts) if parts.iter().all(toml::Value::is_str) => {
                parts.iter().filter_map(toml::Value::as_str).collect::<Vec<_>>().join(",")
            }
            other => {
                let problem = format!("{}: {key} is a {}", path.display(), other.type_str());
                return Err(wrong(problem, "write it as a string in quotes, or a number"));
            }
        };
        values.insert(setting.variable, text);
    }
    Ok(values)
}

/// The setting that a mistyped name probably means.
fn nearest(name: &str) -> Option<&'static str> {
    let wanted = name.to_lowercase();
    SETTINGS
        .iter()
        .flat_map(|setting| [setting.variable, setting.key])
        .map(|known| (distance(&wanted, &known.to_lowercase()), known))
        .min()
        .filter(|(distance, _)| *distance <= 3)
        .map(|(_, known)| known)
}

/// Edit distance (Levenshtein) between two short names.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
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
            ("HEADCOUNT_WEBHOOK_PATH", "hooks"),
            ("HEADCOUNT_QUEUE_PREFIX", "a b"),
            ("HEADCOUNT_RETRY_DELAYS", "1s,soon"),
            ("HEADCOUNT_RETRY_DELAYS", "1s,1s"),
            ("HEADCOUNT_SCHEMA", "Public"),
            ("HEADCOUNT_RELINK", "always"),
            ("HEADCOUNT_CONFLICT_PATIENCE", "-1"),
            ("HEADCOUNT_PREFETCH", "0"),
            ("HEADCOUNT_BATCH_MAX", "many"),
            ("HEADCOUNT_BATCH_WAIT", "10"),
            ("HEADCOUNT_ON_DELETE", "drop"),
            ("HEADCOUNT_DEFAULT_CREDITS", "1.5"),
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
            ("AMQP_URL", "hunter2"),
            ("DATABASE_URL", "postgres://app:hunter2@host:port/db"),
        ] {
            let error = with(&[(variable, value)]).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
        let config = with(&[("HEADCOUNT_OPS_TOKEN", "hunter2")]).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn a_mistyped_name_points_to_the_right_one() {
        let config =
            with(&[("HEADCOUNT_PREFECH", "600"), ("HEADCOUNT_PORT_8080_TCP_ADDR", "10.0.0.1")]).unwrap();
        assert_eq!(config.warnings, ["HEADCOUNT_PREFECH is not a setting; did you mean HEADCOUNT_PREFETCH?"]);
    }

    #[test]
    fn the_environment_goes_before_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE);
        std::fs::write(&file, "listen = \"127.0.0.1:1\"\nprefetch = 7\n").unwrap();
        let config = Config::from([("HEADCOUNT_LISTEN".into(), "127.0.0.1:2".into())], Some(&file)).unwrap();
        assert_eq!((config.listen.port(), config.prefetch), (2, 7));
        std::fs::write(&file, "lisen = \"127.0.0.1:1\"\n").unwrap();
        assert_eq!(Config::from([], Some(&file)).unwrap_err().hint, "did you mean listen?");
    }
}
