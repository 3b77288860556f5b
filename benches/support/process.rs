//! Owns headcount's own processes as they are measured: the real binary of this build, on ports of its choice, with
//! nothing but the settings given. Ends them, and tells the most memory that each held.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use super::Outcome;

/// Signs what is measured. Made for it; opens nothing.
pub const SECRET: &str = "whsec_dGhlIGJlbmNobWFya3Mgb2YgaGVhZGNvdW50IHNpZ24gd2l0aCB0aGlz";

/// Makes a worker tell of each message after its commit, with a time.
pub const TELL_COMMITS: (&str, &str) = ("RUST_LOG", "info,headcount::worker=debug");

const PATIENCE: Duration = Duration::from_secs(30);

/// Settings for one or more processes.
pub type Environment = Vec<(&'static str, String)>;

/// When webhooks were committed, in milliseconds since 1970, by message id.
pub type Commits = HashMap<String, f64>;

/// A process that serves.
pub struct Headcount {
    child: Child,
    commits: Arc<Mutex<Commits>>,
    /// Of the public listener, or of the application's: `127.0.0.1:port`.
    pub address: String,
    /// Of the operators' listener.
    pub operators: String,
}

impl Headcount {
    /// Starts a role and waits until it listens.
    pub fn start(role: &str, environment: &Environment) -> Outcome<Self> {
        let mut child = command(role, environment).stderr(Stdio::piped()).spawn()?;
        let stderr = child.stderr.take().ok_or("no stderr")?;
        let (tell, told) = mpsc::channel();
        let commits = Arc::new(Mutex::new(Commits::new()));
        let heard = Arc::clone(&commits);
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Some((id, at)) = commit(&line) {
                    heard.lock().unwrap_or_else(PoisonError::into_inner).insert(id, at);
                    continue;
                }
                if !line.contains(" INFO ") {
                    eprintln!("{line}");
                }
                let _ = tell.send(line);
            }
        });
        let mut started = Self { child, commits, address: String::new(), operators: String::new() };
        let end = Instant::now() + PATIENCE;
        loop {
            let line = told.recv_timeout(end.saturating_duration_since(Instant::now()))?;
            if let Some((_, rest)) = line.split_once("webhooks: http://") {
                started.address = rest.split('/').next().unwrap_or_default().to_owned();
            }
            if let Some((_, rest)) = line.split_once("application's API: http://") {
                started.address = rest.split('/').next().unwrap_or_default().to_owned();
            }
            if let Some((_, rest)) = line.split_once("operators: http://") {
                started.operators = rest.split('/').next().unwrap_or_default().to_owned();
                return Ok(started);
            }
        }
    }

    /// What it has told of so far, where [`TELL_COMMITS`] is in its environment.
    pub fn commits(&self) -> Commits {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The most memory that it held so far, in MB.
    pub fn peak_memory(&self) -> Outcome<f64> {
        peak_memory(self.child.id())
    }

    /// The processor time that it has taken so far, in seconds.
    pub fn processor_time(&self) -> Outcome<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // utime and stime, in ticks of which there are 100 in a second.
        let ticks =
            |field: usize| fields.get(field).ok_or("no such field")?.parse::<f64>().map_err(|_| "no number");
        Ok((ticks(11)? + ticks(12)?) / 100.0)
    }

    /// Asks it to stop and waits.
    pub fn stop(mut self) -> Outcome<()> {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        let end = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > end {
                return Err("a process does not stop".into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Headcount {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads `2026-11-21T15:28:03.057745Z DEBUG headcount::worker::settle: message ID: outcome …`.
fn commit(line: &str) -> Option<(String, f64)> {
    let (time, rest) = line.split_once(" DEBUG headcount::worker::settle: message ")?;
    let at = chrono::DateTime::parse_from_rfc3339(time).ok()?.timestamp_micros();
    Some((rest.split_once(": ")?.0.to_owned(), at as f64 / 1000.0))
}

/// Runs a command of headcount's to its end.
pub fn run(role: &str, environment: &Environment) -> Outcome<()> {
    let output = command(role, environment).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("headcount {role} failed: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// What a command of headcount's came to.
pub struct Completed {
    /// What it printed.
    pub stdout: Vec<u8>,
    /// From its start to its end.
    pub seconds: f64,
    /// The most memory that it held, in MB.
    pub peak_memory: f64,
}

/// Runs a command of headcount's with its arguments to its end.
///
/// # Errors
/// It failed; what it wrote to stderr.
pub fn complete(arguments: Vec<String>, environment: &Environment) -> Outcome<Completed> {
    let (role, rest) = arguments.split_first().ok_or("no command")?;
    let start = Instant::now();
    let mut child =
        command(role, environment).args(rest).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stderr = child.stderr.take().ok_or("no stderr")?;
    let complaints = thread::spawn(move || {
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text);
        text
    });
    let mut peak = 0.0;
    // What it prints fits into the pipe.
    while child.try_wait()?.is_none() {
        // It may have ended since.
        peak = peak_memory(child.id()).unwrap_or(peak);
        thread::sleep(Duration::from_millis(20));
    }
    let seconds = start.elapsed().as_secs_f64();
    let output = child.wait_with_output()?;
    let complaints = complaints.join().unwrap_or_default();
    if !output.status.success() {
        return Err(format!("headcount {role} failed: {complaints}").into());
    }
    Ok(Completed { stdout: output.stdout, seconds, peak_memory: peak })
}

fn peak_memory(process: u32) -> Outcome<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes / 1024.0)
}

fn command(role: &str, environment: &Environment) -> Command {
    let measured = std::env::var_os("BENCH_BINARY");
    let mut command = Command::new(measured.unwrap_or_else(|| env!("CARGO_BIN_EXE_headcount").into()));
    command
        .arg(role)
        .env_clear()
        .env("CLERK_WEBHOOK_SIGNING_SECRET", SECRET)
        .env("HEADCOUNT_LISTEN", "127.0.0.1:0")
        .env("HEADCOUNT_OPS_LISTEN", "127.0.0.1:0")
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}
