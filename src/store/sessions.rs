//! Owns the projection of session events into the table `sessions`, and what tokens tell of sessions. The rules are
//! [`crate::rules::sessions`]'s; each statement stands here once for both databases.
//!
//! Promises that who writes a session holds its user's row or the lock of its account, so that a session never outlives its user.

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::{
    StoreError,
    columns::{At, Id, SessionStatus, from_row},
    errors,
    filter::{Dialect as _, Value},
    questions::{Planned, Reading},
    sync::tables::{Changing, Kind, Words, Works, ask, change},
    times::{rfc3339, time, time_or_null},
    unit::Gone,
};
use crate::{
    rules::{
        Outcome, Version,
        sessions::{self, Account, News, Row, Status},
        users,
    },
    time::Millis,
};

/// A session that a token was seen of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// `sid`
    pub id: String,
    /// `sub`
    pub clerk_id: String,
    /// When.
    pub at: Millis,
    /// When the token was issued: its user was signed in then.
    pub issued_at: Millis,
    /// Who acts in the user's place, as JSON text, where somebody does.
    pub act: Option<String>,
}

/// A session, for its user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Clerk's id of it.
    pub id: String,
    /// Where it stands.
    pub status: Status,
    /// When it was first seen, or began.
    pub created_at: Millis,
    /// When it was last seen.
    pub last_seen_at: Millis,
    /// When it ended.
    pub ended_at: Option<Millis>,
}

from_row!(Session {
    id: String,
    status: SessionStatus,
    created_at: At,
    last_seen_at: At,
    ended_at: Option<At>,
});

/// A session that was seen less than so long ago is not written again.
const SEEN_EVERY: Millis = 60_000;

/// The most sessions of one answer.
const SESSIONS_MAX: i64 = 100;

/// The columns, in the order in which they are written.
const COLUMNS: [(&str, Kind); 13] = [
    ("id", Kind::Text),
    ("clerk_id", Kind::Text),
    ("user_id", Kind::Id),
    ("status", Kind::Text),
    ("created_at", Kind::Time),
    ("last_seen_at", Kind::Time),
    ("ended_at", Kind::Time),
    ("own_status", Kind::Text),
    ("own_ended_at", Kind::Time),
    ("user_deleted_at", Kind::Time),
    ("version", Kind::Number),
    ("version_sent", Kind::Number),
    ("version_message_id", Kind::Text),
];

/// What is loaded of a session.
const LOADED: &str = "id, clerk_id, user_id, own_status, created_at, last_seen_at, own_ended_at, user_deleted_at, \
     version, version_sent, version_message_id";

type Loaded = (String, String, Option<Id>, SessionStatus, At, At, Option<At>, Option<At>, i64, i64, String);

fn row(loaded: Loaded) -> Row {
    let (id, clerk_id, user_id, status, created_at, last_seen_at, ended_at, deleted_at, at, sent, message_id) =
        loaded;
    Row {
        id,
        clerk_id,
        user_id: user_id.map(|Id(id)| id),
        version: Version { at, sent, message_id },
        own_status: status.0,
        created_at: created_at.0,
        last_seen_at: last_seen_at.0,
        own_ended_at: ended_at.map(|At(at)| at),
        user_deleted_at: deleted_at.map(|At(at)| at),
    }
}

fn object(row: &Row) -> Result<Json, StoreError> {
    let text = |at| Ok::<_, StoreError>(time_or_null(at)?.map(rfc3339));
    let (status, ended_at) = row.shown();
    Ok(json!({
        "id": row.id,
        "clerk_id": row.clerk_id,
        "user_id": row.user_id,
        "status": status.as_str(),
        "created_at": text(Some(row.created_at))?,
        "last_seen_at": text(Some(row.last_seen_at))?,
        "ended_at": text(ended_at)?,
        "own_status": row.own_status.as_str(),
        "own_ended_at": text(row.own_ended_at)?,
        "user_deleted_at": text(row.user_deleted_at)?,
        "version": row.version.at,
        "version_sent": row.version.sent,
        "version_message_id": row.version.message_id,
    }))
}

