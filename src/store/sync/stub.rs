//! To be replaced.
use super::*;
use crate::store::{postgres::PostgresStore, sqlite::SqliteStore};
use async_trait::async_trait;
use std::time::Duration;
use uuid::Uuid;

/// To be replaced.
pub(in crate::store) trait Tables: Send + Sync {}
impl Tables for PostgresStore {}
impl Tables for SqliteStore {}

#[allow(unused_variables)]
#[async_trait]
impl<S: Tables> SyncTables for S {
    async fn known(&self, clerk_ids: &[String], keys: &[String]) -> Result<Known, StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn live_users(&self) -> Result<u64, StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn live_among(&self, clerk_ids: &[String]) -> Result<Vec<String>, StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn clerk_id_of(&self, reference: &str) -> Result<Option<String>, StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn take_lease(&self, name: &str, by: &Holder, ttl: Duration) -> Result<Taken, StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn give_lease_back(&self, name: &str, holder: Uuid) -> Result<(), StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn tell_state(
        &self,
        name: &str,
        holder: Uuid,
        state: &serde_json::Value,
    ) -> Result<bool, StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn lease(&self, name: &str) -> Result<Option<Lease>, StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn begin_run(&self, new: &NewRun) -> Result<Run, StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn save_run(&self, run: &Run) -> Result<(), StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn runs(&self, limit: u32) -> Result<Vec<Run>, StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn see(&self, run: Uuid, ids: &[Seen]) -> Result<u64, StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn outstanding(&self, run: Uuid, limit: u32) -> Result<Vec<(String, String)>, StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn settled(&self, message_ids: &[String]) -> Result<Vec<(String, Settled)>, StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn settle(&self, run: Uuid, clerk_ids: &[String]) -> Result<(), StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn unseen(&self, run: Uuid, after: Option<String>, limit: u32) -> Result<Unseen, StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn note_absent(&self, run: Uuid, clerk_id: &str, at: Millis) -> Result<(), StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn absent(
        &self,
        run: Uuid,
        after: Option<String>,
        limit: u32,
    ) -> Result<Vec<(String, Millis)>, StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn forget_ids(&self, run: Uuid, limit: u32) -> Result<u64, StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn saw_instance(&self, instance_id: &str, by: SeenBy) -> Result<Owner, StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn adopt_instance(&self, instance_id: &str) -> Result<(), StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn instances(&self) -> Result<Vec<InstanceRow>, StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
    async fn note_webhook(&self, instance_id: Option<String>, received_at: Millis) -> Result<(), StoreError> {
        Err(crate::store::errors::broken("not written yet"))
    }
}
