//! What people see of letters: filters, pages, groups, counts.

use super::*;

contract! {
    every_filter_selects
    pages_follow_one_another
    a_group_is_found_by_its_id_and_by_its_key
    groups_and_counts_agree_with_the_letters
    counts_stay_true_whatever_happens
    nothing_that_cannot_be_stored_is_found
}

async fn every_filter_selects(home: Arc<Home>) {
    let store = home.store().await;
    let letters = variety(&store).await;
    let listed = list(&store, &all()).await;
    assert_eq!(listed.len(), letters.len());
    let order: Vec<_> = listed.iter().map(|letter| (letter.died_at, letter.id)).collect();
    assert!(order.is_sorted_by(|a, b| a > b), "the last to die first");
    let some = [listed[3].id, listed[50].id, Uuid::now_v7()];
    let text = |text: &str| Filter { text: Some(text.into()), ..all() };
    type Rule = Box<dyn Fn(&Letter) -> bool + Send + Sync>;
    let cases: Vec<(Filter, Rule, usize)> = vec![
        (Filter { ids: some.to_vec(), ..all() }, Box::new(move |l| some.contains(&l.id)), 2),
        (Filter { group: Some("rejected: 1".into()), ..all() }, Box::new(|l| l.group == "rejected: 1"), 10),
        (Filter { status: Some(Status::Open), ..all() }, Box::new(|l| l.status == Status::Open), 41),
        (Filter { status: Some(Status::Replayed), ..all() }, Box::new(|l| l.status == Status::Replayed), 5),
        (
            Filter { event_type: Some("user.deleted".into()), ..all() },
            Box::new(|l| l.event_type == "user.deleted"),
            30,
        ),
        (Filter { reason: Some("unroutable".into()), ..all() }, Box::new(|l| l.reason == "unroutable"), 20),
        (
            Filter { clerk_id: Some("user_2".into()), ..all() },
            Box::new(|l| l.clerk_id.as_deref() == Some("user_2")),
            12,
        ),
        (text("detail 1"), Box::new(|l| l.detail.contains("Detail 1")), 11),
        (text("MSG_2"), Box::new(|l| l.message_id.contains("msg_2")), 10),
        (text("0%_"), Box::new(|_| true), 60),
        (text("e\\"), Box::new(|_| true), 60),
        (text("0__"), Box::new(|_| false), 0),
        (Filter { since: Some(T + 10), ..all() }, Box::new(|l| l.died_at >= T + 10), 40),
        (Filter { until: Some(T + 10), ..all() }, Box::new(|l| l.died_at < T + 10), 20),
        (Filter { since: Some(i64::MIN), until: Some(i64::MAX), ..all() }, Box::new(|_| true), 60),
        (
            Filter {
                status: Some(Status::Discarded),
                reason: Some("exhausted".into()),
                event_type: Some("user.deleted".into()),
                ..text("detail")
            },
            Box::new(|l| l.status == Status::Discarded && l.event_type == "user.deleted"),
            2,
        ),
        (
            Filter { status: Some(Status::Applied), reason: Some("rejected".into()), ..all() },
            Box::new(|l| l.status == Status::Applied && l.reason == "rejected"),
            3,
        ),
    ];
    for (filter, rule, count) in cases {
        let expected: Vec<_> = listed.iter().filter(|letter| rule(letter)).cloned().collect();
        assert_eq!(list(&store, &filter).await, expected, "{filter:?}");
        assert_eq!(expected.len(), count, "{filter:?}");
        let counted: u64 = store.count(&filter).await.unwrap().iter().map(|count| count.letters).sum();
        assert_eq!(counted, count as u64, "{filter:?}");
        let grouped: u64 = store.groups(&filter).await.unwrap().iter().map(|group| group.letters).sum();
        assert_eq!(grouped, count as u64, "{filter:?}");
    }
}

async fn pages_follow_one_another(home: Arc<Home>) {
    let store = home.store().await;
    variety(&store).await;
    for filter in [
        all(),
        Filter { status: Some(Status::Open), ..all() },
        Filter { event_type: Some("user.created".into()), ..all() },
        Filter { text: Some("detail".into()), ..all() },
    ] {
        let whole = list(&store, &filter).await;
        let mut pages = Vec::new();
        let mut page = Page { limit: 7, after: None };
        loop {
            let letters = store.list(&filter, &page).await.unwrap();
            let Some(last) = letters.last() else { break };
            page.after = Some((last.died_at, last.id));
            assert!(letters.len() <= 7);
            pages.extend(letters);
            assert!(pages.len() <= whole.len(), "pages repeat: {filter:?}");
        }
        assert_eq!(pages, whole, "{filter:?}");
    }
    assert!(store.list(&all(), &Page { limit: 0, after: None }).await.unwrap().is_empty());
}

