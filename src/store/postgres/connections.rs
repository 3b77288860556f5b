//! Owns the connections to the server, and how a transaction begins and ends.
//!
//! A pooler such as PgBouncer may stand in between, and lend each transaction another session. So nothing of ours outlives
//! a transaction: each sets what it needs for itself, in the round trip that begins it, and has the server check that our
//! schema is the one it writes to. Statements are kept prepared only where the session is proved to be ours alone, once
//! when the first connection is made, and again by each transaction. Promises that a transaction begins within its limits or
//! says why not, and that a connection whose transaction did not end in order is not used again. Never touches a table.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{future::BoxFuture, stream::BoxStream};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Either, Error, Execute, Executor, PgConnection, PgPool,
    Postgres, Row as _, SqlStr,
    pool::PoolConnection,
    postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};
use tokio::{sync::OnceCell, time::timeout};

use crate::store::{StoreError, entry, errors};

/// How long a caller waits for a connection, and making one may take.
const ACQUIRE: Duration = Duration::from_secs(4);
/// How long a transaction may take to begin: a pooler answers when it has a session free.
const BEGIN: Duration = Duration::from_secs(5);
/// How long a connection through a pooler may wait for a session before another one is tried.
const ANOTHER: Duration = Duration::from_secs(2);
/// An unused connection is given back after so long: a pooler in session mode lends its session to nobody else, and a database
/// that falls asleep is not kept awake.
const IDLE: Duration = Duration::from_secs(30);
/// How long it may take to find out why there is no connection.
const WHY: Duration = Duration::from_secs(1);

/// For what people ask.
// Compiling a question takes seconds, and makes none of these sooner answered.
pub(super) const PEOPLE: &str =
    "SET LOCAL lock_timeout = '3s'; SET LOCAL statement_timeout = '30s'; SET LOCAL jit = off";

/// Set by us when a session starts, and seen by whoever shares it.
const MARK: &str = "headcount.session";
/// What the server raises where our schema is not the one in use: division by zero.
const ASTRAY: &str = "22012";
/// And where the session is not the one that we started: a root of a negative number.
const LENT: &str = "2201F";

/// Connections to a server, or to a pooler in front of it.
pub(super) struct Connections {
    options: PgConnectOptions,
    pool: PgPool,
    schema: Arc<str>,
    /// Set by each session that we start, where the server lets us.
    mark: String,
    /// Whether the sessions are ours alone.
    ours: OnceCell<bool>,
}

impl Connections {
    /// None is made before it is needed.
    pub(super) fn new(options: PgConnectOptions, schema: &str, most: u32) -> Self {
        // A start-up parameter that PgBouncer refuses; no number of ours needs it.
        let options = options.extra_float_digits(None).disable_statement_logging();
        let pool = PgPoolOptions::new().max_connections(most).acquire_timeout(ACQUIRE).idle_timeout(IDLE);
        Self {
            pool: pool.connect_lazy_with(options.clone()),
            options,
            schema: schema.into(),
            mark: uuid::Uuid::now_v7().simple().to_string(),
            ours: OnceCell::new(),
        }
    }

    /// The same, with connections of their own.
    pub(super) fn renewed(&self) -> Self {
        Self::new(self.options.clone(), &self.schema, self.most())
    }

    /// How many there are at most.
    pub(super) fn most(&self) -> u32 {
        self.pool.options().get_max_connections()
    }

    /// The schema of our tables.
    pub(super) fn schema(&self) -> &str {
        &self.schema
    }

