//! Owns the users that a run has seen, on disk, so that memory does not grow with their number: who is outstanding, who was
//! not seen, who is absent. Each call is a bounded step in the order of an index.

use std::collections::{BTreeMap, HashMap, HashSet};

use uuid::Uuid;

use super::{
    Run, SEEN_MAX, Seen, Settled, Unseen, runs,
    tables::{Changing as _, Words as _, Works, ask, change},
};
use crate::{
    store::{
        StoreError,
        columns::{At, OutcomeName, StatusName},
        errors,
        filter::{Dialect as _, Value},
        letters::Status,
        questions::{Planned, Reading as _},
    },
    time::Millis,
};

pub(super) async fn new_to<S: Works>(
    store: &S,
    run: Uuid,
    clerk_ids: &[String],
) -> Result<Vec<String>, StoreError> {
    let question =
        format!("SELECT clerk_id FROM sync_ids WHERE run = $1 AND {}", S::Db::among("clerk_id", 2));
    let values = [Value::Id(Some(run)), Value::Texts(clerk_ids)];
    let seen: Vec<(String,)> = ask(store, S::Db::whole(question, values)?, Planned::Once).await?;
    let seen: HashSet<String> = seen.into_iter().map(|(clerk_id,)| clerk_id).collect();
    Ok(clerk_ids.iter().filter(|clerk_id| !seen.contains(*clerk_id)).cloned().collect())
}

pub(super) async fn see<S: Works>(store: &S, run: &Run, ids: &[Seen]) -> Result<(), StoreError> {
    // In the order of the keys, so that two that write at once do not wait for each other in a circle. One statement, each
    // of whose rows finds its place by the index: a join would read all that the run has seen.
    let statement = format!(
        "INSERT INTO sync_ids AS known (run, clerk_id, message_id) SELECT $1, key, value FROM {} AS given WHERE true \
         ORDER BY key ON CONFLICT (run, clerk_id) DO UPDATE \
         SET message_id = coalesce(excluded.message_id, known.message_id), absent_at = NULL \
         WHERE known.absent_at IS NOT NULL \
         OR (excluded.message_id IS NOT NULL AND known.message_id IS DISTINCT FROM excluded.message_id)",
        S::Db::members(2)
    );
    let mut one_each: BTreeMap<&str, Option<&str>> = BTreeMap::new();
    for Seen { clerk_id, message_id } in ids {
        let noted = one_each.entry(clerk_id).or_default();
        *noted = message_id.as_deref().or(*noted);
    }
    let one_each: Vec<_> = one_each.into_iter().collect();
    let members = one_each.chunks(SEEN_MAX).map(|chunk| {
        let members: BTreeMap<_, _> = chunk.iter().copied().collect();
        serde_json::to_string(&members)
            .map_err(|_| errors::broken("users that were seen cannot be written as JSON"))
    });
    let members = members.collect::<Result<Vec<_>, _>>()?;
    change!(store, |tx| {
        for members in &members {
            let values = [Value::Id(Some(run.id)), Value::Text(members)];
            tx.run(S::Db::whole(statement.as_str(), values)?).await?;
        }
        runs::write::<S>(tx, run).await?;
    })
}

pub(super) async fn outstanding<S: Works>(
    store: &S,
    run: Uuid,
    limit: u32,
) -> Result<Vec<(String, String)>, StoreError> {
    let question = "SELECT clerk_id, message_id FROM sync_ids WHERE run = $1 AND message_id IS NOT NULL \
         ORDER BY clerk_id LIMIT $2";
    let values = [Value::Id(Some(run)), Value::Number(limit.into())];
    ask(store, S::Db::whole(question, values)?, Planned::EachTime).await
}

