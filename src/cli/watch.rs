//! Owns `status --watch`: the state of everything, drawn in place on a terminal, or as a block per interval in a pipe.
//!
//! Promises that each frame fits the terminal and is drawn in one go; that the terminal is as it was afterwards, also after a signal
//! or an error; and that it goes on while queue or database do not answer, and says so in their place.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use crate::{
    app,
    cli::{
        output::{Output, Size},
        progress::rate,
        status::told,
    },
    config::Config,
    failure::Failure,
    ops::{
        processes::{Minute, Process},
        status::{OfQueue, OfStore, Status, consumers},
        verdict::{Verdict, clock, millis, unanswered},
    },
    queue::Queue,
    stop::until,
    store::{Store, processes::Role},
    terminal::{cut, safe, width},
    text::number,
    time::{Millis, ago, now},
};

/// An answer that takes longer counts as none, until it comes.
const PATIENCE: Duration = Duration::from_secs(3);
/// The most that closing the connections may take.
const CLOSING: Duration = Duration::from_secs(1);
/// The most concerns that are listed below the verdict.
const CONCERNS: usize = 3;
/// The widest title of a line.
const TITLE: usize = 10;

/// Shows it until a signal comes, or until nobody reads it any more.
///
/// # Errors
/// Queue or store can never work as configured, or the output cannot be written.
pub(super) async fn run(every: Duration, config: &Config, output: &mut Output) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let queue = app::look_at_queue(config).await?;
    let store = app::existing_store(config).await?;
    let watched = Watched::new(every, &queue, &store);
    let result = show(every, &watched, &mut signals, output).await;
    watched.end();
    let _ = timeout(CLOSING, async { tokio::join!(queue.close(), store.close()) }).await;
    result
}

async fn show(
    every: Duration,
    watched: &Watched,
    signals: &mut Signals,
    output: &mut Output,
) -> Result<(), Failure> {
    let first = watched.first();
    tokio::pin!(first);
    loop {
        tokio::select! {
            heard = signals.next() => if heard == Heard::End { return Ok(()) },
            () = &mut first => break,
        }
    }
    let mut output = Screen::enter(output)?;
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            heard = signals.next() => match heard {
                Heard::End => return Ok(()),
                Heard::Resize if output.on_terminal => {}
                Heard::Resize => continue,
            },
            _ = tick.tick() => {}
        }
        output.show(&watched.view(now(), every))?;
        if !output.is_open() {
            return Ok(());
        }
    }
}

/// What a signal means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heard {
    End,
    Resize,
}

/// The signals that matter.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    resize: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let heard =
            |kind| signal(kind).map_err(|error| Failure::new(format!("signals cannot be heard: {error}")));
        Ok(Self {
            interrupt: heard(SignalKind::interrupt())?,
            terminate: heard(SignalKind::terminate())?,
            hangup: heard(SignalKind::hangup())?,
            resize: heard(SignalKind::window_change())?,
        })
    }

    async fn next(&mut self) -> Heard {
        tokio::select! {
            _ = self.interrupt.recv() => Heard::End,
            _ = self.terminate.recv() => Heard::End,
            _ = self.hangup.recv() => Heard::End,
            _ = self.resize.recv() => Heard::Resize,
        }
    }
}

/// Where frames go: the alternate screen of a terminal, or lines.
struct Screen<'o> {
    output: &'o mut Output,
    on_terminal: bool,
    /// A block was written.
    written: bool,
}

impl<'o> Screen<'o> {
    fn enter(output: &'o mut Output) -> Result<Self, Failure> {
        let on_terminal = output.is_terminal();
        let screen = Self { output, on_terminal, written: false };
        if on_terminal {
            // The alternate screen, without a cursor.
            screen.output.control("\u{1b}[?1049h\u{1b}[?25l")?;
        }
        Ok(screen)
    }

    fn is_open(&self) -> bool {
        self.output.is_open()
    }

    fn show(&mut self, view: &View) -> Result<(), Failure> {
        if !self.on_terminal {
            if std::mem::replace(&mut self.written, true) {
                self.output.line("")?;
            }
            return view.frame(None).iter().try_for_each(|line| self.output.line(line));
        }
        let size = self.output.size();
        self.output.control(&drawn(&view.frame(Some(size)), size))
    }
}

/// A frame as a terminal takes it, in one go where it knows how.
fn drawn(lines: &[String], size: Size) -> String {
    // A line clears its rest. One that is full has none: the cursor stands on its last character, which would be cleared.
    let rest = |line: &String| if width(line) < size.columns { "\u{1b}[K" } else { "" };
    let drawn: Vec<String> = lines.iter().map(|line| format!("{line}{}", rest(line))).collect();
    let below = if lines.len() < size.rows { "\r\n\u{1b}[J" } else { "" };
    format!("\u{1b}[?2026h\u{1b}[H{}{below}\u{1b}[?2026l", drawn.join("\r\n"))
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        if self.on_terminal {
            let _ = self.output.control("\u{1b}[?25h\u{1b}[?1049l");
        }
    }
}

/// What is asked again and again, each beside the other.
struct Watched {
    queue: watch::Receiver<Part<OfQueue>>,
    store: watch::Receiver<Part<OfStore>>,
    tasks: [JoinHandle<()>; 2],
}

/// What one of them said.
#[derive(Clone)]
struct Part<T> {
    /// Last; `None` before the first answer, and while there is none.
    said: Option<T>,
    /// Since when there is none, and why.
    silent: Option<(Millis, String)>,
    /// When it was asked what it has not answered.
    asked: Option<(Millis, Instant)>,
}

