//! Owns writing what the fold has decided: a constant number of statements, each over arrays. Promises an order in
//! which no unique index is ever in the way. Never decides anything.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, Postgres, postgres::PgArguments, query::Query};
use uuid::Uuid;

use super::{apply::Deadline, connections::Tx};
use crate::{
    rules::users::{Folded, FormerId, Outcome, Profile, Row},
    store::{
        Incoming, StoreError,
        batch::{Fresh, Writes, kind_to_number, shown_email, time, time_or_null},
        errors,
    },
    time::Millis,
};

/// Writes users, former ids and the inbox.
pub(super) async fn all(
    tx: &mut Tx,
    deadline: &Deadline,
    default_credits: i64,
    fresh: &Fresh<'_>,
    folded: &Folded,
) -> Result<(), StoreError> {
    let writes = Writes::of(&folded.rows);
    if !writes.yielding.is_empty() {
        let ids: Vec<Uuid> = writes.yielding.iter().map(|row| row.id).collect();
        sqlx::query(YIELD).bind(ids).execute(&mut *tx).await?;
    }
    // Updates before inserts: a relinked row gives up the Clerk id that a new row may then hold.
    if folded.outcomes.contains(&Outcome::Relinked) {
        deadline.holds()?;
        let rows = || writes.brief.iter().chain(&writes.full);
        let ids: Vec<Uuid> = rows().map(|row| row.id).collect();
        let clerk_ids: Vec<&str> = rows().map(|row| row.clerk_id.as_str()).collect();
        sqlx::query(RELINK).bind(ids).bind(clerk_ids).execute(&mut *tx).await?;
    }
    if !writes.brief.is_empty() {
        deadline.holds()?;
        let states = States::of(&writes.brief)?;
        let written = states.bind(sqlx::query(UPDATE_BRIEF)).execute(&mut *tx).await?.rows_affected();
        errors::all_written(written, writes.brief.len())?;
    }
    if !writes.full.is_empty() {
        deadline.holds()?;
        let (states, profiles) = (States::of(&writes.full)?, Profiles::of(&writes.full)?);
        let query = profiles.bind(states.bind(sqlx::query(UPDATE_FULL)));
        errors::all_written(query.execute(&mut *tx).await?.rows_affected(), writes.full.len())?;
    }
    if !writes.new.is_empty() {
        deadline.holds()?;
        let (states, profiles) = (States::of(&writes.new)?, Profiles::of(&writes.new)?);
        let query = profiles.bind(states.bind(sqlx::query(INSERT)));
        let written = query.bind(default_credits).execute(&mut *tx).await?.rows_affected();
        errors::all_written(written, writes.new.len())?;
    }
    if !folded.former.is_empty() {
        insert_former(tx, &folded.former).await?;
    }
    deadline.holds()?;
    insert_inbox(tx, &fresh.inbox(&folded.outcomes)).await
}

/// Asks for the plan of every statement above, which needs the same tables, columns, types, rights and locks as running
/// it, and touches no row.
pub(super) async fn rehearse(tx: &mut Tx, default_credits: i64) -> Result<(), StoreError> {
    let plan = |statement: &'static str| sqlx::query(AssertSqlSafe(format!("EXPLAIN {statement}")));
    let none: Vec<&str> = Vec::new();
    plan(YIELD).bind(Vec::<Uuid>::new()).execute(&mut *tx).await?;
    plan(RELINK).bind(Vec::<Uuid>::new()).bind(&none).execute(&mut *tx).await?;
    States::of(&[])?.bind(plan(UPDATE_BRIEF)).execute(&mut *tx).await?;
    Profiles::of(&[])?.bind(States::of(&[])?.bind(plan(UPDATE_FULL))).execute(&mut *tx).await?;
    let insert = Profiles::of(&[])?.bind(States::of(&[])?.bind(plan(INSERT)));
    insert.bind(default_credits).execute(&mut *tx).await?;
    let (users, times) = (Vec::<Uuid>::new(), Vec::<DateTime<Utc>>::new());
    plan(INSERT_FORMER).bind(&none).bind(users).bind(&times).execute(&mut *tx).await?;
    let inbox = plan(INSERT_INBOX).bind(&none).bind(&none).bind(&none).bind(&none);
    inbox.bind(&times).bind(&times).execute(tx).await?;
    Ok(())
}

const YIELD: &str = "UPDATE users SET email = NULL WHERE id = ANY($1)";

// The only statement that sets a column which a foreign key could refer to: where a BEFORE UPDATE trigger of the
// application's stands on the table, naming one is enough for a lock that foreign keys wait for.
const RELINK: &str = "UPDATE users AS u SET clerk_id = c.clerk_id \
     FROM unnest($1::uuid[], $2::text[]) AS c (id, clerk_id) WHERE u.id = c.id AND u.clerk_id <> c.clerk_id";

macro_rules! state_columns {
    () => {
        "id, clerk_id, email, clerk_email, email_key, email_verified, version, version_sent, version_kind, \
     version_message_id, deleted_at, erased"
    };
}

