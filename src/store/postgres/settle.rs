//! Owns what taking effect does to a letter: it is applied, and of a deleted user it keeps nothing personal where
//! deletion erases. Locks letters in the order of their message ids. Part of transactions that are others'.

use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::connections::Tx;
use crate::store::{StoreError, plain::OURSELVES};

/// Sets the letters of these messages, which are in the inbox, to `applied`, with their outcome. Returns the Clerk ids that they are about.
pub(super) async fn applied(tx: &mut Tx, messages: &[impl AsRef<str>]) -> Result<Vec<String>, StoreError> {
    let messages: Vec<&str> = messages.iter().map(AsRef::as_ref).collect();
    // A question of its own, because nearly always it is all that there is to do.
    let letters: Vec<(Uuid, Option<String>)> =
        sqlx::query_as(UNSETTLED).bind(messages).fetch_all(&mut *tx).await?;
    if letters.is_empty() {
        return Ok(Vec::new());
    }
    let (ids, users): (Vec<Uuid>, Vec<Option<String>>) = letters.into_iter().unzip();
    sqlx::query(APPLIED).bind(ids).bind(OURSELVES).execute(tx).await?;
    Ok(users.into_iter().flatten().collect())
}

/// Takes what is personal from the settled letters of those of these Clerk ids that are deleted. Only where
/// deletion erases.
pub(super) async fn erase(tx: &mut Tx, clerk_ids: &[impl AsRef<str>]) -> Result<(), StoreError> {
    if clerk_ids.is_empty() {
        return Ok(());
    }
    let clerk_ids: Vec<&str> = clerk_ids.iter().map(AsRef::as_ref).collect();
    // All of their letters are locked first, so that one that is being discarded right now is waited for.
    let letters: Vec<(Uuid, String)> = sqlx::query_as(UNERASED).bind(clerk_ids).fetch_all(&mut *tx).await?;
    if letters.is_empty() {
        return Ok(());
    }
    let (ids, groups): (Vec<Uuid>, Vec<String>) = letters.into_iter().unzip();
    sqlx::query(ERASED).bind(ids).execute(&mut *tx).await?;
    sqlx::query(TIDIED).bind(groups).execute(tx).await?;
    Ok(())
}

/// Asks for the plans of the statements above, which need the same tables, columns, rights and locks as running them.
/// What the triggers on letters write counts too.
pub(super) async fn rehearse(tx: &mut Tx, erases: bool) -> Result<(), StoreError> {
    let plan = |statement: &'static str| sqlx::query(AssertSqlSafe(format!("EXPLAIN {statement}")));
    let (none, ids) = (Vec::<&str>::new(), Vec::<Uuid>::new());
    plan(UNSETTLED).bind(&none).execute(&mut *tx).await?;
    plan(APPLIED).bind(&ids).bind(OURSELVES).execute(&mut *tx).await?;
    plan(TALLY).execute(&mut *tx).await?;
    if erases {
        plan(UNERASED).bind(&none).execute(&mut *tx).await?;
        plan(ERASED).bind(&ids).execute(&mut *tx).await?;
        plan(TIDIED).bind(&none).execute(&mut *tx).await?;
    }
    Ok(())
}

const UNSETTLED: &str = "SELECT id, clerk_id FROM dead_letters WHERE message_id = ANY($1) AND status <> 'applied' \
     ORDER BY message_id COLLATE \"C\" FOR UPDATE";

const APPLIED: &str = "WITH changed AS (UPDATE dead_letters SET status = 'applied', \
     settled_at = statement_timestamp(), outcome = (SELECT outcome FROM inbox AS i WHERE i.message_id = dead_letters.message_id) \
     WHERE id = ANY($1) RETURNING id, round) \
     INSERT INTO dead_letter_history (letter_id, at, action, round, by) \
     SELECT id, statement_timestamp(), 'applied', round, $2 FROM changed";

/// What the triggers do.
const TALLY: &str = "INSERT INTO dead_letter_tallies (grp, reason, event_type, status, letters) \
     SELECT '', '', '', '', 0 WHERE false";

const UNERASED: &str = "SELECT id, grp FROM dead_letters WHERE clerk_id = ANY($1) AND NOT erased \
     ORDER BY message_id COLLATE \"C\" FOR UPDATE";

const ERASED: &str = "WITH changed AS (UPDATE dead_letters AS l \
     SET detail = '', grp = reason, search = lower(message_id), erased = true \
     WHERE id = ANY($1) AND status IN ('applied', 'discarded') \
     AND (EXISTS (SELECT FROM users AS u WHERE u.clerk_id = l.clerk_id AND u.erased) \
     OR EXISTS (SELECT FROM former_clerk_ids AS f WHERE f.clerk_id = l.clerk_id)) RETURNING id), \
     emptied AS (UPDATE dead_letter_contents AS c SET body = '', headers = '{}' FROM changed \
     WHERE c.letter_id = changed.id) \
     UPDATE dead_letter_history AS h SET note = NULL FROM changed \
     WHERE h.letter_id = changed.id AND h.note IS NOT NULL";

/// A group's name may have been of the erased detail: of those that are empty now, the ledger keeps nothing either.
const TIDIED: &str = "WITH gone AS (DELETE FROM dead_letter_tallies WHERE ctid = ANY(ARRAY(\
     SELECT ctid FROM dead_letter_tallies WHERE grp = ANY($1) FOR UPDATE SKIP LOCKED)) RETURNING *) \
     INSERT INTO dead_letter_tallies SELECT grp, reason, event_type, status, sum(letters) FROM gone \
     GROUP BY grp, reason, event_type, status HAVING sum(letters) <> 0";
