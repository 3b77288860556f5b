//! What the letters of a deleted user keep.

use super::*;

contract! {
    a_deleted_users_settled_letters_keep_nothing_personal
    a_letter_settled_after_the_deletion_keeps_nothing_personal
    without_erasure_a_deletion_leaves_letters_alone
}

/// Whether anything personal is left of the letter.
async fn personal(store: &Arc<dyn Store>, message: &str) -> bool {
    let shown = show(store, message).await;
    let kept = [
        !shown.body.is_empty(),
        !shown.headers.is_empty(),
        !shown.letter.detail.is_empty(),
        shown.history.iter().any(|entry| entry.note.is_some()),
        found(store, &Filter { text: Some("no such luck".into()), ..all() })
            .await
            .iter()
            .any(|id| id == message),
    ];
    assert!(kept.iter().all(|one| *one == kept[0]), "{message}: {kept:?}");
    kept[0]
}

async fn a_deleted_users_settled_letters_keep_nothing_personal(home: Arc<Home>) {
    let store = home.store_with(ERASE).await;
    let of_ann = |message: &str| Captured { clerk_id: Some("ann".into()), ..letter(message) };
    capture(&store, [of_ann("m1"), of_ann("m2"), of_ann("m3"), of_ann("m4"), letter("m5")]).await;
    apply(&store, [created("ann", 1).event(), other("m1"), other("m5")]).await.unwrap();
    store.discard(&only(show(&store, "m2").await.letter.id), 1, &by("bob")).await.unwrap();
    claim(&store, &only(show(&store, "m3").await.letter.id), 1).await;
    assert_eq!(apply(&store, [deleted("ann", 5)]).await.unwrap(), [Deleted]);
    for (message, left) in [("m1", false), ("m2", false), ("m3", true), ("m4", true), ("m5", true)] {
        assert_eq!(personal(&store, message).await, left, "{message}");
    }
    // There is nothing to be replayed any more.
    assert_eq!(store.restore(&all(), 10, &by("bob")).await.unwrap(), 0);
    assert_eq!(found(&store, &Filter { text: Some("M2".into()), ..all() }).await, ["m2"]);
}

async fn a_letter_settled_after_the_deletion_keeps_nothing_personal(home: Arc<Home>) {
    let store = home.store_with(ERASE).await;
    let of = |user: &str, message: &str| Captured { clerk_id: Some(user.into()), ..letter(message) };
    // One who had a row, and one who was deleted before being seen.
    apply(&store, [created("ann", 1).event(), created("cat", 1).event()]).await.unwrap();
    apply(&store, [deleted("ann", 5), deleted("bob", 5), updated("ann", 7).message("m7").event()])
        .await
        .unwrap();
    capture(&store, [of("ann", "m1"), of("bob", "m2"), of("ann", "m3"), of("cat", "m4"), of("cat", "m5")])
        .await;
    assert!(personal(&store, "m1").await && personal(&store, "m2").await && personal(&store, "m3").await);
    apply(&store, [updated("ann", 6).message("m1").event(), other("m2"), other("m4")]).await.unwrap();
    let discarded = Filter { status: Some(Status::Open), ..all() };
    assert_eq!(store.discard(&discarded, 10, &by("bob")).await.unwrap(), 2);
    capture(&store, [of("ann", "m7")]).await;
    for (message, left) in
        [("m1", false), ("m2", false), ("m3", false), ("m4", true), ("m5", true), ("m7", false)]
    {
        assert_eq!(personal(&store, message).await, left, "{message}");
    }
    // Another death brings its body back, until it is settled.
    capture(&store, [Captured { round: 1, ..of("ann", "m3") }]).await;
    assert_eq!(&show(&store, "m3").await.body[..], b"{\"a\":1}");
    store.discard(&all(), 10, &by("bob")).await.unwrap();
    assert!(!personal(&store, "m3").await);
}

async fn without_erasure_a_deletion_leaves_letters_alone(home: Arc<Home>) {
    let store = home.store().await;
    let of_ann = |message: &str| Captured { clerk_id: Some("ann".into()), ..letter(message) };
    let of_bob = Captured { clerk_id: Some("bob".into()), ..letter("m4") };
    capture(&store, [of_ann("m1"), of_ann("m2"), of_ann("m3"), of_bob]).await;
    apply(&store, [created("ann", 1).message("m1").event(), deleted("ann", 5)]).await.unwrap();
    // One who was never seen.
    apply(&store, [other("m4"), deleted("bob", 5)]).await.unwrap();
    apply(&store, [other("m2")]).await.unwrap();
    store.discard(&all(), 10, &by("bob")).await.unwrap();
    for message in ["m1", "m2", "m3", "m4"] {
        assert!(personal(&store, message).await, "{message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_that_is_just_being_discarded_is_erased_too() {
    on_postgres(|home| async move {
        let store = home.store_with(ERASE).await;
        apply(&store, [created("user_m1", 1).event()]).await.unwrap();
        capture(&store, [letter("m1")]).await;
        let held = home.hold("UPDATE dead_letters SET status = 'discarded', settled_at = now()").await;
        let deleting =
            spawn(&store, |store| async move { apply(&store, [deleted("user_m1", 5)]).await.unwrap() });
        held.holds_up(1).await;
        held.let_go().await;
        assert_eq!(deleting.await.unwrap(), [Deleted]);
        assert!(!personal(&store, "m1").await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_captured_while_its_user_is_being_deleted_is_erased_too() {
    on_postgres(|home| async move {
        let store = home.store_with(ERASE).await;
        apply(&store, [news("m1")]).await.unwrap();
        let held = home.hold("UPDATE users SET erased = true WHERE clerk_id = 'user_m1'").await;
        let capturing = spawn(&store, |store| async move { capture(&store, [letter("m1")]).await });
        held.holds_up(1).await;
        held.let_go().await;
        capturing.await.unwrap();
        assert!(!personal(&store, "m1").await);
    })
    .await;
}
