//! Owns the verdict: one line that says whether all is well, or else what is most wrong and where to look. Pure.
//!
//! Promises that each concern is one thought with a place to look, the worst first, and that nothing which mends itself, as an old
//! last webhook on a quiet day, is one.

use serde::Serialize;

use super::{
    processes::{Paused, Process, Processes},
    status::{NEW, Overview, consumers},
    sync::Watch,
};
use crate::{
    clerk::api::clock_says,
    queue::{Depth, PUBLISHING, Source},
    store::{letters::Status, processes::Role},
    telemetry::rates::MINUTE,
    text::{letters, number},
    time::{Millis, ago, millis, rfc3339},
};

/// A worker that began less than so long ago may still be on its way to the queue, in milliseconds.
const STARTING: Millis = 15_000;

/// So many refused signatures while no webhook is accepted say that the secret may be wrong.
const REFUSED: usize = 3;

/// No webhook was accepted for so long: the night is no reason any more, in milliseconds.
const QUIET: Millis = 24 * 60 * MINUTE;

/// Fewer messages than this are no backlog.
const MANY: u64 = 1_000;

/// A backlog is one that takes the workers longer than the first, in seconds; longer than the second is trouble. The same holds
/// for the time from a webhook's receipt to its commit.
const BACKLOG: (u64, u64) = (60, 600);

/// The watch mends by itself what is behind for a shorter time, in seconds.
const BEHIND: u64 = 300;

/// How things stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something does not work, or users lack what Clerk knows.
    Trouble,
    /// It works, and people should look at something.
    Attention,
    /// All is well.
    Well,
}

impl Level {
    /// The stable name: in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trouble => "trouble",
            Self::Attention => "attention",
            Self::Well => "well",
        }
    }
}

/// How things stand, in one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The worst level of all concerns.
    pub level: Level,
    /// The line.
    pub text: String,
    /// The console's page about it.
    pub link: &'static str,
    /// All that is not well, the worst first.
    pub concerns: Vec<Concern>,
}

/// Something that is not well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Concern {
    /// How bad it is.
    pub level: Level,
    /// What it is, in one thought.
    pub text: String,
    /// The console's page about it.
    pub link: &'static str,
}

const DEAD: &str = "/dead";
const FLOW: &str = "/flow";
const PROCESSES: &str = "/processes";
const REJECTIONS: &str = "/rejections";
const SYNC: &str = "/sync";

fn trouble(link: &'static str, text: impl Into<String>) -> Concern {
    Concern { level: Level::Trouble, text: text.into(), link }
}

fn attention(link: &'static str, text: impl Into<String>) -> Concern {
    Concern { level: Level::Attention, text: text.into(), link }
}

/// Judges.
pub fn verdict(overview: &Overview, processes: &Processes, now: Millis) -> Verdict {
    let mut concerns = Vec::new();
    queue(overview, &mut concerns);
    workers(overview, processes, now, &mut concerns);
    backlog(overview, processes, now, &mut concerns);
    clerk(overview, now, &mut concerns);
    dead(overview, now, &mut concerns);
    refused(overview, processes, now, &mut concerns);
    concerns.extend(processes.notices.iter().map(|notice| attention(PROCESSES, sentence(notice))));
    // Those of one level stay in the order of above.
    concerns.sort_by_key(|concern| concern.level);
    let Some(worst) = concerns.first() else {
        return Verdict { level: Level::Well, text: well(overview, processes, now), link: FLOW, concerns };
    };
    let more = match concerns.len() - 1 {
        0 => String::new(),
        1 => " · 1 more concern".to_owned(),
        more => format!(" · {more} more concerns"),
    };
    Verdict { level: worst.level, text: format!("{}{more}", worst.text), link: worst.link, concerns }
}

/// Where the database, or the queue, does not answer, so that nothing else is known.
pub fn unanswered(what: &str, since: Millis, why: &str, now: Millis) -> Verdict {
    let concern = trouble(FLOW, format!("No answer from the {what} since {}: {why}", clock(since, now)));
    let Concern { level, text, link } = concern.clone();
    Verdict { level, text, link, concerns: vec![concern] }
}

