//! Owns what the SQLite store answers about letters, and hands what changes them, in a transaction of the one writer,
//! to `capture`, `replay` and `prune`.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::{QueryBuilder, Row as _, Sqlite, sqlite::SqliteRow, types::Json};
use uuid::Uuid;

use super::{SqliteStore, capture, parse_time, prune, replay, uuid};
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
        retry, unit,
    },
    time::Millis,
};

impl Dialect for Sqlite {
    fn and(query: &mut QueryBuilder<Self>, condition: &Condition<'_>) {
        match condition {
            Condition::Ids(ids) => {
                query.push(" AND id IN (SELECT value FROM json_each(");
                query.push_bind(Json(ids.to_vec())).push("))")
            }
            Condition::Is(column, value) => {
                query.push(format!(" AND {column} = ")).push_bind((*value).to_owned())
            }
            Condition::Contains(text) => {
                query.push(" AND instr(search, ").push_bind(text.clone()).push(") > 0")
            }
            Condition::Died(compared, at) => {
                query.push(format!(" AND died_at {compared} ")).push_bind(rfc3339(*at))
            }
            Condition::After(died_at, id) => {
                query.push(" AND (died_at, id) < (").push_bind(rfc3339(*died_at));
                query.push(", ").push_bind(id.to_string()).push(")")
            }
        };
    }
}

impl SqliteStore {
    fn erases(&self) -> bool {
        self.terms.policy.on_delete == OnDelete::Erase
    }
}

#[async_trait]
impl Letters for SqliteStore {
    async fn capture(&self, letters: &[Captured]) -> Result<Vec<String>, StoreError> {
        let letters = Plain::all(letters);
        retry::again(|| async {
            let mut writing = self.begin().await?;
            let result = capture::letters(&mut writing, &letters, self.erases()).await;
            // The boundary: captured before the delivery is acked.
            writing.end(result).await
        })
        .await
    }

    async fn groups(&self, filter: &Filter) -> Result<Vec<Group>, StoreError> {
        let Some(conditions) = Conditions::of(filter) else { return Ok(Vec::new()) };
        let few = conditions.may_be_few()
            && self.count(filter).await?.iter().map(|count| count.letters).sum::<u64>() <= FEW;
        let rows = conditions.groups::<Sqlite>(few).build().fetch_all(&self.readers).await?;
        Ok(rows.iter().map(group_of).collect::<Result<_, _>>()?)
    }

    async fn groups_named(&self, reference: &str) -> Result<Vec<String>, StoreError> {
        let mut keys: Vec<String> = sqlx::query_scalar(GROUPS).fetch_all(&self.readers).await?;
        keys.retain(|key| key == reference || group_id(key) == reference);
        Ok(keys)
    }

    async fn letters(&self, filter: &Filter, page: &Page) -> Result<Vec<Letter>, StoreError> {
        let Some(conditions) = Conditions::of(filter) else { return Ok(Vec::new()) };
        let rows = conditions.page::<Sqlite>(page, COLUMNS).build().fetch_all(&self.readers).await?;
        rows.iter().map(letter_of).collect()
    }

    async fn letter(&self, reference: &str) -> Result<Option<LetterDetail>, StoreError> {
        if reference.contains('\0') {
            return Ok(None);
        }
        let row = sqlx::query(
            "SELECT id, message_id, round, event_type, clerk_id, reason, detail, attempts, first_seen, died_at, \
             status, outcome, grp, headers, body FROM dead_letters JOIN dead_letter_contents ON letter_id = id \
             WHERE id = ?1 OR message_id = ?2 \
             ORDER BY coalesce(id = ?1, false) DESC LIMIT 1",
        )
        .bind(Uuid::parse_str(reference).ok().map(|id| id.to_string()))
        .bind(reference)
        .fetch_optional(&self.readers)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let letter = letter_of(&row)?;
        let history = sqlx::query(
            "SELECT at, action, round, by, note FROM (SELECT * FROM dead_letter_history WHERE letter_id = ?1 \
             ORDER BY n DESC LIMIT ?2) ORDER BY n",
        )
        .bind(letter.id.to_string())
        .bind(EVENTS_MAX)
        .fetch_all(&self.readers)
        .await?;
        Ok(Some(LetterDetail {
            headers: row.try_get::<Json<_>, _>("headers")?.0,
            body: row.try_get::<Vec<u8>, _>("body")?.into(),
            history: history.iter().map(entry_of).collect::<Result<_, _>>()?,
            letter,
        }))
    }

    async fn count(&self, filter: &Filter) -> Result<Vec<Count>, StoreError> {
        let Some(conditions) = Conditions::of(filter) else { return Ok(Vec::new()) };
        let rows = conditions.count::<Sqlite>().build().fetch_all(&self.readers).await?;
        let count = |row: &SqliteRow| {
            Ok::<_, sqlx::Error>(Count {
                event_type: row.try_get("event_type")?,
                reason: row.try_get("reason")?,
                letters: row.try_get::<i64, _>("letters")?.unsigned_abs(),
            })
        };
        Ok(rows.iter().map(count).collect::<Result<_, _>>()?)
    }

