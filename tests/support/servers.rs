//! Private servers that a test may kill, freeze and restart, run by `scripts/servers`.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

/// One RabbitMQ, PostgreSQL, PgBouncer or chromedriver with a directory and a port of its own.
pub struct Server {
    kind: &'static str,
    directory: TempDir,
    port: u16,
    child: Option<Child>,
    environment: Vec<(&'static str, String)>,
}

impl Server {
    /// Starts a RabbitMQ and waits until it answers.
    pub fn rabbitmq() -> Self {
        Self::start_new("rabbitmq", Vec::new())
    }

    /// Starts a PostgreSQL and waits until it answers.
    pub fn postgres() -> Self {
        Self::postgres_with("")
    }

    /// The same with settings: `-c NAME=VALUE`, separated by spaces.
    pub fn postgres_with(options: &str) -> Self {
        Self::start_new("postgres", vec![("POSTGRES_OPTIONS", options.to_owned())])
    }

    /// Starts a PgBouncer in front of the PostgreSQL server that a URL names, with settings: `NAME=VALUE`, separated by
    /// spaces.
    pub fn pgbouncer(server: &str, options: &str) -> Self {
        let url = url::Url::parse(server).unwrap();
        let mut place = format!("host={} port={}", url.host_str().unwrap(), url.port().unwrap_or(5432));
        for (name, value) in [("user", Some(url.username())), ("password", url.password())] {
            place.extend(value.map(|value| format!(" {name}={value}")));
        }
        Self::start_new(
            "pgbouncer",
            vec![("PGBOUNCER_SERVER", place), ("PGBOUNCER_OPTIONS", options.to_owned())],
        )
    }

    /// Starts what drives headless browsers. They end with it.
    pub fn chromedriver() -> Self {
        Self::start_new("chromedriver", Vec::new())
    }

    fn start_new(kind: &'static str, environment: Vec<(&'static str, String)>) -> Self {
        // In /tmp, where a chroot of other versions sees it too.
        let directory = tempfile::Builder::new().prefix("headcount-test-").tempdir_in("/tmp").unwrap();
        let mut server = Self { kind, directory, port: free_port(), child: None, environment };
        server.start();
        server
    }

    /// Starts it again on the same data and port, and waits until it answers.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let mut child = script()
            .args([self.kind, &self.path(), &self.port.to_string()])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready", "{} did not start; its log is above", self.kind);
        self.child = Some(child);
    }

    /// SIGKILL, to the server and all its children.
    pub fn kill(&mut self) {
        self.signal("KILL");
        self.reap();
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(&mut self) {
        self.signal("TERM");
        self.reap();
    }

    fn reap(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
    }

    /// SIGSTOP: it keeps its connections and answers nothing.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let status = script().args(["signal", &self.path(), signal]).status().unwrap();
        assert!(status.success(), "scripts/servers signal {signal}");
    }

    /// `rabbitmqctl` for this node; what it prints.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let output = script().args(["ctl", &self.path()]).args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "rabbitmqctl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        let log = std::fs::read(self.directory.path().join("log")).unwrap();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Sets the broker's consumer timeout for new consumers. A restart of the broker forgets it.
    pub fn set_consumer_timeout(&self, timeout: Duration) {
        // RabbitMQ 3.10 looks at a channel's deliveries once per tick only.
        let settings = [("consumer_timeout", timeout.as_millis()), ("channel_tick_interval", 250)];
        let set = settings.map(|(key, value)| format!("ok = application:set_env(rabbit, {key}, {value})"));
        self.ctl(&["eval", &format!("{}.", set.join(", "))]);
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        match self.kind {
            "rabbitmq" => format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port),
            "chromedriver" => format!("http://127.0.0.1:{}", self.port),
            _ => format!("postgres://postgres@127.0.0.1:{}/postgres", self.port),
        }
    }

    /// Where it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn path(&self) -> String {
        self.directory.path().to_str().unwrap().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.is_some() {
            // Its data is thrown away: no need to be gentle.
            let _ = script().args(["signal", &self.path(), "KILL"]).status();
            self.reap();
        }
    }
}

fn script() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/servers"))
}

/// A free port below those that the system gives to outgoing connections.
pub fn free_port() -> u16 {
    loop {
        let port = rand::random_range(12_000..19_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The URL of a server that the test command started: `TEST_AMQP_URL` or `TEST_DATABASE_URL`.
pub fn url(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: run the tests with `make test`, or set it to a server of yours")
    })
}