/// What the tables say of accounts, before a batch.
pub(super) fn accounts(rows: &[users::Row], former: &HashMap<String, Gone>) -> HashMap<String, Account> {
    let former = former.iter().map(|(clerk_id, gone)| {
        (clerk_id.clone(), Account { user_id: gone.user_id, deleted_at: Some(gone.deleted_at) })
    });
    former.chain(rows.iter().map(held)).collect()
}

fn held(row: &users::Row) -> (String, Account) {
    (row.clerk_id.clone(), Account { user_id: Some(row.id), deleted_at: row.deleted_at })
}

/// Folds and saves what a batch says of sessions, and lets those of accounts that it changed follow them. `accounts` is what
/// [`accounts()`] said before the batch.
pub(super) async fn apply<T: Changing<Db: Words>>(
    tx: &mut T,
    mut accounts: HashMap<String, Account>,
    users: &users::Folded,
    news: &[&News],
) -> Result<Vec<Outcome>, StoreError> {
    let former = users.former.iter().map(|former| {
        (former.clerk_id.clone(), Account { user_id: former.user_id, deleted_at: Some(former.deleted_at) })
    });
    let mut changed = Vec::new();
    // An account that has a row is no former one, whatever it was.
    for (clerk_id, account) in former.chain(users.rows.iter().map(|changed| held(&changed.row))) {
        if accounts.insert(clerk_id.clone(), account) != Some(account) {
            changed.push(clerk_id);
        }
    }
    for news in news {
        accounts.entry(news.clerk_id.clone()).or_default();
    }
    if changed.is_empty() && news.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<String> = news.iter().map(|news| news.id.clone()).collect();
    let loaded = load(tx, &ids, &changed).await?;
    let folded = sessions::fold(loaded, &accounts, news);
    save(tx, &folded.rows).await?;
    Ok(folded.outcomes)
}

/// The sessions of these ids, and those of these accounts.
async fn load<T: Reading<Db: Words>>(
    tx: &mut T,
    ids: &[String],
    clerk_ids: &[String],
) -> Result<Vec<Row>, StoreError> {
    let question = format!(
        "SELECT {LOADED} FROM sessions WHERE {} OR {}",
        T::Db::among("id", 1),
        T::Db::among("clerk_id", 2)
    );
    let question = T::Db::whole(question, [Value::Texts(ids), Value::Texts(clerk_ids)])?;
    let rows: Vec<Loaded> = tx.rows(question, Planned::Once).await?;
    Ok(rows.into_iter().map(row).collect())
}

async fn save<T: Changing<Db: Words>>(tx: &mut T, rows: &[Row]) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    errors::all_written("sessions", write(tx, rows).await?, rows.len())
}

async fn write<T: Changing<Db: Words>>(tx: &mut T, rows: &[Row]) -> Result<u64, StoreError> {
    let rows = rows.iter().map(object).collect::<Result<Vec<_>, StoreError>>()?;
    let rows = Json::Array(rows).to_string();
    tx.run(T::Db::whole(T::Db::upsert("sessions", &COLUMNS), [Value::Text(&rows)])?).await
}

/// Has the database check the statements above, and writes no row.
pub(super) async fn check<T: Changing<Db: Words>>(tx: &mut T) -> Result<(), StoreError> {
    load(tx, &[], &[]).await?;
    write(tx, &[]).await?;
    Ok(())
}

/// A session that is over: its id, and whose it was.
pub type Ended = (String, String);

