//! Owns `send`: makes an event of any type, signs it and posts it as Svix would, as often and as fast as asked. Promises
//! a summary of every answer, and failure where one was no 2xx. Never retries.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use futures_util::{StreamExt, stream::FuturesUnordered};
use http::StatusCode;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use crate::{
    clerk::made_up::{INSTANCE, Person, message_id, user_id},
    cli::{
        output::Output,
        post::{Poster, front_door, signing_secret},
        progress,
    },
    config::Config,
    failure::Failure,
    message::EVENT_TYPE_MAX,
    net::NoAnswer,
    text::number,
    time::now,
};

/// Posts that wait for their answer at the same time.
const CONCURRENCY: usize = 64;

/// How old an account is made where the event is not its creation, in ms.
const ACCOUNT_AGE: i64 = 24 * 3600 * 1000;

/// The furthest that a post is put off, in seconds: what the clock is sure to reach.
const FAR_OFF: f64 = 1e9;

/// Arguments of `send`.
#[derive(Debug, Args)]
#[command(
    after_help = "Signs with CLERK_WEBHOOK_SIGNING_SECRET, or with the development secret that `up` keeps.\n\
                        In --user and --email, {i} stands for the event's number, from 1.\n\n\
                        Examples:\n  \
                        headcount send user.created\n  \
                        headcount send user.updated --user user_2a --email ada@example.com\n  \
                        headcount send user.created --count 10000 --user 'user_{i}' --email 'u{i}@example.com'"
)]
pub struct Send {
    /// The event's type: user.created, user.updated, user.deleted, session.created, subscriptionItem.active, any other
    #[arg(value_name = "TYPE", required_unless_present = "file", value_parser = event_type)]
    pub event_type: Option<String>,

    /// Where to post it [default: the listener and path of the configuration]
    #[arg(long)]
    pub url: Option<String>,

    /// Send this body as it is; - reads stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["user", "email", "plan"])]
    pub file: Option<PathBuf>,

    /// The Clerk id of the event's user [default: a new one]
    #[arg(long, value_name = "ID")]
    pub user: Option<String>,

    /// The user's primary e-mail address [default: made up from the id]
    #[arg(long, value_name = "ADDRESS")]
    pub email: Option<String>,

    /// The slug of the plan of subscription.* and subscriptionItem.* [default: premium_monthly]
    #[arg(long, value_name = "PLAN")]
    pub plan: Option<String>,

    /// How many to send
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: u64,

    /// At most this many per second [default: as fast as they are accepted]
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    pub rate: Option<f64>,

    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

fn event_type(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if text.is_empty() || text.len() > EVENT_TYPE_MAX || !text.bytes().all(plain) {
        return Err("a type is letters, digits and dots, such as user.created".into());
    }
    Ok(text.to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=1_000_000.0).contains(&rate) => Ok(rate),
        _ => Err("a rate is a number of events per second, such as 50 or 0.5".into()),
    }
}

/// All answers, counted.
#[derive(Debug, Default, Serialize)]
struct Summary {
    sent: u64,
    accepted: u64,
    /// By status.
    refused: BTreeMap<u16, u64>,
    /// By the reason why there was no answer.
    unanswered: BTreeMap<&'static str, u64>,
    seconds: f64,
    /// The Clerk id that all events are about, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    interrupted: bool,
    #[serde(skip)]
    /// The most surprising reason of those.
    no_answer: Option<NoAnswer>,
}

/// Sends as `args` say. Ctrl-C ends it with the summary of what was sent.
///
/// # Errors
/// Something was not accepted, or could not be sent at all.
pub async fn run(args: &Send, config: &Config, output: &mut Output) -> Result<(), Failure> {
    let url = args.url.clone().unwrap_or_else(|| front_door(config));
    let poster = Poster::new(&url, &signing_secret(config)?)?;
    let source = Source::new(args, config.clerk_instance.as_deref().unwrap_or(INSTANCE))?;
    let bar = progress::bar(args.count);
    let summary = pump(args, &poster, &source, &bar).await;
    bar.finish_and_clear();
    print(&summary, args.json, output)?;
    result(&summary)
}

