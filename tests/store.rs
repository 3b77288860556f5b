//! The contract of the store, tested on both backends, and cases of one backend alone.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "so does a test fail"
)]

#[path = "support/stores.rs"]
mod stores;

#[path = "support/contended.rs"]
mod contended;

use std::sync::Arc;

use headcount::{
    rules::{
        Outcome::{self, *},
        subscriptions::tiers::{PastDue, Tiers},
        users::{OnDelete, Policy, Relink},
    },
    secret::Secret,
    store::{self, Backend, Class, Store, StoreConfig, StoreError, UserQuery, sqlite::SqliteStore},
};
use stores::{CREDITS, Home, KEEP, apply, contract, created, deleted, other, row, rows, updated};

const X: &str = "x@example.com";

contract! {
    migrating_again_does_nothing
    processes_that_migrate_at_once_do_it_once
    a_missing_schema_is_named
    an_older_schema_is_refused_and_a_newer_one_accepted
    tables_of_the_first_migration_are_brought_up_to_date
    a_foreign_rejections_table_is_refused_before_anything_is_changed
    a_users_table_of_somebody_else_is_refused
    a_batch_has_an_outcome_for_each_message_in_its_order
    every_column_is_mirrored
    a_message_takes_effect_once
    a_waiting_message_leaves_no_trace
    an_address_passes_to_the_next_best
    addresses_swap_in_one_batch
    addresses_are_one_without_regard_to_case
    a_returning_user_gets_the_row_back
    a_relink_that_a_trigger_skips_changes_nothing
    a_displaced_account_gets_a_row_of_its_own
    the_applications_columns_are_never_overwritten
    an_erased_row_keeps_nothing_personal
    an_id_deleted_before_it_was_seen_stays_deleted
    what_the_database_refuses_is_the_messages_fault_and_changes_nothing
    a_clash_with_the_applications_unique_index_is_retried_then_permanent
    a_transaction_the_database_ends_leaves_the_store_fit_for_the_next
    a_missing_table_is_named_and_nothing_is_changed
    users_are_paged_and_searched
    a_user_is_found_by_id_clerk_id_former_id_and_address
    totals_count
    a_store_that_takes_writes_is_ready
    a_table_or_column_that_apply_needs_and_readiness_misses_is_told
    asking_for_readiness_leaves_nothing_and_fires_nothing
    two_stores_that_insert_the_same_user_end_with_one_row
    a_creation_and_a_deletion_that_race_leave_nobody_alive
    a_newcomer_and_the_holder_of_an_address_that_race_agree
    workers_that_contend_converge
}

/// The names of all migrations, in their order.
fn migrations() -> Vec<String> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/postgres");
    let files = std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().file_name());
    let mut names: Vec<String> =
        files.map(|name| name.to_str().unwrap().trim_end_matches(".sql").to_owned()).collect();
    names.sort();
    names
}

async fn migrating_again_does_nothing(home: Arc<Home>) {
    let store = home.open().await;
    assert_eq!(store.migrate().await.unwrap(), migrations());
    assert!(store.migrate().await.unwrap().is_empty());
    assert!(home.open().await.migrate().await.unwrap().is_empty());
    store.check_schema().await.unwrap();
}

async fn processes_that_migrate_at_once_do_it_once(home: Arc<Home>) {
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let home = home.clone();
            tokio::spawn(async move { home.open().await.migrate().await.unwrap().len() })
        })
        .collect();
    let mut applied = 0;
    for task in tasks {
        applied += task.await.unwrap();
    }
    assert_eq!(applied, migrations().len());
}

async fn a_missing_schema_is_named(home: Arc<Home>) {
    let error = home.open().await.check_schema().await.unwrap_err();
    assert_eq!((error.class, error.hint.as_deref()), (Class::Unusable, Some("run `headcount migrate`")));
}

async fn an_older_schema_is_refused_and_a_newer_one_accepted(home: Arc<Home>) {
    let store = home.store().await;
    let newer = "INSERT INTO headcount_migrations (version, description, success, checksum, execution_time) \
                 SELECT 9999, 'later', success, checksum, 0 FROM headcount_migrations WHERE version = 1";
    home.sql(newer).await;
    store.check_schema().await.unwrap();
    assert!(store.migrate().await.unwrap().is_empty());
    home.sql("DELETE FROM headcount_migrations WHERE version = 1").await;
    let error = store.check_schema().await.unwrap_err();
    assert_eq!((error.class, error.hint.as_deref()), (Class::Unusable, Some("run `headcount migrate`")));
    assert!(error.message.contains("older"), "{error}");
}

/// What the first release made: users and the inbox, with a row in each.
async fn at_the_first_migration(home: &Home) -> Arc<dyn Store> {
    let store = home.store().await;
    apply(&store, [created("ann", 10).event()]).await.unwrap();
    for table in [
        "dead_letter_history",
        "dead_letter_contents",
        "dead_letters",
        "dead_letter_tallies",
        "rejections",
        "retention_clock",
        "instances",
        "leases",
        "sync_runs",
        "sync_ids",
        "sessions",
        "anonymous_visitors",
        "subscription_items",
        "tier_grants",
        "processes",
        "operations",
    ] {
        home.sql(&format!("DROP TABLE {table}")).await;
    }
    home.sql("DROP INDEX inbox_ignored; DROP INDEX users_to_erase; ALTER TABLE users DROP COLUMN clerk; DELETE FROM headcount_migrations WHERE version > 1").await;
    if home.is_postgres() {
        home.sql("DROP FUNCTION dead_letters_tally").await;
    }
    store
}

async fn tables_of_the_first_migration_are_brought_up_to_date(home: Arc<Home>) {
    let store = at_the_first_migration(&home).await;
    let error = store.check_schema().await.unwrap_err();
    assert_eq!((error.class, error.hint.as_deref()), (Class::Unusable, Some("run `headcount migrate`")));
    assert!(error.message.contains("lacks 0002_dead_letters_and_rejections"), "{error}");
    assert_eq!(store.migrate().await.unwrap(), migrations()[1..]);
    store.check_schema().await.unwrap();
    assert_eq!(row(&store, "ann").await.version, 10);
}

