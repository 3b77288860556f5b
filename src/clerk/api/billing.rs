//! Owns what is read from Clerk's API about subscriptions: what a user pays for, how that stands to what is known, and the messages
//! that carry it. Promises that what was read travels as it came, and that only a whole answer ends what it does not mention.

use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{
    super::{Known, SUBSCRIPTION, billing, parse},
    Api, ApiError, PAGE_BYTES, PAGE_MAX,
    answer::{Given, object},
    request::Got,
    snapshot::{message, message_id},
};
use crate::{
    clerk::field::PayloadError,
    message::{Message, MessageId, Origin},
    rules::{
        Change,
        subscriptions::{Mention, News, Row},
    },
    time::Millis,
};

/// How long a change may take to reach every server of Clerk's, in milliseconds.
const LAG: Millis = 10_000;

/// What the API said of one payer's items.
#[derive(Clone)]
pub struct Reading {
    /// The Clerk id of the user who pays.
    pub payer: String,
    /// What it says, or why it cannot be read.
    pub news: Result<Box<News>, PayloadError>,
    /// When the request began, as [`Api::now`] tells the time.
    read_at: Millis,
    /// All that the user pays for: what it does not mention has ended.
    whole: bool,
    /// The subscription, as it came.
    data: Bytes,
}

/// A part of the list of all items.
#[derive(Clone, Debug)]
pub struct ItemsPage {
    /// What it says, by payer.
    pub readings: Vec<Reading>,
    /// The ids of its items whose payer is told, in their order.
    pub ids: Vec<String>,
    /// How many items it has.
    pub items: u64,
    /// How many of its items do not tell who pays.
    pub nameless: u64,
    /// The list goes on.
    pub more: bool,
}

impl Api {
    /// What a user pays for. `None` only where Clerk itself said that there is nothing.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn subscription(&self, clerk_id: &str) -> Result<Option<Reading>, ApiError> {
        let url = self.0.url(&["users", clerk_id, "billing", "subscription"], &[]);
        let Got { given, read_at } = self.0.get(&url, PAGE_BYTES).await?;
        let body = match given {
            Given::Nothing => return Ok(None),
            Given::TooLarge => return Err(self.too_large(PAGE_BYTES)),
            Given::Body(body) => body,
        };
        #[derive(Deserialize)]
        struct Subscription<'a> {
            #[serde(borrow)]
            subscription_items: Option<&'a RawValue>,
        }
        let strange = || self.strange("its answer is not a subscription");
        let told: Subscription<'_> = serde_json::from_slice(&body).map_err(|_| strange())?;
        // Without a list of items everything would have ended.
        if told.subscription_items.is_none_or(|items| !items.get().starts_with('[')) {
            return Err(strange());
        }
        Ok(Some(Reading::of(clerk_id.to_owned(), body, read_at, true)))
    }

    /// A page of the items that users pay for, without so many of them, the newest first.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn subscription_items(&self, offset: u64) -> Result<ItemsPage, ApiError> {
        let query = [
            ("payer_type", "user".to_owned()),
            ("limit", PAGE_MAX.to_string()),
            ("offset", offset.to_string()),
        ];
        let Got { given, read_at } =
            self.0.get(&self.0.url(&["billing", "subscription_items"], &query), PAGE_BYTES).await?;
        let body = match given {
            Given::Nothing => return Err(self.nothing()),
            Given::TooLarge => return Err(self.too_large(PAGE_BYTES)),
            Given::Body(body) => body,
        };
        #[derive(Deserialize)]
        struct List {
            data: Vec<Box<RawValue>>,
        }
        let List { data } = object(&body, self.0.host(), "a list of subscription items")?;
        let mut page = ItemsPage {
            readings: Vec::new(),
            ids: Vec::new(),
            items: data.len() as u64,
            nameless: 0,
            more: data.len() >= usize::from(PAGE_MAX),
        };
        let mut by_payer: Vec<(String, Vec<&RawValue>)> = Vec::new();
        for item in &data {
            let Some(payer) = billing::payer_of_item(Some(item)) else {
                page.nameless += 1;
                continue;
            };
            page.ids.extend(billing::id_of_item(Some(item)));
            match by_payer.iter_mut().find(|(known, _)| *known == payer) {
                Some((_, items)) => items.push(item),
                None => by_payer.push((payer, vec![item])),
            }
        }
        page.readings = by_payer
            .into_iter()
            .map(|(payer, items)| {
                let items: Vec<&str> = items.into_iter().map(RawValue::get).collect();
                let data = format!("{{\"subscription_items\":[{}]}}", items.join(","));
                Reading::of(payer, data.into(), read_at, false)
            })
            .collect();
        Ok(page)
    }
}

