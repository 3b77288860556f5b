//! Owns what people do to letters: claim them for replay, edit, discard, restore; and the stamps of publications.
//! Part of transactions that are others', and that exclude one another.

use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection, SqlitePool, sqlite::SqliteRow, types::Json};
use uuid::Uuid;

use super::{parse_time, uuid, writing::Writing};
use crate::{
    clerk,
    store::{
        StoreError,
        batch::rfc3339,
        filter::Conditions,
        letters::{Actor, Claimed, Filter, Status},
        plain::{self, OURSELVES},
        unit::Transaction as _,
    },
    time::Millis,
};

/// What a step makes of letters: the action's name, and how it is done. `?2` is the actor.
struct Step {
    action: &'static str,
    set: &'static str,
}

const REPLAYED: Step = Step {
    action: "replayed",
    set: concat!(
        "UPDATE dead_letters SET status = 'replayed', round = round + 1, claimed_at = ",
        now!(),
        ", claimed_by = ?2, published_at = NULL WHERE id IN (SELECT value FROM json_each(?1))"
    ),
};

const DISCARDED: Step = Step {
    action: "discarded",
    set: concat!(
        "UPDATE dead_letters SET status = 'discarded', settled_at = ",
        now!(),
        " WHERE id IN (SELECT value FROM json_each(?1)) AND ?2 IS NOT NULL"
    ),
};

const RESTORED: Step = Step {
    action: "restored",
    set: "UPDATE dead_letters SET status = 'open', settled_at = NULL \
          WHERE id IN (SELECT value FROM json_each(?1)) AND ?2 IS NOT NULL",
};

impl Step {
    /// Moves these letters, and writes it down.
    async fn run(&self, tx: &mut SqliteConnection, ids: &[String], by: &Actor) -> Result<(), StoreError> {
        let (name, note) = plain::actor(by);
        sqlx::query(self.set).bind(Json(ids)).bind(&name).execute(&mut *tx).await?;
        sqlx::query(concat!(
            "INSERT INTO dead_letter_history (letter_id, at, action, round, by, note) SELECT id, ",
            now!(),
            ", ?2, round, ?3, ?4 FROM dead_letters WHERE id IN (SELECT value FROM json_each(?1))"
        ))
        .bind(Json(ids))
        .bind(self.action)
        .bind(name)
        .bind(note)
        .execute(tx)
        .await?;
        Ok(())
    }
}

/// Up to `limit` letters of one status, the first to die first.
async fn pick(
    tx: &mut SqliteConnection,
    filter: &Filter,
    (from, and): (Status, &str),
    limit: u32,
) -> Result<Vec<String>, StoreError> {
    let Some(conditions) = Conditions::of_status(filter, from) else { return Ok(Vec::new()) };
    let mut query = QueryBuilder::<Sqlite>::new("SELECT id FROM dead_letters");
    conditions.push(&mut query);
    query.push(format!("{and} ORDER BY died_at, id LIMIT {limit}"));
    Ok(query.build_query_scalar().fetch_all(tx).await?)
}

const CLAIMED: &str = "SELECT id, message_id, round, event_type, first_seen, body \
                       FROM dead_letters JOIN dead_letter_contents ON letter_id = id";

pub(super) async fn claim(
    tx: &mut SqliteConnection,
    filter: &Filter,
    limit: u32,
    by: &Actor,
) -> Result<Vec<Claimed>, StoreError> {
    let ids = pick(tx, filter, (Status::Open, ""), limit).await?;
    REPLAYED.run(tx, &ids, by).await?;
    let mut query = QueryBuilder::<Sqlite>::new(CLAIMED);
    query.push(" WHERE id IN (SELECT value FROM json_each(").push_bind(Json(ids));
    query.push(")) ORDER BY died_at, id");
    let rows = query.build().fetch_all(tx).await?;
    Ok(rows.iter().map(claimed).collect::<Result<_, _>>()?)
}

