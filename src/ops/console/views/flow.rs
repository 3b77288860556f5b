//! Owns the picture of the flow: received, queue, batch, users, with what moves now and what waits where, and the last hour.

use std::sync::Arc;

use axum::{extract::State, response::IntoResponse};
use maud::{Markup, html};

use super::super::{
    Answer, Console,
    frame::{Section, View, sentence},
    parts::{Tone, badge, said, spark, table, when_told},
};
use crate::{
    ops::{
        processes::{Minute, Processes},
        status::{Overview, consumers},
    },
    queue::Source,
    store::{letters::Status, processes::Role},
    text::number,
    time::millis,
};

/// `GET /flow`
pub(in super::super) async fn show(State(console): State<Arc<Console>>) -> Answer {
    let moment = console.now().await;
    let main = html! {
        h1 { "Flow" }
        @match &moment.known {
            Err(why) => p.note.bad { (sentence(why)) },
            Ok((overview, processes)) => {
                (pauses(overview, processes))
                (picture(overview, processes))
                (hour(&processes.rates.minutes, &[RECEIVED, APPLIED, RETRIED, DIED, REJECTED, HEALED]))
                (rungs(overview))
            }
        }
    };
    Ok(View::of_moment(Section::Flow, "Flow", moment, main).into_response())
}

fn pauses(overview: &Overview, processes: &Processes) -> Markup {
    html! {
        @for trouble in &overview.troubles { p.note.bad { (sentence(&format!("{}: {}", trouble.part, trouble.why))) } }
        @for process in &processes.processes {
            @if let Some(paused) = &process.paused {
                p.note.bad {
                    "The worker on " (said(&process.host)) " takes no messages" @if let Some(since) = &paused.since { " since " (when_told(since)) } ": " (said(&paused.why)) "."
                }
            }
        }
    }
}

/// Messages that wait in a queue.
pub(super) fn depth(overview: &Overview, queue: &str) -> u64 {
    overview.queues.iter().filter(|depth| depth.queue == queue).map(|depth| depth.messages).sum()
}

/// Messages that wait on the retry ladder.
pub(super) fn retrying(overview: &Overview) -> u64 {
    overview.queues.iter().filter(|depth| depth.is_of_retries()).map(|depth| depth.messages).sum()
}

fn rate(rate: f64) -> String {
    if rate < 10.0 { format!("{rate:.1}/s") } else { format!("{}/s", number(rate.round() as u64)) }
}

fn picture(overview: &Overview, processes: &Processes) -> Markup {
    let now = &processes.rates.now;
    let held: u64 = processes.processes.iter().filter_map(|process| process.held).sum();
    let waiting = depth(overview, Source::Events.queue());
    let retrying = retrying(overview);
    let open = overview.dead_letters.get(&Status::Open).copied().unwrap_or_default();
    let lag = processes.rates.lag_p99_ms.map_or_else(|| "–".to_owned(), millis);
    let ingresses = processes.count(Role::Ingress);
    let stage = |name: &str, value: String, notes: Markup| {
        html! { li.stage { h2 { (name) } p.big { (value) } (notes) } }
    };
    html! {
        ol.flow aria-label="From Clerk to the table of users" {
            (stage("Received", rate(now.received), html! {
                p { (number(ingresses as u64)) (if ingresses == 1 { " ingress" } else { " ingresses" }) }
                p { a href="/rejections" { (rate(now.rejected)) " rejected" } }
            }))
            (stage("Queue", number(waiting), html! {
                p { "waiting" }
                p { (consumers(&overview.queues)) " consuming" }
            }))
            (stage("Batch", number(held), html! {
                p { "held by workers" }
                p { (rate(now.retried)) " to retry · " (number(retrying)) " wait" }
            }))
            (stage("Users", rate(now.applied), html! {
                p { "applied; lag p99 " (lag) }
                p { a href="/users" { (if overview.users.estimated { "about " } else { "" }) (number(overview.users.live_users)) " live" } }
            }))
        }
        p.aside-flow {
            @if now.died > 0.0 { (badge(Tone::Bad, format!("{} die", rate(now.died)))) " " }
            a href="/dead" { (crate::text::letters(open)) " open" }
            " beside the flow. "
            @if depth(overview, Source::Dead.queue()) > 0 { (number(depth(overview, Source::Dead.queue()))) " on their way to the letters." }
        }
    }
}

/// What is counted of a minute, by its name.
type Line = (&'static str, fn(&Minute) -> u64);

pub(super) const RECEIVED: Line = ("Received", |minute| minute.received);
pub(super) const APPLIED: Line = ("Applied", |minute| minute.applied);
pub(super) const DIED: Line = ("Died", |minute| minute.died);
pub(super) const REJECTED: Line = ("Rejected", |minute| minute.rejected);
const RETRIED: Line = ("Retried", |minute| minute.retried);
const HEALED: Line = ("Healed", |minute| minute.healed);

/// What the processes counted in the last hour.
pub(super) fn hour(minutes: &[Minute], lines: &[Line]) -> Markup {
    html! {
        section #hour aria-labelledby="last-hour" {
            h2 #last-hour { "The last hour" " " small.muted { "as the processes that run now have counted it" } }
            div.charts {
                @for (name, of) in lines {
                    @let values: Vec<u64> = minutes.iter().map(of).collect();
                    figure.chart {
                        figcaption { (name) " " strong { (number(values.iter().sum())) } }
                        (spark(&format!("{name} per minute in the last hour"), &values))
                    }
                }
            }
        }
    }
}

fn rungs(overview: &Overview) -> Markup {
    let retries: Vec<_> = overview.queues.iter().filter(|depth| depth.is_of_retries()).collect();
    html! {
        section #ladder aria-labelledby="the-ladder" {
            h2 #the-ladder { "The retry ladder" }
            p.muted { "A message that failed waits on the next rung, and comes back by itself. After the last one it is a dead letter." }
            (table("The retry ladder", &["Comes back", "Wait"], html! {
                @for rung in retries {
                    tr {
                        th scope="row" { "within " (said(rung.queue.trim_start_matches("retry").trim_start_matches('.'))) }
                        td.number { (number(rung.messages)) }
                    }
                }
            }))
        }
    }
}
