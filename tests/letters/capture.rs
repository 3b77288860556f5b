//! Capturing letters.

use super::*;

contract! {
    a_letter_is_kept_whole
    capture_cannot_fail_on_content
    capturing_again_changes_nothing
    of_two_deaths_in_one_capture_the_later_round_counts
    a_letter_that_dies_again_is_the_same_letter_one_round_on
    a_lower_round_is_ignored
    what_has_taken_effect_is_captured_as_applied
    an_applied_letter_that_dies_in_a_later_round_is_open_again
}

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
        origin: headcount::message::Origin::Webhook,
        round: 0,
        event_type: one.event_type,
        clerk_id: one.clerk_id,
        reason: one.reason,
        detail: one.detail,
        attempts: 7,
        first_seen: T,
        died_at: T + 1_000,
        status: Status::Open,
        outcome: None,
        group: one.group,
    };
    assert_eq!(shown.letter, expected);
    assert_eq!((shown.headers, shown.body), (one.headers, one.body));
    let [died] = &shown.history[..] else { panic!("{:?}", shown.history) };
    assert_eq!((died.action.as_str(), died.round, died.by.as_str()), ("died", 0, "headcount"));
    assert_eq!((died.note.as_deref(), died.at), (Some("rejected: no such luck"), expected.died_at));
    assert_eq!(list(&store, &all()).await, [expected]);
    assert_eq!(show(&store, &id.to_string()).await.letter.message_id, "m1");
    for nobody in ["", "m2", "\0", &Uuid::now_v7().to_string()] {
        assert!(store.show(nobody).await.unwrap().is_none(), "{nobody:?}");
    }
}

async fn capture_cannot_fail_on_content(home: Arc<Home>) {
    let store = home.store().await;
    let nasty = "a\0b\r\n\u{1b}[31m\u{85}'\"\\{}%é\u{fffe}🎈".to_owned();
    let long = |text: &str| text.repeat(5_000);
    let every = |message_id: &str, text: &str| Captured {
        message_id: format!("{message_id}{text}"),
        origin: headcount::message::Origin::Webhook,
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
    store.record(&[]).await.unwrap();
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
    assert_eq!((shown.letter.first_seen, &shown.body[..]), (T, &b"edited"[..]));
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