pub(super) async fn edit(
    tx: &mut SqliteConnection,
    id: Uuid,
    body: &[u8],
    by: &Actor,
) -> Result<Option<Claimed>, StoreError> {
    let edited = sqlx::query(
        "UPDATE dead_letter_contents SET body = ?2 \
         WHERE letter_id = (SELECT id FROM dead_letters WHERE id = ?1 AND status = 'open')",
    )
    .bind(id.to_string())
    .bind(body)
    .execute(&mut *tx)
    .await?;
    if edited.rows_affected() == 0 {
        return Ok(None);
    }
    sqlx::query("UPDATE dead_letters SET clerk_id = ?2, event_type = ?3 WHERE id = ?1")
        .bind(id.to_string())
        .bind(clerk::whose(body))
        .bind(clerk::event_type(body))
        .execute(&mut *tx)
        .await?;
    let edited = Step { action: "edited", ..REPLAYED };
    edited.run(tx, &[id.to_string()], by).await?;
    let mut query = QueryBuilder::<Sqlite>::new(CLAIMED);
    query.push(" WHERE id = ").push_bind(id.to_string());
    let row = query.build().fetch_optional(tx).await?;
    Ok(row.as_ref().map(claimed).transpose()?)
}

pub(super) async fn discard(
    writing: &mut Writing,
    filter: &Filter,
    limit: u32,
    by: &Actor,
    erases: bool,
) -> Result<u64, StoreError> {
    let tx = writing.connection()?;
    let ids = pick(tx, filter, (Status::Open, ""), limit).await?;
    DISCARDED.run(tx, &ids, by).await?;
    if erases {
        let users: Vec<String> = sqlx::query_scalar(
            "SELECT clerk_id FROM dead_letters \
             WHERE clerk_id IS NOT NULL AND id IN (SELECT value FROM json_each(?1))",
        )
        .bind(Json(&ids))
        .fetch_all(&mut *tx)
        .await?;
        writing.erase_letters(&users.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    }
    Ok(ids.len() as u64)
}

pub(super) async fn restore(
    tx: &mut SqliteConnection,
    filter: &Filter,
    limit: u32,
    by: &Actor,
) -> Result<u64, StoreError> {
    let ids = pick(tx, filter, (Status::Discarded, " AND NOT erased"), limit).await?;
    RESTORED.run(tx, &ids, by).await?;
    Ok(ids.len() as u64)
}

pub(super) async fn unstamped(
    readers: &SqlitePool,
    filter: &Filter,
    before: Millis,
    limit: u32,
) -> Result<Vec<Claimed>, StoreError> {
    let Some(conditions) = Conditions::despite_status(filter, Status::Replayed) else {
        return Ok(Vec::new());
    };
    let mut query = QueryBuilder::<Sqlite>::new(CLAIMED);
    conditions.push(&mut query);
    // The status once more, in so many words: the index is of these letters alone.
    query.push(" AND status = 'replayed' AND published_at IS NULL AND claimed_at < ");
    query.push_bind(rfc3339(plain::time_in_range(before)));
    query.push(format!(" ORDER BY claimed_at, id LIMIT {limit}"));
    let rows = query.build().fetch_all(readers).await?;
    Ok(rows.iter().map(claimed).collect::<Result<_, _>>()?)
}

pub(super) async fn stamp(tx: &mut SqliteConnection, published: &[(Uuid, u32)]) -> Result<(), StoreError> {
    let published: Vec<_> = published.iter().map(|(id, round)| (id.to_string(), round)).collect();
    let ids: Vec<String> = sqlx::query_scalar(concat!(
        "UPDATE dead_letters SET published_at = ",
        now!(),
        " WHERE published_at IS NULL AND claimed_at IS NOT NULL \
         AND (id, round) IN (SELECT value->>0, value->>1 FROM json_each(?1)) RETURNING id"
    ))
    .bind(Json(published))
    .fetch_all(&mut *tx)
    .await?;
    sqlx::query(concat!(
        "INSERT INTO dead_letter_history (letter_id, at, action, round, by) SELECT id, ",
        now!(),
        ", 'published', round, ?2 FROM dead_letters WHERE id IN (SELECT value FROM json_each(?1))"
    ))
    .bind(Json(ids))
    .bind(OURSELVES)
    .execute(tx)
    .await?;
    Ok(())
}

fn claimed(row: &SqliteRow) -> Result<Claimed, sqlx::Error> {
    Ok(Claimed {
        id: uuid(row, "id")?,
        message_id: row.try_get("message_id")?,
        round: row.try_get("round")?,
        event_type: row.try_get("event_type")?,
        first_seen: parse_time("first_seen", &row.try_get::<String, _>("first_seen")?)?,
        body: row.try_get::<Vec<u8>, _>("body")?.into(),
    })
}
