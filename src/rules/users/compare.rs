//! Owns how a row stands to what Clerk's API says about its account: the same, or where they differ. Pure.
//!
//! Promises that a row which is said to differ in anything but the last sign-in is also changed by [`fold()`](super::fold()),
//! where the reading is newer than the row; and that the names of columns come out, never values.

use serde_json::Value;

use super::{Loaded, Profile, Row, Upsert, claims};
use crate::time::Millis;

/// How the table stands to a user whom Clerk's API knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The row says what Clerk says.
    InStep {
        /// But for the last sign-in, which does not change Clerk's `updated_at`.
        signed_in_since: bool,
    },
    /// The row is of this later version, or was deleted then, and the reading of before.
    Newer(Millis),
    /// There is no row, and the account is not remembered as deleted.
    Missing,
    /// Clerk's `updated_at` is newer than the row's version, and these columns differ.
    Outdated(Vec<&'static str>),
    /// The version is the same, and these columns differ.
    Different(Vec<&'static str>),
    /// The account is deleted here.
    BuriedAlive,
}

/// How the table stands to a user as Clerk's API gave it. `loaded` holds the account's row with its profile, if there is one, and
/// every row that claims the user's address.
pub fn compare(loaded: &Loaded, upsert: &Upsert) -> Standing {
    // What happened after the reading is no contradiction to it.
    let deleted = |at| if at >= upsert.version.sent { Standing::Newer(at) } else { Standing::BuriedAlive };
    let Some(row) = loaded.rows.iter().find(|row| row.clerk_id == upsert.clerk_id) else {
        return loaded.former.get(&upsert.clerk_id).map_or(Standing::Missing, |&at| deleted(at));
    };
    if let Some(at) = row.deleted_at {
        return deleted(at);
    }
    if upsert.version.at < row.version.at {
        return Standing::Newer(row.version.at);
    }
    let rivals = loaded.rows.iter().filter(|other| key(other).is_some() && key(other) == key(row));
    let mut differing = differences(row, upsert, shows_rightly(row, rivals));
    if upsert.version.at > row.version.at {
        return Standing::Outdated(differing);
    }
    let before = differing.len();
    differing.retain(|name| *name != LAST_SIGN_IN);
    match differing.is_empty() {
        true => Standing::InStep { signed_in_since: before > 0 },
        false => Standing::Different(differing),
    }
}

fn key(row: &Row) -> Option<&str> {
    row.claim.as_ref().map(|claim| claim.key.as_str())
}

const LAST_SIGN_IN: &str = "last_sign_in_at";

/// Whether a row holds just what its user says. `shows_rightly`: it shows its address if it may, or will once its batch ends.
pub(super) fn says_the_same(row: &Row, upsert: &Upsert, shows_rightly: bool) -> bool {
    differences(row, upsert, shows_rightly).is_empty()
}

/// Whether a row shows its address just if it may. `rivals` claim the same address as the row, which is among them.
pub(super) fn shows_rightly<'r>(row: &Row, rivals: impl Iterator<Item = &'r Row>) -> bool {
    row.shown == claims::best(rivals).is_some_and(|best| best.id == row.id)
}

/// The mirrored columns in which a row differs. A row whose profile was not loaded differs in everything.
fn differences(row: &Row, upsert: &Upsert, shows_rightly: bool) -> Vec<&'static str> {
    let mut names = Vec::new();
    let mut note = |name, same: bool| {
        if !same {
            names.push(name);
        }
    };
    note("email", shows_rightly && !row.askew);
    let texts =
        |claim: &Option<super::Claim>| claim.as_ref().map(|claim| (claim.address.clone(), claim.key.clone()));
    note("clerk_email", texts(&row.claim) == texts(&upsert.claim));
    let verified = |claim: &Option<super::Claim>| claim.as_ref().is_some_and(|claim| claim.verified);
    note("email_verified", verified(&row.claim) == verified(&upsert.claim));
    let Some(here) = &row.profile else { return vec!["profile"] };
    // Without `..`, so that a new field is compared as well.
    let Profile {
        phone,
        username,
        first_name,
        last_name,
        image_url,
        external_id,
        public_metadata,
        private_metadata,
        unsafe_metadata,
        banned,
        locked,
        last_sign_in_at,
        created_at,
        updated_at,
        clerk,
    } = &*upsert.profile;
    note("phone", here.phone == *phone);
    note("username", here.username == *username);
    note("first_name", here.first_name == *first_name);
    note("last_name", here.last_name == *last_name);
    note("image_url", here.image_url == *image_url);
    note("external_id", here.external_id == *external_id);
    note("public_metadata", same_document(&here.public_metadata, public_metadata));
    note("private_metadata", same_document(&here.private_metadata, private_metadata));
    note("unsafe_metadata", same_document(&here.unsafe_metadata, unsafe_metadata));
    note("banned", here.banned == *banned);
    note("locked", here.locked == *locked);
    note(LAST_SIGN_IN, here.last_sign_in_at == *last_sign_in_at);
    note("clerk_created_at", here.created_at == *created_at);
    note("clerk_updated_at", here.updated_at == *updated_at);
    // Of the whole object only that it is kept: it holds what changes without a new version.
    note("clerk", clerk.is_none() || here.clerk.is_some());
    names
}

/// Whether two JSON texts mean the same. Databases write them anew: other spaces, another order, other digits.
fn same_document(one: &Option<String>, other: &Option<String>) -> bool {
    let (Some(one), Some(other)) = (one, other) else { return one.is_none() && other.is_none() };
    let read = |text: &str| serde_json::from_str::<Value>(text).ok();
    one == other || read(one).zip(read(other)).is_some_and(|(one, other)| same(&one, &other))
}

fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            // Whole numbers exactly: those beyond 2^53 would look alike as fractions.
            one == other || ((one.is_f64() || other.is_f64()) && one.as_f64() == other.as_f64())
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, value)| other.get(key).is_some_and(|other| same(value, other)))
        }
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{
        super::fixtures::{Books, DEFAULT, News, created, deleted, named, updated},
        *,
    };

    const X: &str = "x@example.com";

    fn ann() -> News {
        created("ann", 10).verified(X).named("Ann")
    }

    fn with_ann() -> Books {
        let mut books = Books::default();
        books.tell(&DEFAULT, [ann().event()]);
        books
    }

    fn standing(books: &Books, read: News) -> Standing {
        let former = books.former.iter().map(|former| (former.clerk_id.clone(), former.deleted_at)).collect();
        compare(&Loaded { rows: books.rows.clone(), former }, &read.upsert())
    }

    #[test]
    fn what_is_the_same_here_is_in_step_and_what_is_newer_is_said_to_be() {
        let mut books = with_ann();
        assert_eq!(standing(&books, ann().read_at(50)), Standing::InStep { signed_in_since: false });
        books.tell(&DEFAULT, [updated("ann", 11).event()]);
        assert_eq!(standing(&books, ann().read_at(50)), Standing::Newer(11));
    }

    #[test]
    fn who_is_not_here_is_missing_and_who_changed_in_clerk_is_outdated() {
        assert_eq!(standing(&Books::default(), ann().read_at(50)), Standing::Missing);
        let changed = updated("ann", 11).verified(X).named("Eve").read_at(50);
        assert_eq!(standing(&with_ann(), changed), Standing::Outdated(vec!["first_name"]));
    }

    #[test]
    fn what_was_deleted_before_the_reading_is_buried_alive_and_later_it_is_not() {
        let mut books = with_ann();
        books.tell(&DEFAULT, [deleted("ann", 50), deleted("bob", 50)]);
        for id in ["ann", "bob"] {
            assert_eq!(standing(&books, created(id, 10).read_at(51)), Standing::BuriedAlive, "{id}");
            assert_eq!(standing(&books, created(id, 10).read_at(50)), Standing::Newer(50), "{id}");
        }
    }

    #[test]
    fn columns_that_differ_at_the_same_version_are_named() {
        let named_columns = |books: &Books| match standing(books, ann().read_at(50)) {
            Standing::Different(columns) => columns,
            other => panic!("{other:?}"),
        };
        let mut books = with_ann();
        books.rows[0].profile = Some(Arc::new(Profile { banned: Some(true), ..named("Eve") }));
        assert_eq!(named_columns(&books), ["first_name", "banned"]);
        let mut books = with_ann();
        books.rows[0].shown = false;
        assert_eq!(named_columns(&books), ["email"]);
        let mut books = with_ann();
        books.rows[0].askew = true;
        assert_eq!(named_columns(&books), ["email"]);
        let mut books = with_ann();
        books.rows[0].claim = None;
        assert_eq!(named_columns(&books), ["email", "clerk_email", "email_verified"]);
    }

    #[test]
    fn an_address_that_another_row_shows_by_right_is_no_difference() {
        let mut books = with_ann();
        books.tell(&DEFAULT, [created("bob", 9).event(), updated("bob", 20).verified(X).event()]);
        assert_eq!((books.email("ann"), books.email("bob")), (None, Some(X)));
        assert_eq!(standing(&books, ann().read_at(50)), Standing::InStep { signed_in_since: false });
    }

    #[test]
    fn a_sign_in_alone_is_no_drift() {
        let mut books = with_ann();
        books.rows[0].profile = Some(Arc::new(Profile { last_sign_in_at: Some(9), ..named("Ann") }));
        assert_eq!(standing(&books, ann().read_at(50)), Standing::InStep { signed_in_since: true });
    }

    #[test]
    fn documents_are_compared_by_what_they_mean() {
        let text = |text: &str| Some(text.to_owned());
        for (one, other) in [
            (r#"{"a":1,"b":[2,{"c":null}]}"#, r#"{ "b": [2.0, {"c": null}], "a": 1e0 }"#),
            (r#"{"a":100}"#, r#"{"a":1e2}"#),
            (r#"{"a":"é"}"#, r#"{"a":"é"}"#),
        ] {
            assert!(same_document(&text(one), &text(other)), "{one} {other}");
        }
        for (one, other) in [
            (r#"{"a":1}"#, r#"{"a":2}"#),
            (r#"{"a":1}"#, r#"{"a":"1"}"#),
            (r#"{"a":1}"#, r#"{"a":1,"b":null}"#),
            (r#"{"a":[1,2]}"#, r#"{"a":[2,1]}"#),
            (r#"{"a":9007199254740993}"#, r#"{"a":9007199254740992}"#),
            ("{}", "no JSON"),
        ] {
            assert!(!same_document(&text(one), &text(other)), "{one} {other}");
        }
        assert!(!same_document(&text("{}"), &None) && same_document(&None, &None));
    }

    #[test]
    fn whatever_is_said_to_differ_is_put_right_by_the_reading() {
        let edits: [fn(&mut Row); 5] = [
            |row| row.profile = Some(Arc::new(named("Eve"))),
            |row| row.shown = false,
            |row| row.askew = true,
            |row| row.claim = None,
            |row| row.profile = Some(Arc::default()),
        ];
        for edit in edits {
            let mut books = with_ann();
            edit(&mut books.rows[0]);
            assert!(matches!(standing(&books, ann().read_at(50)), Standing::Different(_)));
            books.tell(&DEFAULT, [ann().read_at(50).event()]);
            assert_eq!(standing(&books, ann().read_at(60)), Standing::InStep { signed_in_since: false });
        }
    }
}
