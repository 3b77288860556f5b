//! Owns the table of operations: who works on which, how far it is, and claims in its name.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use sqlx::{FromRow, QueryBuilder, Row};
use uuid::Uuid;

use super::{
    Ended, Given, Held, Kind, NewOperation, Operation, Outcomes, State, Step, TTL, Tick, Wish, Wished,
};
use crate::{
    rules::users::OnDelete,
    store::{
        StoreError,
        columns::{At, Document, Id, KindName, Many, Small, StateName, StatusName, WishName, from_row},
        errors,
        filter::{Conditions, Dialect, Value},
        letters::{Actor, Claimed, Filter, Status},
        plain::{DETAIL_MAX, NAME_MAX, actor},
        questions::{CLAIMED, Planned, Reading as _},
        retry,
        sync::tables::{Changing, Words, Works, ask, change},
        unit::{Lock, Purpose, Transaction},
        users::Answer,
    },
    text::clean,
    time::Millis,
};

/// A transaction that claims letters.
pub(in crate::store) trait Claims: Changing {
    /// Claims open letters in the name of an operation.
    fn claim_for(
        &mut self,
        operation: Uuid,
        filter: &Filter,
        limit: u32,
        by: &Actor,
    ) -> impl Answer<Vec<Claimed>>;
}

/// How long ago a replay may have ended whose letters are still counted.
const COUNTED: &str = "ended_at > $1";

/// What becomes of an action that the death of its process broke off.
const BROKEN_OFF: &str = "the process that did it ended before it was done";

struct Head {
    id: Uuid,
    kind: Kind,
    who: String,
    note: Option<String>,
    what: serde_json::Value,
    clerk_id: Option<String>,
    letter_id: Option<Uuid>,
    started_at: Millis,
    ended_at: Option<Millis>,
    state: State,
    detail: Option<String>,
    order_given: Option<serde_json::Value>,
    wish: Wish,
    holder: Option<Uuid>,
    held: bool,
}

from_row!(Head {
    id: Id,
    kind: KindName,
    who: String,
    note: Option<String>,
    what: Document,
    clerk_id: Option<String>,
    letter_id: Option<Id>,
    started_at: At,
    ended_at: Option<At>,
    state: StateName,
    detail: Option<String>,
    order_given: Option<Document>,
    wish: WishName,
    holder: Option<Id>,
    held: bool,
});

struct Numbers {
    expected: u64,
    taken_up: u64,
    claimed: u64,
    published: u64,
    applied: u64,
    died: u64,
    step: u32,
    step_from: u64,
    step_died: u64,
}

from_row!(Numbers {
    expected: Many,
    taken_up: Many,
    claimed: Many,
    published: Many,
    applied: Many,
    died: Many,
    step: Small,
    step_from: Many,
    step_died: Many,
});

impl<'r, R: Row> FromRow<'r, R> for Operation
where
    Head: FromRow<'r, R>,
    Numbers: FromRow<'r, R>,
{
    fn from_row(row: &'r R) -> Result<Self, sqlx::Error> {
        let head = Head::from_row(row)?;
        let numbers = Numbers::from_row(row)?;
        Ok(Self {
            id: head.id,
            kind: head.kind,
            who: head.who,
            note: head.note,
            what: head.what,
            clerk_id: head.clerk_id,
            letter_id: head.letter_id,
            started_at: head.started_at,
            ended_at: head.ended_at,
            state: head.state,
            detail: head.detail,
            expected: numbers.expected,
            taken_up: numbers.taken_up,
            claimed: numbers.claimed,
            published: numbers.published,
            applied: numbers.applied,
            died: numbers.died,
            order: head.order_given.and_then(read),
            step: Step { number: numbers.step, from: numbers.step_from, died: numbers.step_died },
            wish: head.wish,
            holder: head.holder,
            held: head.held,
        })
    }
}

fn read<T: DeserializeOwned>(document: serde_json::Value) -> Option<T> {
    serde_json::from_value(document).ok()
}

fn columns<D: Words>() -> String {
    format!(
        "id, kind, who, note, what, clerk_id, letter_id, started_at, ended_at, state, detail, expected, taken_up, claimed, \
         published, applied, died, order_given, step, step_from, step_died, wish, holder, \
         coalesce(holder IS NOT NULL AND held_until > {}, false) AS held",
        D::CLOCK
    )
}

/// Nobody works on it.
fn unheld<D: Words>() -> String {
    format!("(holder IS NULL OR held_until IS NULL OR held_until <= {})", D::CLOCK)
}

