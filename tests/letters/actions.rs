//! What people do to letters: claim, edit, stamp, discard, restore.

use super::*;

contract! {
    claims_begin_with_the_first_to_die
    two_who_claim_at_once_share_no_letter
    of_two_who_claim_one_letter_one_gets_it
    claims_are_compared_with_the_clock_that_stamped_them
    an_edit_commits_its_body_with_the_claim
    of_two_who_edit_one_letter_one_does
    a_stamp_counts_once
    letters_are_discarded_and_restored
}

async fn claims_begin_with_the_first_to_die(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, (0..5).map(|n| Captured { died_at: T - n, ..letter(&format!("m{n}")) })).await;
    let claimed = store.claim(&all(), 2, &by("ann")).await.unwrap();
    let seen: Vec<_> = claimed.iter().map(|claim| (claim.message_id.as_str(), claim.round)).collect();
    assert_eq!(seen, [("m4", 1), ("m3", 1)]);
    assert_eq!((&claimed[0].body[..], claimed[0].first_seen), (&b"{\"a\":1}"[..], T));
    let entry = &show(&store, "m4").await.history[1];
    assert_eq!((entry.action.as_str(), entry.by.as_str()), ("replayed", "ann"));
    assert_eq!(entry.note.as_deref(), Some("ann's note"));
    for status in [Status::Discarded, Status::Replayed, Status::Applied] {
        assert!(claim(&store, &Filter { status: Some(status), ..all() }, 10).await.is_empty());
    }
    let open = Filter { status: Some(Status::Open), until: Some(T), ..all() };
    let claimed = claim(&store, &open, 10).await;
    assert_eq!(claimed.iter().map(|claim| claim.message_id.as_str()).collect::<Vec<_>>(), ["m2", "m1"]);
    assert!(claim(&store, &all(), 0).await.is_empty());
}

async fn two_who_claim_at_once_share_no_letter(home: Arc<Home>) {
    let stores = [home.store().await, home.open().await];
    let count = 300;
    capture(&stores[0], (0..count).map(|n| letter(&format!("m{n}")))).await;
    let group = Filter { group: Some("rejected: no such luck".into()), ..all() };
    let tasks: Vec<_> = (0..4)
        .map(|n| {
            let (store, group) = (stores[n % 2].clone(), group.clone());
            tokio::spawn(async move {
                let mut mine = Vec::new();
                loop {
                    let claimed = store.claim(&group, 7, &by(&format!("person {n}"))).await.unwrap();
                    if claimed.is_empty() {
                        return mine;
                    }
                    mine.extend(claimed.into_iter().map(|claim| claim.message_id));
                }
            })
        })
        .collect();
    let mut claimed = Vec::new();
    for task in tasks {
        claimed.extend(task.await.unwrap());
    }
    // Whoever met a locked letter and stopped left none behind: its holder went on.
    assert_eq!(claimed.len(), count);
    assert_eq!(claimed.iter().collect::<BTreeSet<_>>().len(), count);
    let rounds =
        home.number("SELECT count(*) FROM dead_letters WHERE round = 1 AND status = 'replayed'").await;
    assert_eq!(rounds, count as i64);
    assert_eq!(stores[0].statuses().await.unwrap(), BTreeMap::from([(Status::Replayed, count as u64)]));
}

async fn of_two_who_claim_one_letter_one_gets_it(home: Arc<Home>) {
    let stores = [home.store().await, home.open().await];
    for n in 0..20 {
        let message = format!("m{n}");
        capture(&stores[0], [letter(&message)]).await;
        let one = only(show(&stores[0], &message).await.letter.id);
        let (ann, bob) = (by("ann"), by("bob"));
        let (a, b) = tokio::join!(stores[0].claim(&one, 1, &ann), stores[1].claim(&one, 1, &bob));
        assert_eq!(a.unwrap().len() + b.unwrap().len(), 1);
        assert_eq!(show(&stores[0], &message).await.letter.round, 1);
    }
}

async fn claims_are_compared_with_the_clock_that_stamped_them(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, [letter("m1")]).await;
    let before = store.clock().await.unwrap();
    assert!(before >= headcount::time::now() - 60_000);
    // The claim is to be made in a later millisecond.
    while store.clock().await.unwrap() <= before {
        tokio::task::yield_now().await;
    }
    claim(&store, &all(), 1).await;
    assert!(store.unstamped(&all(), before, 10).await.unwrap().is_empty());
    let after = store.clock().await.unwrap();
    assert_eq!(store.unstamped(&all(), after, 10).await.unwrap().len(), 1);
}

