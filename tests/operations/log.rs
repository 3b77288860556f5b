//! The log of what people did.

use std::{sync::Arc, time::Duration};

use headcount::{
    letters::operations::{self, Action, Settle, what},
    store::{
        Store,
        letters::{Filter, Status, group_id},
        operations::{Kind, LogFilter, LogPage, OperationRow, State, TTL},
        sync::{Holder, NewRun},
    },
    time::now,
};

use tokio::sync::watch;

use crate::{
    contract::{by, letter},
    stores::{Home, apply, contract, created, row},
};

contract! {
    the_log_merges_what_people_did_and_each_row_is_on_one_page
    an_action_is_written_down_before_and_after_it
    an_action_that_takes_long_is_not_taken_for_broken_off
    no_more_letters_are_settled_than_somebody_has_seen
}

async fn pages(store: &Arc<dyn Store>, filter: &LogFilter, limit: u32) -> Vec<OperationRow> {
    let mut rows: Vec<OperationRow> = Vec::new();
    loop {
        let page = LogPage { limit, after: rows.last().map(OperationRow::place) };
        let more = store.operations(filter, &page).await.unwrap();
        if more.is_empty() {
            return rows;
        }
        assert!(more.len() <= limit as usize);
        rows.extend(more);
        assert!(rows.len() < 1_000, "it never ends");
    }
}

async fn the_log_merges_what_people_did_and_each_row_is_on_one_page(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [created("user_0", 5).event()]).await.unwrap();
    store.capture(&[letter(0)]).await.unwrap();
    let shown = store.show("msg_000").await.unwrap().unwrap().letter;
    operations::reveal(&store, &by("bob"), &shown).await.unwrap();
    let user = row(&store, "user_0").await.id;
    for tier in ["pro", "gold"] {
        store.grant(user, tier, None, &by("ann")).await.unwrap().unwrap();
    }
    store.revoke(user, &by("bob")).await.unwrap().unwrap();
    let new =
        NewRun { instance_id: "ins_1".into(), who: "ann".into(), dry_run: true, holder: Holder::of("x").id };
    store.begin_run(&new).await.unwrap();
    // What an application wrote in one statement is of one moment; what nobody did, its time did.
    let (moment, hour) = if home.is_postgres() {
        ("timestamptz '2026-01-31 12:00:00.123456+00'", "timestamptz '2026-01-31 13:00:00+00'")
    } else {
        ("'2026-01-31T12:00:00.123Z'", "'2026-01-31T13:00:00.000Z'")
    };
    for n in 1..6 {
        let id = format!("0199c7d9-0000-7aaa-8bbb-00000000000{n}");
        home.sql(&format!(
            "INSERT INTO tier_grants (id, user_id, tier, granted_by, granted_at, ended_at, ended_by) \
             VALUES ('{id}', '{user}', 'bulk', 'app', {moment}, {hour}, 'its time')"
        ))
        .await;
    }
    let all = pages(&store, &LogFilter::default(), 100).await;
    let kinds: Vec<_> = all.iter().map(|row| row.kind.as_str()).collect();
    let mut sorted = kinds.clone();
    sorted.sort_unstable();
    // The second grant took the place of the first.
    let expected = [vec!["grant"; 7], vec!["reveal"], vec!["revoke"; 2], vec!["sync"]].concat();
    assert_eq!(sorted, expected);
    assert_eq!(kinds[..5].iter().filter(|kind| **kind == "grant").count(), 2, "the newest first: {kinds:?}");
    assert!(all.iter().map(|row| row.at).is_sorted_by(|a, b| a >= b));
    for limit in [1, 2, 3, 7] {
        assert_eq!(pages(&store, &LogFilter::default(), limit).await, all, "{limit} a page");
    }

    let of = |kind: Kind| all.iter().find(|row| row.kind == kind).unwrap();
    let grant = of(Kind::Grant);
    assert_eq!((grant.what["tier"].as_str(), grant.who.as_str()), (Some("gold"), "ann"));
    assert_eq!((grant.clerk_id.as_deref(), grant.note.as_deref()), (Some("user_0"), Some("ann's note")));
    assert_eq!((of(Kind::Revoke).who.as_str(), of(Kind::Revoke).state), ("bob", State::Complete));
    let sync = of(Kind::Sync);
    assert_eq!((sync.what["instance"].as_str(), sync.what["dry_run"].as_bool()), (Some("ins_1"), Some(true)));
    assert_eq!((sync.state, sync.ended_at), (State::Running, None));
    let reveal = of(Kind::Reveal);
    assert_eq!((reveal.letter_id, reveal.clerk_id.as_deref()), (Some(shown.id), Some("user_0")));
    assert!(reveal.ended_at.is_some());

    let only = async |filter: LogFilter| pages(&store, &filter, 2).await.len();
    let kinds = vec![Kind::Grant, Kind::Sync];
    assert_eq!(only(LogFilter { kinds, ..LogFilter::default() }).await, 8);
    assert_eq!(only(LogFilter { who: Some("bob".into()), ..LogFilter::default() }).await, 2);
    assert_eq!(only(LogFilter { who: Some("nobody".into()), ..LogFilter::default() }).await, 0);
    assert_eq!(only(LogFilter { since: Some(now() - 3_600_000), ..LogFilter::default() }).await, 6);
}

