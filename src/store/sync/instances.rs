//! Owns which instances of Clerk were seen, and which of them the table belongs to: exactly one, whoever comes at once.

use super::{
    INSTANCES_MAX, InstanceRow, Owner, SeenBy,
    tables::{Changing as _, Words as _, Works, ask, change},
};
use crate::{
    store::{
        StoreError,
        columns::{At, SeenByName, from_row},
        errors,
        filter::{Dialect as _, Value},
        plain::NAME_MAX,
        questions::Planned,
    },
    text::clean,
    time::Millis,
};

from_row!(InstanceRow {
    instance_id: String,
    first_seen_at: At,
    first_seen_by: SeenByName,
    owner: bool,
    last_webhook_at: Option<At>,
});

pub(super) async fn saw<S: Works>(store: &S, instance_id: &str, by: SeenBy) -> Result<Owner, StoreError> {
    let instance_id = clean(instance_id, NAME_MAX);
    let full = |seen: &[InstanceRow]| seen.len() >= INSTANCES_MAX as usize;
    let known = |seen: &[InstanceRow]| seen.iter().any(|instance| instance.instance_id == instance_id);
    // Nearly always nothing has to be written.
    let mut seen = all(store).await?;
    // The second time where another instance became the owner meanwhile, so that this one did not get in.
    for _ in 0..2 {
        if known(&seen) || full(&seen) {
            return Ok(owner(seen));
        }
        insert(store, &instance_id, by).await?;
        seen = all(store).await?;
    }
    match known(&seen) || full(&seen) {
        true => Ok(owner(seen)),
        false => Err(errors::broken("an instance that was written is not there")),
    }
}

async fn insert<S: Works>(store: &S, instance_id: &str, by: SeenBy) -> Result<(), StoreError> {
    let statement = format!(
        "INSERT INTO instances (instance_id, first_seen_at, first_seen_by, owner) \
         SELECT $1, {}, $2, NOT EXISTS (SELECT 1 FROM instances WHERE owner) \
         WHERE (SELECT count(*) FROM instances) < {INSTANCES_MAX} ON CONFLICT DO NOTHING",
        S::Db::NOW
    );
    change!(store, |tx| {
        let values = [Value::Text(instance_id), Value::Text(by.as_str())];
        tx.run(S::Db::whole(statement.as_str(), values)?).await?;
    })
}

fn owner(seen: Vec<InstanceRow>) -> Owner {
    let mut answer = Owner::default();
    for InstanceRow { instance_id, owner, .. } in seen {
        match owner {
            true => answer.owner = Some(instance_id),
            false => answer.others.push(instance_id),
        }
    }
    answer
}

pub(super) async fn adopt<S: Works>(store: &S, instance_id: &str) -> Result<(), StoreError> {
    let instance_id = clean(instance_id, NAME_MAX);
    let instance = Value::Text(&instance_id);
    let disown = "UPDATE instances SET owner = false WHERE owner AND instance_id <> $1";
    let own = format!(
        "INSERT INTO instances (instance_id, first_seen_at, first_seen_by, owner) VALUES ($1, {}, $2, true) \
         ON CONFLICT (instance_id) DO UPDATE SET owner = true",
        S::Db::NOW
    );
    change!(store, |tx| {
        tx.run(S::Db::whole(disown, [instance])?).await?;
        tx.run(S::Db::whole(own.as_str(), [instance, Value::Text(SeenBy::Adopted.as_str())])?).await?;
    })
}

pub(super) async fn all<S: Works>(store: &S) -> Result<Vec<InstanceRow>, StoreError> {
    let question = "SELECT instance_id, first_seen_at, first_seen_by, owner, last_webhook_at FROM instances \
         ORDER BY first_seen_at, instance_id";
    ask(store, S::Db::whole(question, [])?, Planned::Once).await
}

pub(super) async fn note_webhook<S: Works>(
    store: &S,
    instance_id: Option<&str>,
    received_at: Millis,
) -> Result<(), StoreError> {
    let statement = "UPDATE instances SET last_webhook_at = $2 \
         WHERE (instance_id = $1 OR ($1 IS NULL AND owner)) AND (last_webhook_at IS NULL OR last_webhook_at < $2)";
    let instance_id = instance_id.map(|instance_id| clean(instance_id, NAME_MAX));
    change!(store, |tx| {
        let values = [Value::TextOrNull(instance_id.as_deref()), Value::Time(received_at)];
        tx.run(S::Db::whole(statement, values)?).await?;
    })
}
