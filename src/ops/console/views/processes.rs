//! Owns the page of processes: what each is, and how it fares. What differs in version stands out.

use std::sync::Arc;

use axum::{extract::State, response::IntoResponse};
use maud::{Markup, html};

use super::super::{
    Answer, Console,
    frame::{Section, View, sentence},
    parts::{Tone, badge, empty, said, table, when_told},
};
use crate::{
    ops::processes::{self, Process, Processes},
    text::number,
};

/// `GET /processes`
pub(in super::super) async fn list(State(console): State<Arc<Console>>) -> Answer {
    let read = console.api.ask(|store| async move { processes::read(&store).await }).await?;
    let newest = read.newest().map(str::to_owned);
    let Processes { processes, notices, .. } = read;
    let main = html! {
        h1 { "Processes" }
        p.lead { "Each says every few seconds that it is there. One that has said nothing for half a minute is gone from here." }
        @for notice in &notices { p.note.warn { (sentence(notice)) } }
        @if processes.is_empty() {
            (empty("No process has spoken yet", html! { "They show here within seconds of their start." }))
        } @else {
            (table("Processes", &["Does", "Version", "Host", "Runs since", "Heard", "Holds", "Now", "Listens"], html! {
                @for process in &processes { (line(process, newest.as_ref().is_some_and(|newest| process.version != *newest))) }
            }))
        }
    };
    Ok(View::live(Section::Processes, "Processes", main).into_response())
}

fn line(process: &Process, is_older: bool) -> Markup {
    let roles: Vec<&str> = process.roles.iter().map(|role| role.as_str()).collect();
    let now = &process.now;
    let rates = [
        ("received", now.received),
        ("applied", now.applied),
        ("rejected", now.rejected),
        ("died", now.died),
    ];
    let rates: Vec<String> =
        rates.iter().filter(|(_, rate)| *rate > 0.0).map(|(name, rate)| format!("{rate} {name}/s")).collect();
    html! {
        tr data-row {
            th scope="row" {
                (said(roles.join(", ")))
                @if let Some(paused) = &process.paused {
                    " " (badge(Tone::Bad, "paused")) div.muted { (said(&paused.why)) @if let Some(since) = &paused.since { ", since " (when_told(since)) } }
                }
            }
            td { (said(&process.version)) @if is_older { " " (badge(Tone::Warn, "older")) } }
            td { code { (said(&process.host)) } span.muted { " process " (process.pid) } }
            td { (when_told(&process.started_at)) }
            td { (when_told(&process.seen_at)) }
            td.number { @match process.held { Some(held) => (number(held)), None => "–" } }
            td { @if rates.is_empty() { span.muted { "nothing" } } @else { (rates.join(", ")) } }
            td { @for (role, address) in &process.listeners { div { span.muted { (said(role)) " " } code { (said(address)) } } } }
        }
    }
}
