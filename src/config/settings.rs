//! Owns the table of settings, every variable with its key in the file and its default, and what a mistyped name of one
//! means. Pure. `tests/docs.rs` compares the table with the documentation.

use strsim::osa_distance;

/// One setting. The documentation says what it means.
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
    Setting { variable: "CLERK_SECRET_KEY", key: "clerk_secret_key", default: "" },
    Setting { variable: "CLERK_API_URL", key: "clerk_api_url", default: "https://api.clerk.com" },
    Setting { variable: "CLERK_PUBLISHABLE_KEY", key: "clerk_publishable_key", default: "" },
    Setting { variable: "CLERK_JWT_ISSUER_DOMAIN", key: "clerk_jwt_issuer_domain", default: "" },
    Setting { variable: "CLERK_JWT_KEY", key: "clerk_jwt_key", default: "" },
    Setting { variable: "CLERK_JWKS_URL", key: "clerk_jwks_url", default: "" },
    Setting { variable: "AMQP_URL", key: "amqp_url", default: "" },
    Setting { variable: "DATABASE_URL", key: "database_url", default: "" },
    Setting { variable: "HEADCOUNT_DATA_DIR", key: "data_dir", default: ".headcount" },
    Setting { variable: "HEADCOUNT_LISTEN", key: "listen", default: "127.0.0.1:8080" },
    Setting { variable: "HEADCOUNT_TRUSTED_PROXIES", key: "trusted_proxies", default: "" },
    Setting { variable: "HEADCOUNT_OPS_LISTEN", key: "ops_listen", default: "127.0.0.1:8081" },
    Setting { variable: "HEADCOUNT_OPS_TOKEN", key: "ops_token", default: "" },
    Setting { variable: "HEADCOUNT_OPS_LOOK_TOKEN", key: "ops_look_token", default: "" },
    Setting { variable: "HEADCOUNT_API_LISTEN", key: "api_listen", default: "127.0.0.1:8082" },
    Setting { variable: "HEADCOUNT_AUTHORIZED_PARTIES", key: "authorized_parties", default: "" },
    Setting { variable: "HEADCOUNT_ALLOW_MISSING_AZP", key: "allow_missing_azp", default: "false" },
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
    Setting { variable: "HEADCOUNT_KEEP_CLERK_OBJECT", key: "keep_clerk_object", default: "false" },
    Setting { variable: "HEADCOUNT_SESSIONS", key: "sessions", default: "true" },
    Setting { variable: "HEADCOUNT_BILLING", key: "billing", default: "off" },
    Setting { variable: "HEADCOUNT_TIERS", key: "tiers", default: "" },
    Setting { variable: "HEADCOUNT_PAST_DUE", key: "past_due", default: "keep" },
    Setting { variable: "HEADCOUNT_CLERK_INSTANCE", key: "clerk_instance", default: "" },
    Setting { variable: "HEADCOUNT_WATCH", key: "watch", default: "60s" },
    Setting { variable: "HEADCOUNT_WATCH_GRACE", key: "watch_grace", default: "60s" },
    Setting { variable: "HEADCOUNT_SYNC_EVERY", key: "sync_every", default: "" },
    Setting { variable: "HEADCOUNT_INBOX_RETENTION", key: "inbox_retention", default: "14d" },
    Setting { variable: "HEADCOUNT_DEAD_RETENTION", key: "dead_retention", default: "90d" },
    Setting { variable: "HEADCOUNT_SESSION_RETENTION", key: "session_retention", default: "90d" },
    Setting { variable: "HEADCOUNT_ANONYMOUS_RETENTION", key: "anonymous_retention", default: "30d" },
    Setting { variable: "HEADCOUNT_REJECTION_RETENTION", key: "rejection_retention", default: "7d" },
    Setting { variable: "HEADCOUNT_DRAIN_LIMIT", key: "drain_limit", default: "25s" },
    Setting { variable: "RUST_LOG", key: "log", default: "info" },
    Setting { variable: "HEADCOUNT_LOG_FORMAT", key: "log_format", default: "text" },
];

/// A name that other tools give a setting, and that counts where the setting's own is not there.
pub(super) const SYNONYMS: [(&str, &str); 1] =
    [("NEXT_PUBLIC_CLERK_PUBLISHABLE_KEY", "CLERK_PUBLISHABLE_KEY")];