async fn a_group_is_found_by_its_id_and_by_its_key(home: Arc<Home>) {
    let store = home.store().await;
    let other = Captured { group: "rejected: another cause".into(), ..letter("m2") };
    capture(&store, [letter("m1"), other]).await;
    for group in store.groups(&all()).await.unwrap() {
        assert_eq!(group.id, headcount::store::letters::group_id(&group.group));
        for reference in [&group.id, &group.group] {
            assert_eq!(store.groups_named(reference).await.unwrap(), std::slice::from_ref(&group.group));
        }
    }
    assert!(store.groups_named("rejected").await.unwrap().is_empty());
    assert_eq!(headcount::store::letters::group_id("rejected: no such luck"), "152f0d47");
}

async fn groups_and_counts_agree_with_the_letters(home: Arc<Home>) {
    let store = home.store().await;
    variety(&store).await;
    let filters = [
        all(),
        Filter { status: Some(Status::Open), ..all() },
        Filter { event_type: Some("user.created".into()), ..all() },
        Filter { reason: Some("rejected".into()), status: Some(Status::Replayed), ..all() },
        Filter { since: Some(T + 5), ..all() },
        Filter { clerk_id: Some("user_1".into()), ..all() },
    ];
    for filter in filters {
        let letters = list(&store, &filter).await;
        let groups = store.groups(&filter).await.unwrap();
        assert!(groups.is_sorted_by_key(|group| std::cmp::Reverse(group.letters)));
        let names: BTreeSet<_> = letters.iter().map(|letter| &letter.group).collect();
        assert_eq!(groups.len(), names.len(), "{filter:?}");
        for group in groups {
            let of: Vec<_> = letters.iter().filter(|letter| letter.group == group.group).collect();
            assert_eq!(group.letters, of.len() as u64, "{filter:?}");
            assert_eq!(group.reason, of[0].reason);
            assert!(of.iter().any(|letter| letter.detail == group.detail));
            assert_eq!(group.last_died_at, of.iter().map(|letter| letter.died_at).max(), "{filter:?}");
            assert_eq!(group.first_died_at, of.iter().map(|letter| letter.died_at).min(), "{filter:?}");
        }
        let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
        for letter in letters {
            *counts.entry((letter.event_type, letter.reason)).or_default() += 1;
        }
        let told = store.count(&filter).await.unwrap();
        assert!(told.is_sorted_by_key(|count| std::cmp::Reverse(count.letters)));
        let told: BTreeMap<_, _> = told
            .into_iter()
            .map(|Count { event_type, reason, letters }| ((event_type, reason), letters))
            .collect();
        assert_eq!(told, counts, "{filter:?}");
    }
}

async fn counts_stay_true_whatever_happens(home: Arc<Home>) {
    let store = home.store().await;
    let check = async |what: &str| {
        let mut counted = BTreeMap::new();
        for letter in list(&store, &all()).await {
            *counted.entry(letter.status).or_insert(0) += 1;
        }
        assert_eq!(store.statuses().await.unwrap(), counted, "{what}");
        let groups: u64 = store.groups(&all()).await.unwrap().iter().map(|group| group.letters).sum();
        assert_eq!(groups, counted.values().sum::<u64>(), "{what}");
    };
    check("nothing").await;
    variety(&store).await;
    check("variety").await;
    capture(&store, (0..60).map(|n| Captured { group: "new".into(), ..round(&format!("msg_{n:02}"), 1) }))
        .await;
    check("another death, another group").await;
    let id = list(&store, &all()).await[0].id;
    store.edit(id, Bytes::new(), &by("ann")).await.unwrap();
    store.restore(&all(), 2, &by("ann")).await.unwrap();
    check("edit and restore").await;
    let retention = Retention { inbox: DAY, dead: Duration::ZERO, sessions: DAY, rejections: DAY };
    while store.prune(&retention, 3).await.unwrap().rows > 0 {
        check("pruning").await;
    }
    assert!(store.groups(&all()).await.unwrap().iter().all(|group| group.first_died_at.is_some()));
    // A person with a prompt.
    home.sql("UPDATE dead_letters SET status = 'open', settled_at = NULL").await;
    check("by hand").await;
    home.sql("DELETE FROM dead_letters").await;
    check("all gone").await;
    assert!(store.count(&all()).await.unwrap().is_empty() && store.groups(&all()).await.unwrap().is_empty());
}

