//! Owns what the PostgreSQL store answers about letters, and hands what changes them to `capture`, `replay`, `settle`
//! and `prune`. What lost a race is run again.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use sqlx::{Postgres, QueryBuilder, Row as _, postgres::PgRow, types::Json};
use uuid::Uuid;

use super::{PostgresStore, capture, connections::PEOPLE, prune, replay};
use crate::{
    rules::users::OnDelete,
    store::{
        StoreError,
        batch::rfc3339,
        errors,
        filter::{COLUMNS, Condition, Conditions, Dialect, FEW, GROUPS, STATUSES},
        letters::{
            Actor, Captured, Claimed, Count, Filter, Group, HistoryEntry, Letter, LetterDetail, Letters,
            Page, Pruned, Rejected, Retention, Status, group_id,
        },
        plain::Plain,
        reference::EVENTS_MAX,
        retry,
        unit::{self, Transaction as _},
    },
    time::Millis,
};

// Questions that are put together are never kept prepared: each is planned for its own values.
impl Dialect for Postgres {
    fn and(query: &mut QueryBuilder<Self>, condition: &Condition<'_>) {
        match condition {
            Condition::Ids(ids) => query.push(" AND id = ANY(").push_bind(ids.to_vec()).push(")"),
            Condition::Is(column, value) => {
                query.push(format!(" AND {column} = ")).push_bind((*value).to_owned())
            }
            // In this form, because it is what an index of trigrams answers.
            Condition::Contains(text) => query.push(" AND search LIKE ").push_bind(like(text)),
            Condition::Died(compared, at) => query.push(format!(" AND died_at {compared} ")).push_bind(*at),
            Condition::After(died_at, id) => {
                query.push(" AND (died_at, id) < (").push_bind(*died_at);
                query.push(", ").push_bind(*id).push(")")
            }
        };
    }
}

