//! Owns what an `AMQP_URL` may hold: RabbitMQ's URI specification, and what people write instead.

use std::fmt;

use super::{Unused, Wrong, bare, decoded, split, wrong};

/// How to write one.
const EXAMPLE: &str =
    "amqp://user:password@host:5672/vhost, or amqps:// for TLS; without a vhost it is the default one, /";

/// The fewest channels of a connection that headcount works with.
const CHANNELS_MIN: u16 = 16;
/// The smallest frame of AMQP 0-9-1, in bytes.
const FRAME_MIN: u32 = 4096;

/// A broker, and how to enter it.
#[derive(Clone, PartialEq, Eq)]
pub struct Amqp {
    /// Over TLS.
    pub tls: bool,
    /// A name, or an address without brackets.
    pub host: String,
    /// The scheme's own where none was written.
    pub port: u16,
    /// `guest` where none was written.
    pub user: String,
    /// The user's.
    pub password: String,
    /// `/` where none was written.
    pub vhost: String,
    /// Seconds.
    pub heartbeat: Option<u16>,
    /// Bytes.
    pub frame_max: Option<u32>,
    /// Channels in a connection.
    pub channel_max: Option<u16>,
    /// What is not used, as sentences behind the variable's name.
    pub warnings: Vec<String>,
}

impl fmt::Debug for Amqp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Amqp").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// Reads an `AMQP_URL`.
///
/// # Errors
/// It cannot be used, in words.
pub fn amqp(text: &str) -> Result<Amqp, Wrong> {
    let text = bare(text, "AMQP_URL")?;
    known_mistakes(text)?;
    let parts = split(text, &["amqp", "amqps"], EXAMPLE)?;
    if parts.host.is_empty() || parts.host.starts_with('/') {
        return Err(wrong("names no host", format!("write {EXAMPLE}")));
    }
    let (user, password) = match (parts.user, parts.password) {
        (Some(user), Some(password)) => (user, password),
        (None, None) => ("guest".to_owned(), "guest".to_owned()),
        (Some(_), None) => return Err(wrong("names a user without a password", format!("write {EXAMPLE}"))),
        (None, Some(_)) => return Err(wrong("holds a password without a user", format!("write {EXAMPLE}"))),
    };
    let vhost = match parts.path.map(|path| decoded(path, "virtual host")).transpose()? {
        Some(vhost) if !vhost.is_empty() => vhost,
        _ => "/".into(),
    };
    let tls = parts.scheme == "amqps";
    let mut address = Amqp {
        tls,
        host: parts.host,
        port: parts.port.unwrap_or(if tls { 5671 } else { 5672 }),
        user,
        password,
        vhost,
        heartbeat: None,
        frame_max: None,
        channel_max: None,
        warnings: Vec::new(),
    };
    let mut unused = Unused::default();
    for (name, value) in &parts.query {
        match name.as_str() {
            "heartbeat" => address.heartbeat = Some(number(name, value, 1, "seconds; 10 is the default")?),
            "frame_max" => address.frame_max = Some(number(name, value, FRAME_MIN, "bytes")?),
            // 0 is as many as the broker allows.
            "channel_max" if value == "0" => {}
            "channel_max" => address.channel_max = Some(number(name, value, CHANNELS_MIN, "channels")?),
            "auth_mechanism" if value.eq_ignore_ascii_case("plain") => {}
            "auth_mechanism" => {
                return Err(wrong(
                    "asks for an auth_mechanism other than plain, which is the only one that headcount has",
                    "take auth_mechanism away, and name a user and a password",
                ));
            }
            "connection_timeout"
            | "connection_attempts"
            | "retry_delay"
            | "socket_timeout"
            | "locale"
            | "blocked_connection_timeout"
            | "timeout"
            | "name"
            | "cacertfile"
            | "certfile"
            | "keyfile"
            | "verify"
            | "fail_if_no_peer_cert"
            | "server_name_indication"
            | "depth"
            | "password"
            | "ssl_options"
            | "tls"
            | "ssl" => unused.known.push(name.clone()),
            _ => unused.unknown(name),
        }
    }
    address.warnings = unused.warnings();
    Ok(address)
}

fn number<N: std::str::FromStr + PartialOrd + fmt::Display + Copy>(
    name: &str,
    value: &str,
    least: N,
    unit: &str,
) -> Result<N, Wrong> {
    value.parse().ok().filter(|number| *number >= least).ok_or_else(|| {
        wrong(
            format!("holds a {name} that cannot be used"),
            format!("write a number of {unit}, {least} at least, that is not too large; or leave it out"),
        )
    })
}

/// Schemes of other clients, and of other things.
fn known_mistakes(text: &str) -> Result<(), Wrong> {
    let scheme = text.split("://").next().unwrap_or_default().to_ascii_lowercase();
    let right = match scheme.as_str() {
        "rabbitmq" | "rabbit" | "pyamqp" | "librabbitmq" | "amqp091" | "amqp+tcp" => "amqp://",
        "rabbitmqs" | "amqp+ssl" | "amqp+tls" | "amqp+s" | "amqpss" | "pyamqps" => "amqps://",
        "http" | "https" => {
            return Err(wrong(
                format!("begins with {scheme}://, as RabbitMQ's management pages do"),
                format!("write {EXAMPLE}"),
            ));
        }
        "redis" | "rediss" | "kafka" | "nats" | "sqs" | "postgres" | "postgresql" | "mqtt" | "stomp" => {
            return Err(wrong(
                format!("begins with {scheme}://, and headcount's queue is RabbitMQ or a file"),
                format!("write {EXAMPLE}, or unset it for the embedded queue"),
            ));
        }
        _ => return Ok(()),
    };
    Err(wrong(format!("begins with {scheme}://"), format!("write {right} there")))
}
