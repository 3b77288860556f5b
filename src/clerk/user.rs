//! Owns what Clerk tells about a user: `data` of `user.created`, `user.updated` and `user.deleted`, and a user of its API, read into what the
//! rules fold. Promises that an account's address is its primary one, and that no event is refused for want of a time.
//! Never looks at the envelope.

use std::{borrow::Cow, sync::Arc};

use serde::Deserialize;

use super::{
    ID_MAX,
    field::{Field, Path, PayloadError, Raw, fields},
};
use crate::{
    message::MessageId,
    rules::{
        Change,
        users::{self, Claim, Profile, Source, Upsert, UpsertKind, Version},
    },
    time::Millis,
};

/// The longest e-mail address, in bytes: it stands in an index.
pub(super) const ADDRESS_MAX: usize = 512;

fields! {
    /// `data` of `user.created` and `user.updated`, as far as it is mirrored.
    pub(super) User {
        id, email_addresses, primary_email_address_id, phone_numbers, primary_phone_number_id, username, first_name,
        last_name, image_url, external_id, public_metadata, private_metadata, unsafe_metadata, banned, locked,
        last_sign_in_at, created_at, updated_at
    }
}

fields! {
    /// One of `email_addresses` or `phone_numbers`.
    Contact { id, email_address, phone_number, verification }
}

fields! {
    /// How far a contact is proved: unverified, verified, failed, expired or transferable.
    Verification { status }
}

fields! {
    /// `data` of `user.deleted`: `{object, id, deleted: true}`. Its times are not there today.
    Deleted { id, created_at, updated_at }
}

/// What is known of an event beside its `data`.
pub(super) struct News<'a> {
    /// The envelope's `timestamp`.
    pub(super) sent: Option<Millis>,
    pub(super) message_id: &'a MessageId,
    /// When the ingress took it in, or when it was read from Clerk's API.
    pub(super) received_at: Millis,
    /// Who says so.
    pub(super) source: Source,
    /// `HEADCOUNT_KEEP_CLERK_OBJECT`
    pub(super) keep_object: bool,
}

impl News<'_> {
    pub(super) fn upsert(&self, data: Raw<'_>, kind: UpsertKind) -> Result<Box<Upsert>, PayloadError> {
        let user: User<'_> = content(data)?;
        // Whatever Clerk adds to it must not be able to hold up news about the user.
        let whole = self.keep_object.then(|| Field::at("data", data).document_or_null()).flatten();
        self.upsert_of(&user, kind, whole)
    }

    /// The same of fields that are read already, with the whole object where it is kept.
    pub(super) fn upsert_of(
        &self,
        user: &User<'_>,
        kind: UpsertKind,
        whole: Option<String>,
    ) -> Result<Box<Upsert>, PayloadError> {
        let clerk_id = identity("data.id", user.id)?;
        let created_at = Field::at("data.created_at", user.created_at).time()?;
        let updated_at = Field::at("data.updated_at", user.updated_at).time()?;
        let version = Version {
            at: self.happened(updated_at, created_at),
            sent: self.sent.unwrap_or_default(),
            kind,
            message_id: self.message_id.as_str().to_owned(),
        };
        let claim = primary_email(user)?;
        let profile = Profile {
            phone: primary_phone(user)?,
            username: text("data.username", user.username)?,
            first_name: text("data.first_name", user.first_name)?,
            last_name: text("data.last_name", user.last_name)?,
            image_url: text("data.image_url", user.image_url)?,
            external_id: text("data.external_id", user.external_id)?,
            public_metadata: Field::at("data.public_metadata", user.public_metadata).document()?,
            private_metadata: Field::at("data.private_metadata", user.private_metadata).document()?,
            // Written by the user's browser, so it must not be able to hold up news about the user, a ban for one.
            unsafe_metadata: Field::at("data.unsafe_metadata", user.unsafe_metadata).document_or_null(),
            banned: Field::at("data.banned", user.banned).flag()?,
            locked: Field::at("data.locked", user.locked).flag()?,
            last_sign_in_at: Field::at("data.last_sign_in_at", user.last_sign_in_at).time()?,
            created_at,
            updated_at,
            clerk: whole,
        };
        // An import can set `created_at` to any time.
        let made = if kind == UpsertKind::Created { self.sent } else { None };
        let born = made.or(created_at).unwrap_or(version.at);
        Ok(Box::new(Upsert {
            clerk_id,
            version,
            born,
            claim,
            profile: Arc::new(profile),
            source: self.source,
        }))
    }

    pub(super) fn delete(&self, data: Raw<'_>) -> Result<Change, PayloadError> {
        let deleted: Deleted<'_> = content(data)?;
        let clerk_id = identity("data.id", deleted.id)?;
        let created_at = Field::at("data.created_at", deleted.created_at).time()?;
        let updated_at = Field::at("data.updated_at", deleted.updated_at).time()?;
        Ok(Change::User(users::Change::Delete { clerk_id, at: self.happened(updated_at, created_at) }))
    }

    /// When it happened: by the user's own time where it has one, else by the envelope's.
    fn happened(&self, updated_at: Option<Millis>, created_at: Option<Millis>) -> Millis {
        updated_at.or(self.sent).or(created_at).unwrap_or(self.received_at)
    }
}

