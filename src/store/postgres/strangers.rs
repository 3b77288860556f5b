//! Owns asking who may read our tables that should not: roles which an API in front of the database gives to anybody, as
//! Supabase and PostgREST do, and everybody (`PUBLIC`). A table with row security is its owner's to judge. Changes nothing.

use super::{PostgresStore, connections::PEOPLE};
use crate::store::{StoreError, Stranger, migrations};

/// What such roles are called: Supabase's two, PostgREST's and Hasura's own examples.
const ROLES: [&str; 4] = ["anon", "authenticated", "web_anon", "anonymous"];

pub(super) async fn ask(store: &PostgresStore) -> Result<Vec<Stranger>, StoreError> {
    let mut tx = store.connections.begin(PEOPLE).await?;
    let readers: Vec<(String, Vec<String>)> = sqlx::query_as(
        "WITH roles AS (SELECT rolname::text AS name, rolname::text AS shown FROM pg_roles WHERE rolname = ANY($1) \
         UNION ALL SELECT 'public', 'PUBLIC') \
         SELECT shown, array_agg(relname::text ORDER BY relname) FROM roles, pg_class AS c \
         JOIN pg_namespace AS n ON n.oid = relnamespace \
         WHERE nspname = $2 AND relname = ANY($3) AND relkind IN ('r', 'p') AND NOT relrowsecurity \
         AND has_schema_privilege(name, n.oid, 'USAGE') AND has_any_column_privilege(name, c.oid, 'SELECT') \
         GROUP BY shown ORDER BY shown",
    )
    .bind(&ROLES[..])
    .bind(store.connections.schema())
    .bind(migrations::to_come(None))
    .fetch_all(&mut tx)
    .await?;
    tx.commit().await?;
    Ok(readers.into_iter().map(|(role, tables)| Stranger { role, tables }).collect())
}