/// All is well.
fn well(overview: &Overview, processes: &Processes, now: Millis) -> String {
    let watch = overview.sync.as_ref().and_then(|sync| sync.watch.as_ref()).filter(|watch| watch.watched);
    let waits = Waits::of(overview);
    let clerk = match watch.filter(|watch| watch.behind_seconds == Some(0)) {
        None if waits.all() == 0 => "Everything that came in is applied.".to_owned(),
        None => "The workers apply what came in.".to_owned(),
        Some(Watch { newest_in_clerk: Some(there), newest_here: Some(here), .. }) if there == here => {
            format!("In step with Clerk. Newest change {} there and here", told(there, now))
        }
        Some(Watch { newest_in_clerk: Some(there), newest_here: Some(here), .. }) => {
            format!("In step with Clerk. Newest change {} there, {} here", told(there, now), told(here, now))
        }
        Some(_) => "In step with Clerk.".to_owned(),
    };
    let lag = processes.rates.lag_p99_ms.map(|lag| format!("lag p99 {}", millis(lag)));
    let who = |role, one: &str, many: &str| match processes.count(role) {
        0 => None,
        1 => Some(format!("1 {one}")),
        count => Some(format!("{count} {many}")),
    };
    let who: Vec<String> = [who(Role::Ingress, "ingress", "ingress"), who(Role::Worker, "worker", "workers")]
        .into_iter()
        .flatten()
        .collect();
    let who = Some(who.join(", ")).filter(|who| !who.is_empty());
    let some = |messages: u64, what: &str| (messages > 0).then(|| format!("{} {what}", number(messages)));
    let [fresh, again] = [some(waits.fresh, "wait"), some(waits.again, "to be tried again")];
    let parts = [Some(clerk), fresh, again, lag, Some("0 open letters".into()), who];
    let text = parts.into_iter().flatten().collect::<Vec<_>>().join(" · ");
    // A sentence ends by itself.
    text.replacen(". · ", ". ", 1)
}

/// Messages that wait to be applied.
#[derive(Clone, Copy)]
struct Waits {
    /// For a worker.
    fresh: u64,
    /// For their next try, which is as it should be.
    again: u64,
}

impl Waits {
    fn of(overview: &Overview) -> Self {
        let sum = |of: fn(&Depth) -> bool| {
            overview.queues.iter().filter(|depth| of(depth)).map(|depth| depth.messages).sum()
        };
        Self { fresh: sum(|depth| depth.queue == Source::Events.queue()), again: sum(Depth::is_of_retries) }
    }

    fn all(self) -> u64 {
        self.fresh + self.again
    }
}

/// `1 message waits`
fn wait(messages: u64) -> String {
    match messages {
        1 => "1 message waits".into(),
        messages => format!("{} messages wait", number(messages)),
    }
}

fn queue(overview: &Overview, concerns: &mut Vec<Concern>) {
    for one in &overview.troubles {
        concerns.push(match one.part {
            PUBLISHING => trouble(FLOW, format!("The queue takes no webhooks: {}", one.why)),
            part if part == Source::Events.part() => {
                trouble(FLOW, format!("The queue gives out no webhooks: {}", one.why))
            }
            part => attention(FLOW, format!("The queue has trouble with {part}: {}", one.why)),
        });
    }
}

