//! Owns confirmed publishing: one connection, one task that owns the channel (two tasks on one confirm channel get each
//! other's confirms), a bounded window, and the supervision that connects again.
//! Promises that `Ok` means confirmed. An error means unknown.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, Event,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
};
use tracing::{error, info, warn};

use super::broker::{Broker, text};
use crate::{
    message::now,
    pause::Pauses,
    queue::{PUBLISH_LIMIT, QueueError},
    shutdown::until,
};

/// Publishes that wait for their confirm at a time.
const WINDOW: usize = 1000;
/// Bytes of bodies on their way at a time.
const WINDOW_BYTES: usize = 64 * 1024 * 1024;

/// Where a message goes.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) exchange: String,
    pub(super) key: String,
    /// Nowhere else to go: have it returned rather than dropped.
    pub(super) mandatory: bool,
}

type Reply = oneshot::Sender<Result<(), String>>;

struct Request {
    route: Route,
    properties: BasicProperties,
    body: Bytes,
    /// `None`: nobody waits for the answer.
    reply: Option<Reply>,
    _bytes: OwnedSemaphorePermit,
}

/// Whether publishing works at present.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Link {
    Up,
    Down(String),
}

/// The publishing side of a broker.
pub(super) struct Publisher {
    requests: mpsc::Sender<Request>,
    bytes: Arc<Semaphore>,
    link: watch::Receiver<Link>,
    closing: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Publisher {
    /// Connects at once; a broker that is away is tried again for as long as it takes.
    pub(super) async fn open(broker: Broker) -> Result<Self, QueueError> {
        let (requests, waiting) = mpsc::channel(WINDOW);
        let (closing, closed) = watch::channel(false);
        // A request waits for its lane from here on.
        let (link, state) = watch::channel(Link::Up);
        let first = match broker.connect("publisher").await {
            Ok(connection) => Some(connection),
            Err(QueueError::Unavailable(why)) => {
                warn!("{why}; publishing waits for it");
                link.send_replace(Link::Down(why));
                None
            }
            Err(error) => return Err(error),
        };
        let task = tokio::spawn(supervise(broker, first, waiting, link, closed));
        let bytes = Arc::new(Semaphore::new(WINDOW_BYTES));
        Ok(Self { requests, bytes, link: state, closing, task: Mutex::new(Some(task)) })
    }

    /// Why publishing does not work at present.
    pub(super) fn trouble(&self) -> Option<String> {
        match &*self.link.borrow() {
            Link::Up => None,
            Link::Down(why) => Some(why.clone()),
        }
    }

    /// Returns `Ok` once the broker has confirmed, an error at once while the broker is known to be away, and within
    /// [`PUBLISH_LIMIT`] in any case.
    pub(super) async fn publish(
        &self,
        route: Route,
        properties: BasicProperties,
        body: Bytes,
    ) -> Result<(), QueueError> {
        if let Some(why) = self.trouble() {
            return Err(QueueError::Unavailable(why));
        }
        let attempt = async {
            let size = u32::try_from(body.len()).unwrap_or(u32::MAX).min(WINDOW_BYTES as u32);
            let Ok(permit) = Arc::clone(&self.bytes).acquire_many_owned(size).await else {
                return Err("closing".into());
            };
            let (reply, confirmed) = oneshot::channel();
            let request = Request { route, properties, body, reply: Some(reply), _bytes: permit };
            if self.requests.send(request).await.is_err() {
                return Err("closing".into());
            }
            confirmed
                .await
                .unwrap_or_else(|_| Err("the connection was lost before the broker confirmed".into()))
        };
        match tokio::time::timeout(PUBLISH_LIMIT, attempt).await {
            Ok(answer) => answer.map_err(QueueError::Unavailable),
            Err(_) => Err(QueueError::Unavailable("the broker did not confirm in time".into())),
        }
    }

    /// Publishes if there is room, and forgets about it.
    pub(super) fn publish_lossy(&self, route: Route, properties: BasicProperties, body: Bytes) {
        let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.bytes).try_acquire_many_owned(size);
        if let (None, Ok(permit)) = (self.trouble(), room) {
            let request = Request { route, properties, body, reply: None, _bytes: permit };
            // No room: the sample is lost, as samples may be.
            let _ = self.requests.try_send(request);
        }
    }