async fn a_foreign_rejections_table_is_refused_before_anything_is_changed(home: Arc<Home>) {
    let store = at_the_first_migration(&home).await;
    home.sql("CREATE TABLE rejections (id integer)").await;
    for error in [store.migrate().await.unwrap_err(), store.check_schema().await.unwrap_err()] {
        assert_eq!(error.class, Class::Unusable);
        assert!(error.message.contains("rejections"), "{error}");
    }
    home.sql("DROP TABLE rejections").await;
    assert_eq!(store.migrate().await.unwrap(), migrations()[1..]);
}

async fn a_users_table_of_somebody_else_is_refused(home: Arc<Home>) {
    if let Backend::Postgres { schema, .. } = &home.backend {
        home.sql(&format!("CREATE SCHEMA {schema}")).await;
    }
    home.sql("CREATE TABLE users (id integer)").await;
    let store = home.open().await;
    for error in [store.migrate().await.unwrap_err(), store.check_schema().await.unwrap_err()] {
        let setting = if home.is_postgres() { "HEADCOUNT_SCHEMA" } else { "HEADCOUNT_DATA_DIR" };
        assert_eq!(error.class, Class::Unusable);
        assert!(error.hint.as_deref().unwrap_or_default().contains(setting), "{error:?}");
    }
    assert_eq!(home.number("SELECT count(*) FROM users").await, 0);
}

async fn a_batch_has_an_outcome_for_each_message_in_its_order(home: Arc<Home>) {
    let store = home.store().await;
    let batch = [
        updated("ann", 20).verified(X).event(),
        created("bob", 30).event(),
        created("ann", 10).event(),
        other("m1"),
        deleted("cat", 5),
        deleted("bob", 40),
    ];
    assert_eq!(apply(&store, batch).await.unwrap(), [Updated, Created, Created, Ignored, Deleted, Deleted]);
    assert_eq!(apply(&store, [updated("ann", 15).event()]).await.unwrap(), [Stale]);
    assert_eq!(apply(&store, []).await.unwrap(), []);
    let ann = row(&store, "ann").await;
    assert_eq!((ann.email.as_deref(), ann.version, ann.credits_balance), (Some(X), 20, CREDITS));
    assert_eq!(ann.subscription_tier, "free");
    assert_eq!(row(&store, "bob").await.deleted_at.as_deref(), Some("1970-01-01T00:00:00.040Z"));
    assert_eq!(home.number("SELECT count(*) FROM inbox").await, 7);
}

async fn every_column_is_mirrored(home: Arc<Home>) {
    let store = home.store().await;
    let news = |at, letter: &str| {
        let text = |name: &str| Some(format!("{name} {letter} 'q' \"é\" \\ {{}}"));
        let json = Some(format!("{{\"{letter}\":[1,null,{{\"é\":\"\\\"\"}}]}}"));
        updated("ann", at).unverified("Ann@Example.com").with(|profile| {
            profile.phone = text("phone");
            profile.username = text("username");
            profile.first_name = text("first");
            profile.last_name = text("last");
            profile.image_url = text("image");
            profile.external_id = text("external");
            profile.public_metadata = json.clone();
            profile.private_metadata = Some("null".into());
            profile.unsafe_metadata = json.clone();
            profile.banned = Some(at == 1);
            profile.locked = Some(at == 2);
            profile.last_sign_in_at = Some(1_767_323_045_678 + at);
            profile.created_at = Some(-1);
            profile.updated_at = Some(253_402_300_799_999);
        })
    };
    // The insert, the update, and back to nulls.
    for (at, letter) in [(1, "a"), (2, "b")] {
        apply(&store, [news(at, letter).event()]).await.unwrap();
        let user = row(&store, "ann").await;
        let text = |name: &str| Some(format!("{name} {letter} 'q' \"é\" \\ {{}}"));
        assert_eq!(user.phone, text("phone"));
        assert_eq!(user.username, text("username"));
        assert_eq!(user.first_name, text("first"));
        assert_eq!(user.last_name, text("last"));
        assert_eq!(user.image_url, text("image"));
        assert_eq!(user.external_id, text("external"));
        assert_eq!(user.public_metadata, Some(serde_json::json!({ letter: [1, null, { "é": "\"" }] })));
        assert_eq!(user.private_metadata, Some(serde_json::Value::Null));
        assert_eq!(user.unsafe_metadata, user.public_metadata);
        assert_eq!((user.banned, user.locked), (Some(at == 1), Some(at == 2)));
        assert_eq!(user.last_sign_in_at, Some(format!("2026-01-02T03:04:05.{}Z", 678 + at)));
        assert_eq!(user.clerk_created_at.as_deref(), Some("1969-12-31T23:59:59.999Z"));
        assert_eq!(user.clerk_updated_at.as_deref(), Some("9999-12-31T23:59:59.999Z"));
        assert_eq!(user.email.as_deref(), Some("Ann@Example.com"));
        assert_eq!((user.clerk_email.as_deref(), user.email_verified), (Some("Ann@Example.com"), false));
        assert_eq!(user.version, at);
    }
    apply(&store, [updated("ann", 3).event()]).await.unwrap();
    let user = row(&store, "ann").await;
    assert_eq!((user.email, user.clerk_email, user.username, user.public_metadata), (None, None, None, None));
    assert_eq!((user.banned, user.last_sign_in_at), (None, None));
}

async fn a_message_takes_effect_once(home: Arc<Home>) {
    let store = home.store().await;
    let event = created("ann", 10).event();
    let twice = apply(&store, [event.clone(), other("m"), event.clone(), other("m")]).await.unwrap();
    assert_eq!(twice, [Created, Ignored, Duplicate, Duplicate]);
    let again = [event.clone(), updated("ann", 11).event(), other("m"), event];
    assert_eq!(apply(&store, again).await.unwrap(), [Duplicate, Updated, Duplicate, Duplicate]);
    // The inbox decides, not what the message says.
    let rewritten = updated("ann", 99).message("ann:Created:10").event();
    assert_eq!(apply(&store, [rewritten]).await.unwrap(), [Duplicate]);
    assert_eq!(row(&store, "ann").await.version, 11);
}

