//! Where each letter is after a crash between two steps.

use super::*;

contract! {
    crash_buried_but_not_acked_and_then_applied
    crash_captured_but_not_acked
    crash_claimed_but_not_published
    crash_published_but_not_stamped
    crash_died_again_before_the_stamp
}

async fn crash_buried_but_not_acked_and_then_applied(home: Arc<Home>) {
    let store = home.store().await;
    // The copy in the dead queue comes before or after the delivery that is tried again.
    capture(&store, [letter("m1")]).await;
    apply(&store, [news("m1"), news("m2")]).await.unwrap();
    capture(&store, [letter("m2")]).await;
    // And its dead copy once more.
    capture(&store, [letter("m1"), letter("m2")]).await;
    for message in ["m1", "m2"] {
        let actions = vec!["died 0".into(), "applied 0".into()];
        assert_eq!(story(&store, message).await, (Status::Applied, 0, actions));
    }
    assert!(claim(&store, &all(), 10).await.is_empty());
}

async fn crash_captured_but_not_acked(home: Arc<Home>) {
    let store = home.store().await;
    let messages = ["m1", "m2", "m3", "m4"];
    capture(&store, messages.map(letter)).await;
    let mut ids = Vec::new();
    for message in messages {
        ids.push(show(&store, message).await.letter.id);
    }
    claim(&store, &only(ids[1]), 1).await;
    store.discard(&only(ids[2]), 1, &by("ann")).await.unwrap();
    apply(&store, [news("m4")]).await.unwrap();
    capture(&store, messages.map(letter)).await;
    let expected = [Status::Open, Status::Replayed, Status::Discarded, Status::Applied];
    for (message, status) in messages.iter().zip(expected) {
        let shown = show(&store, message).await;
        assert_eq!(shown.letter.status, status, "{message}");
        assert_eq!(shown.history.iter().filter(|entry| entry.action == Action::Died).count(), 1);
    }
}

async fn crash_claimed_but_not_published(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, [letter("m1"), letter("m2")]).await;
    assert!(unstamped(&store).await.is_empty());
    let [claimed] = &claim(&store, &only(show(&store, "m1").await.letter.id), 1).await[..] else { panic!() };
    // Whoever claimed is gone. Nothing can claim it again, but it is found, in the same round.
    assert!(claim(&store, &only(claimed.id), 1).await.is_empty());
    let later = store.unstamped(&Filter { status: Some(Status::Open), ..all() }, FAR, 10).await.unwrap();
    let [again] = &later[..] else { panic!("{later:?}") };
    assert_eq!((again.id, again.round, &again.body), (claimed.id, 1, &claimed.body));
    assert_eq!((again.first_seen, again.event_type.as_str()), (T, "user.created"));
    // Not while the claim is young, and not for another filter.
    let an_hour_ago = headcount::time::now() - 3_600_000;
    assert!(store.unstamped(&all(), an_hour_ago, 10).await.unwrap().is_empty());
    let others = Filter { group: Some("another".into()), ..all() };
    assert!(store.unstamped(&others, FAR, 10).await.unwrap().is_empty());
    store.stamp(&[(claimed.id, 1)]).await.unwrap();
    assert!(unstamped(&store).await.is_empty());
    assert_eq!(story(&store, "m1").await.2, ["died 0", "replayed 1", "published 1"]);
    // The next replay has a stamp of its own to get.
    capture(&store, [round("m1", 1)]).await;
    claim(&store, &only(claimed.id), 1).await;
    assert_eq!(unstamped(&store).await, [("m1".into(), 2)]);
}

