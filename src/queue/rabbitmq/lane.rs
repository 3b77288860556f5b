//! Owns one confirm channel: its bounded window, its replacement when it fails or falls silent, and the task that alone
//! publishes on it, because two tasks on one confirm channel get each other's confirms.
//! Promises that `Ok` means confirmed and not returned, and that its trouble fails no publish of another lane.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, Error,
    message::BasicReturnMessage,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::timeout,
};

use super::{
    connection::{Broker, code, text},
    keeper::Keeper,
    outstanding::{Number, Outstanding},
    troubles::{Reporter, Troubles},
};
use crate::{
    pause::Recovery,
    queue::{PUBLISH_LIMIT, PUBLISHING, QueueError, gathering::Gathering},
    stop::until,
};

/// Publishes that wait for their confirm at a time.
const WINDOW: usize = 1000;
/// Bytes of bodies on their way at a time.
const WINDOW_BYTES: usize = 64 * 1024 * 1024;
/// How long opening a channel may take on a connection that lives.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// A confirm that is missing for so long, while others come, will not come.
const LOST_LIMIT: Duration = Duration::from_secs(10);
/// A lane that has been open for so long without a failure is well, even if nothing was published.
const WELL_AFTER: Duration = Duration::from_secs(30);

/// Why publishing is refused at once, if it is.
pub(super) type Gate = Option<QueueError>;

/// Where a message goes.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) exchange: ShortString,
    pub(super) key: ShortString,
}

type Reply = oneshot::Sender<Result<(), String>>;

struct Request {
    route: Route,
    properties: BasicProperties,
    body: Bytes,
    reply: Reply,
    bytes: OwnedSemaphorePermit,
}

/// The callers' end of a lane.
pub(super) struct Lane {
    requests: mpsc::Sender<Request>,
    bytes: Arc<Semaphore>,
    gate: watch::Receiver<Gate>,
}

/// The channel's end.
pub(super) struct Runner {
    reporter: Reporter,
    broker: Broker,
    troubles: Arc<Troubles>,
    keeper: Keeper,
    requests: mpsc::Receiver<Request>,
    gate: watch::Sender<Gate>,
    recovery: Recovery,
}

/// A lane that is shut until its runner has a connection. `reporter` names it among the troubles.
pub(super) fn lane(
    reporter: Reporter,
    broker: Broker,
    troubles: Arc<Troubles>,
    keeper: Keeper,
    first: Gate,
) -> (Lane, Runner) {
    let (requests, waiting) = mpsc::channel(WINDOW);
    let (gate, state) = watch::channel(first);
    let recovery = Recovery::new(Duration::from_millis(200), Duration::from_secs(5));
    let bytes = Arc::new(Semaphore::new(WINDOW_BYTES));
    let runner = Runner { reporter, broker, troubles, keeper, requests: waiting, gate, recovery };
    (Lane { requests, bytes, gate: state }, runner)
}

impl Lane {
    /// Why publishing does not work at present.
    pub(super) fn trouble(&self) -> Gate {
        self.gate.borrow().clone()
    }

    /// Returns `Ok` once the broker has confirmed, an error at once while the broker is known to be away, and within
    /// [`PUBLISH_LIMIT`] in any case.
    pub(super) async fn publish(
        &self,
        route: Route,
        properties: BasicProperties,
        body: Bytes,
    ) -> Result<(), QueueError> {
        if let Some(error) = self.trouble() {
            return Err(error);
        }
        let attempt = async {
            let size = u32::try_from(body.len()).unwrap_or(u32::MAX).min(WINDOW_BYTES as u32);
            let Ok(bytes) = Arc::clone(&self.bytes).acquire_many_owned(size).await else {
                return Err("closing".into());
            };
            let (reply, confirmed) = oneshot::channel();
            let request = Request { route, properties, body, reply, bytes };
            if self.requests.send(request).await.is_err() {
                return Err("closing".into());
            }
            confirmed
                .await
                .unwrap_or_else(|_| Err("the connection was lost before the broker confirmed".into()))
        };
        match timeout(PUBLISH_LIMIT, attempt).await {
            Ok(answer) => answer.map_err(QueueError::Unavailable),
            // What has become known meanwhile tells why.
            Err(_) => Err(self
                .trouble()
                .unwrap_or_else(|| QueueError::Unavailable("the broker did not confirm in time".into()))),
        }
    }
}

/// How a runner's work on a connection ends.
pub(super) enum ServeEnd {
    /// The queue was closed, and what was in flight is finished.
    Closed,
    /// The connection cannot be used any more, and why.
    Lost(QueueError),
}

impl ServeEnd {
    pub(super) fn lost(why: impl Into<String>) -> Self {
        Self::Lost(QueueError::Unavailable(why.into()))
    }
}