async fn a_waiting_message_leaves_no_trace(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [created("ann", 10).verified(X).event()]).await.unwrap();
    let newcomer = created("bob", 20).verified(X);
    let copies = [newcomer.clone().event(), newcomer.clone().event()];
    assert_eq!(apply(&store, copies).await.unwrap(), [Waiting, Waiting]);
    assert_eq!(home.number("SELECT count(*) FROM inbox").await, 1);
    assert_eq!(home.number("SELECT count(*) FROM users").await, 1);
    let late = [deleted("ann", 15), newcomer.event()];
    assert_eq!(apply(&store, late).await.unwrap(), [Deleted, Relinked]);
}

async fn an_address_passes_to_the_next_best(home: Arc<Home>) {
    let store = home.store().await;
    let claims = [
        created("ann", 10).verified(X).event(),
        updated("bob", 20).verified(X).event(),
        updated("cat", 30).unverified(X).event(),
    ];
    apply(&store, claims).await.unwrap();
    for (event, holder) in [
        (other("nothing"), "bob"),
        (updated("bob", 40).verified("bob@example.com").event(), "ann"),
        (deleted("ann", 50), "cat"),
        (updated("bob", 60).unverified(X).event(), "bob"),
        (updated("bob", 70).event(), "cat"),
    ] {
        apply(&store, [event]).await.unwrap();
        let shown: Vec<_> =
            rows(&store).await.into_iter().filter(|user| user.email.as_deref() == Some(X)).collect();
        assert_eq!(shown.iter().map(|user| user.clerk_id.as_str()).collect::<Vec<_>>(), [holder]);
    }
    assert_eq!(row(&store, "ann").await.clerk_email.as_deref(), Some(X));
}

async fn addresses_swap_in_one_batch(home: Arc<Home>) {
    let store = home.store().await;
    let before = [created("ann", 1).verified("a@x").event(), created("bob", 2).verified("b@x").event()];
    apply(&store, before).await.unwrap();
    let after = [updated("ann", 3).verified("b@x").event(), updated("bob", 4).verified("a@x").event()];
    assert_eq!(apply(&store, after).await.unwrap(), [Updated, Updated]);
    assert_eq!(row(&store, "ann").await.email.as_deref(), Some("b@x"));
    assert_eq!(row(&store, "bob").await.email.as_deref(), Some("a@x"));
}

async fn addresses_are_one_without_regard_to_case(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [created("ann", 1).verified("Ä@Example.com").event()]).await.unwrap();
    apply(&store, [updated("bob", 2).verified("ä@example.COM").event()]).await.unwrap();
    assert_eq!(row(&store, "ann").await.email, None);
    assert_eq!(row(&store, "bob").await.email.as_deref(), Some("ä@example.COM"));
    let found = store.user("Ä@EXAMPLE.com").await.unwrap().unwrap();
    assert_eq!(found.user.unwrap().clerk_id, "bob");
}

async fn a_returning_user_gets_the_row_back(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [created("ann", 10).verified(X).event()]).await.unwrap();
    home.sql("UPDATE users SET credits_balance = 77, subscription_tier = 'pro'").await;
    let before = row(&store, "ann").await;
    apply(&store, [deleted("ann", 20)]).await.unwrap();
    assert_eq!(apply(&store, [created("bob", 30).verified(X).event()]).await.unwrap(), [Relinked]);
    let after = row(&store, "bob").await;
    assert_eq!((after.id, after.credits_balance, after.subscription_tier.as_str()), (before.id, 77, "pro"));
    assert_eq!((after.deleted_at, after.created_at), (None, before.created_at));
    let late = [updated("ann", 15).event(), deleted("ann", 5), created("ann", 99).message("again").event()];
    assert_eq!(apply(&store, late).await.unwrap(), [Stale, Stale, Stale]);
    assert_eq!(rows(&store).await.len(), 1);
}

async fn a_relink_that_a_trigger_skips_changes_nothing(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [created("ann", 10).verified(X).named("ann").event(), deleted("ann", 20)]).await.unwrap();
    home.sql(if home.is_postgres() {
        "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$; \
         CREATE TRIGGER skip BEFORE UPDATE ON users FOR EACH ROW \
         WHEN (OLD.clerk_id <> NEW.clerk_id) EXECUTE FUNCTION skip()"
    } else {
        "CREATE TRIGGER skip BEFORE UPDATE OF clerk_id ON users WHEN OLD.clerk_id <> NEW.clerk_id \
         BEGIN SELECT RAISE(IGNORE); END"
    })
    .await;
    let bob = created("bob", 30).verified(X).named("bob");
    let error = apply(&store, [bob.clone().event()]).await.unwrap_err();
    assert_eq!(error.class, Class::Unclear, "{error:?}");
    let ann = row(&store, "ann").await;
    assert_eq!((ann.username.as_deref(), ann.deleted_at.is_some()), (Some("ann"), true));
    home.sql(if home.is_postgres() { "DROP TRIGGER skip ON users" } else { "DROP TRIGGER skip" }).await;
    assert_eq!(apply(&store, [bob.event()]).await.unwrap(), [Relinked]);
}

async fn a_displaced_account_gets_a_row_of_its_own(home: Arc<Home>) {
    let store = home.store_with(Policy { relink: Relink::Match, on_delete: OnDelete::Keep }).await;
    let metadata = "{\"plan\":1}";
    let ann =
        created("ann", 10).verified(X).named("Ann").with(|it| it.public_metadata = Some(metadata.into()));
    apply(&store, [ann.event()]).await.unwrap();
    let before = row(&store, "ann").await;
    let newcomer = created("bob", 20).verified(X).patient_no_more();
    assert_eq!(apply(&store, [newcomer.event()]).await.unwrap(), [Relinked]);
    let (ann, bob) = (row(&store, "ann").await, row(&store, "bob").await);
    assert_eq!((bob.id, bob.email.as_deref(), bob.username), (before.id, Some(X), None));
    assert!(ann.id != before.id);
    assert_eq!((ann.email, ann.clerk_email.as_deref()), (None, Some(X)));
    assert_eq!((ann.username, ann.public_metadata), (before.username, before.public_metadata));
    assert_eq!((ann.version, ann.credits_balance), (10, CREDITS));
}

