//! Owns the page of keys.

use axum::response::IntoResponse;
use maud::html;

use super::super::{
    Answer,
    frame::{Section, View, keys},
    parts::table,
};

/// `GET /keys`
pub(in super::super) async fn show() -> Answer {
    let others = [
        ("/", "search"),
        ("j, k", "the next, the one before, in a list"),
        ("Enter", "open it"),
        ("x", "choose it, or not"),
        ("r", "replay the letters that are chosen, or the one that the page shows"),
        ("?", "this page"),
    ];
    let main = html! {
        h1 { "Keys" }
        p.lead { "They are off while you type." }
        p.scripted { button #keys type="button" aria-pressed="false" { "Turn these keys off" } }
        (table("Keys", &["Key", "What it does"], html! {
            @for (key, what) in others { tr { td { kbd { (key) } } td { (what) } } }
            @for (key, name) in keys() { tr { td { kbd { "g" } " " kbd { (key) } } td { "to " (name) } } }
        }))
    };
    Ok(View::new(Section::Elsewhere, "Keys", main).into_response())
}
