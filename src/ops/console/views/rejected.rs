//! Owns the page of requests that the ingress turned away: by reason, with cause and cure, then the newest samples.

use std::sync::Arc;

use axum::{extract::State, response::IntoResponse};
use maud::html;

use super::super::{
    Answer, Console,
    frame::{Section, View, sentence},
    parts::{Tone, badge, empty, said, table, when, when_told},
};
use crate::{
    rejections::{SAMPLES, explain},
    text::number,
    time::now,
};

/// `GET /rejections`
pub(in super::super) async fn list(State(console): State<Arc<Console>>) -> Answer {
    let samples = console.api.ask(|store| async move { store.newest(SAMPLES).await }).await?;
    let explanations = explain(&samples, now());
    let main = html! {
        h1 { "Rejected requests" }
        p.lead { "The ingress turned these away. Nothing of them was queued. The samples are few where many come." }
        @if samples.is_empty() {
            (empty("Nothing was turned away", html! {
                "A request without a valid signature, too large or too slow would show here with its cause and its cure."
            }))
        }
        @if explanations.is_empty() && !samples.is_empty() { p.muted { "None in the last hour." } }
        @if !explanations.is_empty() {
            section aria-labelledby="why" {
                h2 #why { "In the last hour, by reason" }
                ul.cards {
                    @for said_of in &explanations {
                        li.card {
                            h3 { (badge(Tone::Warn, &said_of.reason)) " "
                                span.muted { (number(said_of.samples as u64)) " of the newest samples, the last " (when_told(&said_of.newest)) } }
                            p { (sentence(said_of.meaning)) }
                            p { strong { "What to do: " } (sentence(said_of.hint)) }
                        }
                    }
                }
            }
        }
        @if !samples.is_empty() {
            section aria-labelledby="samples" {
                h2 #samples { "The newest samples" }
                (table("The newest samples", &["When", "Reason", "From", "Its headers"], html! {
                    @for sample in samples.iter().take(100) {
                        tr {
                            td { (when(sample.at)) }
                            td { (said(&sample.reason)) }
                            td { code { (said(&sample.address)) } }
                            td.long { (said(sample.headers.join(", "))) }
                        }
                    }
                }))
            }
        }
    };
    Ok(View::live(Section::Rejected, "Rejected requests", main).into_response())
}
