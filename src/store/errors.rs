//! Owns what every error of either database means for the messages, in one place. Promises that no value of a row gets
//! into a message. Never decides what to do about it: that is the worker's.

use std::time::Duration;

use sqlx::{
    error::DatabaseError,
    migrate::MigrateError,
    postgres::{PgDatabaseError, PgSeverity},
    sqlite::SqliteError,
};

use super::{Class, StoreError, entry};
use crate::failure::Failure;

/// What `apply` does not yet call the message's fault: two transactions can clash over a unique key without either
/// message being wrong.
pub(super) fn is_unique_violation(error: &StoreError) -> bool {
    matches!(error.code.as_str(), "23505" | "23P01" | "1555" | "2067" | "2579")
}

/// Another transaction was quicker, which the database has no code for.
pub(super) fn raced(message: &'static str) -> StoreError {
    StoreError {
        class: Class::Transient,
        code: String::new(),
        message: message.into(),
        hint: None,
        source: None,
    }
}

/// [`StoreError::code`] of [`over`].
pub(super) const OVER: &str = "over";

/// It is no longer this process's to write.
pub(super) fn over(message: &'static str) -> StoreError {
    StoreError {
        class: Class::Permanent,
        code: OVER.into(),
        message: message.into(),
        hint: None,
        source: None,
    }
}

/// Whether as many rows were written as were to be. A trigger or a policy of the application's can keep a row away without
/// an error, and then nothing must say that it was written.
pub(super) fn all_written(table: &str, written: u64, rows: usize) -> Result<(), StoreError> {
    if written == rows as u64 {
        return Ok(());
    }
    Err(StoreError {
        class: Class::Unclear,
        code: String::new(),
        message: format!("the database wrote {written} of {rows} rows of {table}, without an error"),
        hint: Some(format!("look for a trigger or a policy of the application's on {table} that skips rows")),
        source: None,
    })
}

/// What to do where our schema could not be made.
pub(super) fn of_schema(error: StoreError, schema: &str) -> StoreError {
    match error.code.as_str() {
        "42501" => StoreError {
            hint: Some(format!(
                "let somebody with the right make it: CREATE SCHEMA {schema} AUTHORIZATION the user of DATABASE_URL; or grant that user CREATE on the database"
            )),
            ..error
        },
        _ => error,
    }
}

/// Nothing of the message's: something in the database or in headcount is not as it has to be.
pub(super) fn broken(message: impl Into<String>) -> StoreError {
    StoreError {
        class: Class::Outage,
        code: String::new(),
        message: message.into(),
        hint: None,
        source: None,
    }
}

/// sqlclient_unable_to_establish_sqlconnection
pub(super) const NO_CONNECTION: &str = "08001";

pub(super) const UNREACHABLE: &str = "check that the database runs, that the network lets packets through to it, and that DATABASE_URL is right";

/// The session takes no writes: it was made so, or its server is a standby.
pub(super) fn is_read_only(error: &StoreError) -> bool {
    error.code == "25006"
}

/// Whether a connection was waited for in vain.
pub(super) fn is_without_connection(error: &StoreError) -> bool {
    error.code == NO_CONNECTION
}

/// No answer came, not even an error, to something that has no effect.
pub(super) fn silent(limit: Duration) -> StoreError {
    let message = format!("the database does not answer: nothing came within {} s", limit.as_secs());
    StoreError { hint: Some(UNREACHABLE.into()), ..broken(message) }
}

/// No answer came to a call, which may take effect all the same.
pub(super) fn unanswered(limit: Duration) -> StoreError {
    StoreError { class: Class::Unanswered, ..silent(limit) }
}

/// A statement was cancelled: it took longer than its limit.
const TOO_SLOW: &str = "57014";

/// A batch has used up its time, though no single statement of it took too long.
pub(super) fn too_slow() -> StoreError {
    StoreError {
        class: sqlstate(TOO_SLOW),
        code: TOO_SLOW.into(),
        message: "the transaction took too long as a whole".into(),
        hint: hint(TOO_SLOW),
        source: None,
    }
}

/// A row that was written is not to be seen.
pub(super) fn hidden() -> StoreError {
    let hint = "look for rules, triggers and row-level policies on the table inbox: it is headcount's alone";
    StoreError { hint: Some(hint.into()), ..broken("a row written to the inbox is not there") }
}