async fn the_applications_columns_are_never_overwritten(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [created("ann", 10).verified(X).event()]).await.unwrap();
    home.sql("UPDATE users SET credits_balance = -3, subscription_tier = 'team'").await;
    for event in [
        updated("ann", 20).verified("y@example.com").event(),
        updated("bob", 21).verified("y@example.com").event(),
        deleted("ann", 30),
        updated("ann", 31).event(),
    ] {
        apply(&store, [event]).await.unwrap();
        let ann = row(&store, "ann").await;
        assert_eq!((ann.credits_balance, ann.subscription_tier.as_str()), (-3, "team"));
    }
}

async fn an_erased_row_keeps_nothing_personal(home: Arc<Home>) {
    let store = home.store_with(Policy { relink: Relink::Deleted, on_delete: OnDelete::Erase }).await;
    let ann = created("ann", 10).verified(X).with(|profile| {
        profile.phone = Some("1".into());
        profile.public_metadata = Some("{}".into());
        profile.last_sign_in_at = Some(5);
    });
    apply(&store, [ann.event()]).await.unwrap();
    let outcomes = apply(&store, [deleted("ann", 20), updated("ann", 30).verified(X).event()]).await.unwrap();
    assert_eq!(outcomes, [Deleted, Stale]);
    let ann = row(&store, "ann").await;
    assert_eq!((ann.email, ann.clerk_email, ann.phone), (None, None, None));
    assert_eq!((ann.public_metadata, ann.last_sign_in_at), (None, None));
    assert_eq!(home.number("SELECT count(*) FROM users WHERE erased AND email_key IS NULL").await, 1);
    assert_eq!(apply(&store, [created("bob", 40).verified(X).event()]).await.unwrap(), [Created]);
}

async fn an_id_deleted_before_it_was_seen_stays_deleted(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [deleted("ann", 20)]).await.unwrap();
    let late = [created("ann", 10).event(), updated("ann", 30).event(), deleted("ann", 10)];
    assert_eq!(apply(&store, late).await.unwrap(), [Stale, Stale, Stale]);
    assert!(rows(&store).await.is_empty());
    let history = store.user("ann").await.unwrap().unwrap();
    assert!(history.user.is_none());
    assert_eq!(history.former.len(), 1);
    assert_eq!((history.former[0].clerk_id.as_str(), history.former[0].user_id), ("ann", None));
    assert_eq!(history.events.len(), 4);
}

async fn what_the_database_refuses_is_the_messages_fault_and_changes_nothing(home: Arc<Home>) {
    let store = home.store().await;
    home.refuse_username("mallory").await;
    let good = created("ann", 10).verified(X).event();
    let late = created("bad", 11).with(|profile| profile.last_sign_in_at = Some(i64::MAX));
    // A trigger may raise for one message or for all.
    let refused = if home.is_postgres() { Class::Permanent } else { Class::Unclear };
    for (bad, class) in [(created("bad", 12).named("mallory"), refused), (late, Class::Permanent)] {
        for batch in [vec![good.clone(), bad.clone().event()], vec![bad.event()]] {
            let error = apply(&store, batch).await.unwrap_err();
            assert_eq!(error.class, class, "{error:?}");
            assert!(!format!("{error:?}").contains("mallory"), "{error:?}");
        }
    }
    assert_eq!(home.number("SELECT count(*) FROM inbox").await, 0);
    assert!(rows(&store).await.is_empty());
    assert_eq!(apply(&store, [good]).await.unwrap(), [Created]);
}

async fn a_clash_with_the_applications_unique_index_is_retried_then_permanent(home: Arc<Home>) {
    let store = home.store().await;
    home.sql("CREATE UNIQUE INDEX one_phone ON users (phone)").await;
    let with_phone =
        |id: &str| created(id, 10).with(|profile| profile.phone = Some("555-1234".into())).event();
    apply(&store, [with_phone("ann")]).await.unwrap();
    let in_company = apply(&store, [other("m"), with_phone("bob")]).await.unwrap_err();
    assert_eq!(in_company.class, Class::Transient);
    let alone = apply(&store, [with_phone("bob")]).await.unwrap_err();
    assert_eq!(alone.class, Class::Permanent);
    assert!(!format!("{alone:?}").contains("555"), "{alone:?}");
}

async fn a_transaction_the_database_ends_leaves_the_store_fit_for_the_next(home: Arc<Home>) {
    let store = home.store().await;
    home.sql(if home.is_postgres() {
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE EXCEPTION 'house rule' USING ERRCODE = '23514'; END $$; \
         CREATE CONSTRAINT TRIGGER house_rule AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW WHEN (NEW.username = 'mallory') EXECUTE FUNCTION refuse()"
    } else {
        "CREATE TRIGGER house_rule BEFORE INSERT ON users WHEN NEW.username = 'mallory' \
         BEGIN SELECT RAISE(ROLLBACK, 'house rule'); END"
    })
    .await;
    for round in 0..5 {
        let error = apply(&store, [created("bad", 10).named("mallory").event()]).await.unwrap_err();
        let class = if home.is_postgres() { Class::Permanent } else { Class::Unclear };
        assert_eq!(error.class, class, "{error:?}");
        store.ready().await.unwrap();
        assert_eq!(apply(&store, [created(&format!("user_{round}"), 10).event()]).await.unwrap(), [Created]);
    }
}