async fn an_action_is_written_down_before_and_after_it(home: Arc<Home>) {
    let store = home.store().await;
    store.capture(&[letter(0), letter(1)]).await.unwrap();
    let filter = Filter { group: Some("rejected: no such luck".into()), ..Filter::default() };
    let action = Action::on_letters(&store, Kind::Discard, &by("ann"), &filter, 2).await.unwrap();
    let first = async || pages(&store, &LogFilter::default(), 10).await.remove(0);
    let before = first().await;
    assert_eq!((before.kind, before.state, before.expected), (Kind::Discard, State::Running, 2));
    assert_eq!(
        before.what["group"],
        group_id("rejected: no such luck"),
        "not its name, which may be personal"
    );
    action.ended(State::Stopped, 1, None).await.unwrap();
    let after = first().await;
    assert_eq!((after.state, after.published), (State::Stopped, 1));
    assert!(after.ended_at.is_some());

    let shown = store.show("msg_000").await.unwrap().unwrap().letter;
    assert!(operations::settle(&store, Kind::Discard, &by("bob"), &shown).await.unwrap());
    assert_eq!((first().await.state, first().await.letter_id), (State::Complete, Some(shown.id)));
    assert!(!operations::settle(&store, Kind::Discard, &by("bob"), &shown).await.unwrap());
    assert_eq!(first().await.state, State::Failed);
    assert_eq!(what(&Filter::default())["all"], true);
}

async fn no_more_letters_are_settled_than_somebody_has_seen(home: Arc<Home>) {
    let store = home.store().await;
    let letters: Vec<_> = (0..7).map(letter).collect();
    store.capture(&letters).await.unwrap();
    let (_keep, stop) = watch::channel(false);
    let filter = Filter { status: Some(Status::Open), ..Filter::default() };
    let ann = by("ann");
    let discard = |most, limited| Settle { kind: Kind::Discard, by: &ann, filter: &filter, most, limited };
    let settle = async |order, stop| {
        let settled = operations::settle_all(&store, order, |_| {}, stop).await.unwrap();
        settled.written.unwrap();
        let row = pages(&store, &LogFilter::default(), 10).await.remove(0);
        assert_eq!((row.published, row.state), (settled.letters, *settled.ended.as_ref().unwrap()));
        (settled.letters, settled.ended.unwrap())
    };
    // Of seven open letters two had been seen.
    assert_eq!(settle(discard(2, false), &stop).await, (2, State::Complete));
    assert_eq!(settle(discard(1, true), &stop).await, (1, State::Limit));
    let (_keep, stopped) = watch::channel(true);
    assert_eq!(settle(discard(9, false), &stopped).await, (0, State::Stopped));
    assert_eq!(store.statuses().await.unwrap()[&Status::Open], 4);
    assert_eq!(
        settle(discard(9, false), &stop).await,
        (4, State::Complete),
        "somebody else settled the others"
    );
}

async fn an_action_that_takes_long_is_not_taken_for_broken_off(home: Arc<Home>) {
    let store = home.store().await;
    let about = Filter::default();
    let action = Action::on_letters(&store, Kind::Edit, &by("ann"), &about, 1).await.unwrap();
    action.goes_on(1);
    let id = pages(&store, &LogFilter::default(), 10).await.remove(0).id;
    // Longer than a lease. Then another process looks after what was broken off.
    tokio::time::sleep(TTL + Duration::from_secs(2)).await;
    store.tidy_operations(false).await.unwrap();
    let renewed = store.operation(id).await.unwrap().unwrap();
    assert_eq!((renewed.state, renewed.published), (State::Running, 1), "{renewed:?}");
    action.ended(State::Complete, 1, None).await.unwrap();
    assert_eq!(store.operation(id).await.unwrap().unwrap().state, State::Complete);

    // What breaks off renews nothing.
    let action = Action::on_letters(&store, Kind::Edit, &by("ann"), &about, 1).await.unwrap();
    let id = pages(&store, &LogFilter::default(), 10).await.remove(0).id;
    drop(action);
    tokio::time::sleep(TTL + Duration::from_secs(1)).await;
    store.tidy_operations(false).await.unwrap();
    assert_eq!(store.operation(id).await.unwrap().unwrap().state, State::Failed);
}
