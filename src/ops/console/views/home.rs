//! Owns the overview: what needs somebody, and how things stand, at a glance.

use std::sync::Arc;

use axum::{extract::State, response::IntoResponse};
use maud::{Markup, html};

use super::{
    super::{
        Answer, Console,
        frame::{Section, View},
        parts::{figure, said, when_told},
        pulse::Moment,
    },
    flow::{APPLIED, DIED, RECEIVED, REJECTED, depth, hour, retrying},
};
use crate::{
    ops::{processes::Processes, status::Overview, verdict::Level},
    queue::Source,
    store::letters::Status,
    text::number,
    time::millis,
};

/// `GET /`
pub(in super::super) async fn show(State(console): State<Arc<Console>>) -> Answer {
    let moment = console.now().await;
    let main = html! {
        h1 { "Overview" }
        (concerns(&moment))
        @match &moment.known {
            Ok((overview, processes)) => (figures(overview, processes)),
            Err(_) => p.muted { "Figures show here as soon as queue and database answer." },
        }
    };
    Ok(View::of_moment(Section::Overview, "Overview", moment, main).into_response())
}

fn concerns(moment: &Moment) -> Markup {
    html! {
        section #concerns aria-labelledby="needs" {
            h2 #needs { "What needs somebody" }
            @if moment.verdict.concerns.is_empty() {
                p.note.good { "Nothing. Every webhook that came in is applied, or on its way." }
            } @else {
                ul.concerns {
                    @for concern in &moment.verdict.concerns {
                        li.note.(if concern.level == Level::Trouble { "bad" } else { "warn" }) {
                            a href=(concern.link) { (said(&concern.text)) }
                        }
                    }
                }
            }
        }
    }
}

fn figures(overview: &Overview, processes: &Processes) -> Markup {
    let open = overview.dead_letters.get(&Status::Open).copied().unwrap_or_default();
    let about = if overview.users.estimated { "about " } else { "" };
    let rates = &processes.rates;
    html! {
        section #figures aria-labelledby="now" {
            h2 #now { "Now" }
            dl.figures {
                (figure("Users", format!("{about}{}", number(overview.users.live_users)),
                    Some(html! { (number(overview.users.deleted_users)) " deleted" }), Some("/users")))
                (figure("Open letters", number(open), None, Some("/dead")))
                (figure("Waiting in the queue", number(depth(overview, Source::Events.queue())),
                    Some(html! { (number(retrying(overview))) " wait to be tried again" }), Some("/flow")))
                (figure("Last processed", overview.users.last_processed_at.as_ref().map_or_else(|| html! { "nothing yet" }, |at| when_told(at)),
                    rates.lag_p99_ms.map(|lag| html! { "lag p99 " (millis(lag)) }), Some("/flow")))
            }
        }
        (hour(&rates.minutes, &[RECEIVED, APPLIED, DIED, REJECTED]))
    }
}
