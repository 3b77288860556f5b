//! Owns what a `DATABASE_URL` of PostgreSQL may hold: libpq's URIs, and what other drivers and providers put into theirs.

use std::fmt;

use super::{Parts, Unused, Wrong, bare, decoded, host_of, is_plain, port_of, split, wrong};

/// How to write one.
const EXAMPLE: &str = "postgres://user:password@host:5432/database";

/// A database, and how to enter it.
#[derive(Clone, PartialEq, Eq)]
pub struct Postgres {
    /// A name, an address without brackets, or the directory of a socket.
    pub host: String,
    /// 5432 where none was written.
    pub port: u16,
    /// `None`: libpq's default, `PGUSER` or the system's user.
    pub user: Option<String>,
    /// `None`: the file of passwords (`PGPASSFILE`), or none.
    pub password: Option<String>,
    /// The database. Empty: libpq's default, `PGDATABASE` or that of the user's name.
    pub database: String,
    /// The parameters that the driver takes, as it names them.
    parameters: Vec<(&'static str, String)>,
    /// The schema that the address names in one way or another.
    schema: Option<String>,
    /// What is not used, as sentences behind the variable's name.
    pub warnings: Vec<String>,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// Reads a `DATABASE_URL` of PostgreSQL.
///
/// # Errors
/// It cannot be used, in words.
pub fn postgres(text: &str) -> Result<Postgres, Wrong> {
    let text = bare(text, "DATABASE_URL")?;
    known_mistakes(text)?;
    let parts = split(text, &["postgres", "postgresql"], EXAMPLE)?;
    let mut address = Postgres {
        host: parts.host.clone(),
        port: parts.port.unwrap_or(5432),
        user: parts.user.clone(),
        password: parts.password.clone(),
        database: decoded(parts.path.unwrap_or_default(), "database")?,
        parameters: Vec::new(),
        schema: None,
        warnings: Vec::new(),
    };
    address.take(&parts)?;
    if address.host.is_empty() {
        return Err(wrong(
            "names no host",
            format!("write {EXAMPLE}, or postgres://user@/database?host=/var/run/postgresql for a socket"),
        ));
    }
    if address.database.contains('/') {
        return Err(wrong("names a database with a / in it", format!("write {EXAMPLE}")));
    }
    Ok(address)
}

impl Postgres {
    fn take(&mut self, parts: &Parts<'_>) -> Result<(), Wrong> {
        let mut unused = Unused::default();
        for (name, value) in &parts.query {
            match name.as_str() {
                "host" | "hostaddr" if value.contains(',') => {
                    return Err(wrong("names several hosts, and headcount connects to one", "name one host"));
                }
                "host" | "hostaddr" => {
                    let host = value.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
                    let host = host.unwrap_or(value);
                    self.host = match host.contains(':') && host.parse::<std::net::Ipv6Addr>().is_ok() {
                        true => host.to_owned(),
                        false => host_of(host)?,
                    };
                }
                "port" => self.port = port_of(value)?,
                "dbname" => self.database.clone_from(value),
                "user" => self.user = Some(value.clone()),
                "password" => self.password = Some(value.clone()),
                "sslmode" | "ssl-mode" => self.parameters.push(("sslmode", sslmode(value)?.into())),
                "ssl" => {
                    let mode = if matches!(value.as_str(), "false" | "0") { "disable" } else { "require" };
                    self.parameters.push(("sslmode", mode.into()));
                }
                "sslrootcert" | "ssl-root-cert" | "ssl-ca" if value == "system" => {
                    return Err(wrong(
                        "holds sslrootcert=system, which headcount's driver does not know",
                        "name a file, such as /etc/ssl/certs/ca-certificates.crt",
                    ));
                }
                "sslrootcert" | "ssl-root-cert" | "ssl-ca" => {
                    self.parameters.push(("sslrootcert", value.clone()));
                }
                "sslcert" | "ssl-cert" => self.parameters.push(("sslcert", value.clone())),
                "sslkey" | "ssl-key" => self.parameters.push(("sslkey", value.clone())),
                "sslpassword" | "sslidentity" => {
                    return Err(wrong(
                        format!("holds {name}: headcount reads no key that is encrypted"),
                        "take it away, and name files that are not: sslcert and sslkey; openssl pkey -in KEY -out PLAIN",
                    ));
                }
                "application_name" => self.parameters.push(("application_name", value.clone())),
                "options" => {
                    if let Some(schema) = search_path(value) {
                        self.schema = Some(schema);
                    }
                    self.parameters.push(("options", value.clone()));
                }
                "schema" | "currentSchema" | "search_path" => self.schema = Some(value.clone()),
                "target_session_attrs" | "targetServerType"
                    if matches!(value.as_str(), "any" | "read-write" | "primary") => {}
                "target_session_attrs" | "targetServerType" => {
                    return Err(wrong(
                        format!("asks for a standby in {name}, and headcount writes"),
                        format!("take {name} away, and name the primary server"),
                    ));
                }
                // headcount notices a pooler by itself.
                "pgbouncer" => {}
                "connection_limit"
                | "pool_timeout"
                | "pool_size"
                | "max_pool_size"
                | "pool_max_conns"
                | "socket_timeout"
                | "connect_timeout"
                | "connection_timeout"
                | "statement_timeout"
                | "lock_timeout"
                | "channel_binding"
                | "gssencmode"
                | "krbsrvname"
                | "gsslib"
                | "keepalives"
                | "keepalives_idle"
                | "keepalives_interval"
                | "keepalives_count"
                | "tcp_user_timeout"
                | "sslcompression"
                | "sslsni"
                | "sslcrl"
                | "sslaccept"
                | "sslnegotiation"
                | "ssl_min_protocol_version"
                | "ssl_max_protocol_version"
                | "require_auth"
                | "passfile"
                | "requiressl"
                | "fallback_application_name"
                | "client_encoding"
                | "load_balance_hosts"
                | "statement_cache_size"
                | "statement-cache-capacity"
                | "prepared_statements"
                | "prepareThreshold"
                | "prepared_statement_cache_size"
                | "workaround"
                | "supa"
                | "uselibpqcompat" => unused.known.push(name.clone()),
                _ => unused.unknown(name),
            }
        }
        self.warnings = unused.warnings();
        Ok(())
    }

    /// Whether tables go where the address says, too: `schema` is where they go.
    ///
    /// # Errors
    /// The address names another schema.
    pub fn agrees(&self, schema: &str) -> Result<(), Wrong> {
        let Some(named) = &self.schema else { return Ok(()) };
        // Of a search path, ours has to be the first.
        let first = named.split(',').next().unwrap_or_default().trim().trim_matches('"');
        if first == schema {
            return Ok(());
        }
        let set = match is_plain(first) {
            true => {
                format!("set HEADCOUNT_SCHEMA={first} to use that one, or remove it from DATABASE_URL")
            }
            false => "set HEADCOUNT_SCHEMA to it, or remove it from DATABASE_URL".into(),
        };
        Err(wrong(format!("names another schema than {schema}, where headcount's tables are"), set))
    }

    /// The address in the one form that the driver reads without mistakes: everything in parameters. Holds the password.
    pub fn spelled_out(&self) -> String {
        let port = self.port.to_string();
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("host", &self.host).append_pair("port", &port);
        let database = Some(&self.database).filter(|database| !database.is_empty());
        let given =
            [("dbname", database), ("user", self.user.as_ref()), ("password", self.password.as_ref())];
        for (name, value) in given.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            query.append_pair(name, value);
        }
        if self.parameters.iter().all(|(name, _)| *name != "application_name") {
            query.append_pair("application_name", "headcount");
        }
        for (name, value) in &self.parameters {
            query.append_pair(name, value);
        }
        format!("postgres:///?{}", query.finish())
    }
}

fn sslmode(value: &str) -> Result<&'static str, Wrong> {
    let modes = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
    match modes.iter().find(|mode| **mode == value) {
        Some(mode) => Ok(mode),
        None if value == "no-verify" => Ok("require"),
        None => {
            Err(wrong("holds an sslmode that there is not", format!("write one of {}", modes.join(", "))))
        }
    }
}

