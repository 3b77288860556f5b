//! Owns the table of settings: every variable, its key in the file and its default. `tests/docs.rs` compares it with the
//! documentation.

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