/// Where the bodies come from.
enum Source {
    Given(Bytes),
    Made {
        instance: String,
        event_type: String,
        user: Option<String>,
        email: Option<String>,
        plan: Option<String>,
    },
}

impl Source {
    /// Events that are made up are of this Clerk instance.
    fn new(args: &Send, instance: &str) -> Result<Self, Failure> {
        if let Some(file) = &args.file {
            return Ok(Self::Given(read(file)?));
        }
        let event_type = args.event_type.clone().unwrap_or_default();
        // The id is chosen here, so that every event of one call is about one user unless {i} tells them apart.
        let user = match (&args.user, args.count) {
            (None, 1) => Some(user_id(&mut rand::rng())),
            (user, _) => user.clone(),
        };
        let (email, plan) = (args.email.clone(), args.plan.clone());
        Ok(Self::Made { instance: instance.to_owned(), event_type, user, email, plan })
    }

    /// The body of event `n`, from 1.
    fn body(&self, n: u64) -> Bytes {
        let (instance, event_type, user, email, plan) = match self {
            Self::Given(body) => return body.clone(),
            Self::Made { instance, event_type, user, email, plan } => {
                (instance, event_type, user, email, plan)
            }
        };
        let numbered = |text: &String| text.replace("{i}", &n.to_string());
        let id = user.as_ref().map_or_else(|| user_id(&mut rand::rng()), numbered);
        let now = now();
        let born = if event_type == "user.created" { now } else { now - ACCOUNT_AGE };
        let mut sample = Person::of(id, born);
        sample.updated_at = now;
        sample.plan.clone_from(plan);
        if let Some(email) = email {
            sample.email = Some(numbered(email));
        }
        Bytes::from(sample.event_of(instance, event_type, now))
    }

    fn user(&self) -> Option<&str> {
        match self {
            Self::Given(_) => None,
            Self::Made { user, .. } => user.as_deref().filter(|user| !user.contains("{i}")),
        }
    }
}

fn read(file: &Path) -> Result<Bytes, Failure> {
    let mut body = Vec::new();
    let (name, read) = if file == Path::new("-") {
        ("stdin".to_owned(), std::io::stdin().read_to_end(&mut body))
    } else {
        let opened = std::fs::File::open(file);
        (file.display().to_string(), opened.and_then(|mut file| file.read_to_end(&mut body)))
    };
    read.map_err(|error| {
        Failure::usage(format!("{name} cannot be read: {error}")).hint("check the path and its permissions")
    })?;
    if std::str::from_utf8(&body).is_err() {
        return Err(
            Failure::usage(format!("{name} is not UTF-8")).hint("a signature is over text: send JSON")
        );
    }
    Ok(Bytes::from(body))
}

/// Posts with bounded concurrency and, where asked, at a pace.
async fn pump(args: &Send, poster: &Poster, source: &Source, bar: &ProgressBar) -> Summary {
    let mut summary = Summary { user: source.user().map(str::to_owned), ..Summary::default() };
    let started = Instant::now();
    let due = |n: u64| match args.rate {
        Some(rate) => started + Duration::from_secs_f64(((n - 1) as f64 / rate).min(FAR_OFF)),
        None => started,
    };
    let mut posts = FuturesUnordered::new();
    let mut next = 1;
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::pin!(interrupt);
    loop {
        let more = next <= args.count && !summary.interrupted && !summary.hopeless();
        if !more && posts.is_empty() {
            break;
        }
        tokio::select! {
            Some(answer) = posts.next(), if !posts.is_empty() => {
                summary.count(answer);
                bar.inc(1);
            }
            () = sleep_until(due(next)), if more && posts.len() < CONCURRENCY => {
                let id = message_id(&mut rand::rng());
                let body = source.body(next);
                posts.push(async move { poster.post(&id, body).await });
                next += 1;
            }
            () = &mut interrupt, if !summary.interrupted => summary.interrupted = true,
        }
    }
    summary.seconds = started.elapsed().as_millis() as f64 / 1000.0;
    summary
}