/// The search path in a session's options: `-c search_path=app`.
fn search_path(options: &str) -> Option<String> {
    let (_, rest) = options.split_once("search_path=")?;
    Some(rest.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Schemes of other drivers and other databases, and addresses that are no URL.
fn known_mistakes(text: &str) -> Result<(), Wrong> {
    let scheme = text.split("://").next().unwrap_or_default().to_ascii_lowercase();
    let begins = |what: &str| Err(wrong(format!("begins with {what}"), format!("write {EXAMPLE}")));
    if text.to_ascii_lowercase().starts_with("jdbc:") {
        return begins("jdbc:, which is Java's");
    }
    let keyword = ["host=", "dbname=", "user=", "hostaddr=", "server=", "data source="];
    if keyword.iter().any(|keyword| text.to_ascii_lowercase().starts_with(keyword)) {
        return Err(wrong("is a list of keywords, not an address", format!("write {EXAMPLE}")));
    }
    match scheme.as_str() {
        "postgresql+asyncpg"
        | "postgresql+psycopg"
        | "postgresql+psycopg2"
        | "postgresql+pg8000"
        | "postgres+asyncpg"
        | "postgres+psycopg"
        | "postgres+psycopg2"
        | "postgresql+psycopg2cffi" => Err(wrong(
            format!("begins with {scheme}://, which is SQLAlchemy's"),
            "write postgresql:// there, without + and what follows it",
        )),
        "psql" | "pg" | "pgsql" | "postgre" | "postgressql" | "postgresqls" | "pgbouncer" | "postgis"
        | "ecto" => Err(wrong(format!("begins with {scheme}://"), "write postgres:// there")),
        "prisma" | "prisma+postgres" => Err(wrong(
            format!("begins with {scheme}://, which only Prisma's client speaks"),
            "take the direct address of the database, which begins with postgres://",
        )),
        "mysql" | "mysql2" | "mariadb" | "mongodb" | "mongodb+srv" | "sqlserver" | "mssql" | "oracle"
        | "redis" | "rediss" | "libsql" | "clickhouse" | "http" | "https" | "amqp" | "amqps" | "file" => {
            Err(wrong(
                format!("begins with {scheme}://, and headcount keeps users in PostgreSQL or SQLite"),
                format!("write {EXAMPLE} or sqlite:///path/to/headcount.db"),
            ))
        }
        "sqlite3" => Err(wrong("begins with sqlite3://", "write sqlite:///path/to/headcount.db")),
        _ => Ok(()),
    }
}
