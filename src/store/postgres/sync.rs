//! Owns what the statements of sync need of PostgreSQL: its words for them, and a snapshot. Nothing outlives a
//! transaction, so a pooler may stand in between.

use sqlx::{Postgres, QueryBuilder};

use super::{PostgresStore, connections::Tx};
use crate::store::{
    StoreError,
    sync::tables::{Changing, Kind, Words, Works},
};

// A run fills its table faster than the statistics follow, so that the planner would read it whole if it were free to.
const SNAPSHOT: &str = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL enable_seqscan = off; \
     SET LOCAL jit = off; SET LOCAL lock_timeout = '3s'; SET LOCAL statement_timeout = '30s'";

impl Words for Postgres {
    const NOW: &'static str = "now()";
    const A_DAY_AGO: &'static str = "now() - interval '1 day'";
    const CLOCK: &'static str = "statement_timestamp()";
    const CHECKED: &'static str = "EXPLAIN ";
    const JSON: &'static str = "jsonb";
    const ID: &'static str = "uuid";
    const TIME: &'static str = "timestamptz";
    const HELD: &'static str = " FOR UPDATE";

    fn millis(column: &str) -> String {
        format!("date_trunc('milliseconds', {column})")
    }

    fn later(n: usize) -> String {
        format!("now() + ${n} * interval '1 millisecond'")
    }

    fn members(n: usize) -> String {
        format!("jsonb_each_text(CAST(${n} AS jsonb))")
    }

    fn records(name: &str, n: usize, columns: &[(&str, Kind)]) -> String {
        let columns = columns.iter().map(|(column, kind)| {
            let kind = match kind {
                Kind::Text => "text",
                Kind::Id => "uuid",
                Kind::Time => "timestamptz",
                Kind::Number => "bigint",
                Kind::Flag => "boolean",
            };
            format!("{column} {kind}")
        });
        let columns = columns.collect::<Vec<_>>().join(", ");
        format!("jsonb_to_recordset(CAST(${n} AS jsonb)) AS {name} ({columns})")
    }

    fn held(table: &str) -> String {
        format!(" FOR NO KEY UPDATE OF {table}")
    }

    fn held_if_free(table: &str) -> String {
        format!(" FOR SHARE OF {table} SKIP LOCKED")
    }
}

impl Changing for Tx {
    async fn run(&mut self, mut statement: QueryBuilder<Postgres>) -> Result<u64, StoreError> {
        self.in_time()?;
        Ok(statement.build().execute(self).await?.rows_affected())
    }
}

impl Works for PostgresStore {
    type Snapshot = Tx;

    async fn snapshot(&self) -> Result<Tx, StoreError> {
        self.connections.begin(SNAPSHOT).await
    }
}
