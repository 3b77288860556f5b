//! Owns the table `processes`, in which each running process describes itself. A process counts as alive until its description
//! expires, by the database's clock. Each statement stands here once for both databases.
//!
//! Others may write to the queue too. So a description that came through the queue never replaces one that a process wrote
//! itself, and only [`PROCESSES_MAX`] of them are kept.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    StoreError,
    columns::{At, Id, from_row},
    filter::{Dialect as _, Value},
    plain::NAME_MAX,
    questions::{Planned, Reading as _},
    sync::tables::{Changing as _, Kind, Words as _, Works, ask, change},
};
use crate::{
    telemetry::rates::Rates,
    text::clean,
    time::{Millis, rfc3339},
};

/// The most rows of processes that describe themselves through the queue.
pub const PROCESSES_MAX: usize = 1_000;

/// The longest reason for a worker's pause that is kept, in bytes.
pub const PAUSED_MAX: usize = 300;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes webhooks in.
    Ingress,
    /// Folds them into users.
    Worker,
    /// Answers applications.
    Api,
    /// Shows pages to operators.
    Console,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Ingress, Self::Worker, Self::Api, Self::Console];

    /// The stable name: in the table and in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Worker => "worker",
            Self::Api => "api",
            Self::Console => "console",
        }
    }
}

/// What a process says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The id of this run of the process.
    pub id: Uuid,
    /// What it does.
    pub roles: Vec<Role>,
    /// The version of headcount.
    pub version: String,
    /// The host's name.
    pub host: String,
    /// The process's id there.
    pub pid: u32,
    /// When it began, by its own clock.
    pub started_at: Millis,
    /// When it said this, by its own clock.
    pub told_at: Millis,
    /// Messages that its worker has taken and not settled yet, where it has one.
    pub held: Option<u64>,
    /// Why its worker takes no messages; `None` while it does.
    pub paused: Option<String>,
    /// Since when its worker takes no messages.
    pub paused_since: Option<Millis>,
    /// Where it listens, by role.
    pub listeners: BTreeMap<String, String>,
    /// What it counted lately.
    pub rates: Rates,
}

impl Said {
    /// The process takes webhooks in and does nothing else. It has no database, so it describes itself through the queue.
    pub fn is_of_ingress_alone(&self) -> bool {
        self.roles == [Role::Ingress]
    }
}

/// A process that is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessRow {
    /// What it said last.
    pub said: Said,
    /// When that was written down, by the database's clock.
    pub seen_at: Millis,
    /// It counts as gone from then on, by the database's clock.
    pub expires_at: Millis,
    /// Now, by the database's clock.
    pub read_at: Millis,
}

/// What is written down in one transaction.
#[derive(Clone, Debug)]
pub struct Telling {
    /// What this process says of itself.
    pub own: Option<Said>,
    /// What ingresses said of themselves through the queue.
    pub others: Vec<Said>,
    /// Ingresses that said through the queue that they end.
    pub ended: Vec<Uuid>,
    /// How long what is said counts.
    pub life: Duration,
}

/// Who runs. An error is what the database says.
#[async_trait]
pub trait Processes: Send + Sync {
    /// Writes down what processes say.
    async fn tell(&self, telling: &Telling) -> Result<(), StoreError>;

    /// Forgets a process at once, because it ends.
    async fn leave(&self, id: Uuid) -> Result<(), StoreError>;

    /// The processes that are alive, the first to begin first.
    async fn processes(&self) -> Result<Vec<ProcessRow>, StoreError>;
}

/// A row as it travels to the database.
#[derive(Serialize)]
struct Told<'s> {
    id: Uuid,
    roles: String,
    version: String,
    host: String,
    pid: u32,
    started_at: String,
    told_at: String,
    held: Option<u64>,
    paused: Option<String>,
    paused_since: Option<String>,
    listeners: &'s str,
    rates: String,
}

const COLUMNS: [(&str, Kind); 12] = [
    ("id", Kind::Id),
    ("roles", Kind::Text),
    ("version", Kind::Text),
    ("host", Kind::Text),
    ("pid", Kind::Number),
    ("started_at", Kind::Time),
    ("told_at", Kind::Time),
    ("held", Kind::Number),
    ("paused", Kind::Text),
    ("paused_since", Kind::Time),
    ("listeners", Kind::Text),
    ("rates", Kind::Text),
];

fn roles(all: &[Role]) -> String {
    all.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(",")
}

fn told(said: &[&Said]) -> String {
    let rows: Vec<(String, &Said)> = said
        .iter()
        .map(|said| (serde_json::to_string(&said.listeners).unwrap_or_else(|_| "{}".into()), *said))
        .collect();
    let rows: Vec<Told<'_>> = rows
        .iter()
        .map(|(listeners, said)| Told {
            id: said.id,
            roles: roles(&said.roles),
            version: clean(&said.version, NAME_MAX),
            host: clean(&said.host, NAME_MAX),
            pid: said.pid,
            started_at: time(said.started_at),
            told_at: time(said.told_at),
            held: said.held,
            paused: said.paused.as_deref().map(|why| clean(why, PAUSED_MAX)),
            paused_since: said.paused_since.map(time),
            listeners,
            rates: said.rates.to_json(),
        })
        .collect();
    // Texts and numbers only: this cannot fail.
    serde_json::to_string(&rows).unwrap_or_else(|_| "[]".into())
}

fn time(at: Millis) -> String {
    rfc3339(super::times::time_in_range(at).timestamp_millis())
}

