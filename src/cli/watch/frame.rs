//! Owns what a frame shows, and that its lines fit. Pure.

use std::time::Duration;

use crate::{
    cli::{output::Size, progress::rate, status::told},
    ops::{
        processes::{Minute, Process},
        status::{OfQueue, OfStore, Status, consumers},
        verdict::{Verdict, clock, unanswered},
    },
    store::processes::Role,
    terminal::{cut, safe, width},
    text::number,
    time::{Millis, ago, millis},
};

/// The most concerns that are listed below the verdict.
const CONCERNS: usize = 3;
/// The widest title of a line.
const TITLE: usize = 10;

/// No answer: since when, and why.
pub(super) type Silence = (Millis, String);

/// What is shown at a time.
pub(super) struct View {
    pub(super) queue: Result<OfQueue, Silence>,
    pub(super) store: Result<OfStore, Silence>,
    pub(super) now: Millis,
    pub(super) every: Duration,
}

/// Lines that fit.
struct Frame {
    lines: Vec<String>,
    size: Option<Size>,
}

impl Frame {
    fn line(&mut self, line: impl AsRef<str>) {
        let line = safe(line.as_ref());
        let columns = self.size.map_or(usize::MAX, |size| size.columns);
        self.lines.push(cut(&line, columns).trim_end().to_owned());
    }

    fn titled(&mut self, title: &str, rest: impl AsRef<str>) {
        self.line(format!("{title:<TITLE$} {}", rest.as_ref()));
    }

    fn columns(&self, whole: usize) -> usize {
        self.size.map_or(whole, |size| size.columns)
    }

    /// How many lines are left; `None` without an end.
    fn room(&self) -> Option<usize> {
        self.size.map(|size| size.rows.saturating_sub(self.lines.len()))
    }
}

impl View {
    /// What is shown: the most important first, so that a small terminal loses the rest.
    pub(super) fn frame(&self, size: Option<Size>) -> Vec<String> {
        let mut frame = Frame { lines: Vec::new(), size };
        frame.line(format!(
            "headcount at {} UTC, every {}",
            clock(self.now, self.now),
            humantime::format_duration(self.every)
        ));
        let verdict = self.verdict();
        frame.line(told(&verdict));
        let concerns = verdict.concerns.iter().skip(1);
        concerns.take(CONCERNS).for_each(|concern| frame.line(format!("  {}", concern.text)));
        frame.line("");
        if let Ok(store) = &self.store {
            rates(store, &mut frame);
            frame.line("");
        }
        match &self.queue {
            Ok(queue) => queues(queue, self.store.as_ref().ok(), &mut frame),
            Err(silence) => frame.titled("queues", self.silence("queue", silence)),
        }
        match &self.store {
            Ok(store) => {
                tables(store, self.now, &mut frame);
                processes(store, self.now, &mut frame);
            }
            Err(silence) => frame.titled("database", self.silence("database", silence)),
        }
        if let Some(size) = size {
            frame.lines.truncate(size.rows);
        }
        frame.lines
    }

    fn verdict(&self) -> Verdict {
        match (&self.queue, &self.store) {
            (Ok(queue), Ok(store)) => Status::of(queue.clone(), store.clone(), None, self.now).verdict,
            (Err((since, why)), _) => unanswered("queue", *since, why, self.now),
            (_, Err((since, why))) => unanswered("database", *since, why, self.now),
        }
    }

    fn silence(&self, what: &str, (since, why): &Silence) -> String {
        format!("no answer from the {what} since {}: {why}", clock(*since, self.now))
    }
}

