//! Owns the helpers for tests of the store: a schema or file for each test on either backend, and events to fold.

use std::{future::Future, path::PathBuf, sync::Arc};

use headcount::{
    rules::{
        Change, Event, Outcome, sessions,
        users::{self, Claim, OnDelete, Policy, Profile, Relink, Source, Upsert, UpsertKind, Version},
    },
    secret::Secret,
    store::{self, Backend, Incoming, Store, StoreConfig, StoreError, User, UserQuery},
    time::Millis,
};
use sqlx::{AssertSqlSafe, PgPool, SqlitePool};
use uuid::Uuid;

/// Runs each case against both stores, in modules of their names, so that both keep one contract.
#[allow(unused_macros, reason = "some tests need a place and hold no contract")]
macro_rules! contract {
    ($($case:ident)+) => {
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                crate::stores::Home::postgres().await.run(super::$case).await;
            })+
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                crate::stores::Home::sqlite().await.run(super::$case).await;
            })+
        }
    };
}

#[allow(unused_imports, reason = "some tests need a place and hold no contract")]
pub(crate) use contract;

/// The rules that are the default.
pub(crate) const KEEP: Policy = Policy { relink: Relink::Deleted, on_delete: OnDelete::Keep };

/// What a new user's `credits_balance` is in tests.
pub(crate) const CREDITS: i64 = 10_000;

/// A schema or a file of its own, which goes when the test ends.
pub(crate) struct Home {
    pub(crate) backend: Backend,
    raw: Raw,
    _directory: Option<tempfile::TempDir>,
}

enum Raw {
    Postgres(PgPool),
    Sqlite(PathBuf),
}

/// The server that the tests use. A missing server fails the test, because a suite that skips proves nothing.
pub(crate) fn server() -> String {
    std::env::var("TEST_DATABASE_URL")
        .expect("TEST_DATABASE_URL is not set: run `make test`, or name a PostgreSQL server whose schemas tests may make")
}

impl Home {
    pub(crate) async fn postgres() -> Self {
        let schema = format!("test_{}", Uuid::now_v7().simple());
        let url = server();
        let path = [("search_path", schema.as_str())];
        let options =
            url.parse::<sqlx::postgres::PgConnectOptions>().expect("TEST_DATABASE_URL").options(path);
        let raw = PgPool::connect_with(options).await.expect("the server of TEST_DATABASE_URL");
        let backend = Backend::Postgres { url: Secret::new(url), schema };
        Self { backend, raw: Raw::Postgres(raw), _directory: None }
    }

    pub(crate) async fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data").join("headcount.db");
        let raw = Raw::Sqlite(path.clone());
        Self { backend: Backend::Sqlite { path }, raw, _directory: Some(directory) }
    }

    /// Runs the test, and cleans up even if it fails.
    pub(crate) async fn run<F: Future<Output = ()> + Send + 'static>(
        self,
        case: impl FnOnce(Arc<Self>) -> F,
    ) {
        let home = Arc::new(self);
        let result = tokio::spawn(case(home.clone())).await;
        if let (Raw::Postgres(pool), Backend::Postgres { schema, .. }) = (&home.raw, &home.backend) {
            let drop = format!("DROP SCHEMA IF EXISTS {schema} CASCADE");
            sqlx::raw_sql(AssertSqlSafe(drop)).execute(pool).await.unwrap();
        }
        if let Err(error) = result {
            std::panic::resume_unwind(error.into_panic());
        }
    }

    pub(crate) fn config(&self, policy: Policy) -> StoreConfig {
        StoreConfig {
            backend: self.backend.clone(),
            policy,
            default_credits: CREDITS,
            sessions: true,
            billing: None,
            connections: 10,
        }
    }

    /// Opens the same schema or file once more, as another process would.
    pub(crate) async fn open(&self) -> Arc<dyn Store> {
        store::open(&self.config(KEEP)).await.unwrap()
    }

    /// A store that is ready for use.
    pub(crate) async fn store(&self) -> Arc<dyn Store> {
        self.store_with(KEEP).await
    }

    pub(crate) async fn store_with(&self, policy: Policy) -> Arc<dyn Store> {
        let store = store::open(&self.config(policy)).await.unwrap();
        store.migrate().await.unwrap();
        store
    }

    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self.raw, Raw::Postgres(_))
    }

    /// Runs statements without the store, as an application or a person at a prompt would.
    pub(crate) async fn sql(&self, statements: &str) {
        let statements = AssertSqlSafe(statements.to_owned());
        match &self.raw {
            Raw::Postgres(pool) => drop(sqlx::raw_sql(statements).execute(pool).await.unwrap()),
            Raw::Sqlite(path) => {
                let pool = sqlite(path).await;
                sqlx::raw_sql(statements).execute(&pool).await.unwrap();
                pool.close().await;
            }
        }
    }

    /// One number.
    pub(crate) async fn number(&self, query: &str) -> i64 {
        let query = AssertSqlSafe(query.to_owned());
        match &self.raw {
            Raw::Postgres(pool) => sqlx::query_scalar(query).fetch_one(pool).await.unwrap(),
            Raw::Sqlite(path) => {
                let pool = sqlite(path).await;
                let number = sqlx::query_scalar(query).fetch_one(&pool).await.unwrap();
                pool.close().await;
                number
            }
        }
    }

    /// Makes the database refuse users of this name, as a constraint of the application's would.
    pub(crate) async fn refuse_username(&self, name: &str) {
        self.sql(&if self.is_postgres() {
            format!("ALTER TABLE users ADD CONSTRAINT house_rule CHECK (username <> '{name}')")
        } else {
            format!(
                "CREATE TRIGGER house_rule BEFORE INSERT ON users WHEN NEW.username = '{name}' \
                 BEGIN SELECT RAISE(ABORT, 'house rule'); END"
            )
        })
        .await;
    }
}

