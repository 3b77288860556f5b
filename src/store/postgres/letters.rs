//! Owns what people do to letters in PostgreSQL: claim them for a replay, edit, discard, restore, stamp. Each is one
//! statement, so a letter moves and its history says so together, or neither. A statement that lost a race is run again.

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use sqlx::{Arguments, FromRow, Postgres, QueryBuilder, postgres::PgRow};
use uuid::Uuid;

use super::{
    PostgresStore, capture,
    connections::{PEOPLE, Tx},
};
use crate::{
    clerk,
    rules::users::OnDelete,
    store::{
        StoreError,
        columns::{At, Id},
        filter::{Conditions, Dialect, Value, binding},
        letters::{
            Actor, Captured, Claimed, Count, Filter, FreshLetters, Group, Letter, LetterDetail, Letters,
            Page, Publication, Status,
        },
        operations::{self, Claims},
        plain::{self, OURSELVES, Plain},
        questions::{self, Asked, CLAIMED, Decoded, Planned, Reading},
        retry,
        unit::Transaction as _,
    },
    time::Millis,
};

impl Dialect for Postgres {
    binding!(std::convert::identity);

    fn among(column: &str, n: usize) -> String {
        format!("{column} = ANY(${n})")
    }

    fn and_one_of(query: &mut QueryBuilder<Self>, ids: &[Uuid]) {
        query.push(" AND id = ANY(").push_bind(ids.to_vec()).push(")");
    }

    fn and_contains(query: &mut QueryBuilder<Self>, text: &str) {
        // In this form, because an index of trigrams answers it.
        query.push(" AND search LIKE ").push_bind(like(text));
    }
}

/// The pattern of a text, whatever it holds.
fn like(text: &str) -> String {
    let mut pattern = String::from("%");
    for c in text.chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

impl Asked for PostgresStore {
    type Db = Postgres;
    type Reading = Tx;

    async fn reading(&self) -> Result<Tx, StoreError> {
        self.connections.begin(PEOPLE).await
    }
}

impl Reading for Tx {
    type Db = Postgres;

    async fn rows<T: Decoded>(
        &mut self,
        mut question: QueryBuilder<Postgres>,
        planned: Planned,
    ) -> Result<Vec<T>, StoreError> {
        self.in_time()?;
        let question = question.build_query_as().persistent(planned == Planned::Once);
        Ok(question.fetch_all(self).await?)
    }

    async fn end(self) -> Result<(), StoreError> {
        self.commit().await
    }
}

impl PostgresStore {
    pub(super) fn erases(&self) -> bool {
        self.terms.policy.on_delete == OnDelete::Erase
    }
}

/// Does `$work` in the transaction `$tx` of its own, again where it lost a race.
macro_rules! write {
    ($store:expr, |$tx:ident| $work:expr) => {
        retry::again(|| async {
            let mut transaction = $store.reading().await?;
            let $tx = &mut transaction;
            let done = $work;
            transaction.commit().await?;
            Ok(done)
        })
        .await
    };
}

/// A step that people take with letters of one status.
struct Step {
    from: Status,
    /// What else the letters have to be.
    and: &'static str,
    /// What the history calls it.
    action: &'static str,
    /// What becomes of the letter `l`; `actor` takes the step.
    set: &'static str,
}

const CLAIM: Step = Step {
    from: Status::Open,
    and: "",
    action: "replayed",
    set: "status = 'replayed', round = l.round + 1, claimed_at = statement_timestamp(), claimed_by = actor, \
          published_at = NULL, operation_id = operation",
};

const DISCARD: Step = Step {
    from: Status::Open,
    and: "",
    action: "discarded",
    set: "status = 'discarded', settled_at = statement_timestamp()",
};

const RESTORE: Step = Step {
    from: Status::Discarded,
    and: " AND NOT erased",
    action: "restored",
    set: "status = 'open', settled_at = NULL",
};

impl Step {
    /// Takes up to `limit` letters, the first to die first, and writes it down. Returns `answer` of those that `changed`.
    async fn take<T>(
        &self,
        tx: &mut Tx,
        filter: &Filter,
        limit: u32,
        by: &Actor,
        answer: &str,
        operation: Option<Uuid>,
    ) -> Result<Vec<T>, StoreError>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let Some(conditions) = Conditions::of_status(filter, self.from) else { return Ok(Vec::new()) };
        let (Self { and, action, set, .. }, (name, note)) = (self, plain::actor(by));
        let mut query = QueryBuilder::<Postgres>::new("WITH step (actor, note, operation) AS (VALUES (");
        query.push_bind(name).push("::text, ").push_bind(note);
        query
            .push("::text, ")
            .push_bind(operation)
            .push("::uuid)), picked AS MATERIALIZED (SELECT id FROM dead_letters");
        conditions.push(&mut query);
        if let Some(operation) = operation {
            operations::and_not_claimed_since(&mut query, operation);
        }
        // A caller that names letters waits for whoever is busy with them; one that takes any passes over those.
        let busy = if filter.ids.is_empty() { " SKIP LOCKED" } else { "" };
        query.push(format_args!(
            "{and} ORDER BY died_at, id LIMIT {limit} FOR UPDATE{busy}), \
             changed AS (UPDATE dead_letters AS l SET {set} FROM picked, step WHERE l.id = picked.id RETURNING l.*), \
             noted AS (INSERT INTO dead_letter_history (letter_id, at, action, round, by, note) \
             SELECT id, statement_timestamp(), '{action}', round, actor, note FROM changed, step) \
             SELECT {answer} ORDER BY died_at, id"
        ));
        Ok(query.build_query_as().persistent(false).fetch_all(tx).await?)
    }
}

