//! Owns the signature: which headers carry it, which clock skew is borne, what signing is, and that only a body signed
//! with one of our secrets becomes a [`Verified`].
//!
//! Pure: the time is an argument. Shapes and times are checked before any HMAC is computed. Never looks inside the
//! body, and never puts a value of a request into an error.

use std::fmt;

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use svix::webhooks::Webhook;

use super::secret::{self, WrongSecret};
use crate::{message::MessageId, secret::Secret, time::Millis};

/// How far a signature's time may be off, either way, in seconds: Svix's own tolerance.
pub const TOLERANCE_SECONDS: i64 = 300;

/// The two names that the signature's headers go by (id, timestamp, signature): Svix's, and Standard Webhooks', which
/// its white-label senders use. A full set of one of them counts; Svix's goes first where both are there.
const HEADER_SETS: [[HeaderName; 3]; 2] = [
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

/// Whether a request claims to be a signed webhook: a full set of the headers is there, whatever they hold.
pub fn is_claimed(headers: &HeaderMap) -> bool {
    HEADER_SETS.iter().any(|family| family.iter().all(|name| headers.contains_key(name)))
}

/// One signing secret, ready to sign and to check.
pub struct Key {
    svix: Webhook,
    /// The same secret, for the processor's own SHA instructions.
    hmac: hmac::Key,
}

impl Key {
    /// Takes a `whsec_…`.
    ///
    /// # Errors
    /// It is no signing secret.
    pub fn new(secret: &Secret) -> Result<Self, WrongSecret> {
        let bytes = secret::bytes(secret).ok_or(WrongSecret::UNREADABLE)?;
        let hmac = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
        let svix = Webhook::from_bytes(bytes).map_err(|_| WrongSecret::UNREADABLE)?;
        Ok(Self { svix, hmac })
    }

    /// The headers that Svix sends with this body: id, timestamp (in seconds) and signature.
    pub fn headers(&self, id: &str, timestamp: i64, body: &[u8]) -> [(HeaderName, String); 3] {
        let [id_name, timestamp_name, signature_name] = HEADER_SETS[0].clone();
        [
            (id_name, id.to_owned()),
            (timestamp_name, timestamp.to_string()),
            (signature_name, self.sign(id, timestamp, body)),
        ]
    }

    /// `v1,…`, as Svix signs. Its own implementation takes UTF-8 only, but a sender can sign any bytes.
    fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let svix = self.svix.sign(id, timestamp, body);
        svix.unwrap_or_else(|_| format!("v1,{}", STANDARD.encode(self.tag(id, timestamp, body))))
    }

    /// The HMAC over `id.timestamp.body`.
    fn tag(&self, id: &str, timestamp: i64, body: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.hmac);
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body);
        context.sign()
    }

    /// Whether one of the signatures is ours. One HMAC, however long the list is.
    fn signed(&self, headers: &SignedHeaders, body: &[u8]) -> bool {
        let ours = STANDARD.encode(self.tag(headers.id.as_str(), headers.timestamp, body));
        let given = headers.signatures.split(' ').filter_map(|given| given.strip_prefix("v1,"));
        given.filter(|given| same(given.as_bytes(), ours.as_bytes())).count() > 0
    }
}

/// Whether two texts are the same, in a time that tells nothing but their lengths.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// Why a request is not taken for a signed webhook.
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

    /// The stable code: in answers, logs and samples.
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

    /// For the sender, and for people who look for the cause.
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
}

/// A webhook that was signed with one of our secrets. Only [`Verifier`] makes one.
pub struct Verified {
    id: MessageId,
    body: Bytes,
}

impl Verified {
    /// The sender's id, and the raw bytes that were signed.
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
        for [id, timestamp, signatures] in &HEADER_SETS {
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

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("keys", &self.keys.len()).finish()
    }
}

impl Verifier {
    /// Takes one or more `whsec_…`: during a rotation the old and the new one.
    ///
    /// # Errors
    /// There is none, or one of them is no signing secret.
    pub fn new(secrets: &[Secret]) -> Result<Self, WrongSecret> {
        if secrets.is_empty() {
            return Err(WrongSecret::MISSING);
        }
        Ok(Self { keys: secrets.iter().map(Key::new).collect::<Result<_, _>>()? })
    }

