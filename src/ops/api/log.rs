//! Owns the route that shows what people did.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use http::StatusCode;
use serde::Serialize;

use super::{Api, json, problem::Problem, request::Query};
use crate::{
    letters::{
        operations::log::{Entry, Wanted},
        select::parse_time,
    },
    store::operations::LogPage,
    time::now,
};

#[derive(Serialize)]
struct Listed {
    operations: Vec<Entry>,
    next: Option<String>,
}

pub(super) async fn read(State(api): State<Arc<Api>>, mut query: Query) -> Result<Response, Problem> {
    let limit = query.number("limit", 50, 1000)? as u32;
    let wanted = Wanted {
        kind: query.take("kind"),
        who: query.take("who"),
        since: query.take("since").map(|since| parse_time(&since, now())).transpose()?,
        after: query.take("cursor"),
    };
    query.end()?;
    let (filter, after) = wanted.read()?;
    let page = LogPage { limit, after };
    let rows = api.ask(|store| async move { store.operations(&filter, &page).await }).await?;
    let next = rows.last().filter(|_| rows.len() == limit as usize).map(|row| Entry::cursor(&row.place()));
    Ok(json(StatusCode::OK, &Listed { operations: rows.into_iter().map(Entry::from).collect(), next }))
}
