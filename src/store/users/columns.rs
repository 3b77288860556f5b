//! Owns the list of the columns of `users` that a batch writes: each column's name and type, and where its value stands in a
//! [`Row`]. Both databases build their statements from this list, so a new column is listed once.

use std::sync::Arc;

use sqlx::{ColumnIndex, Decode, Type};
use uuid::Uuid;

use crate::{
    rules::users::{Claim, Profile, Row, UpsertKind, Version},
    store::columns::{At, Id},
    time::Millis,
};

/// A column, and how its value is taken from a row.
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) value: Value,
}

/// A column's type, with the function that reads its value.
pub(super) enum Value {
    Uuid(fn(&Row) -> Uuid),
    Text(fn(&Row) -> Option<&str>),
    /// JSON as text.
    Json(fn(&Row) -> Option<&str>),
    Flag(fn(&Row) -> Option<bool>),
    Number(fn(&Row) -> i64),
    Small(fn(&Row) -> i16),
    Time(fn(&Row) -> Option<Millis>),
}

use Value::{Flag, Number, Small, Text, Time};

/// The columns that every written row has: who the row is, its claim, its version and its end.
pub(super) const STATE: &[Column] = &[
    Column { name: "id", value: Value::Uuid(|row| row.id) },
    Column { name: "clerk_id", value: Text(|row| Some(&row.clerk_id)) },
    Column { name: "email", value: Text(|row| Some(claim(row).filter(|_| row.shown)?.address.as_str())) },
    Column { name: "clerk_email", value: Text(|row| Some(&claim(row)?.address)) },
    Column { name: "email_key", value: Text(|row| Some(&claim(row)?.key)) },
    Column {
        name: "email_verified",
        value: Flag(|row| Some(claim(row).is_some_and(|claim| claim.verified))),
    },
    Column { name: "version", value: Number(|row| row.version.at) },
    Column { name: "version_sent", value: Number(|row| row.version.sent) },
    Column { name: "version_kind", value: Small(|row| kind_to_number(row.version.kind)) },
    Column { name: "version_message_id", value: Text(|row| Some(&row.version.message_id)) },
    Column { name: "deleted_at", value: Time(|row| row.deleted_at) },
    Column { name: "erased", value: Flag(|row| Some(row.erased)) },
];

fn claim(row: &Row) -> Option<&Claim> {
    row.claim.as_ref()
}

/// How a profile's column is read from a database.
enum Setter {
    Text(fn(&mut Profile, Option<String>)),
    Flag(fn(&mut Profile, Option<bool>)),
    Time(fn(&mut Profile, Option<Millis>)),
}

/// A column of the profile: the way into the database and the way back.
macro_rules! profile {
    (@get Text $field:ident) => { Value::Text(|row| row.profile.as_deref()?.$field.as_deref()) };
    (@get Json $field:ident) => { Value::Json(|row| row.profile.as_deref()?.$field.as_deref()) };
    (@get Flag $field:ident) => { Value::Flag(|row| row.profile.as_deref()?.$field) };
    (@get Time $field:ident) => { Value::Time(|row| row.profile.as_deref()?.$field) };
    (@set Json $field:ident) => { Setter::Text(|profile, value| profile.$field = value) };
    (@set $kind:ident $field:ident) => { Setter::$kind(|profile, value| profile.$field = value) };
    ($($name:ident: $kind:ident $field:ident,)*) => {
        /// The other mirrored columns. A row without a profile writes null into each.
        pub(super) const PROFILE: &[Column] =
            &[$(Column { name: stringify!($name), value: profile!(@get $kind $field) }),*];

        const SETTERS: &[(&str, Setter)] = &[$((stringify!($name), profile!(@set $kind $field))),*];
    };
}

// Column: type, field of `Profile`.
profile! {
    phone: Text phone,
    username: Text username,
    first_name: Text first_name,
    last_name: Text last_name,
    image_url: Text image_url,
    external_id: Text external_id,
    public_metadata: Json public_metadata,
    private_metadata: Json private_metadata,
    unsafe_metadata: Json unsafe_metadata,
    banned: Flag banned,
    locked: Flag locked,
    last_sign_in_at: Time last_sign_in_at,
    clerk_created_at: Time created_at,
    clerk_updated_at: Time updated_at,
    clerk: Json clerk,
}

/// `a, b, c`, each name as `write` puts it.
pub(super) fn list<'c>(
    columns: impl IntoIterator<Item = &'c Column>,
    mut write: impl FnMut(&'c Column) -> String,
) -> String {
    let written: Vec<String> = columns.into_iter().map(&mut write).collect();
    written.join(", ")
}

/// The columns' names.
pub(super) fn names<'c>(columns: impl IntoIterator<Item = &'c Column>) -> String {
    list(columns, |column| column.name.to_owned())
}