fn ttl() -> Value<'static> {
    Value::Number(i64::try_from(TTL.as_millis()).unwrap_or(i64::MAX))
}

fn number(count: u64) -> Value<'static> {
    Value::Number(i64::try_from(count).unwrap_or(i64::MAX))
}

/// Appends ` AND …`: the letter was not claimed since the operation began, by it or by any other.
pub(in crate::store) fn and_not_claimed_since<D: Dialect>(query: &mut QueryBuilder<D>, operation: Uuid) {
    query.push(" AND (operation_id IS NULL OR operation_id <> ");
    D::bind(query, Value::Id(Some(operation)));
    query.push(") AND (claimed_at IS NULL OR claimed_at <= (SELECT started_at FROM operations WHERE id = ");
    D::bind(query, Value::Id(Some(operation)));
    query.push("))");
}

struct Texts {
    who: String,
    note: Option<String>,
    what: String,
    clerk_id: Option<String>,
    order: Option<String>,
}

impl Texts {
    fn of(new: &NewOperation) -> Self {
        let (who, note) = actor(&new.by);
        Self {
            who,
            note,
            what: new.what.to_string(),
            clerk_id: new.clerk_id.as_ref().map(|id| clean(id, NAME_MAX)),
            order: new.order.as_ref().and_then(|order| serde_json::to_string(order).ok()),
        }
    }
}

pub(super) async fn begin<S: Works>(store: &S, new: &NewOperation) -> Result<Option<Operation>, StoreError> {
    let json = S::Db::JSON;
    let insert = format!(
        "INSERT INTO operations (id, kind, who, note, what, clerk_id, letter_id, started_at, state, expected, order_given, \
         holder, held_until) VALUES ($1, $2, $3, $4, CAST($5 AS {json}), $6, $7, {}, 'running', $8, CAST($9 AS {json}), $10, \
         CASE WHEN CAST($12 AS integer) = 1 THEN {} END) RETURNING {}",
        S::Db::CLOCK,
        S::Db::later(11),
        columns::<S::Db>()
    );
    let (texts, erases) = (Texts::of(new), store.terms().policy.on_delete == OnDelete::Erase);
    change!(store, |tx| {
        if let Some(most) = new.most {
            tx.lock(&BTreeSet::from([Lock::Replays])).await?;
            if running(tx).await? >= u64::from(most) {
                return Ok(None);
            }
        }
        let values = [
            Value::Id(Some(Uuid::now_v7())),
            Value::Text(new.kind.as_str()),
            Value::Text(&texts.who),
            Value::TextOrNull(texts.note.as_deref()),
            Value::Text(&texts.what),
            Value::TextOrNull(texts.clerk_id.as_deref()),
            Value::Id(new.letter_id),
            number(new.expected),
            Value::TextOrNull(texts.order.as_deref()),
            Value::Id(new.holder),
            ttl(),
            Value::Number(i64::from(new.holder.is_some())),
        ];
        let begun: Vec<Operation> = tx.rows(S::Db::whole(insert.as_str(), values)?, Planned::Once).await?;
        if erases && let Some(clerk_id) = &texts.clerk_id {
            erase(tx, &[clerk_id]).await?;
        }
        begun.into_iter().next()
    })
}

pub(super) async fn note<S: Works>(store: &S, new: &NewOperation) -> Result<(), StoreError> {
    let insert = format!(
        "INSERT INTO operations (id, kind, who, note, what, clerk_id, letter_id, started_at, ended_at, state, expected) \
         VALUES ($1, $2, $3, $4, CAST($5 AS {}), $6, $7, {clock}, {clock}, 'complete', $8)",
        S::Db::JSON,
        clock = S::Db::CLOCK
    );
    let (texts, erases) = (Texts::of(new), store.terms().policy.on_delete == OnDelete::Erase);
    change!(store, |tx| {
        let values = [
            Value::Id(Some(Uuid::now_v7())),
            Value::Text(new.kind.as_str()),
            Value::Text(&texts.who),
            Value::TextOrNull(texts.note.as_deref()),
            Value::Text(&texts.what),
            Value::TextOrNull(texts.clerk_id.as_deref()),
            Value::Id(new.letter_id),
            number(new.expected),
        ];
        tx.run(S::Db::whole(insert.as_str(), values)?).await?;
        if erases && let Some(clerk_id) = &texts.clerk_id {
            erase(tx, &[clerk_id]).await?;
        }
    })
}