    /// Gives out none from now on, and waits until all are closed.
    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    /// Where the server is, for people.
    pub(super) fn place(&self) -> String {
        match self.options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None if self.options.get_host().contains(':') => {
                format!("[{}]:{}", self.options.get_host(), self.options.get_port())
            }
            None => format!("{}:{}", self.options.get_host(), self.options.get_port()),
        }
    }

    /// Begins a transaction in our schema, with `settings` of its own (`SET LOCAL` statements).
    ///
    /// # Errors
    /// There is no connection to be had, or the server did not follow.
    pub(super) async fn begin(&self, settings: &str) -> Result<Tx, StoreError> {
        let ours = *self.ours.get_or_try_init(|| self.look()).await?;
        // In session mode a connection that has no session yet waits for as long as the others are kept, and one of those may
        // be free by now.
        let limits: &[Duration] = if ours { &[BEGIN] } else { &[ANOTHER, BEGIN.saturating_sub(ANOTHER)] };
        for limit in limits {
            if let Some(tx) = self.begin_within(settings, ours, *limit).await? {
                return Ok(tx);
            }
        }
        match ours {
            true => Err(errors::silent(BEGIN)),
            false => Err(entry::no_session(&self.place(), BEGIN)),
        }
    }

    /// `None`: the time is over.
    async fn begin_within(
        &self,
        settings: &str,
        ours: bool,
        limit: Duration,
    ) -> Result<Option<Tx>, StoreError> {
        let connection = match self.pool.acquire().await {
            Ok(connection) => connection,
            Err(Error::PoolTimedOut) => return Err(self.why().await),
            Err(error) => return Err(entry::unreachable(&self.place(), error)),
        };
        // Open from here on: where beginning fails after its first part, nobody else would end the transaction.
        let schema = Arc::clone(&self.schema);
        let mut tx = Tx { connection, schema, ours, open: true, last_begin: None };
        let beginning = AssertSqlSafe(self.beginning(settings, ours));
        match timeout(limit, tx.connection.execute(beginning)).await {
            Ok(Ok(_)) => Ok(Some(tx)),
            Ok(Err(error)) => Err(self.refused(error)),
            Err(_) => Ok(None),
        }
    }

    /// Whether a pooler gives out a session while another of ours is in use. One process asks at a time: two would each hold
    /// what the other waits for. `lock` is the number of the advisory lock for that; who does not get it believes the other.
    ///
    /// # Errors
    /// [`crate::store::Class::Unusable`] where it does not.
    pub(super) async fn want_two(&self, lock: i64) -> Result<(), StoreError> {
        let mut first = self.begin(PEOPLE).await?;
        let ask = !first.ours
            && sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)")
                .bind(lock)
                .fetch_one(&mut first)
                .await?;
        let answer = match ask {
            true => self.begin(PEOPLE).await.map(Some),
            false => Ok(None),
        };
        first.roll_back().await;
        match answer {
            Ok(Some(second)) => second.roll_back().await,
            Ok(None) => {}
            Err(error) if errors::is_without_connection(&error) => {
                return Err(entry::one_session(&self.place()));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// All in one round trip. The check runs where nothing but our schema is searched; then temporary tables come last, so
    /// that one which another client left in a shared session never stands in front of ours.
    fn beginning(&self, settings: &str, ours: bool) -> String {
        let (path, schema) = (quoted(&self.schema), literal(&self.schema));
        let mark = match ours {
            true => format!("coalesce(current_setting('{MARK}', true), '') = '{}'", self.mark),
            false => "true".into(),
        };
        format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; {settings}; \
             SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL search_path = {path}; \
             SELECT 1 / (coalesce(current_schema(), {schema}) = {schema})::int, sqrt(({mark})::int - 1); \
             SET LOCAL search_path = {path}, pg_temp"
        )
    }

    fn refused(&self, error: Error) -> StoreError {
        match error.as_database_error().and_then(|error| error.code()).as_deref() {
            Some(ASTRAY) => entry::astray(&self.schema),
            Some(LENT) => entry::lent(&self.place()),
            _ => error.into(),
        }
    }

    /// Finds out whether the server starts a session for each connection. A pooler refuses or ignores what a session shall
    /// start with.
    async fn look(&self) -> Result<bool, StoreError> {
        let marked = self.options.clone().options([
            (MARK, self.mark.as_str()),
            // The session of a client that fell silent goes after a minute.
            ("tcp_keepalives_idle", "30"),
            ("tcp_keepalives_interval", "10"),
            ("tcp_keepalives_count", "3"),
        ]);
        match self.dial(&marked, ACQUIRE).await {
            Ok(mut connection) => {
                // In one message: two could meet different sessions.
                let question = AssertSqlSafe(format!("SELECT current_setting('{MARK}', true)"));
                let answer = sqlx::raw_sql(question).fetch_one(&mut connection).await;
                let found: Option<String> =
                    answer.and_then(|row| row.try_get(0)).map_err(|error| self.refused(error))?;
                let _ = connection.close().await;
                let ours = found.as_ref() == Some(&self.mark);
                if ours {
                    self.pool.set_connect_options(marked);
                }
                Ok(ours)
            }
            Err(error) if entry::may_be_a_pooler(&error) => {
                let connection = self.dial(&self.options, ACQUIRE).await?;
                let _ = connection.close().await;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn dial(&self, options: &PgConnectOptions, limit: Duration) -> Result<PgConnection, StoreError> {
        match timeout(limit, options.connect()).await {
            Ok(connected) => connected.map_err(|error| entry::unreachable(&self.place(), error)),
            Err(_) => Err(entry::mute(&self.place(), limit)),
        }
    }

    /// Why no connection could be had: the pool itself says only that time ran out.
    async fn why(&self) -> StoreError {
        match self.dial(&self.options, WHY).await {
            Ok(connection) => {
                let _ = connection.close().await;
                entry::busy(self.most())
            }
            Err(error) => entry::in_vain(error),
        }
    }
}

impl fmt::Debug for Connections {
    // The pool's own would show the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgreSQL at {}, schema {}", self.place(), self.schema)?;
        match self.ours.get() {
            Some(false) => f.write_str(", through a pooler"),
            _ => Ok(()),
        }
    }
}

/// A name as it stands in a statement.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A transaction. Where it is dropped before its end, its connection is closed, which rolls it back.
pub(in crate::store) struct Tx {
    connection: PoolConnection<Postgres>,
    schema: Arc<str>,
    ours: bool,
    open: bool,
    /// No statement that can be slow begins after this.
    last_begin: Option<Instant>,
}

impl Tx {
    /// Sets until when its statements may begin: so that, with the longest of them, the store answers within its limit,
    /// however many there are.
    pub(super) fn until(mut self, last_begin: Instant) -> Self {
        self.last_begin = Some(last_begin);
        self
    }

    /// Whether a statement may still begin.
    pub(in crate::store) fn in_time(&self) -> Result<(), StoreError> {
        match self.last_begin {
            Some(last_begin) if Instant::now() >= last_begin => Err(errors::too_slow()),
            Some(_) | None => Ok(()),
        }
    }

    /// The schema that it works in.
    pub(super) fn schema(&self) -> &str {
        &self.schema
    }

    /// # Errors
    /// Nothing was changed, or (a connection lost meanwhile) it is unknown.
    pub(super) async fn commit(mut self) -> Result<(), StoreError> {
        self.connection.execute("COMMIT").await?;
        self.open = false;
        Ok(())
    }

    /// Gives the connection back for further use.
    pub(super) async fn roll_back(mut self) {
        self.open = self.connection.execute("ROLLBACK").await.is_err();
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        if self.open {
            self.connection.close_on_drop();
        }
    }
}

impl fmt::Debug for Tx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx").finish_non_exhaustive()
    }
}

// The driver prepares a statement in one round trip and runs it in another. Within a transaction both meet the same
// session; a name would stay behind in a shared one, and mean something else to another client.
impl<'c> Executor<'c> for &'c mut Tx {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        (&mut *self.connection).fetch_many(Statement { query, may_be_kept: self.ours })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        (&mut *self.connection).fetch_optional(Statement { query, may_be_kept: self.ours })
    }

    fn prepare_with<'e>(self, _: SqlStr, _: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        Box::pin(async { Err(Error::Protocol("a statement is not prepared apart from being run".into())) })
    }
}

/// A statement that is kept prepared where it may be.
struct Statement<E> {
    query: E,
    may_be_kept: bool,
}

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Statement<E> {
    fn sql(self) -> SqlStr {
        self.query.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.query.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, sqlx::error::BoxDynError> {
        self.query.take_arguments()
    }

    fn persistent(&self) -> bool {
        self.may_be_kept && self.query.persistent()
    }
}
