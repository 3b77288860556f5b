//! Runs the real binary as real processes. Each test has a world of its own: a directory, a schema, a queue prefix.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use headcount::{
    cli::post::Poster,
    config::Config,
    net::Client,
    queue::Queue,
    secret::Secret,
    store::{Store, User, UserQuery},
};
use tempfile::TempDir;

use super::{PATIENCE, eventually, running::Running, servers::url, terminal::Terminal};

/// The secret with which tests sign. It was made for the tests and opens nothing.
pub const SECRET: &str = "whsec_dGhlIHRlc3RzIG9mIGhlYWRjb3VudCBzaWduIHdpdGggdGhpcw==";

/// Which backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backends {
    Embedded,
    RabbitSqlite,
    EmbeddedPostgres,
    RabbitPostgres,
}

impl Backends {
    pub const ALL: [Self; 4] =
        [Self::Embedded, Self::RabbitSqlite, Self::EmbeddedPostgres, Self::RabbitPostgres];

    fn rabbit(self) -> bool {
        matches!(self, Self::RabbitSqlite | Self::RabbitPostgres)
    }

    fn postgres(self) -> bool {
        matches!(self, Self::EmbeddedPostgres | Self::RabbitPostgres)
    }
}

/// The directory, schema and queue prefix that the processes of one test share with nobody else.
pub struct World {
    pub directory: TempDir,
    environment: Vec<(String, String)>,
    shell: Option<String>,
    schema: Option<(String, String)>,
    prefix: Option<(String, String)>,
}

impl World {
    /// A world on the servers that the test command started.
    pub fn new(backends: Backends) -> Self {
        let amqp = backends.rabbit().then(|| url("TEST_AMQP_URL"));
        let database = backends.postgres().then(|| url("TEST_DATABASE_URL"));
        Self::on(amqp, database)
    }

    /// A world on servers that the test started itself.
    pub fn on(amqp: Option<String>, database: Option<String>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let name = format!("test_{}", uuid::Uuid::now_v7().simple());
        let mut environment = vec![
            ("HEADCOUNT_DATA_DIR".to_owned(), directory.path().join("data").to_str().unwrap().to_owned()),
            ("HEADCOUNT_LISTEN".into(), "127.0.0.1:0".into()),
            ("HEADCOUNT_OPS_LISTEN".into(), "127.0.0.1:0".into()),
            ("HEADCOUNT_API_LISTEN".into(), "127.0.0.1:0".into()),
            ("HEADCOUNT_RETRY_DELAYS".into(), "100ms,300ms,1s".into()),
            ("CLERK_WEBHOOK_SIGNING_SECRET".into(), SECRET.into()),
        ];
        if let Some(url) = &amqp {
            environment.push(("AMQP_URL".into(), url.clone()));
            environment.push(("HEADCOUNT_QUEUE_PREFIX".into(), name.clone()));
        }
        if let Some(url) = &database {
            environment.push(("DATABASE_URL".into(), url.clone()));
            environment.push(("HEADCOUNT_SCHEMA".into(), name.clone()));
        }
        Self {
            directory,
            environment,
            shell: None,
            schema: database.map(|url| (url, name.clone())),
            prefix: amqp.map(|url| (url, name)),
        }
    }

    /// Sets an environment variable for the processes that are started from now on.
    pub fn set(&mut self, variable: &str, value: &str) {
        self.environment.retain(|(name, _)| name != variable);
        self.environment.push((variable.into(), value.into()));
    }

    /// The prefix of the world's exchanges and queues on a broker.
    pub fn prefix(&self) -> &str {
        self.prefix.as_ref().map(|(_, prefix)| prefix.as_str()).unwrap()
    }

    /// Unsets an environment variable for the processes that are started from now on.
    pub fn unset(&mut self, variable: &str) {
        self.environment.retain(|(name, _)| name != variable);
    }

    /// The schema of the world's tables in PostgreSQL.
    pub fn schema(&self) -> &str {
        &self.schema.as_ref().expect("PostgreSQL only").1
    }

    /// Its table is in PostgreSQL.
    pub fn is_on_postgres(&self) -> bool {
        self.schema.is_some()
    }

