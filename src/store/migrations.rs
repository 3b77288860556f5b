//! Owns the list of migrations, which has the same numbers and names for both databases, and what is missing of it.
//! Promises that they only add. Never touches a connection: each store runs them in a transaction of its own.

use std::collections::BTreeSet;

use sqlx::{
    SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
};

use super::{StoreError, errors};

/// Ours, in the schema or file of our tables.
pub(super) const TABLE: &str = "headcount_migrations";

/// Tables, and the migration that makes them: before it they must not be there.
const OURS: [(i64, &str); 19] = [
    (1, "users"),
    (1, "inbox"),
    (1, "former_clerk_ids"),
    (2, "dead_letters"),
    (2, "dead_letter_contents"),
    (2, "dead_letter_history"),
    (2, "dead_letter_tallies"),
    (2, "rejections"),
    (4, "retention_clock"),
    (7, "instances"),
    (7, "leases"),
    (7, "sync_runs"),
    (7, "sync_ids"),
    (8, "sessions"),
    (9, "anonymous_visitors"),
    (10, "subscription_items"),
    (10, "tier_grants"),
    (11, "operations"),
    (12, "processes"),
];

macro_rules! migrations {
    ($dialect:literal) => {
        &[
            (
                1,
                "users and inbox",
                include_str!(concat!("../../migrations/", $dialect, "/0001_users_and_inbox.sql")),
            ),
            (
                2,
                "dead letters and rejections",
                include_str!(concat!("../../migrations/", $dialect, "/0002_dead_letters_and_rejections.sql")),
            ),
            (
                3,
                "search letters",
                include_str!(concat!("../../migrations/", $dialect, "/0003_search_letters.sql")),
            ),
            (
                4,
                "retention clock",
                include_str!(concat!("../../migrations/", $dialect, "/0004_retention_clock.sql")),
            ),
            (
                5,
                "letters tell the outcome",
                include_str!(concat!("../../migrations/", $dialect, "/0005_letters_tell_the_outcome.sql")),
            ),
            (
                6,
                "users to erase",
                include_str!(concat!("../../migrations/", $dialect, "/0006_users_to_erase.sql")),
            ),
            (7, "sync", include_str!(concat!("../../migrations/", $dialect, "/0007_sync.sql"))),
            (8, "sessions", include_str!(concat!("../../migrations/", $dialect, "/0008_sessions.sql"))),
            (
                9,
                "anonymous visitors",
                include_str!(concat!("../../migrations/", $dialect, "/0009_anonymous_visitors.sql")),
            ),
            (
                10,
                "subscriptions",
                include_str!(concat!("../../migrations/", $dialect, "/0010_subscriptions.sql")),
            ),
            (11, "operations", include_str!(concat!("../../migrations/", $dialect, "/0011_operations.sql"))),
            (12, "processes", include_str!(concat!("../../migrations/", $dialect, "/0012_processes.sql"))),
        ]
    };
}

/// The names that are still to be ours: a table that already has one of them is somebody else's.
pub(super) fn to_come(applied: Option<&BTreeSet<i64>>) -> Vec<&'static str> {
    let last = applied.and_then(BTreeSet::last).copied().unwrap_or_default();
    OURS.into_iter().filter(|&(version, _)| version > last).map(|(_, table)| table).collect()
}

/// Number, description and text.
type List = &'static [(i64, &'static str, &'static str)];

pub(super) const POSTGRES: List = migrations!("postgres");
pub(super) const SQLITE: List = migrations!("sqlite");

/// What runs them. It takes no lock of its own: the store holds one until the transaction ends.
pub(super) fn migrator(list: List) -> Migrator {
    // `true`: without a transaction each, since the store wraps one around them all.
    let migrations = list.iter().map(|&(version, description, sql)| {
        Migration::new(version, description.into(), MigrationType::Simple, sql.into_sql_str(), true)
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    // Migrations that only a newer headcount knows: they only add, so this one still works.
    migrator.set_ignore_missing(true).set_locking(false);
    migrator.dangerous_set_table_name(TABLE);
    migrator
}

/// The names of those that are not among `applied`, in order.
pub(super) fn pending(list: List, applied: &BTreeSet<i64>) -> Vec<String> {
    let missing = list.iter().filter(|(version, ..)| !applied.contains(version));
    missing.map(|(version, name, _)| format!("{version:04}_{}", name.replace(' ', "_"))).collect()
}

/// What the tables that are there say: `applied` is `None` where there is no [`TABLE`].
pub(super) fn check(
    list: List,
    applied: Option<&BTreeSet<i64>>,
    foreign: Option<&str>,
    place: &str,
    hint: &str,
) -> Result<(), StoreError> {
    let none = BTreeSet::new();
    let applied = applied.unwrap_or(&none);
    refuse_foreign(foreign, place, hint)?;
    let Some(missing) = pending(list, applied).into_iter().next() else { return Ok(()) };
    let state =
        if applied.is_empty() { "has no tables of headcount yet" } else { "is older than this headcount" };
    Err(errors::unusable(format!("{place} {state}: it lacks {missing}"), "run `headcount migrate`"))
}

/// A table with a name that is [`to_come`], and no record that we made it, belongs to someone else.
pub(super) fn refuse_foreign(foreign: Option<&str>, place: &str, hint: &str) -> Result<(), StoreError> {
    foreign.map_or(Ok(()), |table| {
        Err(errors::unusable(format!("{place} holds a table {table} that is not headcount's"), hint))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_databases_have_the_same_migrations() {
        let names = |list: List| list.iter().map(|&(version, name, _)| (version, name)).collect::<Vec<_>>();
        assert_eq!(names(POSTGRES), names(SQLITE));
        assert_eq!(
            pending(POSTGRES, &BTreeSet::new()),
            [
                "0001_users_and_inbox",
                "0002_dead_letters_and_rejections",
                "0003_search_letters",
                "0004_retention_clock",
                "0005_letters_tell_the_outcome",
                "0006_users_to_erase",
                "0007_sync",
                "0008_sessions",
                "0009_anonymous_visitors",
                "0010_subscriptions",
                "0011_operations",
                "0012_processes"
            ]
        );
        assert!(names(POSTGRES).is_sorted());
        for (dialect, list) in [("postgres", POSTGRES), ("sqlite", SQLITE)] {
            let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/").to_owned() + dialect;
            let mut files: Vec<_> = std::fs::read_dir(directory)
                .unwrap()
                .map(|file| file.unwrap().file_name().into_string().unwrap())
                .collect();
            files.sort();
            let known: Vec<_> =
                pending(list, &BTreeSet::new()).iter().map(|name| format!("{name}.sql")).collect();
            assert_eq!(files, known);
        }
    }

    #[test]
    fn the_names_to_come_are_those_of_later_migrations() {
        assert_eq!(to_come(None).len(), OURS.len());
        assert_eq!(to_come(Some(&BTreeSet::from([1])))[0], "dead_letters");
        assert!(to_come(Some(&BTreeSet::from([1, 2, 4, 10, 11, 12]))).is_empty());
        for (version, table) in OURS {
            let text = POSTGRES.iter().find(|(number, ..)| *number == version).map(|(.., sql)| *sql);
            assert!(text.unwrap_or_default().contains(&format!("CREATE TABLE {table} (")), "{table}");
        }
        let tables: usize = POSTGRES.iter().map(|(.., sql)| sql.matches("CREATE TABLE ").count()).sum();
        assert_eq!(tables, OURS.len());
    }
}