impl Runner {
    /// Refuses what comes, and fails what waits: whether it arrived is not known.
    pub(super) fn shut(&mut self, error: &QueueError) {
        self.gate.send_replace(Some(error.clone()));
        while self.requests.try_recv().is_ok() {}
    }

    /// Publishes over `connection` for as long as that can be used. `blocked` tells of an alarm.
    pub(super) async fn run(
        &mut self,
        connection: &Connection,
        mut blocked: watch::Receiver<Gate>,
        closing: watch::Receiver<bool>,
    ) -> ServeEnd {
        // What was wrong concerned an earlier connection.
        self.well();
        loop {
            let channel = match timeout(OPEN_LIMIT, self.open(connection)).await {
                Ok(Ok(channel)) => channel,
                Ok(Err(error)) => return ServeEnd::Lost(error),
                Err(_) => return ServeEnd::Lost(self.broker.mute()),
            };
            let Some(why) = self.serve(&channel, &mut blocked, &closing).await else {
                return ServeEnd::Closed;
            };
            if !connection.status().connected() {
                return ServeEnd::lost(why);
            }
            self.shut(&QueueError::Unavailable(why.clone()));
            self.recovery.failed();
            self.troubles.report(PUBLISHING, self.reporter, why);
            if self.recovery.pause(until(&closing, |closing| *closing)).await {
                return ServeEnd::Closed;
            }
        }
    }

    async fn open(&self, connection: &Connection) -> Result<Channel, QueueError> {
        let channel = self.broker.channel(connection).await?;
        let select = channel.confirm_select(ConfirmSelectOptions::default()).await;
        select.map_err(|error| self.broker.explain(&error))?;
        Ok(channel)
    }

    /// Publishes until the channel fails, and tells why. `None`: the queue was closed.
    async fn serve(
        &mut self,
        channel: &Channel,
        blocked: &mut watch::Receiver<Gate>,
        closing: &watch::Receiver<bool>,
    ) -> Option<String> {
        let opened = Instant::now();
        let mut outstanding = Outstanding::default();
        let mut confirms = FuturesUnordered::new();
        let (mut received, mut ready) = (Vec::new(), Vec::new());
        let mut gathering = Gathering::new();
        let yielded = Arc::new(Woken::default());
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        let (mut open, mut asked) = (true, false);
        self.gate.send_replace(blocked.borrow_and_update().clone());
        // A broker that blocks publishing confirms nothing, so only confirms that a caller waits for are waited for.
        while open || outstanding.any(|(reply, _): &Waiter| !reply.is_closed()) {
            let room = WINDOW.saturating_sub(confirms.len());
            let mut begun = 0;
            tokio::select! {
                count = self.requests.recv_many(&mut received, room), if open && room > 0 => {
                    open = count > 0;
                    let now = Instant::now();
                    for Request { route, properties, body, reply, bytes } in received.drain(..) {
                        // Its caller has given up.
                        if reply.is_closed() {
                            continue;
                        }
                        let id = properties.message_id().clone().unwrap_or_default();
                        let number = outstanding.begin(id, (reply, bytes), now);
                        // Not awaited one by one: lapin resolves a publish once its frames are written, and writing many
                        // at a time is what makes it fast. Polled by this task alone, each takes its tag and queues its
                        // frames in one poll.
                        confirms.push(confirmed(channel, number, route, properties, body));
                        begun += 1;
                    }
                }
                Some(first) = confirms.next() => ready.push(first),
                Ok(()) = blocked.changed() => {
                    self.gate.send_replace(blocked.borrow_and_update().clone());
                }
                _ = tick.tick() => {
                    let now = Instant::now();
                    if self.gate.borrow().is_some() {
                        outstanding.excuse(now);
                    } else if outstanding.is_stalled(PUBLISH_LIMIT, LOST_LIMIT, now) {
                        return Some("the broker does not confirm".into());
                    }
                    if now.duration_since(opened) > WELL_AFTER {
                        self.well();
                    }
                }
                () = until(closing, |closing| *closing), if !asked => {
                    asked = true;
                    self.requests.close();
                }
            }
            // The return of a message can come with an earlier one's confirm: all that is known has to be looked at before
            // anything is called confirmed.
            drain(&mut confirms, &mut ready, &yielded);
            gathering.met(begun.max(ready.len()));
            if let Some(why) = self.heard(&mut outstanding, &mut ready) {
                return Some(why);
            }
            gathering.rest().await;
        }
        None
    }

