//! Owns how statements that stand once (those of sync, sessions, visitors and subscriptions) run on both databases: in which transactions, and the words that one database has other
//! ones for. Gives each store that has them the whole seam.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::QueryBuilder;
use uuid::Uuid;

use super::{
    Holder, InstanceRow, Known, Lease, NewRun, Owner, Run, Seen, SeenBy, Settled, SyncTables, Taken, Unseen,
    ids, instances, leases, runs, users,
};
use crate::{
    store::{
        StoreError,
        filter::Dialect,
        questions::{Asked, Decoded, Planned, Reading},
        unit::{Transaction, Transactions},
        users::Answer,
    },
    time::Millis,
};

/// What each database calls in a way of its own. `n` is the number of a parameter.
pub(in crate::store) trait Words: Dialect {
    /// The time at which the transaction, or the statement, began.
    const NOW: &'static str;
    /// A day before that.
    const A_DAY_AGO: &'static str;
    /// The time at which the statement began: after whatever the transaction waited for before.
    const CLOCK: &'static str;
    /// Stands before a statement of no row that is to be checked, and to fire no trigger.
    const CHECKED: &'static str;
    /// The type of JSON.
    const JSON: &'static str;
    /// The type of an id.
    const ID: &'static str;
    /// The type of a time.
    const TIME: &'static str;
    /// Ends a `SELECT` whose row nobody else may change before the transaction ends.
    const HELD: &'static str;

    /// A time cut to the millisecond, as it is read.
    fn millis(column: &str) -> String;

    /// So many milliseconds later than now.
    fn later(n: usize) -> String;

    /// The members of a JSON object as rows, with the columns `key` and `value`.
    fn members(n: usize) -> String;

    /// The objects of a JSON array as rows of the table `name`, whose columns are their members.
    fn records(name: &str, n: usize, columns: &[(&str, Kind)]) -> String;

    /// Inserts the objects of the JSON array that is the first parameter, or overwrites the rows of their ids: the first column.
    fn upsert(table: &str, columns: &[(&str, Kind)]) -> String {
        let names = columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let set = columns[1..].iter().map(|(name, _)| format!("{name} = excluded.{name}"));
        let set = set.collect::<Vec<_>>().join(", ");
        let id = columns[0].0;
        format!(
            "INSERT INTO {table} ({names}) SELECT {names} FROM {} WHERE true ORDER BY {id} \
             ON CONFLICT ({id}) DO UPDATE SET {set}",
            Self::records("given", 1, columns)
        )
    }

    /// Ends a `SELECT` whose rows of this table nobody else changes before the transaction ends. Foreign keys wait for none of
    /// them.
    fn held(table: &str) -> String;

    /// Ends a `SELECT` whose rows of this table others may hold too, but not change, before the transaction ends. Rows that
    /// somebody holds otherwise are left out.
    fn held_if_free(table: &str) -> String;
}

/// What a column of [`Words::records`] holds.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) enum Kind {
    Text,
    Id,
    Time,
    Number,
    Flag,
}

/// A transaction that changes tables.
pub(in crate::store) trait Changing: Reading + Transaction {
    /// Runs a statement. Answers how many rows it wrote.
    fn run(&mut self, statement: QueryBuilder<Self::Db>) -> impl Answer<u64>;
}

/// A store that the statements of sync run on.
pub(in crate::store) trait Works:
    Asked<Db: Words> + Transactions<Tx: Changing<Db = <Self as Asked>::Db>> + Send
{
    type Snapshot: Reading<Db = <Self as Asked>::Db>;

    /// Begins to read what was committed at one time, by indexes only.
    fn snapshot(&self) -> impl Answer<Self::Snapshot>;
}

/// Does `$work` in the transaction `$tx`, again where it lost a race.
macro_rules! change {
    ($store:expr, |$tx:ident| $work:expr) => {
        $crate::store::retry::again(|| async {
            let mut transaction = $store.begin($crate::store::unit::Purpose::Few).await?;
            let $tx = &mut transaction;
            let done: Result<_, $crate::store::StoreError> = async { Ok($work) }.await;
            $crate::store::unit::Transaction::end(transaction, done).await
        })
        .await
    };
}

pub(in crate::store) use change;