async fn a_missing_table_is_named_and_nothing_is_changed(home: Arc<Home>) {
    let store = home.store().await;
    home.sql("DROP TABLE inbox").await;
    let error = apply(&store, [created("ann", 10).event()]).await.unwrap_err();
    assert_eq!(error.class, Class::Unclear, "{error:?}");
    assert!(error.message.contains("inbox"), "{error:?}");
    assert!(rows(&store).await.is_empty());
}

async fn users_are_paged_and_searched(home: Arc<Home>) {
    let store = home.store().await;
    for index in 0..5 {
        let user = created(&format!("user_{index}"), index)
            .verified(&format!("User{index}@Example.com"))
            .with(|it| (it.first_name, it.last_name) = (Some("Zoë".into()), Some(format!("Doe {index}"))));
        apply(&store, [user.named(&format!("Nick{index}")).event()]).await.unwrap();
    }
    apply(&store, [deleted("user_3", 50)]).await.unwrap();
    let ids = async |query: UserQuery| -> Vec<String> {
        let users = store.users(&query).await.unwrap();
        users.into_iter().map(|user| user.clerk_id).collect()
    };
    let query = UserQuery { limit: 2, ..UserQuery::default() };
    assert_eq!(ids(query.clone()).await, ["user_4", "user_2"]);
    let after = Some(row(&store, "user_2").await.id);
    assert_eq!(ids(UserQuery { after, ..query.clone() }).await, ["user_1", "user_0"]);
    let all = UserQuery { limit: 10, deleted: true, ..query };
    assert_eq!(ids(all.clone()).await, ["user_4", "user_3", "user_2", "user_1", "user_0"]);
    for (text, found) in [
        ("USER_1", &["user_1"][..]),
        ("user4@EXAMPLE", &["user_4"]),
        ("nick2", &["user_2"]),
        ("Zoë doe 3", &["user_3"]),
        ("%", &[]),
        ("'", &[]),
        ("\0", &[]),
    ] {
        let text = Some(text.to_owned());
        assert_eq!(ids(UserQuery { text: text.clone(), ..all.clone() }).await, found, "{text:?}");
    }
}

async fn a_user_is_found_by_id_clerk_id_former_id_and_address(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [created("ann", 10).verified(X).event(), updated("ann", 11).verified(X).event()])
        .await
        .unwrap();
    apply(&store, [deleted("ann", 20)]).await.unwrap();
    apply(&store, [created("bob", 30).verified(X).event()]).await.unwrap();
    apply(&store, [updated("cat", 25).unverified(X).event(), other("m")]).await.unwrap();
    let id = row(&store, "bob").await.id;
    for reference in [id.to_string().as_str(), "bob", "ann", "X@example.com", " bob "] {
        let history = store.user(reference).await.unwrap().unwrap();
        assert_eq!(history.user.as_ref().map(|user| user.id), Some(id), "{reference}");
        let former: Vec<_> = history.former.iter().map(|former| former.clerk_id.as_str()).collect();
        assert_eq!(former, ["ann"]);
        assert_eq!(history.former[0].deleted_at, "1970-01-01T00:00:00.020Z");
        let story: Vec<_> = history.events.iter().map(|event| event.outcome.as_str()).collect();
        assert_eq!(story, ["created", "updated", "deleted", "relinked"]);
        let last = &history.events[3];
        assert_eq!((last.event_type.as_str(), last.clerk_id.as_deref()), ("user.created", Some("bob")));
        assert_eq!(last.event_at.as_deref(), Some("1970-01-01T00:00:00.030Z"));
        assert_eq!(last.received_at, "2026-01-02T03:04:05.678Z");
        assert_eq!(last.processed_at.len(), "2026-01-02T03:04:05.678Z".len());
    }
    for nobody in ["", "\0", "dan", "y@example.com", &uuid::Uuid::now_v7().to_string()] {
        assert!(store.user(nobody).await.unwrap().is_none(), "{nobody:?}");
    }
}

async fn totals_count(home: Arc<Home>) {
    let store = home.store().await;
    let none = store.totals().await.unwrap();
    assert_eq!((none.live_users, none.deleted_users, none.last_processed_at), (0, 0, None));
    let batch =
        [created("ann", 1).event(), created("bob", 2).event(), created("cat", 3).event(), deleted("bob", 4)];
    apply(&store, batch).await.unwrap();
    let totals = store.totals().await.unwrap();
    assert_eq!((totals.live_users, totals.deleted_users, totals.estimated), (2, 1, false));
    let history = store.user("bob").await.unwrap().unwrap();
    assert_eq!(totals.last_processed_at.as_ref(), history.events.last().map(|event| &event.processed_at));
}

async fn a_store_that_takes_writes_is_ready(home: Arc<Home>) {
    let store = home.store().await;
    store.ready().await.unwrap();
    store.close().await;
    let error = store.ready().await.unwrap_err();
    assert_eq!(error.class, Class::Outage);
}

/// Readiness is refused, with a hint.
async fn unready(store: &Arc<dyn Store>, broken: &str) -> StoreError {
    let error = store.ready().await.expect_err(broken);
    assert!(error.hint.is_some(), "{broken}: {error:?}");
    error
}

async fn a_table_or_column_that_apply_needs_and_readiness_misses_is_told(home: Arc<Home>) {
    let store = home.store().await;
    let users = "id clerk_id email clerk_email email_verified phone username first_name last_name image_url \
                 external_id public_metadata private_metadata unsafe_metadata banned locked credits_balance \
                 last_sign_in_at clerk_created_at clerk_updated_at version version_sent version_kind \
                 version_message_id email_key erased deleted_at updated_at clerk";
    let others = [
        ("users", users),
        ("inbox", "message_id event_type clerk_id outcome event_at received_at processed_at"),
        ("former_clerk_ids", "clerk_id user_id deleted_at"),
        ("dead_letters", "id message_id round clerk_id status settled_at"),
        ("dead_letter_history", "letter_id at action round by"),
        ("dead_letter_tallies", "grp reason event_type status letters"),
    ];
    let mut breaks = Vec::new();
    for (table, columns) in others {
        breaks.push((format!("{table} RENAME TO x"), format!("x RENAME TO {table}")));
        breaks.extend(columns.split_whitespace().map(|column| {
            (format!("{table} RENAME COLUMN {column} TO x"), format!("{table} RENAME COLUMN x TO {column}"))
        }));
    }
    for (broken, mended) in breaks {
        // Where SQLite would rewrite its own triggers along with a table, nothing is missing.
        if !home.is_postgres() && broken.starts_with("dead_letter_tallies") {
            continue;
        }
        home.sql(&format!("ALTER TABLE {broken}")).await;
        unready(&store, &broken).await;
        home.sql(&format!("ALTER TABLE {mended}")).await;
        store.ready().await.unwrap();
    }
    assert_eq!(apply(&store, [created("ann", 10).event()]).await.unwrap(), [Created]);
}