/// For people to mend.
pub(super) fn unusable(message: impl Into<String>, hint: impl Into<String>) -> StoreError {
    StoreError {
        class: Class::Unusable,
        code: String::new(),
        message: message.into(),
        hint: Some(hint.into()),
        source: None,
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        let (class, message, keep) = match &error {
            E::Database(database) => return from_database(database.as_ref()),
            E::Migrate(_) => (Class::Outage, "a migration failed".into(), true),
            // The value did not fit into the protocol's message: the payload's fault.
            E::Encode(_) => (Class::Permanent, "a value cannot be sent to the database".into(), false),
            E::PoolTimedOut => {
                return Self {
                    code: NO_CONNECTION.into(),
                    hint: Some(UNREACHABLE.into()),
                    ..broken("no connection to the database could be had in time")
                };
            }
            E::PoolClosed => (Class::Outage, "the connections to the database are closed".into(), false),
            E::Io(io) => (Class::Outage, format!("the connection to the database failed: {io}"), true),
            E::Tls(tls) => (Class::Outage, format!("TLS with the database failed: {tls}"), true),
            // Names a column; the source could quote what stands in it.
            E::ColumnDecode { index, .. } => (Class::Outage, format!("column {index} cannot be read"), false),
            E::Decode(_) => (Class::Outage, "what the database answered cannot be read".into(), false),
            E::Configuration(_)
            | E::InvalidArgument(_)
            | E::Protocol(_)
            | E::RowNotFound
            | E::TypeNotFound { .. }
            | E::ColumnIndexOutOfBounds { .. }
            | E::ColumnNotFound(_)
            | E::AnyDriverError(_)
            | E::WorkerCrashed
            | E::InvalidSavePointStatement
            | E::BeginFailed
            | E::ConfigFile(_) => (Class::Outage, error.to_string(), true),
            // sqlx keeps its list open, and what is not known is an outage.
            _ => {
                (Class::Outage, "the database driver failed in a way that is new to headcount".into(), false)
            }
        };
        let hint = matches!(error, E::Io(_)).then(|| UNREACHABLE.into());
        let source = keep.then(|| error.into());
        Self { class, code: String::new(), message, hint, source }
    }
}

impl From<MigrateError> for StoreError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
            MigrateError::VersionMismatch(version) => unusable(
                format!("migration {version} was applied in another form than this headcount has it"),
                "run the headcount version that made the tables, or use a new schema",
            ),
            MigrateError::Dirty(version) => unusable(
                format!("migration {version} is marked as half done in headcount_migrations"),
                "restore the database from before it, or use a new schema",
            ),
            other => broken(other.to_string()),
        }
    }
}

fn from_database(error: &dyn DatabaseError) -> StoreError {
    if let Some(error) = error.try_downcast_ref::<PgDatabaseError>() {
        return from_postgres(error);
    }
    if let Some(error) = error.try_downcast_ref::<SqliteError>() {
        return from_sqlite(error);
    }
    broken("the database answered with an error of an unknown kind")
}

fn from_postgres(error: &PgDatabaseError) -> StoreError {
    let code = error.code();
    // Of the server's own words only the primary message is used, and only in classes where it names objects and
    // conditions, never values; `detail` quotes rows. What a function raises are the application's words, whatever code
    // it gives them.
    let message = if raised(error) && code == TOO_SLOW {
        format!(
            "PostgreSQL refused with SQLSTATE {code}: a function or trigger took longer than a statement may"
        )
    } else if raised(error) {
        format!("PostgreSQL refused with SQLSTATE {code}: it was raised in a function or trigger")
    } else if speaks_of_values(code) {
        let place = [
            ("constraint", error.constraint()),
            ("table", error.table()),
            ("column", error.column()),
            ("type", error.data_type()),
        ];
        let place = place.into_iter().filter_map(|(kind, name)| name.map(|name| format!(" {kind} {name}")));
        let place: String = place.collect();
        let at = if place.is_empty() { String::new() } else { format!(" at{place}") };
        format!("PostgreSQL refused with SQLSTATE {code}{at}")
    } else {
        format!("PostgreSQL: {} (SQLSTATE {code})", error.message())
    };
    let refused = (error.severity() == PgSeverity::Fatal).then(|| entry::refusal(error.message())).flatten();
    let (class, hint) = match refused {
        Some(Err(hint)) => (Class::Unusable, Some(hint.into())),
        Some(Ok(hint)) => (Class::Outage, Some(hint.into())),
        // What is missing there is not headcount's.
        None if raised(error) => (
            sqlstate(code),
            Some("look at the application's triggers on headcount's tables; they run with headcount's search_path".into()),
        ),
        None => (sqlstate(code), hint(code)),
    };
    StoreError { class, code: code.into(), message, hint, source: None }
}