fn workers(overview: &Overview, processes: &Processes, now: Millis, concerns: &mut Vec<Concern>) {
    let workers = processes.count(Role::Worker);
    let is_worker = |process: &&Process| process.roles.contains(&Role::Worker);
    let paused: Vec<&Paused> =
        processes.processes.iter().filter(is_worker).filter_map(|process| process.paused.as_ref()).collect();
    let since = |paused: &Paused| {
        let since = paused.since.as_deref().map(|since| format!(" since {}", told(since, now)));
        format!("{}: {}", since.unwrap_or_default(), paused.why)
    };
    if consumers(&overview.queues) > 0 {
        if let Some(first) = paused.first() {
            let (count, one) = (paused.len(), if paused.len() == 1 { "takes" } else { "take" });
            let text = format!("{count} of {workers} workers {one} no messages{}", since(first));
            concerns.push(attention(PROCESSES, text));
        }
        return;
    }
    let starts = |process: &Process| parsed(&process.started_at).is_some_and(|at| now - at < STARTING);
    if paused.is_empty()
        && overview.paused.is_none()
        && processes.processes.iter().filter(is_worker).any(starts)
    {
        concerns
            .push(attention(PROCESSES, "A worker has just started, and takes nothing from the queue yet"));
        return;
    }
    let waits = match Waits::of(overview).all() {
        0 => String::new(),
        waiting => format!("; {}", wait(waiting)),
    };
    let text = match (paused.first(), &overview.paused, workers) {
        (Some(first), ..) => format!("No worker takes messages{}", since(first)),
        (None, Some(paused), _) => format!("The worker on this machine takes no messages: {paused}"),
        (None, None, 0) => format!("No worker runs{waits}"),
        (None, None, 1) => format!("A worker runs and takes nothing from the queue{waits}"),
        (None, None, _) => format!("{workers} workers run and take nothing from the queue{waits}"),
    };
    concerns.push(trouble(PROCESSES, text));
}

/// The workers take messages, and do not keep up.
fn backlog(overview: &Overview, processes: &Processes, now: Millis, concerns: &mut Vec<Concern>) {
    let Waits { fresh: waiting, .. } = Waits::of(overview);
    if waiting == 0 || consumers(&overview.queues) == 0 {
        return;
    }
    let rates = &processes.rates;
    // A webhook that was tried again is late by that alone.
    let is_telling = processes.in_the_hour(|minute| minute.retried) == 0;
    let lag = rates.now.lag_p99_ms.or(rates.late_p99_ms);
    let lag = lag.filter(|lag| is_telling && *lag > BACKLOG.0 * 1000);
    // Of no rate, nothing can be said but that it is none.
    let needed = (rates.now.applied > 0.0).then(|| (waiting as f64 / rates.now.applied) as u64);
    let needed = (waiting >= MANY && needed.is_none_or(|seconds| seconds > BACKLOG.0)).then_some(needed);
    let (text, is_long) = match needed {
        None if lag.is_none() => return,
        None => (wait(waiting), false),
        Some(None) => {
            (format!("{}, and the workers apply none", wait(waiting)), stands_still(processes, now))
        }
        Some(Some(seconds)) => {
            let long = ago(0, i64::try_from(seconds).unwrap_or_default().saturating_mul(1000));
            let text = format!("{}; the workers need {long} for them", wait(waiting));
            (text, seconds > BACKLOG.1)
        }
    };
    let said = lag.map(|lag| format!("; lag p99 {}", millis(lag))).unwrap_or_default();
    let is_trouble = is_long || lag.is_some_and(|lag| lag > BACKLOG.1 * 1000);
    concerns.push(if is_trouble { trouble } else { attention }(FLOW, text + &said));
}

/// Nothing was applied for at least a minute, though there was something, and workers to do it.
fn stands_still(processes: &Processes, now: Millis) -> bool {
    let [.., before, last, this] = processes.rates.minutes.as_slice() else { return false };
    let is_new = |process: &Process| parsed(&process.started_at).is_some_and(|at| now - at < MINUTE);
    let mut workers = processes.processes.iter().filter(|process| process.roles.contains(&Role::Worker));
    last.applied + this.applied == 0 && before.received + last.received > 0 && !workers.any(is_new)
}

