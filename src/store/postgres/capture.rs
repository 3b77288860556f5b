//! Owns taking letters in: one transaction with a constant number of statements, however many letters come.

use uuid::Uuid;

use super::{PostgresStore, connections::Tx, transaction::ALONE};
use crate::store::{
    StoreError,
    plain::{OURSELVES, Plain},
    unit::Transaction as _,
};

/// Captures letters: one per message id, in the order of message ids. Returns the message ids of those that are new.
pub(super) async fn letters(store: &PostgresStore, letters: &[Plain<'_>]) -> Result<Vec<String>, StoreError> {
    let mut tx = store.connections.begin(ALONE).await?;
    let messages: Vec<&str> = letters.iter().map(|letter| letter.message_id.as_str()).collect();
    let applied = hold(&mut tx, &messages).await?;
    let new = insert(&mut tx, letters).await?;
    tx.apply_letters(&applied.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    // Removes the places that were held; the inbox's own rows stay.
    sqlx::query("DELETE FROM inbox WHERE message_id = ANY($1) AND outcome = 'capturing'")
        .bind(&messages)
        .execute(&mut tx)
        .await?;
    // The boundary: captured before the delivery is acked.
    tx.commit().await?;
    if store.erases() && !applied.is_empty() {
        forget(store, letters).await?;
    }
    Ok(new)
}

/// Holds the messages' places in the inbox until the transaction ends, and returns the messages whose places are taken:
/// they took effect. A batch that is just committing one of them is waited for; one that comes later waits, and then
/// sees the letter. So no message ends with both an effect and an open letter.
async fn hold(tx: &mut Tx, messages: &[&str]) -> Result<Vec<String>, StoreError> {
    let taken = sqlx::query_scalar(
        "WITH held AS (INSERT INTO inbox (message_id, event_type, outcome, received_at, processed_at) \
         SELECT m, '', 'capturing', now(), now() FROM unnest($1::text[]) WITH ORDINALITY AS i (m, n) ORDER BY n \
         ON CONFLICT DO NOTHING RETURNING message_id) \
         SELECT m FROM unnest($1::text[]) AS m EXCEPT SELECT message_id FROM held",
    );
    Ok(taken.bind(messages).fetch_all(tx).await?)
}

async fn insert(tx: &mut Tx, letters: &[Plain<'_>]) -> Result<Vec<String>, StoreError> {
    fn column<'l, T>(letters: &'l [Plain<'l>], value: fn(&'l Plain<'l>) -> T) -> Vec<T> {
        letters.iter().map(value).collect()
    }
    let new = sqlx::query_scalar(
        "WITH died AS (INSERT INTO dead_letters AS l (id, message_id, round, event_type, clerk_id, reason, detail, \
         attempts, first_seen, died_at, grp, search, origin, status, captured_round) \
         SELECT id, message_id, round, event_type, clerk_id, reason, detail, attempts, first_seen, died_at, grp, \
         search, origin, 'open', round \
         FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], \
         $8::bigint[], $9::timestamptz[], $10::timestamptz[], $11::text[], $12::text[], $16::text[]) \
         WITH ORDINALITY AS c (id, message_id, round, event_type, clerk_id, reason, detail, attempts, first_seen, \
         died_at, grp, search, origin, n) ORDER BY n \
         ON CONFLICT (message_id) DO UPDATE SET round = excluded.round, event_type = excluded.event_type, \
         clerk_id = excluded.clerk_id, reason = excluded.reason, detail = excluded.detail, \
         attempts = excluded.attempts, died_at = excluded.died_at, grp = excluded.grp, search = excluded.search, \
         origin = excluded.origin, status = 'open', captured_round = excluded.round, settled_at = NULL, outcome = NULL, erased = false \
         WHERE excluded.round > l.captured_round \
         RETURNING id, message_id, died_at, round, reason, detail), \
         held AS (INSERT INTO dead_letter_contents (letter_id, headers, body) SELECT id, headers::jsonb, body \
         FROM died JOIN unnest($2::text[], $13::text[], $14::bytea[]) AS c (message_id, headers, body) \
         USING (message_id) \
         ON CONFLICT (letter_id) DO UPDATE SET headers = excluded.headers, body = excluded.body), \
         noted AS (INSERT INTO dead_letter_history (letter_id, at, action, round, by, note) \
         SELECT id, died_at, 'died', round, $15, concat_ws(': ', reason, nullif(detail, '')) FROM died) \
         SELECT message_id FROM died",
    )
    .bind(column(letters, |letter| letter.id))
    .bind(column(letters, |letter| letter.message_id.as_str()))
    .bind(column(letters, |letter| letter.round))
    .bind(column(letters, |letter| letter.event_type.as_str()))
    .bind(column(letters, |letter| letter.clerk_id.as_deref()))
    .bind(column(letters, |letter| letter.reason.as_str()))
    .bind(column(letters, |letter| letter.detail.as_str()))
    .bind(column(letters, |letter| letter.attempts))
    .bind(column(letters, |letter| letter.first_seen))
    .bind(column(letters, |letter| letter.died_at))
    .bind(column(letters, |letter| letter.group.as_str()))
    .bind(column(letters, |letter| letter.search.as_str()))
    .bind(column(letters, |letter| letter.headers.as_str()))
    .bind(column(letters, |letter| letter.body))
    .bind(OURSELVES)
    .bind(column(letters, |letter| letter.origin))
    .fetch_all(tx)
    .await?;
    Ok(new)
}

/// Erases those of deleted users. After the capture's commit, so that a deletion that did not see the letters is seen
/// here: their users' rows are locked first, in the weakest way that waits for one. A crash before this leaves the delivery unacked, and it comes again.
async fn forget(store: &PostgresStore, letters: &[Plain<'_>]) -> Result<(), StoreError> {
    let users: Vec<&str> = letters.iter().filter_map(|letter| letter.clerk_id.as_deref()).collect();
    let mut tx = store.connections.begin(ALONE).await?;
    let _: Vec<Uuid> =
        sqlx::query_scalar("SELECT id FROM users WHERE clerk_id = ANY($1) ORDER BY id FOR SHARE")
            .bind(&users)
            .fetch_all(&mut tx)
            .await?;
    tx.erase_letters(&users).await?;
    tx.commit().await?;
    Ok(())
}