pub(super) async fn settled<S: Works>(
    store: &S,
    message_ids: &[String],
) -> Result<Vec<(String, Settled)>, StoreError> {
    let (among, ids) = (S::Db::among("message_id", 1), [Value::Texts(message_ids)]);
    let letters = format!("SELECT message_id, status, outcome FROM dead_letters WHERE {among}");
    let inbox = format!("SELECT message_id, outcome FROM inbox WHERE {among}");
    let mut snapshot = store.snapshot().await?;
    let letters: Vec<(String, StatusName, OutcomeName)> =
        snapshot.rows(S::Db::whole(letters, ids)?, Planned::Once).await?;
    let inbox: Vec<(String, OutcomeName)> = snapshot.rows(S::Db::whole(inbox, ids)?, Planned::Once).await?;
    snapshot.end().await?;
    let letters = letters.into_iter().map(|(message_id, StatusName(status), OutcomeName(outcome))| {
        let applied = status == Status::Applied;
        (message_id, if applied { Settled::Applied(outcome) } else { Settled::Buried })
    });
    let applied =
        inbox.into_iter().map(|(message_id, OutcomeName(outcome))| (message_id, Settled::Applied(outcome)));
    let settled: HashMap<String, Settled> = letters.chain(applied).collect();
    Ok(settled.into_iter().collect())
}

pub(super) async fn settle<S: Works>(store: &S, run: Uuid, clerk_ids: &[String]) -> Result<(), StoreError> {
    let statement = format!(
        "UPDATE sync_ids SET message_id = NULL WHERE run = $1 AND {} AND message_id IS NOT NULL",
        S::Db::among("clerk_id", 2)
    );
    for chunk in clerk_ids.chunks(SEEN_MAX) {
        change!(store, |tx| {
            let values = [Value::Id(Some(run)), Value::Texts(chunk)];
            tx.run(S::Db::whole(statement.as_str(), values)?).await?;
        })?;
    }
    Ok(())
}

pub(super) async fn unseen<S: Works>(
    store: &S,
    run: Uuid,
    after: Option<&str>,
    limit: u32,
) -> Result<Unseen, StoreError> {
    // Who was seen is asked row by row, by the index: for a few users no plan then reads all that the run has seen.
    let question = "SELECT clerk_id, coalesce(due AND (SELECT 1 FROM sync_ids AS i \
         WHERE i.run = $1 AND i.clerk_id = s.clerk_id LIMIT 1) IS NULL, false) AS unseen \
         FROM (SELECT clerk_id, deleted_at IS NULL \
         AND created_at < (SELECT started_at FROM sync_runs WHERE id = $1) AS due \
         FROM users WHERE clerk_id > $2 ORDER BY clerk_id LIMIT $3) AS s ORDER BY clerk_id";
    let limit = limit.max(1);
    let values = [Value::Id(Some(run)), Value::Text(after.unwrap_or_default()), Value::Number(limit.into())];
    // Planned for its limit, which says that an index in the right order is best.
    let rows: Vec<(String, bool)> = ask(store, S::Db::whole(question, values)?, Planned::EachTime).await?;
    let whole = rows.len() >= limit as usize;
    let scanned_to = rows.last().filter(|_| whole).map(|(clerk_id, _)| clerk_id.clone());
    let clerk_ids = rows.into_iter().filter(|(_, unseen)| *unseen).map(|(clerk_id, _)| clerk_id).collect();
    Ok(Unseen { scanned_to, clerk_ids })
}

pub(super) async fn note_absent<S: Works>(
    store: &S,
    run: Uuid,
    clerk_id: &str,
    at: Millis,
) -> Result<(), StoreError> {
    let statement = "INSERT INTO sync_ids (run, clerk_id, absent_at) VALUES ($1, $2, $3) \
         ON CONFLICT (run, clerk_id) DO UPDATE SET absent_at = excluded.absent_at";
    change!(store, |tx| {
        let values = [Value::Id(Some(run)), Value::Text(clerk_id), Value::Time(at)];
        tx.run(S::Db::whole(statement, values)?).await?;
    })
}

pub(super) async fn absent<S: Works>(
    store: &S,
    run: Uuid,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<(String, Millis)>, StoreError> {
    let question = "SELECT clerk_id, absent_at FROM sync_ids WHERE run = $1 AND absent_at IS NOT NULL \
         AND clerk_id > $2 ORDER BY clerk_id LIMIT $3";
    let values = [Value::Id(Some(run)), Value::Text(after.unwrap_or_default()), Value::Number(limit.into())];
    let rows: Vec<(String, At)> = ask(store, S::Db::whole(question, values)?, Planned::EachTime).await?;
    Ok(rows.into_iter().map(|(clerk_id, At(at))| (clerk_id, at)).collect())
}