async fn nothing_that_cannot_be_stored_is_found(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, [letter("m1")]).await;
    let text = Some("a\0b".to_owned());
    for filter in [
        Filter { text: text.clone(), ..all() },
        Filter { group: text.clone(), ..all() },
        Filter { event_type: text.clone(), ..all() },
        Filter { reason: text.clone(), ..all() },
        Filter { clerk_id: text, ..all() },
    ] {
        assert!(list(&store, &filter).await.is_empty());
        assert!(store.groups(&filter).await.unwrap().is_empty());
        assert!(store.count(&filter).await.unwrap().is_empty());
        assert!(claim(&store, &filter, 1).await.is_empty());
        assert_eq!(store.discard(&filter, 1, &by("ann")).await.unwrap(), 0);
        assert_eq!(store.restore(&filter, 1, &by("ann")).await.unwrap(), 0);
        assert!(store.unstamped(&filter, FAR, 1).await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_are_kept_also_for_a_person_with_another_search_path() {
    on_postgres(|home| async move {
        let store = home.store().await;
        capture(&store, [letter("m1")]).await;
        let headcount::store::Backend::Postgres { schema, .. } = &home.backend else { panic!() };
        home.sql(&format!("SET search_path = public; DELETE FROM {schema}.dead_letters")).await;
        assert!(store.statuses().await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_is_found_through_an_index() {
    on_postgres(|home| async move {
        let store = home.store().await;
        capture(&store, [letter("needle")]).await;
        home.sql(
            "INSERT INTO dead_letters (id, message_id, round, event_type, reason, detail, attempts, first_seen, \
             died_at, grp, status, captured_round, search) SELECT gen_random_uuid(), 'm' || i, 0, 'user.created', \
             'rejected', 'd', 1, now(), now(), 'g', 'open', 0, md5(i::text) FROM generate_series(1, 20000) AS i",
        )
        .await;
        home.sql("VACUUM ANALYZE dead_letters").await;
        let scans = "SELECT coalesce(sum(idx_scan), 0)::bigint FROM pg_stat_user_indexes \
                     WHERE schemaname = current_schema() AND indexrelname = 'dead_letters_search'";
        let started = std::time::Instant::now();
        // The server tells of its scans a second late.
        while home.number(scans).await == 0 {
            assert!(started.elapsed() < Duration::from_secs(30), "the index is not used");
            assert_eq!(found(&store, &Filter { text: Some("Needle".into()), ..all() }).await, ["needle"]);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_extension_may_not_be_installed_texts_are_found_without_it() {
    let (admin, name) = (stores::server(), format!("test_{}", Uuid::now_v7().simple()));
    let on_server = sqlx::PgPool::connect(&admin).await.unwrap();
    let run = async |pool: &sqlx::PgPool, statements: String| {
        for statement in statements.split("; ") {
            sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned())).execute(pool).await.unwrap();
        }
    };
    let mut url = url::Url::parse(&admin).unwrap();
    let password = url.password().unwrap_or_default();
    run(&on_server, format!("CREATE ROLE {name} LOGIN PASSWORD '{password}'; CREATE DATABASE {name}")).await;
    url.set_path(&name);
    let inside = sqlx::PgPool::connect(url.as_str()).await.unwrap();
    run(&inside, format!("CREATE SCHEMA ours AUTHORIZATION {name}")).await;
    url.set_username(&name).unwrap();
    let backend = Backend::Postgres { url: Secret::new(url.to_string()), schema: "ours".into() };
    let policy = Policy { relink: Relink::Deleted, on_delete: OnDelete::Keep };
    let config =
        StoreConfig { backend, policy, default_credits: 0, sessions: true, billing: None, connections: 2 };

    let store = headcount::store::open(&config).await.unwrap();
    let migrating = std::process::Command::new(env!("CARGO_BIN_EXE_headcount"))
        .arg("migrate")
        .env_clear()
        .envs([("DATABASE_URL", url.as_str()), ("HEADCOUNT_SCHEMA", "ours")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&migrating.stderr);
    capture(&store, [letter("m1"), letter("m2")]).await;
    let indexes = "SELECT count(*) FROM pg_indexes WHERE indexname = 'dead_letters_search'";
    let indexes: i64 = sqlx::query_scalar(indexes).fetch_one(&inside).await.unwrap();
    let found = found(&store, &Filter { text: Some("m2".into()), ..all() }).await;

    store.close().await;
    inside.close().await;
    run(&on_server, format!("DROP DATABASE {name}; DROP ROLE {name}")).await;
    assert_eq!(indexes, 0, "the role was allowed after all");
    assert!(said.contains("CREATE INDEX dead_letters_search ON ours.dead_letters"), "{said}");
    assert_eq!(found, ["m2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_of_a_type_with_many_letters_are_looked_into_and_agree() {
    on_postgres(|home| async move {
        let store = home.store().await;
        // More than are read one by one; `user.updated` is in one group, `user.created` in all three.
        home.sql(
            "INSERT INTO dead_letters (id, message_id, round, event_type, reason, detail, attempts, first_seen, \
             died_at, grp, status, captured_round, search) SELECT gen_random_uuid(), 'm' || i, 0, \
             CASE WHEN i % 3 = 0 THEN 'user.updated' ELSE 'user.created' END, 'rejected', 'd' || i, 1, now(), \
             to_timestamp(i), 'g' || i % 3 * (i % 2), 'open', 0, 'd' FROM generate_series(1, 160000) AS i",
        )
        .await;
        let of = |event_type: &str| Filter { event_type: Some(event_type.into()), ..all() };
        for (event_type, letters) in [("user.updated", vec![53_333]), ("user.created", vec![53_334, 26_667, 26_666])] {
            let groups = store.groups(&of(event_type)).await.unwrap();
            assert_eq!(groups.iter().map(|group| group.letters).collect::<Vec<_>>(), letters, "{groups:?}");
            for group in groups {
                let newest = list(&store, &Filter { group: Some(group.group.clone()), ..of(event_type) }).await;
                assert_eq!((group.last_died_at, &group.detail), (Some(newest[0].died_at), &newest[0].detail));
            }
        }
    })
    .await;
}