fn clerk(overview: &Overview, now: Millis, concerns: &mut Vec<Concern>) {
    let Some(watch) = overview.sync.as_ref().and_then(|sync| sync.watch.as_ref()) else { return };
    if let Some(alarm) = &watch.alarm {
        concerns.push(trouble(SYNC, sentence(&alarm.message)));
    }
    if watch.watched
        && let Some(behind) = watch.behind_seconds.filter(|seconds| *seconds > 0)
    {
        let for_long = ago(0, i64::try_from(behind).unwrap_or(i64::MAX / 1000).saturating_mul(1000));
        let text = format!("Users are behind Clerk by {for_long}");
        concerns.push(if behind >= BEHIND { trouble(SYNC, text) } else { attention(SYNC, text) });
    }
    let noticed =
        |what: &str, since: &str, message: &str| format!("{what} since {}: {message}", told(since, now));
    if let Some(error) = &watch.error {
        concerns.push(attention(SYNC, noticed("Clerk is not watched", &error.since, &error.message)));
    }
    if let Some(refused) = &watch.refused {
        concerns.push(trouble(SYNC, noticed("The sync is refused", &refused.since, &refused.message)));
    }
    if let Some(offset) = watch.clock_offset_seconds {
        concerns.push(attention(SYNC, sentence(&clock_says(offset.saturating_mul(1000)))));
    }
}

fn dead(overview: &Overview, now: Millis, concerns: &mut Vec<Concern>) {
    let open = overview.dead_letters.get(&Status::Open).copied().unwrap_or_default();
    let new = overview.open_letters.last_hour;
    if new > 0 {
        let rest = open.saturating_sub(new);
        let rest = if rest > 0 { format!(", beside {} older", number(rest)) } else { String::new() };
        concerns.push(trouble(
            DEAD,
            format!(
                "{} that died in the last hour {} open{rest}",
                letters(new),
                if new == 1 { "is" } else { "are" }
            ),
        ));
    } else if open > 0 {
        let oldest = overview.open_letters.oldest_died_at.as_deref().and_then(parsed);
        let oldest = oldest.map(|at| format!(", the oldest for {}", ago(at, now))).unwrap_or_default();
        let waits = if open == 1 { "waits" } else { "wait" };
        concerns.push(attention(DEAD, format!("{} {waits} for a decision{oldest}", letters(open))));
    }
}

fn refused(overview: &Overview, processes: &Processes, now: Millis, concerns: &mut Vec<Concern>) {
    // What processes counted goes with them; the database remembers the last webhook that was applied.
    let of_sync = overview.sync.as_ref().and_then(|sync| sync.last_webhook_at.as_deref());
    let last = [of_sync, overview.users.last_received_at.as_deref()];
    let last = last.into_iter().flatten().filter_map(parsed).max();
    let is_older = |age: Millis| last.is_none_or(|at| now - at > age);
    let is_accepted = processes.in_the_hour(|minute| minute.received) > 0 || !is_older(NEW);
    for said in &overview.rejections {
        let count = said.samples;
        match said.reason.as_str() {
            "no_matching_signature" if !is_accepted && count >= REFUSED => {
                let accepted =
                    last.map_or("ever accepted".into(), |at| format!("accepted since {}", clock(at, now)));
                // One that waits was accepted, nobody knows when.
                let is_sure = is_older(QUIET) && Waits::of(overview).all() == 0;
                let (told, is): (fn(_, _) -> _, _) =
                    if is_sure { (trouble, "is") } else { (attention, "may be") };
                let text = format!(
                    "Signatures are refused and no webhook was {accepted}: the signing secret {is} wrong"
                );
                concerns.push(told(REJECTIONS, text));
            }
            "no_matching_signature" => concerns.push(attention(
                REJECTIONS,
                format!("{count} sampled requests of the last hour had a wrong signature: {}", said.meaning),
            )),
            "timestamp_out_of_range" => concerns.push(attention(
                REJECTIONS,
                format!("{count} sampled requests of the last hour had a wrong time: {}", said.meaning),
            )),
            "wrong_path" => concerns.push(attention(
                REJECTIONS,
                format!("{count} webhooks of the last hour came to a path where none is taken"),
            )),
            // Scanners knock at every door.
            _ => {}
        }
    }
}

fn parsed(at: &str) -> Option<Millis> {
    chrono::DateTime::parse_from_rfc3339(at).ok().map(|at| at.timestamp_millis())
}

fn told(at: &str, now: Millis) -> String {
    parsed(at).map_or_else(|| at.to_owned(), |at| clock(at, now))
}

