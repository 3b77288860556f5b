//! Owns giving each store the whole seam.

use async_trait::async_trait;
use uuid::Uuid;

use super::{
    Cause, Ended, Held, LogFilter, LogPage, NewOperation, Operation, OperationLog, OperationRow, Outcomes,
    Tick, Wish, Wished, causes, log,
    rows::{self, Claims},
};
use crate::{
    store::{
        StoreError,
        letters::{Actor, Claimed, Filter},
        sync::tables::Works,
        unit::Transactions,
    },
    time::Millis,
};

#[async_trait]
impl<S: Works<Tx: Claims>> OperationLog for S
where
    Self: Transactions,
{
    async fn begin_operation(&self, new: &NewOperation) -> Result<Option<Operation>, StoreError> {
        rows::begin(self, new).await
    }

    async fn note_operation(&self, new: &NewOperation) -> Result<(), StoreError> {
        rows::note(self, new).await
    }

    async fn end_operation(&self, id: Uuid, holder: Uuid, end: &Ended) -> Result<bool, StoreError> {
        rows::end(self, id, holder, end).await
    }

    async fn operation(&self, id: Uuid) -> Result<Option<Operation>, StoreError> {
        rows::one(self, id).await
    }

    async fn replays(&self, limit: u32) -> Result<Vec<Operation>, StoreError> {
        rows::replays(self, limit).await
    }

    async fn take_replay(&self, holder: Uuid) -> Result<Option<Operation>, StoreError> {
        rows::take(self, holder).await
    }

    async fn tick(&self, id: Uuid, holder: Uuid, tick: &Tick) -> Result<Option<Operation>, StoreError> {
        rows::tick(self, id, holder, tick).await
    }

    async fn give_operation_back(&self, id: Uuid, holder: Uuid) -> Result<(), StoreError> {
        rows::give_back(self, id, holder).await
    }

    async fn wish(&self, id: Uuid, wish: Wish, by: &Actor, most: u32) -> Result<Option<Wished>, StoreError> {
        rows::wish(self, id, wish, by, most).await
    }

    async fn claim_for(
        &self,
        held: Held,
        filter: &Filter,
        limit: u32,
        by: &Actor,
    ) -> Result<Vec<Claimed>, StoreError> {
        rows::claim(self, held, filter, limit, by).await
    }

    async fn adopt(
        &self,
        held: Held,
        filter: &Filter,
        before: Millis,
        limit: u32,
    ) -> Result<u64, StoreError> {
        rows::adopt(self, held, filter, before, limit).await
    }

    async fn unpublished(&self, id: Uuid, limit: u32) -> Result<Vec<Claimed>, StoreError> {
        rows::unpublished(self, id, limit).await
    }

    async fn outcomes(&self, id: Uuid, whole: bool) -> Result<Outcomes, StoreError> {
        rows::outcomes(self, id, whole).await
    }

    async fn tidy_operations(&self, counts: bool) -> Result<bool, StoreError> {
        rows::tidy(self, counts).await
    }

    async fn operations(&self, filter: &LogFilter, page: &LogPage) -> Result<Vec<OperationRow>, StoreError> {
        log::read(self, filter, page).await
    }

    async fn causes(&self, now: Millis) -> Result<Vec<Cause>, StoreError> {
        causes::read(self, now).await
    }
}