    /// Checks the body that came with these headers.
    ///
    /// # Errors
    /// [`Rejection::NoMatchingSignature`]
    pub fn verify(&self, headers: SignedHeaders, body: Bytes) -> Result<Verified, Rejection> {
        match self.keys.iter().any(|key| key.signed(&headers, &body)) {
            true => Ok(Verified { id: headers.id, body }),
            false => Err(Rejection::NoMatchingSignature),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// Published with Svix's and Standard Webhooks' libraries: secret, id, seconds, body, signature.
    const PUBLISHED: [(&str, &str, i64, &str, &str); 3] = [
        (
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ),
        (
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
            "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
            1_649_367_553,
            r#"{"email":"test@example.com","username":"test_user"}"#,
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
        ),
        (
            "whsec_plJ3nmyCDGBKInavdOK15jsl",
            "msg_loFOjxBNrRLzqYUf",
            1_731_705_121,
            r#"{"event_type":"ping","data":{"success":true}}"#,
            "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0=",
        ),
    ];
    /// The asymmetric signature of the first: another version, which we skip.
    const ASYMMETRIC: &str =
        "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==";
    const OTHER: &str = "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc=";
    const SVIX: [&str; 3] = ["svix-id", "svix-timestamp", "svix-signature"];
    const WHITE_LABEL: [&str; 3] = ["webhook-id", "webhook-timestamp", "webhook-signature"];

    impl Verifier {
        fn check(&self, headers: &HeaderMap, body: Bytes, now: Millis) -> Result<Verified, Rejection> {
            self.verify(SignedHeaders::read(headers, now)?, body)
        }
    }

    fn verifier(secrets: &[&str]) -> Verifier {
        Verifier::new(&secrets.iter().copied().map(Secret::new).collect::<Vec<_>>()).unwrap()
    }

    fn headers(names: [&'static str; 3], values: [&str; 3]) -> HeaderMap {
        let values = values.map(|value| HeaderValue::from_bytes(value.as_bytes()).unwrap());
        names.into_iter().map(HeaderName::from_static).zip(values).collect()
    }

    /// The first published vector with another id, time, signatures or body; `now` is its own time.
    fn check(values: [&str; 3], body: &str) -> Result<MessageId, Rejection> {
        let (secret, _, at, ..) = PUBLISHED[0];
        let body = Bytes::copy_from_slice(body.as_bytes());
        verifier(&[secret])
            .check(&headers(SVIX, values), body, at * 1000)
            .map(|verified| verified.into_parts().0)
    }

    #[test]
    fn published_vectors_verify_under_both_header_names() {
        for (secret, id, at, body, signature) in PUBLISHED {
            for names in [SVIX, WHITE_LABEL] {
                let headers = headers(names, [id, &at.to_string(), signature]);
                let verified = verifier(&[secret]).check(&headers, Bytes::from(body), at * 1000).unwrap();
                assert_eq!((verified.id.as_str(), &verified.body[..]), (id, body.as_bytes()));
            }
        }
    }

    #[test]
    fn large_bodies_verify() {
        let (secret, id, at, ..) = PUBLISHED[0];
        for (length, signature) in [
            (262_143, "v1,NTItnqyWMoFhk2Bbe5V/BMdcFRWgcSQaTgqLHX7FC7c="),
            (262_144, "v1,Mw4Pe2WgApuT7NSqnSq0PQPV9gbLdggCl9B865x5Xh0="),
            (1_048_576, "v1,txpEUxqWZJ5nteTnymUVa+7C4NHpBeXJ6CsBAW0c3/A="),
        ] {
            let headers = headers(SVIX, [id, &at.to_string(), signature]);
            verifier(&[secret]).check(&headers, Bytes::from(vec![b'a'; length]), at * 1000).unwrap();
        }
    }

    #[test]
    fn any_v1_signature_of_a_list_is_enough_and_other_versions_never_count() {
        let (_, id, at, body, good) = PUBLISHED[0];
        let at = at.to_string();
        let bytes = good.strip_prefix("v1,").unwrap();
        let v2 = OTHER.replace("v1,", "v2,");
        for list in [
            good.to_owned(),
            format!("{OTHER} {v2} {good} {OTHER}"),
            format!("{ASYMMETRIC} {good}"),
            format!("garbage , v1 {good}"),
            format!("  {good}  "),
        ] {
            assert!(check([id, &at, &list], body).is_ok(), "{list}");
        }
        for list in [
            OTHER.to_owned(),
            format!("{OTHER} {v2} {OTHER}"),
            ASYMMETRIC.to_owned(),
            format!("v1a,{bytes}"),
            format!("v2,{bytes}"),
            format!("V1,{bytes}"),
            format!("v1, {bytes}"),
            format!("v1,{}", bytes.trim_end_matches('=')),
            format!("{OTHER},{good}"),
            bytes.to_owned(),
            "v1,".to_owned(),
            good[..8].to_owned(),
            "v1,R3PTzyfHASBKHH98a7yexTwaJ4yNIcGhFQc1yuN+BPU=".to_owned(),
        ] {
            assert_eq!(check([id, &at, &list], body), Err(Rejection::NoMatchingSignature), "{list}");
        }
    }

    #[test]
    fn what_was_signed_cannot_be_changed() {
        let (_, id, at, body, good) = PUBLISHED[0];
        let (now, later) = (at.to_string(), (at + 1).to_string());
        let tampered = [
            (["msg_another", &now, good], body),
            ([id, &later, good], body),
            ([id, &now, good], r#"{"test": 2432232315}"#),
            ([id, &now, good], ""),
            // The same bytes in a row, cut at another place.
            (["msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330", &now, good], body),
        ];
        for (values, body) in tampered {
            assert_eq!(check(values, body), Err(Rejection::NoMatchingSignature), "{values:?}");
        }
    }

    #[test]
    fn a_clock_may_be_300_seconds_off_either_way_and_no_more() {
        let (secret, id, at, body, good) = PUBLISHED[0];
        let headers = headers(SVIX, [id, &at.to_string(), good]);
        let verify = |now| verifier(&[secret]).check(&headers, Bytes::from(body), now).map(|_| ());
        for seconds in [-300, -299, 0, 299, 300] {
            assert_eq!(verify((at + seconds) * 1000), Ok(()), "{seconds}");
        }
        // Whole seconds count, as in Svix's own check.
        assert_eq!(verify((at + 300) * 1000 + 999), Ok(()));
        for seconds in [-301, 301, 86_400, -at, -at - 301] {
            assert_eq!(verify((at + seconds) * 1000), Err(Rejection::TimestampOutOfRange), "{seconds}");
        }
        for now in [Millis::MIN, Millis::MAX] {
            assert_eq!(verify(now), Err(Rejection::TimestampOutOfRange), "{now}");
        }
    }

    #[test]
    fn a_malformed_timestamp_is_told_from_a_stale_one() {
        let (_, id, at, body, good) = PUBLISHED[0];
        let (plus, zero, fraction, twice) =
            (format!("+{at}"), format!("0{at}"), format!("{at}.0"), format!("{at} {at}"));
        for bad in
            ["hello", "-1", "-0", &plus, &zero, &fraction, &twice, "0x10", "99999999999999999999", "١٦"]
        {
            let expected =
                if bad.is_ascii() { Rejection::MalformedTimestamp } else { Rejection::MalformedHeader };
            assert_eq!(check([id, bad, good], body), Err(expected), "{bad}");
        }
        for stale in ["0", "1", "9223372036854775807"] {
            assert_eq!(check([id, stale, good], body), Err(Rejection::TimestampOutOfRange), "{stale}");
        }
    }

    #[test]
    fn a_message_id_is_short_and_plain() {
        let (_, _, at, body, good) = PUBLISHED[0];
        let (at, huge) = (at.to_string(), "a".repeat(256));
        for bad in [huge.as_str(), "a b", r#"{"a":1}"#, "a,b"] {
            assert_eq!(check([bad, &at, good], body), Err(Rejection::MalformedId), "{bad}");
        }
        assert_eq!(check([&"a".repeat(255), &at, good], body), Err(Rejection::NoMatchingSignature));
    }

    #[test]
    fn one_full_set_of_headers_is_needed() {
        let (secret, id, at, body, good) = PUBLISHED[0];
        let values = [id, &at.to_string(), good];
        let verify = |headers: &HeaderMap| {
            verifier(&[secret]).check(headers, Bytes::from(body), at * 1000).map(|_| ())
        };
        for missing in 0..3 {
            for blank in [None, Some(""), Some("  \t ")] {
                let mut headers = headers(SVIX, values);
                headers.remove(SVIX[missing]);
                if let Some(blank) = blank {
                    headers.insert(SVIX[missing], blank.parse().unwrap());
                }
                assert_eq!(verify(&headers), Err(Rejection::MissingHeader), "{missing} {blank:?}");
                // A header of the other family does not fill the gap, ...
                headers.insert(WHITE_LABEL[missing], values[missing].parse().unwrap());
                assert_eq!(verify(&headers), Err(Rejection::MissingHeader), "{missing} {blank:?}");
                // ... but its full set counts.
                for (name, value) in WHITE_LABEL.into_iter().zip(values) {
                    headers.insert(name, value.parse().unwrap());
                }
                assert_eq!(verify(&headers), Ok(()), "{missing} {blank:?}");
            }
        }
        assert_eq!(verify(&HeaderMap::new()), Err(Rejection::MissingHeader));

        // Where both sets are full, one of them is what is verified: Svix's.
        let mut both = headers(SVIX, values);
        both.extend(headers(WHITE_LABEL, ["msg_another", &at.to_string(), OTHER]));
        assert_eq!(verify(&both), Ok(()));
        let mut both = headers(SVIX, ["msg_another", &at.to_string(), OTHER]);
        both.extend(headers(WHITE_LABEL, values));
        assert_eq!(verify(&both), Err(Rejection::NoMatchingSignature));
    }

    #[test]
    fn a_repeated_or_binary_header_is_malformed() {
        let (_, id, at, body, good) = PUBLISHED[0];
        let at = at.to_string();
        assert_eq!(check([id, &at, "v1,é"], body), Err(Rejection::MalformedHeader));
        for name in SVIX {
            let mut headers = headers(SVIX, [id, &at, good]);
            let value = headers[name].clone();
            headers.append(name, value);
            let read = SignedHeaders::read(&headers, PUBLISHED[0].2 * 1000).map(|_| ());
            assert_eq!(read, Err(Rejection::MalformedHeader), "{name}");
        }
    }

    #[test]
    fn during_a_rotation_either_secret_is_enough() {
        let (_, id, at, body, good) = PUBLISHED[0];
        let headers = headers(SVIX, [id, &at.to_string(), good]);
        let (old, new) = (PUBLISHED[0].0, PUBLISHED[1].0);
        for (secrets, expected) in [
            (vec![old, new], Ok(())),
            (vec![new, old], Ok(())),
            (vec![new], Err(Rejection::NoMatchingSignature)),
        ] {
            let verified = verifier(&secrets).check(&headers, Bytes::from(body), at * 1000).map(|_| ());
            assert_eq!(verified, expected, "{secrets:?}");
        }
    }

    #[test]
    fn a_body_that_is_not_utf8_verifies_like_any_other() {
        let (secret, id, at, ..) = PUBLISHED[0];
        let body = Bytes::from_static(b"\xff\xfe{\"a\":1}");
        let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        let signed = [format!("{id}.{at}.").as_bytes(), &body].concat();
        let good = format!("v1,{}", STANDARD.encode(hmac_sha256::HMAC::mac(signed, key)));
        let verify = |signatures: &str, body: Bytes| {
            let headers = headers(SVIX, [id, &at.to_string(), signatures]);
            verifier(&[PUBLISHED[1].0, secret]).check(&headers, body, at * 1000).map(|_| ())
        };
        assert_eq!(verify(&good, body.clone()), Ok(()));
        assert_eq!(verify(&format!("{OTHER} {good}"), body.clone()), Ok(()));
        let another_version = good.replace("v1,", "v1a,");
        for bad in [OTHER, "v1,", another_version.as_str()] {
            assert_eq!(verify(bad, body.clone()), Err(Rejection::NoMatchingSignature), "{bad}");
        }
        assert_eq!(verify(&good, Bytes::from_static(b"\xff")), Err(Rejection::NoMatchingSignature));
    }

    #[test]
    fn what_is_signed_here_carries_the_published_signature_and_verifies() {
        for (secret, id, at, body, signature) in PUBLISHED {
            let key = Key::new(&Secret::new(secret)).unwrap();
            let signed = key.headers(id, at, body.as_bytes());
            assert_eq!(signed.clone().map(|(_, value)| value), [id, &at.to_string(), signature]);
            for body in [body.as_bytes(), b"\xff"] {
                let headers = key.headers(id, at, body).map(|(name, value)| (name, value.parse().unwrap()));
                let body = Bytes::copy_from_slice(body);
                verifier(&[secret]).check(&HeaderMap::from_iter(headers), body, at * 1000).unwrap();
            }
        }
    }

    #[test]
    fn a_secret_is_needed_and_none_is_shown() {
        assert!(Verifier::new(&[]).is_err());
        for bad in ["whsec_", "whsec_hunter2", ""] {
            let error = Verifier::new(&[Secret::new(bad)]).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
        let text = format!("{:?}", verifier(&[PUBLISHED[0].0]));
        assert_eq!(text, "Verifier { keys: 1 }");
        let (secret, id, at, body, good) = PUBLISHED[1];
        let headers = headers(SVIX, [id, &at.to_string(), good]);
        let verified = verifier(&[secret]).check(&headers, Bytes::from(body), at * 1000).unwrap();
        assert!(!format!("{verified:?}").contains("example.com"));
    }

    #[test]
    fn every_rejection_has_a_code_of_its_own() {
        let codes: std::collections::BTreeSet<_> =
            Rejection::ALL.iter().map(|rejection| rejection.code()).collect();
        assert_eq!(codes.len(), Rejection::ALL.len());
    }
}
