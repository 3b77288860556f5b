//! Owns the signature check: which headers count, which clock skew is borne, and that only what was signed with one
//! of our secrets becomes a [`Verified`].
//!
//! Pure: the time is an argument. Shapes and times are checked before any HMAC is computed. Never looks inside the
//! body, and never puts a value of a request into an error.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hmac_sha256::HMAC;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use svix::webhooks::Webhook;

use crate::{
    config::{ConfigError, Secret},
    message::{MessageId, Millis},
};

/// How far a signature's time may be off, either way, in seconds: Svix's own tolerance.
pub const TOLERANCE_SECONDS: i64 = 300;

/// The two names that the signature's headers go by (id, timestamp, signature): Svix's, and Standard Webhooks', which
/// its white-label senders use. A full set of one of them counts; Svix's goes first where both are there.
const FAMILIES: [[HeaderName; 3]; 2] = [
    [
        HeaderName::from_static("svix-id"),
        HeaderName::from_static("svix-timestamp"),
        HeaderName::from_static("svix-signature"),
    ],
    [
        HeaderName::from_static("webhook-id"),
        HeaderName::from_static("webhook-timestamp"),
        HeaderName::from_static("webhook-signature"),
    ],
];

/// Why a request was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// There is no full set of signature headers; a blank one counts as missing.
    MissingHeader,
    /// A signature header is there twice, or is no plain text.
    MalformedHeader,
    /// The timestamp is no whole number of seconds.
    MalformedTimestamp,
    /// The message id is too long, or holds what an id does not hold.
    MalformedId,
    /// The timestamp is more than [`TOLERANCE_SECONDS`] off.
    TimestampOutOfRange,
    /// No `v1` signature fits the id, the timestamp and the body.
    NoMatchingSignature,
}

impl Rejection {
    /// Every rejection.
    pub const ALL: [Self; 6] = [
        Self::MissingHeader,
        Self::MalformedHeader,
        Self::MalformedTimestamp,
        Self::MalformedId,
        Self::TimestampOutOfRange,
        Self::NoMatchingSignature,
    ];

    /// The stable code: in answers and logs.
    pub fn code(self) -> &'static str {
        match self {
            Self::MissingHeader => "missing_signature_header",
            Self::MalformedHeader => "malformed_signature_header",
            Self::MalformedTimestamp => "malformed_timestamp",
            Self::MalformedId => "malformed_id",
            Self::TimestampOutOfRange => "timestamp_out_of_range",
            Self::NoMatchingSignature => "no_matching_signature",
        }
    }

    /// For the sender, and for people who look for what is wrong.
    pub fn message(self) -> &'static str {
        match self {
            Self::MissingHeader => {
                "svix-id, svix-timestamp and svix-signature (or webhook-id, -timestamp and -signature) are needed"
            }
            Self::MalformedHeader => "a signature header is repeated or is not plain text",
            Self::MalformedTimestamp => "the timestamp has to be a whole number of seconds since 1970",
            Self::MalformedId => "the message id has to be 1 to 255 letters, digits and ._:~+/=@-",
            Self::TimestampOutOfRange => {
                "the timestamp is more than 300 s off: check the clocks of the sender and of this machine"
            }
            Self::NoMatchingSignature => {
                "no v1 signature matches: check that CLERK_WEBHOOK_SIGNING_SECRET is this endpoint's secret and that \
                 nothing on the way changes the body"
            }
        }
    }

    /// What it is answered with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::MissingHeader | Self::MalformedHeader | Self::MalformedTimestamp | Self::MalformedId => {
                StatusCode::BAD_REQUEST
            }
            Self::TimestampOutOfRange | Self::NoMatchingSignature => StatusCode::UNAUTHORIZED,
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for Rejection {}

/// A webhook that was signed with one of our secrets. Only [`Verifier`] makes one.
pub struct Verified {
    id: MessageId,
    body: Bytes,
}

impl Verified {
    /// The sender's id.
    pub fn id(&self) -> &MessageId {
        &self.id
    }

    /// The raw bytes that were signed.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Both, to be sent on.
    pub fn into_parts(self) -> (MessageId, Bytes) {
        (self.id, self.body)
    }
}

impl fmt::Debug for Verified {
    // The body is personal: it is never printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified").field("id", &self.id).field("bytes", &self.body.len()).finish()
    }
}

/// The signature headers of a request, of the right shape and time: worth reading its body for.
pub struct SignedHeaders {
    id: MessageId,
    timestamp: i64,
    signatures: String,
}

