//! The contract of the dead letters, held against both stores, and what can only go wrong in one of them.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "so does a test fail"
)]

#[path = "support/stores.rs"]
#[allow(dead_code, reason = "the tests of users use the rest")]
mod stores;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use headcount::{
    rules::users::{OnDelete, Outcome::*, Policy, Relink},
    secret::Secret,
    store::{
        Backend, Class, Store, StoreConfig,
        letters::{
            Actor, Captured, Claimed, Count, Filter, Letter, LetterDetail, Page, Pruned, Rejected, Retention,
            Status,
        },
    },
    time::Millis,
};
use stores::{Home, apply, created, deleted, other, updated};
use uuid::Uuid;

const ERASE: Policy = Policy { relink: Relink::Deleted, on_delete: OnDelete::Erase };

/// 2026-01-02T03:04:05.678Z
const T: Millis = 1_767_323_045_678;
const FAR: Millis = T * 10;

macro_rules! contract {
    ($($case:ident)+) => {
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::Home::postgres().await.run(super::$case).await;
            })+
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::Home::sqlite().await.run(super::$case).await;
            })+
        }
    };
}

contract! {
    a_letter_is_kept_whole
    capture_cannot_fail_on_content
    capturing_again_changes_nothing
    of_two_deaths_in_one_capture_the_later_round_counts
    a_letter_that_dies_again_is_the_same_letter_one_round_on
    a_lower_round_is_ignored
    what_has_taken_effect_is_captured_as_applied
    what_takes_effect_makes_its_letter_applied
    a_letter_tells_the_outcome_of_its_message
    a_repeat_makes_its_letter_applied_too
    what_waits_or_fails_leaves_its_letter_as_it_is
    crash_buried_but_not_acked_and_then_applied
    crash_captured_but_not_acked
    crash_claimed_but_not_published
    crash_published_but_not_stamped
    crash_died_again_before_the_stamp
    an_applied_letter_that_dies_in_a_later_round_is_open_again
    claims_begin_with_the_first_to_die
    two_who_claim_at_once_share_no_letter
    of_two_who_claim_one_letter_one_gets_it
    an_edit_commits_its_body_with_the_claim
    of_two_who_edit_one_letter_one_does
    a_stamp_counts_once
    letters_are_discarded_and_restored
    every_filter_selects
    pages_follow_one_another
    a_group_is_found_by_its_id_and_by_its_key
    groups_and_counts_agree_with_the_letters
    counts_stay_true_whatever_happens
    nothing_that_cannot_be_stored_is_found
    a_deleted_users_settled_letters_keep_nothing_personal
    a_letter_settled_after_the_deletion_keeps_nothing_personal
    without_erasure_a_deletion_leaves_letters_alone
    retention_takes_small_steps
    a_clock_that_leaps_ahead_makes_nothing_be_forgotten_at_once
    claims_are_compared_with_the_clock_that_stamped_them
    ignored_messages_are_forgotten_sooner
    rejections_are_kept_and_bounded
}

/// A letter about the user `user_<message id>`.
fn letter(message_id: &str) -> Captured {
    Captured {
        message_id: message_id.into(),
        round: 0,
        event_type: "user.created".into(),
        clerk_id: Some(format!("user_{message_id}")),
        reason: "rejected".into(),
        detail: "no such luck".into(),
        attempts: 7,
        first_seen: T,
        died_at: T + 1_000,
        group: "rejected: no such luck".into(),
        headers: BTreeMap::from([("x-attempt".into(), "6".into())]),
        body: Bytes::from_static(b"{\"a\":1}"),
    }
}

fn round(message_id: &str, round: u32) -> Captured {
    Captured { round, ..letter(message_id) }
}

fn by(name: &str) -> Actor {
    Actor { name: name.into(), note: Some(format!("{name}'s note")) }
}

fn only(id: Uuid) -> Filter {
    Filter { ids: vec![id], ..Filter::default() }
}

fn all() -> Filter {
    Filter::default()
}

async fn capture(store: &Arc<dyn Store>, letters: impl IntoIterator<Item = Captured>) {
    store.capture(&letters.into_iter().collect::<Vec<_>>()).await.unwrap();
}

