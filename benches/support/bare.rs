//! Owns what headcount's worker is measured against: a loop that consumes, reads each body, writes the same rows into
//! the same tables in batches, one statement each, commits, and acks. It folds nothing: it takes every webhook for news
//! of a user whom nobody else has ever claimed to be, so it is right for the measured webhooks only.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use headcount::{
    clerk,
    message::MessageId,
    rules::{
        Change,
        users::{self, Profile, Upsert},
    },
    time::{Millis, now},
};
use lapin::{
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::{Outcome, broker::Broker};

/// As headcount's worker has them by default.
const PREFETCH: u16 = 600;
const BATCH: usize = 200;
const WAIT: Duration = Duration::from_millis(10);

/// Writes `count` messages from the queue to the database.
pub async fn drain(broker: &Broker, mut database: PgConnection, count: usize) -> Outcome<()> {
    let channel = broker.channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut consumer =
        channel.basic_consume(broker.events().into(), "".into(), options, FieldTable::default()).await?;
    let mut written = 0;
    while written < count {
        let mut batch: Vec<Delivery> = Vec::with_capacity(BATCH);
        while batch.len() < BATCH {
            match tokio::time::timeout(WAIT, consumer.next()).await {
                Ok(delivery) => batch.push(delivery.ok_or("the consumer ended")??),
                Err(_) => break,
            }
        }
        let Some(last) = batch.last() else { continue };
        write(&mut database, &batch).await?;
        channel.basic_ack(last.delivery_tag, BasicAckOptions { multiple: true }).await?;
        written += batch.len();
    }
    channel.close(200, "done".into()).await?;
    Ok(database.close().await?)
}

async fn write(database: &mut PgConnection, batch: &[Delivery]) -> Outcome<()> {
    let mut users: Vec<Upsert> = Vec::with_capacity(batch.len());
    for delivery in batch {
        let id = delivery.properties.message_id().as_ref().map_or("", |id| id.as_str());
        let id = MessageId::parse(id).ok_or("a message without an id")?;
        match clerk::parse(&delivery.data, &clerk::Known::webhook(&id, 0))?.change {
            Change::User(users::Change::Upsert(user)) => users.push(*user),
            _ => return Err("a message that is no user".into()),
        }
    }
    let received: Vec<_> = batch.iter().map(received_at).collect();
    let mut tx = database.begin().await?;
    write_users(&mut tx, &users).await?;
    sqlx::query(
        "INSERT INTO inbox (message_id, event_type, clerk_id, outcome, event_at, received_at, processed_at) \
         SELECT m, 'user.updated', c, 'updated', e, r, statement_timestamp() \
         FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[]) AS i (m, c, e, r) \
         ON CONFLICT DO NOTHING",
    )
    .bind(column(&users, |user| user.version.message_id.as_str()))
    .bind(column(&users, |user| user.clerk_id.as_str()))
    .bind(column(&users, |user| time(Some(user.version.at))))
    .bind(received)
    .execute(&mut *tx)
    .await?;
    Ok(tx.commit().await?)
}

async fn write_users(tx: &mut PgConnection, users: &[Upsert]) -> Outcome<()> {
    let email = || column(users, |user| user.claim.as_ref().map(|claim| claim.address.as_str()));
    let text =
        |value: fn(&Profile) -> &Option<String>| column(users, move |user| value(&user.profile).as_deref());
    sqlx::query(
        "INSERT INTO users (id, clerk_id, email, clerk_email, email_key, email_verified, version, version_sent, \
         version_kind, version_message_id, phone, username, first_name, last_name, image_url, external_id, \
         public_metadata, private_metadata, unsafe_metadata, banned, locked, last_sign_in_at, clerk_created_at, \
         clerk_updated_at, credits_balance) \
         SELECT id, clerk_id, email, email, email_key, verified, version, sent, 1, message_id, phone, username, \
         first_name, last_name, image_url, external_id, public::jsonb, private::jsonb, unsafe::jsonb, banned, locked, \
         signed_in, created, updated, 10000 \
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::boolean[], $6::bigint[], $7::bigint[], \
         $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], \
         $16::text[], $17::text[], $18::boolean[], $19::boolean[], $20::timestamptz[], $21::timestamptz[], \
         $22::timestamptz[]) \
         AS c (id, clerk_id, email, email_key, verified, version, sent, message_id, phone, username, first_name, \
         last_name, image_url, external_id, public, private, unsafe, banned, locked, signed_in, created, updated) \
         ON CONFLICT (clerk_id) DO UPDATE SET email = excluded.email, clerk_email = excluded.clerk_email, \
         email_key = excluded.email_key, email_verified = excluded.email_verified, version = excluded.version, \
         version_sent = excluded.version_sent, version_kind = excluded.version_kind, \
         version_message_id = excluded.version_message_id, phone = excluded.phone, username = excluded.username, \
         first_name = excluded.first_name, last_name = excluded.last_name, image_url = excluded.image_url, \
         external_id = excluded.external_id, public_metadata = excluded.public_metadata, \
         private_metadata = excluded.private_metadata, unsafe_metadata = excluded.unsafe_metadata, \
         banned = excluded.banned, locked = excluded.locked, last_sign_in_at = excluded.last_sign_in_at, \
         clerk_created_at = excluded.clerk_created_at, clerk_updated_at = excluded.clerk_updated_at, \
         updated_at = now()",
    )
    .bind(column(users, |_| Uuid::now_v7()))
    .bind(column(users, |user| user.clerk_id.as_str()))
    .bind(email())
    .bind(column(users, |user| user.claim.as_ref().map(|claim| claim.key.as_str())))
    .bind(column(users, |user| user.claim.as_ref().is_some_and(|claim| claim.verified)))
    .bind(column(users, |user| user.version.at))
    .bind(column(users, |user| user.version.sent))
    .bind(column(users, |user| user.version.message_id.as_str()))
    .bind(text(|profile| &profile.phone))
    .bind(text(|profile| &profile.username))
    .bind(text(|profile| &profile.first_name))
    .bind(text(|profile| &profile.last_name))
    .bind(text(|profile| &profile.image_url))
    .bind(text(|profile| &profile.external_id))
    .bind(text(|profile| &profile.public_metadata))
    .bind(text(|profile| &profile.private_metadata))
    .bind(text(|profile| &profile.unsafe_metadata))
    .bind(column(users, |user| user.profile.banned))
    .bind(column(users, |user| user.profile.locked))
    .bind(column(users, |user| time(user.profile.last_sign_in_at)))
    .bind(column(users, |user| time(user.profile.created_at)))
    .bind(column(users, |user| time(user.profile.updated_at)))
    .execute(tx)
    .await?;
    Ok(())
}

fn column<'a, T>(users: &'a [Upsert], value: impl Fn(&'a Upsert) -> T) -> Vec<T> {
    users.iter().map(value).collect()
}

fn time(millis: Option<Millis>) -> Option<DateTime<Utc>> {
    millis.and_then(DateTime::from_timestamp_millis)
}

fn received_at(delivery: &Delivery) -> Option<DateTime<Utc>> {
    let headers = delivery.properties.headers().as_ref();
    let value = headers.and_then(|headers| headers.inner().get("x-received-at"));
    let millis = value.and_then(lapin::types::AMQPValue::as_long_long_int).unwrap_or_else(now);
    time(Some(millis))
}