/// The pattern of a text, whatever it holds.
fn like(text: &str) -> String {
    let mut pattern = String::from("%");
    for c in text.chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

#[async_trait]
impl Letters for PostgresStore {
    async fn capture(&self, letters: &[Captured]) -> Result<Vec<String>, StoreError> {
        let letters = Plain::all(letters);
        if letters.is_empty() {
            return Ok(Vec::new());
        }
        retry::again(|| capture::letters(self, &letters)).await
    }

    async fn groups(&self, filter: &Filter) -> Result<Vec<Group>, StoreError> {
        let Some(conditions) = Conditions::of(filter) else { return Ok(Vec::new()) };
        let few = conditions.may_be_few()
            && self.count(filter).await?.iter().map(|count| count.letters).sum::<u64>() <= FEW;
        let mut tx = self.connections.begin(PEOPLE).await?;
        let rows = conditions.groups::<Postgres>(few).build().persistent(false).fetch_all(&mut tx).await?;
        tx.commit().await?;
        Ok(rows.iter().map(group_of).collect::<Result<_, _>>()?)
    }

    async fn groups_named(&self, reference: &str) -> Result<Vec<String>, StoreError> {
        let mut tx = self.connections.begin(PEOPLE).await?;
        let mut keys: Vec<String> = sqlx::query_scalar(GROUPS).fetch_all(&mut tx).await?;
        tx.commit().await?;
        keys.retain(|key| key == reference || group_id(key) == reference);
        Ok(keys)
    }

    async fn letters(&self, filter: &Filter, page: &Page) -> Result<Vec<Letter>, StoreError> {
        let Some(conditions) = Conditions::of(filter) else { return Ok(Vec::new()) };
        let mut tx = self.connections.begin(PEOPLE).await?;
        let mut asked = conditions.page::<Postgres>(page, COLUMNS);
        let rows = asked.build().persistent(false).fetch_all(&mut tx).await?;
        tx.commit().await?;
        rows.iter().map(letter_of).collect()
    }

    async fn letter(&self, reference: &str) -> Result<Option<LetterDetail>, StoreError> {
        if reference.contains('\0') {
            return Ok(None);
        }
        let mut tx = self.connections.begin(PEOPLE).await?;
        let row = sqlx::query(
            "SELECT id, message_id, round, event_type, clerk_id, reason, detail, attempts, first_seen, died_at, \
             status, outcome, grp, headers, body FROM dead_letters JOIN dead_letter_contents ON letter_id = id \
             WHERE id = $1 OR message_id = $2 \
             ORDER BY coalesce(id = $1, false) DESC LIMIT 1",
        )
        .bind(Uuid::parse_str(reference).ok())
        .bind(reference)
        .fetch_optional(&mut tx)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let letter = letter_of(&row)?;
        let history = sqlx::query(
            "SELECT at, action, round, by, note FROM (SELECT * FROM dead_letter_history WHERE letter_id = $1 \
             ORDER BY n DESC LIMIT $2) AS h ORDER BY n",
        )
        .bind(letter.id)
        .bind(i64::from(EVENTS_MAX))
        .fetch_all(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(Some(LetterDetail {
            headers: row.try_get::<Json<_>, _>("headers")?.0,
            body: row.try_get::<Vec<u8>, _>("body")?.into(),
            history: history.iter().map(entry_of).collect::<Result<_, _>>()?,
            letter,
        }))
    }

    async fn count(&self, filter: &Filter) -> Result<Vec<Count>, StoreError> {
        let Some(conditions) = Conditions::of(filter) else { return Ok(Vec::new()) };
        let mut tx = self.connections.begin(PEOPLE).await?;
        let rows = conditions.count::<Postgres>().build().persistent(false).fetch_all(&mut tx).await?;
        tx.commit().await?;
        let count = |row: &PgRow| {
            Ok::<_, sqlx::Error>(Count {
                event_type: row.try_get("event_type")?,
                reason: row.try_get("reason")?,
                letters: row.try_get::<i64, _>("letters")?.unsigned_abs(),
            })
        };
        Ok(rows.iter().map(count).collect::<Result<_, _>>()?)
    }

    async fn statuses(&self) -> Result<BTreeMap<Status, u64>, StoreError> {
        let mut tx = self.connections.begin(PEOPLE).await?;
        let rows: Vec<(String, i64)> = sqlx::query_as(STATUSES).fetch_all(&mut tx).await?;
        tx.commit().await?;
        rows.into_iter().map(|(name, letters)| Ok((status(&name)?, letters.unsigned_abs()))).collect()
    }

    async fn claim(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<Vec<Claimed>, StoreError> {
        retry::again(|| replay::claim(self, filter, limit, by)).await
    }

    async fn edit(&self, id: Uuid, body: Bytes, by: &Actor) -> Result<Option<Claimed>, StoreError> {
        retry::again(|| replay::edit(self, id, &body, by)).await
    }

    async fn clock(&self) -> Result<Millis, StoreError> {
        let mut tx = self.connections.begin(PEOPLE).await?;
        let now: DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&mut tx).await?;
        tx.commit().await?;
        Ok(now.timestamp_millis() + 1)
    }

    async fn unstamped(
        &self,
        filter: &Filter,
        before: Millis,
        limit: u32,
    ) -> Result<Vec<Claimed>, StoreError> {
        replay::unstamped(self, filter, before, limit).await
    }

    async fn stamp(&self, published: &[(Uuid, u32)]) -> Result<(), StoreError> {
        retry::again(|| replay::stamp(self, published)).await
    }

    async fn discard(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<u64, StoreError> {
        retry::again(|| async {
            let mut tx = self.connections.begin(PEOPLE).await?;
            let users = replay::discard(&mut tx, filter, limit, by).await?;
            let discarded = users.len() as u64;
            if self.terms.policy.on_delete == OnDelete::Erase {
                tx.erase_letters(&users.iter().flatten().map(String::as_str).collect::<Vec<_>>()).await?;
            }
            tx.commit().await?;
            Ok(discarded)
        })
        .await
    }

    async fn restore(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<u64, StoreError> {
        retry::again(|| replay::restore(self, filter, limit, by)).await
    }

    async fn record_rejections(&self, samples: &[Rejected]) -> Result<(), StoreError> {
        prune::record(&self.connections, samples).await
    }

    async fn rejections(&self, limit: u32) -> Result<Vec<Rejected>, StoreError> {
        prune::rejections(&self.connections, limit).await
    }

    async fn prune(&self, retention: &Retention, limit: u32) -> Result<Pruned, StoreError> {
        retry::again(|| prune::step(&self.connections, retention, limit)).await
    }

    async fn erase_kept(&self, limit: u32) -> Result<u64, StoreError> {
        unit::erase_kept(self, limit).await
    }
}

fn letter_of(row: &PgRow) -> Result<Letter, StoreError> {
    Ok(Letter {
        id: row.try_get("id")?,
        message_id: row.try_get("message_id")?,
        round: small(row, "round")?,
        event_type: row.try_get("event_type")?,
        clerk_id: row.try_get("clerk_id")?,
        reason: row.try_get("reason")?,
        detail: row.try_get("detail")?,
        attempts: small(row, "attempts")?,
        first_seen: time(row, "first_seen")?,
        died_at: time(row, "died_at")?,
        status: status(row.try_get("status")?)?,
        outcome: row.try_get("outcome")?,
        group: row.try_get("grp")?,
    })
}

fn group_of(row: &PgRow) -> Result<Group, sqlx::Error> {
    // A group whose last letter is going right now may have a count and no letter.
    let time = |column| Ok::<_, sqlx::Error>(row.try_get::<Option<DateTime<Utc>>, _>(column)?.map(rfc3339));
    let group: String = row.try_get("grp")?;
    Ok(Group {
        id: group_id(&group),
        group,
        reason: row.try_get("reason")?,
        detail: row.try_get::<Option<String>, _>("detail")?.unwrap_or_default(),
        letters: row.try_get::<i64, _>("letters")?.unsigned_abs(),
        first_died_at: time("first_died_at")?.unwrap_or_default(),
        last_died_at: time("last_died_at")?.unwrap_or_default(),
    })
}

fn entry_of(row: &PgRow) -> Result<HistoryEntry, sqlx::Error> {
    Ok(HistoryEntry {
        at: time(row, "at")?,
        action: row.try_get("action")?,
        round: small(row, "round")?,
        by: row.try_get("by")?,
        note: row.try_get("note")?,
    })
}

fn time(row: &PgRow, column: &'static str) -> Result<String, sqlx::Error> {
    Ok(rfc3339(row.try_get(column)?))
}

/// A number that is one of `u32` everywhere but in the table, which has no such type.
pub(super) fn small(row: &PgRow, column: &'static str) -> Result<u32, sqlx::Error> {
    Ok(u32::try_from(row.try_get::<i64, _>(column)?).unwrap_or(u32::MAX))
}

fn status(name: &str) -> Result<Status, StoreError> {
    Status::parse(name).ok_or_else(|| errors::broken("a dead letter has a status that is new to headcount"))
}