async fn show(store: &Arc<dyn Store>, reference: &str) -> LetterDetail {
    store.letter(reference).await.unwrap().unwrap_or_else(|| panic!("no letter {reference}"))
}

/// Status, round and the actions of its history.
async fn story(store: &Arc<dyn Store>, reference: &str) -> (Status, u32, Vec<String>) {
    let shown = show(store, reference).await;
    let actions = shown.history.into_iter().map(|entry| format!("{} {}", entry.action, entry.round));
    (shown.letter.status, shown.letter.round, actions.collect())
}

async fn list(store: &Arc<dyn Store>, filter: &Filter) -> Vec<Letter> {
    store.letters(filter, &Page { limit: 1_000, after: None }).await.unwrap()
}

async fn found(store: &Arc<dyn Store>, filter: &Filter) -> Vec<String> {
    list(store, filter).await.into_iter().map(|letter| letter.message_id).collect()
}

async fn claim(store: &Arc<dyn Store>, filter: &Filter, limit: u32) -> Vec<Claimed> {
    store.claim(filter, limit, &by("ann")).await.unwrap()
}

async fn unstamped(store: &Arc<dyn Store>) -> Vec<(String, u32)> {
    let claims = store.unstamped(&all(), FAR, 100).await.unwrap();
    claims.into_iter().map(|claim| (claim.message_id, claim.round)).collect()
}

/// News of the user that the letter is about, under its message id.
fn news(message_id: &str) -> headcount::store::Incoming {
    created(&format!("user_{message_id}"), 10).message(message_id).event()
}

// Capture.

async fn a_letter_is_kept_whole(home: Arc<Home>) {
    let store = home.store().await;
    let one = Captured { body: Bytes::from_static(b"\0\xff\xfe{"), ..letter("m1") };
    capture(&store, [one.clone()]).await;
    let shown = show(&store, "m1").await;
    let id = shown.letter.id;
    assert_eq!(id.get_version_num(), 7);
    let expected = Letter {
        id,
        message_id: "m1".into(),
        round: 0,
        event_type: one.event_type,
        clerk_id: one.clerk_id,
        reason: one.reason,
        detail: one.detail,
        attempts: 7,
        first_seen: "2026-01-02T03:04:05.678Z".into(),
        died_at: "2026-01-02T03:04:06.678Z".into(),
        status: Status::Open,
        outcome: None,
        group: one.group,
    };
    assert_eq!(shown.letter, expected);
    assert_eq!((shown.headers, shown.body), (one.headers, one.body));
    let [died] = &shown.history[..] else { panic!("{:?}", shown.history) };
    assert_eq!((died.action.as_str(), died.round, died.by.as_str()), ("died", 0, "headcount"));
    assert_eq!((died.note.as_deref(), &died.at), (Some("rejected: no such luck"), &expected.died_at));
    assert_eq!(list(&store, &all()).await, [expected]);
    assert_eq!(show(&store, &id.to_string()).await.letter.message_id, "m1");
    for nobody in ["", "m2", "\0", &Uuid::now_v7().to_string()] {
        assert!(store.letter(nobody).await.unwrap().is_none(), "{nobody:?}");
    }
}

async fn capture_cannot_fail_on_content(home: Arc<Home>) {
    let store = home.store().await;
    let nasty = "a\0b\r\n\u{1b}[31m\u{85}'\"\\{}%é\u{fffe}🎈".to_owned();
    let long = |text: &str| text.repeat(5_000);
    let every = |message_id: &str, text: &str| Captured {
        message_id: format!("{message_id}{text}"),
        round: u32::MAX,
        event_type: text.into(),
        clerk_id: Some(text.into()),
        reason: text.into(),
        detail: text.into(),
        attempts: u32::MAX,
        first_seen: i64::MIN,
        died_at: i64::MAX,
        group: text.into(),
        headers: (0..200).map(|n| (format!("{n}{text}"), text.to_owned())).collect(),
        body: Bytes::from((0..=255).collect::<Vec<u8>>()),
    };
    let letters = [
        every("m1", &nasty),
        every("m2", &long(&nasty)),
        every("m3", ""),
        Captured { clerk_id: None, body: Bytes::new(), headers: BTreeMap::new(), ..letter("m4") },
        letter("m5"),
    ];
    capture(&store, letters.clone()).await;
    assert_eq!(list(&store, &all()).await.len(), 5);
    for kept in list(&store, &all()).await {
        let shown = show(&store, &kept.id.to_string()).await;
        let text = format!("{}{}{}{:?}", kept.event_type, kept.detail, kept.group, shown.headers);
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(kept.detail.len() <= 1_000 && kept.group.len() <= 200 && kept.event_type.len() <= 128);
        let original = letters.iter().find(|letter| kept.message_id.starts_with(&letter.message_id[..2]));
        assert_eq!(shown.body, original.unwrap().body);
    }
    let wide = by(&long(&nasty));
    assert_eq!(store.claim(&all(), 10, &wide).await.unwrap().len(), 5);
    capture(&store, letters).await;
    store.record_rejections(&[]).await.unwrap();
    capture(&store, []).await;
}

