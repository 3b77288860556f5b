//! What happens to a letter when its message takes effect.

use super::*;

contract! {
    what_takes_effect_makes_its_letter_applied
    a_letter_tells_the_outcome_of_its_message
    a_repeat_makes_its_letter_applied_too
    what_waits_or_fails_leaves_its_letter_as_it_is
}

async fn what_takes_effect_makes_its_letter_applied(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, ["m1", "m2", "m3", "m4"].map(letter)).await;
    claim(&store, &only(show(&store, "m2").await.letter.id), 1).await;
    store.discard(&only(show(&store, "m3").await.letter.id), 1, &by("ann")).await.unwrap();
    let batch = [news("m1"), news("m2"), other("m3"), created("nobody", 1).event()];
    assert_eq!(apply(&store, batch).await.unwrap(), [Created, Created, Ignored, Created]);
    assert_eq!(story(&store, "m1").await, (Status::Applied, 0, vec!["died 0".into(), "applied 0".into()]));
    let actions = vec!["died 0".into(), "replayed 1".into(), "applied 1".into()];
    assert_eq!(story(&store, "m2").await, (Status::Applied, 1, actions));
    assert_eq!(show(&store, "m3").await.letter.status, Status::Applied);
    assert_eq!(show(&store, "m4").await.letter.status, Status::Open);
    assert_eq!(show(&store, "m1").await.history[1].by, "headcount");
}

async fn a_letter_tells_the_outcome_of_its_message(home: Arc<Home>) {
    let store = home.store().await;
    let outcome = async |message_id: &str| show(&store, message_id).await.letter.outcome;
    capture(&store, ["m1", "m2", "m3"].map(letter)).await;
    assert_eq!(outcome("m1").await, None);
    apply(&store, [news("m1"), other("m2")]).await.unwrap();
    let stale = updated("user_m1", 5).message("m3").event();
    assert_eq!(apply(&store, [stale]).await.unwrap(), [Stale]);
    // This one took effect before it was captured.
    apply(&store, [news("m4")]).await.unwrap();
    capture(&store, [letter("m4")]).await;
    let outcomes = [outcome("m1").await, outcome("m2").await, outcome("m3").await, outcome("m4").await];
    assert_eq!(outcomes.map(Option::unwrap), [Created, Ignored, Stale, Created]);
    // The inbox forgets; the letter does not.
    home.sql("DELETE FROM inbox").await;
    let listed: Vec<_> = list(&store, &all()).await.into_iter().filter_map(|letter| letter.outcome).collect();
    assert_eq!(listed.len(), 4);
    capture(&store, [round("m1", 1)]).await;
    assert_eq!(outcome("m1").await, None, "it died again");
}

async fn a_repeat_makes_its_letter_applied_too(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, [letter("m1")]).await;
    apply(&store, [news("m1")]).await.unwrap();
    // As if it had been captured by a hand that does not look into the inbox.
    home.sql("UPDATE dead_letters SET status = 'open'").await;
    assert_eq!(apply(&store, [news("m1"), news("m1")]).await.unwrap(), [Duplicate, Duplicate]);
    assert_eq!(show(&store, "m1").await.letter.status, Status::Applied);
    apply(&store, [news("m1")]).await.unwrap();
    assert_eq!(show(&store, "m1").await.history.len(), 3, "what is applied is not applied again");
}

async fn what_waits_or_fails_leaves_its_letter_as_it_is(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, [letter("m1"), letter("m2")]).await;
    let address = "x@example.com";
    apply(&store, [created("ann", 10).verified(address).event()]).await.unwrap();
    let newcomer = created("bob", 20).verified(address).message("m1").event();
    assert_eq!(apply(&store, [newcomer]).await.unwrap(), [Waiting]);
    let bad = created("bad", 1).with(|profile| profile.last_sign_in_at = Some(i64::MAX)).event();
    apply(&store, [news("m2"), bad]).await.unwrap_err();
    assert_eq!(store.statuses().await.unwrap(), BTreeMap::from([(Status::Open, 2)]));
}