/// The object that `data` has to be.
pub(super) fn content<'a, T: Deserialize<'a>>(data: Raw<'a>) -> Result<T, PayloadError> {
    let data = Field::at("data", data);
    data.object()?.ok_or_else(|| data.error("missing"))
}

/// An id of Clerk's, which has to be there.
pub(super) fn identity(path: &'static str, id: Raw<'_>) -> Result<String, PayloadError> {
    identity_at(Field::at(path, id))
}

/// The same, anywhere.
pub(super) fn identity_at(id: Field<'_>) -> Result<String, PayloadError> {
    let name = id.name(ID_MAX)?.ok_or_else(|| id.error("missing"))?;
    if name.contains(char::is_whitespace) {
        return Err(id.error("holds white space"));
    }
    Ok(name.into_owned())
}

fn text(path: &'static str, raw: Raw<'_>) -> Result<Option<String>, PayloadError> {
    Ok(Field::at(path, raw).text()?.map(Cow::into_owned))
}

/// The address whose id is the primary one: never simply the first, which may be an unverified secondary.
fn primary_email(user: &User<'_>) -> Result<Option<Claim>, PayloadError> {
    const LIST: &str = "data.email_addresses";
    let id = Field::at("data.primary_email_address_id", user.primary_email_address_id);
    let Some((index, contact)) = primary(LIST, user.email_addresses, id)? else { return Ok(None) };
    let address = Field::new(Path::element(LIST, index, ".email_address"), contact.email_address);
    let Some(address) = address.name(ADDRESS_MAX)? else { return Ok(None) };
    let verification = Field::new(Path::element(LIST, index, ".verification"), contact.verification);
    let status = match verification.object::<Verification<'_>>()? {
        Some(verification) => {
            Field::new(Path::element(LIST, index, ".verification.status"), verification.status).text()?
        }
        None => None,
    };
    Ok(Some(Claim::new(address, status.as_deref() == Some("verified"))))
}

fn primary_phone(user: &User<'_>) -> Result<Option<String>, PayloadError> {
    const LIST: &str = "data.phone_numbers";
    let id = Field::at("data.primary_phone_number_id", user.primary_phone_number_id);
    let Some((index, contact)) = primary(LIST, user.phone_numbers, id)? else { return Ok(None) };
    let number = Field::new(Path::element(LIST, index, ".phone_number"), contact.phone_number);
    Ok(number.text()?.map(Cow::into_owned))
}

/// The contact whose id equals `id`, with its place in the list. Every id in the list is read, nothing else of the rest.
fn primary<'a>(
    list: &'static str,
    contacts: Raw<'a>,
    id: Field<'a>,
) -> Result<Option<(usize, Contact<'a>)>, PayloadError> {
    let wanted = id.text()?;
    let mut found = None;
    for (index, element) in Field::at(list, contacts).array()?.into_iter().enumerate() {
        let element = Field::new(Path::element(list, index, ""), Some(element));
        let contact: Contact<'_> = element.object()?.ok_or_else(|| element.error("missing"))?;
        let id = Field::new(Path::element(list, index, ".id"), contact.id).text()?;
        if found.is_none() && id.is_some() && id == wanted {
            found = Some((index, contact));
        }
    }
    Ok(found)
}