impl<T> Default for Part<T> {
    fn default() -> Self {
        Self { said: None, silent: None, asked: None }
    }
}

impl<T> Part<T> {
    fn asks(&mut self) {
        self.asked = Some((now(), Instant::now()));
    }

    fn answered(&mut self, answer: Result<T, String>) {
        let asked = self.asked.take().map_or_else(now, |(at, _)| at);
        match answer {
            Ok(said) => (self.said, self.silent) = (Some(said), None),
            Err(why) => {
                let since = self.silent.take().map_or(asked, |(since, _)| since);
                (self.said, self.silent) = (None, Some((since, why)));
            }
        }
    }

    /// What it said, or since when it says nothing and why.
    fn is(&self) -> Result<&T, (Millis, String)> {
        let late = self.asked.filter(|(_, at)| at.elapsed() >= PATIENCE);
        match (&self.silent, late, &self.said) {
            (Some(silent), ..) => Err(silent.clone()),
            (None, Some((since, _)), _) => Err((since, "it does not answer".into())),
            (None, None, Some(said)) => Ok(said),
            (None, None, None) => {
                Err((self.asked.map_or_else(now, |(at, _)| at), "it has not answered yet".into()))
            }
        }
    }

    fn has_answered(&self) -> bool {
        self.said.is_some() || self.silent.is_some()
    }
}

impl Watched {
    fn new(every: Duration, queue: &Arc<dyn Queue>, store: &Arc<dyn Store>) -> Self {
        let ((say_queue, of_queue), (say_store, of_store)) =
            (watch::channel(Part::default()), watch::channel(Part::default()));
        let (queue, store) = (Arc::clone(queue), Arc::clone(store));
        let ask_queue = tokio::spawn(repeat(every, say_queue, move || {
            let queue = Arc::clone(&queue);
            async move { OfQueue::read(queue.as_ref()).await.map_err(|error| error.to_string()) }
        }));
        let checked = Arc::new(AtomicBool::new(false));
        let ask_store = tokio::spawn(repeat(every, say_store, move || {
            let (store, checked) = (Arc::clone(&store), Arc::clone(&checked));
            async move {
                if !checked.load(Relaxed) {
                    store.check_schema().await.map_err(|error| error.to_string())?;
                    checked.store(true, Relaxed);
                }
                OfStore::read(&store).await.map_err(|error| error.to_string())
            }
        }));
        Self { queue: of_queue, store: of_store, tasks: [ask_queue, ask_store] }
    }

    /// Waits for the first answers, for a while.
    async fn first(&self) {
        let both = async {
            until(&self.queue, Part::has_answered).await;
            until(&self.store, Part::has_answered).await;
        };
        let _ = timeout(PATIENCE, both).await;
    }

    fn view(&self, now: Millis, every: Duration) -> View {
        let (queue, store) = (self.queue.borrow().clone(), self.store.borrow().clone());
        View { queue: queue.is().cloned(), store: store.is().cloned(), now, every }
    }

    fn end(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn repeat<T, F: Future<Output = Result<T, String>>>(
    every: Duration,
    say: watch::Sender<Part<T>>,
    ask: impl Fn() -> F,
) {
    loop {
        let begun = Instant::now();
        say.send_modify(Part::asks);
        let answer = ask().await;
        say.send_modify(|part| part.answered(answer));
        sleep_until(begun + every).await;
    }
}

/// No answer: since when, and why.
type Silence = (Millis, String);

/// What is shown at a time.
struct View {
    queue: Result<OfQueue, Silence>,
    store: Result<OfStore, Silence>,
    now: Millis,
    every: Duration,
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
    fn frame(&self, size: Option<Size>) -> Vec<String> {
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
            frame[1].starts_with("Everything that came in is applied. 0 open letters · 50 ingress"),
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
    fn a_full_line_keeps_its_last_character() {
        let size = Size { columns: 3, rows: 3 };
        let draw =
            |lines: &[&str]| drawn(&lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>(), size);
        assert_eq!(draw(&["abc", "d"]), "\u{1b}[?2026h\u{1b}[Habc\r\nd\u{1b}[K\r\n\u{1b}[J\u{1b}[?2026l");
        assert_eq!(
            draw(&["a", "b", "王x"]),
            "\u{1b}[?2026h\u{1b}[Ha\u{1b}[K\r\nb\u{1b}[K\r\n王x\u{1b}[?2026l"
        );
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
    fn a_silence_begins_with_the_question_and_ends_with_an_answer() {
        let mut part = Part::default();
        assert!(part.is().is_err());
        part.asks();
        let asked = part.asked.unwrap().0;
        part.answered(Err::<u8, _>("one".into()));
        part.asks();
        part.answered(Err("two".into()));
        assert_eq!(part.is(), Err((asked, "two".into())));
        part.asks();
        part.answered(Ok(7));
        assert_eq!(part.is(), Ok(&7));
        part.asks();
        assert_eq!(part.is(), Ok(&7), "it may answer at any moment");
        part.asked = part.asked.map(|(at, instant)| (at, instant.checked_sub(PATIENCE).unwrap()));
        assert_eq!(part.is().unwrap_err().1, "it does not answer");
        part.answered(Ok(8));
        assert_eq!(part.is(), Ok(&8));
    }

    #[test]
    fn bars_are_of_the_numbers_that_fit() {
        assert_eq!(sparkline(&[0, 1, 4, 8], 10), "·▁▄█");
        assert_eq!(sparkline(&[100, 1, 1], 2), "██");
        assert_eq!(sparkline(&[0, 0], 2), "··");
        assert_eq!(sparkline(&[1], 0), "");
    }
}