/// Names of other software that look like a mistyped one of ours.
const OTHERS: [&str; 1] = ["CLERK_JS_URL"];

/// Names that other tools use for the same thing, or that people are likely to guess.
const ALIASES: [(&str, &[&str]); 8] = [
    (
        "CLERK_WEBHOOK_SIGNING_SECRET",
        &[
            "CLERK_WEBHOOK_SECRET",
            "CLERK_WEBHOOK_SECRET_KEY",
            "CLERK_WEBHOOK_KEY",
            "CLERK_SIGNING_SECRET",
            "CLERK_SVIX_SECRET",
            "SVIX_SECRET",
            "SVIX_SIGNING_SECRET",
            "SVIX_WEBHOOK_SECRET",
            "WEBHOOK_SECRET",
            "WEBHOOK_SIGNING_SECRET",
            "SIGNING_SECRET",
            "HEADCOUNT_SIGNING_SECRET",
            "HEADCOUNT_WEBHOOK_SECRET",
        ],
    ),
    (
        "CLERK_SECRET_KEY",
        &[
            "CLERK_SECRET",
            "CLERK_KEY",
            "CLERK_API_KEY",
            "CLERK_API_SECRET",
            "CLERK_API_SECRET_KEY",
            "CLERK_BACKEND_API_KEY",
            "HEADCOUNT_CLERK_KEY",
            "HEADCOUNT_CLERK_API_KEY",
        ],
    ),
    (
        "CLERK_API_URL",
        &[
            "CLERK_API",
            "CLERK_API_BASE_URL",
            "CLERK_BACKEND_API_URL",
            "CLERK_BAPI_URL",
            "CLERK_BASE_URL",
            "CLERK_URL",
            "HEADCOUNT_CLERK_URL",
        ],
    ),
    (
        "HEADCOUNT_CLERK_INSTANCE",
        &["CLERK_INSTANCE", "CLERK_INSTANCE_ID", "HEADCOUNT_INSTANCE", "HEADCOUNT_INSTANCE_ID"],
    ),
    (
        "AMQP_URL",
        &[
            "AMQP_ADDR",
            "AMQP_ADDRESS",
            "AMQPS_URL",
            "BROKER_URL",
            "CLOUDAMQP_URL",
            "RABBIT_URL",
            "RABBITMQ_URL",
            "RABBITMQ_URI",
            "HEADCOUNT_AMQP_URL",
            "HEADCOUNT_RABBITMQ_URL",
            "HEADCOUNT_QUEUE_URL",
        ],
    ),
    (
        "DATABASE_URL",
        &[
            "DATABASE_DSN",
            "DB_URL",
            "DB_URI",
            "PG_URL",
            "POSTGRES_URL",
            "POSTGRES_URI",
            "POSTGRESQL_URL",
            "POSTGRESQL_URI",
            "HEADCOUNT_DATABASE_URL",
            "HEADCOUNT_DB_URL",
        ],
    ),
    ("RUST_LOG", &["HEADCOUNT_LOG", "HEADCOUNT_LOG_LEVEL", "HEADCOUNT_LOG_FILTER", "LOG_LEVEL"]),
    ("HEADCOUNT_LISTEN", &["HEADCOUNT_BIND", "HEADCOUNT_ADDR", "HEADCOUNT_ADDRESS", "HEADCOUNT_HTTP_LISTEN"]),
];

/// Whether a name is one that Kubernetes sets in each container for a service called headcount or headcount-….
pub(super) fn is_of_kubernetes(name: &str) -> bool {
    name.ends_with("_PORT") || name.contains("_PORT_") || name.contains("_SERVICE_")
}

/// The variable that a name in the environment probably means; `None` where it belongs to other software.
pub(super) fn variable(name: &str) -> Option<&'static str> {
    let name = name.to_uppercase();
    if OTHERS.contains(&name.as_str()) {
        return None;
    }
    let bare = name.strip_prefix("HEADCOUNT_").unwrap_or(&name);
    if let Some(setting) = SETTINGS.iter().find(|setting| setting.variable == bare) {
        return Some(setting.variable);
    }
    let known = ALIASES.iter().find(|(_, aliases)| aliases.contains(&name.as_str()));
    known.map(|(variable, _)| *variable).or_else(|| {
        nearest(&name, SETTINGS.iter().map(|setting| setting.variable), |variable| {
            // Of names without our prefix there are many, and short ones soon look alike.
            if variable.starts_with("HEADCOUNT_") { 3 } else { variable.len() / 6 }
        })
    })
}

