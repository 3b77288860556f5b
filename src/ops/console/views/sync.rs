//! Owns the page of keeping in step: what the watch last saw, what it healed, the runs, the instances; and a dry run.

use std::{sync::Arc, time::Duration};

use axum::{Extension, extract::State, response::IntoResponse};
use maud::{Markup, html};
use tokio::time::timeout;
use tracing::warn;

use super::super::{
    Answer, Console,
    form::Fields,
    frame::{Section, View, on_to, sentence},
    parts::{Tone, badge, command, empty, figure, id, path, said, table, when_or_dash, when_told},
};
use crate::{
    net::Problem,
    ops::{
        access::{Access, Caller},
        sync::{Notice, Watch, Whole, WholeRun, read},
    },
    store::sync::RunResult,
    sync::{Order, owner::Unknown},
    text::number,
};

/// How long a page waits for a run to be refused.
const EARLY: Duration = Duration::from_secs(3);

/// `GET /sync`
pub(in super::super) async fn show(
    State(console): State<Arc<Console>>,
    Extension(caller): Extension<Caller>,
    fields: Fields,
) -> Answer {
    let Whole { instances, watch, runs } = console.api.ask(|store| async move { read(&store).await }).await?;
    let may = caller.access >= Access::Operate && console.clerk.is_some();
    let result = console.result(fields.get("result"));
    let main = html! {
        h1 { "In step with Clerk" }
        @if let Some(result) = result { div.note.good role="status" { (result) } }
        @match &watch {
            Some(watch) => (watched(watch)),
            None => (empty("Clerk is not watched", html! {
                @if console.clerk.is_none() { "Set CLERK_SECRET_KEY where the workers run. They then notice by themselves when webhooks do not arrive, and heal what was lost." }
                @else { "The watch looks for the first time soon." }
            })),
        }
        section #runs aria-labelledby="the-runs" {
            h2 #the-runs { "Runs through every user" }
            @if may {
                form.actions action="/sync/dry-run" method="post" {
                    button type="submit" { "Start a dry run" }
                    span.muted { "It reads every user from Clerk, and changes nothing." }
                }
            }
            @if runs.is_empty() {
                p.muted { "None yet. To repair whatever differs: " (command("headcount sync")) }
            } @else {
                (table("Runs", &["Began", "By", "Kind", "Stands", "Read", "Missing", "Outdated", "Different", "Gone", "Failed"], html! {
                    @for run in &runs { (line(run)) }
                }))
            }
        }
        @if !instances.is_empty() {
            section #instances aria-labelledby="the-instances" {
                h2 #the-instances { "Clerk instances" }
                (table("Clerk instances", &["Instance", "Whose", "First seen", "Last webhook"], html! {
                    @for instance in &instances {
                        tr {
                            td { (id(&instance.instance_id)) }
                            td { @if instance.owner { (badge(Tone::Good, "the table is its")) } @else { (badge(Tone::Warn, "another one")) } }
                            td { (when_told(&instance.first_seen_at)) }
                            td { (when_or_dash(instance.last_webhook_at.as_ref())) }
                        }
                    }
                }))
            }
        }
    };
    Ok(View::live(Section::Sync, "In step with Clerk", main).into_response())
}

fn watched(watch: &Watch) -> Markup {
    let behind = match watch.behind_seconds {
        None => "not compared yet".to_owned(),
        Some(0) => "in step".to_owned(),
        Some(seconds) => {
            format!("behind by {}", crate::time::ago(0, 1000 * i64::try_from(seconds).unwrap_or_default()))
        }
    };
    let healed = &watch.healed_last_day;
    let count = |users: Option<u64>| users.map_or_else(|| "–".to_owned(), number);
    let notice = |notice: &Notice| {
        html! { p.note.bad { (sentence(&notice.message)) " " (sentence(&notice.hint)) " " span.muted { "Since " (when_told(&notice.since)) "." } } }
    };
    html! {
        @for one in watch.alarm.iter().chain(&watch.error).chain(&watch.refused) { (notice(one)) }
        @if !watch.watched { p.note.warn { "Nobody watches now. The last look was by " (said(&watch.by)) "." } }
        section #watch aria-labelledby="the-watch" {
            h2 #the-watch { "The watch" }
            dl.figures {
                (figure("The table", behind, watch.looked_at.as_ref().map(|at| html! { "looked " (when_told(at)) }), None))
                (figure("Newest change in Clerk", when_or_dash(watch.newest_in_clerk.as_ref()), None, None))
                (figure("Newest change here", when_or_dash(watch.newest_here.as_ref()), None, None))
                (figure("Users in Clerk", count(watch.users_in_clerk), watch.counted_at.as_ref().map(|at| when_told(at)), None))
                (figure("Users here", count(watch.users_here), None, None))
                (figure("Healed in a day", number(healed.missing + healed.outdated + healed.gone),
                    Some(html! { (number(healed.missing)) " missing, " (number(healed.outdated)) " outdated, " (number(healed.gone)) " gone" }), None))
            }
            p.muted { "Watched by " (said(&watch.by)) "." }
        }
    }
}

fn line(run: &WholeRun) -> Markup {
    let tone = match run.result {
        None => Tone::Plain,
        Some(RunResult::Done) => Tone::Good,
        Some(_) => Tone::Warn,
    };
    let stands =
        run.result.map_or_else(|| format!("{}, as of ", run.phase), |result| result.as_str().to_owned());
    let counts = &run.counts;
    html! {
        tr {
            td { (when_told(&run.started_at)) }
            td { (said(&run.who)) }
            td { (if run.dry_run { "dry run" } else { "repair" }) }
            td { (badge(tone, stands)) @if run.result.is_none() { (when_told(&run.updated_at)) }
                @if let Some(detail) = &run.detail { " " (said(detail)) } }
            @for count in [counts.clerk, counts.missing, counts.outdated, counts.different, counts.gone, counts.failed] {
                td.number { (number(count)) }
            }
        }
    }
}

/// `POST /sync/dry-run`
pub(in super::super) async fn dry_run(
    State(console): State<Arc<Console>>,
    Extension(caller): Extension<Caller>,
) -> Answer {
    let Some(sync) = console.clerk.clone() else {
        return Err(
            Problem::conflict("CLERK_SECRET_KEY is not set: without it Clerk's API cannot be read").into()
        );
    };
    let (order, stop) = (Order { dry_run: true, ..Order::by(caller.name("console")) }, console.stop.clone());
    let work = tokio::spawn(async move {
        let ended = sync.run(&order, Unknown::Look { adopt: false }, &|_| {}, &stop).await;
        if let Err(error) = &ended {
            warn!("the dry run from the console ended early: {error}");
        }
        ended
    });
    // What stands against it shows at once.
    if let Ok(Ok(Err(error))) = timeout(EARLY, work).await {
        let problem = Problem::conflict(error.to_string());
        return Err(problem.hinted(error.hint().as_deref()).into());
    }
    let result = console
        .keep(html! { p { "The dry run begins. It shows below as soon as Clerk has answered." } })
        .to_string();
    Ok(on_to(&path("/sync", &[("result", &result)])))
}