pub(super) async fn end<S: Works>(
    store: &S,
    id: Uuid,
    holder: Uuid,
    end: &Ended,
) -> Result<bool, StoreError> {
    let update = format!(
        "UPDATE operations SET ended_at = {}, state = $3, detail = $4, published = $5, applied = $6, died = $7, \
         order_given = NULL, holder = NULL, held_until = NULL WHERE id = $1 AND holder = $2 AND ended_at IS NULL \
         RETURNING coalesce(clerk_id, '')",
        S::Db::CLOCK
    );
    let detail = end.detail.as_ref().map(|detail| clean(detail, DETAIL_MAX));
    let erases = store.terms().policy.on_delete == OnDelete::Erase;
    change!(store, |tx| {
        let values = [
            Value::Id(Some(id)),
            Value::Id(Some(holder)),
            Value::Text(end.state.as_str()),
            Value::TextOrNull(detail.as_deref()),
            number(end.published),
            number(end.applied),
            number(end.died),
        ];
        let ended: Vec<(String,)> = tx.rows(S::Db::whole(update.as_str(), values)?, Planned::Once).await?;
        if erases && let [(clerk_id,)] = &ended[..] {
            erase(tx, &[clerk_id]).await?;
        }
        !ended.is_empty()
    })
}

pub(super) async fn one<S: Works>(store: &S, id: Uuid) -> Result<Option<Operation>, StoreError> {
    let question = format!("SELECT {} FROM operations WHERE id = $1", columns::<S::Db>());
    Ok(ask(store, S::Db::whole(question, [Value::Id(Some(id))])?, Planned::Once).await?.pop())
}

pub(super) async fn replays<S: Works>(store: &S, limit: u32) -> Result<Vec<Operation>, StoreError> {
    // Whatever has not ended is listed, however old it is.
    let columns = columns::<S::Db>();
    let question = format!(
        "SELECT {columns} FROM operations WHERE id IN (SELECT id FROM operations WHERE kind = 'replay' AND ended_at IS NULL) \
         OR id IN (SELECT id FROM operations WHERE kind = 'replay' ORDER BY started_at DESC, id DESC LIMIT $1) \
         ORDER BY started_at DESC, id DESC"
    );
    ask(store, S::Db::whole(question, [Value::Number(limit.into())])?, Planned::Once).await
}

pub(super) async fn take<S: Works>(store: &S, holder: Uuid) -> Result<Option<Operation>, StoreError> {
    let (unheld, goes_on) = (unheld::<S::Db>(), "kind = 'replay' AND ended_at IS NULL AND wish <> 'pause'");
    let first = format!("SELECT 1 FROM operations WHERE {goes_on} AND {unheld} LIMIT 1");
    // The condition stands outside as well: of two that take it at once, the second finds it held.
    let update = format!(
        "UPDATE operations SET holder = $1, held_until = {}, state = 'running' WHERE {goes_on} AND {unheld} \
         AND id = (SELECT id FROM operations WHERE {goes_on} AND {unheld} ORDER BY started_at, id LIMIT 1) RETURNING {}",
        S::Db::later(2),
        columns::<S::Db>()
    );
    // Nearly always there is none, and then nothing is written.
    let any: Vec<(i32,)> = ask(store, QueryBuilder::new(first), Planned::Once).await?;
    if any.is_empty() {
        return Ok(None);
    }
    change!(store, |tx| {
        let update = S::Db::whole(update.as_str(), [Value::Id(Some(holder)), ttl()])?;
        tx.rows::<Operation>(update, Planned::Once).await?.pop()
    })
}

pub(super) async fn tick<S: Works>(
    store: &S,
    id: Uuid,
    holder: Uuid,
    tick: &Tick,
) -> Result<Option<Operation>, StoreError> {
    let update = format!(
        "UPDATE operations SET held_until = {}, state = $4, detail = CASE WHEN wish = 'run' THEN $5 ELSE detail END, published = $6, applied = $7, died = $8, step = $9, \
         step_from = $10, step_died = $11 WHERE id = $1 AND holder = $2 AND ended_at IS NULL AND held_until > {} RETURNING {}",
        S::Db::later(3),
        S::Db::CLOCK,
        columns::<S::Db>()
    );
    let detail = tick.detail.as_ref().map(|detail| clean(detail, DETAIL_MAX));
    change!(store, |tx| {
        let values = [
            Value::Id(Some(id)),
            Value::Id(Some(holder)),
            ttl(),
            Value::Text(tick.state.as_str()),
            Value::TextOrNull(detail.as_deref()),
            number(tick.published),
            number(tick.applied),
            number(tick.died),
            Value::Number(tick.step.number.into()),
            number(tick.step.from),
            number(tick.step.died),
        ];
        tx.rows::<Operation>(S::Db::whole(update.as_str(), values)?, Planned::Once).await?.pop()
    })
}

