//! Owns reading the log: operations, runs of sync and grants, merged in the order of their times.

use serde_json::json;
use sqlx::QueryBuilder;
use uuid::Uuid;

use super::{Kind, LOG_MAX, LogFilter, LogPage, OperationRow, State};
use crate::{
    store::{
        StoreError,
        columns::{At, Document, Id, KindName, Many, StateName, from_row},
        filter::{Dialect as _, Value},
        plain,
        questions::{Planned, Reading as _},
        sync::tables::{Words, Works},
    },
    time::{Millis, rfc3339},
};

struct Row {
    id: Uuid,
    kind: Kind,
    at: Millis,
    ended_at: Option<Millis>,
    who: String,
    note: Option<String>,
    what: Option<serde_json::Value>,
    /// Of a sync its instance, of a grant its tier.
    name: Option<String>,
    until: Option<Millis>,
    flag: bool,
    clerk_id: Option<String>,
    letter_id: Option<Uuid>,
    state: State,
    detail: Option<String>,
    expected: u64,
    published: u64,
    applied: u64,
    died: u64,
}

from_row!(Row {
    id: Id,
    kind: KindName,
    at: At,
    ended_at: Option<At>,
    who: String,
    note: Option<String>,
    what: Option<Document>,
    name: Option<String>,
    until = "until_at": Option<At>,
    flag: bool,
    clerk_id: Option<String>,
    letter_id: Option<Id>,
    state: StateName,
    detail: Option<String>,
    expected: Many,
    published: Many,
    applied: Many,
    died: Many,
});

impl From<Row> for OperationRow {
    fn from(row: Row) -> Self {
        let what = match (row.kind, row.what) {
            (_, Some(what)) => what,
            (Kind::Sync, None) => json!({ "instance": row.name, "dry_run": row.flag }),
            (_, None) => json!({ "tier": row.name, "until": row.until.map(rfc3339) }),
        };
        Self {
            id: row.id,
            kind: row.kind,
            at: row.at,
            ended_at: row.ended_at,
            who: row.who,
            note: row.note,
            what,
            clerk_id: row.clerk_id,
            letter_id: row.letter_id,
            state: row.state,
            detail: row.detail,
            expected: row.expected,
            published: row.published,
            applied: row.applied,
            died: row.died,
        }
    }
}

/// A table that the log tells of, with its kinds, its time, its actor and the columns of [`Row`].
struct Source {
    kinds: &'static [Kind],
    from: &'static str,
    kind: &'static str,
    id: &'static str,
    at: &'static str,
    who: &'static str,
    rest: String,
}

fn sources<D: Words>() -> [Source; 4] {
    let nothing = |kind: &str| format!("CAST(NULL AS {kind})");
    let (text, time, json, id) = (nothing("text"), nothing(D::TIME), nothing(D::JSON), nothing(D::ID));
    [
        Source {
            // Its syncs are those of single users.
            kinds: &[
                Kind::Replay,
                Kind::Edit,
                Kind::Discard,
                Kind::Restore,
                Kind::Reveal,
                Kind::Note,
                Kind::Sync,
            ],
            from: "operations",
            kind: "kind",
            id: "id",
            at: "started_at",
            who: "who",
            rest: format!(
                "ended_at, note, what, {text} AS name, {time} AS until_at, false AS flag, clerk_id, letter_id, state, detail, \
                 expected, published, applied, died"
            ),
        },
        Source {
            kinds: &[Kind::Sync],
            from: "sync_runs",
            kind: "'sync'",
            id: "id",
            at: "started_at",
            who: "who",
            rest: format!(
                "finished_at AS ended_at, {text} AS note, {json} AS what, instance_id AS name, {time} AS until_at, \
                 dry_run AS flag, {text} AS clerk_id, {id} AS letter_id, \
                 CASE WHEN finished_at IS NULL THEN 'running' WHEN result = 'done' THEN 'complete' \
                 WHEN result = 'stopped' THEN 'stopped' ELSE 'failed' END AS state, \
                 CASE WHEN result = 'abandoned' THEN 'nobody went on with it in time' ELSE detail END AS detail, \
                 clerk AS expected, repaired AS published, CAST(0 AS bigint) AS applied, failed AS died"
            ),
        },
        grants("'grant'", &[Kind::Grant], "granted_at", "granted_by", "note", &text, &id, &json),
        grants("'revoke'", &[Kind::Revoke], "ended_at", "ended_by", "ended_note", &text, &id, &json),
    ]
}

