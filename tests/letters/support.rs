//! Helpers for the tests of letters: letters to capture, and short ways to ask for them.

use super::*;

/// A letter about the user `user_<message id>`.
pub(crate) fn letter(message_id: &str) -> Captured {
    Captured {
        message_id: message_id.into(),
        origin: headcount::message::Origin::Webhook,
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

pub(crate) fn round(message_id: &str, round: u32) -> Captured {
    Captured { round, ..letter(message_id) }
}

pub(crate) fn by(name: &str) -> Actor {
    Actor { name: name.into(), note: Some(format!("{name}'s note")) }
}

pub(crate) fn only(id: Uuid) -> Filter {
    Filter { ids: vec![id], ..Filter::default() }
}

pub(crate) fn all() -> Filter {
    Filter::default()
}

pub(crate) async fn capture(store: &Arc<dyn Store>, letters: impl IntoIterator<Item = Captured>) {
    store.capture(&letters.into_iter().collect::<Vec<_>>()).await.unwrap();
}

pub(crate) async fn show(store: &Arc<dyn Store>, reference: &str) -> LetterDetail {
    store.show(reference).await.unwrap().unwrap_or_else(|| panic!("no letter {reference}"))
}

/// Status, round and the actions of its history.
pub(crate) async fn story(store: &Arc<dyn Store>, reference: &str) -> (Status, u32, Vec<String>) {
    let shown = show(store, reference).await;
    let actions = shown.history.into_iter().map(|entry| format!("{} {}", entry.action.as_str(), entry.round));
    (shown.letter.status, shown.letter.round, actions.collect())
}

pub(crate) async fn list(store: &Arc<dyn Store>, filter: &Filter) -> Vec<Letter> {
    store.list(filter, &Page { limit: 1_000, after: None }).await.unwrap()
}

pub(crate) async fn found(store: &Arc<dyn Store>, filter: &Filter) -> Vec<String> {
    list(store, filter).await.into_iter().map(|letter| letter.message_id).collect()
}

pub(crate) async fn claim(store: &Arc<dyn Store>, filter: &Filter, limit: u32) -> Vec<Claimed> {
    store.claim(filter, limit, &by("ann")).await.unwrap()
}

pub(crate) async fn unstamped(store: &Arc<dyn Store>) -> Vec<(String, u32)> {
    let claims = store.unstamped(&all(), FAR, 100).await.unwrap();
    claims.into_iter().map(|claim| (claim.message_id, claim.round)).collect()
}

/// News of the user that the letter is about, under its message id.
pub(crate) fn news(message_id: &str) -> headcount::store::Incoming {
    created(&format!("user_{message_id}"), 10).message(message_id).event()
}

/// Letters of many kinds: two types, three reasons, four groups, all statuses.
pub(crate) async fn variety(store: &Arc<dyn Store>) -> Vec<Captured> {
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

pub(crate) const DAY: Duration = Duration::from_secs(24 * 3_600);

pub(crate) const KEPT: Retention = Retention { inbox: DAY, dead: DAY, sessions: DAY, rejections: DAY };

pub(crate) async fn drain(store: &Arc<dyn Store>, retention: &Retention, limit: u32) -> Vec<u64> {
    let mut steps = Vec::new();
    loop {
        match store.prune(retention, limit).await.unwrap().rows {
            0 => return steps,
            gone => steps.push(gone),
        }
    }
}

/// Makes everything that a condition selects two days older.
pub(crate) async fn age(home: &Home, table: &str, column: &str, condition: &str) {
    let older = if home.is_postgres() {
        format!("{column} - interval '2 days'")
    } else {
        format!("strftime('%Y-%m-%dT%H:%M:%fZ', {column}, '-2 days')")
    };
    home.sql(&format!("UPDATE {table} SET {column} = {older} WHERE {condition}")).await;
}

pub(crate) async fn on_postgres<F: Future<Output = ()> + Send + 'static>(case: impl FnOnce(Arc<Home>) -> F) {
    Home::postgres().await.run(case).await;
}

pub(crate) fn spawn<F>(
    store: &Arc<dyn Store>,
    task: impl FnOnce(Arc<dyn Store>) -> F,
) -> tokio::task::JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(task(store.clone()))
}