pub(super) async fn give_back<S: Works>(store: &S, id: Uuid, holder: Uuid) -> Result<(), StoreError> {
    let update = "UPDATE operations SET holder = NULL, held_until = NULL WHERE id = $1 AND holder = $2";
    change!(store, |tx| {
        tx.run(S::Db::whole(update, [Value::Id(Some(id)), Value::Id(Some(holder))])?).await?;
    })
}

pub(super) async fn wish<S: Works>(
    store: &S,
    id: Uuid,
    wish: Wish,
    by: &Actor,
    most: u32,
) -> Result<Option<Wished>, StoreError> {
    let state = match wish {
        Wish::Run => State::Running,
        Wish::Pause => State::Paused,
        Wish::Stop => State::Stopped,
    };
    let unheld = unheld::<S::Db>();
    let update = format!(
        "UPDATE operations SET wish = $2, state = CASE WHEN {unheld} THEN $3 ELSE state END, \
         detail = CASE WHEN wish = $2 THEN detail ELSE $4 END, \
         ended_at = CASE WHEN $2 = 'stop' AND {unheld} THEN {} END, \
         order_given = CASE WHEN $2 = 'stop' AND {unheld} THEN NULL ELSE order_given END \
         WHERE id = $1 AND kind = 'replay' AND ended_at IS NULL RETURNING {}",
        S::Db::CLOCK,
        columns::<S::Db>()
    );
    let question = format!("SELECT {} FROM operations WHERE id = $1 AND kind = 'replay'", columns::<S::Db>());
    let (who, _) = actor(by);
    let detail = clean(&wish.told(&who), DETAIL_MAX);
    let erases = store.terms().policy.on_delete == OnDelete::Erase;
    change!(store, |tx| {
        // Nobody starts or resumes another one meanwhile.
        tx.lock(&BTreeSet::from([Lock::Replays])).await?;
        let stands = S::Db::whole(question.as_str(), [Value::Id(Some(id))])?;
        let stands: Option<Operation> = tx.rows(stands, Planned::Once).await?.pop();
        let waits = stands.is_some_and(|it| !it.state.is_over() && it.wish == Wish::Pause);
        if waits && wish == Wish::Run && running(tx).await? >= u64::from(most) {
            return Ok(Some(Wished::Busy));
        }
        let values = [
            Value::Id(Some(id)),
            Value::Text(wish.as_str()),
            Value::Text(state.as_str()),
            Value::Text(&detail),
        ];
        let wished: Vec<Operation> = tx.rows(S::Db::whole(update.as_str(), values)?, Planned::Once).await?;
        if erases && let [Operation { clerk_id: Some(clerk_id), .. }] = &wished[..] {
            erase(tx, &[clerk_id]).await?;
        }
        let stands = match wished.into_iter().next() {
            Some(operation) => Some(operation),
            None => {
                let question = S::Db::whole(question.as_str(), [Value::Id(Some(id))])?;
                tx.rows::<Operation>(question, Planned::Once).await?.pop()
            }
        };
        stands.map(|operation| Wished::Noted(Box::new(operation)))
    })
}

/// How many replays run, or are about to.
async fn running<T: Changing<Db: Words>>(tx: &mut T) -> Result<u64, StoreError> {
    let question =
        "SELECT count(*) FROM operations WHERE kind = 'replay' AND ended_at IS NULL AND wish <> 'pause'";
    let count: Vec<(Many,)> = tx.rows(QueryBuilder::new(question), Planned::Once).await?;
    Ok(count.first().map_or(0, |(Many(running),)| *running))
}

/// Does `$work` in the transaction `$tx` for as long as `$held` is held, again where it lost a race.
macro_rules! held {
    ($store:expr, $held:expr, |$tx:ident| $work:expr) => {
        retry::again(|| async {
            let mut transaction = $store.begin(Purpose::People).await?;
            let $tx = &mut transaction;
            let done: Result<_, StoreError> = async {
                // Until the commit nobody else can take it.
                hold($tx, $held).await?;
                Ok($work)
            }
            .await;
            Transaction::end(transaction, done).await
        })
        .await
    };
}

