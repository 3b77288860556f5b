//! Owns how people's questions about dead letters are asked and answered, once for both databases. Never changes a row.

use std::collections::BTreeMap;

use bytes::Bytes;
use sqlx::{FromRow, QueryBuilder, Row, postgres::PgRow, sqlite::SqliteRow, types::Json};
use uuid::Uuid;

use super::{
    StoreError,
    columns::{ActionName, At, Body, Id, Many, OriginName, OutcomeName, Small, StatusName, from_row},
    filter::{Conditions, Dialect, Value},
    letters::{
        Claimed, Count, FRESH_MAX, Filter, FreshLetters, Group, HistoryEntry, Letter, LetterDetail, Page,
        Status, group_id,
    },
    people::EVENTS_MAX,
};
use crate::time::Millis;

/// What is read from a row of either database.
pub(super) trait Decoded:
    for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin
{
}

impl<T> Decoded for T where T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin {}

/// A store that people ask.
pub(super) trait Asked: Sync {
    type Db: Dialect;
    type Reading: Reading<Db = Self::Db>;

    /// Begins to read.
    fn reading(&self) -> impl Future<Output = Result<Self::Reading, StoreError>> + Send;
}

/// One person's questions, on one connection where that matters.
pub(super) trait Reading: Send {
    type Db: Dialect;

    /// The rows of the answer. A question that is put together for its values is `planned` for them alone, and never
    /// kept prepared.
    fn rows<T: Decoded>(
        &mut self,
        question: QueryBuilder<Self::Db>,
        planned: Planned,
    ) -> impl Future<Output = Result<Vec<T>, StoreError>> + Send;

