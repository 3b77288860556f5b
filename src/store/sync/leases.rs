//! Owns leases: what one process of all does at a time. A lease ends by the database's clock, whatever the processes' clocks
//! say, and of many that want one at the same time one gets it.

use std::time::Duration;

use uuid::Uuid;

use super::{
    Holder, Lease, Taken,
    tables::{Changing as _, Words, Works, ask, change},
};
use crate::{
    store::{
        StoreError,
        columns::{At, Document, Id, from_row},
        errors,
        filter::{Dialect as _, Value},
        plain::NAME_MAX,
        questions::{Planned, Reading as _},
    },
    text::clean,
};

from_row!(Lease {
    name: String,
    holder: Option<Id>,
    host: String,
    process: String,
    taken_at: At,
    expires_at: At,
    expired: bool,
    state: Option<Document>,
});

fn select<D: Words>(held: &str) -> String {
    format!(
        "SELECT name, holder, host, process, taken_at, expires_at, holder IS NULL OR expires_at <= {} AS expired, state \
         FROM leases WHERE name = $1{held}",
        D::NOW
    )
}

fn insert<D: Words>() -> String {
    format!(
        "INSERT INTO leases (name, holder, host, process, taken_at, expires_at) \
         VALUES ($1, $2, $3, $4, {}, {}) ON CONFLICT (name) DO NOTHING",
        D::NOW,
        D::later(5)
    )
}

fn update<D: Words>() -> String {
    format!(
        "UPDATE leases SET holder = $2, host = $3, process = $4, \
         taken_at = CASE WHEN holder = $2 AND expires_at > {now} THEN taken_at ELSE {now} END, expires_at = {} \
         WHERE name = $1",
        D::later(5),
        now = D::NOW
    )
}

pub(super) async fn take<S: Works>(
    store: &S,
    name: &str,
    by: &Holder,
    ttl: Duration,
) -> Result<Taken, StoreError> {
    let (host, process) = (clean(&by.host, NAME_MAX), clean(&by.process, NAME_MAX));
    let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
    let values = [
        Value::Text(name),
        Value::Id(Some(by.id)),
        Value::Text(&host),
        Value::Text(&process),
        Value::Number(ttl),
    ];
    change!(store, |tx| {
        let question = S::Db::whole(select::<S::Db>(S::Db::HELD), [Value::Text(name)])?;
        let before: Option<Lease> = tx.rows(question, Planned::Once).await?.pop();
        match before {
            Some(lease) if !lease.expired && lease.holder != Some(by.id) => Taken::Theirs(lease),
            Some(_) => {
                tx.run(S::Db::whole(update::<S::Db>(), values)?).await?;
                Taken::Ours
            }
            None => match tx.run(S::Db::whole(insert::<S::Db>(), values)?).await? {
                0 => return Err(errors::raced("another process has just taken the lease")),
                _ => Taken::Ours,
            },
        }
    })
}

pub(super) async fn give_back<S: Works>(store: &S, name: &str, holder: Uuid) -> Result<(), StoreError> {
    let statement = format!(
        "UPDATE leases SET holder = NULL, expires_at = CASE WHEN expires_at < {now} THEN expires_at ELSE {now} END \
         WHERE name = $1 AND holder = $2",
        now = S::Db::NOW
    );
    change!(store, |tx| {
        let values = [Value::Text(name), Value::Id(Some(holder))];
        tx.run(S::Db::whole(statement.as_str(), values)?).await?;
    })
}

pub(super) async fn tell<S: Works>(
    store: &S,
    name: &str,
    holder: Uuid,
    state: &serde_json::Value,
) -> Result<bool, StoreError> {
    let statement =
        format!("UPDATE leases SET state = CAST($3 AS {}) WHERE name = $1 AND holder = $2", S::Db::JSON);
    let state = state.to_string();
    change!(store, |tx| {
        let values = [Value::Text(name), Value::Id(Some(holder)), Value::Text(&state)];
        tx.run(S::Db::whole(statement.as_str(), values)?).await? > 0
    })
}

pub(super) async fn one<S: Works>(store: &S, name: &str) -> Result<Option<Lease>, StoreError> {
    let question = S::Db::whole(select::<S::Db>(""), [Value::Text(name)])?;
    Ok(ask(store, question, Planned::Once).await?.pop())
}