async fn hold<T: Changing<Db: Words>>(tx: &mut T, held: Held) -> Result<(), StoreError> {
    let question = format!(
        "SELECT 1 FROM operations WHERE id = $1 AND holder = $2 AND ended_at IS NULL AND held_until > {}{}",
        T::Db::CLOCK,
        T::Db::HELD
    );
    let values = [Value::Id(Some(held.id)), Value::Id(Some(held.holder))];
    let held: Vec<(i32,)> = tx.rows(T::Db::whole(question, values)?, Planned::Once).await?;
    match held.is_empty() {
        true => Err(errors::over("another process goes on with the replay, or it has ended")),
        false => Ok(()),
    }
}

pub(super) async fn claim<S: Works<Tx: Claims>>(
    store: &S,
    held: Held,
    filter: &Filter,
    limit: u32,
    by: &Actor,
) -> Result<Vec<Claimed>, StoreError> {
    let update = "UPDATE operations SET claimed = claimed + $2 WHERE id = $1";
    held!(store, held, |tx| {
        let claims = tx.claim_for(held.id, filter, limit, by).await?;
        if !claims.is_empty() {
            let values = [Value::Id(Some(held.id)), number(claims.len() as u64)];
            tx.run(S::Db::whole(update, values)?).await?;
        }
        claims
    })
}

pub(super) async fn adopt<S: Works>(
    store: &S,
    held: Held,
    filter: &Filter,
    before: Millis,
    limit: u32,
) -> Result<u64, StoreError> {
    let update = "UPDATE operations SET taken_up = taken_up + $2 WHERE id = $1";
    held!(store, held, |tx| {
        let Some(conditions) = Conditions::despite_status(filter, Status::Replayed) else { return Ok(0) };
        let mut query = QueryBuilder::<S::Db>::new("UPDATE dead_letters SET operation_id = ");
        S::Db::bind(&mut query, Value::Id(Some(held.id)));
        query.push(" WHERE id IN (SELECT id FROM dead_letters");
        conditions.push(&mut query);
        query.push(" AND status = 'replayed' AND published_at IS NULL AND claimed_at < ");
        S::Db::bind(&mut query, Value::Time(before));
        query.push(format_args!(
            " AND (operation_id IS NULL OR NOT EXISTS (SELECT 1 FROM operations AS o WHERE o.id = operation_id \
             AND o.ended_at IS NULL AND o.held_until > {})) ORDER BY claimed_at, id LIMIT {limit}{}) ",
            S::Db::CLOCK,
            S::Db::held("dead_letters")
        ));
        let adopted = tx.run(query).await?;
        if adopted > 0 {
            tx.run(S::Db::whole(update, [Value::Id(Some(held.id)), number(adopted)])?).await?;
        }
        adopted
    })
}

pub(super) async fn unpublished<S: Works>(
    store: &S,
    id: Uuid,
    limit: u32,
) -> Result<Vec<Claimed>, StoreError> {
    let question = format!(
        "SELECT {CLAIMED} FROM dead_letters JOIN dead_letter_contents ON letter_id = id \
         WHERE operation_id = $1 AND status = 'replayed' AND published_at IS NULL ORDER BY claimed_at, id LIMIT {limit}"
    );
    ask(store, S::Db::whole(question, [Value::Id(Some(id))])?, Planned::Once).await
}

pub(super) async fn outcomes<S: Works>(store: &S, id: Uuid, whole: bool) -> Result<Outcomes, StoreError> {
    let applied = if whole { ", 'applied'" } else { "" };
    let question = format!(
        "SELECT status, count(*) FROM dead_letters WHERE operation_id = $1 \
         AND status IN ('open', 'discarded', 'replayed'{applied}) GROUP BY status"
    );
    let unstamped = "SELECT count(*) FROM dead_letters WHERE operation_id = $1 AND status = 'replayed' AND published_at IS NULL";
    let mut snapshot = store.snapshot().await?;
    let question = S::Db::whole(question, [Value::Id(Some(id))])?;
    let counts: Vec<(StatusName, Many)> = snapshot.rows(question, Planned::Once).await?;
    let unstamped = S::Db::whole(unstamped, [Value::Id(Some(id))])?;
    let unstamped: Vec<(Many,)> = snapshot.rows(unstamped, Planned::Once).await?;
    snapshot.end().await?;
    let mut outcomes =
        Outcomes { unstamped: unstamped.first().map_or(0, |(Many(n),)| *n), ..Outcomes::default() };
    for (StatusName(status), Many(letters)) in counts {
        match status {
            Status::Applied => outcomes.applied += letters,
            Status::Replayed => outcomes.under_way += letters,
            // Only a letter that died again is open, or was discarded, after its claim.
            Status::Open | Status::Discarded => outcomes.died += letters,
        }
    }
    Ok(outcomes)
}