async fn an_edit_commits_its_body_with_the_claim(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, [letter("m1"), letter("m2")]).await;
    let id = show(&store, "m1").await.letter.id;
    let body = Bytes::from_static(b"\0better");
    let edited = store.edit(id, body.clone(), &by("ann")).await.unwrap().unwrap();
    assert_eq!((edited.id, edited.round, &edited.body), (id, 1, &body));
    assert_eq!((edited.message_id.as_str(), edited.first_seen), ("m1", T));
    let (status, round, actions) = story(&store, "m1").await;
    assert_eq!((status, round), (Status::Replayed, 1));
    assert_eq!(actions, ["died 0", "edited 1"]);
    // Not published yet: what is taken up is what was edited.
    let again = store.unstamped(&all(), FAR, 10).await.unwrap();
    assert_eq!((again[0].round, &again[0].body), (1, &body));
    assert!(store.edit(id, Bytes::new(), &by("bob")).await.unwrap().is_none());
    assert!(store.edit(Uuid::now_v7(), Bytes::new(), &by("bob")).await.unwrap().is_none());
    assert_eq!(show(&store, "m1").await.body, body);
    assert_eq!(&show(&store, "m2").await.body[..], b"{\"a\":1}");
    // The letter is what its new body says.
    let other = show(&store, "m2").await.letter;
    let body = Bytes::from_static(br#"{"type":"user.deleted","data":{"id":"user_9"}}"#);
    assert_ne!(other.event_type, "user.deleted");
    let edited = store.edit(other.id, body, &by("ann")).await.unwrap().unwrap();
    assert_eq!(edited.event_type, "user.deleted");
    let other = show(&store, "m2").await.letter;
    assert_eq!((other.event_type.as_str(), other.clerk_id.as_deref()), ("user.deleted", Some("user_9")));
}

async fn of_two_who_edit_one_letter_one_does(home: Arc<Home>) {
    let stores = [home.store().await, home.open().await];
    for n in 0..20 {
        let message = format!("m{n}");
        capture(&stores[0], [letter(&message)]).await;
        let id = show(&stores[0], &message).await.letter.id;
        let (ann, bob) = (by("ann"), by("bob"));
        let (a, b) = tokio::join!(
            stores[0].edit(id, Bytes::from_static(b"ann"), &ann),
            stores[1].edit(id, Bytes::from_static(b"bob"), &bob)
        );
        let [Some(done)] =
            &[a.unwrap(), b.unwrap()].into_iter().filter(Option::is_some).collect::<Vec<_>>()[..]
        else {
            panic!("not one of two")
        };
        let shown = show(&stores[0], &message).await;
        assert_eq!((shown.letter.round, &shown.body), (1, &done.body));
        assert_eq!(shown.history[1].by.as_bytes(), &done.body[..]);
    }
}

async fn a_stamp_counts_once(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, [letter("m1")]).await;
    let id = show(&store, "m1").await.letter.id;
    store.stamp(&[]).await.unwrap();
    store.stamp(&[(id, 0)]).await.unwrap();
    claim(&store, &all(), 1).await;
    store.stamp(&[(id, 1), (id, 1)]).await.unwrap();
    store.stamp(&[(id, 1)]).await.unwrap();
    assert_eq!(story(&store, "m1").await.2, ["died 0", "replayed 1", "published 1"]);
}

async fn letters_are_discarded_and_restored(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, (0..5).map(|n| Captured { died_at: T + n, ..letter(&format!("m{n}")) })).await;
    claim(&store, &only(show(&store, "m4").await.letter.id), 1).await;
    assert_eq!(store.discard(&all(), 3, &by("ann")).await.unwrap(), 3);
    assert_eq!(store.discard(&all(), 3, &by("ann")).await.unwrap(), 1);
    assert_eq!(store.discard(&all(), 3, &by("ann")).await.unwrap(), 0);
    let expected = BTreeMap::from([(Status::Discarded, 4), (Status::Replayed, 1)]);
    assert_eq!(store.statuses().await.unwrap(), expected);
    assert_eq!(store.restore(&all(), 3, &by("bob")).await.unwrap(), 3);
    assert_eq!(found(&store, &Filter { status: Some(Status::Discarded), ..all() }).await, ["m3"]);
    let shown = show(&store, "m0").await;
    let entries: Vec<_> = shown.history.iter().map(|entry| (entry.action.as_str(), &entry.by[..])).collect();
    assert_eq!(entries, [("died", "headcount"), ("discarded", "ann"), ("restored", "bob")]);
    assert_eq!(shown.history[2].note.as_deref(), Some("bob's note"));
    let quiet = Actor { name: "ann".into(), note: None };
    assert_eq!(store.discard(&only(shown.letter.id), 10, &quiet).await.unwrap(), 1);
    assert_eq!(show(&store, "m0").await.history[3].note, None);
    assert_eq!(&show(&store, "m0").await.body[..], b"{\"a\":1}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_claimed_around_letters_that_somebody_is_busy_with() {
    on_postgres(|home| async move {
        let store = home.store().await;
        capture(&store, ["m1", "m2", "m3"].map(letter)).await;
        let held = home.hold("SELECT id FROM dead_letters WHERE message_id = 'm1' FOR UPDATE").await;
        let claimed = claim(&store, &all(), 2).await;
        assert_eq!(claimed.iter().map(|it| it.message_id.as_str()).collect::<Vec<_>>(), ["m2", "m3"]);
        assert!(claim(&store, &all(), 2).await.is_empty());
        // Whoever asks for that letter waits.
        let one = only(show(&store, "m1").await.letter.id);
        let asking = spawn(&store, |store| async move { claim(&store, &one, 1).await.len() });
        held.holds_up(1).await;
        held.let_go().await;
        assert_eq!(asking.await.unwrap(), 1);
    })
    .await;
}
