//! Owns the first safety: the key's instance has to be the one that the table belongs to. With another instance's key every user
//! here would be unknown to Clerk, and strangers would come in.

use futures_util::future::BoxFuture;

use super::{Sync, SyncError, patience::Patience};
use crate::{
    clerk::api::{Instance, UsersQuery},
    store::sync::SeenBy,
};

/// What to do where nobody has said yet whose the table is.
pub enum Unknown<'a> {
    /// Take the key's instance, unless the table holds users and none of those whom the instance changed last.
    Check,
    /// The same, and ask a person.
    Ask(&'a (dyn Fn(&Instance) -> BoxFuture<'static, bool> + Send + std::marker::Sync)),
    /// The table is to belong to the key's instance, whoever it belonged to.
    Adopt,
    /// Read the instance, and write nothing down; with `adopt` whoever the table belongs to.
    Look {
        /// As [`Adopt`](Self::Adopt) would.
        adopt: bool,
    },
}

/// How many users tell whether the table and the instance have anything to do with each other.
const SAMPLE: u16 = 100;

impl Sync {
    /// The key's instance, to which the table belongs. Asks the database once.
    ///
    /// # Errors
    /// It belongs to another one, or Clerk's API or the database does not answer.
    pub async fn owner(&self) -> Result<Instance, SyncError> {
        self.owner_or(Unknown::Check, &Patience::none()).await
    }

    /// The key's instance, to which the table belongs, or belongs from now on.
    ///
    /// # Errors
    /// As [`owner`](Self::owner); a person declined.
    pub(super) async fn owner_or(
        &self,
        unknown: Unknown<'_>,
        patience: &Patience<'_>,
    ) -> Result<Instance, SyncError> {
        let key = self.api.instance().await?;
        let other = |table: &str, by_setting| SyncError::OtherInstance {
            key: key.id.clone(),
            table: table.to_owned(),
            by_setting,
        };
        if let Some(table) = self.instance.as_deref().filter(|table| *table != key.id) {
            return Err(other(table, true));
        }
        match unknown {
            Unknown::Look { adopt: true } => return Ok(key),
            Unknown::Adopt => {
                patience.tried(|| self.store.adopt_instance(&key.id)).await?;
                return Ok(key);
            }
            Unknown::Check | Unknown::Ask(_) | Unknown::Look { adopt: false } => {}
        }
        let known = patience.tried(|| self.store.instances()).await?;
        let by_setting = self.instance.is_some();
        match (known.iter().find(|row| row.owner), unknown) {
            (Some(owner), _) if owner.instance_id == key.id => return Ok(key),
            // A person who runs a sync with the setting means it. A process by itself takes nobody else's table.
            (_, Unknown::Ask(_) | Unknown::Look { .. }) if by_setting => return Ok(key),
            (Some(owner), _) => return Err(other(&owner.instance_id, false)),
            (None, Unknown::Look { .. }) => return Ok(key),
            (None, Unknown::Check) if by_setting => {}
            (None, _) if !self.is_related(patience).await? => {
                return Err(SyncError::Strangers { key: key.id });
            }
            (None, Unknown::Ask(ask)) if !ask(&key).await => return Err(SyncError::Declined(key.id)),
            (None, _) => {}
        }
        // A webhook of another instance may have been quicker.
        let owner = patience.tried(|| self.store.saw_instance(&key.id, SeenBy::Sync)).await?.owner;
        match owner.filter(|owner| *owner != key.id) {
            Some(owner) => Err(other(&owner, false)),
            None => Ok(key),
        }
    }

    /// Whether the table is empty, or has one of the users whom the instance changed last.
    async fn is_related(&self, patience: &Patience<'_>) -> Result<bool, SyncError> {
        if patience.tried(|| self.store.live_users()).await? == 0 {
            return Ok(true);
        }
        let users = self.api.users(&UsersQuery::newest(SAMPLE, 0)).await?.users;
        let ids: Vec<String> = users.into_iter().filter_map(|user| user.clerk_id).collect();
        Ok(!patience.tried(|| self.store.live_among(&ids)).await?.is_empty())
    }
}
