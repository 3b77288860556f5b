//! Owns what keeps us from a session of a PostgreSQL server, or of a pooler in front of it, in words: away, silent, full, not
//! letting us in, or not doing what we asked. Never decides what to do about it.

use std::time::Duration;

use super::{
    StoreError,
    errors::{NO_CONNECTION, UNREACHABLE, broken, unusable},
};
use crate::address::unreached;

const TLS: &str = "check sslmode and sslrootcert in DATABASE_URL against the certificate of the server";

const POOL: &str = "look whether the database behind the pooler answers; if it does, raise the size of the pooler's pool (PgBouncer: default_pool_size), above all in session mode, or run fewer workers";

fn away(message: String, hint: &str) -> StoreError {
    StoreError { hint: Some(hint.into()), ..broken(message) }
}

/// As [`away`], and other connections may do better.
fn without(message: String, hint: &str) -> StoreError {
    StoreError { code: NO_CONNECTION.into(), ..away(message, hint) }
}

/// The server cannot be reached, or does not let us in.
pub(super) fn unreachable(place: &str, error: sqlx::Error) -> StoreError {
    match error {
        // What the TLS library says has this kind.
        sqlx::Error::Io(io) if io.kind() == std::io::ErrorKind::InvalidData => {
            away(format!("TLS with the database at {place} failed: {io}"), TLS)
        }
        sqlx::Error::Io(io) => away(format!("the database at {place} {}", unreached(&io)), UNREACHABLE),
        sqlx::Error::Tls(tls) if tls.to_string().contains("does not support TLS") => away(
            format!(
                "the server at {place} offers no TLS, and sslmode (in DATABASE_URL, or PGSSLMODE) asks for it"
            ),
            "switch TLS on at the server, or write sslmode=prefer where the network is trusted",
        ),
        sqlx::Error::Tls(tls) => away(format!("TLS with the database at {place} failed: {tls}"), TLS),
        sqlx::Error::Protocol(_) => away(
            format!("the server at {place} does not speak PostgreSQL's protocol"),
            "mend host and port in DATABASE_URL",
        ),
        error => error.into(),
    }
}

/// Nothing answers where the database should be.
pub(super) fn mute(place: &str, limit: Duration) -> StoreError {
    let limit = limit.as_secs();
    without(format!("the database at {place} does not answer: nothing came within {limit} s"), UNREACHABLE)
}

/// No connection was free in time, for a reason that was found out since.
pub(super) fn in_vain(why: StoreError) -> StoreError {
    if why.code.is_empty() { StoreError { code: NO_CONNECTION.into(), ..why } } else { why }
}

/// Our own connections are all taken, or do not answer.
pub(super) fn busy(most: u32) -> StoreError {
    without(
        format!("the {most} connections to the database that this process may have are all busy"),
        "see in pg_stat_activity what they wait for",
    )
}

/// A pooler let us in, and has no session for us.
pub(super) fn no_session(place: &str, limit: Duration) -> StoreError {
    let limit = limit.as_secs();
    without(format!("the pooler at {place} had no session of the database free for {limit} s"), POOL)
}

/// A pooler lends one session at a time.
pub(super) fn one_session(place: &str) -> StoreError {
    unusable(
        format!(
            "the pooler at {place} gave out no second session of the database: its pool has only one, or others keep the rest, and a worker needs more"
        ),
        "raise the size of its pool (PgBouncer: default_pool_size): in session mode each worker keeps up to 16 sessions while it is busy, and each command one",
    )
}

/// A pooler begins to lend sessions that were ours.
pub(super) fn lent(place: &str) -> StoreError {
    without(format!("a pooler stands in front of the database at {place} since a moment ago"), UNREACHABLE)
}

/// Another schema than ours would be written to.
pub(super) fn astray(schema: &str) -> StoreError {
    unusable(
        format!("the database does not use the schema {schema}, though each transaction sets it"),
        "use a pooler that lets SET LOCAL through, or connect to the database directly",
    )
}

/// Whether it could be a pooler that does not like what a session shall start with, not the server that lets nobody in.
pub(super) fn may_be_a_pooler(error: &StoreError) -> bool {
    let known = ["28", "3D", "53", "57"].iter().any(|class| error.code.starts_with(class));
    !known && !error.code.is_empty() && error.code != NO_CONNECTION
}

/// What a pooler's refusal means, by its words: poolers give most of them the same code. `Err`: waiting does not help.
pub(super) fn refusal(words: &str) -> Option<Result<&'static str, &'static str>> {
    let cases = [
        (
            "statement pooling mode",
            Err(
                "the pooler is in statement mode, which knows no transactions: set pool_mode = transaction or session in PgBouncer, or connect to the database directly",
            ),
        ),
        (
            "Tenant or user not found",
            Err(
                "check host and user in DATABASE_URL: Supabase's pooler wants user.project, and the project's own region",
            ),
        ),
        ("no such user", Err("check the user in DATABASE_URL against the pooler's list of users")),
        (
            "no such database",
            Err("check the database in DATABASE_URL against the pooler's list of databases"),
        ),
        (
            "max_client_conn",
            Ok("raise the pooler's limit of clients (PgBouncer: max_client_conn), or run fewer processes"),
        ),
        (
            "max clients reached",
            Ok(
                "raise the size of the pooler's pool, use its address for transactions, or run fewer processes",
            ),
        ),
        ("query_wait_timeout", Ok(POOL)),
        ("server_login_retry", Ok("the pooler does not reach the database: look into the pooler's log")),
        ("server login", Ok("the pooler does not reach the database: look into the pooler's log")),
    ];
    cases.into_iter().find(|(part, _)| words.contains(part)).map(|(_, meaning)| meaning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_poolers_have_hints_and_others_have_none() {
        for hopeless in [
            "transaction blocks not allowed in statement pooling mode",
            "Tenant or user not found",
            "no such user: app",
            "no such database: app",
        ] {
            assert!(refusal(hopeless).is_some_and(|meaning| meaning.is_err()), "{hopeless}");
        }
        for passing in [
            "no more connections allowed (max_client_conn)",
            "MaxClientsInSessionMode: max clients reached - in Session mode max clients are limited to pool_size",
            "query_wait_timeout",
            "server login has been failing, try again later (server_login_retry)",
        ] {
            assert!(refusal(passing).is_some_and(|meaning| meaning.is_ok()), "{passing}");
        }
        assert_eq!(refusal("unsupported startup parameter: options"), None);
    }
}