#[allow(clippy::too_many_arguments)]
fn grants(
    kind: &'static str,
    kinds: &'static [Kind],
    at: &'static str,
    who: &'static str,
    note: &str,
    text: &str,
    id: &str,
    json: &str,
) -> Source {
    Source {
        kinds,
        // What its time ended nobody did.
        from: "(SELECT g.*, (SELECT u.clerk_id FROM users AS u WHERE u.id = g.user_id) AS clerk_id FROM tier_grants AS g) AS g",
        kind,
        id: "id",
        at,
        who,
        rest: format!(
            "{at} AS ended_at, {note} AS note, {json} AS what, tier AS name, until AS until_at, false AS flag, clerk_id, \
             {id} AS letter_id, 'complete' AS state, {text} AS detail, CAST(0 AS bigint) AS expected, CAST(0 AS bigint) AS published, \
             CAST(0 AS bigint) AS applied, CAST(0 AS bigint) AS died"
        ),
    }
}

pub(super) async fn read<S: Works>(
    store: &S,
    filter: &LogFilter,
    page: &LogPage,
) -> Result<Vec<OperationRow>, StoreError> {
    let limit = page.limit.min(LOG_MAX);
    let who = match &filter.who {
        None => None,
        Some(who) => match plain::stored(who) {
            None => return Ok(Vec::new()),
            who => who,
        },
    };
    // The newest first; of one time, by id and kind.
    let order = format!(" ORDER BY at DESC, id DESC, kind DESC LIMIT {limit}");
    let mut query = QueryBuilder::<S::Db>::new("SELECT * FROM (");
    let mut glue = "";
    for source in sources::<S::Db>() {
        let wanted: Vec<&Kind> = source
            .kinds
            .iter()
            .filter(|kind| filter.kinds.is_empty() || filter.kinds.contains(kind))
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let Source { from, kind, id, at, who: actor, rest, .. } = &source;
        query.push(format_args!(
            "{glue}SELECT * FROM (SELECT * FROM (SELECT {id} AS id, {kind} AS kind, {} AS at, {actor} AS who, {rest} FROM {from} \
             WHERE {at} IS NOT NULL",
            S::Db::millis(at)
        ));
        glue = " UNION ALL ";
        if *kind == "'revoke'" {
            query.push(" AND ended_by <> ");
            S::Db::bind(&mut query, Value::Text(crate::store::tiers::OVER));
        }
        if let Some(since) = filter.since {
            query.push(format_args!(" AND {at} >= "));
            S::Db::bind(&mut query, Value::Time(since));
        }
        if let Some(place) = page.after {
            // As a bound for the index; which of the same millisecond is told below.
            query.push(format_args!(" AND {at} < "));
            S::Db::bind(&mut query, Value::Time(place.at + 1));
        }
        if let Some(who) = who {
            query.push(format_args!(" AND {actor} = "));
            S::Db::bind(&mut query, Value::Text(who));
        }
        if wanted.len() < source.kinds.len() {
            query.push(format_args!(" AND {kind} IN ("));
            for (index, wanted) in wanted.iter().enumerate() {
                query.push(if index == 0 { "" } else { ", " });
                S::Db::bind(&mut query, Value::Text(wanted.as_str()));
            }
            query.push(")");
        }
        query.push(") AS found WHERE true");
        if let Some(place) = page.after {
            query.push(" AND (at, id, kind) < (");
            S::Db::bind(&mut query, Value::Time(place.at));
            query.push(", ");
            S::Db::bind(&mut query, Value::Id(Some(place.id)));
            query.push(", ");
            S::Db::bind(&mut query, Value::Text(place.kind.as_str()));
            query.push(")");
        }
        query.push(format_args!("{order}) AS page"));
    }
    query.push(format_args!(") AS pages{order}"));
    let mut reading = store.reading().await?;
    let rows: Vec<Row> = reading.rows(query, Planned::EachTime).await?;
    reading.end().await?;
    Ok(rows.into_iter().map(OperationRow::from).collect())
}
