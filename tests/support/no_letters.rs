//! Owns the part of a fake store that no test which uses one asks for.

/// Implements for a store that has none of it what people and housekeeping ask.
macro_rules! no_letters {
    ($store:ty) => {
        use headcount::{
            message::Rejected,
            store::{housekeeping::*, letters::*},
        };

        #[async_trait::async_trait]
        impl Letters for $store {
            async fn capture(&self, _: &[Captured]) -> Result<Vec<String>, StoreError> {
                unreachable!()
            }
            async fn groups(&self, _: &Filter) -> Result<Vec<Group>, StoreError> {
                unreachable!()
            }
            async fn groups_named(&self, _: &str) -> Result<Vec<String>, StoreError> {
                unreachable!()
            }

            async fn list(&self, _: &Filter, _: &Page) -> Result<Vec<Letter>, StoreError> {
                unreachable!()
            }
            async fn show(&self, _: &str) -> Result<Option<LetterDetail>, StoreError> {
                unreachable!()
            }
            async fn count(&self, _: &Filter) -> Result<Vec<Count>, StoreError> {
                unreachable!()
            }
            async fn claim(&self, _: &Filter, _: u32, _: &Actor) -> Result<Vec<Claimed>, StoreError> {
                unreachable!()
            }
            async fn edit(
                &self,
                _: uuid::Uuid,
                _: bytes::Bytes,
                _: &Actor,
            ) -> Result<Option<Claimed>, StoreError> {
                unreachable!()
            }
            async fn clock(&self) -> Result<i64, StoreError> {
                unreachable!()
            }
            async fn unstamped(&self, _: &Filter, _: i64, _: u32) -> Result<Vec<Claimed>, StoreError> {
                unreachable!()
            }
            async fn stamp(&self, _: &[(uuid::Uuid, u32)]) -> Result<(), StoreError> {
                unreachable!()
            }
            async fn discard(&self, _: &Filter, _: u32, _: &Actor) -> Result<u64, StoreError> {
                unreachable!()
            }
            async fn restore(&self, _: &Filter, _: u32, _: &Actor) -> Result<u64, StoreError> {
                unreachable!()
            }
        }

        #[async_trait::async_trait]
        impl Rejections for $store {
            async fn record(&self, _: &[Rejected]) -> Result<(), StoreError> {
                unreachable!()
            }
            async fn newest(&self, _: u32) -> Result<Vec<Rejected>, StoreError> {
                unreachable!()
            }
        }

        #[async_trait::async_trait]
        impl Housekeeping for $store {
            async fn prune(&self, _: &Retention, _: u32) -> Result<Pruned, StoreError> {
                unreachable!()
            }
            async fn statuses(&self) -> Result<std::collections::BTreeMap<Status, u64>, StoreError> {
                unreachable!()
            }
            async fn erase_kept(&self, _: u32) -> Result<u64, StoreError> {
                unreachable!()
            }
        }
    };
}