macro_rules! state_arrays { () => {
    "$1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::boolean[], $7::bigint[], $8::bigint[], \
     $9::smallint[], $10::text[], $11::timestamptz[], $12::boolean[]"
} }

macro_rules! state_set { () => {
    "email = c.email, clerk_email = c.clerk_email, email_key = c.email_key, \
     email_verified = c.email_verified, version = c.version, version_sent = c.version_sent, \
     version_kind = c.version_kind, version_message_id = c.version_message_id, deleted_at = c.deleted_at, \
     erased = c.erased, updated_at = now()"
} }

macro_rules! profile_columns {
    () => {
        "phone, username, first_name, last_name, image_url, external_id, public_metadata, private_metadata, \
     unsafe_metadata, banned, locked, last_sign_in_at, clerk_created_at, clerk_updated_at"
    };
}

macro_rules! profile_arrays { () => {
    "$13::text[], $14::text[], $15::text[], $16::text[], $17::text[], $18::text[], $19::text[], $20::text[], \
     $21::text[], $22::boolean[], $23::boolean[], $24::timestamptz[], $25::timestamptz[], $26::timestamptz[]"
} }

const UPDATE_BRIEF: &str = concat!(
    "UPDATE users AS u SET ",
    state_set!(),
    " FROM unnest(",
    state_arrays!(),
    ") AS c (",
    state_columns!(),
    ") WHERE u.id = c.id",
);

const UPDATE_FULL: &str = concat!(
    "UPDATE users AS u SET ",
    state_set!(),
    ", phone = c.phone, username = c.username, first_name = c.first_name, last_name = c.last_name, \
     image_url = c.image_url, external_id = c.external_id, public_metadata = c.public_metadata::jsonb, \
     private_metadata = c.private_metadata::jsonb, unsafe_metadata = c.unsafe_metadata::jsonb, banned = c.banned, \
     locked = c.locked, last_sign_in_at = c.last_sign_in_at, clerk_created_at = c.clerk_created_at, \
     clerk_updated_at = c.clerk_updated_at \
     FROM unnest(",
    state_arrays!(),
    ", ",
    profile_arrays!(),
    ") AS c (",
    state_columns!(),
    ", ",
    profile_columns!(),
    ") WHERE u.id = c.id",
);

const INSERT: &str = concat!(
    "INSERT INTO users (",
    state_columns!(),
    ", ",
    profile_columns!(),
    ", credits_balance) \
     SELECT ",
    state_columns!(),
    ", phone, username, first_name, last_name, image_url, external_id, \
     public_metadata::jsonb, private_metadata::jsonb, unsafe_metadata::jsonb, banned, locked, last_sign_in_at, \
     clerk_created_at, clerk_updated_at, $27 \
     FROM unnest(",
    state_arrays!(),
    ", ",
    profile_arrays!(),
    ") WITH ORDINALITY AS c (",
    state_columns!(),
    ", ",
    profile_columns!(),
    ", n) ORDER BY n",
);

type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// One array per column that every written row has.
struct States<'a> {
    id: Vec<Uuid>,
    clerk_id: Vec<&'a str>,
    email: Vec<Option<&'a str>>,
    clerk_email: Vec<Option<&'a str>>,
    email_key: Vec<Option<&'a str>>,
    email_verified: Vec<bool>,
    version: Vec<Millis>,
    version_sent: Vec<Millis>,
    version_kind: Vec<i16>,
    version_message_id: Vec<&'a str>,
    deleted_at: Vec<Option<DateTime<Utc>>>,
    erased: Vec<bool>,
}