pub(super) async fn tidy<S: Works>(store: &S, counts: bool) -> Result<bool, StoreError> {
    let (unheld, clock) = (unheld::<S::Db>(), S::Db::CLOCK);
    let open = format!(
        "SELECT kind, {unheld} AND (kind <> 'replay' OR (wish = 'pause' AND state = 'running')) \
         FROM operations WHERE ended_at IS NULL"
    );
    let broken = format!(
        "UPDATE operations SET ended_at = {clock}, state = 'failed', detail = $1, holder = NULL, held_until = NULL \
         WHERE ended_at IS NULL AND kind <> 'replay' AND {unheld}"
    );
    let paused = format!(
        "UPDATE operations SET state = 'paused' WHERE ended_at IS NULL AND kind = 'replay' AND wish = 'pause' \
         AND state = 'running' AND {unheld}"
    );
    let unsure = format!(
        "SELECT id, taken_up + claimed FROM operations WHERE kind = 'replay' AND {COUNTED} \
         AND applied + died < taken_up + claimed LIMIT 100"
    );
    let set = "UPDATE operations SET applied = $2, died = $3, published = $4 WHERE id = $1 AND ended_at IS NOT NULL";
    let open: Vec<(KindName, bool)> = ask(store, QueryBuilder::new(open), Planned::Once).await?;
    if open.iter().any(|(_, is_left)| *is_left) {
        change!(store, |tx| {
            tx.run(S::Db::whole(broken.as_str(), [Value::Text(BROKEN_OFF)])?).await?;
            tx.run(S::Db::whole(paused.as_str(), [])?).await?;
        })?;
    }
    if counts {
        let an_hour_ago = crate::time::now() - 3_600_000;
        let unsure = S::Db::whole(unsure.as_str(), [Value::Time(an_hour_ago)])?;
        let unsure: Vec<(Id, Many)> = ask(store, unsure, Planned::Once).await?;
        for (Id(id), Many(letters)) in unsure {
            let found = outcomes(store, id, true).await?;
            let died = letters.saturating_sub(found.applied + found.under_way);
            let published = letters.saturating_sub(found.unstamped);
            change!(store, |tx| {
                let values = [Value::Id(Some(id)), number(found.applied), number(died), number(published)];
                tx.run(S::Db::whole(set, values)?).await?;
            })?;
        }
    }
    Ok(open.iter().any(|(KindName(kind), _)| *kind == Kind::Replay))
}

/// Erases what people wrote and selected in operations about those of these accounts who are erased.
pub(in crate::store) async fn erase<T: Changing<Db: Words>>(
    tx: &mut T,
    clerk_ids: &[&str],
) -> Result<(), StoreError> {
    let clerk_ids: Vec<String> = clerk_ids.iter().map(|id| (*id).to_owned()).collect();
    let erased = format!(
        "SELECT clerk_id FROM users WHERE erased AND {among} UNION ALL SELECT clerk_id FROM former_clerk_ids WHERE {among}",
        among = T::Db::among("clerk_id", 1)
    );
    let statement = format!(
        "UPDATE operations SET note = NULL, detail = NULL, what = CAST('{{}}' AS {json}) \
         WHERE (note IS NOT NULL OR detail IS NOT NULL OR what <> CAST('{{}}' AS {json})) \
         AND (clerk_id IN ({erased}) \
         OR letter_id IN (SELECT id FROM dead_letters WHERE clerk_id IS NOT NULL AND clerk_id IN ({erased})))",
        json = T::Db::JSON
    );
    tx.run(T::Db::whole(statement, [Value::Texts(&clerk_ids)])?).await?;
    Ok(())
}

impl Operation {
    /// What it goes by; an error where it has ended, or where only a newer headcount can read it.
    pub(crate) fn given(&self) -> Result<&Given, StoreError> {
        self.order.as_ref().ok_or_else(|| errors::over("the replay's order cannot be read"))
    }
}
