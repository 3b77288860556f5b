//! The models of our tables for Prisma and Drizzle are what the migrations make.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[path = "support/stores.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod stores;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use stores::Home;

/// Columns that an application has no use for.
const OURS: [(&str, &[&str]); 5] = [
    ("users", &["version_sent", "version_kind", "version_message_id", "email_key", "erased"]),
    (
        "sessions",
        &["own_status", "own_ended_at", "user_deleted_at", "version", "version_sent", "version_message_id"],
    ),
    ("anonymous_visitors", &["token_hash"]),
    (
        "subscription_items",
        &[
            "is_default",
            "default_told_at",
            "lapses_at",
            "version_sent",
            "version_message_id",
            "plan_version",
            "plan_version_sent",
            "plan_version_message_id",
        ],
    ),
    ("tier_grants", &[]),
];

/// Each column of a table: its type in SQL, and whether it may be null.
type Tables = BTreeMap<String, BTreeMap<String, (String, bool)>>;

/// What stands between two texts.
fn between<'t>(text: &'t str, before: &str, after: &str) -> Option<&'t str> {
    text.split_once(before)?.1.split_once(after).map(|(found, _)| found)
}

fn prisma() -> Tables {
    let mut tables = Tables::new();
    for model in include_str!("../deploy/models/headcount.prisma").split("\nmodel ").skip(1) {
        let table = between(model, "@@map(\"", "\"").unwrap();
        let mut columns = BTreeMap::new();
        for line in model.lines().skip(1).take_while(|line| !line.trim().is_empty()) {
            let mut words = line.split_whitespace();
            let (field, kind) = (words.next().unwrap(), words.next().unwrap());
            let name = between(line, "@map(\"", "\"").unwrap_or(field);
            let native =
                between(line, "@db.", ")").map_or_else(|| line.split_once("@db.").map(|it| it.1), Some);
            let sql = match (kind.trim_end_matches('?'), native) {
                ("String", None) => "text",
                ("String", Some("Uuid")) => "uuid",
                ("Boolean", None) => "boolean",
                ("Json", None) => "jsonb",
                ("BigInt", None) => "bigint",
                ("DateTime", Some("Timestamptz(6")) => "timestamp with time zone",
                other => panic!("{line}: {other:?}"),
            };
            assert!(
                columns.insert(name.to_owned(), (sql.to_owned(), kind.ends_with('?'))).is_none(),
                "{line}"
            );
        }
        tables.insert(table.to_owned(), columns);
    }
    tables
}

fn drizzle() -> Tables {
    let mut tables = Tables::new();
    for table in include_str!("../deploy/models/headcount.ts").split("pgTable(\"").skip(1) {
        let (name, rest) = table.split_once('"').unwrap();
        let mut columns = BTreeMap::new();
        for line in rest.lines().skip(1).take_while(|line| *line != "})") {
            let (kind, call) = line.split_once(": ").unwrap().1.split_once('(').unwrap();
            let sql = match kind {
                "timestamp" if call.contains("withTimezone: true") => "timestamp with time zone",
                "text" | "uuid" | "boolean" | "jsonb" | "bigint" => kind,
                other => panic!("{line}: {other}"),
            };
            let is_null = !call.contains(".notNull()") && !call.contains(".primaryKey()");
            let column = between(call, "\"", "\"").unwrap().to_owned();
            assert!(columns.insert(column, (sql.to_owned(), is_null)).is_none(), "{line}");
        }
        tables.insert(name.to_owned(), columns);
    }
    tables
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_for_prisma_and_drizzle_are_as_the_migrations_make_the_tables() {
    Home::postgres().await.run(compared).await;
}

async fn compared(home: Arc<Home>) {
    home.store().await;
    let mut made = Tables::new();
    for (table, ours) in OURS {
        let question = format!(
            "SELECT column_name || '|' || data_type || '|' || is_nullable FROM information_schema.columns \
             WHERE table_schema = current_schema() AND table_name = '{table}'"
        );
        let mut left_out: BTreeSet<&str> = ours.iter().copied().collect();
        let mut columns = BTreeMap::new();
        for line in home.texts(&question).await {
            let [name, kind, null] = line.split('|').collect::<Vec<_>>()[..] else { panic!("{line}") };
            if !left_out.remove(name) {
                columns.insert(name.to_owned(), (kind.to_owned(), null == "YES"));
            }
        }
        assert!(left_out.is_empty() && !columns.is_empty(), "{table} has no {left_out:?}");
        made.insert(table.to_owned(), columns);
    }
    assert_eq!(prisma(), made);
    assert_eq!(drizzle(), made);
}