fn upsert<S: Works>() -> String {
    let names = COLUMNS.map(|(name, _)| name).join(", ");
    let set = COLUMNS[1..].iter().map(|(name, _)| format!("{name} = excluded.{name}"));
    let set = set.collect::<Vec<_>>().join(", ");
    // The queue may deliver an older description later: the newer one stays. A description of an ingress alone may come from
    // anybody, so it replaces only another such description.
    format!(
        "INSERT INTO processes ({names}, seen_at, expires_at) SELECT {names}, {now}, {} FROM {} WHERE true ORDER BY id \
         ON CONFLICT (id) DO UPDATE SET {set}, seen_at = excluded.seen_at, expires_at = excluded.expires_at \
         WHERE (processes.told_at <= excluded.told_at OR processes.expires_at <= {now}) \
         AND (processes.roles = 'ingress' OR excluded.roles <> 'ingress')",
        S::Db::later(2),
        S::Db::records("given", 1, &COLUMNS),
        now = S::Db::NOW
    )
}

async fn tell<S: Works>(store: &S, telling: &Telling) -> Result<(), StoreError> {
    let Telling { own, others, ended, life } = telling;
    let life = Value::Number(i64::try_from(life.as_millis()).unwrap_or(i64::MAX));
    let upsert = upsert::<S>();
    let forget =
        format!("DELETE FROM processes WHERE roles = 'ingress' AND {}", S::Db::among("CAST(id AS text)", 1));
    let gone = format!("DELETE FROM processes WHERE roles = 'ingress' AND expires_at <= {}", S::Db::NOW);
    let ended: Vec<String> = ended.iter().map(Uuid::to_string).collect();
    change!(store, |tx| {
        let mut rows: Vec<&Said> = others.iter().filter(|said| said.is_of_ingress_alone()).collect();
        if !rows.is_empty() {
            let all = "SELECT id FROM processes WHERE roles = 'ingress'";
            let mut known: Vec<(Id,)> = tx.rows(S::Db::whole(all, [])?, Planned::Once).await?;
            if known.len() + rows.len() > PROCESSES_MAX {
                tx.run(S::Db::whole(gone.as_str(), [])?).await?;
                known = tx.rows(S::Db::whole(all, [])?, Planned::Once).await?;
            }
            let mut room = PROCESSES_MAX.saturating_sub(known.len());
            rows.retain(|said| {
                let is_known = known.iter().any(|(Id(id),)| *id == said.id);
                let fits = is_known || room > 0;
                room -= usize::from(fits && !is_known);
                fits
            });
        }
        rows.extend(own);
        if !rows.is_empty() {
            let rows = told(&rows);
            tx.run(S::Db::whole(upsert.as_str(), [Value::Text(&rows), life])?).await?;
        }
        if !ended.is_empty() {
            tx.run(S::Db::whole(forget.as_str(), [Value::Texts(&ended)])?).await?;
        }
    })
}

async fn leave<S: Works>(store: &S, id: Uuid) -> Result<(), StoreError> {
    change!(store, |tx| {
        tx.run(S::Db::whole("DELETE FROM processes WHERE id = $1", [Value::Id(Some(id))])?).await?;
    })
}

/// A row as it comes from the database.
struct Row {
    id: Uuid,
    roles: String,
    version: String,
    host: String,
    pid: i64,
    started_at: Millis,
    told_at: Millis,
    seen_at: Millis,
    expires_at: Millis,
    read_at: Millis,
    held: Option<i64>,
    paused: Option<String>,
    paused_since: Option<Millis>,
    listeners: String,
    rates: String,
}

from_row!(Row {
    id: Id,
    roles: String,
    version: String,
    host: String,
    pid: i64,
    started_at: At,
    told_at: At,
    seen_at: At,
    expires_at: At,
    read_at: At,
    held: Option<i64>,
    paused: Option<String>,
    paused_since: Option<At>,
    listeners: String,
    rates: String,
});

impl From<Row> for ProcessRow {
    fn from(row: Row) -> Self {
        // A newer headcount may know more roles: those are left out.
        let role = |name: &str| Role::ALL.into_iter().find(|role| role.as_str() == name);
        Self {
            said: Said {
                id: row.id,
                roles: row.roles.split(',').filter_map(role).collect(),
                version: row.version,
                host: row.host,
                pid: u32::try_from(row.pid).unwrap_or_default(),
                started_at: row.started_at,
                told_at: row.told_at,
                held: row.held.map(i64::unsigned_abs),
                paused: row.paused,
                paused_since: row.paused_since,
                listeners: serde_json::from_str(&row.listeners).unwrap_or_default(),
                rates: Rates::of_json(&row.rates),
            },
            seen_at: row.seen_at,
            expires_at: row.expires_at,
            read_at: row.read_at,
        }
    }
}

async fn processes<S: Works>(store: &S) -> Result<Vec<ProcessRow>, StoreError> {
    let names = COLUMNS.map(|(name, _)| name).join(", ");
    let question = format!(
        "SELECT {names}, seen_at, expires_at, {now} AS read_at FROM processes WHERE expires_at > {now} \
         ORDER BY started_at, id",
        now = S::Db::NOW
    );
    let rows: Vec<Row> = ask(store, S::Db::whole(question, [])?, Planned::Once).await?;
    Ok(rows.into_iter().map(ProcessRow::from).collect())
}

#[async_trait]
impl<S: Works> Processes for S {
    async fn tell(&self, telling: &Telling) -> Result<(), StoreError> {
        tell(self, telling).await
    }

    async fn leave(&self, id: Uuid) -> Result<(), StoreError> {
        leave(self, id).await
    }

    async fn processes(&self) -> Result<Vec<ProcessRow>, StoreError> {
        processes(self).await
    }
}