impl Reading {
    fn of(payer: String, data: Bytes, read_at: Millis, whole: bool) -> Self {
        let unread = PayloadError { detail: String::new() };
        let mut reading = Self { payer, news: Err(unread), read_at, whole, data };
        let message = reading.carrying("", &[]);
        let known = Known { origin: Origin::Api, ..Known::webhook(&message.id, read_at) };
        reading.news = parse(&message.body, &known).and_then(|parsed| match parsed.change {
            Change::Subscription(news) => Ok(news),
            _ => Err(PayloadError { detail: "type: expected a subscription".to_owned() }),
        });
        reading
    }

    /// The message that brings it to the table, which knew these items of the payer before the API was asked; `None` where it says
    /// nothing new, or cannot be read.
    pub fn message(&self, known: &[Row], instance: &str) -> Option<Message> {
        let news = self.news.as_ref().ok()?;
        let own = || known.iter().filter(|row| row.clerk_id == self.payer);
        let differs = news.items.iter().any(|item| is_news(item, known.iter().find(|row| row.id == item.id)));
        let unmentioned: Vec<&Row> = own()
            .filter(|row| self.whole && !row.status.is_over())
            // What has just been bought may not have reached the server that answered.
            .filter(|row| row.version.at.saturating_add(LAG) < self.read_at)
            .filter(|row| news.items.iter().all(|item| item.id != row.id))
            .collect();
        (differs || !unmentioned.is_empty()).then(|| self.carrying(instance, &unmentioned))
    }

    fn carrying(&self, instance: &str, unmentioned: &[&Row]) -> Message {
        let unmentioned: Vec<_> = unmentioned
            .iter()
            .map(|Row { id, version, .. }| {
                json!({ "id": id, "updated_at": version.at, "sent": version.sent, "message_id": version.message_id })
            })
            .collect();
        let head = json!({
            "instance_id": instance,
            "object": "event",
            "payer": self.payer,
            "timestamp": self.read_at,
            "type": SUBSCRIPTION,
            "unmentioned": unmentioned,
        });
        let mut body = head.to_string().into_bytes();
        // The closing brace comes back at the end.
        body.pop();
        body.extend_from_slice(b",\"data\":");
        body.extend_from_slice(&self.data);
        body.push(b'}');
        message(self.message_id(), SUBSCRIPTION, self.read_at, body)
    }

    fn message_id(&self) -> MessageId {
        let what = if self.whole { "subscription" } else { "items" };
        message_id(&format!("api_{}_{what}_{}", self.payer, self.read_at))
    }
}

/// Whether it is not as the table has it. What is over, or free, and not known is of no interest.
fn is_news(item: &Mention, known: Option<&Row>) -> bool {
    let Some(row) = known else { return !item.status.is_over() && item.is_default != Some(true) };
    let same = item.status == row.status
        && item.period_start == row.period_start
        && item.period_end == row.period_end
        && (item.plan.is_none() || item.plan == row.plan)
        && item.is_default.is_none_or(|is_default| is_default == row.is_default);
    // An item that tells no time of its own has that of its reading.
    let newer = item.version.at > row.version.at && item.version.at != item.version.sent;
    newer || (item.version.at >= row.version.at && !same)
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading")
            .field("payer", &self.payer)
            .field("read_at", &self.read_at)
            .field("error", &self.news.as_ref().err())
            .field("bytes", &self.data.len())
            .finish()
    }
}
