//! Owns what people do to letters: claim them for replay, edit, discard, restore; and the stamps of publications.
//! Each is one statement, so a letter moves and its history says so together, or neither.

use chrono::{DateTime, Utc};
use sqlx::{Postgres, QueryBuilder, Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{
    PostgresStore,
    connections::{PEOPLE, Tx},
};
use crate::{
    clerk,
    store::{
        StoreError,
        filter::Conditions,
        letters::{Actor, Claimed, Filter, Status},
        plain::{self, OURSELVES},
    },
    time::Millis,
};

/// What a step makes of a letter. `claimed_by` is the step's actor.
const REPLAYED: &str = "status = 'replayed', round = l.round + 1, claimed_at = statement_timestamp(), \
                        claimed_by = actor, published_at = NULL";
const DISCARDED: &str = "status = 'discarded', settled_at = statement_timestamp()";
const RESTORED: &str = "status = 'open', settled_at = NULL";

/// Moves up to `limit` letters of one status, the first to die first, and writes it down; selects `answer` of those
/// that `changed`.
fn step(
    filter: &Filter,
    (from, and): (Status, &str),
    (action, set): (&str, &str),
    limit: u32,
    by: &Actor,
    answer: &str,
) -> Option<QueryBuilder<Postgres>> {
    let conditions = Conditions::of_status(filter, from)?;
    let (name, note) = plain::actor(by);
    let mut query = QueryBuilder::new("WITH step (actor, note) AS (VALUES (");
    query.push_bind(name).push("::text, ").push_bind(note);
    query.push("::text)), picked AS MATERIALIZED (SELECT id FROM dead_letters");
    conditions.push(&mut query);
    // Whoever asks for some letters waits for whoever is busy with them; whoever asks for any takes others.
    let busy = if filter.ids.is_empty() { " SKIP LOCKED" } else { "" };
    query.push(format!(
        "{and} ORDER BY died_at, id LIMIT {limit} FOR UPDATE{busy}), \
         changed AS (UPDATE dead_letters AS l SET {set} FROM picked, step WHERE l.id = picked.id RETURNING l.*), \
         noted AS (INSERT INTO dead_letter_history (letter_id, at, action, round, by, note) \
         SELECT id, statement_timestamp(), '{action}', round, actor, note FROM changed, step) \
         SELECT {answer} ORDER BY died_at, id"
    ));
    Some(query)
}

const CLAIMED: &str = "id, message_id, round, event_type, first_seen, body \
                       FROM changed JOIN dead_letter_contents ON letter_id = id";

pub(super) async fn claim(
    store: &PostgresStore,
    filter: &Filter,
    limit: u32,
    by: &Actor,
) -> Result<Vec<Claimed>, StoreError> {
    let what = ("replayed", REPLAYED);
    let Some(mut query) = step(filter, (Status::Open, ""), what, limit, by, CLAIMED) else {
        return Ok(Vec::new());
    };
    let mut tx = store.connections.begin(PEOPLE).await?;
    let rows = query.build().persistent(false).fetch_all(&mut tx).await?;
    tx.commit().await?;
    Ok(rows.iter().map(claimed).collect::<Result<_, _>>()?)
}

pub(super) async fn edit(
    store: &PostgresStore,
    id: Uuid,
    body: &[u8],
    by: &Actor,
) -> Result<Option<Claimed>, StoreError> {
    let (name, note) = plain::actor(by);
    let mut tx = store.connections.begin(PEOPLE).await?;
    let row = sqlx::query(
        "WITH changed AS (UPDATE dead_letters SET status = 'replayed', round = round + 1, \
         claimed_at = statement_timestamp(), claimed_by = $3, published_at = NULL, clerk_id = $5, event_type = $6 \
         WHERE id = $1 AND status = 'open' RETURNING *), \
         noted AS (INSERT INTO dead_letter_history (letter_id, at, action, round, by, note) \
         SELECT id, statement_timestamp(), 'edited', round, $3, $4 FROM changed) \
         UPDATE dead_letter_contents SET body = $2 FROM changed WHERE letter_id = id \
         RETURNING id, message_id, round, event_type, first_seen, body",
    )
    .bind(id)
    .bind(body)
    .bind(name)
    .bind(note)
    .bind(clerk::whose(body))
    .bind(clerk::event_type(body))
    .fetch_optional(&mut tx)
    .await?;
    tx.commit().await?;
    Ok(row.as_ref().map(claimed).transpose()?)
}

pub(super) async fn discard(
    tx: &mut Tx,
    filter: &Filter,
    limit: u32,
    by: &Actor,
) -> Result<Vec<Option<String>>, StoreError> {
    let what = ("discarded", DISCARDED);
    let Some(mut query) = step(filter, (Status::Open, ""), what, limit, by, "clerk_id FROM changed") else {
        return Ok(Vec::new());
    };
    Ok(query.build_query_scalar().persistent(false).fetch_all(tx).await?)
}

pub(super) async fn restore(
    store: &PostgresStore,
    filter: &Filter,
    limit: u32,
    by: &Actor,
) -> Result<u64, StoreError> {
    let from = (Status::Discarded, " AND NOT erased");
    let Some(mut query) = step(filter, from, ("restored", RESTORED), limit, by, "id FROM changed") else {
        return Ok(0);
    };
    let mut tx = store.connections.begin(PEOPLE).await?;
    let restored = query.build().persistent(false).fetch_all(&mut tx).await?.len() as u64;
    tx.commit().await?;
    Ok(restored)
}

pub(super) async fn unstamped(
    store: &PostgresStore,
    filter: &Filter,
    before: Millis,
    limit: u32,
) -> Result<Vec<Claimed>, StoreError> {
    let Some(conditions) = Conditions::despite_status(filter, Status::Replayed) else {
        return Ok(Vec::new());
    };
    let mut query = QueryBuilder::new("WITH changed AS MATERIALIZED (SELECT * FROM dead_letters");
    conditions.push(&mut query);
    // The status once more, in so many words: the index is of these letters alone.
    query.push(" AND status = 'replayed' AND published_at IS NULL AND claimed_at < ");
    query.push_bind(plain::time_in_range(before));
    query.push(format!(" ORDER BY claimed_at, id LIMIT {limit}) SELECT {CLAIMED} ORDER BY claimed_at, id"));
    let mut tx = store.connections.begin(PEOPLE).await?;
    let rows = query.build().persistent(false).fetch_all(&mut tx).await?;
    tx.commit().await?;
    Ok(rows.iter().map(claimed).collect::<Result<_, _>>()?)
}

pub(super) async fn stamp(store: &PostgresStore, published: &[(Uuid, u32)]) -> Result<(), StoreError> {
    let (ids, rounds): (Vec<Uuid>, Vec<i64>) =
        published.iter().map(|&(id, round)| (id, i64::from(round))).unzip();
    let mut tx = store.connections.begin(PEOPLE).await?;
    sqlx::query(
        "WITH picked AS MATERIALIZED (SELECT l.id FROM dead_letters AS l \
         JOIN (SELECT DISTINCT * FROM unnest($1::uuid[], $2::bigint[])) AS p (id, round) \
         ON p.id = l.id AND p.round = l.round WHERE l.published_at IS NULL AND l.claimed_at IS NOT NULL \
         ORDER BY l.message_id COLLATE \"C\" FOR UPDATE OF l), \
         changed AS (UPDATE dead_letters AS l SET published_at = statement_timestamp() FROM picked \
         WHERE l.id = picked.id RETURNING l.id, l.round) \
         INSERT INTO dead_letter_history (letter_id, at, action, round, by) \
         SELECT id, statement_timestamp(), 'published', round, $3 FROM changed",
    )
    .bind(ids)
    .bind(rounds)
    .bind(OURSELVES)
    .execute(&mut tx)
    .await?;
    tx.commit().await
}

fn claimed(row: &PgRow) -> Result<Claimed, sqlx::Error> {
    Ok(Claimed {
        id: row.try_get("id")?,
        message_id: row.try_get("message_id")?,
        round: super::letters::small(row, "round")?,
        event_type: row.try_get("event_type")?,
        first_seen: row.try_get::<DateTime<Utc>, _>("first_seen")?.timestamp_millis(),
        body: row.try_get::<Vec<u8>, _>("body")?.into(),
    })
}