/// An open transaction on PostgreSQL that others run into.
pub(crate) struct Held {
    connection: sqlx::PgConnection,
    pool: PgPool,
    pid: i32,
}

impl Home {
    /// Begins a transaction and runs `statements` in it.
    pub(crate) async fn hold(&self, statements: &str) -> Held {
        let Raw::Postgres(pool) = &self.raw else { panic!("PostgreSQL only") };
        let mut connection = pool.acquire().await.unwrap().detach();
        let pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await.unwrap();
        let statements = AssertSqlSafe(format!("BEGIN; {statements}"));
        sqlx::raw_sql(statements).execute(&mut connection).await.unwrap();
        Held { connection, pool: pool.clone(), pid }
    }
}

impl Held {
    /// Waits until so many sessions wait for this transaction, directly or behind each other.
    pub(crate) async fn holds_up(&self, count: i64) {
        let question = "WITH RECURSIVE waiting (pid) AS (SELECT $1 UNION SELECT a.pid FROM pg_stat_activity AS a \
                        JOIN waiting AS w ON w.pid = ANY (pg_blocking_pids(a.pid))) SELECT count(*) - 1 FROM waiting";
        let answer = || sqlx::query_scalar::<_, i64>(question).bind(self.pid).fetch_one(&self.pool);
        let enough = async {
            while answer().await.unwrap() < count {
                tokio::task::yield_now().await;
            }
        };
        let bound = std::time::Duration::from_secs(20);
        tokio::time::timeout(bound, enough).await.expect("those who should wait for the held row");
    }

    pub(crate) async fn let_go(mut self) {
        sqlx::raw_sql("COMMIT").execute(&mut self.connection).await.unwrap();
    }
}

async fn sqlite(path: &PathBuf) -> SqlitePool {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).create_if_missing(true);
    SqlitePool::connect_with(options).await.unwrap()
}

/// Applies a batch.
pub(crate) async fn apply(
    store: &Arc<dyn Store>,
    batch: impl IntoIterator<Item = Incoming>,
) -> Result<Vec<Outcome>, StoreError> {
    store.apply(batch.into_iter().collect()).await
}

/// Every row, deleted ones too, newest first.
pub(crate) async fn rows(store: &Arc<dyn Store>) -> Vec<User> {
    let all = UserQuery { limit: 10_000, deleted: true, ..UserQuery::default() };
    store.users(&all).await.unwrap()
}

/// The row of a Clerk id.
pub(crate) async fn row(store: &Arc<dyn Store>, clerk_id: &str) -> User {
    rows(store)
        .await
        .into_iter()
        .find(|user| user.clerk_id == clerk_id)
        .unwrap_or_else(|| panic!("no row {clerk_id}"))
}

/// An event about an account.
#[derive(Clone)]
pub(crate) struct News {
    pub(crate) upsert: Upsert,
    pub(crate) patience_over: bool,
}

