//! Owns what a batch's transaction does on SQLite beside the projections' statements: begin, inbox, letters that take
//! effect, end. One connection writes, so a transaction holds everything from its begin.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::json;
use sqlx::{SqliteConnection, types::Json};

use super::{SqliteStore, writing::Writing};
use crate::{
    rules::Outcome,
    store::{
        Incoming, StoreError, Terms,
        columns::{At, Id},
        plain::OURSELVES,
        times::{rfc3339, time_or_null},
        unit::{Gone, Lock, Purpose, Remembered, Transaction, Transactions},
    },
    time::Millis,
};

impl Transactions for SqliteStore {
    type Tx = Writing;

    async fn begin(&self, _: Purpose) -> Result<Writing, StoreError> {
        Writing::begin(&self.file, &self.writer).await
    }

    fn terms(&self) -> &Terms {
        &self.terms
    }
}

const RECORD: &str = concat!(
    "INSERT INTO inbox (message_id, event_type, clerk_id, outcome, event_at, received_at, processed_at) \
     SELECT value->>'message_id', value->>'event_type', value->>'clerk_id', value->>'outcome', \
     value->>'event_at', value->>'received_at', ",
    now!(),
    " FROM json_each(?1)"
);

const NOT_APPLIED: &str = "SELECT id, clerk_id FROM dead_letters \
     WHERE message_id IN (SELECT value FROM json_each(?1)) AND status <> 'applied'";

const APPLY: [&str; 2] = [
    concat!(
        "UPDATE dead_letters SET status = 'applied', settled_at = ",
        now!(),
        ", outcome = (SELECT outcome FROM inbox AS i WHERE i.message_id = dead_letters.message_id) \
         WHERE id IN (SELECT value FROM json_each(?1)) AND ?2 <> ''"
    ),
    concat!(
        "INSERT INTO dead_letter_history (letter_id, at, action, round, by) SELECT id, ",
        now!(),
        ", 'applied', round, ?2 FROM dead_letters WHERE id IN (SELECT value FROM json_each(?1))"
    ),
];

const ERASE: &str = "UPDATE dead_letters SET detail = '', grp = reason, search = lower(message_id), erased = 1 \
     WHERE clerk_id IN (SELECT value FROM json_each(?1)) AND NOT erased AND status IN ('applied', 'discarded') \
     AND (EXISTS (SELECT 1 FROM users AS u WHERE u.clerk_id = dead_letters.clerk_id AND u.erased) \
     OR EXISTS (SELECT 1 FROM former_clerk_ids AS f WHERE f.clerk_id = dead_letters.clerk_id)) RETURNING id";

const EMPTY: [&str; 2] = [
    "UPDATE dead_letter_contents SET body = x'', headers = '{}' \
     WHERE letter_id IN (SELECT value FROM json_each(?1))",
    "UPDATE dead_letter_history SET note = NULL \
     WHERE letter_id IN (SELECT value FROM json_each(?1)) AND note IS NOT NULL",
];

const KEPT_LETTERS: &str = "SELECT DISTINCT clerk_id FROM (SELECT clerk_id FROM dead_letters AS l \
     WHERE settled_at IS NOT NULL AND NOT erased \
     AND (EXISTS (SELECT 1 FROM users AS u WHERE u.clerk_id = l.clerk_id AND u.erased) \
     OR EXISTS (SELECT 1 FROM former_clerk_ids AS f WHERE f.clerk_id = l.clerk_id)) LIMIT ?1)";

impl Transaction for Writing {
    async fn lock(&mut self, _: &BTreeSet<Lock<'_>>) -> Result<(), StoreError> {
        Ok(())
    }

    async fn remembered(&mut self, messages: &[&str], clerk_ids: &[&str]) -> Result<Remembered, StoreError> {
        let known: Vec<String> = sqlx::query_scalar(
            "SELECT message_id FROM inbox WHERE message_id IN (SELECT value FROM json_each(?1))",
        )
        .bind(Json(messages))
        .fetch_all(self.connection()?)
        .await?;
        let former: Vec<(String, Option<Id>, At)> = sqlx::query_as(
            "SELECT clerk_id, user_id, deleted_at FROM former_clerk_ids WHERE clerk_id IN (SELECT value FROM json_each(?1))",
        )
        .bind(Json(clerk_ids))
        .fetch_all(self.connection()?)
        .await?;
        let former = former.into_iter().map(|(clerk_id, user_id, At(deleted_at))| {
            (clerk_id, Gone { user_id: user_id.map(|Id(id)| id), deleted_at })
        });
        let former = former.collect();
        Ok(Remembered { messages: known.into_iter().collect(), former })
    }

