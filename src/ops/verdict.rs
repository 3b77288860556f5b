//! Owns the verdict: one line that says whether all is well, or else what is most wrong and where to look. Pure.
//!
//! Promises that each concern is one thought with a place to look, the worst first, and that nothing which mends itself, as an old
//! last webhook on a quiet day, is one.

use serde::Serialize;

use super::{
    processes::{Paused, Process, Processes},
    status::{Overview, consumers},
    sync::Watch,
};
use crate::{
    clerk::api::clock_says,
    queue::{PUBLISHING, Source},
    store::{letters::Status, processes::Role},
    text::{letters, number},
    time::{Millis, ago, rfc3339},
};

/// So many refused signatures while no webhook is accepted say that the secret is wrong.
const REFUSED: usize = 3;

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
    clerk(overview, now, &mut concerns);
    dead(overview, now, &mut concerns);
    refused(overview, processes, &mut concerns);
    concerns.extend(processes.notices.iter().map(|notice| attention(PROCESSES, sentence(notice))));
    // Those of one level stay in the order of above.
    concerns.sort_by_key(|concern| concern.level);
    let Some(worst) = concerns.first() else {
        return Verdict { level: Level::Well, text: well(overview, processes, now), link: FLOW, concerns };
    };
    let more = match concerns.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more"),
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
    let clerk = match watch.filter(|watch| watch.behind_seconds == Some(0)) {
        None => "Everything that came in is applied.".to_owned(),
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
    let parts = [Some(clerk), lag, Some("0 open letters".into()), who];
    let text = parts.into_iter().flatten().collect::<Vec<_>>().join(" · ");
    // A sentence ends by itself.
    text.replacen(". · ", ". ", 1)
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
    let waiting =
        overview.queues.iter().filter(|depth| depth.queue == Source::Events.queue() || depth.is_of_retries());
    let waiting: u64 = waiting.map(|depth| depth.messages).sum();
    let waits = match waiting {
        0 => String::new(),
        1 => "; 1 message waits".into(),
        waiting => format!("; {} messages wait", number(waiting)),
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
        concerns.push(trouble(DEAD, format!("{} died in the last hour{rest}", letters(new))));
    } else if open > 0 {
        let oldest = overview.open_letters.oldest_died_at.as_deref().and_then(parsed);
        let oldest = oldest.map(|at| format!(", the oldest for {}", ago(at, now))).unwrap_or_default();
        let waits = if open == 1 { "waits" } else { "wait" };
        concerns.push(attention(DEAD, format!("{} {waits} for a decision{oldest}", letters(open))));
    }
}

fn refused(overview: &Overview, processes: &Processes, concerns: &mut Vec<Concern>) {
    let received = processes.in_the_hour(|minute| minute.received);
    for said in &overview.rejections {
        let count = said.samples;
        match said.reason.as_str() {
            "no_matching_signature" if received == 0 && count >= REFUSED => concerns.push(trouble(
                REJECTIONS,
                "Signatures are refused and no webhook was accepted in the last hour: the signing secret is wrong",
            )),
            "no_matching_signature" => concerns.push(attention(
                REJECTIONS,
                format!("{count} requests of the last hour had a wrong signature: {}", said.meaning),
            )),
            "timestamp_out_of_range" => concerns.push(attention(
                REJECTIONS,
                format!("{count} requests of the last hour had a wrong time: {}", said.meaning),
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

/// `9 ms`, `1.4 s`, `3m 20s`.
pub fn millis(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{:.1} s", millis as f64 / 1000.0),
        _ => ago(0, i64::try_from(millis).unwrap_or(i64::MAX)),
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
        queue::{Depth, Trouble},
        rejections::explain,
        store::{Totals, processes::ProcessRow},
        sync::watch::state::Healed,
        telemetry::rates::{Counted, Counts, MINUTE, Rates},
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
        case.overview.sync = None;
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
            "2 letters died in the last hour, beside 5 older",
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
            |case| {
                case.refuse("no_matching_signature", 3);
                case.rows[0].said.rates = rates(0);
            },
            Level::Trouble,
            "/rejections",
            "Signatures are refused and no webhook was accepted in the last hour: the signing secret is wrong",
        ),
        (
            |case| case.refuse("no_matching_signature", 3),
            Level::Attention,
            "/rejections",
            "3 requests of the last hour had a wrong signature: the secret differs from the sender's, or somebody else is knocking",
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
    fn the_worst_comes_first_and_the_others_are_counted() {
        let mut case = all_well();
        case.pause(2);
        case.refuse("wrong_path", 1);
        case.watch().behind_seconds = Some(600);
        let verdict = case.judged();
        assert_eq!((verdict.level, verdict.link), (Level::Trouble, "/sync"));
        assert_eq!(verdict.text, "Users are behind Clerk by 10m 0s, and 2 more");
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
        assert_eq!([9, 999, 1400, 200_000].map(millis), ["9 ms", "999 ms", "1.4 s", "3m 20s"]);
        let away = unanswered("database", AT, "refused", NOW);
        assert_eq!(
            (away.level, away.text.as_str()),
            (Level::Trouble, "No answer from the database since 08:54:00: refused")
        );
    }
}