async fn capturing_again_changes_nothing(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, [letter("m1")]).await;
    let again = Captured { detail: "other".into(), body: Bytes::from_static(b"other"), ..letter("m1") };
    capture(&store, [again.clone(), again]).await;
    let shown = show(&store, "m1").await;
    assert_eq!((shown.letter.detail.as_str(), &shown.body[..]), ("no such luck", &b"{\"a\":1}"[..]));
    assert_eq!(shown.history.len(), 1);
    assert_eq!(home.number("SELECT count(*) FROM inbox").await, 0);
}

async fn of_two_deaths_in_one_capture_the_later_round_counts(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, [round("m1", 0), round("m1", 2), round("m1", 1)]).await;
    assert_eq!(story(&store, "m1").await, (Status::Open, 2, vec!["died 2".into()]));
}

async fn a_letter_that_dies_again_is_the_same_letter_one_round_on(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, [letter("m1")]).await;
    let id = show(&store, "m1").await.letter.id;
    claim(&store, &all(), 1).await;
    let again = Captured {
        reason: "exhausted".into(),
        detail: "worse".into(),
        group: "exhausted: worse".into(),
        attempts: 1,
        died_at: T + 9_000,
        first_seen: 0,
        headers: BTreeMap::new(),
        body: Bytes::from_static(b"edited"),
        ..round("m1", 1)
    };
    capture(&store, [again]).await;
    let shown = show(&store, "m1").await;
    assert_eq!((shown.letter.id, shown.letter.round, shown.letter.attempts), (id, 1, 1));
    assert_eq!(
        (shown.letter.reason.as_str(), shown.letter.group.as_str()),
        ("exhausted", "exhausted: worse")
    );
    assert_eq!(
        (shown.letter.first_seen.as_str(), &shown.body[..]),
        ("2026-01-02T03:04:05.678Z", &b"edited"[..])
    );
    assert!(shown.headers.is_empty());
    let (status, _, actions) = story(&store, "m1").await;
    assert_eq!(
        (status, actions),
        (Status::Open, vec!["died 0".into(), "replayed 1".into(), "died 1".into()])
    );
    assert_eq!(shown.history[2].note.as_deref(), Some("exhausted: worse"));
    assert_eq!(found(&store, &Filter { group: Some("exhausted: worse".into()), ..all() }).await, ["m1"]);
    assert_eq!(store.groups(&all()).await.unwrap().len(), 1);
}

async fn a_lower_round_is_ignored(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, [round("m1", 3)]).await;
    for late in [0, 2, 3] {
        capture(&store, [round("m1", late)]).await;
    }
    assert_eq!(story(&store, "m1").await, (Status::Open, 3, vec!["died 3".into()]));
}

async fn what_has_taken_effect_is_captured_as_applied(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [news("m1")]).await.unwrap();
    capture(&store, [letter("m0"), letter("m1"), letter("m2")]).await;
    let (status, _, actions) = story(&store, "m1").await;
    assert_eq!((status, actions), (Status::Applied, vec!["died 0".into(), "applied 0".into()]));
    assert_eq!(found(&store, &Filter { status: Some(Status::Open), ..all() }).await, ["m2", "m0"]);
    assert_eq!(home.number("SELECT count(*) FROM inbox").await, 1);
}

