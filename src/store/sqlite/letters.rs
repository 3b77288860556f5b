//! Owns what people do to letters in SQLite: claim them for a replay, edit, discard, restore, stamp. Each is a
//! transaction, and these exclude one another.

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::{Arguments, QueryBuilder, Sqlite, SqliteConnection, SqlitePool, types::Json};
use uuid::Uuid;

use super::{SqliteStore, capture, transaction::erase_letters, writing::Writing};
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
    },
    time::{Millis, now},
};

impl Dialect for Sqlite {
    binding!(Json);

    fn among(column: &str, n: usize) -> String {
        format!("{column} IN (SELECT value FROM json_each(${n}))")
    }

    fn and_one_of(query: &mut QueryBuilder<Self>, ids: &[Uuid]) {
        query.push(" AND id IN (SELECT value FROM json_each(").push_bind(Json(ids.to_vec())).push("))");
    }

    fn and_contains(query: &mut QueryBuilder<Self>, text: &str) {
        query.push(" AND instr(search, ").push_bind(text.to_owned()).push(") > 0");
    }
}

impl Asked for SqliteStore {
    type Db = Sqlite;
    type Reading = SqlitePool;

    async fn reading(&self) -> Result<SqlitePool, StoreError> {
        Ok(self.readers.clone())
    }
}

// Each question on any connection: it sees what was committed when it was asked.
impl Reading for SqlitePool {
    type Db = Sqlite;

    async fn rows<T: Decoded>(
        &mut self,
        mut question: QueryBuilder<Sqlite>,
        _: Planned,
    ) -> Result<Vec<T>, StoreError> {
        Ok(question.build_query_as().fetch_all(&*self).await?)
    }

    async fn end(self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl SqliteStore {
    pub(super) fn erases(&self) -> bool {
        self.terms.policy.on_delete == OnDelete::Erase
    }
}

/// Does `$work` in the transaction `$tx` of the one writer, again where it lost a race.
macro_rules! write {
    ($store:expr, |$tx:ident| $work:expr) => {
        $crate::store::retry::again(|| async {
            let mut writing = $store.begin().await?;
            let $tx = writing.connection()?;
            let done: Result<_, StoreError> = async { Ok($work) }.await;
            writing.end(done).await
        })
        .await
    };
}

pub(super) use write;

/// A step that people take with letters of one status.
struct Step {
    from: Status,
    /// What else the letters have to be.
    and: &'static str,
    /// What the history calls it.
    action: &'static str,
    /// What becomes of the letters `?1`; `?2` takes the step, in the name of the operation `?3`.
    set: &'static str,
}

const CLAIM: Step = Step {
    from: Status::Open,
    and: "",
    action: "replayed",
    set: concat!(
        "UPDATE dead_letters SET status = 'replayed', round = round + 1, claimed_at = ",
        now!(),
        ", claimed_by = ?2, published_at = NULL, operation_id = ?3 WHERE id IN (SELECT value FROM json_each(?1))"
    ),
};

const EDIT: Step = Step { action: "edited", ..CLAIM };

const DISCARD: Step = Step {
    from: Status::Open,
    and: "",
    action: "discarded",
    set: concat!(
        "UPDATE dead_letters SET status = 'discarded', settled_at = ",
        now!(),
        " WHERE id IN (SELECT value FROM json_each(?1)) AND ?2 IS NOT NULL AND ?3 IS NULL"
    ),
};

const RESTORE: Step = Step {
    from: Status::Discarded,
    and: " AND NOT erased",
    action: "restored",
    set: "UPDATE dead_letters SET status = 'open', settled_at = NULL \
          WHERE id IN (SELECT value FROM json_each(?1)) AND ?2 IS NOT NULL AND ?3 IS NULL",
};

const NOTE: &str = concat!(
    "INSERT INTO dead_letter_history (letter_id, at, action, round, by, note) SELECT id, ",
    now!(),
    ", ?2, round, ?3, ?4 FROM dead_letters WHERE id IN (SELECT value FROM json_each(?1))"
);

impl Step {
    /// Takes up to `limit` letters, the first to die first, and writes it down. Returns their ids.
    async fn take(
        &self,
        tx: &mut SqliteConnection,
        filter: &Filter,
        limit: u32,
        by: &Actor,
        operation: Option<Uuid>,
    ) -> Result<Vec<String>, StoreError> {
        let Some(conditions) = Conditions::of_status(filter, self.from) else { return Ok(Vec::new()) };
        let mut query = QueryBuilder::<Sqlite>::new("SELECT id FROM dead_letters");
        conditions.push(&mut query);
        if let Some(operation) = operation {
            operations::and_not_claimed_since(&mut query, operation);
        }
        query.push(format_args!("{} ORDER BY died_at, id LIMIT {limit}", self.and));
        let ids: Vec<String> = query.build_query_scalar().fetch_all(&mut *tx).await?;
        self.with(tx, &ids, by, operation).await?;
        Ok(ids)
    }

    /// Takes these letters, and writes it down.
    async fn with(
        &self,
        tx: &mut SqliteConnection,
        ids: &[String],
        by: &Actor,
        operation: Option<Uuid>,
    ) -> Result<(), StoreError> {
        let (name, note) = plain::actor(by);
        sqlx::query(self.set).bind(Json(ids)).bind(&name).bind(operation.map(Id)).execute(&mut *tx).await?;
        sqlx::query(NOTE).bind(Json(ids)).bind(self.action).bind(name).bind(note).execute(tx).await?;
        Ok(())
    }
}

/// What is to be published of these letters, the first to die first.
async fn claimed(tx: &mut SqliteConnection, ids: &[String]) -> Result<Vec<Claimed>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new(format!(
        "SELECT {CLAIMED} FROM dead_letters JOIN dead_letter_contents ON letter_id = id \
         WHERE id IN (SELECT value FROM json_each("
    ));
    query.push_bind(Json(ids)).push(")) ORDER BY died_at, id");
    Ok(query.build_query_as().fetch_all(tx).await?)
}

const BODY: &str = "UPDATE dead_letter_contents SET body = ?2 \
     WHERE letter_id = (SELECT id FROM dead_letters WHERE id = ?1 AND status = 'open')";

const ABOUT: &str = "UPDATE dead_letters SET clerk_id = ?2, event_type = ?3 WHERE id = ?1";

const USERS: &str = "SELECT clerk_id FROM dead_letters \
     WHERE clerk_id IS NOT NULL AND id IN (SELECT value FROM json_each(?1))";

const STAMP: &str = concat!(
    "UPDATE dead_letters SET published_at = ",
    now!(),
    " WHERE published_at IS NULL AND claimed_at IS NOT NULL \
     AND (id, round) IN (SELECT value->>0, value->>1 FROM json_each(?1)) RETURNING id"
);

impl Claims for Writing {
    async fn claim_for(
        &mut self,
        operation: Uuid,
        filter: &Filter,
        limit: u32,
        by: &Actor,
    ) -> Result<Vec<Claimed>, StoreError> {
        let tx = self.connection()?;
        let ids = CLAIM.take(tx, filter, limit, by, Some(operation)).await?;
        claimed(tx, &ids).await
    }
}

#[async_trait]
impl Letters for SqliteStore {
    async fn capture(&self, letters: &[Captured]) -> Result<Vec<String>, StoreError> {
        let letters = Plain::all(letters);
        // The boundary: captured before the delivery is acked.
        write!(self, |tx| capture::letters(tx, &letters, self.erases()).await?)
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
        // The file's clock is this host's.
        Ok(now() + 1)
    }

