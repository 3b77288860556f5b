//! Owns which users a list holds: its parameters, as Clerk documents them, and what is refused. Pure. Never renders a user.

use std::{ops::Bound, sync::Arc};

use url::form_urlencoded;

use super::{
    faults::Cursor,
    world::{By, Index, Orders, Place},
};
use crate::time::Millis;

/// The most values of a filter that may be repeated.
const VALUES_MAX: usize = 100;

/// A parameter that is refused, and Clerk's kind of words for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) parameter: &'static str,
    pub(super) words: &'static str,
}

fn refused<T>(parameter: &'static str, words: &'static str) -> Result<T, Refusal> {
    Err(Refusal { parameter, words })
}

/// The parameters of a list.
#[derive(Debug)]
pub(super) struct Listing {
    by: By,
    descending: bool,
    limit: usize,
    offset: Option<usize>,
    after: Option<String>,
    created_after: Option<Millis>,
    created_before: Option<Millis>,
    ids: Vec<String>,
    /// In lower case.
    addresses: Vec<String>,
}

impl Listing {
    /// Reads a query. Parameters that the stand-in does not know are ignored.
    pub(super) fn read(query: &str) -> Result<Self, Refusal> {
        let mut listing = Self {
            by: By::Creation,
            descending: true,
            limit: 10,
            offset: None,
            after: None,
            created_after: None,
            created_before: None,
            ids: Vec::new(),
            addresses: Vec::new(),
        };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "order_by" => (listing.by, listing.descending) = order(&value)?,
                "limit" => match value.parse() {
                    Ok(limit @ 1..=500) => listing.limit = limit,
                    _ => return refused("limit", "must be between 1 and 500"),
                },
                "offset" => match value.parse() {
                    Ok(offset) => listing.offset = Some(offset),
                    Err(_) => return refused("offset", "must be a whole number, 0 or more"),
                },
                "starting_after" => listing.after = Some(value.into_owned()),
                "created_at_after" => match value.parse() {
                    Ok(time) => listing.created_after = Some(time),
                    Err(_) => return refused("created_at_after", "must be a time in milliseconds"),
                },
                "created_at_before" => match value.parse() {
                    Ok(time) => listing.created_before = Some(time),
                    Err(_) => return refused("created_at_before", "must be a time in milliseconds"),
                },
                "user_id" => listing.ids.push(value.into_owned()),
                "email_address" => listing.addresses.push(value.trim_start_matches('+').to_lowercase()),
                _ => {}
            }
        }
        if listing.ids.len() > VALUES_MAX {
            return refused("user_id", "may be repeated 100 times");
        }
        if listing.addresses.len() > VALUES_MAX {
            return refused("email_address", "may be repeated 100 times");
        }
        if listing.after.is_some() && listing.by != By::Creation {
            return refused("starting_after", "starting_after cannot be combined with this order_by");
        }
        if listing.after.is_some() && listing.offset.is_some() {
            return refused("starting_after", "starting_after cannot be combined with offset");
        }
        Ok(listing)
    }

    /// The ids of the page.
    pub(super) fn page(&self, orders: &Orders<'_>, cursor: Cursor) -> Result<Vec<Arc<str>>, Refusal> {
        let after = match (&self.after, cursor) {
            (Some(_), Cursor::Refused) => return refused("starting_after", "is not a known parameter"),
            (None, _) | (_, Cursor::Ignored) => None,
            (Some(id), Cursor::AsDocumented) => match orders.place(By::Creation, id) {
                Some(place) => Some(place),
                None => return refused("starting_after", "is not the id of a user"),
            },
        };
        let offset = self.offset.unwrap_or_default();
        Ok(self.find(orders, after, |found| found.skip(offset).take(self.limit).cloned().collect()))
    }

    /// How many users match, whatever the page.
    pub(super) fn count(&self, orders: &Orders<'_>) -> usize {
        self.find(orders, None, |found| found.count())
    }

    /// Gives `see` those who match, in order, behind the place `after`.
    fn find<T>(
        &self,
        orders: &Orders<'_>,
        after: Option<Place>,
        see: impl FnOnce(&mut dyn Iterator<Item = &Arc<str>>) -> T,
    ) -> T {
        let picked: Index = self.ids.iter().filter_map(|id| orders.place(self.by, id)).collect();
        let index = if self.ids.is_empty() { orders.index(self.by) } else { &picked };
        let (mut from, mut to) = (Bound::Unbounded, Bound::Unbounded);
        match after {
            Some(place) if self.descending => to = Bound::Excluded(place),
            Some(place) => from = Bound::Excluded(place),
            // Without a cursor the times bound the range as well; with one it is near enough to look at each user.
            None if self.by == By::Creation => {
                let at = |time| Bound::Included((time, Arc::from("")));
                from = self.created_after.map_or(Bound::Unbounded, at);
            }
            None => {}
        }
        let fits = |id: &Arc<str>| {
            let created_at = orders.place(By::Creation, id).map_or(Millis::MIN, |(time, _)| time);
            self.created_after.is_none_or(|after| created_at > after)
                && self.created_before.is_none_or(|before| created_at < before)
                && (self.addresses.is_empty() || orders.has_address(id, &self.addresses))
        };
        let filtered =
            self.created_after.is_some() || self.created_before.is_some() || !self.addresses.is_empty();
        let range = index.range((from, to)).map(|(_, id)| id).filter(|id| !filtered || fits(id));
        if self.descending { see(&mut range.rev()) } else { see(&mut { range }) }
    }
}

/// A value of `order_by`. An unsigned one ascends.
fn order(value: &str) -> Result<(By, bool), Refusal> {
    let (descending, field) = match value.split_at_checked(1) {
        Some(("-", field)) => (true, field),
        Some(("+", field)) => (false, field),
        _ => (false, value),
    };
    match field {
        "created_at" => Ok((By::Creation, descending)),
        "updated_at" => Ok((By::Change, descending)),
        _ => refused("order_by", "the stand-in lists by created_at and updated_at only"),
    }
}
