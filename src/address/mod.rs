//! Owns reading the addresses that people write into `AMQP_URL` and `DATABASE_URL`. A URL parser alone would leave them
//! without help where a password holds an `@`, or the address begins with `jdbc:postgresql:`.
//!
//! Pure: no file, no network, no environment. Promises that no problem, hint or warning holds anything of a user, a
//! password or a parameter's value, and that a text is shown as a host only where it cannot be a part of a password.

mod amqp;
mod postgres;
#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
};

pub use amqp::{Amqp, amqp};
pub use postgres::{Postgres, postgres};

/// Why an address cannot be used. Both parts are without secrets.
#[derive(Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Continues the variable's name: "stands in quotes".
    pub problem: String,
    /// What to do.
    pub hint: String,
}

fn wrong(problem: impl Into<String>, hint: impl Into<String>) -> Wrong {
    Wrong { problem: problem.into(), hint: hint.into() }
}

/// What `DATABASE_URL` names.
#[derive(Debug)]
pub enum Database {
    /// A file.
    Sqlite(PathBuf),
    /// A server.
    Postgres(Box<Postgres>),
}

/// Reads a `DATABASE_URL`.
///
/// # Errors
/// It cannot be used, in words.
pub fn database(text: &str) -> Result<Database, Wrong> {
    let text = bare(text, "DATABASE_URL")?;
    let Some(path) = sqlite(text) else { return Ok(Database::Postgres(Box::new(postgres(text)?))) };
    if path.as_os_str().is_empty() || path.as_os_str() == ":memory:" {
        return Err(wrong("names no file", "write sqlite:///path/to/headcount.db"));
    }
    Ok(Database::Sqlite(path))
}

/// The path in a `sqlite:` URL, with or without slashes; `None` for other URLs.
pub fn sqlite(url: &str) -> Option<PathBuf> {
    let rest = url.strip_prefix("sqlite:")?;
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    Some(PathBuf::from(rest.split('?').next().unwrap_or(rest)))
}

/// How to write what is special in a URL.
const ESCAPES: &str = "write special characters of user and password as %XX: @ as %40, / as %2F, ? as %3F, # as %23, : as %3A, % as %25";

/// A URL's parts, decoded but for its path.
struct Parts<'t> {
    scheme: String,
    user: Option<String>,
    password: Option<String>,
    /// Without the brackets of an IPv6 address; empty where there is none.
    host: String,
    port: Option<u16>,
    /// Without its first slash; `None` where there is not even that.
    path: Option<&'t str>,
    /// Names and values.
    query: Vec<(String, String)>,
}

/// The value, trimmed, unless it is plainly no address.
fn bare<'t>(text: &'t str, variable: &str) -> Result<&'t str, Wrong> {
    let text = text.trim();
    if text.starts_with(['"', '\'', '`', '\u{201c}', '\u{2018}']) {
        return Err(wrong(
            "stands in quotes, which are a part of its value",
            "take the quotes away: Docker's --env-file and systemd's units keep them, a shell does not",
        ));
    }
    if text.split_once('=').is_some_and(|(name, _)| name == variable) {
        return Err(wrong("holds its own name once more", format!("take {variable}= away from its value")));
    }
    if text.starts_with("psql ") {
        return Err(wrong("is a command of psql", "take only the address that begins with postgres://"));
    }
    if text.starts_with("${") || text.starts_with("$(") || text.starts_with("{{") {
        return Err(wrong(
            "is the name of another variable, which nothing has filled in",
            "see how your platform refers to variables, or write the address itself",
        ));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, '\u{feff}' | '\u{200b}')) {
        return Err(wrong(
            "holds a space, a line break or an invisible character",
            "take it away, or write a space of a password as %20",
        ));
    }
    Ok(text)
}

/// Takes an address apart. `schemes` are those that are right, `example` is a whole address.
fn split<'t>(text: &'t str, schemes: &[&str], example: &str) -> Result<Parts<'t>, Wrong> {
    let example = format!("write {example}");
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(match text.split_once(":/") {
            Some((scheme, _)) if schemes.contains(&scheme) => {
                wrong(format!("has one slash behind {scheme}:"), format!("write {scheme}://, with two"))
            }
            _ => wrong("does not begin with a scheme such as ".to_owned() + schemes[0] + "://", example),
        });
    };
    let scheme = scheme.to_ascii_lowercase();
    if !schemes.contains(&scheme.as_str()) {
        return Err(wrong(
            format!("does not begin with a scheme that headcount knows, such as {}://", schemes[0]),
            example,
        ));
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, behind) = rest.split_at(end);
    // It cannot be told where the user's part ends: at this @ or at a later one.
    if behind.contains('@') {
        return Err(wrong("holds an @ behind a /, a ? or a #", ESCAPES));
    }
    if behind.contains('#') {
        return Err(wrong("holds a #", ESCAPES));
    }
    let (path, query) = behind.split_once('?').unwrap_or((behind, ""));
    // The last @ counts: one that stands unescaped in the password does no harm.
    let (user, place) = match authority.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, authority),
    };
    let (user, password) = match user.map(|user| user.split_once(':').unwrap_or((user, ""))) {
        Some((user, password)) => (present(decoded(user, "user")?), present(decoded(password, "password")?)),
        None => (None, None),
    };
    if password.as_deref().is_some_and(is_placeholder) {
        return Err(wrong("holds a placeholder instead of a password", "put the password in its place"));
    }
    let (host, port) = place_of(place)?;
    Ok(Parts { scheme, user, password, host, port, path: path.strip_prefix('/'), query: pairs(query)? })
}