/// Asks one question of a snapshot.
pub(in crate::store) async fn ask<S: Works, T: Decoded>(
    store: &S,
    question: QueryBuilder<S::Db>,
    planned: Planned,
) -> Result<Vec<T>, StoreError> {
    let mut snapshot = store.snapshot().await?;
    let rows = snapshot.rows(question, planned).await?;
    snapshot.end().await?;
    Ok(rows)
}

#[async_trait]
impl<S: Works> SyncTables for S {
    async fn known(&self, clerk_ids: &[String], keys: &[String]) -> Result<Known, StoreError> {
        users::known(self, clerk_ids, keys).await
    }

    async fn live_users(&self) -> Result<u64, StoreError> {
        users::live(self).await
    }

    async fn live_among(&self, clerk_ids: &[String]) -> Result<Vec<String>, StoreError> {
        users::live_among(self, clerk_ids).await
    }

    async fn clerk_id_of(&self, reference: &str) -> Result<Option<String>, StoreError> {
        users::clerk_id_of(self, reference).await
    }

    async fn take_lease(&self, name: &str, by: &Holder, ttl: Duration) -> Result<Taken, StoreError> {
        leases::take(self, name, by, ttl).await
    }

    async fn give_lease_back(&self, name: &str, holder: Uuid) -> Result<(), StoreError> {
        leases::give_back(self, name, holder).await
    }

    async fn tell_state(
        &self,
        name: &str,
        holder: Uuid,
        state: &serde_json::Value,
    ) -> Result<bool, StoreError> {
        leases::tell(self, name, holder, state).await
    }

    async fn lease(&self, name: &str) -> Result<Option<Lease>, StoreError> {
        leases::one(self, name).await
    }

    async fn begin_run(&self, new: &NewRun) -> Result<Run, StoreError> {
        runs::begin(self, new).await
    }

    async fn save_run(&self, run: &Run) -> Result<(), StoreError> {
        runs::save(self, run).await
    }

    async fn runs(&self, limit: u32) -> Result<Vec<Run>, StoreError> {
        runs::newest(self, limit, "").await
    }

    async fn real_runs(&self, limit: u32) -> Result<Vec<Run>, StoreError> {
        runs::newest(self, limit, "WHERE NOT dry_run").await
    }

    async fn new_to(&self, run: Uuid, clerk_ids: &[String]) -> Result<Vec<String>, StoreError> {
        ids::new_to(self, run, clerk_ids).await
    }

    async fn see(&self, run: &Run, ids: &[Seen]) -> Result<(), StoreError> {
        ids::see(self, run, ids).await
    }

    async fn outstanding(&self, run: Uuid, limit: u32) -> Result<Vec<(String, String)>, StoreError> {
        ids::outstanding(self, run, limit).await
    }

    async fn settled(&self, message_ids: &[String]) -> Result<Vec<(String, Settled)>, StoreError> {
        ids::settled(self, message_ids).await
    }

    async fn settle(&self, run: Uuid, clerk_ids: &[String]) -> Result<(), StoreError> {
        ids::settle(self, run, clerk_ids).await
    }

    async fn unseen(&self, run: Uuid, after: Option<&str>, limit: u32) -> Result<Unseen, StoreError> {
        ids::unseen(self, run, after, limit).await
    }

    async fn note_absent(&self, run: Uuid, clerk_id: &str, at: Millis) -> Result<(), StoreError> {
        ids::note_absent(self, run, clerk_id, at).await
    }

    async fn absent(
        &self,
        run: Uuid,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<(String, Millis)>, StoreError> {
        ids::absent(self, run, after, limit).await
    }

    async fn saw_instance(&self, instance_id: &str, by: SeenBy) -> Result<Owner, StoreError> {
        instances::saw(self, instance_id, by).await
    }

    async fn adopt_instance(&self, instance_id: &str) -> Result<(), StoreError> {
        instances::adopt(self, instance_id).await
    }

    async fn instances(&self) -> Result<Vec<InstanceRow>, StoreError> {
        instances::all(self).await
    }

    async fn note_webhook(&self, instance_id: Option<&str>, received_at: Millis) -> Result<(), StoreError> {
        instances::note_webhook(self, instance_id, received_at).await
    }
}