async fn asking_for_readiness_leaves_nothing_and_fires_nothing(home: Arc<Home>) {
    let tiers = Tiers::parse("", PastDue::Keep).unwrap();
    let erase = Policy { on_delete: OnDelete::Erase, ..KEEP };
    let with_billing = StoreConfig { billing: Some(Arc::new(tiers)), ..home.config(erase) };
    let stores = [home.store().await, store::open(&with_billing).await.unwrap()];
    apply(&stores[0], [created("ann", 10).event()]).await.unwrap();
    home.sql("CREATE TABLE fired (n integer)").await;
    home.sql(if home.is_postgres() {
        "CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO fired VALUES (1); \
         RETURN NULL; END $$; \
         CREATE TRIGGER each AFTER INSERT OR UPDATE OR DELETE ON users FOR EACH ROW EXECUTE FUNCTION fire(); \
         CREATE TRIGGER once AFTER INSERT OR UPDATE OR DELETE ON users EXECUTE FUNCTION fire()"
    } else {
        "CREATE TRIGGER inserted AFTER INSERT ON users BEGIN INSERT INTO fired VALUES (1); END; \
         CREATE TRIGGER updated AFTER UPDATE ON users BEGIN INSERT INTO fired VALUES (1); END"
    })
    .await;
    let asking: Vec<_> = (0..20)
        .map(|n| {
            let store = stores[n % 2].clone();
            tokio::spawn(async move { store.ready().await })
        })
        .collect();
    for asked in asking {
        asked.await.unwrap().unwrap();
    }
    assert_eq!(home.number("SELECT count(*) FROM fired").await, 0);
    assert_eq!(home.number("SELECT count(*) FROM inbox").await, 1);
}

async fn two_stores_that_insert_the_same_user_end_with_one_row(home: Arc<Home>) {
    let stores = [home.store().await, home.open().await];
    for round in 0..30 {
        let id = format!("user_{round}");
        let address = format!("{id}@example.com");
        let news = [
            created(&id, 10).verified(&address).event(),
            updated(&id, 20).verified(&address).born(10).event(),
        ];
        let both = [news[0].clone(), news[1].clone()];
        let turned = [news[1].clone(), news[0].clone()];
        let outcomes = at_once(&stores, [both.to_vec(), turned.to_vec()]).await;
        let effects = outcomes.iter().flatten().filter(|outcome| **outcome != Duplicate).count();
        assert_eq!(effects, 2, "{outcomes:?}");
        assert_eq!(row(&stores[0], &id).await.version, 20);
    }
    assert_eq!(rows(&stores[0]).await.len(), 30);
}

async fn a_creation_and_a_deletion_that_race_leave_nobody_alive(home: Arc<Home>) {
    let stores = [home.store().await, home.open().await];
    for round in 0..30 {
        let id = format!("user_{round}");
        let batches = [vec![created(&id, 10).event()], vec![deleted(&id, 20)]];
        let outcomes = at_once(&stores, batches).await;
        assert!(matches!(outcomes[0][..], [Created | Stale]), "{outcomes:?}");
        assert_eq!(outcomes[1], [Deleted]);
    }
    assert_eq!(stores[0].totals().await.unwrap().live_users, 0);
}

async fn a_newcomer_and_the_holder_of_an_address_that_race_agree(home: Arc<Home>) {
    let stores = [home.store().await, home.open().await];
    for round in 0..30 {
        let (ann, bob, address) =
            (format!("ann_{round}"), format!("bob_{round}"), format!("{round}@example.com"));
        apply(&stores[0], [created(&ann, 10).verified(&address).event()]).await.unwrap();
        // Whoever comes second has to see the first: bob is the better claimant until ann's update, which is newer.
        let batches = [
            vec![updated(&ann, 30).verified(&address).event()],
            vec![updated(&bob, 20).verified(&address).event()],
        ];
        at_once(&stores, batches).await;
        assert_eq!(row(&stores[0], &ann).await.email, Some(address));
        assert_eq!(row(&stores[0], &bob).await.email, None);
    }
}

async fn workers_that_contend_converge(home: Arc<Home>) {
    let (workers, events) = if home.is_postgres() { (8, 4_000) } else { (4, 2_000) };
    let stores = [home.store().await, home.open().await];
    contended::converge(&stores, workers, events, 7).await;
}