    async fn claim(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<Vec<Claimed>, StoreError> {
        write!(self, |tx| {
            let ids = CLAIM.take(tx, filter, limit, by, None).await?;
            claimed(tx, &ids).await?
        })
    }

    async fn edit(&self, id: Uuid, body: Bytes, by: &Actor) -> Result<Option<Claimed>, StoreError> {
        let about = (clerk::whose(&body), clerk::event_type(&body));
        write!(self, |tx| {
            let ids = [id.to_string()];
            let edited = sqlx::query(BODY).bind(Id(id)).bind(&body[..]).execute(&mut *tx).await?;
            if edited.rows_affected() > 0 {
                sqlx::query(ABOUT).bind(Id(id)).bind(&about.0).bind(&about.1).execute(&mut *tx).await?;
                EDIT.with(tx, &ids, by, None).await?;
                claimed(tx, &ids).await?.pop()
            } else {
                None
            }
        })
    }

    async fn stamp(&self, published: &[Publication]) -> Result<(), StoreError> {
        write!(self, |tx| {
            let ids: Vec<String> =
                sqlx::query_scalar(STAMP).bind(Json(published)).fetch_all(&mut *tx).await?;
            let note = sqlx::query(NOTE).bind(Json(ids)).bind("published").bind(OURSELVES);
            note.bind(None::<String>).execute(tx).await?;
        })
    }

    async fn discard(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<u64, StoreError> {
        write!(self, |tx| {
            let ids = DISCARD.take(tx, filter, limit, by, None).await?;
            if self.erases() {
                let users: Vec<String> =
                    sqlx::query_scalar(USERS).bind(Json(&ids)).fetch_all(&mut *tx).await?;
                erase_letters(tx, &users).await?;
            }
            ids.len() as u64
        })
    }

    async fn restore(&self, filter: &Filter, limit: u32, by: &Actor) -> Result<u64, StoreError> {
        write!(self, |tx| RESTORE.take(tx, filter, limit, by, None).await?.len() as u64)
    }
}
