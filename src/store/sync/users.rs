//! Owns what sync reads of users: as many as are compared at a time, who is live, and who is meant. Takes no lock.

use std::collections::HashMap;

use sqlx::QueryBuilder;

use super::{
    Known,
    tables::{Words as _, Works, ask},
};
use crate::store::{
    StoreError, User,
    columns::{At, Many},
    errors,
    filter::{Dialect as _, Value},
    people::{NAMED, Reference},
    questions::{Planned, Reading as _},
    users::look,
};

const LIVE: &str = "SELECT count(*) FROM users WHERE deleted_at IS NULL";

pub(super) async fn known<S: Works>(
    store: &S,
    clerk_ids: &[String],
    keys: &[String],
) -> Result<Known, StoreError> {
    // The letters of these users, and of them those that count: an index of the status would find all open ones.
    let dead = format!(
        "SELECT clerk_id, first_seen, coalesce(origin = 'api' \
         AND (status = 'open' OR (status = 'discarded' AND settled_at > {})), false) FROM dead_letters WHERE {}",
        S::Db::A_DAY_AGO,
        S::Db::among("clerk_id", 1)
    );
    let dead = S::Db::whole(dead, [Value::Texts(clerk_ids)])?;
    let mut snapshot = store.snapshot().await?;
    let loaded = look(&mut snapshot, clerk_ids, keys).await?;
    let letters: Vec<(String, At, bool)> = snapshot.rows(dead, Planned::Once).await?;
    snapshot.end().await?;
    let mut dead = HashMap::new();
    for (clerk_id, At(first_seen), counts) in letters {
        if counts {
            let newest = dead.entry(clerk_id).or_insert(first_seen);
            *newest = first_seen.max(*newest);
        }
    }
    Ok(Known { loaded, dead })
}

/// Reads the whole table, so not by an index.
pub(super) async fn live<S: Works>(store: &S) -> Result<u64, StoreError> {
    let mut reading = store.reading().await?;
    let counts: Vec<(Many,)> = reading.rows(QueryBuilder::new(LIVE), Planned::Once).await?;
    reading.end().await?;
    counts.into_iter().next().map(|(Many(count),)| count).ok_or_else(|| errors::broken("a count has no row"))
}

pub(super) async fn live_among<S: Works>(store: &S, clerk_ids: &[String]) -> Result<Vec<String>, StoreError> {
    let question =
        format!("SELECT clerk_id FROM users WHERE {} AND deleted_at IS NULL", S::Db::among("clerk_id", 1));
    let question = S::Db::whole(question, [Value::Texts(clerk_ids)])?;
    let live: Vec<(String,)> = ask(store, question, Planned::Once).await?;
    Ok(live.into_iter().map(|(clerk_id,)| clerk_id).collect())
}

pub(super) async fn clerk_id_of<S: Works>(store: &S, reference: &str) -> Result<Option<String>, StoreError> {
    let Some(reference) = Reference::parse(reference) else { return Ok(None) };
    let values = [Value::Id(reference.id), Value::Text(&reference.text), Value::Text(&reference.key)];
    let users: Vec<User> = ask(store, S::Db::whole(NAMED, values)?, Planned::Once).await?;
    Ok(users.into_iter().next().map(|user| user.clerk_id))
}