/// Those of these sessions that have ended.
pub(super) async fn ended<R: Reading<Db: Words>>(
    snapshot: &mut R,
    ids: &[String],
) -> Result<Vec<Ended>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let among = R::Db::among("id", 1);
    let question = format!("SELECT id, clerk_id FROM sessions WHERE {among} AND ended_at IS NOT NULL");
    snapshot.rows(R::Db::whole(question, [Value::Texts(ids)])?, Planned::Once).await
}

/// Notes sessions of live users, each once in a minute.
pub(super) async fn saw<S: Works>(store: &S, sightings: &[Sighting]) -> Result<(), StoreError> {
    const GIVEN: [(&str, Kind); 6] = [
        ("id", Kind::Text),
        ("clerk_id", Kind::Text),
        ("at", Kind::Time),
        ("due", Kind::Time),
        ("issued", Kind::Number),
        ("act", Kind::Text),
    ];
    // The user's row is held meanwhile: a deletion waits, or is seen. Nobody is waited for, because noting is worth no delay.
    let statement = format!(
        "INSERT INTO sessions AS known (id, clerk_id, user_id, status, own_status, created_at, last_seen_at, act, version, \
         version_sent, version_message_id) SELECT g.id, g.clerk_id, u.id, '{active}', '{active}', g.at, g.at, \
         CAST(g.act AS {json}), g.issued, 0, '' \
         FROM {given} JOIN users AS u ON u.clerk_id = g.clerk_id LEFT JOIN sessions AS s ON s.id = g.id \
         WHERE u.deleted_at IS NULL AND (s.id IS NULL OR (s.ended_at IS NULL AND s.clerk_id = g.clerk_id \
         AND (s.last_seen_at <= g.due OR (s.act IS NULL AND g.act IS NOT NULL) \
         OR (s.own_status <> '{active}' AND s.version < g.issued)))) ORDER BY u.id, g.id{held} \
         ON CONFLICT (id) DO UPDATE SET act = coalesce(known.act, excluded.act), \
         last_seen_at = CASE WHEN known.last_seen_at < excluded.last_seen_at THEN excluded.last_seen_at ELSE known.last_seen_at END, \
         status = CASE WHEN known.version < excluded.version THEN excluded.status ELSE known.status END, \
         own_status = CASE WHEN known.version < excluded.version THEN excluded.own_status ELSE known.own_status END, \
         version_sent = CASE WHEN known.version < excluded.version THEN 0 ELSE known.version_sent END, \
         version_message_id = CASE WHEN known.version < excluded.version THEN '' ELSE known.version_message_id END, \
         version = CASE WHEN known.version < excluded.version THEN excluded.version ELSE known.version END \
         WHERE known.ended_at IS NULL",
        active = Status::Active.as_str(),
        json = S::Db::JSON,
        given = S::Db::records("g", 1, &GIVEN),
        held = S::Db::held_if_free("u"),
    );
    let given = sightings.iter().map(|Sighting { id, clerk_id, at, issued_at, act }| {
        let (at, due) = (rfc3339(time(*at)?), rfc3339(time(at - SEEN_EVERY)?));
        Ok(json!({ "id": id, "clerk_id": clerk_id, "at": at, "due": due, "issued": issued_at, "act": act }))
    });
    let given = given.collect::<Result<Vec<_>, StoreError>>()?;
    let given = Json::Array(given).to_string();
    change!(store, |tx| {
        tx.run(S::Db::whole(statement.as_str(), [Value::Text(&given)])?).await?;
    })
}

/// The sessions of an account, the one last seen first; at most [`SESSIONS_MAX`].
pub(super) async fn of<S: Works>(store: &S, clerk_id: &str) -> Result<Vec<Session>, StoreError> {
    let question = "SELECT id, status, created_at, last_seen_at, ended_at FROM sessions WHERE clerk_id = $1 \
         ORDER BY last_seen_at DESC, id LIMIT $2";
    let values = [Value::Text(clerk_id), Value::Number(SESSIONS_MAX)];
    ask(store, S::Db::whole(question, values)?, Planned::Once).await
}