fn present(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// What a provider's page shows where the password belongs.
fn is_placeholder(password: &str) -> bool {
    let inner = password.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let inner = inner.or_else(|| password.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')));
    inner.is_some_and(|inner| inner.to_ascii_lowercase().contains("password"))
}

/// Host and port. Neither is shown where it is wrong: without an @, it may be a user and a password.
fn place_of(place: &str) -> Result<(String, Option<u16>), Wrong> {
    if place.contains(',') {
        return Err(wrong(
            "names several hosts, and headcount connects to one",
            "name one host, or an address in front of all of them",
        ));
    }
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let address = rest.split_once(']').filter(|(host, _)| host.parse::<Ipv6Addr>().is_ok());
            let (host, port) = address.ok_or_else(|| {
                wrong(
                    "holds brackets around something that is no IPv6 address",
                    "write one such as [2001:db8::1]",
                )
            })?;
            (host, (!port.is_empty()).then(|| port.strip_prefix(':').unwrap_or("?")))
        }
        None if place.matches(':').count() > 1 => {
            return Err(wrong(
                "holds several colons where its host should be",
                "write an IPv6 address in brackets, such as [2001:db8::1], and a user with a password in front of an @",
            ));
        }
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let port = match port {
        None | Some("") => None,
        Some(port) => Some(port_of(port)?),
    };
    Ok((host_of(&decoded(host, "host")?)?, port))
}

fn port_of(text: &str) -> Result<u16, Wrong> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
        wrong(
            "holds no port behind the colon of its host",
            format!("write a number between 1 and 65535 there; {ESCAPES}"),
        )
    })
}

/// A host name, an address, or the directory of a socket.
fn host_of(host: &str) -> Result<String, Wrong> {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    let is_host = host.starts_with('/') || host.parse::<IpAddr>().is_ok() || host.chars().all(plain);
    match is_host {
        true => Ok(host.to_owned()),
        false => Err(wrong("holds a character in its host that no host has", ESCAPES)),
    }
}

/// Names and values of a query, as libpq reads them: a + is a +.
fn pairs(query: &str) -> Result<Vec<(String, String)>, Wrong> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            wrong(
                "holds a parameter behind its ? that has no value",
                format!("write name=value there; {ESCAPES}"),
            )
        })?;
        Ok((decoded(name, "parameters")?, decoded(value, "parameters")?))
    });
    pairs.collect()
}

fn decoded(text: &str, part: &str) -> Result<String, Wrong> {
    let problem = || wrong(format!("holds a % in its {part} that begins no escape"), ESCAPES);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, behind) = rest.split_first_chunk::<2>().ok_or_else(problem)?;
        let digit = |digit: u8| char::from(digit).to_digit(16).ok_or_else(problem);
        bytes.push((digit(digits[0])? * 16 + digit(digits[1])?) as u8);
        rest = behind;
    }
    let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    text.ok_or_else(|| wrong(format!("holds escapes in its {part} that are no text"), "write text in UTF-8"))
}

/// What a failure to connect means, behind the name of the server.
pub fn unreached(error: &std::io::Error) -> String {
    use std::io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionRefused => "refuses the connection: nothing listens there".into(),
        Kind::NotFound => "cannot be reached: there is no such socket".into(),
        Kind::ConnectionReset | Kind::UnexpectedEof => "ended the connection without a word".into(),
        Kind::TimedOut => "does not answer".into(),
        // Of the system's resolver, in the standard library's words.
        _ if error.to_string().starts_with("failed to lookup address") => {
            "cannot be reached: its host name cannot be resolved".into()
        }
        _ => format!("cannot be reached: {error}"),
    }
}

/// A name that may be shown.
fn is_plain(name: &str) -> bool {
    name.len() <= 40 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
}

/// Parameters that change nothing, by name alone.
#[derive(Debug, Default)]
struct Unused {
    known: Vec<String>,
    unknown: Vec<String>,
    unnameable: bool,
}

impl Unused {
    fn unknown(&mut self, name: &str) {
        if is_plain(name) {
            self.unknown.push(name.to_owned());
        } else {
            self.unnameable = true;
        }
    }

    /// As warnings, each a sentence behind the variable's name.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.known.is_empty() {
            warnings.push(format!("holds parameters that headcount does not use: {}", self.known.join(", ")));
        }
        if !self.unknown.is_empty() {
            warnings
                .push(format!("holds parameters that headcount does not know: {}", self.unknown.join(", ")));
        }
        if self.unnameable {
            warnings.push("holds a parameter whose name is none".into());
        }
        warnings
    }
}
