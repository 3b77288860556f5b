//! Owns what a batch's transaction does on PostgreSQL beside the projections' statements: begin, locks, inbox, letters that
//! take effect, end.

use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, Executor as _};
use uuid::Uuid;

use super::{
    PostgresStore,
    connections::{PEOPLE, Tx},
};
use crate::{
    digest::sha256,
    rules::Outcome,
    store::{
        Incoming, StoreError, Terms,
        columns::At,
        errors,
        plain::OURSELVES,
        times::time_or_null,
        unit::{Gone, Lock, Purpose, Remembered, Transaction, Transactions},
    },
    time::Millis,
};

// Every statement of a batch looks rows up by an index. A table that has grown faster than its statistics would be read
// whole, for each batch, if the planner were free to.
/// Of what is about one message, or waits for nobody in front of it.
pub(super) const ALONE: &str = "SET LOCAL enable_seqscan = off; SET LOCAL lock_timeout = '3s'; \
                                SET LOCAL statement_timeout = '5s'";

// One message that waits or hangs is met again at every size of its batch until it is found, and its neighbours wait
// with it.
const TOGETHER: &str = "SET LOCAL enable_seqscan = off; SET LOCAL lock_timeout = '1s'; \
                        SET LOCAL statement_timeout = '2s'";

const READY: &str = "SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '3s'";

impl Transactions for PostgresStore {
    type Tx = Tx;

    async fn begin(&self, purpose: Purpose) -> Result<Tx, StoreError> {
        match purpose {
            Purpose::Batch(messages, last_begin) => {
                let settings = if messages > 1 { TOGETHER } else { ALONE };
                Ok(self.connections.begin(settings).await?.until(last_begin))
            }
            Purpose::Few => self.connections.begin(ALONE).await,
            Purpose::People => self.connections.begin(PEOPLE).await,
            Purpose::Ready => self.connections.begin(READY).await,
        }
    }

    fn terms(&self) -> &Terms {
        &self.terms
    }
}

// The sort is in a subquery, so that the locks are taken in its order.
const LOCK: &str = "SELECT pg_advisory_xact_lock(k) \
     FROM (SELECT DISTINCT k FROM unnest($1::bigint[]) AS k ORDER BY k) AS s";

const REMEMBERED: &str = "SELECT message_id, NULL::timestamptz, NULL::uuid FROM inbox WHERE message_id = ANY($1) \
     UNION ALL SELECT clerk_id, deleted_at, user_id FROM former_clerk_ids WHERE clerk_id = ANY($2)";

// Of a message that another transaction has written, the unique key tells: to pass over it would cost each message more.
// The time of the statement, not of the transaction, so that it follows that of the batch this one waited for.
const RECORD: &str = "INSERT INTO inbox \
     (message_id, event_type, clerk_id, outcome, event_at, received_at, processed_at) \
     SELECT m, t, c, o, e, r, statement_timestamp() \
     FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[]) \
     WITH ORDINALITY AS i (m, t, c, o, e, r, n) ORDER BY n";

const NOT_APPLIED: &str = "SELECT id, clerk_id FROM dead_letters WHERE message_id = ANY($1) AND status <> 'applied' \
     ORDER BY message_id COLLATE \"C\" FOR UPDATE";

const APPLY: &str = "WITH changed AS (UPDATE dead_letters SET status = 'applied', \
     settled_at = statement_timestamp(), \
     outcome = (SELECT outcome FROM inbox AS i WHERE i.message_id = dead_letters.message_id) \
     WHERE id = ANY($1) RETURNING id, round) \
     INSERT INTO dead_letter_history (letter_id, at, action, round, by) \
     SELECT id, statement_timestamp(), 'applied', round, $2 FROM changed";

/// What the triggers on letters do.
const TALLY: &str = "INSERT INTO dead_letter_tallies (grp, reason, event_type, status, letters) \
     SELECT '', '', '', '', 0 WHERE false";

// All of the letters are locked first, so that one that is being discarded right now is waited for.
const NOT_ERASED: &str = "SELECT id, grp FROM dead_letters WHERE clerk_id = ANY($1) AND NOT erased \
     ORDER BY message_id COLLATE \"C\" FOR UPDATE";

