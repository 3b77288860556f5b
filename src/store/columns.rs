//! Owns how values stand in the columns of both databases: an id is a `uuid` in PostgreSQL and text in SQLite, a time is
//! a `timestamptz` and RFC 3339 text. [`from_row!`] describes a row once for both. Never touches SQL.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde_json::Value as Json;
use sqlx::{
    Database, Decode, Encode, Postgres, Sqlite, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgHasArrayType, PgTypeInfo, PgValueFormat, PgValueRef},
};
use uuid::Uuid;

use super::{
    letters::{Action, Status},
    operations,
    sync::{RunResult, SeenBy},
    times::{rfc3339, time_in_range},
};
use crate::{
    message::Origin,
    rules::{Outcome, sessions, subscriptions},
    time::Millis,
};

/// A column's value, and what it is in a struct.
pub(super) trait Column {
    type Value;

    fn value(self) -> Self::Value;
}

macro_rules! plain_columns {
    ($($plain:ty),+) => { $(
        impl Column for $plain {
            type Value = Self;

            fn value(self) -> Self {
                self
            }
        }
    )+ };
}

plain_columns!(String, bool, i64);

impl<C: Column> Column for Option<C> {
    type Value = Option<C::Value>;

    fn value(self) -> Self::Value {
        self.map(C::value)
    }
}

impl<T> Column for sqlx::types::Json<T> {
    type Value = T;

    fn value(self) -> T {
        self.0
    }
}

/// Reads a struct from a row of either database: each field from the column of its name, or of the name that is given.
macro_rules! from_row {
    ($row:ident { $($field:ident $(= $column:literal)?: $as:ty),+ $(,)? }) => {
        impl<'r, R: sqlx::Row> sqlx::FromRow<'r, R> for $row
        where
            &'static str: sqlx::ColumnIndex<R>,
            $($as: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,)+
        {
            fn from_row(row: &'r R) -> Result<Self, sqlx::Error> {
                Ok(Self {
                    $($field: $crate::store::columns::Column::value(
                        row.try_get::<$as, _>($crate::store::columns::from_row!(@name $field $($column)?))?,
                    )),+
                })
            }
        }
    };
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $column:literal) => { $column };
}

pub(super) use from_row;