// Effect.

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
    assert_eq!(outcomes.map(Option::unwrap), ["created", "ignored", "stale", "created"]);
    // The inbox forgets; the letter does not.
    home.sql("DELETE FROM inbox").await;
    let listed: Vec<_> = list(&store, &all()).await.into_iter().filter_map(|letter| letter.outcome).collect();
    assert_eq!(listed.len(), 4);
    capture(&store, [round("m1", 1)]).await;
    assert_eq!(outcome("m1").await, None, "it died again");
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

// Crashes.

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
        assert_eq!(shown.history.iter().filter(|entry| entry.action == "died").count(), 1);
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

async fn an_applied_letter_that_dies_in_a_later_round_is_open_again(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, [letter("m1")]).await;
    apply(&store, [news("m1")]).await.unwrap();
    // The inbox has forgotten it, and a restored broker brings it back.
    home.sql("DELETE FROM inbox").await;
    capture(&store, [round("m1", 1)]).await;
    let actions = ["died 0", "applied 0", "died 1"].map(str::to_owned).to_vec();
    assert_eq!(story(&store, "m1").await, (Status::Open, 1, actions));
    assert_eq!(home.number("SELECT count(*) FROM dead_letters WHERE settled_at IS NULL").await, 1);
}

// What people do.

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
    let entries: Vec<_> = shown.history.iter().map(|entry| (&entry.action[..], &entry.by[..])).collect();
    assert_eq!(entries, [("died", "headcount"), ("discarded", "ann"), ("restored", "bob")]);
    assert_eq!(shown.history[2].note.as_deref(), Some("bob's note"));
    let quiet = Actor { name: "ann".into(), note: None };
    assert_eq!(store.discard(&only(shown.letter.id), 10, &quiet).await.unwrap(), 1);
    assert_eq!(show(&store, "m0").await.history[3].note, None);
    assert_eq!(&show(&store, "m0").await.body[..], b"{\"a\":1}");
}

// What people see.

/// Letters of many kinds: two types, three reasons, four groups, all statuses.
async fn variety(store: &Arc<dyn Store>) -> Vec<Captured> {
    let letters: Vec<_> = (0..60)
        .map(|n| Captured {
            event_type: ["user.created", "user.deleted"][n % 2].into(),
            clerk_id: (n % 5 > 0).then(|| format!("user_{}", n % 5)),
            reason: ["rejected", "exhausted", "unroutable"][n % 3].into(),
            detail: format!("Detail {n} of 100%_done\\"),
            group: format!("{}: {}", ["rejected", "exhausted", "unroutable"][n % 3], n % 2),
            died_at: T + (n / 2) as Millis,
            ..letter(&format!("msg_{n:02}"))
        })
        .collect();
    capture(store, letters.clone()).await;
    apply(store, (0..60).step_by(7).map(|n| other(&format!("msg_{n:02}")))).await.unwrap();
    claim(store, &Filter { reason: Some("rejected".into()), ..all() }, 5).await;
    store.discard(&Filter { reason: Some("exhausted".into()), ..all() }, 5, &by("ann")).await.unwrap();
    letters
}

async fn every_filter_selects(home: Arc<Home>) {
    let store = home.store().await;
    let letters = variety(&store).await;
    let listed = list(&store, &all()).await;
    assert_eq!(listed.len(), letters.len());
    let order: Vec<_> = listed.iter().map(|letter| (letter.died_at.clone(), letter.id)).collect();
    assert!(order.is_sorted_by(|a, b| a > b), "the last to die first");
    let some = [listed[3].id, listed[50].id, Uuid::now_v7()];
    let text = |text: &str| Filter { text: Some(text.into()), ..all() };
    let moment = "2026-01-02T03:04:05.688Z"; // T + 10
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
        (Filter { since: Some(T + 10), ..all() }, Box::new(move |l| *l.died_at >= *moment), 40),
        (Filter { until: Some(T + 10), ..all() }, Box::new(move |l| *l.died_at < *moment), 20),
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
            let letters = store.letters(&filter, &page).await.unwrap();
            let Some(last) = letters.last() else { break };
            let died_at = chrono::DateTime::parse_from_rfc3339(&last.died_at).unwrap();
            page.after = Some((died_at.timestamp_millis(), last.id));
            assert!(letters.len() <= 7);
            pages.extend(letters);
            assert!(pages.len() <= whole.len(), "pages repeat: {filter:?}");
        }
        assert_eq!(pages, whole, "{filter:?}");
    }
    assert!(store.letters(&all(), &Page { limit: 0, after: None }).await.unwrap().is_empty());
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
            assert_eq!(
                Some(&group.last_died_at),
                of.iter().map(|letter| &letter.died_at).max(),
                "{filter:?}"
            );
            assert_eq!(
                Some(&group.first_died_at),
                of.iter().map(|letter| &letter.died_at).min(),
                "{filter:?}"
            );
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
    let retention = Retention { inbox: DAY, dead: Duration::ZERO, rejections: DAY };
    while store.prune(&retention, 3).await.unwrap().rows > 0 {
        check("pruning").await;
    }
    assert!(store.groups(&all()).await.unwrap().iter().all(|group| !group.first_died_at.is_empty()));
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