/// Two batches, each by its own store, as near to the same moment as can be.
async fn at_once(
    stores: &[Arc<dyn Store>; 2],
    batches: [Vec<headcount::store::Incoming>; 2],
) -> [Vec<Outcome>; 2] {
    let barrier = Arc::new(tokio::sync::Barrier::new(2));
    let tasks = stores.clone().into_iter().zip(batches).map(|(store, batch)| {
        let barrier = barrier.clone();
        tokio::spawn(async move {
            barrier.wait().await;
            apply(&store, batch).await.unwrap()
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.unwrap());
    }
    outcomes.try_into().unwrap()
}

// Of one backend alone.

#[tokio::test]
async fn text_that_postgresql_cannot_hold_is_the_messages_fault() {
    let case = async |home: Arc<Home>| {
        let store = home.store().await;
        let metadata = |text: &str| {
            let text = text.to_owned();
            created("bad", 10).with(|profile| profile.public_metadata = Some(text))
        };
        for bad in [
            created("bad", 10).named("a\0b"),
            metadata("{\"a\":\"\\u0000\"}"),
            metadata("{"),
            metadata("\"\\ud800\""),
        ] {
            let error = apply(&store, [bad.event()]).await.unwrap_err();
            assert_eq!((error.class, error.code.get(..2)), (Class::Permanent, Some("22")), "{error:?}");
        }
    };
    Home::postgres().await.run(|home| async move { case(home).await }).await;
}

#[tokio::test]
async fn a_schema_of_its_own_lies_beside_a_users_table_in_public() {
    Home::postgres()
        .await
        .run(|home| async move {
            let store = home.store().await;
            apply(&store, [created("ann", 10).event()]).await.unwrap();
            let Backend::Postgres { schema, .. } = &home.backend else { panic!() };
            assert_eq!(home.number(&format!("SELECT count(*) FROM {schema}.users")).await, 1);
            assert_eq!(home.number("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").await, 0);
        })
        .await;
}

#[tokio::test]
async fn a_server_that_is_away_is_an_outage_and_no_reason_not_to_open() {
    let backend = Backend::Postgres {
        url: Secret::new("postgres://nobody:hunter2@127.0.0.1:1/none"),
        schema: "public".into(),
    };
    let store = store::open(&StoreConfig {
        backend,
        policy: KEEP,
        default_credits: 0,
        sessions: true,
        billing: None,
        connections: 2,
    })
    .await
    .unwrap();
    let error = apply(&store, [other("m")]).await.unwrap_err();
    assert_eq!(error.class, Class::Outage);
    assert!(!format!("{error:?} {store:?}").contains("hunter2"), "{error:?}");
}

#[tokio::test]
async fn a_url_that_is_none_is_unusable() {
    let backend = Backend::Postgres { url: Secret::new("postgres://host:port/db"), schema: "public".into() };
    let config = StoreConfig {
        backend,
        policy: KEEP,
        default_credits: 0,
        sessions: true,
        billing: None,
        connections: 2,
    };
    assert_eq!(store::open(&config).await.unwrap_err().class, Class::Unusable);
}

#[tokio::test]
async fn a_file_that_cannot_be_is_unusable() {
    let directory = tempfile::tempdir().unwrap();
    let text = directory.path().join("notes.txt");
    std::fs::write(&text, "no database, and long enough to be seen as such: ".repeat(100)).unwrap();
    for path in [text.join("headcount.db"), text, directory.path().to_owned()] {
        let backend = Backend::Sqlite { path };
        let config = StoreConfig {
            backend,
            policy: KEEP,
            default_credits: 0,
            sessions: true,
            billing: None,
            connections: 2,
        };
        let error = store::open(&config).await.unwrap_err();
        assert_eq!(error.class, Class::Unusable);
        assert!(error.hint.unwrap().contains("HEADCOUNT_DATA_DIR"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_may_not_write_or_finds_a_table_locked_is_not_ready() {
    Home::postgres()
        .await
        .run(|home| async move {
            let owner = home.store().await;
            let Backend::Postgres { schema, .. } = &home.backend else { panic!() };
            let role = format!("app_{schema}");
            let mut url: url::Url = stores::server().parse().unwrap();
            let password = url.password().unwrap_or_default();
            let tables = "users inbox former_clerk_ids dead_letters dead_letter_history dead_letter_tallies";
            home.sql(&format!(
                "CREATE ROLE {role} LOGIN PASSWORD '{password}'; GRANT USAGE ON SCHEMA {schema} TO {role}; \
                 GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}; \
                 GRANT SELECT ON headcount_migrations TO {role}"
            ))
            .await;
            url.set_username(&role).unwrap();
            let url = Secret::new(url.to_string());
            let backend = Backend::Postgres { url, schema: schema.clone() };
            let config = StoreConfig { backend, ..home.config(KEEP) };
            let store = store::open(&config).await.unwrap();
            store.ready().await.unwrap();

            let grants = [
                ("users", "SELECT INSERT UPDATE"),
                ("inbox", "SELECT INSERT DELETE"),
                ("former_clerk_ids", "SELECT INSERT"),
                ("dead_letters", "SELECT UPDATE"),
                ("dead_letter_history", "INSERT"),
                ("dead_letter_tallies", "INSERT"),
            ];
            for (table, rights) in grants {
                for right in rights.split_whitespace() {
                    home.sql(&format!("REVOKE {right} ON {table} FROM {role}")).await;
                    let error = unready(&store, &format!("{right} on {table}")).await;
                    assert_eq!((error.class, error.code.as_str()), (Class::Unclear, "42501"), "{error:?}");
                    home.sql(&format!("GRANT {right} ON {table} TO {role}")).await;
                    store.ready().await.unwrap();
                }
            }
            for table in tables.split_whitespace() {
                let held = home.hold(&format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).await;
                let error = unready(&store, table).await;
                assert_eq!((error.class, error.code.as_str()), (Class::Unclear, "55P03"), "{error:?}");
                held.let_go().await;
                store.ready().await.unwrap();
            }
            // Rows that somebody has locked concern their users only.
            apply(&owner, [created("ann", 10).event()]).await.unwrap();
            let held = home.hold("SELECT FROM users FOR UPDATE").await;
            store.ready().await.unwrap();
            held.let_go().await;

            home.sql("ALTER TABLE inbox ENABLE ROW LEVEL SECURITY").await;
            unready(&store, "a policy").await;
            home.sql("ALTER TABLE inbox DISABLE ROW LEVEL SECURITY").await;
            store.ready().await.unwrap();

            home.sql(&format!("ALTER ROLE {role} SET default_transaction_read_only = on")).await;
            let error = unready(&store::open(&config).await.unwrap(), "read-only").await;
            assert_eq!((error.class, error.code.as_str()), (Class::Outage, "25006"), "{error:?}");
            home.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
            let error = unready(&store, "no rights at all").await;
            assert!(!format!("{error:?}").contains("headcount asks"), "{error:?}");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_table_of_users_is_estimated_and_says_so() {
    Home::postgres()
        .await
        .run(|home| async move {
            let store = home.store().await;
            // A row a page.
            home.sql("ALTER TABLE users ALTER COLUMN first_name SET STORAGE PLAIN").await;
            home.sql(
                "INSERT INTO users (id, clerk_id, first_name, credits_balance, version, version_sent, version_kind, \
                 version_message_id, deleted_at) \
                 SELECT gen_random_uuid(), 'user_' || n, repeat('x', 7000), 0, n, n, 0, 'm' || n, \
                 CASE WHEN n % 5 = 0 THEN now() END FROM generate_series(1, 17000) AS n; ANALYZE users",
            )
            .await;
            let totals = store.totals().await.unwrap();
            assert!(totals.estimated);
            assert!((13_000..14_200).contains(&totals.live_users), "{totals:?}");
            assert!((2_800..4_000).contains(&totals.deleted_users), "{totals:?}");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_who_give_up_leave_the_file_fit_for_the_next() {
    Home::sqlite()
        .await
        .run(|home| async move {
            home.store().await.close().await;
            let Backend::Sqlite { path } = &home.backend else { panic!("not a file") };
            // Without the watchdog, which lets nobody break off anything.
            let store = SqliteStore::open(path, &home.config(KEEP)).await.unwrap();
            let store: Arc<dyn Store> = Arc::new(store);
            for round in 0..100_u64 {
                let batch: Arc<[_]> =
                    (0..20).map(|n| created(&format!("user_{round}_{n}"), 10).event()).collect();
                let applying = tokio::spawn({
                    let store = Arc::clone(&store);
                    async move { store.apply(batch).await }
                });
                tokio::time::sleep(std::time::Duration::from_micros(round * 60)).await;
                // Wherever it is: before its turn, between two statements, in its commit.
                applying.abort();
                let _ = applying.await;
                let kept = apply(&store, [created(&format!("kept_{round}"), 10).event()]).await;
                assert_eq!(kept.unwrap(), [Created]);
            }
            store.ready().await.unwrap();
            assert_eq!(home.number("SELECT count(*) FROM users WHERE clerk_id LIKE 'kept%'").await, 100);
            // Each batch is there as a whole, or not at all.
            let users = home.number("SELECT count(*) FROM users WHERE clerk_id LIKE 'user%'").await;
            assert_eq!(users % 20, 0, "{users}");
        })
        .await;
}

// What can only go wrong between two statements: a third transaction holds a row until both batches stand before it.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claimant_that_came_while_the_holder_was_leaving_gets_the_address() {
    Home::postgres()
        .await
        .run(|home| async move {
            let store = home.store().await;
            apply(&store, [created("ann", 10).verified(X).event()]).await.unwrap();
            let held = home.hold("SELECT FROM users WHERE clerk_id = 'ann' FOR UPDATE").await;
            let newcomer = spawn(&store, [updated("bob", 5).unverified(X).event()]);
            held.holds_up(1).await;
            let departure = spawn(&store, [deleted("ann", 20)]);
            held.holds_up(2).await;
            held.let_go().await;
            assert_eq!(newcomer.await.unwrap(), [Created]);
            assert_eq!(departure.await.unwrap(), [Deleted]);
            assert_eq!(row(&store, "bob").await.email.as_deref(), Some(X));
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_changed_while_a_batch_waited_passes_on_all_the_same() {
    Home::postgres()
        .await
        .run(|home| async move {
            let store = home.store().await;
            let (ann, bob) = (created("ann", 10).verified(X), created("bob", 5).verified("y@example.com"));
            apply(&store, [ann.event(), bob.event()]).await.unwrap();
            // As another worker would, which folds news of ann that bob's address is hers.
            let held = home
                .hold(
                    "UPDATE users SET email = NULL WHERE clerk_id = 'bob'; UPDATE users SET version = 15, \
                     clerk_email = 'y@example.com', email_key = 'y@example.com', email = 'y@example.com' \
                     WHERE clerk_id = 'ann'",
                )
                .await;
            let departure = spawn(&store, [deleted("ann", 20)]);
            held.holds_up(1).await;
            held.let_go().await;
            assert_eq!(departure.await.unwrap(), [Deleted]);
            assert_eq!(row(&store, "bob").await.email.as_deref(), Some("y@example.com"));
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn news_of_a_user_without_an_address_that_meets_newer_news_is_stale() {
    Home::postgres()
        .await
        .run(|home| async move {
            let store = home.store().await;
            apply(&store, [created("ann", 10).event()]).await.unwrap();
            let held = home.hold("SELECT FROM users WHERE clerk_id = 'ann' FOR UPDATE").await;
            let newer = spawn(&store, [updated("ann", 30).event()]);
            held.holds_up(1).await;
            let older = spawn(&store, [updated("ann", 20).event()]);
            held.holds_up(2).await;
            held.let_go().await;
            assert_eq!((newer.await.unwrap(), older.await.unwrap()), (vec![Updated], vec![Stale]));
            assert_eq!(row(&store, "ann").await.version, 30);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_another_worker_is_committing_is_a_duplicate() {
    Home::postgres()
        .await
        .run(|home| async move {
            let store = home.store().await;
            let held = home
                .hold(
                    "INSERT INTO inbox (message_id, event_type, outcome, received_at, processed_at) \
                     VALUES ('m', 'email.created', 'ignored', now(), now())",
                )
                .await;
            let copy = spawn(&store, [other("l"), other("m"), created("ann", 10).event()]);
            held.holds_up(1).await;
            held.let_go().await;
            assert_eq!(copy.await.unwrap(), [Ignored, Duplicate, Created]);
        })
        .await;
}

fn spawn(
    store: &Arc<dyn Store>,
    batch: impl IntoIterator<Item = headcount::store::Incoming>,
) -> tokio::task::JoinHandle<Vec<Outcome>> {
    let (store, batch) = (store.clone(), batch.into_iter().collect());
    tokio::spawn(async move { store.apply(batch).await.unwrap() })
}