    /// Runs this in the shell that then becomes the process, for each process that is started from now on.
    pub fn shell(&mut self, commands: &str) {
        self.shell = Some(commands.into());
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.shell {
            None => Command::new(binary()),
            Some(commands) => {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", &format!("{commands}; exec \"$0\" \"$@\"")]).arg(binary());
                command
            }
        };
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Starts a command that ends by itself; what it says can be waited for.
    pub fn begin(&self, arguments: &[&str]) -> Running {
        Running::start(self.command(arguments))
    }

    /// Runs a command on a terminal of so many columns.
    pub fn on_terminal(&self, arguments: &[&str], columns: u16) -> Terminal {
        Terminal::run(&self.command(arguments), columns)
    }

    /// The same, of so many lines.
    pub fn on_terminal_of(&self, arguments: &[&str], columns: u16, lines: u16) -> Terminal {
        Terminal::run_sized(&self.command(arguments), columns, lines)
    }

    /// Runs a command whose output goes to what reads it.
    pub fn piped(&self, arguments: &[&str], to: impl Into<Stdio>) -> Child {
        self.command(arguments).stdout(to).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs statements on the world's database, without headcount.
    pub async fn sql(&self, statements: &str) {
        use sqlx::Connection;
        let statements = sqlx::AssertSqlSafe(statements.to_owned());
        match &self.schema {
            Some((url, schema)) => {
                let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
                let path = sqlx::AssertSqlSafe(format!("SET search_path TO {schema}"));
                sqlx::raw_sql(path).execute(&mut connection).await.unwrap();
                sqlx::raw_sql(statements).execute(&mut connection).await.unwrap();
            }
            None => {
                let url = format!("sqlite://{}", self.directory.path().join("data/headcount.db").display());
                let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
                sqlx::raw_sql(statements).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    /// The first column of what a query finds in the world's database, as text, without headcount.
    pub async fn texts(&self, query: &str) -> Vec<Option<String>> {
        use sqlx::Connection;
        let query = sqlx::AssertSqlSafe(query.to_owned());
        match &self.schema {
            Some((url, schema)) => {
                let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
                let path = sqlx::AssertSqlSafe(format!("SET search_path TO {schema}"));
                sqlx::raw_sql(path).execute(&mut connection).await.unwrap();
                sqlx::query_scalar(query).fetch_all(&mut connection).await.unwrap()
            }
            None => {
                let url = format!("sqlite://{}", self.directory.path().join("data/headcount.db").display());
                let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
                let texts = sqlx::query_scalar(query).fetch_all(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                texts
            }
        }
    }

    /// Its broker's URL, and the prefix of its names there.
    pub fn broker(&self) -> (&str, &str) {
        self.prefix.as_ref().map(|(url, prefix)| (url.as_str(), prefix.as_str())).expect("a broker")
    }

    /// Starts a server process; returns once it listens.
    pub fn start(&self, arguments: &[&str]) -> Process {
        Process::start(self.command(arguments))
    }

    fn config(&self) -> Config {
        Config::from(self.environment.clone(), Some(Path::new("/dev/null"))).unwrap()
    }

    /// Opens the store itself, beside the processes.
    pub async fn store(&self) -> Arc<dyn Store> {
        headcount::store::open(&self.config().store()).await.unwrap()
    }

    /// Opens the queue itself, beside the processes.
    pub async fn queue(&self) -> Arc<dyn Queue> {
        headcount::queue::open(&self.config().queue()).await.unwrap()
    }

    /// Every user, also those who are deleted.
    pub async fn users(&self) -> Vec<User> {
        self.until_users("the users are read", |_| true).await
    }

    /// Waits until the users are so, and returns them. One store serves every look, because opening one takes long.
    pub async fn until_users(&self, what: &str, so: impl Fn(&[User]) -> bool) -> Vec<User> {
        let store = self.store().await;
        eventually("the tables are made", async || store.check_schema().await.is_ok()).await;
        let found = Mutex::default();
        eventually(what, async || {
            let users = read(store.as_ref()).await;
            let are_so = so(&users);
            *found.lock().unwrap() = users;
            are_so
        })
        .await;
        store.close().await;
        found.into_inner().unwrap()
    }

    /// Waits until each queue but the dead one is empty.
    pub async fn until_drained(&self) {
        let queue = self.queue().await;
        eventually("the queues are empty", async || {
            let depths = queue.depths().await.unwrap_or_default();
            !depths.is_empty()
                && depths.iter().filter(|depth| depth.queue != "dead").all(|depth| depth.messages == 0)
        })
        .await;
        queue.close().await;
    }

    /// Removes what the world left on shared servers.
    pub async fn clean_up(self) {
        if let Some((url, schema)) = &self.schema {
            // As a pooler takes it, too.
            let options = url.parse::<sqlx::postgres::PgConnectOptions>().unwrap().extra_float_digits(None);
            let mut connection =
                <sqlx::PgConnection as sqlx::Connection>::connect_with(&options).await.unwrap();
            let drop = format!("DROP SCHEMA IF EXISTS {schema} CASCADE");
            sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&mut connection).await.unwrap();
        }
        if let Some((url, prefix)) = &self.prefix {
            let connection =
                lapin::Connection::connect(url, lapin::ConnectionProperties::default()).await.unwrap();
            let channel = connection.create_channel().await.unwrap();
            let ladder = self.config().retry_delays;
            for queue in headcount::queue::topology::Topology::new(prefix, &ladder).queues {
                channel.queue_delete(queue.name.into(), Default::default()).await.unwrap();
            }
            for exchange in headcount::queue::topology::Topology::new(prefix, &ladder).exchanges {
                channel.exchange_delete(exchange.name.into(), Default::default()).await.unwrap();
            }
        }
    }
}

async fn read(store: &dyn Store) -> Vec<User> {
    let mut users: Vec<User> = Vec::new();
    loop {
        let after = users.last().map(|user| user.id);
        let query = UserQuery { limit: 1000, after, deleted: true, text: None };
        let page = store.users(&query).await.unwrap();
        if page.is_empty() {
            return users;
        }
        users.extend(page);
    }
}

/// Sends a process a signal, such as `INT`.
pub fn signal(process: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status().unwrap();
    assert!(status.success());
}

/// The binary under test.
pub fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_headcount"))
}

/// A running `up`, `ingress`, `worker` or `api`.
pub struct Process {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    /// Where it takes webhooks.
    pub webhooks: Option<String>,
    /// Where applications ask.
    pub api: Option<String>,
    /// Where operators look.
    pub operators: String,
}

impl Process {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (told, telling) = std::sync::mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let lines = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = told.send(line.clone());
                lines.lock().unwrap().push(line);
            }
        });
        let mut process = Self { child, log, webhooks: None, api: None, operators: String::new() };
        let started = Instant::now();
        while process.operators.is_empty() {
            let line = telling.recv_timeout(PATIENCE.saturating_sub(started.elapsed()));
            let Ok(line) = line else { panic!("it did not start:\n{}", process.log()) };
            let after = |mark: &str| line.split_once(mark).map(|(_, url)| url.trim().to_owned());
            if let Some(url) = after("webhooks: ") {
                process.webhooks = Some(url);
            } else if let Some(url) = after("the application's API: ") {
                process.api = Some(url);
            } else if let Some(url) = after("operators: ") {
                process.operators = url;
            }
        }
        process
    }

    /// Posts to this process, with a good signature.
    pub fn poster(&self) -> Poster {
        Poster::new(self.webhooks.as_deref().expect("an ingress"), &Secret::new(SECRET)).unwrap()
    }

    /// What it tells operators at a path, as JSON.
    pub async fn told(&self, path: &str) -> serde_json::Value {
        let url = format!("{}{path}", self.operators.trim_end_matches('/'));
        let request = http::Request::get(url).body(Default::default()).unwrap();
        let (_, body) = Client::http().send(request, Duration::from_secs(10), 1 << 20).await.unwrap();
        serde_json::from_slice(&body.unwrap()).unwrap()
    }

    /// The lines that the process has logged.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// `SIGKILL`: nothing of it runs on.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// `SIGTERM`.
    pub fn terminate(&self) {
        signal(self.id(), "TERM");
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < limit, "still running after {limit:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `SIGTERM`, and its end: in time, with exit code 0.
    pub fn stop(mut self) {
        self.terminate();
        let status = self.wait(Duration::from_secs(30));
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }

    /// Peak resident memory in MiB, as the kernel tells.
    pub fn peak_memory(&self) -> u64 {
        let mut status = String::new();
        let path = format!("/proc/{}/status", self.id());
        std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut status)).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Posts until the answer is 2xx, as Svix does. `poster` may change when the ingress is restarted.
pub async fn post_stubbornly(poster: impl Fn() -> Poster, id: &str, body: Bytes) {
    eventually(&format!("{id} is accepted"), async || {
        poster().post(id, body.clone()).await.is_ok_and(|status| status.is_success())
    })
    .await;
}
