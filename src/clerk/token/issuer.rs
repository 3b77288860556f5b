//! Owns what follows from Clerk's publishable key: the instance's issuer, and the name of its cookie. Pure.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::URL_SAFE_NO_PAD},
};
use url::Url;

/// Base64 with its padding or without: both are seen in keys.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The issuer of an instance's tokens: an origin, such as `https://clerk.example.com`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer(String);

impl Issuer {
    /// As people write it: a host, or an origin with https:// (http:// for this machine only).
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim().trim_end_matches('/');
        let whole = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let url = Url::parse(&whole).map_err(|_| "is no host and no https:// address".to_owned())?;
        let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if !plain || !url.username().is_empty() || url.password().is_some() || url.host_str().is_none() {
            return Err("has more than a host".to_owned());
        }
        match url.scheme() {
            "https" => {}
            "http" if crate::net::is_loopback(&url) => {}
            _ => return Err("does not begin with https://".to_owned()),
        }
        Ok(Self(url.origin().ascii_serialization()))
    }

    /// Of the instance that a publishable key belongs to.
    ///
    /// # Errors
    /// What is wrong with the key.
    pub fn of_publishable_key(key: &str) -> Result<Self, String> {
        let rest = ["pk_live_", "pk_test_"].iter().find_map(|start| key.strip_prefix(start));
        let rest = rest.ok_or("begins with neither pk_live_ nor pk_test_")?;
        let text = LENIENT.decode(rest).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let host =
            text.as_deref().and_then(|text| text.strip_suffix('$')).ok_or("is cut short or mistyped")?;
        if host.is_empty() || host.contains(['/', ':', '@', ' ']) {
            return Err("is cut short or mistyped".to_owned());
        }
        Self::parse(host).map_err(|_| "is cut short or mistyped".to_owned())
    }

    /// As tokens name it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where its keys are.
    pub fn keys_url(&self) -> String {
        format!("{}/.well-known/jwks.json", self.0)
    }
}

/// The suffix of the cookie `__session_…`, by which several instances share a domain.
pub fn cookie_suffix(publishable_key: &str) -> String {
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, publishable_key.as_bytes());
    let mut text = URL_SAFE_NO_PAD.encode(hash);
    text.truncate(8);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publishable_key_names_its_issuer() {
        for key in ["pk_live_Y2xlcmsuZXhhbXBsZS5jb20k", "pk_test_Y2xlcmsuZXhhbXBsZS5jb20k"] {
            assert_eq!(Issuer::of_publishable_key(key).unwrap().as_str(), "https://clerk.example.com");
        }
        // With padding, and without.
        for rest in ["YS5jbGVyay5hY2NvdW50cy5kZXYk", "bWUuY2xlcmsuZGV2JA==", "bWUuY2xlcmsuZGV2JA"] {
            assert!(Issuer::of_publishable_key(&format!("pk_test_{rest}")).is_ok(), "{rest}");
        }
        for bad in [
            "",
            "sk_live_Y2xlcmsuZXhhbXBsZS5jb20k",
            "pk_live_",
            "pk_live_Y2xlcmsuZXhhbXBsZS5jb20",
            "pk_live_!!!!",
            "pk_live_JA",
            "pk_live_ZXZpbC5leGFtcGxlL3BhdGgk",
        ] {
            assert!(Issuer::of_publishable_key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_issuer_is_an_origin() {
        for (written, issuer) in [
            ("clerk.example.com", "https://clerk.example.com"),
            ("https://clerk.example.com", "https://clerk.example.com"),
            ("https://Clerk.Example.com/", "https://clerk.example.com"),
            ("http://127.0.0.1:4711", "http://127.0.0.1:4711"),
        ] {
            assert_eq!(Issuer::parse(written).unwrap().as_str(), issuer, "{written}");
        }
        for bad in [
            "",
            "http://clerk.example.com",
            "ftp://clerk.example.com",
            "https://clerk.example.com/v1",
            "https://a@b",
            "https://clerk.example.com?x",
        ] {
            assert!(Issuer::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_suffix_of_the_cookie_follows_from_the_key() {
        assert_eq!(cookie_suffix("pk_live_Y2xlcmsuZXhhbXBsZS5jb20k"), "naoXFJnI");
    }
}
