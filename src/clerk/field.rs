//! Owns reading one field of a payload: its type, its bounds, and an error that names it. Promises that no error ever
//! holds a value of the payload. Never decides what a field means.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{error::Category, value::RawValue};

use super::json::{self, repair};
use crate::time::Millis;

/// The longest text field, in bytes.
pub(super) const TEXT_MAX: usize = 64 * 1024;

/// The earliest time: the beginning of the year 1, ...
pub(super) const TIME_MIN: Millis = -62_135_596_800_000;
/// ... and the latest: the end of the year 9999. Both databases hold what is between.
pub(super) const TIME_MAX: Millis = 253_402_300_799_999;

/// A time this close to the epoch is in seconds: Clerk's published samples have them, its deliveries have milliseconds.
const SECONDS_BELOW: u64 = 100_000_000_000;

/// A body that cannot be what its type says. The reason code is always `invalid_payload`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct PayloadError {
    /// Names the field and what is wrong with it; short, and never a value from the body.
    pub detail: String,
}

/// Where a field stands, written out only for an error: `data.email_addresses[1].id`.
#[derive(Clone, Copy)]
pub(super) struct Path {
    head: &'static str,
    element: Option<(usize, &'static str)>,
}

impl Path {
    pub(super) fn of(head: &'static str) -> Self {
        Self { head, element: None }
    }

    /// `head[index]tail`
    pub(super) fn element(head: &'static str, index: usize, tail: &'static str) -> Self {
        Self { head, element: Some((index, tail)) }
    }

    pub(super) fn error(self, problem: impl fmt::Display) -> PayloadError {
        PayloadError { detail: format!("{self}: {problem}") }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.head)?;
        match self.element {
            Some((index, tail)) => write!(f, "[{index}]{tail}"),
            None => Ok(()),
        }
    }
}

/// The fields of an object that are read, each as it stands in the body.
macro_rules! fields {
    ($(#[$doc:meta])* $visible:vis $name:ident { $($field:ident),* }) => {
        $(#[$doc])*
        #[derive(serde::Deserialize)]
        $visible struct $name<'a> {
            $(#[serde(borrow)] $field: $crate::clerk::field::Raw<'a>),*
        }
    };
}
pub(super) use fields;

/// A field as it stands in the body; `None` where it is missing or null, which mean the same.
pub(super) type Raw<'a> = Option<&'a RawValue>;

/// A field and its place.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    path: Path,
    raw: Raw<'a>,
}

impl<'a> Field<'a> {
    pub(super) fn new(path: Path, raw: Raw<'a>) -> Self {
        Self { path, raw }
    }

    pub(super) fn at(head: &'static str, raw: Raw<'a>) -> Self {
        Self::new(Path::of(head), raw)
    }

    pub(super) fn error(&self, problem: impl fmt::Display) -> PayloadError {
        self.path.error(problem)
    }

    fn unexpected(&self, expected: &str, raw: &RawValue) -> PayloadError {
        self.error(format_args!("expected {expected}, found {}", kind(raw)))
    }

    /// A string of any length, with what databases refuse replaced.
    pub(super) fn any_text(&self) -> Result<Option<Cow<'a, str>>, PayloadError> {
        let Some(raw) = self.raw else { return Ok(None) };
        let Some(inner) = raw.get().strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
            return Err(self.unexpected("a string", raw));
        };
        if !inner.contains('\\') {
            return Ok(Some(Cow::Borrowed(inner)));
        }
        let decoded: String =
            serde_json::from_str(&repair(raw.get())).map_err(|error| self.error(problem(&error)))?;
        Ok(Some(Cow::Owned(decoded)))
    }

    /// A string of at most [`TEXT_MAX`] bytes, with what databases refuse replaced.
    pub(super) fn text(&self) -> Result<Option<Cow<'a, str>>, PayloadError> {
        let text = self.any_text()?;
        match &text {
            Some(text) if text.len() > TEXT_MAX => {
                Err(self.error(format_args!("longer than {TEXT_MAX} bytes")))
            }
            _ => Ok(text),
        }
    }

    /// A string that rows are found by: 1 to `max` bytes, taken unchanged or refused.
    pub(super) fn name(&self, max: usize) -> Result<Option<Cow<'a, str>>, PayloadError> {
        let Some(text) = self.any_text()? else { return Ok(None) };
        let repaired = || self.raw.is_some_and(|raw| matches!(repair(raw.get()), Cow::Owned(_)));
        if text.is_empty() {
            Err(self.error("empty"))
        } else if text.len() > max {
            Err(self.error(format_args!("longer than {max} bytes")))
        } else if text.chars().any(char::is_control) || repaired() {
            Err(self.error("holds a control character or half a surrogate pair"))
        } else {
            Ok(Some(text))
        }
    }

    /// A time, written in milliseconds or seconds since the epoch.
    pub(super) fn time(&self) -> Result<Option<Millis>, PayloadError> {
        let Some(raw) = self.raw else { return Ok(None) };
        if kind(raw) != "a number" {
            return Err(self.unexpected("a time", raw));
        }
        let time =
            whole(raw.get()).map(|time| if time.unsigned_abs() < SECONDS_BELOW { time * 1000 } else { time });
        match time {
            Some(time) if (TIME_MIN..=TIME_MAX).contains(&time) => Ok(Some(time)),
            _ => Err(self.error("expected a whole number of milliseconds, in the years 1 to 9999")),
        }
    }

    /// A whole number.
    pub(super) fn number(&self) -> Result<Option<i64>, PayloadError> {
        let Some(raw) = self.raw else { return Ok(None) };
        whole(raw.get()).map(Some).ok_or_else(|| self.unexpected("a whole number", raw))
    }

    /// `true` or `false`.
    pub(super) fn flag(&self) -> Result<Option<bool>, PayloadError> {
        match self.raw.map(|raw| (raw, raw.get())) {
            None => Ok(None),
            Some((_, "true")) => Ok(Some(true)),
            Some((_, "false")) => Ok(Some(false)),
            Some((raw, _)) => Err(self.unexpected("true or false", raw)),
        }
    }

    /// An object's fields. `T` holds nothing but [`Raw`]: so the only data error that serde can meet is a duplicate.
    pub(super) fn object<T: Deserialize<'a>>(&self) -> Result<Option<T>, PayloadError> {
        let Some(raw) = self.raw else { return Ok(None) };
        if kind(raw) != "an object" {
            return Err(self.unexpected("an object", raw));
        }
        serde_json::from_str(raw.get()).map(Some).map_err(|error| self.error(problem(&error)))
    }

    /// An array's elements.
    pub(super) fn array(&self) -> Result<Vec<&'a RawValue>, PayloadError> {
        let Some(raw) = self.raw else { return Ok(Vec::new()) };
        if kind(raw) != "an array" {
            return Err(self.unexpected("an array", raw));
        }
        serde_json::from_str(raw.get()).map_err(|error| self.error(problem(&error)))
    }

    /// A JSON object kept as text: its keys and numbers as they were written, with what databases refuse replaced.
    pub(super) fn document(&self) -> Result<Option<String>, PayloadError> {
        let Some(raw) = self.raw else { return Ok(None) };
        if kind(raw) != "an object" {
            return Err(self.unexpected("an object", raw));
        }
        json::check(raw.get()).map_err(|problem| self.error(problem))?;
        Ok(Some(repair(raw.get()).into_owned()))
    }

    /// The same, but null where it is no object or no database can hold it.
    pub(super) fn document_or_null(&self) -> Option<String> {
        self.document().unwrap_or_default()
    }
}

