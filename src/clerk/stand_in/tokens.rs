//! Owns session tokens like Clerk's, of people who are made up. Signed by a key that is made anew each time, so no other process
//! takes them for real.

use aws_lc_rs::{
    encoding::PublicKeyX509Der,
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PKCS1_SHA256},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::time::Millis;

/// How long a token is valid, in seconds. Clerk's are for 60.
const VALID: i64 = 60;

/// Signs tokens as an instance does.
pub struct Signer {
    pair: KeyPair,
    id: String,
}

impl Signer {
    /// With a new key of this id.
    ///
    /// # Errors
    /// This machine can make no key.
    pub fn new(id: impl Into<String>) -> Result<Self, String> {
        let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| "no RSA key can be made".to_owned())?;
        Ok(Self { pair, id: id.into() })
    }

    /// The key set that holds the public half.
    pub fn key_set(&self) -> Value {
        let public = self.pair.public_key();
        let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({ "keys": [{
            "alg": "RS256",
            "e": number(public.exponent().big_endian_without_leading_zero()),
            "kid": self.id,
            "kty": "RSA",
            "n": number(public.modulus().big_endian_without_leading_zero()),
            "use": "sig",
        }] })
    }

    /// Signs whatever is given. An empty text where that cannot be done.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(header), part(claims));
        let mut signature = vec![0; self.pair.public_modulus_len()];
        let signed = self.pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature);
        match signed {
            Ok(()) => format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)),
            Err(_) => String::new(),
        }
    }

    /// The header of this key's session tokens.
    pub fn header(&self) -> Value {
        json!({ "alg": "RS256", "cat": "cl_B7d4PD111AAA", "kid": self.id, "typ": "JWT" })
    }

    /// A session token of the second version, for a page of this origin.
    pub fn session(
        &self,
        issuer: &str,
        clerk_id: &str,
        session_id: &str,
        party: &str,
        now: Millis,
    ) -> String {
        let now = now / 1000;
        let claims = json!({
            "azp": party,
            "exp": now + VALID,
            "fva": [0, -1],
            "iat": now,
            "iss": issuer,
            "jti": format!("{:020x}", rand::random::<u64>()),
            "nbf": now - 10,
            "sid": session_id,
            "sts": "active",
            "sub": clerk_id,
            "v": 2,
        });
        self.sign(&self.header(), &claims)
    }

    /// The public half in PEM, as `CLERK_JWT_KEY` takes it.
    pub fn pem(&self) -> String {
        let der: Option<PublicKeyX509Der<'_>> =
            aws_lc_rs::encoding::AsDer::as_der(self.pair.public_key()).ok();
        let text = base64::engine::general_purpose::STANDARD
            .encode(der.as_ref().map_or(&[][..], |der| der.as_ref()));
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
    }
}
