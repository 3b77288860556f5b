//! Owns what the statements of sync need of SQLite: its words for them, a snapshot, and how the one writer reads.

use sqlx::{QueryBuilder, Sqlite, Transaction};

use super::{SqliteStore, writing::Writing};
use crate::store::{
    StoreError,
    questions::{Decoded, Planned, Reading},
    sync::tables::{Changing, Kind, Words, Works},
};

impl Words for Sqlite {
    const NOW: &'static str = now!();
    const A_DAY_AGO: &'static str = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-1 day')";
    const CLOCK: &'static str = now!();
    // It has no triggers of whole statements.
    const CHECKED: &'static str = "";
    const JSON: &'static str = "text";
    const ID: &'static str = "text";
    const TIME: &'static str = "text";
    // The one writer holds everything.
    const HELD: &'static str = "";

    fn millis(column: &str) -> String {
        column.to_owned()
    }

    fn later(n: usize) -> String {
        format!("strftime('%Y-%m-%dT%H:%M:%fZ', 'now', (${n} / 1000.0) || ' seconds')")
    }

    fn members(n: usize) -> String {
        format!("json_each(${n})")
    }

    fn records(name: &str, n: usize, columns: &[(&str, Kind)]) -> String {
        let columns = columns.iter().map(|(column, _)| format!("value->>'{column}' AS {column}"));
        let columns = columns.collect::<Vec<_>>().join(", ");
        format!("(SELECT {columns} FROM json_each(${n})) AS {name}")
    }

    fn held(_: &str) -> String {
        String::new()
    }

    fn held_if_free(_: &str) -> String {
        String::new()
    }
}

impl Reading for Writing {
    type Db = Sqlite;

    async fn rows<T: Decoded>(
        &mut self,
        mut question: QueryBuilder<Sqlite>,
        _: Planned,
    ) -> Result<Vec<T>, StoreError> {
        Ok(question.build_query_as().fetch_all(self.connection()?).await?)
    }

    async fn end(self) -> Result<(), StoreError> {
        Writing::end(self, Ok(())).await
    }
}

impl Changing for Writing {
    async fn run(&mut self, mut statement: QueryBuilder<Sqlite>) -> Result<u64, StoreError> {
        Ok(statement.build().execute(self.connection()?).await?.rows_affected())
    }
}

// It begins with its first question, and sees until its end what was committed then.
impl Reading for Transaction<'static, Sqlite> {
    type Db = Sqlite;

    async fn rows<T: Decoded>(
        &mut self,
        mut question: QueryBuilder<Sqlite>,
        _: Planned,
    ) -> Result<Vec<T>, StoreError> {
        Ok(question.build_query_as().fetch_all(&mut **self).await?)
    }

    async fn end(self) -> Result<(), StoreError> {
        Ok(self.commit().await?)
    }
}

impl Works for SqliteStore {
    type Snapshot = Transaction<'static, Sqlite>;

    async fn snapshot(&self) -> Result<Self::Snapshot, StoreError> {
        Ok(self.readers.begin().await?)
    }
}