    /// Turns true when the queue is being closed.
    pub(super) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// Waits for what is in flight, then closes.
    pub(super) async fn close(&self) {
        self.closing.send_replace(true);
        if let Some(task) = self.task.lock().await.take() {
            let abort = task.abort_handle();
            if tokio::time::timeout(PUBLISH_LIMIT, task).await.is_err() {
                abort.abort();
            }
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.closing.send_replace(true);
    }
}

/// What the lane has outstanding, for the supervisor's watch.
#[derive(Default)]
struct Progress {
    outstanding: AtomicUsize,
    /// Of the last confirm, or of the first publish after none was outstanding.
    at: AtomicI64,
}

async fn supervise(
    broker: Broker,
    connection: Option<Connection>,
    requests: mpsc::Receiver<Request>,
    link: watch::Sender<Link>,
    closing: watch::Receiver<bool>,
) {
    keep_serving(broker, connection, requests, &link, closing).await;
    link.send_replace(Link::Down("it is closed".into()));
}

async fn keep_serving(
    broker: Broker,
    mut connection: Option<Connection>,
    mut requests: mpsc::Receiver<Request>,
    link: &watch::Sender<Link>,
    closing: watch::Receiver<bool>,
) {
    let mut pauses = Pauses::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        let why = match connection.take() {
            Some(connection) => match lane(&broker, &connection).await {
                Ok(channel) => {
                    pauses.reset();
                    info!("publishing to the broker at {}", broker.place());
                    let why = serve(&connection, &channel, &mut requests, link, &closing).await;
                    if *closing.borrow() {
                        // The broker has confirmed all that was answered; nothing depends on a clean goodbye.
                        let _ =
                            tokio::time::timeout(Duration::from_secs(1), connection.close(200, "bye".into()))
                                .await;
                        return;
                    }
                    why
                }
                Err(error) => error.to_string(),
            },
            None => match &*link.borrow() {
                Link::Down(why) => why.clone(),
                Link::Up => "not connected".into(),
            },
        };
        if link.send_if_modified(|link| std::mem::replace(link, Link::Down(why.clone())) == Link::Up) {
            warn!("publishing is interrupted: {why}");
        }
        // Dropping a request answers it: unknown.
        while requests.try_recv().is_ok() {}
        tokio::select! {
            () = tokio::time::sleep(pauses.next_pause()) => {}
            () = until(&closing, |closing| *closing) => return,
        }
        match broker.connect("publisher").await {
            Ok(connected) => connection = Some(connected),
            Err(error) => {
                link.send_replace(Link::Down(error.to_string()));
            }
        }
    }
}

async fn lane(broker: &Broker, connection: &Connection) -> Result<Channel, QueueError> {
    let channel = broker.channel(connection).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(|error| broker.explain(&error))?;
    Ok(channel)
}

/// Runs the lane until the connection fails (and tells why) or closing is done.
async fn serve(
    connection: &Connection,
    channel: &Channel,
    requests: &mut mpsc::Receiver<Request>,
    link: &watch::Sender<Link>,
    closing: &watch::Receiver<bool>,
) -> String {
    let mut events = Box::pin(connection.events_listener());
    let progress = Progress::default();
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    let mut blocked: Option<String> = None;
    let mut publishing = std::pin::pin!(publish_all(channel, requests, &progress, closing));
    link.send_replace(Link::Up);
    loop {
        tokio::select! {
            why = &mut publishing => return why,
            event = events.next() => match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    warn!("the broker blocks publishing: {reason}");
                    blocked = Some(format!("the broker blocks publishing: {reason}"));
                }
                Some(Event::ConnectionUnblocked) => {
                    info!("the broker takes messages again");
                    blocked = None;
                }
                Some(Event::Error(error)) if !connection.status().connected() => return text(&error),
                Some(_) => {}
                None => return "the connection ended".into(),
            },
            _ = tick.tick() => {}
        }
        let waited = now() - progress.at.load(Relaxed);
        let stalled = progress.outstanding.load(Relaxed) > 0 && waited > PUBLISH_LIMIT.as_millis() as i64;
        let state = match &blocked {
            Some(why) => Link::Down(why.clone()),
            None if stalled => Link::Down("the broker does not confirm".into()),
            None => Link::Up,
        };
        link.send_if_modified(|link| {
            let changed = *link != state;
            *link = state;
            changed
        });
    }
}