impl SignedHeaders {
    /// Takes them from a request.
    ///
    /// # Errors
    /// Every [`Rejection`] that can be told without the body.
    pub fn read(headers: &HeaderMap, now: Millis) -> Result<Self, Rejection> {
        for [id, timestamp, signatures] in &FAMILIES {
            let (Some(id), Some(timestamp), Some(signatures)) =
                (single(headers, id)?, single(headers, timestamp)?, single(headers, signatures)?)
            else {
                continue;
            };
            let timestamp = seconds(timestamp).ok_or(Rejection::MalformedTimestamp)?;
            let id = MessageId::parse(id).ok_or(Rejection::MalformedId)?;
            // Both inclusive, as Svix has it; a timestamp is never negative, so nothing overflows.
            if now.div_euclid(1000).abs_diff(timestamp) > TOLERANCE_SECONDS.unsigned_abs() {
                return Err(Rejection::TimestampOutOfRange);
            }
            return Ok(Self { id, timestamp, signatures: signatures.to_owned() });
        }
        Err(Rejection::MissingHeader)
    }
}

/// A header's one value, trimmed; `None` where it is missing or blank.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Rejection> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Rejection::MalformedHeader);
    }
    let text = value.to_str().map_err(|_| Rejection::MalformedHeader)?.trim();
    Ok((!text.is_empty()).then_some(text))
}

/// Digits as they were signed: no sign, no leading zero.
fn seconds(text: &str) -> Option<i64> {
    let number: i64 = text.parse().ok()?;
    (number >= 0 && number.to_string() == text).then_some(number)
}

/// Checks signatures with any of several secrets.
pub struct Verifier {
    keys: Vec<Key>,
}

struct Key {
    svix: Webhook,
    bytes: Vec<u8>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("keys", &self.keys.len()).finish()
    }
}

impl Verifier {
    /// Takes one or more `whsec_…`: during a rotation the old and the new one.
    ///
    /// # Errors
    /// Where there is none, or one is not a secret.
    pub fn new(secrets: &[Secret]) -> Result<Self, ConfigError> {
        let hint = "copy it from the endpoint's page in the Clerk dashboard; it starts with whsec_";
        let error = |message: String| ConfigError { message, hint: hint.into() };
        if secrets.is_empty() {
            return Err(error("CLERK_WEBHOOK_SIGNING_SECRET is not set".into()));
        }
        let keys = secrets.iter().enumerate().map(|(index, secret)| {
            let secret = secret.expose();
            let bytes = STANDARD.decode(secret.strip_prefix("whsec_").unwrap_or(secret)).ok();
            bytes.zip(Webhook::new(secret).ok()).map(|(bytes, svix)| Key { svix, bytes }).ok_or_else(|| {
                error(format!("CLERK_WEBHOOK_SIGNING_SECRET: value {} is not a signing secret", index + 1))
            })
        });
        Ok(Self { keys: keys.collect::<Result<_, _>>()? })
    }

    /// Checks a request whose body is at hand.
    ///
    /// # Errors
    /// Why it is turned away.
    pub fn verify(&self, headers: &HeaderMap, body: Bytes, now: Millis) -> Result<Verified, Rejection> {
        self.verify_body(SignedHeaders::read(headers, now)?, body)
    }

    /// Checks the body that came with headers which were found to be in order before it was read.
    ///
    /// # Errors
    /// [`Rejection::NoMatchingSignature`]
    pub fn verify_body(&self, headers: SignedHeaders, body: Bytes) -> Result<Verified, Rejection> {
        let matches = if std::str::from_utf8(&body).is_ok() {
            let canonical = headers.canonical()?;
            // The tolerance was applied to our `now` already.
            self.keys.iter().any(|key| key.svix.verify_ignoring_timestamp(&body, &canonical).is_ok())
        } else {
            // Svix's implementation refuses such bodies, though the sender can sign them.
            self.keys.iter().any(|key| key.signed_raw(&headers, &body))
        };
        if matches { Ok(Verified { id: headers.id, body }) } else { Err(Rejection::NoMatchingSignature) }
    }
}

impl SignedHeaders {
    /// As one family and nothing else, so that what was checked here is what is verified.
    fn canonical(&self) -> Result<HeaderMap, Rejection> {
        let [id, timestamp, signatures] = &FAMILIES[0];
        let value = |text: &str| HeaderValue::from_str(text).map_err(|_| Rejection::MalformedHeader);
        Ok(HeaderMap::from_iter([
            (id.clone(), value(self.id.as_str())?),
            (timestamp.clone(), HeaderValue::from(self.timestamp)),
            (signatures.clone(), value(&self.signatures)?),
        ]))
    }
}

impl Key {
    /// The same check over bytes that are not UTF-8. One HMAC, however long the list of signatures is.
    fn signed_raw(&self, headers: &SignedHeaders, body: &[u8]) -> bool {
        let mut mac = HMAC::new(&self.bytes);
        mac.update(format!("{}.{}.", headers.id, headers.timestamp));
        mac.update(body);
        let expected = STANDARD.encode(mac.finalize());
        let given = headers.signatures.split(' ').filter_map(|part| part.strip_prefix("v1,"));
        given.filter(|given| same(given.as_bytes(), expected.as_bytes())).count() > 0
    }
}

/// Whether two texts are the same, in a time that tells nothing but their lengths.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}