/// The key that a name in the file probably means.
pub(super) fn key(name: &str) -> Option<&'static str> {
    let of_variable = |variable: &str| {
        SETTINGS.iter().find(|setting| setting.variable == variable).map(|setting| setting.key)
    };
    let near = nearest(&name.to_lowercase(), SETTINGS.iter().map(|setting| setting.key), |key| key.len() / 3);
    near.or_else(|| of_variable(variable(name)?))
}

fn nearest(
    name: &str,
    known: impl Iterator<Item = &'static str>,
    tolerance: impl Fn(&str) -> usize,
) -> Option<&'static str> {
    known
        .map(|known| (osa_distance(name, known), known))
        .filter(|(distance, known)| *distance <= tolerance(known))
        .min()
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_means_a_variable() {
        for (name, meant) in [
            ("AMPQ_URL", "AMQP_URL"),
            ("AMQP_URI", "AMQP_URL"),
            ("RABBITMQ_URL", "AMQP_URL"),
            ("DATABASE_URI", "DATABASE_URL"),
            ("DATABSE_URL", "DATABASE_URL"),
            ("DATABASEURL", "DATABASE_URL"),
            ("POSTGRES_URL", "DATABASE_URL"),
            ("database_url", "DATABASE_URL"),
            ("HEADCOUNT_CLERK_WEBHOOK_SIGNING_SECRET", "CLERK_WEBHOOK_SIGNING_SECRET"),
            ("HEADCOUNT_RUST_LOG", "RUST_LOG"),
            ("CLERK_WEBHOOK_SECRET", "CLERK_WEBHOOK_SIGNING_SECRET"),
            ("CLERK_WEBHOOK_SIGNIN_SECRET", "CLERK_WEBHOOK_SIGNING_SECRET"),
            ("CLERK_API_KEY", "CLERK_SECRET_KEY"),
            ("CLERK_SECRET", "CLERK_SECRET_KEY"),
            ("HEADCOUNT_CLERK_SECRET_KEY", "CLERK_SECRET_KEY"),
            ("CLERK_BACKEND_API_URL", "CLERK_API_URL"),
            ("HEADCOUNT_CLERK_API_URL", "CLERK_API_URL"),
            ("HEADCOUNT_CLERK_INSTANCE_ID", "HEADCOUNT_CLERK_INSTANCE"),
            ("HEADCOUNT_LOG_LEVEL", "RUST_LOG"),
            ("RUST_LOGS", "RUST_LOG"),
            ("HEADCOUNT_PREFECH", "HEADCOUNT_PREFETCH"),
            ("HEADCOUNT_SCHEMAS", "HEADCOUNT_SCHEMA"),
        ] {
            assert_eq!(variable(name), Some(meant), "{name}");
        }
    }

    #[test]
    fn what_belongs_to_others_means_nothing() {
        for name in [
            "PATH",
            "HOME",
            "RUSTUP_HOME",
            "NEXT_PUBLIC_CLERK_PUBLISHABLE_KEY",
            "CLERK_API_VERSION",
            "CLERK_JS_URL",
            "CLERK_FAPI",
            "HEADCOUNT_PORT",
            "HEADCOUNT_PORT_8080_TCP_ADDR",
            "HEADCOUNT_SERVICE_HOST",
            "HEADCOUNT_SERVICE_PORT",
            "REDIS_URL",
            "APP_URL",
            "DATABASE_NAME",
        ] {
            assert_eq!(variable(name), None, "{name}");
        }
    }

    #[test]
    fn a_key_of_the_file_is_never_said_to_mean_itself() {
        for (name, meant) in [
            ("lisen", Some("listen")),
            ("DATABASE_URL", Some("database_url")),
            ("HEADCOUNT_LISTEN", Some("listen")),
            ("Prefetch", Some("prefetch")),
            ("retry_delay", Some("retry_delays")),
            ("log_level", Some("log")),
            ("colour", None),
        ] {
            assert_eq!(key(name), meant, "{name}");
        }
    }
}