async fn crash_published_but_not_stamped(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, [letter("m1"), letter("m2")]).await;
    let claims = claim(&store, &all(), 10).await;
    assert_eq!(unstamped(&store).await.len(), 2);
    // So it is published twice. One copy takes effect; the other is a repeat.
    assert_eq!(apply(&store, [news("m1")]).await.unwrap(), [Created]);
    assert_eq!(apply(&store, [news("m1")]).await.unwrap(), [Duplicate]);
    assert_eq!(unstamped(&store).await, [("m2".into(), 1)], "what is applied need not be published");
    store.stamp(&claims.iter().map(|claim| (claim.id, claim.round)).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(show(&store, "m1").await.letter.status, Status::Applied);
    // The other message's two copies both die: one death.
    capture(&store, [round("m2", 1)]).await;
    capture(&store, [round("m2", 1)]).await;
    let actions = ["died 0", "replayed 1", "published 1", "died 1"].map(str::to_owned).to_vec();
    assert_eq!(story(&store, "m2").await, (Status::Open, 1, actions));
    // And whatever people then do is not undone by a third.
    store.discard(&all(), 10, &by("ann")).await.unwrap();
    capture(&store, [round("m2", 1)]).await;
    assert_eq!(show(&store, "m2").await.letter.status, Status::Discarded);
}

async fn crash_died_again_before_the_stamp(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, [letter("m1")]).await;
    let id = claim(&store, &all(), 1).await[0].id;
    capture(&store, [round("m1", 1)]).await;
    assert!(unstamped(&store).await.is_empty(), "it waits for people again");
    assert_eq!(claim(&store, &all(), 1).await[0].round, 2);
    // The stamp of the first replay arrives: it is not the second's.
    store.stamp(&[(id, 1)]).await.unwrap();
    assert_eq!(unstamped(&store).await, [("m1".into(), 2)]);
    store.stamp(&[(id, 2), (id, 1), (Uuid::now_v7(), 0)]).await.unwrap();
    assert!(unstamped(&store).await.is_empty());
    let actions = ["died 0", "replayed 1", "died 1", "replayed 2", "published 2"];
    assert_eq!(story(&store, "m1").await.2, actions);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn captures_replays_and_batches_that_meet_end_in_agreement() {
    on_postgres(|home| async move {
        let stores = [home.store_with(ERASE).await, home.store_with(ERASE).await];
        let messages: Vec<String> = (0..120).map(|n| format!("m{n:03}")).collect();
        let tasks: Vec<_> = (0..6)
            .map(|n| {
                let (store, messages) = (stores[n % 2].clone(), messages.clone());
                tokio::spawn(async move {
                    for turn in 0..20 {
                        let some = |step: usize| {
                            let messages = &messages;
                            (0..20).map(move |k| messages[(turn * 7 + k * step + n) % messages.len()].as_str())
                        };
                        match n % 3 {
                            0 => capture(&store, some(3).map(|id| round(id, (turn % 3) as u32))).await,
                            1 => {
                                let claimed = store.claim(&all(), 10, &by("ann")).await.unwrap();
                                let stamps: Vec<_> = claimed.iter().map(|it| (it.id, it.round)).collect();
                                store.stamp(&stamps).await.unwrap();
                                store.discard(&all(), 3, &by("ann")).await.unwrap();
                                store.restore(&all(), 2, &by("ann")).await.unwrap();
                            }
                            _ => {
                                let batch = some(1).map(news).chain([deleted(&format!("user_m{turn:03}"), 5)]);
                                let batch: Arc<[_]> = batch.collect();
                                while let Err(error) = store.apply(batch.clone()).await {
                                    assert!(matches!(error.class, Class::Transient | Class::Unclear), "{error:?}");
                                }
                            }
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let lies = "SELECT count(*) FROM dead_letters AS l JOIN inbox AS i USING (message_id) WHERE status <> 'applied'";
        assert_eq!(home.number(lies).await, 0, "a message with an effect has no letter to be settled");
        assert_eq!(home.number("SELECT count(*) FROM inbox WHERE outcome = 'capturing'").await, 0);
        let left = "SELECT count(*) FROM dead_letters AS l JOIN users AS u USING (clerk_id) \
                    WHERE u.erased AND l.status IN ('applied', 'discarded') AND NOT l.erased";
        assert_eq!(home.number(left).await, 0, "nothing personal is left of who was erased");
        let counted = "SELECT count(*) FROM (SELECT status, count(*) FROM dead_letters GROUP BY 1 EXCEPT \
                       SELECT status, sum(letters)::bigint FROM dead_letter_tallies GROUP BY 1) AS d";
        assert_eq!(home.number(counted).await, 0);
    })
    .await;
}