const ERASE: &str = "WITH changed AS (UPDATE dead_letters AS l \
     SET detail = '', grp = reason, search = lower(message_id), erased = true \
     WHERE id = ANY($1) AND status IN ('applied', 'discarded') \
     AND (EXISTS (SELECT FROM users AS u WHERE u.clerk_id = l.clerk_id AND u.erased) \
     OR EXISTS (SELECT FROM former_clerk_ids AS f WHERE f.clerk_id = l.clerk_id)) RETURNING id), \
     emptied AS (UPDATE dead_letter_contents AS c SET body = '', headers = '{}' FROM changed \
     WHERE c.letter_id = changed.id) \
     UPDATE dead_letter_history AS h SET note = NULL FROM changed \
     WHERE h.letter_id = changed.id AND h.note IS NOT NULL";

// A group's name may have been of the erased detail: of groups that are empty now, the tallies keep nothing either.
const TIDY: &str = "WITH gone AS (DELETE FROM dead_letter_tallies WHERE ctid = ANY(ARRAY(\
     SELECT ctid FROM dead_letter_tallies WHERE grp = ANY($1) FOR UPDATE SKIP LOCKED)) RETURNING *) \
     INSERT INTO dead_letter_tallies SELECT grp, reason, event_type, status, sum(letters) FROM gone \
     GROUP BY grp, reason, event_type, status HAVING sum(letters) <> 0";

const KEPT_LETTERS: &str = "SELECT DISTINCT clerk_id FROM (SELECT clerk_id FROM dead_letters AS l \
     WHERE settled_at IS NOT NULL AND NOT erased \
     AND (EXISTS (SELECT FROM users AS u WHERE u.clerk_id = l.clerk_id AND u.erased) \
     OR EXISTS (SELECT FROM former_clerk_ids AS f WHERE f.clerk_id = l.clerk_id)) LIMIT $1) AS found";