const EDIT: &str = "WITH changed AS (UPDATE dead_letters SET status = 'replayed', round = round + 1, \
     claimed_at = statement_timestamp(), claimed_by = $3, published_at = NULL, operation_id = NULL, clerk_id = $5, event_type = $6 \
     WHERE id = $1 AND status = 'open' RETURNING *), \
     noted AS (INSERT INTO dead_letter_history (letter_id, at, action, round, by, note) \
     SELECT id, statement_timestamp(), 'edited', round, $3, $4 FROM changed) \
     UPDATE dead_letter_contents SET body = $2 FROM changed WHERE letter_id = id \
     RETURNING id, message_id, origin, round, event_type, first_seen, body";

const STAMP: &str = "WITH picked AS MATERIALIZED (SELECT l.id FROM dead_letters AS l \
     JOIN (SELECT DISTINCT * FROM unnest($1::uuid[], $2::bigint[])) AS p (id, round) \
     ON p.id = l.id AND p.round = l.round WHERE l.published_at IS NULL AND l.claimed_at IS NOT NULL \
     ORDER BY l.message_id COLLATE \"C\" FOR UPDATE OF l), \
     changed AS (UPDATE dead_letters AS l SET published_at = statement_timestamp() FROM picked \
     WHERE l.id = picked.id RETURNING l.id, l.round) \
     INSERT INTO dead_letter_history (letter_id, at, action, round, by) \
     SELECT id, statement_timestamp(), 'published', round, $3 FROM changed";

/// What is to be published of the letters that changed.
fn claimed() -> String {
    format!("{CLAIMED} FROM changed JOIN dead_letter_contents ON letter_id = id")
}

impl Claims for Tx {
    async fn claim_for(
        &mut self,
        operation: Uuid,
        filter: &Filter,
        limit: u32,
        by: &Actor,
    ) -> Result<Vec<Claimed>, StoreError> {
        CLAIM.take(self, filter, limit, by, &claimed(), Some(operation)).await
    }
}

#[async_trait]
impl Letters for PostgresStore {
    async fn capture(&self, letters: &[Captured]) -> Result<Vec<String>, StoreError> {
        let letters = Plain::all(letters);
        if letters.is_empty() {
            return Ok(Vec::new());
        }
        retry::again(|| capture::letters(self, &letters)).await
    }

    async fn groups(&self, filter: &Filter) -> Result<Vec<Group>, StoreError> {
        questions::groups(self, filter).await
    }

    async fn groups_named(&self, reference: &str) -> Result<Vec<String>, StoreError> {
        questions::groups_named(self, reference).await
    }

    async fn list(&self, filter: &Filter, page: &Page) -> Result<Vec<Letter>, StoreError> {
        questions::list(self, filter, page).await
    }

    async fn show(&self, reference: &str) -> Result<Option<LetterDetail>, StoreError> {
        questions::show(self, reference).await
    }

    async fn count(&self, filter: &Filter) -> Result<Vec<Count>, StoreError> {
        questions::count(self, filter).await
    }

    async fn fresh_letters(&self, since: Millis) -> Result<FreshLetters, StoreError> {
        questions::fresh_letters(self, since).await
    }

    async fn unstamped(
        &self,
        filter: &Filter,
        before: Millis,
        limit: u32,
    ) -> Result<Vec<Claimed>, StoreError> {
        questions::unstamped(self, filter, before, limit).await
    }

    async fn clock(&self) -> Result<Millis, StoreError> {
        let mut tx = self.reading().await?;
        let now: DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&mut tx).await?;
        tx.commit().await?;
        Ok(now.timestamp_millis() + 1)
    }

    async fn claim(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<Vec<Claimed>, StoreError> {
        let answer = claimed();
        write!(self, |tx| CLAIM.take(tx, filter, limit, by, &answer, None).await?)
    }

    async fn edit(&self, id: Uuid, body: Bytes, by: &Actor) -> Result<Option<Claimed>, StoreError> {
        let (name, note) = plain::actor(by);
        write!(self, |tx| {
            let edit = sqlx::query_as(EDIT).bind(id).bind(&body[..]).bind(&name).bind(&note);
            let edit = edit.bind(clerk::whose(&body)).bind(clerk::event_type(&body));
            edit.fetch_optional(tx).await?
        })
    }

    async fn stamp(&self, published: &[Publication]) -> Result<(), StoreError> {
        let (ids, rounds): (Vec<Uuid>, Vec<i64>) =
            published.iter().map(|&(id, round)| (id, i64::from(round))).unzip();
        write!(self, |tx| {
            sqlx::query(STAMP).bind(&ids).bind(&rounds).bind(OURSELVES).execute(tx).await?;
        })
    }

    async fn discard(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<u64, StoreError> {
        write!(self, |tx| {
            let users: Vec<(Option<String>,)> =
                DISCARD.take(tx, filter, limit, by, "clerk_id FROM changed", None).await?;
            let discarded = users.len() as u64;
            if self.erases() {
                let users: Vec<&str> = users.iter().filter_map(|(user,)| user.as_deref()).collect();
                tx.erase_letters(&users).await?;
            }
            discarded
        })
    }

    async fn restore(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<u64, StoreError> {
        write!(self, |tx| {
            let restored: Vec<(Uuid,)> = RESTORE.take(tx, filter, limit, by, "id FROM changed", None).await?;
            restored.len() as u64
        })
    }
}