    async fn record(&mut self, entries: &[(&Incoming, Outcome)]) -> Result<(), StoreError> {
        let text = |at: Option<Millis>| Ok::<_, StoreError>(time_or_null(at)?.map(rfc3339));
        let object = |(incoming, outcome): &(&Incoming, Outcome)| {
            Ok(json!({
                "message_id": incoming.event.message_id,
                "event_type": incoming.event_type,
                "clerk_id": incoming.event.change.clerk_id(),
                "outcome": outcome.as_str(),
                "event_at": text(incoming.event.change.at())?,
                "received_at": text(Some(incoming.received_at))?,
            }))
        };
        let entries = entries.iter().map(object).collect::<Result<Vec<_>, StoreError>>()?;
        sqlx::query(RECORD).bind(Json(entries)).execute(self.connection()?).await?;
        Ok(())
    }

    async fn apply_letters(&mut self, messages: &[&str]) -> Result<Vec<String>, StoreError> {
        apply_letters(self.connection()?, messages).await
    }

    async fn erase_letters(&mut self, clerk_ids: &[&str]) -> Result<(), StoreError> {
        erase_letters(self.connection()?, clerk_ids).await
    }

    async fn kept_letters(&mut self, limit: u32) -> Result<Vec<String>, StoreError> {
        Ok(sqlx::query_scalar(KEPT_LETTERS).bind(limit).fetch_all(self.connection()?).await?)
    }

    async fn write_and_remove(&mut self, message: &str) -> Result<bool, StoreError> {
        let written = sqlx::query(concat!(
            "INSERT INTO inbox (message_id, event_type, outcome, received_at, processed_at) VALUES (?1, '', 'asking', ",
            now!(),
            ", ",
            now!(),
            ")"
        ));
        let written = written.bind(message).execute(self.connection()?).await?;
        let removed = sqlx::query("DELETE FROM inbox WHERE message_id = ?1").bind(message);
        let removed = removed.execute(self.connection()?).await?;
        Ok((written.rows_affected(), removed.rows_affected()) == (1, 1))
    }

    /// Runs the statements for no row at all.
    async fn check_statements(&mut self, _: bool) -> Result<(), StoreError> {
        self.remembered(&[], &[]).await?;
        self.record(&[]).await?;
        self.apply_letters(&[]).await?;
        mark_applied(self.connection()?, Vec::new()).await
    }

    async fn check_deferred(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn end<R: Send>(self, result: Result<R, StoreError>) -> Result<R, StoreError> {
        Self::end(self, result).await
    }
}

pub(super) async fn apply_letters(
    tx: &mut SqliteConnection,
    messages: &[impl Serialize],
) -> Result<Vec<String>, StoreError> {
    // A question of its own, because nearly always it is all that there is to do.
    let letters: Vec<(String, Option<String>)> =
        sqlx::query_as(NOT_APPLIED).bind(Json(messages)).fetch_all(&mut *tx).await?;
    let (ids, clerk_ids): (Vec<String>, Vec<Option<String>>) = letters.into_iter().unzip();
    if !ids.is_empty() {
        mark_applied(tx, ids).await?;
    }
    Ok(clerk_ids.into_iter().flatten().collect())
}

/// Sets these letters to `applied`, and writes it down.
async fn mark_applied(tx: &mut SqliteConnection, ids: Vec<String>) -> Result<(), StoreError> {
    let ids = Json(ids);
    for statement in APPLY {
        sqlx::query(statement).bind(&ids).bind(OURSELVES).execute(&mut *tx).await?;
    }
    Ok(())
}

pub(super) async fn erase_letters(
    tx: &mut SqliteConnection,
    clerk_ids: &[impl Serialize],
) -> Result<(), StoreError> {
    if clerk_ids.is_empty() {
        return Ok(());
    }
    let letters: Vec<String> = sqlx::query_scalar(ERASE).bind(Json(clerk_ids)).fetch_all(&mut *tx).await?;
    if letters.is_empty() {
        return Ok(());
    }
    let letters = Json(letters);
    for statement in EMPTY {
        sqlx::query(statement).bind(&letters).execute(&mut *tx).await?;
    }
    Ok(())
}