async fn publish_all(
    channel: &Channel,
    requests: &mut mpsc::Receiver<Request>,
    progress: &Progress,
    closing: &watch::Receiver<bool>,
) -> String {
    let mut confirms = FuturesUnordered::new();
    let mut open = true;
    loop {
        tokio::select! {
            request = requests.recv(), if open && confirms.len() < WINDOW => {
                let Some(request) = request else {
                    open = false;
                    continue;
                };
                // Nobody waits for it any more: it was answered "unknown" while it was still here.
                if request.reply.as_ref().is_some_and(oneshot::Sender::is_closed) {
                    continue;
                }
                if progress.outstanding.fetch_add(1, Relaxed) == 0 {
                    progress.at.store(now(), Relaxed);
                }
                // Not awaited one by one: lapin resolves a publish once its frames are written, and writing many at a
                // time is what makes it fast. Polled by this task alone, each takes its tag and queues its frames in
                // one poll.
                confirms.push(confirmed(channel, request));
            }
            Some((confirmed, id, reply)) = confirms.next() => {
                progress.outstanding.fetch_sub(1, Relaxed);
                progress.at.store(now(), Relaxed);
                match confirmed {
                    Ok(Confirmation::Ack(None)) => {
                        answer(reply, Ok(()));
                    }
                    Ok(Confirmation::Ack(Some(returned))) => {
                        // lapin may attach a return to another message's confirm: believe the message id. Either way the
                        // topology is broken, and connecting again declares it.
                        let returned = returned.properties.message_id().clone();
                        error!("the broker returned message {} as unroutable: a queue or a binding is missing",
                            returned.as_ref().map_or("?", |id| id.as_str()));
                        let result = if returned == id { Err("no queue takes it".into()) } else { Ok(()) };
                        answer(reply, result);
                        return "a queue or a binding is missing; declaring them again".into();
                    }
                    Ok(Confirmation::Nack(_)) => {
                        answer(reply, Err("the broker rejects messages: the queue is full".into()));
                    }
                    Ok(Confirmation::NotRequested) => return "the channel lost its confirm mode".into(),
                    Err(error) => return text(&error),
                }
            }
            () = until(closing, |closing| *closing), if open => {
                requests.close();
            }
            else => return "closed".into(),
        }
    }
}

/// Publishes and waits for the broker's word.
async fn confirmed(
    channel: &Channel,
    Request { route, properties, body, reply, _bytes }: Request,
) -> (lapin::Result<Confirmation>, Option<ShortString>, Option<Reply>) {
    let id = properties.message_id().clone();
    let options = BasicPublishOptions { mandatory: route.mandatory, immediate: false };
    let (exchange, key) = (route.exchange.as_str().into(), route.key.as_str().into());
    let published = channel.basic_publish(exchange, key, options, &body, properties).await;
    // It is on its way in frames that are copies of it.
    drop(body);
    let confirmed = match published {
        Ok(confirm) => confirm.await,
        Err(error) => Err(error),
    };
    (confirmed, id, reply)
}

fn answer(reply: Option<Reply>, result: Result<(), String>) {
    if let Some(reply) = reply {
        // Who does not wait any more was told "unknown".
        let _ = reply.send(result);
    }
}
