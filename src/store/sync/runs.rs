//! Owns how far a run is, so that the next one goes on where the last one stopped, however that one ended.

use sqlx::{FromRow, Row};
use uuid::Uuid;

use super::{
    Counts, NewRun, Run, RunResult,
    tables::{Changing as _, Words, Works, ask, change},
};
use crate::{
    store::{
        StoreError,
        columns::{At, Id, Many, ResultName, from_row},
        errors,
        filter::{Dialect as _, Value},
        plain::{DETAIL_MAX, NAME_MAX},
        questions::{Planned, Reading as _},
    },
    text::clean,
    time::Millis,
};

const RUN: &str = "id, started_at, finished_at, instance_id, who, holder, dry_run, phase, cursor, clerk, in_step, missing, \
     outdated, different, gone, buried_alive, repaired, failed, result, detail, updated_at";

from_row!(Counts {
    clerk: Many,
    in_step: Many,
    missing: Many,
    outdated: Many,
    different: Many,
    gone: Many,
    buried_alive: Many,
    repaired: Many,
    failed: Many,
});

/// A run without its counts.
struct Head {
    id: Uuid,
    started_at: Millis,
    finished_at: Option<Millis>,
    instance_id: String,
    who: String,
    holder: Uuid,
    dry_run: bool,
    phase: String,
    cursor: Option<String>,
    result: Option<RunResult>,
    detail: Option<String>,
    updated_at: Millis,
}

from_row!(Head {
    id: Id,
    started_at: At,
    finished_at: Option<At>,
    instance_id: String,
    who: String,
    holder: Id,
    dry_run: bool,
    phase: String,
    cursor: Option<String>,
    result: Option<ResultName>,
    detail: Option<String>,
    updated_at: At,
});

impl<'r, R: Row> FromRow<'r, R> for Run
where
    Head: FromRow<'r, R>,
    Counts: FromRow<'r, R>,
{
    fn from_row(row: &'r R) -> Result<Self, sqlx::Error> {
        let Head {
            id,
            started_at,
            finished_at,
            instance_id,
            who,
            holder,
            dry_run,
            phase,
            cursor,
            result,
            detail,
            updated_at,
        } = Head::from_row(row)?;
        Ok(Self {
            id,
            started_at,
            finished_at,
            instance_id,
            who,
            holder,
            dry_run,
            phase,
            cursor,
            counts: Counts::from_row(row)?,
            result,
            detail,
            updated_at,
            resumed: false,
        })
    }
}

pub(super) async fn begin<S: Works>(store: &S, new: &NewRun) -> Result<Run, StoreError> {
    let (now, a_day_ago) = (S::Db::NOW, S::Db::A_DAY_AGO);
    let unfinished = format!(
        "SELECT {RUN} FROM sync_runs WHERE finished_at IS NULL AND instance_id = $1 AND dry_run = $2 \
         AND started_at > {a_day_ago} ORDER BY started_at DESC, id DESC LIMIT 1"
    );
    // From here on the process that had it before writes nothing down any more. What it wrote until then is read here.
    let resume = format!(
        "UPDATE sync_runs SET who = $2, holder = $3, result = NULL, detail = NULL, updated_at = {now} \
         WHERE id = $1 AND finished_at IS NULL RETURNING {RUN}"
    );
    let insert = format!(
        "INSERT INTO sync_runs (id, started_at, instance_id, who, holder, dry_run, updated_at) \
         VALUES ($1, {now}, $2, $3, $4, $5, {now}) RETURNING {RUN}"
    );
    // A run of the other kind, or of another instance, can still be gone on with for a day.
    let abandon = format!(
        "UPDATE sync_runs SET finished_at = {now}, result = 'abandoned', updated_at = {now} \
         WHERE finished_at IS NULL AND id <> $1 \
         AND ((instance_id = $2 AND dry_run = $3) OR started_at <= {a_day_ago})"
    );
    let (instance_id, who) = (clean(&new.instance_id, NAME_MAX), clean(&new.who, NAME_MAX));
    let (instance, who, dry_run) = (Value::Text(&instance_id), Value::Text(&who), Value::Flag(new.dry_run));
    let holder = Value::Id(Some(new.holder));
    change!(store, |tx| {
        let unfinished = S::Db::whole(unfinished.as_str(), [instance, dry_run])?;
        let unfinished: Option<Run> = tx.rows(unfinished, Planned::Once).await?.pop();
        let resumed = unfinished.is_some();
        let statement = match unfinished {
            Some(run) => S::Db::whole(resume.as_str(), [Value::Id(Some(run.id)), who, holder])?,
            None => {
                let id = Value::Id(Some(Uuid::now_v7()));
                S::Db::whole(insert.as_str(), [id, instance, who, holder, dry_run])?
            }
        };
        let run: Option<Run> = tx.rows(statement, Planned::Once).await?.pop();
        let run = run.ok_or_else(|| errors::raced("the run was ended by somebody else"))?;
        tx.run(S::Db::whole(abandon.as_str(), [Value::Id(Some(run.id)), instance, dry_run])?).await?;
        Run { resumed, ..run }
    })
}

pub(super) async fn save<S: Works>(store: &S, run: &Run) -> Result<(), StoreError> {
    change!(store, |tx| write::<S>(tx, run).await?)
}

/// Writes a run down, within the caller's transaction.
pub(super) async fn write<S: Works>(tx: &mut S::Tx, run: &Run) -> Result<(), StoreError> {
    // A process that lost its lease without noticing changes nothing of a run that another goes on with, or has ended. What a run
    // that is over had seen may be forgotten already: if it were opened again, everybody would seem gone.
    let statement = format!(
        "UPDATE sync_runs SET finished_at = $2, phase = $3, cursor = $4, result = $5, detail = $6, clerk = $7, \
         in_step = $8, missing = $9, outdated = $10, different = $11, gone = $12, buried_alive = $13, repaired = $14, \
         failed = $15, updated_at = {} WHERE id = $1 AND holder = $16 AND finished_at IS NULL",
        S::Db::NOW
    );
    let number = |count: u64| Value::Number(i64::try_from(count).unwrap_or(i64::MAX));
    let detail = run.detail.as_ref().map(|detail| clean(detail, DETAIL_MAX));
    let Counts { clerk, in_step, missing, outdated, different, gone, buried_alive, repaired, failed } =
        run.counts;
    let values = [
        Value::Id(Some(run.id)),
        Value::TimeOrNull(run.finished_at),
        Value::Text(&run.phase),
        Value::TextOrNull(run.cursor.as_deref()),
        Value::TextOrNull(run.result.map(RunResult::as_str)),
        Value::TextOrNull(detail.as_deref()),
        number(clerk),
        number(in_step),
        number(missing),
        number(outdated),
        number(different),
        number(gone),
        number(buried_alive),
        number(repaired),
        number(failed),
        Value::Id(Some(run.holder)),
    ];
    match tx.run(S::Db::whole(statement, values)?).await? {
        0 => Err(errors::over("the run is over, or another process goes on with it")),
        _ => Ok(()),
    }
}

pub(super) async fn newest<S: Works>(store: &S, limit: u32, which: &str) -> Result<Vec<Run>, StoreError> {
    let question = format!("SELECT {RUN} FROM sync_runs {which} ORDER BY started_at DESC, id DESC LIMIT $1");
    ask(store, S::Db::whole(question, [Value::Number(limit.into())])?, Planned::Once).await
}