impl Summary {
    fn count(&mut self, answer: Result<StatusCode, NoAnswer>) {
        self.sent += 1;
        match answer {
            Ok(status) if status.is_success() => self.accepted += 1,
            Ok(status) => *self.refused.entry(status.as_u16()).or_default() += 1,
            Err(reason) => {
                *self.unanswered.entry(reason.as_str()).or_default() += 1;
                self.no_answer = self.no_answer.max(Some(reason));
            }
        }
    }

    /// Nothing has answered at all: the remaining posts would get no answer either.
    fn hopeless(&self) -> bool {
        self.accepted == 0 && self.refused.is_empty() && self.no_answer.is_some()
    }
}

fn print(summary: &Summary, json: bool, output: &mut Output) -> Result<(), Failure> {
    if json {
        return output.json(summary);
    }
    let pace = match summary.sent {
        0 | 1 => String::new(),
        sent => {
            let rate = progress::rate(sent as f64 / summary.seconds.max(0.001));
            format!(" in {:.1} s ({rate})", summary.seconds)
        }
    };
    output.line(format_args!(
        "sent {}{pace}, accepted {}",
        number(summary.sent),
        number(summary.accepted)
    ))?;
    for (status, count) in &summary.refused {
        let reason = StatusCode::from_u16(*status)
            .ok()
            .and_then(|status| status.canonical_reason())
            .unwrap_or("unknown");
        output.line(format_args!("refused {}: {status} {reason}", number(*count)))?;
    }
    for (what, count) in &summary.unanswered {
        output.line(format_args!("unanswered {}: {what}", number(*count)))?;
    }
    match &summary.user {
        Some(user) => output.line(format_args!("user {user}")),
        None => Ok(()),
    }
}

/// Success, or the failure with a hint for each kind of answer.
fn result(summary: &Summary) -> Result<(), Failure> {
    let refused: u64 = summary.refused.values().sum();
    let unanswered: u64 = summary.unanswered.values().sum();
    if refused + unanswered == 0 {
        return match summary.interrupted {
            true => Err(Failure::new("interrupted before all were sent")),
            false => Ok(()),
        };
    }
    let mut failure = Failure::new(match summary.accepted {
        0 => "nothing was accepted".to_owned(),
        _ => format!("{} of {} were not accepted", number(refused + unanswered), number(summary.sent)),
    });
    let hints = summary.refused.keys().map(|status| match status {
        400 => "400: the signature headers did not arrive whole; does a proxy remove them?",
        401 => "401: the ingress has another secret, or the clocks differ; give both sides the same CLERK_WEBHOOK_SIGNING_SECRET",
        404 => "404: the ingress listens on another path; compare --url with HEADCOUNT_WEBHOOK_PATH",
        413 => "413: a body may have 512 KiB",
        503 => "503: the queue does not take messages now; `headcount doctor` says why",
        300..=399 => "a redirect does not count as accepted, and neither does it for Clerk: give the final URL",
        _ => "another program may answer there: compare --url with HEADCOUNT_LISTEN",
    });
    for hint in hints.chain(summary.no_answer.map(no_answer_hint)) {
        if !failure.hints.iter().any(|known| known == hint) {
            failure = failure.hint(hint);
        }
    }
    Err(failure)
}

fn no_answer_hint(reason: NoAnswer) -> &'static str {
    match reason {
        NoAnswer::Refused => "connection refused: is headcount running? start it with `headcount up`",
        NoAnswer::UnknownHost => "host not found: check the host's name in --url, and this machine's DNS",
        NoAnswer::Unreachable => {
            "unreachable: there is no route to the host of --url; check its address and the network"
        }
        NoAnswer::Tls => {
            "TLS failed: this machine does not trust the certificate, or the other side speaks plain HTTP; check it with curl -v"
        }
        NoAnswer::TimedOut => "timed out: nothing came within 15 s; `headcount doctor` there says why",
        NoAnswer::Broken => "the connection ended before the answer: does the other side speak HTTP?",
    }
}

#[cfg(test)]
mod tests;