    async fn statuses(&self) -> Result<BTreeMap<Status, u64>, StoreError> {
        let rows: Vec<(String, i64)> = sqlx::query_as(STATUSES).fetch_all(&self.readers).await?;
        rows.into_iter().map(|(name, letters)| Ok((status(&name)?, letters.unsigned_abs()))).collect()
    }

    async fn claim(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<Vec<Claimed>, StoreError> {
        retry::again(|| async {
            let mut writing = self.begin().await?;
            let result = replay::claim(writing.connection()?, filter, limit, by).await;
            writing.end(result).await
        })
        .await
    }

    async fn edit(&self, id: Uuid, body: Bytes, by: &Actor) -> Result<Option<Claimed>, StoreError> {
        retry::again(|| async {
            let mut writing = self.begin().await?;
            let result = replay::edit(writing.connection()?, id, &body, by).await;
            writing.end(result).await
        })
        .await
    }

    async fn clock(&self) -> Result<Millis, StoreError> {
        // The file's clock is this host's.
        Ok(crate::time::now() + 1)
    }

    async fn unstamped(
        &self,
        filter: &Filter,
        before: Millis,
        limit: u32,
    ) -> Result<Vec<Claimed>, StoreError> {
        replay::unstamped(&self.readers, filter, before, limit).await
    }

    async fn stamp(&self, published: &[(Uuid, u32)]) -> Result<(), StoreError> {
        retry::again(|| async {
            let mut writing = self.begin().await?;
            let result = replay::stamp(writing.connection()?, published).await;
            writing.end(result).await
        })
        .await
    }

    async fn discard(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<u64, StoreError> {
        retry::again(|| async {
            let mut writing = self.begin().await?;
            let result = replay::discard(&mut writing, filter, limit, by, self.erases()).await;
            writing.end(result).await
        })
        .await
    }

    async fn restore(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<u64, StoreError> {
        retry::again(|| async {
            let mut writing = self.begin().await?;
            let result = replay::restore(writing.connection()?, filter, limit, by).await;
            writing.end(result).await
        })
        .await
    }

    async fn record_rejections(&self, samples: &[Rejected]) -> Result<(), StoreError> {
        let mut writing = self.begin().await?;
        let result = capture::rejections(writing.connection()?, samples).await;
        writing.end(result).await
    }

    async fn rejections(&self, limit: u32) -> Result<Vec<Rejected>, StoreError> {
        let rows: Vec<(String, String, String, Json<Vec<String>>)> = sqlx::query_as(
            "SELECT at, address, reason, headers FROM rejections ORDER BY at DESC, id DESC LIMIT ?1",
        )
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        let sample = |(at, address, reason, headers): (String, String, String, Json<Vec<String>>)| {
            Ok(Rejected { at: parse_time("at", &at)?, address, reason, headers: headers.0 })
        };
        rows.into_iter().map(sample).collect()
    }

    async fn prune(&self, retention: &Retention, limit: u32) -> Result<Pruned, StoreError> {
        retry::again(|| async {
            let mut writing = self.begin().await?;
            let result = prune::step(writing.connection()?, retention, limit).await;
            writing.end(result).await
        })
        .await
    }

    async fn erase_kept(&self, limit: u32) -> Result<u64, StoreError> {
        unit::erase_kept(self, limit).await
    }
}

fn letter_of(row: &SqliteRow) -> Result<Letter, StoreError> {
    Ok(Letter {
        id: uuid(row, "id")?,
        message_id: row.try_get("message_id")?,
        round: row.try_get("round")?,
        event_type: row.try_get("event_type")?,
        clerk_id: row.try_get("clerk_id")?,
        reason: row.try_get("reason")?,
        detail: row.try_get("detail")?,
        attempts: row.try_get("attempts")?,
        first_seen: row.try_get("first_seen")?,
        died_at: row.try_get("died_at")?,
        status: status(row.try_get("status")?)?,
        outcome: row.try_get("outcome")?,
        group: row.try_get("grp")?,
    })
}

fn group_of(row: &SqliteRow) -> Result<Group, sqlx::Error> {
    let group: String = row.try_get("grp")?;
    Ok(Group {
        id: group_id(&group),
        group,
        reason: row.try_get("reason")?,
        detail: row.try_get::<Option<String>, _>("detail")?.unwrap_or_default(),
        letters: row.try_get::<i64, _>("letters")?.unsigned_abs(),
        first_died_at: row.try_get::<Option<String>, _>("first_died_at")?.unwrap_or_default(),
        last_died_at: row.try_get::<Option<String>, _>("last_died_at")?.unwrap_or_default(),
    })
}

fn entry_of(row: &SqliteRow) -> Result<HistoryEntry, sqlx::Error> {
    Ok(HistoryEntry {
        at: row.try_get("at")?,
        action: row.try_get("action")?,
        round: row.try_get("round")?,
        by: row.try_get("by")?,
        note: row.try_get("note")?,
    })
}

fn status(name: &str) -> Result<Status, StoreError> {
    Status::parse(name).ok_or_else(|| errors::broken("a dead letter has a status that is new to headcount"))
}