fn rates(store: &OfStore, frame: &mut Frame) {
    let rates = &store.processes.rates;
    let lag = rates.now.lag_p99_ms.or(rates.lag_p99_ms).map(millis).unwrap_or_else(|| "not known".into());
    frame.titled(
        "now",
        format!(
            "{} received, {} applied, {} retried, {} died, {} rejected; lag p99 {lag}",
            rate(rates.now.received),
            rate(rates.now.applied),
            rate(rates.now.retried),
            rate(rates.now.died),
            rate(rates.now.rejected),
        ),
    );
    type Kind = (&'static str, fn(&Minute) -> u64);
    let kinds: [Kind; 3] = [
        ("received", |minute| minute.received),
        ("applied", |minute| minute.applied),
        ("died", |minute| minute.died),
    ];
    for (title, kind) in kinds {
        let minutes: Vec<u64> = rates.minutes.iter().map(kind).collect();
        let sum = format!("{:>7} in the hour", number(minutes.iter().sum()));
        let room =
            frame.columns(TITLE + 2 + minutes.len() + width(&sum)).saturating_sub(TITLE + 2 + width(&sum));
        frame.titled(title, format!("{} {sum}", sparkline(&minutes, room)));
    }
}

/// One bar for each number, the last ones where there is no room for all: a point for nothing, and a full bar for the most.
fn sparkline(numbers: &[u64], room: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = &numbers[numbers.len().saturating_sub(room)..];
    let highest = shown.iter().copied().max().unwrap_or_default().max(1);
    let bar = |number: &u64| match (number * 8).div_ceil(highest) {
        0 => '·',
        eighths => BARS[usize::try_from(eighths - 1).unwrap_or(7).min(7)],
    };
    shown.iter().map(bar).collect()
}

fn queues(queue: &OfQueue, store: Option<&OfStore>, frame: &mut Frame) {
    let waiting = |name: &str| -> u64 {
        queue.queues.iter().filter(|depth| depth.queue == name).map(|depth| depth.messages).sum()
    };
    let retried: u64 =
        queue.queues.iter().filter(|depth| depth.is_of_retries()).map(|depth| depth.messages).sum();
    let [events, retried, dead, rejections] =
        [waiting("events"), retried, waiting("dead"), waiting("rejections")].map(number);
    frame
        .titled("queues", format!("{events} events, {retried} in retry, {dead} dead, {rejections} rejected"));
    let held: Option<u64> =
        store.map(|store| store.processes.processes.iter().filter_map(|process| process.held).sum());
    let held = held.map(|held| format!(", {} held", number(held))).unwrap_or_default();
    frame.titled("workers", format!("{} consuming{held}", consumers(&queue.queues)));
}

fn tables(store: &OfStore, now: Millis, frame: &mut Frame) {
    let letters: Vec<String> = store
        .dead_letters
        .iter()
        .map(|(status, letters)| format!("{} {}", number(*letters), status.as_str()))
        .collect();
    frame.titled("letters", letters.join(", "));
    let users = &store.users;
    let about = if users.estimated { "about " } else { "" };
    let time = |at: &str| chrono::DateTime::parse_from_rfc3339(at).ok().map(|at| at.timestamp_millis());
    let last = users.last_processed_at.as_deref().and_then(time);
    let last = last.map(|at| format!("; last event {}", clock(at, now))).unwrap_or_default();
    frame.titled(
        "users",
        format!("{about}{} live, {} deleted{last}", number(users.live_users), number(users.deleted_users)),
    );
}

fn processes(store: &OfStore, now: Millis, frame: &mut Frame) {
    let all = &store.processes.processes;
    frame.line("");
    if all.is_empty() {
        return frame.titled("processes", "none tells about itself");
    }
    let time = |at: &str| chrono::DateTime::parse_from_rfc3339(at).map_or(now, |at| at.timestamp_millis());
    let shown = |process: &Process| -> [String; 5] {
        let roles: Vec<&str> = process.roles.iter().map(|role| role.as_str()).collect();
        let doing = match &process.paused {
            Some(paused) => format!("paused: {}", paused.why),
            None if process.roles.contains(&Role::Worker) => format!("{} applied", rate(process.now.applied)),
            None if process.roles.contains(&Role::Ingress) => {
                format!("{} received", rate(process.now.received))
            }
            None => String::new(),
        };
        let who = format!("{}:{}", process.host, process.pid);
        [
            roles.join(","),
            doing,
            process.version.clone(),
            format!("up {}", ago(time(&process.started_at), now)),
            who,
        ]
    };
    let rows: Vec<[String; 5]> = all.iter().map(shown).collect();
    let widest = |column: usize| rows.iter().map(|row| width(&safe(&row[column]))).max().unwrap_or(0).min(24);
    let widths: [usize; 4] = std::array::from_fn(widest);
    let line = |row: &[String; 5]| {
        let mut line = String::new();
        for (cell, most) in row.iter().zip(widths) {
            let cell = cut(&safe(cell), most).into_owned();
            line.push_str(&cell);
            line.push_str(&" ".repeat(most.saturating_sub(width(&cell)) + 2));
        }
        line + &row[4]
    };
    let most = match frame.room() {
        Some(room) if room < rows.len() => room.saturating_sub(1),
        _ => rows.len(),
    };
    rows.iter().take(most).for_each(|row| frame.line(line(row)));
    if most < rows.len() {
        frame.line(format!("and {} more", rows.len() - most));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        ops::{processes::Processes, status::OpenLetters},
        queue::Depth,
        store::{
            Totals, letters,
            processes::{ProcessRow, Said},
        },
        telemetry::rates::{Counted, Counts, MINUTE, Rates},
    };

    const AT: Millis = 1_760_000_040_000;

    fn process(n: u128) -> ProcessRow {
        let minute = |number| Counts::default().with(Counted::Received, number);
        let rates = Rates {
            until: AT,
            minutes: [(AT - 2 * MINUTE, minute(8)), (AT - MINUTE, minute(1)), (AT, minute(0))].into(),
            slots: [(AT - 5_000, minute(150))].into(),
        };
        let said = Said {
            id: uuid::Uuid::from_u128(n),
            roles: vec![Role::Ingress],
            version: "0.1.0\u{1b}[2J".into(),
            host: "in\n1".repeat(20),
            pid: 7,
            started_at: AT - 200_000,
            told_at: AT,
            held: None,
            paused: None,
            paused_since: None,
            listeners: BTreeMap::new(),
            rates,
        };
        ProcessRow { said, seen_at: AT, expires_at: AT + 30_000, read_at: AT }
    }

    fn view(processes: u128) -> View {
        let rows: Vec<ProcessRow> = (0..processes).map(process).collect();
        let depth = |queue: &str, messages| Depth { queue: queue.into(), messages, consumers: 2 };
        let store = OfStore {
            users: Totals { live_users: 1200, ..Totals::default() },
            dead_letters: letters::Status::ALL.map(|status| (status, 0)).into(),
            open_letters: OpenLetters::default(),
            rejections: Vec::new(),
            sync: None,
            processes: Processes::of(&rows, AT),
        };
        let queue = OfQueue { queues: vec![depth("events", 3), depth("retry.1s", 2)], troubles: Vec::new() };
        View { queue: Ok(queue), store: Ok(store), now: AT, every: Duration::from_secs(2) }
    }

    fn size(columns: usize, rows: usize) -> Option<Size> {
        Some(Size { columns, rows })
    }

    #[test]
    fn whatever_the_size_a_frame_fits_and_steers_nothing() {
        for (columns, rows) in [(80, 24), (40, 24), (40, 10), (10, 3), (1, 1), (300, 100)] {
            let frame = view(50).frame(size(columns, rows));
            assert!(frame.len() <= rows, "{columns}x{rows}: {frame:#?}");
            for line in &frame {
                assert!(width(line) <= columns && !line.contains(crate::terminal::is_hidden), "{line:?}");
            }
        }
        let frame = view(50).frame(size(80, 24));
        assert_eq!(frame[0], "headcount at 08:54:00 UTC, every 2s");
        assert!(
            frame[1].starts_with("The workers apply what came in. 3 wait · 2 to be tried again · 0 open"),
            "{frame:#?}"
        );
        assert!(frame.iter().any(|line| line.starts_with("queues     3 events, 2 in retry")), "{frame:#?}");
        assert_eq!(frame.last().unwrap(), "and 40 more", "{frame:#?}");
        let received = frame.iter().find(|line| line.starts_with("received")).unwrap();
        assert!(received.contains("·█▁· ") || received.contains("·█▂· "), "{received}");
        assert!(received.ends_with("450 in the hour"), "{received}");
        // In a pipe nothing is cut, and every process has its line.
        let frame = view(50).frame(None);
        assert_eq!(frame.iter().filter(|line| line.starts_with("ingress")).count(), 50);
        assert!(frame.iter().all(|line| !line.contains('…') || line.starts_with("ingress")), "{frame:#?}");
    }

    #[test]
    fn what_does_not_answer_is_said_in_its_place() {
        let mut view = view(1);
        view.store = Err((AT - 60_000, "connection refused".into()));
        let frame = view.frame(size(80, 24));
        let silent = "no answer from the database since 08:53:00: connection refused";
        assert!(frame[1].starts_with("trouble: No answer from the database since 08:53:00"), "{frame:#?}");
        assert!(frame.contains(&format!("database   {silent}")), "{frame:#?}");
        assert!(frame.iter().any(|line| line.starts_with("queues     3 events")), "{frame:#?}");
        view.queue = Err((AT, "no route".into()));
        let frame = view.frame(size(80, 24));
        assert!(frame.contains(&"queues     no answer from the queue since 08:54:00: no route".to_owned()));
    }

    #[test]
    fn bars_are_of_the_numbers_that_fit() {
        assert_eq!(sparkline(&[0, 1, 4, 8], 10), "·▁▄█");
        assert_eq!(sparkline(&[100, 1, 1], 2), "██");
        assert_eq!(sparkline(&[0, 0], 2), "··");
        assert_eq!(sparkline(&[1], 0), "");
    }
}
