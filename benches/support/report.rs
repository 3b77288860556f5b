//! Owns the figures of a run: collects them round by round, and tells the medians with their spread, the ratios that
//! matter, and on what machine and commit they were measured.

use std::{fmt::Write as _, process::Command};

/// What users pay for, so it is told first.
pub const INGRESS_PROCESSOR: &str = "ingress, processor time per webhook";
/// The same of the worker.
pub const WORKER_PROCESSOR: &str = "worker draining a backlog, processor time per event";

/// Confirmed publishing with nothing but `lapin`, each publish awaited until it is written.
pub const PUBLISHING: &str = "raw confirmed publishing";
/// The same, with as many written at once as there are.
pub const PUBLISHING_TOGETHER: &str = "raw confirmed publishing, written together";

/// What `BENCH_ONLY=scale` compares.
pub const SMALL: &str = "worker, 100,000 messages, 50,000 users, applied";
/// The same at its full size.
pub const LARGE: &str = "worker, 1,000,000 messages, 5,000,000 users, applied";

/// Ratios: headcount's figure, the yardstick's, and what is aimed at.
const RATIOS: &[(&str, &str, &str)] = &[
    ("ingress, accepted", PUBLISHING, "≥ 0.6"),
    ("ingress, accepted", PUBLISHING_TOGETHER, ""),
    ("worker draining a backlog, applied", "bare loop draining a backlog, applied", "≥ 0.9"),
    ("end to end, applied", PUBLISHING, "≥ 0.57"),
    ("end to end, applied", "end to end, accepted", "1: no backlog"),
    ("embedded end to end, applied", "embedded end to end, accepted", ""),
    (
        "worker draining with one poisoned message, applied",
        "worker draining with no poisoned message, applied",
        "≥ 0.95",
    ),
    ("known users, closed loop, answered", "reading one row by its Clerk id, nothing else", ""),
    ("worker draining, ten tabs, applied", "worker draining, no tab, applied", "≥ 0.98"),
    (LARGE, SMALL, "≥ 0.8"),
    (
        "sync, 1,000,000 users, empty table, peak memory",
        "sync, 10,000 users, empty table, peak memory",
        "≤ 1.5",
    ),
    ("sync, 1,000,000 users, worker, peak memory", "sync, 10,000 users, worker, peak memory", "≤ 1.5"),
];

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Messages per second.
    PerSecond,
    /// Millionths of a second.
    Microseconds,
    /// Of one core.
    Percent,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Of 1,048,576 bytes.
    Megabytes,
    /// How many.
    Messages,
}

impl Kind {
    fn show(self, figure: f64) -> String {
        match self {
            Self::PerSecond => format!("{figure:.0}/s"),
            Self::Microseconds => format!("{figure:.1} µs"),
            Self::Percent => format!("{figure:.1} %"),
            Self::Milliseconds => format!("{figure:.1} ms"),
            Self::Seconds => format!("{figure:.1} s"),
            Self::Megabytes => format!("{figure:.1} MB"),
            Self::Messages => format!("{figure:.0}"),
        }
    }
}

struct Row {
    name: String,
    kind: Kind,
    figures: Vec<f64>,
}

/// The figures so far, one per round.
pub struct Report {
    rows: Vec<Row>,
    /// What others asked of the machine before anything was measured.
    load_before: String,
}

impl Report {
    /// Begins a run.
    pub fn new() -> Self {
        Self { rows: Vec::new(), load_before: load_average() }
    }

    /// Adds a round's figure, and tells it.
    pub fn add(&mut self, name: &str, kind: Kind, figure: f64) {
        eprintln!("  {name:<60} {:>12}", kind.show(figure));
        match self.rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row.figures.push(figure),
            None => self.rows.push(Row { name: name.to_owned(), kind, figures: vec![figure] }),
        }
    }

    /// Adds a round's median, 99 % and 99.9 %, as far as there are so many.
    pub fn latency(&mut self, name: &str, milliseconds: &[f64]) {
        for (part, figure) in ["p50", "p99", "p99.9"].iter().zip(milliseconds) {
            self.add(&format!("{name}, {part}"), Kind::Milliseconds, *figure);
        }
    }

    /// All of it, as Markdown.
    pub fn markdown(&self, command: &str, load: &str) -> String {
        let rounds = self.rows.iter().map(|row| row.figures.len()).max().unwrap_or_default();
        let mut text = format!(
            "# Results\n\nWritten by `{command}`. Medians of {rounds} rounds, with the spread from the lowest to \
             the highest. {load}\n\n{} Load average before: {}.\n\n| measured | median | spread |\n|---|---:|---:|\n",
            machine(),
            self.load_before
        );
        let (first, rest): (Vec<&Row>, Vec<&Row>) =
            self.rows.iter().partition(|row| [INGRESS_PROCESSOR, WORKER_PROCESSOR].contains(&&*row.name));
        for row in first.into_iter().chain(rest) {
            let [low, middle, high] = spread(&row.figures).map(|figure| row.kind.show(figure));
            let _ = writeln!(text, "| {} | {middle} | {low} to {high} |", row.name);
        }
        text.push_str("\n| ratio, within a round | median | spread | aim |\n|---|---:|---:|---:|\n");
        for (ours, yardstick, aim) in RATIOS {
            let quotients: Vec<f64> =
                self.figures(ours).iter().zip(self.figures(yardstick)).map(|(a, b)| a / b).collect();
            if quotients.is_empty() {
                continue;
            }
            let [low, middle, high] = spread(&quotients);
            let _ = writeln!(text, "| {ours} ÷ {yardstick} | {middle:.2} | {low:.2} to {high:.2} | {aim} |");
        }
        text
    }

    fn figures(&self, name: &str) -> &[f64] {
        self.rows.iter().find(|row| row.name == name).map_or(&[], |row| &row.figures)
    }
}

/// The lowest, the median and the highest.
fn spread(figures: &[f64]) -> [f64; 3] {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let at = |place: usize| sorted.get(place).copied().unwrap_or(f64::NAN);
    [at(0), at(sorted.len() / 2), at(sorted.len().saturating_sub(1))]
}

/// Of the last minute.
fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// Cores, memory, kernel, commit.
fn machine() -> String {
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let (cpu, memory) = (file("/proc/cpuinfo"), file("/proc/meminfo"));
    let value = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_owned()
    };
    let kilobytes: f64 = value(&memory, "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let changed =
        if git(&["status", "--porcelain", "--", "src", "benches/support", "Cargo.lock", "migrations"])
            .is_empty()
        {
            ""
        } else {
            " with changes"
        };
    format!(
        "{cores} cores ({}), {:.0} GB, Linux {}, commit {}{changed}.",
        value(&cpu, "model name"),
        kilobytes / 1024.0 / 1024.0,
        file("/proc/sys/kernel/osrelease").trim(),
        git(&["rev-parse", "--short", "HEAD"]),
    )
}