    /// Answers the callers as the broker has. `Some`: why the channel is at its end.
    fn heard(&mut self, outstanding: &mut Outstanding<Waiter>, ready: &mut Vec<Word>) -> Option<String> {
        for message in ready.iter().filter_map(|(_, word)| returned(word)) {
            let id = message.properties.message_id().as_ref().map_or("", ShortString::as_str);
            outstanding.returned(id);
            self.keeper.suspect(&format!("no queue takes what is published to {}", message.exchange));
        }
        let (now, mut failed) = (Instant::now(), None);
        for (number, word) in ready.drain(..) {
            let word = match word {
                Ok(Confirmation::NotRequested) => {
                    failed = Some("the channel lost its confirm mode".into());
                    continue;
                }
                Ok(word) => word,
                Err(error) => {
                    if code(&error) == Some(404) {
                        self.keeper.suspect(&text(&error));
                    }
                    failed.get_or_insert_with(|| text(&error));
                    continue;
                }
            };
            let Some(((reply, _bytes), is_returned)) = outstanding.ended(number, now) else { continue };
            let answer = answer(&word, is_returned);
            if answer.is_ok() {
                self.well();
            }
            // A caller may have given up.
            let _ = reply.send(answer.map_err(str::to_owned));
        }
        failed
    }

    fn well(&mut self) {
        if self.recovery.works() {
            self.troubles.clear(PUBLISHING, self.reporter);
        }
    }
}

/// A caller who waits for the broker's word, with the room that the message takes.
type Waiter = (Reply, OwnedSemaphorePermit);
/// What the broker said of a publish.
type Word = (Number, lapin::Result<Confirmation>);

fn returned(word: &Result<Confirmation, Error>) -> Option<&BasicReturnMessage> {
    match word {
        Ok(Confirmation::Ack(returned) | Confirmation::Nack(returned)) => returned.as_ref(),
        _ => None,
    }
}

/// What a word means for its message. One that carries a return is no confirm, whoever the return names: of several messages that
/// one word of the broker's confirms, lapin hands out the returns in any order.
fn answer(word: &Confirmation, is_returned: bool) -> Result<(), &'static str> {
    match word {
        Confirmation::Ack(None) if !is_returned => Ok(()),
        Confirmation::Nack(None) if !is_returned => Err("the broker rejects messages: the queue is full"),
        _ => Err("no queue takes it"),
    }
}

/// Publishes and waits for the broker's word.
async fn confirmed(
    channel: &Channel,
    number: Number,
    route: Route,
    properties: BasicProperties,
    body: Bytes,
) -> Word {
    // The alternate exchange confirms what it throws away when its own queue is gone: have that returned.
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let published = channel.basic_publish(route.exchange, route.key, options, &body, properties).await;
    // It is on its way in frames that are copies of it.
    drop(body);
    let confirmed = match published {
        Ok(confirm) => confirm.await,
        Err(error) => Err(error),
    };
    (number, confirmed)
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// Takes all that is ready. A stream that says "pending" only to let others run has woken us, and is asked again.
fn drain<S: Stream + Unpin>(stream: &mut S, ready: &mut Vec<S::Item>, woken: &Arc<Woken>) {
    let waker = Waker::from(Arc::clone(woken));
    let mut context = Context::from_waker(&waker);
    loop {
        match stream.poll_next_unpin(&mut context) {
            Poll::Ready(Some(item)) => ready.push(item),
            Poll::Ready(None) => return,
            Poll::Pending if woken.0.swap(false, SeqCst) => {}
            Poll::Pending => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirm_that_carries_a_return_is_none_whoever_the_return_names() {
        let returned = || {
            let delivery = lapin::message::Delivery::mock(0, "e".into(), "k".into(), false, Vec::new());
            BasicReturnMessage { delivery, reply_code: 312, reply_text: "NO_ROUTE".into() }
        };
        assert_eq!(answer(&Confirmation::Ack(None), false), Ok(()));
        for word in [Confirmation::Ack(Some(returned())), Confirmation::Nack(Some(returned()))] {
            assert_eq!(answer(&word, false), Err("no queue takes it"));
        }
        assert_eq!(answer(&Confirmation::Ack(None), true), Err("no queue takes it"));
        assert!(answer(&Confirmation::Nack(None), false).unwrap_err().contains("full"));
    }

    #[test]
    fn all_that_is_ready_is_taken_though_the_stream_yields() {
        struct Yielding(usize);
        impl Future for Yielding {
            type Output = ();
            fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
                if self.0 == 0 {
                    return Poll::Ready(());
                }
                self.0 -= 1;
                context.waker().wake_by_ref();
                Poll::Pending
            }
        }
        let mut stream: FuturesUnordered<_> = (0..100).map(|n| Yielding(n % 4)).collect();
        let mut ready = Vec::new();
        drain(&mut stream, &mut ready, &Arc::default());
        assert_eq!(ready.len(), 100);
    }
}