/// Whether the words are those of a function in a procedural language. Neither of the two signs is ever translated.
fn raised(error: &PgDatabaseError) -> bool {
    error.routine() == Some("exec_stmt_raise") || error.r#where().is_some_and(|place| place.contains("PL/"))
}

fn speaks_of_values(code: &str) -> bool {
    !matches!(
        code.get(..2).unwrap_or_default(),
        "08" | "25" | "28" | "3D" | "3F" | "40" | "42" | "53" | "54" | "55" | "57" | "58"
    )
}

/// Every class of PostgreSQL's Appendix A that a store can meet, and the rest.
fn sqlstate(code: &str) -> Class {
    match (code.get(..2).unwrap_or_default(), code) {
        // unique_violation, exclusion_violation: maybe a race, so tried again before it is the message's fault.
        ("23", "23505" | "23P01") => Class::Transient,
        // Data exception, integrity constraint violation.
        ("22" | "23", _) => Class::Permanent,
        // statement_completion_unknown
        ("40", "40003") => Class::Outage,
        // Transaction rollback: serialization, deadlock. And a process that was stopped for a while in a transaction.
        ("40", _) | ("25", "25P03") => Class::Transient,
        // Connection, transaction state (read-only), authorization, unknown database, and a server that is out of
        // connections or disk, shutting down, or fails to read its files.
        ("08" | "28" | "3D" | "58", _) | ("25", "25006") | ("53", "53100" | "53300") => Class::Outage,
        ("57", "57P01" | "57P02" | "57P03" | "57P04" | "57P05") => Class::Outage,
        // The rest may be one message's trouble or everybody's: an application's trigger, policy or index, a lock that
        // somebody holds, a statement that takes too long, a lock table that is full, a table that is missing.
        _ => Class::Unclear,
    }
}

fn hint(code: &str) -> Option<String> {
    let hint = match code {
        "28P01" | "28000" => "check the user and the password in DATABASE_URL",
        "3D000" => "create the database, or name another one in DATABASE_URL",
        "42501" => {
            "grant the user of DATABASE_URL its rights on the schema and its tables, and look for row-level policies on them"
        }
        "42P01" | "42703" | "3F000" => MISSING,
        "42704" | "42804" | "42883" => {
            "give headcount's columns the types back that its migrations gave them"
        }
        "54000" => {
            "drop the index on headcount's table that cannot hold such a value, or index a shorter expression, such as md5(column)"
        }
        TOO_SLOW => {
            "look for a slow trigger on headcount's tables, a large table without its indexes, or an overloaded disk"
        }
        "P0001" => {
            "look at the triggers on headcount's tables: one of them raises an exception; the database's own log has its words"
        }
        "53100" => "make room on the database's disk",
        "25006" => "point DATABASE_URL to the primary server",
        "55P03" => "see in pg_locks and pg_stat_activity who keeps the row or the table locked",
        "53300" => {
            "raise max_connections, or the limit of connections of the role or the database, or run fewer workers"
        }
        "53200" => {
            "raise max_locks_per_transaction, or the server's memory; a lower HEADCOUNT_BATCH_MAX needs less of both"
        }
        _ => return None,
    };
    Some(hint.into())
}

fn from_sqlite(error: &SqliteError) -> StoreError {
    let code = error.code().unwrap_or_default();
    let extended: i32 = code.parse().unwrap_or_default();
    // A trigger's message is the application's own; the others name tables, columns and conditions.
    let message = if extended == CONSTRAINT_TRIGGER {
        format!("SQLite refused with code {code}: a trigger raised it")
    } else {
        format!("SQLite: {} (code {code})", error.message())
    };
    let hint = sqlite_hint(extended).map(Into::into);
    StoreError { class: sqlite(extended), code: code.into(), message, hint, source: None }
}

