//! Owns the drift that `sync` has to find: so many users of each kind, told apart by the last digits of their ids, and what a run
//! has to say of them.

use headcount::{
    clerk::stand_in::World,
    time::{Millis, now},
};
use serde::Deserialize;

use super::{Outcome, table::Table};

/// One user of so many differs in each way.
pub const ONE_IN: u64 = 1_000;
/// Users whose numbers end so, or higher, are left alone.
pub const UNTOUCHED: u64 = 100;
/// What happened behind headcount's back happened so long ago, in milliseconds: no webhook is on its way any more.
const AGO: Millis = 180_000;

/// The id of user `number`.
pub fn id(number: u64) -> String {
    format!("user_bench{number:07}")
}

/// What a run found, as it prints it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Found {
    pub clerk: u64,
    pub in_step: u64,
    pub missing: u64,
    pub outdated: u64,
    pub different: u64,
    pub gone: u64,
    pub buried_alive: u64,
    pub repaired: u64,
    pub failed: u64,
}

/// What was seeded.
#[derive(Clone, Copy, Debug)]
pub struct Drift {
    /// Of each kind.
    each: u64,
}

impl Drift {
    /// Makes users differ: rows removed and edited by SQL, and creations, changes and deletions whose webhooks are lost.
    pub async fn seed(world: &World, table: &mut Table, users: u64) -> Outcome<Self> {
        let each = users / ONE_IN;
        let ending = |digits: u64| format!("clerk_id LIKE 'user_bench____{digits:03}'");
        table.execute(&format!("DELETE FROM users WHERE {}", ending(0))).await?;
        table.execute(&format!("UPDATE users SET first_name = 'edited' WHERE {}", ending(1))).await?;
        table.execute(&format!("UPDATE users SET email = NULL WHERE {}", ending(2))).await?;
        table.execute(&format!("UPDATE users SET deleted_at = created_at WHERE {}", ending(3))).await?;
        let then = now() - AGO;
        for thousand in 0..each {
            let number = |digits: u64| id(thousand * ONE_IN + digits);
            world.change(&number(4), then, |person| person.first_name = Some("Changed".into()));
            world.delete(&number(5));
            world.sign_up(&format!("user_lost{thousand:07}"), then);
        }
        Ok(Self { each })
    }

    /// How many differ.
    pub fn all(self) -> u64 {
        7 * self.each
    }

    /// # Errors
    /// A run found something else.
    pub fn is_what_was_found(self, found: &Found) -> Outcome<()> {
        let Self { each } = self;
        let Found { missing, outdated, different, gone, buried_alive, repaired, failed, .. } = *found;
        let counts = [missing, outdated, different, gone, buried_alive, repaired, failed];
        match counts == [2 * each, each, 2 * each, each, each, self.all(), 0] {
            true => Ok(()),
            false => {
                Err(format!("{each} users of each kind were seeded, and this was found: {found:?}").into())
            }
        }
    }
}