// Erasure.

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

// Retention.

const DAY: Duration = Duration::from_secs(24 * 3_600);
const KEPT: Retention = Retention { inbox: DAY, dead: DAY, rejections: DAY };

async fn drain(store: &Arc<dyn Store>, retention: &Retention, limit: u32) -> Vec<u64> {
    let mut steps = Vec::new();
    loop {
        match store.prune(retention, limit).await.unwrap().rows {
            0 => return steps,
            gone => steps.push(gone),
        }
    }
}

/// Makes everything that a condition selects two days older.
async fn age(home: &Home, table: &str, column: &str, condition: &str) {
    let older = if home.is_postgres() {
        format!("{column} - interval '2 days'")
    } else {
        format!("strftime('%Y-%m-%dT%H:%M:%fZ', {column}, '-2 days')")
    };
    home.sql(&format!("UPDATE {table} SET {column} = {older} WHERE {condition}")).await;
}

async fn retention_takes_small_steps(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, (0..12).map(|n| letter(&format!("m{n:02}")))).await;
    apply(&store, (0..5).map(|n| news(&format!("m{n:02}")))).await.unwrap();
    store.discard(&all(), 3, &by("ann")).await.unwrap();
    claim(&store, &all(), 2).await;
    assert!(drain(&store, &KEPT, 100).await.is_empty());
    age(&home, "inbox", "processed_at", "message_id <> 'm04'").await;
    age(&home, "dead_letters", "settled_at", "message_id <> 'm04'").await;
    age(&home, "dead_letters", "died_at", "true").await;
    // Four inbox rows and seven settled letters, at most three of each a step.
    assert_eq!(drain(&store, &KEPT, 3).await, [6, 4, 1]);
    assert_eq!(found(&store, &Filter { status: Some(Status::Applied), ..all() }).await, ["m04"]);
    let left = BTreeMap::from([(Status::Open, 2), (Status::Replayed, 2), (Status::Applied, 1)]);
    assert_eq!(store.statuses().await.unwrap(), left);
    let orphans =
        "SELECT count(*) FROM dead_letter_history WHERE letter_id NOT IN (SELECT id FROM dead_letters)";
    assert_eq!(home.number(orphans).await, 0);
    let orphans =
        "SELECT count(*) FROM dead_letter_contents WHERE letter_id NOT IN (SELECT id FROM dead_letters)";
    assert_eq!(home.number(orphans).await, 0);
    assert_eq!(home.number("SELECT count(*) FROM dead_letter_contents").await, 5);
    assert_eq!(home.number("SELECT count(*) FROM inbox").await, 1);
    assert_eq!(home.number("SELECT count(*) FROM users").await, 5);
    let forever = Retention { inbox: Duration::MAX, dead: Duration::MAX, rejections: Duration::MAX };
    assert!(drain(&store, &forever, 100).await.is_empty());
    assert!(drain(&store, &KEPT, 0).await.is_empty());
}

/// Moves a clock's readings in the table.
async fn shift(home: &Home, table: &str, columns: &[&str], by: &str) {
    for column in columns {
        let moved = if home.is_postgres() {
            format!("{column} + interval '{by}'")
        } else {
            format!("strftime('%Y-%m-%dT%H:%M:%fZ', {column}, '{by}')")
        };
        home.sql(&format!("UPDATE {table} SET {column} = {moved}")).await;
    }
}