pub(crate) fn created(clerk_id: &str, at: Millis) -> News {
    News::new(clerk_id, UpsertKind::Created, at)
}

pub(crate) fn updated(clerk_id: &str, at: Millis) -> News {
    News::new(clerk_id, UpsertKind::Updated, at)
}

impl News {
    fn new(clerk_id: &str, kind: UpsertKind, at: Millis) -> Self {
        let message_id = format!("{clerk_id}:{kind:?}:{at}");
        let upsert = Upsert {
            clerk_id: clerk_id.to_owned(),
            version: Version { at, sent: at, kind, message_id },
            born: if kind == UpsertKind::Created { at } else { 0 },
            claim: None,
            profile: Arc::new(Profile::default()),
            source: Source::Webhook,
        };
        Self { upsert, patience_over: false }
    }

    pub(crate) fn verified(mut self, address: &str) -> Self {
        self.upsert.claim = Some(Claim::new(address, true));
        self
    }

    pub(crate) fn unverified(mut self, address: &str) -> Self {
        self.upsert.claim = Some(Claim::new(address, false));
        self
    }

    pub(crate) fn born(mut self, at: Millis) -> Self {
        self.upsert.born = at;
        self
    }

    pub(crate) fn message(mut self, id: impl Into<String>) -> Self {
        self.upsert.version.message_id = id.into();
        self
    }

    pub(crate) fn patient_no_more(mut self) -> Self {
        self.patience_over = true;
        self
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Profile)) -> Self {
        change(Arc::make_mut(&mut self.upsert.profile));
        self
    }

    pub(crate) fn named(self, name: &str) -> Self {
        self.with(|profile| profile.username = Some(name.to_owned()))
    }

    pub(crate) fn event(self) -> Incoming {
        let message_id = self.upsert.version.message_id.clone();
        let event_type = match self.upsert.version.kind {
            UpsertKind::Created => "user.created",
            UpsertKind::Updated => "user.updated",
        };
        let change = Change::User(users::Change::Upsert(Box::new(self.upsert)));
        let mut incoming = incoming(&message_id, event_type, change);
        incoming.event.patience_over = self.patience_over;
        incoming
    }
}

pub(crate) fn deleted(clerk_id: &str, at: Millis) -> Incoming {
    let change = Change::User(users::Change::Delete { clerk_id: clerk_id.to_owned(), at });
    incoming(&format!("{clerk_id}:Deleted:{at}"), "user.deleted", change)
}

/// What an event says of a session. It is of the same time as its version.
#[allow(dead_code, reason = "the tests of sessions use it")]
pub(crate) fn session(id: &str, clerk_id: &str, status: sessions::Status, at: Millis) -> Incoming {
    let event_type = match status {
        sessions::Status::Active => "session.created".to_owned(),
        ended => format!("session.{}", ended.as_str()),
    };
    let message_id = format!("{id}:{event_type}:{at}");
    let version = headcount::rules::Version { at, sent: at, message_id: message_id.clone() };
    let news = sessions::News {
        id: id.to_owned(),
        clerk_id: clerk_id.to_owned(),
        version,
        status,
        created_at: at,
        last_seen_at: at,
    };
    incoming(&message_id, &event_type, Change::Session(Box::new(news)))
}

pub(crate) fn other(message_id: &str) -> Incoming {
    incoming(message_id, "email.created", Change::Other)
}

fn incoming(message_id: &str, event_type: &str, change: Change) -> Incoming {
    let event =
        Event { message_id: message_id.to_owned(), change, fresh_row: Uuid::now_v7(), patience_over: false };
    Incoming { event, event_type: event_type.to_owned(), received_at: 1_767_323_045_678 }
}

impl Home {
    /// One column of text.
    #[allow(dead_code, reason = "the tests of erasure use it")]
    pub(crate) async fn texts(&self, query: &str) -> Vec<String> {
        let query = AssertSqlSafe(query.to_owned());
        match &self.raw {
            Raw::Postgres(pool) => sqlx::query_scalar(query).fetch_all(pool).await.unwrap(),
            Raw::Sqlite(path) => {
                let pool = sqlite(path).await;
                let texts = sqlx::query_scalar(query).fetch_all(&pool).await.unwrap();
                pool.close().await;
                texts
            }
        }
    }
}