fn sqlite_hint(extended: i32) -> Option<&'static str> {
    Some(match extended {
        CONSTRAINT_TRIGGER => "look at the triggers on headcount's tables: one of them raises",
        _ => match extended & 0xff {
            1 => MISSING,
            5 => "see whether a shell or a backup keeps a transaction open on the database file",
            11 | 26 => "run `headcount doctor`: the database file is damaged",
            8 => "let the user that headcount runs as write to the database file and its directory",
            13 => "make room on the disk of the database file",
            _ => {
                "look at the disk of the database file, at its permissions, and whether the files beside it (-wal, -shm) are whole"
            }
        },
    })
}

const MISSING: &str =
    "run `headcount migrate`; where a table or column of headcount's was renamed or dropped, put it back";

const CONSTRAINT_TRIGGER: i32 = 1811;

/// SQLite's primary result codes: the low byte of the extended code.
fn sqlite(extended: i32) -> Class {
    match extended & 0xff {
        // BUSY_SNAPSHOT, and LOCKED.
        5 if extended == 517 => Class::Transient,
        6 => Class::Transient,
        // BUSY: another process has kept the whole file from everybody for as long as we wait.
        5 => Class::Outage,
        // CONSTRAINT: of them PRIMARYKEY, UNIQUE and ROWID as in PostgreSQL.
        19 if matches!(extended, 1555 | 2067 | 2579) => Class::Transient,
        // An application's trigger raised: for this message, or for all.
        19 if extended == CONSTRAINT_TRIGGER => Class::Unclear,
        19 => Class::Permanent,
        // TOOBIG, MISMATCH: what SQLSTATE class 22 is.
        18 | 20 => Class::Permanent,
        // PERM, NOMEM, READONLY, INTERRUPT, IOERR, CORRUPT (also of one page: no message's fault), FULL, CANTOPEN, PROTOCOL,
        // NOLFS, AUTH, NOTADB.
        3 | 7 | 8 | 9 | 10 | 11 | 13 | 14 | 15 | 22 | 23 | 26 => Class::Outage,
        // ERROR (a missing table or column, an application's trigger), and whatever is not known.
        _ => Class::Unclear,
    }
}

impl From<&StoreError> for Failure {
    fn from(error: &StoreError) -> Self {
        let hint =
            error.hint.as_deref().unwrap_or("check that the database runs and that DATABASE_URL is right");
        Self::new(error.to_string()).hint(hint)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::from(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_were_skipped_are_no_success_and_no_certain_fault() {
        assert!(all_written("users", 3, 3).is_ok());
        let error = all_written("users", 2, 3).unwrap_err();
        assert_eq!(error.class, Class::Unclear);
        assert!(error.message.contains("2 of 3") && error.hint.is_some_and(|hint| hint.contains("trigger")));
    }

    #[test]
    fn who_may_not_make_the_schema_is_told_how_it_can_be_made() {
        let refused = |code: &str| StoreError { code: code.into(), ..broken("no") };
        assert!(
            of_schema(refused("42501"), "mine").hint.is_some_and(|hint| hint.contains("CREATE SCHEMA mine"))
        );
        assert_eq!(of_schema(refused("53100"), "mine").hint, broken("no").hint);
    }

    #[test]
    fn only_proved_faults_are_permanent_and_only_races_are_transient() {
        let cases = [
            (Class::Permanent, &["22001", "22003", "22021", "22P02", "22P05", "23502", "23503", "23514"][..]),
            (Class::Transient, &["23505", "23P01", "25P03", "40001", "40P01"]),
            (
                Class::Outage,
                &[
                    "08006", "08P01", "25006", "28P01", "3D000", "40003", "53100", "53300", "57P01", "57P03",
                    "58030",
                ],
            ),
            (
                Class::Unclear,
                &[
                    "25P02", "42501", "42703", "42P01", "53200", "54000", "54001", "55000", "55P03", "57014",
                    "P0001", "XX000", "F0000", "ZZZZZ", "", "é",
                ],
            ),
        ];
        for (class, codes) in cases {
            for code in codes {
                assert_eq!(sqlstate(code), class, "{code}");
            }
        }
    }

    #[test]
    fn sqlite_codes_are_told_apart() {
        for (class, codes) in [
            (Class::Transient, &[6, 517, 1555, 2067][..]),
            (Class::Permanent, &[275, 1299, 787, 18, 20]),
            (Class::Outage, &[3, 5, 261, 7, 8, 10, 11, 13, 14, 26, 778, 1032]),
            (Class::Unclear, &[1, 1811, 0, -1]),
        ] {
            for code in codes {
                assert_eq!(sqlite(*code), class, "{code}");
            }
        }
    }
}
