//! Owns the demo's operator: a made-up person who looks after dead letters and grants a tier, so that the console's log and its replays
//! have something to show. Promises that the operator does each of it once, however often the demo starts, for as long as the log keeps
//! it.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};

use crate::{
    letters::{
        operations::{NewReplay, settle},
        ramp::HALT_AT,
    },
    queue::Reason,
    stop::until,
    store::{
        Store, StoreError, UserQuery,
        letters::{Actor, Filter, Page, Status},
        operations::{Kind, LOG_MAX, LogFilter, LogPage},
    },
};

/// How often it is looked whether there is something to do.
const LOOK: Duration = Duration::from_secs(3);
/// As the log names the operator.
const WHO: &str = "the demo's operator";
/// So many letters have to be open.
const LETTERS: u64 = 4;

/// Acts as soon as there are letters, unless `stop` turns true before.
pub(super) async fn run(store: Arc<dyn Store>, stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = sleep(LOOK) => {}
            () = until(&stop, |stop| *stop) => return,
        }
        // Where the database does not answer, it is tried again.
        if let Ok(true) = act(&store).await {
            return;
        }
    }
}

/// Does what the log does not tell yet, the grant last. Answers whether all is done.
async fn act(store: &Arc<dyn Store>) -> Result<bool, StoreError> {
    let mine = LogFilter { who: Some(WHO.into()), ..LogFilter::default() };
    let log = store.operations(&mine, &LogPage { limit: LOG_MAX, after: None }).await?;
    let done: HashSet<Kind> = log.iter().map(|row| row.kind).collect();
    if [Kind::Discard, Kind::Replay, Kind::Grant].iter().all(|kind| done.contains(kind)) {
        return Ok(true);
    }
    let filter = Filter {
        status: Some(Status::Open),
        reason: Some(Reason::InvalidPayload.as_str().to_owned()),
        ..Filter::default()
    };
    let open: u64 = store.count(&filter).await?.iter().map(|count| count.letters).sum();
    let newest = UserQuery { limit: 1, ..UserQuery::default() };
    let (Some(user), true) = (store.users(&newest).await?.into_iter().next(), open >= LETTERS) else {
        return Ok(false);
    };
    let by = |note: &str| Actor { name: WHO.into(), note: Some(note.into()) };
    if !done.contains(&Kind::Discard)
        && let Some(letter) = store.list(&filter, &Page { limit: 1, after: None }).await?.first()
    {
        settle(store, Kind::Discard, &by("a test of the sender's"), letter).await?;
    }
    if !done.contains(&Kind::Replay) {
        let replay = NewReplay {
            open: store.count(&filter).await?.iter().map(|count| count.letters).sum(),
            filter,
            limit: u64::MAX,
            rate: None,
            halt_at: Some(HALT_AT),
            by: by("whether the sender has mended it"),
            warnings: Vec::new(),
        };
        if store.begin_operation(&replay.operation(None)).await?.is_none() {
            return Ok(false);
        }
    }
    if !done.contains(&Kind::Grant) {
        store.grant(user.id, "premium_lifetime", None, &by("a friend of the house")).await?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;
    use crate::{
        clerk::{self, Known, made_up::Person},
        message::{MessageId, Origin},
        rules::{
            Event,
            users::{OnDelete, Policy, Relink},
        },
        store::{self, Backend, Incoming, StoreConfig, letters::Captured, operations::Wish},
        time::now,
    };

    fn letter(n: usize) -> Captured {
        Captured {
            message_id: format!("msg_{n}"),
            origin: Origin::Webhook,
            round: 0,
            event_type: "user.updated".into(),
            clerk_id: None,
            reason: Reason::InvalidPayload.as_str().to_owned(),
            detail: "no such luck".into(),
            attempts: 1,
            first_seen: now(),
            died_at: now(),
            group: "invalid_payload".into(),
            headers: BTreeMap::new(),
            body: Bytes::from_static(b"{}"),
        }
    }

    #[tokio::test]
    async fn the_operator_acts_once_however_often_the_demo_starts() {
        let home = tempfile::tempdir().unwrap();
        let config = StoreConfig {
            backend: Backend::Sqlite { path: home.path().join("headcount.db") },
            policy: Policy { relink: Relink::Deleted, on_delete: OnDelete::Keep },
            default_credits: 0,
            sessions: true,
            billing: None,
            connections: 4,
        };
        let store = store::open(&config).await.unwrap();
        store.migrate().await.unwrap();
        let born = now();
        let id = MessageId::parse("msg_ada").unwrap();
        let body = Person::of("user_ada", born).event("user.created", born);
        let parsed = clerk::parse(&body, &Known::webhook(&id, born)).unwrap();
        let event = Event {
            message_id: "msg_ada".into(),
            change: parsed.change,
            fresh_row: Uuid::now_v7(),
            patience_over: true,
        };
        let ada = Incoming { event, event_type: parsed.event_type, received_at: born };
        store.apply(Arc::new([ada])).await.unwrap();
        assert!(!act(&store).await.unwrap(), "no letter is open");
        store.capture(&(0..9).map(letter).collect::<Vec<_>>()).await.unwrap();

        // As many replays run as may: the discard is not done a second time, and the grant not at all.
        let of_others = NewReplay {
            filter: Filter { status: Some(Status::Open), ..Filter::default() },
            limit: 1,
            rate: None,
            halt_at: None,
            by: Actor { name: "ann".into(), note: None },
            open: 1,
            warnings: Vec::new(),
        };
        let mut running = Vec::new();
        while let Some(begun) = store.begin_operation(&of_others.operation(None)).await.unwrap() {
            running.push(begun.id);
        }
        let kinds = async || {
            let mine = LogFilter { who: Some(WHO.into()), ..LogFilter::default() };
            let rows = store.operations(&mine, &LogPage { limit: 100, after: None }).await.unwrap();
            let mut kinds: Vec<_> = rows.iter().map(|row| row.kind.as_str()).collect();
            kinds.sort_unstable();
            kinds
        };
        for _ in 0..2 {
            assert!(!act(&store).await.unwrap());
            assert_eq!(kinds().await, ["discard"]);
        }
        store.wish(running[0], Wish::Stop, &of_others.by, 4).await.unwrap();
        for _ in 0..3 {
            assert!(act(&store).await.unwrap());
            assert_eq!(kinds().await, ["discard", "grant", "replay"]);
        }
    }
}