impl<'a> States<'a> {
    fn of(rows: &[&'a Row]) -> Result<Self, StoreError> {
        let column = |value: fn(&'a Row) -> Option<&'a str>| rows.iter().map(|row| value(row)).collect();
        Ok(Self {
            id: rows.iter().map(|row| row.id).collect(),
            clerk_id: rows.iter().map(|row| row.clerk_id.as_str()).collect(),
            email: column(shown_email),
            clerk_email: column(|row| row.claim.as_ref().map(|claim| claim.address.as_str())),
            email_key: column(|row| row.claim.as_ref().map(|claim| claim.key.as_str())),
            email_verified: rows
                .iter()
                .map(|row| row.claim.as_ref().is_some_and(|claim| claim.verified))
                .collect(),
            version: rows.iter().map(|row| row.version.at).collect(),
            version_sent: rows.iter().map(|row| row.version.sent).collect(),
            version_kind: rows.iter().map(|row| kind_to_number(row.version.kind)).collect(),
            version_message_id: rows.iter().map(|row| row.version.message_id.as_str()).collect(),
            deleted_at: rows.iter().map(|row| time_or_null(row.deleted_at)).collect::<Result<_, _>>()?,
            erased: rows.iter().map(|row| row.erased).collect(),
        })
    }

    fn bind<'q>(self, query: Statement<'q>) -> Statement<'q>
    where
        'a: 'q,
    {
        query
            .bind(self.id)
            .bind(self.clerk_id)
            .bind(self.email)
            .bind(self.clerk_email)
            .bind(self.email_key)
            .bind(self.email_verified)
            .bind(self.version)
            .bind(self.version_sent)
            .bind(self.version_kind)
            .bind(self.version_message_id)
            .bind(self.deleted_at)
            .bind(self.erased)
    }
}

/// One array per other mirrored column. A row without a profile has none to show: all null.
struct Profiles<'a> {
    texts: [Vec<Option<&'a str>>; 9],
    banned: Vec<Option<bool>>,
    locked: Vec<Option<bool>>,
    times: [Vec<Option<DateTime<Utc>>>; 3],
}

impl<'a> Profiles<'a> {
    fn of(rows: &[&'a Row]) -> Result<Self, StoreError> {
        let text = |value: fn(&'a Profile) -> &'a Option<String>| {
            rows.iter()
                .map(|row| row.profile.as_deref().and_then(|profile| value(profile).as_deref()))
                .collect()
        };
        let truth = |value: fn(&Profile) -> Option<bool>| {
            rows.iter().map(|row| row.profile.as_deref().and_then(value)).collect()
        };
        let times = |value: fn(&Profile) -> Option<Millis>| {
            rows.iter()
                .map(|row| time_or_null(row.profile.as_deref().and_then(value)))
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            texts: [
                text(|profile| &profile.phone),
                text(|profile| &profile.username),
                text(|profile| &profile.first_name),
                text(|profile| &profile.last_name),
                text(|profile| &profile.image_url),
                text(|profile| &profile.external_id),
                text(|profile| &profile.public_metadata),
                text(|profile| &profile.private_metadata),
                text(|profile| &profile.unsafe_metadata),
            ],
            banned: truth(|profile| profile.banned),
            locked: truth(|profile| profile.locked),
            times: [
                times(|profile| profile.last_sign_in_at)?,
                times(|profile| profile.created_at)?,
                times(|profile| profile.updated_at)?,
            ],
        })
    }

    fn bind<'q>(self, query: Statement<'q>) -> Statement<'q>
    where
        'a: 'q,
    {
        let query = self.texts.into_iter().fold(query, |query, column| query.bind(column));
        let query = query.bind(self.banned).bind(self.locked);
        self.times.into_iter().fold(query, |query, column| query.bind(column))
    }
}

async fn insert_former(tx: &mut Tx, former: &[FormerId]) -> Result<(), StoreError> {
    let mut former: Vec<_> = former.iter().collect();
    former.sort_by(|a, b| a.clerk_id.cmp(&b.clerk_id));
    let ids: Vec<&str> = former.iter().map(|former| former.clerk_id.as_str()).collect();
    let users: Vec<Option<Uuid>> = former.iter().map(|former| former.user_id).collect();
    let times = former.iter().map(|former| time(former.deleted_at)).collect::<Result<Vec<_>, _>>()?;
    sqlx::query(INSERT_FORMER).bind(ids).bind(users).bind(times).execute(tx).await?;
    Ok(())
}

const INSERT_FORMER: &str = "INSERT INTO former_clerk_ids (clerk_id, user_id, deleted_at) \
     SELECT * FROM unnest($1::text[], $2::uuid[], $3::timestamptz[]) ON CONFLICT DO NOTHING";

// The time of the statement, not of the transaction, so that it follows that of the batch this one waited for.
const INSERT_INBOX: &str = "INSERT INTO inbox \
     (message_id, event_type, clerk_id, outcome, event_at, received_at, processed_at) \
     SELECT m, t, c, o, e, r, statement_timestamp() \
     FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[]) \
     WITH ORDINALITY AS i (m, t, c, o, e, r, n) ORDER BY n ON CONFLICT DO NOTHING";

async fn insert_inbox(tx: &mut Tx, rows: &[(&Incoming, Outcome)]) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let column = |value: fn(&Incoming) -> Option<Millis>| {
        rows.iter().map(|(incoming, _)| time_or_null(value(incoming))).collect::<Result<Vec<_>, _>>()
    };
    let messages: Vec<&str> = rows.iter().map(|(incoming, _)| incoming.event.message_id.as_str()).collect();
    let types: Vec<&str> = rows.iter().map(|(incoming, _)| incoming.event_type.as_str()).collect();
    let ids: Vec<Option<&str>> = rows.iter().map(|(incoming, _)| incoming.event.clerk_id()).collect();
    let outcomes: Vec<&str> = rows.iter().map(|(_, outcome)| outcome.as_str()).collect();
    let insert = sqlx::query(INSERT_INBOX).bind(messages).bind(types).bind(ids).bind(outcomes);
    let insert = insert
        .bind(column(|incoming| incoming.event.at())?)
        .bind(column(|incoming| Some(incoming.received_at))?);
    let inserted = insert.execute(tx).await?.rows_affected();
    if inserted != rows.len() as u64 {
        return Err(errors::raced("another worker has just committed one of the batch's messages"));
    }
    Ok(())
}