async fn a_clock_that_leaps_ahead_makes_nothing_be_forgotten_at_once(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, [letter("m1"), letter("m2")]).await;
    apply(&store, [news("m1"), other("m3")]).await.unwrap();
    assert_eq!(store.prune(&KEPT, 10).await.unwrap(), Pruned::default());
    // All that was written before it lies years back by a clock that has leapt.
    shift(&home, "inbox", &["processed_at"], "-4000 days").await;
    shift(&home, "dead_letters", &["settled_at"], "-4000 days").await;
    shift(&home, "retention_clock", &["time", "written_at"], "-4000 days").await;
    for _ in 0..5 {
        let pruned = store.prune(&KEPT, 10).await.unwrap();
        assert_eq!(pruned.rows, 0);
        assert!(pruned.clock_ahead.unwrap() > 3_999 * DAY, "{pruned:?}");
    }
    // Ten minutes go by, and once more.
    for _ in 0..2 {
        shift(&home, "retention_clock", &["written_at"], "-11 minutes").await;
        assert_eq!(store.prune(&KEPT, 10).await.unwrap().rows, 0);
    }
    let an_hour_further = if home.is_postgres() {
        "SELECT (extract(epoch FROM clock_timestamp() - time) / 3600)::bigint FROM retention_clock"
    } else {
        "SELECT CAST((julianday('now') - julianday(time)) * 24 AS INTEGER) FROM retention_clock"
    };
    assert!((4000 * 24 - 4..4000 * 24).contains(&home.number(an_hour_further).await));
    // Put right, the clock is behind what was believed; from then on all is as ever.
    shift(&home, "retention_clock", &["time", "written_at"], "+4100 days").await;
    let pruned = store.prune(&KEPT, 10).await.unwrap();
    assert_eq!((pruned.rows, pruned.clock_ahead), (3, None), "and what is past its retention by now goes");
}

async fn claims_are_compared_with_the_clock_that_stamped_them(home: Arc<Home>) {
    let store = home.store().await;
    capture(&store, [letter("m1")]).await;
    let before = store.clock().await.unwrap();
    assert!(before >= headcount::time::now() - 60_000);
    tokio::time::sleep(Duration::from_millis(2)).await;
    claim(&store, &all(), 1).await;
    assert!(store.unstamped(&all(), before, 10).await.unwrap().is_empty());
    let after = store.clock().await.unwrap();
    assert_eq!(store.unstamped(&all(), after, 10).await.unwrap().len(), 1);
}

async fn ignored_messages_are_forgotten_sooner(home: Arc<Home>) {
    let store = home.store().await;
    apply(&store, [other("m1"), other("m2"), other("m3"), news("m4")]).await.unwrap();
    age(&home, "inbox", "processed_at", "message_id <> 'm3'").await;
    let month = Retention { inbox: 30 * DAY, ..KEPT };
    assert_eq!(drain(&store, &month, 10).await, [2]);
    assert_eq!(home.number("SELECT count(*) FROM inbox WHERE message_id IN ('m3', 'm4')").await, 2);
    let hour = Retention { inbox: DAY / 24, ..KEPT };
    age(&home, "inbox", "processed_at", "message_id = 'm3'").await;
    assert_eq!(drain(&store, &hour, 10).await, [2]);
}

async fn rejections_are_kept_and_bounded(home: Arc<Home>) {
    let store = home.store().await;
    let now = headcount::time::now();
    let sample = |n: Millis| Rejected {
        at: now + n,
        address: "203.0.113.9".into(),
        reason: "no_match".into(),
        headers: vec!["host".into(), "svix-id".into()],
    };
    store.record_rejections(&[sample(1), sample(3), sample(2)]).await.unwrap();
    assert_eq!(store.rejections(2).await.unwrap(), [sample(3), sample(2)]);
    let nasty = "a\0\n\u{fffe}".repeat(1_000);
    let odd =
        Rejected { at: i64::MAX, address: nasty.clone(), reason: nasty.clone(), headers: vec![nasty; 300] };
    store.record_rejections(&[odd]).await.unwrap();
    let kept = &store.rejections(1).await.unwrap()[0];
    assert!(kept.headers.len() == 64 && !kept.address.contains('\0') && kept.reason.len() <= 64);
    age(&home, "rejections", "at", "reason = 'no_match'").await;
    assert_eq!(drain(&store, &KEPT, 2).await, [2, 1]);
    let many: Vec<_> = (0..10_020).map(sample).collect();
    store.record_rejections(&many).await.unwrap();
    assert_eq!(drain(&store, &KEPT, 15).await, [15, 6]);
    assert_eq!(home.number("SELECT count(*) FROM rejections").await, 10_000);
    let newest = store.rejections(20_000).await.unwrap();
    assert_eq!((newest[1].at, newest[9_999].at), (now + 10_019, now + 21));
}

