//! Owns who a session token of Clerk's says is asking. Promises that a token counts only if the instance's key signed it and every
//! rule of `rules` holds; that a stranger's token costs at most one request for keys in half a minute, whoever asks; and that no
//! error and no log holds a token.
//!
//! In a token's order: this file takes it apart, `rules` judges its class before anything is computed, `keys` finds the key, this
//! file checks the signature, `rules` judges what it claims.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::{Deserialize, de::DeserializeOwned};

use crate::time::Millis;

mod issuer;
mod keys;
mod rules;
#[cfg(test)]
mod tests;

pub use issuer::{Issuer, cookie_suffix};
pub use keys::{Address, KeySource, Keys};
pub use rules::{Caller, Refused, Terms};

use rules::{Claims, Header};

/// The longest token, in bytes. Clerk's own fit into a cookie of 4 KiB.
pub const TOKEN_MAX: usize = 8 * 1024;

/// Why a token's bearer is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The token breaks a rule.
    Refused(Refused),
    /// The keys are away, so that nobody can say.
    KeysAway(String),
}

impl From<Refused> for Unknown {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// Checks tokens. One for each process.
#[derive(Debug)]
pub struct Verifier {
    terms: Terms,
    keys: Keys,
}

impl Verifier {
    /// With the keys of one instance.
    pub fn new(terms: Terms, keys: Keys) -> Self {
        Self { terms, keys }
    }

    /// The rules that tokens are held to.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Whom a token signs in at `now`, in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// Which rule it breaks; or the keys are away.
    pub async fn verify(&self, token: &str, now: Millis) -> Result<Caller, Unknown> {
        if token.len() > TOKEN_MAX {
            return Err(Refused::Malformed.into());
        }
        let header: Header = part(token, 0)?;
        rules::class(&header)?;
        let key = self.keys.key(header.kid.as_deref()).await?;
        let claims = signed(token, &key)?;
        Ok(rules::judge(claims, &self.terms, now)?)
    }

    /// The issuer that a token names, whoever signed it: to choose among several. Believe nothing of it.
    pub fn named_issuer(token: &str) -> Option<String> {
        #[derive(Deserialize)]
        struct Named {
            iss: String,
        }
        (token.len() <= TOKEN_MAX).then(|| part::<Named>(token, 1).ok())?.map(|named| named.iss)
    }
}

/// One part of a token, read as JSON.
fn part<T: DeserializeOwned>(token: &str, nth: usize) -> Result<T, Refused> {
    let parts: Vec<&str> = token.split('.').collect();
    let [_, _, _] = parts[..] else { return Err(Refused::Malformed) };
    let text = URL_SAFE_NO_PAD.decode(parts[nth]).map_err(|_| Refused::Malformed)?;
    serde_json::from_slice(&text).map_err(|_| Refused::Malformed)
}

/// The claims, once the signature is checked. The times are judged by our own rules.
fn signed(token: &str, key: &DecodingKey) -> Result<Claims, Refused> {
    let mut signature = Validation::new(Algorithm::RS256);
    signature.required_spec_claims.clear();
    signature.validate_exp = false;
    signature.validate_aud = false;
    use jsonwebtoken::errors::ErrorKind;
    let decoded = decode::<Claims>(token, key, &signature).map_err(|error| match error.kind() {
        ErrorKind::InvalidSignature => Refused::Signature,
        ErrorKind::InvalidAlgorithm => Refused::Algorithm,
        _ => Refused::Malformed,
    })?;
    Ok(decoded.claims)
}