    /// Ends it in order.
    fn end(self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// When a question is planned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Planned {
    /// Once, for any values.
    Once,
    /// Each time, for its values.
    EachTime,
}

/// Up to so many letters are read sooner than their groups are looked up.
const FEW: u64 = 50_000;

/// The columns of what is to be published.
pub(super) const CLAIMED: &str = "id, message_id, origin, round, event_type, first_seen, body";

/// How many there are by status.
const STATUSES: &str = "SELECT status, CAST(sum(letters) AS bigint) FROM dead_letter_tallies GROUP BY status HAVING sum(letters) > 0";

/// The keys of all groups.
const GROUPS: &str = "SELECT DISTINCT grp FROM dead_letter_tallies ORDER BY grp";

/// A letter by its id or its message id; an id comes first.
const ONE: &str = "SELECT id, message_id, origin, round, event_type, clerk_id, reason, detail, attempts, first_seen, died_at, \
     status, outcome, grp, headers, body FROM dead_letters JOIN dead_letter_contents ON letter_id = id \
     WHERE id = $1 OR message_id = $2 ORDER BY coalesce(id = $1, false) DESC LIMIT 1";

/// The newest of what happened to a letter.
const HISTORY: &str = "SELECT at, action, round, by, note FROM (SELECT * FROM dead_letter_history WHERE letter_id = $1 \
     ORDER BY n DESC LIMIT $2) AS newest ORDER BY n";

from_row!(Letter {
    id: Id,
    message_id: String,
    origin: OriginName,
    round: Small,
    event_type: String,
    clerk_id: Option<String>,
    reason: String,
    detail: String,
    attempts: Small,
    first_seen: At,
    died_at: At,
    status: StatusName,
    outcome: OutcomeName,
    group = "grp": String,
});

from_row!(HistoryEntry { at: At, action: ActionName, round: Small, by: String, note: Option<String> });

from_row!(Count { event_type: String, reason: String, letters: Many });

from_row!(Claimed {
    id: Id,
    message_id: String,
    origin: OriginName,
    round: Small,
    event_type: String,
    first_seen: At,
    body: Body
});

/// Answers [`Letters::groups`](super::letters::Letters::groups).
pub(super) async fn groups(store: &impl Asked, filter: &Filter) -> Result<Vec<Group>, StoreError> {
    let Some(conditions) = Conditions::of(filter) else { return Ok(Vec::new()) };
    let (mut reading, mut few) = (store.reading().await?, false);
    if conditions.may_be_few() {
        let counts: Vec<Count> = reading.rows(conditions.count(), Planned::EachTime).await?;
        few = counts.iter().map(|count| count.letters).sum::<u64>() <= FEW;
    }
    type Columns = (String, String, Many, Option<At>, Option<At>, Option<String>);
    let rows: Vec<Columns> = reading.rows(conditions.groups(few), Planned::EachTime).await?;
    reading.end().await?;
    let group = |(key, reason, letters, first, last, detail): Columns| Group {
        id: group_id(&key),
        group: key,
        reason,
        detail: detail.unwrap_or_default(),
        letters: letters.0,
        first_died_at: first.map(|at| at.0),
        last_died_at: last.map(|at| at.0),
    };
    Ok(rows.into_iter().map(group).collect())
}

/// Answers [`Letters::groups_named`](super::letters::Letters::groups_named).
pub(super) async fn groups_named(store: &impl Asked, reference: &str) -> Result<Vec<String>, StoreError> {
    let mut reading = store.reading().await?;
    let keys: Vec<(String,)> = reading.rows(QueryBuilder::new(GROUPS), Planned::Once).await?;
    reading.end().await?;
    let keys = keys.into_iter().map(|(key,)| key);
    Ok(keys.filter(|key| key == reference || group_id(key) == reference).collect())
}

/// Answers [`Letters::list`](super::letters::Letters::list).
pub(super) async fn list(
    store: &impl Asked,
    filter: &Filter,
    page: &Page,
) -> Result<Vec<Letter>, StoreError> {
    let Some(conditions) = Conditions::of(filter) else { return Ok(Vec::new()) };
    let mut reading = store.reading().await?;
    let letters = reading.rows(conditions.page(page), Planned::EachTime).await?;
    reading.end().await?;
    Ok(letters)
}

/// Answers [`Letters::show`](super::letters::Letters::show).
pub(super) async fn show<S: Asked>(store: &S, reference: &str) -> Result<Option<LetterDetail>, StoreError> {
    if reference.contains('\0') {
        return Ok(None);
    }
    let named = [Value::Id(Uuid::parse_str(reference).ok()), Value::Text(reference)];
    let one = S::Db::whole(ONE, named)?;
    let mut reading = store.reading().await?;
    let Some(Whole { letter, contents }) = reading.rows(one, Planned::Once).await?.pop() else {
        reading.end().await?;
        return Ok(None);
    };
    let newest = [Value::Id(Some(letter.id)), Value::Number(EVENTS_MAX.into())];
    let history = S::Db::whole(HISTORY, newest)?;
    let history: Vec<HistoryEntry> = reading.rows(history, Planned::Once).await?;
    reading.end().await?;
    let Contents { headers, body } = contents;
    Ok(Some(LetterDetail { letter, headers, body, history }))
}

/// A letter with what it holds.
struct Whole {
    letter: Letter,
    contents: Contents,
}

struct Contents {
    headers: BTreeMap<String, String>,
    body: Bytes,
}

from_row!(Contents { headers: Json<BTreeMap<String, String>>, body: Body });

impl<'r, R: Row> FromRow<'r, R> for Whole
where
    Letter: FromRow<'r, R>,
    Contents: FromRow<'r, R>,
{
    fn from_row(row: &'r R) -> Result<Self, sqlx::Error> {
        Ok(Self { letter: Letter::from_row(row)?, contents: Contents::from_row(row)? })
    }
}

/// Answers [`Letters::count`](super::letters::Letters::count).
pub(super) async fn count(store: &impl Asked, filter: &Filter) -> Result<Vec<Count>, StoreError> {
    let Some(conditions) = Conditions::of(filter) else { return Ok(Vec::new()) };
    let mut reading = store.reading().await?;
    let counts = reading.rows(conditions.count(), Planned::EachTime).await?;
    reading.end().await?;
    Ok(counts)
}

/// Answers [`Housekeeping::statuses`](super::housekeeping::Housekeeping::statuses).
pub(super) async fn statuses(store: &impl Asked) -> Result<BTreeMap<Status, u64>, StoreError> {
    let mut reading = store.reading().await?;
    let rows: Vec<(StatusName, Many)> = reading.rows(QueryBuilder::new(STATUSES), Planned::Once).await?;
    reading.end().await?;
    Ok(rows.into_iter().map(|(status, letters)| (status.0, letters.0)).collect())
}

/// Answers [`Letters::fresh_letters`](super::letters::Letters::fresh_letters).
pub(super) async fn fresh_letters<S: Asked>(store: &S, since: Millis) -> Result<FreshLetters, StoreError> {
    let open = Status::Open.as_str();
    let question = format!(
        "SELECT (SELECT count(*) FROM (SELECT 1 FROM dead_letters WHERE status = '{open}' AND died_at >= $1 \
         LIMIT {FRESH_MAX}) AS fresh) AS since, (SELECT min(died_at) FROM dead_letters WHERE status = '{open}') AS oldest"
    );
    let question = S::Db::whole(question, [Value::Time(since)])?;
    let mut reading = store.reading().await?;
    let rows: Vec<(Many, Option<At>)> = reading.rows(question, Planned::Once).await?;
    reading.end().await?;
    let fresh = |(since, oldest): (Many, Option<At>)| FreshLetters {
        since: since.0,
        oldest_open: oldest.map(|at| at.0),
    };
    Ok(rows.into_iter().next().map(fresh).unwrap_or_default())
}

/// Answers [`Letters::unstamped`](super::letters::Letters::unstamped).
pub(super) async fn unstamped<S: Asked>(
    store: &S,
    filter: &Filter,
    before: Millis,
    limit: u32,
) -> Result<Vec<Claimed>, StoreError> {
    let Some(conditions) = Conditions::despite_status(filter, Status::Replayed) else {
        return Ok(Vec::new());
    };
    let mut query = QueryBuilder::new("WITH unstamped AS MATERIALIZED (SELECT * FROM dead_letters");
    conditions.push(&mut query);
    // The status once more, in so many words: the index is of these letters alone.
    query.push(" AND status = 'replayed' AND published_at IS NULL AND claimed_at < ");
    S::Db::bind(&mut query, Value::Time(before));
    query.push(format_args!(
        " ORDER BY claimed_at, id LIMIT {limit}) SELECT {CLAIMED} FROM unstamped \
         JOIN dead_letter_contents ON letter_id = id ORDER BY claimed_at, id"
    ));
    let mut reading = store.reading().await?;
    let claims = reading.rows(query, Planned::EachTime).await?;
    reading.end().await?;
    Ok(claims)
}
