//! Owns a letter written out whole: for `show --json`, for the export and for the API. Nothing is left out, and a body
//! that is no text travels as base64.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::select::cursor;
use crate::store::{
    StoreError,
    letters::{Filter, HistoryEntry, Letter, LetterDetail, Letters, Page},
};

/// Letters read at a time.
const PAGE: u32 = 100;

/// A letter, whole, as JSON.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Whole {
    /// As in a listing.
    #[serde(flatten)]
    pub letter: Letter,
    /// A listing goes on after this letter with it.
    pub cursor: String,
    /// Of the message.
    pub headers: BTreeMap<String, String>,
    /// What a replay publishes.
    pub body: String,
    /// How `body` is written.
    pub encoding: Encoding,
    /// What happened to it, oldest first.
    pub history: Vec<HistoryEntry>,
}

/// How a body is written as text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub enum Encoding {
    /// As it is.
    #[default]
    #[serde(rename = "utf-8")]
    Utf8,
    /// Bytes that are no text.
    #[serde(rename = "base64")]
    Base64,
}

impl Encoding {
    /// The bytes.
    ///
    /// # Errors
    /// The text is no base64 where it has to be.
    pub fn decode(self, body: String) -> Result<Vec<u8>, base64::DecodeError> {
        match self {
            Self::Utf8 => Ok(body.into_bytes()),
            Self::Base64 => STANDARD.decode(body),
        }
    }
}

impl From<LetterDetail> for Whole {
    fn from(detail: LetterDetail) -> Self {
        let (body, encoding) = match std::str::from_utf8(&detail.body) {
            Ok(text) => (text.to_owned(), Encoding::Utf8),
            Err(_) => (STANDARD.encode(&detail.body), Encoding::Base64),
        };
        let cursor = cursor(&detail.letter);
        Self {
            cursor,
            letter: detail.letter,
            headers: detail.headers,
            body,
            encoding,
            history: detail.history,
        }
    }
}

/// Reads letters whole, page by page, the last to die first.
pub struct Export {
    letters: Arc<dyn Letters>,
    filter: Filter,
    page: Page,
    left: u64,
}

impl Export {
    /// Of what the filter selects, at most `limit`, after the letter of `page`'s cursor.
    pub fn new(
        letters: Arc<dyn Letters>,
        filter: Filter,
        after: Option<(crate::time::Millis, uuid::Uuid)>,
        limit: u64,
    ) -> Self {
        Self { letters, filter, page: Page { limit: PAGE, after }, left: limit }
    }

    /// The next letters; empty at the end.
    ///
    /// # Errors
    /// What the database says.
    pub async fn next(&mut self) -> Result<Vec<Whole>, StoreError> {
        if self.left == 0 {
            return Ok(Vec::new());
        }
        self.page.limit = u32::try_from(self.left).map_or(PAGE, |left| left.min(PAGE));
        let listed = self.letters.list(&self.filter, &self.page).await?;
        let mut whole = Vec::with_capacity(listed.len());
        for letter in listed {
            // Gone meanwhile, past its retention: nothing to write out.
            if let Some(detail) = self.letters.show(&letter.id.to_string()).await? {
                whole.push(Whole::from(detail));
            }
        }
        self.left = self.left.saturating_sub(whole.len() as u64);
        match whole.last() {
            Some(last) => self.page.after = super::select::parse_cursor(&last.cursor).ok(),
            None => self.left = 0,
        }
        Ok(whole)
    }
}