/// A time as people read it off a clock, in UTC: `14:02:11`, or `2026-01-31 14:02` where that was on another day.
pub fn clock(at: Millis, now: Millis) -> String {
    let (at, now) = (rfc3339(at), rfc3339(now));
    match (at.get(..10), at.get(11..19), at.get(11..16)) {
        (Some(day), Some(time), _) if now.get(..10) == Some(day) => time.to_owned(),
        (Some(day), _, Some(time)) => format!("{day} {time}"),
        _ => at,
    }
}

/// With a capital letter.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{
        super::processes::tests::{AT, row},
        *,
    };
    use crate::{
        message::Rejected,
        ops::{
            status::OpenLetters,
            sync::{Glance, Notice},
        },
        queue::Trouble,
        rejections::explain,
        store::{Totals, processes::ProcessRow},
        sync::watch::state::Healed,
        telemetry::rates::{Counted, Counts, Rates, SLOT},
    };

    const NOW: Millis = AT + 1_000;

    struct Case {
        overview: Overview,
        rows: Vec<ProcessRow>,
    }

    fn watch() -> Watch {
        Watch {
            watched: true,
            by: "worker".into(),
            instance_id: None,
            looked_at: Some(rfc3339(AT)),
            newest_in_clerk: Some(rfc3339(AT - 9_000)),
            newest_here: Some(rfc3339(AT - 9_000)),
            behind_seconds: Some(0),
            healed_last_day: Healed::default(),
            counted_at: None,
            users_in_clerk: None,
            users_here: None,
            alarm: None,
            error: None,
            refused: None,
            clock_offset_seconds: None,
        }
    }

    fn depth(queue: &str, messages: u64, consumers: u32) -> Depth {
        Depth { queue: queue.into(), messages, consumers }
    }

    fn rates(received: u64) -> Rates {
        let minute = Counts::default().with(Counted::Received, received);
        Rates { until: AT, minutes: [(AT - MINUTE, minute)].into(), ..Rates::default() }
    }

    fn all_well() -> Case {
        let overview = Overview {
            queues: vec![depth("events", 0, 3), depth("retry.1s", 0, 0), depth("dead", 0, 3)],
            troubles: Vec::new(),
            users: Totals::default(),
            dead_letters: BTreeMap::new(),
            open_letters: OpenLetters::default(),
            rejections: Vec::new(),
            paused: None,
            sync: Some(Glance { last_webhook_at: None, watch: Some(watch()), last_run: None }),
        };
        let rows = vec![
            row(1, &[Role::Ingress], "0.1.0", rates(5)),
            row(2, &[Role::Ingress], "0.1.0", rates(0)),
            row(3, &[Role::Worker], "0.1.0", rates(0)),
            row(4, &[Role::Worker], "0.1.0", rates(0)),
            row(5, &[Role::Worker], "0.1.0", rates(0)),
        ];
        Case { overview, rows }
    }

    impl Case {
        fn judged(&self) -> Verdict {
            verdict(&self.overview, &Processes::of(&self.rows, NOW), NOW)
        }

        fn watch(&mut self) -> &mut Watch {
            self.overview.sync.as_mut().unwrap().watch.as_mut().unwrap()
        }

        fn pause(&mut self, index: usize) {
            self.rows[index].said.paused = Some("the database is away".into());
            self.rows[index].said.paused_since = Some(AT - 60_000);
        }

        /// So many wait; the workers apply so many a second, so late.
        fn wait(&mut self, messages: u64, applied: u64, lag: u64) {
            self.overview.queues[0].messages = messages;
            let slot = Counts::default().with(Counted::Applied, applied * 15).late(lag, 15);
            let minute = Counts::default().with(Counted::Applied, 60).late(lag, 60);
            let (minutes, slots) = ([(AT - MINUTE, minute)].into(), [(AT - SLOT, slot)].into());
            self.rows[2].said.rates = Rates { until: AT, minutes, slots };
        }

        /// Signatures are refused, and the last webhook was accepted so many hours ago.
        fn refuse_all(&mut self, hours: Option<Millis>) {
            self.refuse("no_matching_signature", 3);
            self.rows[0].said.rates = rates(0);
            let last = hours.map(|hours| rfc3339(NOW - hours * 3_600_000));
            self.overview.sync.as_mut().unwrap().last_webhook_at = last;
        }

        fn refuse(&mut self, reason: &str, count: usize) {
            let sample =
                Rejected { at: NOW, address: "192.0.2.1".into(), reason: reason.into(), headers: vec![] };
            self.overview.rejections = explain(&vec![sample; count], NOW);
        }
    }

    fn notice(message: &str) -> Option<Notice> {
        Some(Notice { since: rfc3339(AT - 60_000), message: message.into(), hint: "look".into() })
    }

    #[test]
    fn when_all_is_well_it_says_so_with_what_people_want_to_know() {
        let mut case = all_well();
        let verdict = case.judged();
        assert_eq!(
            verdict.text,
            "In step with Clerk. Newest change 08:53:51 there and here · 0 open letters · 2 ingress, 3 workers"
        );
        assert_eq!((verdict.level, verdict.link, verdict.concerns.len()), (Level::Well, "/flow", 0));
        case.watch().newest_here = Some(rfc3339(AT - 86_400_000));
        assert!(case.judged().text.contains("Newest change 08:53:51 there, 2025-10-08 08:54 here · "));
        case.overview.queues = vec![depth("events", 12, 3), depth("retry.1s", 1_200, 0), depth("dead", 9, 3)];
        assert!(case.judged().text.contains(" here · 12 wait · 1,200 to be tried again · 0 open letters"));
        case.overview.sync = None;
        assert_eq!(
            case.judged().text,
            "The workers apply what came in. 12 wait · 1,200 to be tried again · 0 open letters · 2 ingress, 3 workers"
        );
        case.overview.queues[0].messages = 0;
        assert!(case.judged().text.starts_with("The workers apply what came in. 1,200 to be tried again · "));
        case.overview.queues[1].messages = 0;
        case.rows.truncate(1);
        assert_eq!(case.judged().text, "Everything that came in is applied. 0 open letters · 1 ingress");
        // A quiet night is no trouble, nor what scanners do.
        case.refuse("missing_signature_header", 100);
        assert_eq!(case.judged().level, Level::Well);
    }

    /// What is wrong, and what is said of it.
    type Row = (fn(&mut Case), Level, &'static str, &'static str);

    const WRONG: &[Row] = &[
        (
            |case| case.overview.troubles = vec![Trouble { part: PUBLISHING, why: "no route".into() }],
            Level::Trouble,
            "/flow",
            "The queue takes no webhooks: no route",
        ),
        (
            |case| case.overview.troubles = vec![Trouble { part: Source::Dead.part(), why: "no".into() }],
            Level::Attention,
            "/flow",
            "The queue has trouble with consuming dead: no",
        ),
        (
            |case| {
                case.overview.queues =
                    vec![depth("events", 1200, 0), depth("retry.1s", 3, 0), depth("dead", 9, 0)];
                case.rows.truncate(2);
            },
            Level::Trouble,
            "/processes",
            "No worker runs; 1,203 messages wait",
        ),
        (
            |case| case.overview.queues[0].consumers = 0,
            Level::Trouble,
            "/processes",
            "3 workers run and take nothing from the queue",
        ),
        (
            |case| {
                case.overview.queues[0].consumers = 0;
                case.rows[4].said.started_at = NOW - 2_000;
            },
            Level::Attention,
            "/processes",
            "A worker has just started, and takes nothing from the queue yet",
        ),
        (
            |case| {
                case.overview.queues[0].consumers = 0;
                (2..5).for_each(|index| case.pause(index));
            },
            Level::Trouble,
            "/processes",
            "No worker takes messages since 08:53:00: the database is away",
        ),
        (
            |case| {
                case.overview.queues[0].consumers = 0;
                case.overview.paused = Some("since then: away".into());
            },
            Level::Trouble,
            "/processes",
            "The worker on this machine takes no messages: since then: away",
        ),
        (
            |case| case.pause(3),
            Level::Attention,
            "/processes",
            "1 of 3 workers takes no messages since 08:53:00: the database is away",
        ),
        (
            |case| case.watch().alarm = notice("webhooks do not arrive"),
            Level::Trouble,
            "/sync",
            "Webhooks do not arrive",
        ),
        (
            |case| case.watch().behind_seconds = Some(300),
            Level::Trouble,
            "/sync",
            "Users are behind Clerk by 5m 0s",
        ),
        (
            |case| case.watch().behind_seconds = Some(20),
            Level::Attention,
            "/sync",
            "Users are behind Clerk by 20s",
        ),
        (
            |case| case.watch().error = notice("the key is refused"),
            Level::Attention,
            "/sync",
            "Clerk is not watched since 08:53:00: the key is refused",
        ),
        (
            |case| case.watch().refused = notice("too many are gone"),
            Level::Trouble,
            "/sync",
            "The sync is refused since 08:53:00: too many are gone",
        ),
        (
            |case| {
                case.overview.dead_letters = [(Status::Open, 7)].into();
                case.overview.open_letters.last_hour = 2;
            },
            Level::Trouble,
            "/dead",
            "2 letters that died in the last hour are open, beside 5 older",
        ),
        (
            |case| {
                case.overview.dead_letters = [(Status::Open, 1), (Status::Applied, 9)].into();
                case.overview.open_letters.oldest_died_at = Some(rfc3339(NOW - 2 * 86_400_000));
            },
            Level::Attention,
            "/dead",
            "1 letter waits for a decision, the oldest for 2d 0h",
        ),
        (
            |case| case.wait(1_000_000, 50, 20),
            Level::Trouble,
            "/flow",
            "1,000,000 messages wait; the workers need 5h 33m for them",
        ),
        (
            |case| case.wait(3_100, 50, 20),
            Level::Attention,
            "/flow",
            "3,100 messages wait; the workers need 1m 2s for them",
        ),
        (
            |case| case.wait(3_100, 50, 10_800_000),
            Level::Trouble,
            "/flow",
            "3,100 messages wait; the workers need 1m 2s for them; lag p99 3h 29m",
        ),
        (|case| case.wait(12, 50, 90_000), Level::Attention, "/flow", "12 messages wait; lag p99 1m 38s"),
        (
            |case| case.wait(5_000, 0, 20),
            Level::Attention,
            "/flow",
            "5,000 messages wait, and the workers apply none",
        ),
        (
            |case| {
                case.wait(5_000, 0, 20);
                case.rows[2].said.rates = Rates::default();
            },
            Level::Trouble,
            "/flow",
            "5,000 messages wait, and the workers apply none",
        ),
        (
            |case| case.refuse_all(Some(25)),
            Level::Trouble,
            "/rejections",
            "Signatures are refused and no webhook was accepted since 2025-10-08 07:54: the signing secret is wrong",
        ),
        (
            |case| case.refuse_all(None),
            Level::Trouble,
            "/rejections",
            "Signatures are refused and no webhook was ever accepted: the signing secret is wrong",
        ),
        (
            |case| {
                case.refuse_all(None);
                case.overview.queues[0].messages = 1;
            },
            Level::Attention,
            "/rejections",
            "Signatures are refused and no webhook was ever accepted: the signing secret may be wrong",
        ),
        (
            |case| case.refuse_all(Some(2)),
            Level::Attention,
            "/rejections",
            "Signatures are refused and no webhook was accepted since 06:54:01: the signing secret may be wrong",
        ),
        (
            |case| {
                case.refuse_all(Some(25));
                case.overview.users.last_received_at = Some(rfc3339(NOW - 2 * 3_600_000));
            },
            Level::Attention,
            "/rejections",
            "Signatures are refused and no webhook was accepted since 06:54:01: the signing secret may be wrong",
        ),
        (
            |case| case.refuse_all(Some(0)),
            Level::Attention,
            "/rejections",
            "3 sampled requests of the last hour had a wrong signature: the secret differs from the sender's, or somebody else is knocking",
        ),
        (
            |case| case.refuse("no_matching_signature", 3),
            Level::Attention,
            "/rejections",
            "3 sampled requests of the last hour had a wrong signature: the secret differs from the sender's, or somebody else is knocking",
        ),
        (
            |case| case.refuse("wrong_path", 4),
            Level::Attention,
            "/rejections",
            "4 webhooks of the last hour came to a path where none is taken",
        ),
        (
            |case| case.rows[0].said.version = "0.2.0".into(),
            Level::Attention,
            "/processes",
            "Processes of different versions run: 0.1.0, 0.2.0; that is well during an update; else restart those of the older one",
        ),
    ];

    #[test]
    fn each_thing_that_is_wrong_is_said_in_plain_words_with_its_page() {
        for (wrong, level, link, text) in WRONG {
            let mut case = all_well();
            wrong(&mut case);
            let verdict = case.judged();
            assert_eq!((verdict.text.as_str(), verdict.level, verdict.link), (*text, *level, *link));
            assert_eq!(verdict.concerns, [Concern { level: *level, text: (*text).into(), link }]);
        }
    }

    #[test]
    fn what_waits_a_moment_or_for_its_next_try_is_no_concern() {
        let mut case = all_well();
        // Few, or soon done; late in the past only.
        for (messages, applied, lag) in [(999, 0, 20), (2_900, 50, 20), (0, 0, 10_800_000)] {
            case.wait(messages, applied, lag);
            assert_eq!(case.judged().level, Level::Well, "{messages} {applied} {lag}");
        }
        case.wait(12, 50, 20);
        case.overview.queues[1].messages = 1_000_000;
        assert_eq!(case.judged().level, Level::Well);
        // A backlog that is done away with was late.
        case.wait(12, 50, 10_800_000);
        let slot = Counts::default().with(Counted::Applied, 750).late(20, 750);
        case.rows[2].said.rates.slots = [(AT - SLOT, slot)].into();
        assert_eq!(case.judged().level, Level::Well);
        // What was tried again is late, and says nothing of the others.
        case.wait(12, 50, 10_800_000);
        let minute = case.rows[2].said.rates.minutes.get_mut(&(AT - MINUTE)).unwrap();
        *minute = minute.clone().with(Counted::Retried, 1);
        assert_eq!(case.judged().level, Level::Well);
        // Those that nobody takes are another's concern.
        case.wait(1_000_000, 0, 20);
        case.overview.queues[0].consumers = 0;
        assert_eq!(case.judged().concerns.len(), 1);
    }

    #[test]
    fn the_worst_comes_first_and_the_others_are_counted() {
        let mut case = all_well();
        case.pause(2);
        case.refuse("wrong_path", 1);
        case.watch().behind_seconds = Some(600);
        let verdict = case.judged();
        assert_eq!((verdict.level, verdict.link), (Level::Trouble, "/sync"));
        assert_eq!(verdict.text, "Users are behind Clerk by 10m 0s · 2 more concerns");
        let levels: Vec<Level> = verdict.concerns.iter().map(|concern| concern.level).collect();
        assert_eq!(levels, [Level::Trouble, Level::Attention, Level::Attention]);
        let json = serde_json::to_value(&verdict).unwrap();
        assert_eq!((&json["level"], &json["concerns"][1]["link"]), (&"trouble".into(), &"/processes".into()));
        // Nobody watches: nobody knows that it is behind.
        case.watch().watched = false;
        assert_eq!(case.judged().level, Level::Attention);
    }

    #[test]
    fn times_are_read_off_a_clock() {
        assert_eq!(clock(AT, NOW), "08:54:00");
        assert_eq!(clock(AT - 86_400_000, NOW), "2025-10-08 08:54");
        let away = unanswered("database", AT, "refused", NOW);
        assert_eq!(
            (away.level, away.text.as_str()),
            (Level::Trouble, "No answer from the database since 08:54:00: refused")
        );
    }
}