impl Transaction for Tx {
    async fn lock(&mut self, locks: &BTreeSet<Lock<'_>>) -> Result<(), StoreError> {
        self.in_time()?;
        let number = |lock: &Lock<'_>| match lock {
            Lock::Address(key) => lock_id(self.schema(), "address", key),
            Lock::Account(clerk_id) => lock_id(self.schema(), "clerk id", clerk_id),
            Lock::Replays => lock_id(self.schema(), "replays", ""),
        };
        let numbers: Vec<i64> = locks.iter().map(number).collect();
        sqlx::query(LOCK).bind(numbers).execute(self).await?;
        Ok(())
    }

    async fn remembered(&mut self, messages: &[&str], clerk_ids: &[&str]) -> Result<Remembered, StoreError> {
        self.in_time()?;
        let remembered = sqlx::query_as(REMEMBERED).bind(messages).bind(clerk_ids);
        let rows: Vec<(String, Option<At>, Option<Uuid>)> = remembered.fetch_all(self).await?;
        let (mut messages, mut former) = (HashSet::new(), HashMap::new());
        for (id, deleted_at, user_id) in rows {
            match deleted_at {
                None => drop(messages.insert(id)),
                Some(At(deleted_at)) => drop(former.insert(id, Gone { user_id, deleted_at })),
            }
        }
        Ok(Remembered { messages, former })
    }

    async fn record(&mut self, entries: &[(&Incoming, Outcome)]) -> Result<(), StoreError> {
        self.in_time()?;
        let events = || entries.iter().map(|(incoming, _)| &incoming.event);
        let times = |at: fn(&Incoming) -> Option<Millis>| {
            entries.iter().map(|(incoming, _)| time_or_null(at(incoming))).collect::<Result<Vec<_>, _>>()
        };
        let record = sqlx::query(RECORD)
            .bind(events().map(|event| event.message_id.as_str()).collect::<Vec<_>>())
            .bind(entries.iter().map(|(incoming, _)| incoming.event_type.as_str()).collect::<Vec<_>>())
            .bind(events().map(|event| event.change.clerk_id()).collect::<Vec<_>>())
            .bind(entries.iter().map(|(_, outcome)| outcome.as_str()).collect::<Vec<_>>())
            .bind(times(|incoming| incoming.event.change.at())?)
            .bind(times(|incoming| Some(incoming.received_at))?);
        errors::all_written("inbox", record.execute(self).await?.rows_affected(), entries.len())
    }

    async fn apply_letters(&mut self, messages: &[&str]) -> Result<Vec<String>, StoreError> {
        self.in_time()?;
        // A question of its own, because nearly always it is all that there is to do.
        let letters: Vec<(Uuid, Option<String>)> =
            sqlx::query_as(NOT_APPLIED).bind(messages).fetch_all(&mut *self).await?;
        let (ids, clerk_ids): (Vec<Uuid>, Vec<Option<String>>) = letters.into_iter().unzip();
        if !ids.is_empty() {
            sqlx::query(APPLY).bind(ids).bind(OURSELVES).execute(self).await?;
        }
        Ok(clerk_ids.into_iter().flatten().collect())
    }

    async fn erase_letters(&mut self, clerk_ids: &[&str]) -> Result<(), StoreError> {
        if clerk_ids.is_empty() {
            return Ok(());
        }
        self.in_time()?;
        let letters: Vec<(Uuid, String)> =
            sqlx::query_as(NOT_ERASED).bind(clerk_ids).fetch_all(&mut *self).await?;
        let (ids, groups): (Vec<Uuid>, Vec<String>) = letters.into_iter().unzip();
        if !ids.is_empty() {
            sqlx::query(ERASE).bind(ids).execute(&mut *self).await?;
            sqlx::query(TIDY).bind(groups).execute(self).await?;
        }
        Ok(())
    }

    async fn kept_letters(&mut self, limit: u32) -> Result<Vec<String>, StoreError> {
        Ok(sqlx::query_scalar(KEPT_LETTERS).bind(i64::from(limit)).fetch_all(self).await?)
    }

    async fn write_and_remove(&mut self, message: &str) -> Result<bool, StoreError> {
        let written = sqlx::query(
            "INSERT INTO inbox (message_id, event_type, outcome, received_at, processed_at) \
             VALUES ($1, '', 'asking', now(), now())",
        );
        let written = written.bind(message).execute(&mut *self).await?;
        let removed = sqlx::query("DELETE FROM inbox WHERE message_id = $1").bind(message);
        let removed = removed.execute(self).await?;
        // A policy or a rule of the application's can hide rows.
        Ok((written.rows_affected(), removed.rows_affected()) == (1, 1))
    }

    /// Asks for the plans, which need what running the statements needs. What the triggers on letters write counts too.
    async fn check_statements(&mut self, erases: bool) -> Result<(), StoreError> {
        let plan = |statement: &str| sqlx::query(AssertSqlSafe(format!("EXPLAIN {statement}")));
        let (texts, uuids, times) = (Vec::<&str>::new(), Vec::<Uuid>::new(), Vec::<DateTime<Utc>>::new());
        let record = plan(RECORD).bind(&texts).bind(&texts).bind(&texts).bind(&texts);
        let mut plans = vec![
            plan(REMEMBERED).bind(&texts).bind(&texts),
            record.bind(&times).bind(&times),
            plan(NOT_APPLIED).bind(&texts),
            plan(APPLY).bind(&uuids).bind(OURSELVES),
            plan(TALLY),
        ];
        if erases {
            plans.push(plan(NOT_ERASED).bind(&texts));
            plans.push(plan(ERASE).bind(&uuids));
            plans.push(plan(TIDY).bind(&texts));
        }
        for plan in plans {
            self.execute(plan).await?;
        }
        Ok(())
    }

    async fn check_deferred(&mut self) -> Result<(), StoreError> {
        self.execute("SET CONSTRAINTS ALL IMMEDIATE").await?;
        Ok(())
    }

    async fn end<R: Send>(self, result: Result<R, StoreError>) -> Result<R, StoreError> {
        match result.and_then(|value| self.in_time().map(|()| value)) {
            Ok(value) => self.commit().await.map(|()| value),
            Err(error) => {
                self.roll_back().await;
                Err(error)
            }
        }
    }
}

/// A number for an advisory lock, which are one space per database: the same in every process and version, and with
/// 64 bits of a hash as good as unique.
pub(super) fn lock_id(schema: &str, kind: &str, name: &str) -> i64 {
    let digest = sha256(format!("headcount\0{schema}\0{kind}\0{name}").as_bytes());
    let [a, b, c, d, e, f, g, h, ..] = digest;
    i64::from_be_bytes([a, b, c, d, e, f, g, h])
}