/// A type of column, and how it is read: from what the driver of PostgreSQL gives, and from what SQLite's gives.
macro_rules! column {
    ($(#[$doc:meta])* $column:ident is $value:ty: $both:ty => $read:expr) => {
        column!($(#[$doc])* $column is $value: $both => $read, $both => $read);
    };
    ($(#[$doc:meta])* $column:ident is $value:ty: $postgres:ty => $of_postgres:expr, $sqlite:ty => $of_sqlite:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub(super) struct $column(pub(super) $value);

        impl Column for $column {
            type Value = $value;

            fn value(self) -> $value {
                self.0
            }
        }

        column!(@in Postgres $column: $postgres => $of_postgres);
        column!(@in Sqlite $column: $sqlite => $of_sqlite);
    };
    (@in $database:ident $column:ident: $driver:ty => $read:expr) => {
        impl Type<$database> for $column {
            fn type_info() -> <$database as Database>::TypeInfo {
                <$driver as Type<$database>>::type_info()
            }

            fn compatible(of: &<$database as Database>::TypeInfo) -> bool {
                <$driver as Type<$database>>::compatible(of)
            }
        }

        impl<'r> Decode<'r, $database> for $column {
            fn decode(value: <$database as Database>::ValueRef<'r>) -> Result<Self, BoxDynError> {
                $read(<$driver as Decode<$database>>::decode(value)?).map(Self)
            }
        }
    };
}

/// A time of PostgreSQL's, whatever people wrote there: infinity, and years that the driver cannot hold and panics at, are the
/// nearest time that we write ourselves.
struct Moment(DateTime<Utc>);

/// The beginning of PostgreSQL's times, in milliseconds since the Unix epoch.
const YEAR_2000: Millis = 946_684_800_000;

impl Type<Postgres> for Moment {
    fn type_info() -> PgTypeInfo {
        <DateTime<Utc> as Type<Postgres>>::type_info()
    }

    fn compatible(of: &PgTypeInfo) -> bool {
        <DateTime<Utc> as Type<Postgres>>::compatible(of)
    }
}

impl<'r> Decode<'r, Postgres> for Moment {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        match value.format() {
            PgValueFormat::Binary => {
                let micros = i64::from_be_bytes(value.as_bytes()?.try_into()?);
                Ok(Self(time_in_range(micros.div_euclid(1_000).saturating_add(YEAR_2000))))
            }
            PgValueFormat::Text => <DateTime<Utc> as Decode<Postgres>>::decode(value).map(Self),
        }
    }
}

column! {
    /// The id of a row.
    #[derive(Copy)]
    Id is Uuid:
    Uuid => Ok,
    String => |text: String| Ok(Uuid::parse_str(&text)?)
}

column! {
    /// A time, as near to it as both databases hold.
    #[derive(Copy)]
    At is Millis:
    Moment => |moment: Moment| Ok(moment.0.timestamp_millis()),
    DateTime<Utc> => |time: DateTime<Utc>| Ok(time.timestamp_millis())
}

column! {
    /// A time as text for people. What another hand wrote into SQLite shows as it stands.
    Told is String:
    Moment => |moment: Moment| Ok(rfc3339(moment.0)),
    String => Ok
}

column! {
    /// A number of 32 bits without a sign, which neither database has a type for.
    Small is u32: i64 => |number| Ok(u32::try_from(number).unwrap_or(u32::MAX))
}

column! {
    /// How many rows there are.
    Many is u64: i64 => |number: i64| Ok(number.unsigned_abs())
}

column! {
    /// Bytes as they came.
    Body is Bytes: Vec<u8> => |bytes: Vec<u8>| Ok(bytes.into())
}

column! {
    /// JSON. SQLite does not look at what stands in such a column; what is no JSON is read as a text.
    Document is Json:
    Json => Ok,
    String => |text: String| Ok(serde_json::from_str(&text).unwrap_or(Json::String(text)))
}

column! {
    /// Where a letter stands. A check of the table's lets no other name in.
    StatusName is Status: String => |name: String| {
        Status::parse(&name).ok_or_else(|| "a status that is new to headcount".into())
    }
}

column! {
    /// Where a message comes from.
    OriginName is Origin: String => |name: String| Ok(Origin::of(&name))
}

column! {
    /// What happened to a letter.
    ActionName is Action: String => |name: String| Ok(Action::parse(name))
}

column! {
    /// What became of a message; `None` also for a name that only a newer headcount knows.
    OutcomeName is Option<Outcome>: Option<String> => |name: Option<String>| {
        Ok(name.and_then(|name| Outcome::ALL.into_iter().find(|outcome| outcome.as_str() == name)))
    }
}

column! {
    /// How a run ended. A check of the table's lets no other name in.
    ResultName is RunResult: String => |name: String| {
        let result = RunResult::ALL.into_iter().find(|result| result.as_str() == name);
        result.ok_or_else(|| "a result that is new to headcount".into())
    }
}

column! {
    /// How an instance was first met. A check of the table's lets no other name in.
    SeenByName is SeenBy: String => |name: String| {
        let by = SeenBy::ALL.into_iter().find(|by| by.as_str() == name);
        by.ok_or_else(|| "a way that is new to headcount".into())
    }
}

column! {
    /// Where a session stands. A check of the table's lets no other name in.
    SessionStatus is sessions::Status: String => |name: String| {
        let status = sessions::Status::ALL.into_iter().find(|status| status.as_str() == name);
        status.ok_or_else(|| "a status that is new to headcount".into())
    }
}

column! {
    /// Where a subscription item stands. A check of the table's lets no other name in.
    ItemStatus is subscriptions::Status: String => |name: String| {
        let status = subscriptions::Status::ALL.into_iter().find(|status| status.as_str() == name);
        status.ok_or_else(|| "a status that is new to headcount".into())
    }
}

column! {
    /// What an operation is. A check of the table's lets no other name in.
    KindName is operations::Kind: String => |name: String| {
        operations::Kind::parse(&name).ok_or_else(|| "a kind of operation that is new to headcount".into())
    }
}

column! {
    /// How an operation stands. A check of the table's lets no other name in.
    StateName is operations::State: String => |name: String| {
        operations::State::parse(&name).ok_or_else(|| "a state that is new to headcount".into())
    }
}

column! {
    /// What people want of a replay. A check of the table's lets no other name in.
    WishName is operations::Wish: String => |name: String| {
        operations::Wish::parse(&name).ok_or_else(|| "a wish that is new to headcount".into())
    }
}

/// How a value is sent: as what the driver takes.
macro_rules! sent {
    ($column:ident in $database:ident as $driver:ty: $value:expr) => {
        impl Encode<'_, $database> for $column {
            fn encode_by_ref(
                &self,
                buffer: &mut <$database as Database>::ArgumentBuffer,
            ) -> Result<IsNull, BoxDynError> {
                <$driver as Encode<$database>>::encode($value(self.0), buffer)
            }
        }
    };
}

sent!(Id in Postgres as Uuid: |id| id);
sent!(Id in Sqlite as String: |id: Uuid| id.to_string());
sent!(At in Postgres as DateTime<Utc>: time_in_range);
sent!(At in Sqlite as String: |at| rfc3339(time_in_range(at)));

impl PgHasArrayType for Id {
    fn array_type_info() -> PgTypeInfo {
        Uuid::array_type_info()
    }
}

impl PgHasArrayType for At {
    fn array_type_info() -> PgTypeInfo {
        DateTime::<Utc>::array_type_info()
    }
}