/// The whole body as fields, in one pass where it is an object.
pub(super) fn body<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, PayloadError> {
    let path = Path::of("body");
    let text = std::str::from_utf8(without_mark(body)).map_err(|_| path.error("not UTF-8"))?;
    let not_json = |error: serde_json::Error| path.error(problem(&error));
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(not_json);
    }
    let raw: &RawValue = serde_json::from_str(text).map_err(not_json)?;
    Err(path.error(format_args!("expected an object, found {}", kind(raw))))
}

/// Fields of an object, and of nothing else: derived code takes an array for one as well.
pub(super) fn of_object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<T, D::Error> {
    struct OfObject<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for OfObject<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }
    value.deserialize_map(OfObject(PhantomData))
}

/// A body without the byte order mark that some senders put in front of it.
fn without_mark(body: &[u8]) -> &[u8] {
    body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body)
}

/// Serde's error without anything of the body. Its syntax errors are fixed texts and a place. Its data errors can quote
/// the body: of those only the name of a duplicate field is passed on, which is one of ours.
fn problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match error.classify() {
        Category::Syntax | Category::Eof | Category::Io => format!("not JSON: {text}"),
        Category::Data => match text.split('`').nth(1) {
            Some(name) if text.starts_with("duplicate field") => format!("duplicate field {name}"),
            _ => "malformed".into(),
        },
    }
}

/// The JSON type, for people.
fn kind(raw: &RawValue) -> &'static str {
    match raw.get().bytes().next() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') | None => "null",
        Some(_) => "a number",
    }
}

/// A whole number, also one written as `1716883200000.0` or `1.7e12`.
fn whole(number: &str) -> Option<i64> {
    if let Ok(whole) = number.parse() {
        return Some(whole);
    }
    if let Some((whole, fraction)) = number.split_once('.')
        && fraction.bytes().all(|digit| digit == b'0')
    {
        return whole.parse().ok();
    }
    let float: f64 = number.contains(['e', 'E']).then(|| number.parse().ok()).flatten()?;
    // Below 2^53 a float that is whole is exactly what was written.
    (float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0).then_some(float as i64)
}