/// What a deleted user's row keeps under `HEADCOUNT_ON_DELETE=erase`: Clerk id, version, deletion and the application's
/// columns. Everything else is nulled, as the assignments of an `UPDATE`.
pub(super) fn erased() -> String {
    let personal = ["email", "clerk_email", "email_key"].into_iter();
    let personal = personal.chain(PROFILE.iter().map(|column| column.name));
    let nulls: Vec<String> = personal.map(|name| format!("{name} = NULL")).collect();
    format!("erased = true, email_verified = false, {}", nulls.join(", "))
}

/// What [`row`] reads of a stored row, but for the profile.
pub(super) const STORED: &str = "id, clerk_id, version, version_sent, version_kind, version_message_id, clerk_email, \
     email_key, email_verified, email IS NOT NULL AS shown, \
     coalesce(email <> clerk_email, (clerk_email IS NULL) <> (email_key IS NULL)) AS askew, deleted_at, erased";

/// Decodes a stored row, with its profile where that was selected.
pub(super) fn row<'r, R>(row: &'r R, with_profile: bool) -> Result<Row, sqlx::Error>
where
    R: sqlx::Row,
    &'static str: ColumnIndex<R>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    bool: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    i16: Decode<'r, R::Database> + Type<R::Database>,
    Id: Decode<'r, R::Database> + Type<R::Database>,
    At: Decode<'r, R::Database> + Type<R::Database>,
{
    let time =
        |name: &'static str| Ok::<_, sqlx::Error>(row.try_get::<Option<At>, _>(name)?.map(|At(time)| time));
    let Id(id) = row.try_get("id")?;
    let key: Option<String> = row.try_get("email_key")?;
    let address: Option<String> = row.try_get("clerk_email")?;
    let verified = row.try_get("email_verified")?;
    let mut profile = with_profile.then(Profile::default);
    if let Some(profile) = &mut profile {
        for (name, setter) in SETTERS {
            match setter {
                Setter::Text(set) => set(profile, row.try_get(*name)?),
                Setter::Flag(set) => set(profile, row.try_get(*name)?),
                Setter::Time(set) => set(profile, time(name)?),
            }
        }
    }
    Ok(Row {
        id,
        clerk_id: row.try_get("clerk_id")?,
        version: Version {
            at: row.try_get("version")?,
            sent: row.try_get("version_sent")?,
            kind: kind_of_number(row.try_get("version_kind")?),
            message_id: row.try_get("version_message_id")?,
        },
        claim: key.map(|key| Claim { address: address.unwrap_or_else(|| key.clone()), key, verified }),
        shown: row.try_get("shown")?,
        askew: row.try_get("askew")?,
        deleted_at: time("deleted_at")?,
        erased: row.try_get("erased")?,
        profile: profile.map(Arc::new),
    })
}

/// `version_kind`: sorts as the kinds do.
fn kind_to_number(kind: UpsertKind) -> i16 {
    match kind {
        UpsertKind::Created => 0,
        UpsertKind::Updated => 1,
    }
}

/// The reverse; a check of the table's lets nothing else in.
fn kind_of_number(number: i16) -> UpsertKind {
    if number == 0 { UpsertKind::Created } else { UpsertKind::Updated }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A new field of [`Profile`] has to be named here, and then has to have a column.
    #[test]
    fn every_field_of_a_profile_has_a_column_of_its_own() {
        let text = |text: &str| Some(text.to_owned());
        let profile = Profile {
            phone: text("phone"),
            username: text("username"),
            first_name: text("first_name"),
            last_name: text("last_name"),
            image_url: text("image_url"),
            external_id: text("external_id"),
            public_metadata: text("public_metadata"),
            private_metadata: text("private_metadata"),
            unsafe_metadata: text("unsafe_metadata"),
            banned: Some(true),
            locked: Some(true),
            last_sign_in_at: Some(1),
            created_at: Some(2),
            updated_at: Some(3),
            clerk: text("clerk"),
        };
        let row = Row {
            id: Uuid::nil(),
            clerk_id: "user_1".into(),
            version: Version { at: 0, sent: 0, kind: UpsertKind::Created, message_id: "m".into() },
            claim: None,
            shown: false,
            askew: false,
            deleted_at: None,
            erased: false,
            profile: Some(Arc::new(profile.clone())),
        };
        let mut read = Profile::default();
        for (column, (name, setter)) in PROFILE.iter().zip(SETTERS) {
            assert_eq!(column.name, *name);
            match (&column.value, setter) {
                (Text(value) | Value::Json(value), Setter::Text(set)) => {
                    assert_eq!(value(&row), Some(column.name), "texts hold their column's name");
                    set(&mut read, value(&row).map(str::to_owned));
                }
                (Flag(value), Setter::Flag(set)) => set(&mut read, value(&row)),
                (Time(value), Setter::Time(set)) => set(&mut read, value(&row)),
                _ => panic!("{name} is read as another type than it is written"),
            }
        }
        assert_eq!(read, profile);
    }
}