// Of PostgreSQL alone: what can only go wrong between two transactions.

async fn on_postgres<F: Future<Output = ()> + Send + 'static>(case: impl FnOnce(Arc<Home>) -> F) {
    Home::postgres().await.run(case).await;
}

fn spawn<F>(
    store: &Arc<dyn Store>,
    task: impl FnOnce(Arc<dyn Store>) -> F,
) -> tokio::task::JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(task(store.clone()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_waits_for_a_batch_that_is_just_committing_its_message() {
    on_postgres(|home| async move {
        let store = home.store().await;
        let effect = "INSERT INTO inbox VALUES ('m2', 'user.created', NULL, 'created', NULL, now(), now())";
        let held = home.hold(effect).await;
        let capturing =
            spawn(&store, |store| async move { capture(&store, ["m1", "m2", "m3"].map(letter)).await });
        held.holds_up(1).await;
        held.let_go().await;
        capturing.await.unwrap();
        assert_eq!(show(&store, "m2").await.letter.status, Status::Applied);
        assert_eq!(show(&store, "m3").await.letter.status, Status::Open);
        assert_eq!(home.number("SELECT count(*) FROM inbox").await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_waits_for_a_capture_of_its_message_and_sees_the_letter() {
    on_postgres(|home| async move {
        let store = home.store().await;
        capture(&store, [letter("m1")]).await;
        claim(&store, &all(), 1).await;
        let held = home.hold("SELECT id FROM dead_letters FOR UPDATE").await;
        let capturing =
            spawn(&store, |store| async move { capture(&store, [round("m1", 1), letter("m2")]).await });
        held.holds_up(1).await;
        let applying =
            spawn(&store, |store| async move { apply(&store, [news("m1"), news("m2")]).await.unwrap() });
        held.holds_up(2).await;
        held.let_go().await;
        capturing.await.unwrap();
        assert_eq!(applying.await.unwrap(), [Created, Created]);
        assert_eq!(store.statuses().await.unwrap(), BTreeMap::from([(Status::Applied, 2)]));
        assert_eq!(show(&store, "m1").await.letter.round, 1);
    })
    .await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruning_waits_for_nobody() {
    on_postgres(|home| async move {
        let store = home.store().await;
        capture(&store, [letter("m1"), letter("m2")]).await;
        apply(&store, [news("m1"), news("m2")]).await.unwrap();
        age(&home, "inbox", "processed_at", "true").await;
        age(&home, "dead_letters", "settled_at", "true").await;
        let busy = "SELECT * FROM inbox WHERE message_id = 'm1' FOR UPDATE; \
                    SELECT * FROM dead_letters WHERE message_id = 'm1' FOR UPDATE";
        let held = home.hold(busy).await;
        assert_eq!(drain(&store, &KEPT, 10).await, [2]);
        held.let_go().await;
        assert_eq!(drain(&store, &KEPT, 10).await, [2]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_of_counts_is_summed_up_and_says_the_same() {
    on_postgres(|home| async move {
        let store = home.store().await;
        for n in 0..120 {
            capture(&store, [letter(&format!("m{n}"))]).await;
        }
        assert!(home.number("SELECT count(*) FROM dead_letter_tallies").await >= 120);
        let before = store.groups(&all()).await.unwrap();
        assert_eq!(store.prune(&KEPT, 10).await.unwrap().rows, 0, "it is no row that goes");
        assert_eq!(home.number("SELECT count(*) FROM dead_letter_tallies").await, 1);
        assert_eq!(store.groups(&all()).await.unwrap(), before);
    })
    .await;
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
    let config = StoreConfig { backend, policy, default_credits: 0, connections: 2 };

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
                assert_eq!((&group.last_died_at, &group.detail), (&newest[0].died_at, &newest[0].detail));
            }
        }
    })
    .await;
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
