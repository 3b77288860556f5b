//! Owns the embedded queue: the file `queue.db` in the data directory, shared by the processes of one host.
//!
//! Promises what the seam promises, without a server: a publish is answered after an fsync that it shares with all that
//! waited for it; a delivery is leased, and its lease runs out when its process dies. All writing is done by one task
//! per process (`writer.rs`); here are the handles that ask it, and they never wait for a database, only for its answer.

mod file;
mod leases;
mod rows;
mod subscription;
mod work;
mod writer;

use std::{
    fmt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::timeout_at,
};

pub(super) use self::file::FILE;
use self::{
    subscription::{Consumer, EmbeddedSubscription},
    work::{Publish, Request, Sample},
    writer::Writer,
};
use super::{
    Depth, Finding, Ladder, PUBLISH_LIMIT, PUBLISHING, Queue, QueueError, Source, Subscription, Trouble,
};
use crate::{
    datafile::{DataFile, EXAMINE_LIMIT, FileTrouble, Guard, connection},
    message::Message,
};

/// How much may wait to be published, in KiB; each message counts for at least one.
const WAITING_KIB_MAX: usize = 64 * 1024;
/// How much may wait of samples, in KiB: enough for a burst of each kind.
const SAMPLES_KIB_MAX: usize = 256;
/// How long [`Queue::close`] waits for the writer.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// The embedded queue's times. The default is what is documented; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a consumer keeps its deliveries after its last sign of life.
    pub lease: Duration,
    /// How often it gives one.
    pub heartbeat: Duration,
    /// How often it looks for what other processes have published.
    pub poll: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            heartbeat: Duration::from_secs(10),
            poll: Duration::from_millis(200),
        }
    }
}

/// A queue in a file.
pub struct EmbeddedQueue {
    file: Arc<DataFile>,
    ladder: Ladder,
    requests: mpsc::UnboundedSender<Request>,
    /// What bounds the requests: each publish that waits holds its share.
    waiting: Arc<Semaphore>,
    /// The same for samples.
    sampling: Arc<Semaphore>,
    state: Arc<WriterState>,
}

impl fmt::Debug for EmbeddedQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the embedded queue in {}", self.file.real().display())
    }
}

impl EmbeddedQueue {
    /// Opens `queue.db` in `directory`; makes both where they are missing.
    ///
    /// # Errors
    /// [`QueueError::Refused`] where the directory cannot be written, [`QueueError::Misconfigured`] where the file is
    /// no queue, [`QueueError::File`] where it is locked or the disk fails.
    pub async fn open(directory: &Path, ladder: Ladder) -> Result<Self, QueueError> {
        Self::open_with(directory, ladder, Timing::default()).await
    }

    /// [`open`](Self::open) with other times than the default ones. All processes that share the directory should
    /// agree on the lease.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub async fn open_with(directory: &Path, ladder: Ladder, timing: Timing) -> Result<Self, QueueError> {
        let (file, anchor) = file::prepare(directory).await?;
        let guard = Guard::start(file.clone(), anchor);
        let (requests, asked) = mpsc::unbounded_channel();
        let state = Arc::new(WriterState::new(file.clone()));
        let writer = Writer::new(file.clone(), ladder.clone(), timing, state.clone(), asked);
        tokio::spawn(async move {
            let closing = writer.run().await;
            guard.stop().await;
            if let Some(closed) = closing {
                let _ = closed.send(());
            }
        });
        let waiting = Arc::new(Semaphore::new(WAITING_KIB_MAX));
        let sampling = Arc::new(Semaphore::new(SAMPLES_KIB_MAX));
        Ok(Self { file, ladder, requests, waiting, sampling, state })
    }

    /// Waits for the writer's answer, or its end, or the limit. The request is not withdrawn by giving up.
    async fn answer(
        &self,
        answered: oneshot::Receiver<Result<(), QueueError>>,
        limit: Instant,
    ) -> Result<(), QueueError> {
        match timeout_at(limit.into(), answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(closed()),
            Err(_) => Err(QueueError::File("queue.db has not answered in time".into())),
        }
    }
}

#[async_trait]
impl Queue for EmbeddedQueue {
    async fn publish(&self, message: Message) -> Result<(), QueueError> {
        self.state.check()?;
        let limit = Instant::now() + PUBLISH_LIMIT;
        let share = self.waiting.clone().acquire_many_owned(kib(&message.body));
        let share = timeout_at(limit.into(), share)
            .await
            .map_err(|_| QueueError::Unavailable("too much waits to be published".into()))?
            .map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        let publish = Publish { message, answer, _share: share };
        self.requests.send(Request::Publish(publish)).map_err(|_| closed())?;
        self.answer(answered, limit).await
    }

    fn sample(&self, rejected: Bytes) {
        // Trouble, or the writer is behind: the sample is lost, as samples may be.
        let share = self.sampling.clone().try_acquire_many_owned(kib(&rejected));
        if let (Ok(()), Ok(share)) = (self.state.check(), share) {
            let _ = self.requests.send(Request::Sample(Sample { body: rejected, _share: share }));
        }
    }

    async fn subscribe(&self, source: Source, prefetch: u16) -> Result<Box<dyn Subscription>, QueueError> {
        let consumer = Arc::new(Consumer::new(source, prefetch));
        self.requests.send(Request::Join(consumer.clone())).map_err(|_| closed())?;
        Ok(Box::new(EmbeddedSubscription {
            consumer,
            requests: self.requests.clone(),
            state: self.state.clone(),
        }))
    }

    async fn depths(&self) -> Result<Vec<Depth>, QueueError> {
        self.file.check().map_err(|trouble| unusable(&trouble))?;
        let (file, ladder) = (self.file.clone(), self.ladder.clone());
        // In a task of its own: a caller who gives up must not leave a statement half done.
        let counting = tokio::spawn(async move {
            let mut connection = file::open(file.real(), file::BUSY_PATIENCE).await?;
            let depths = rows::depths(&mut connection, &ladder, crate::time::now()).await?;
            sqlx::Connection::close(connection).await?;
            Ok::<_, sqlx::Error>(depths)
        });
        match timeout_at((Instant::now() + PUBLISH_LIMIT).into(), counting).await {
            Ok(Ok(Ok(depths))) => Ok(depths),
            Ok(Ok(Err(error))) => Err(QueueError::File(format!("queue.db: {}", connection::say(&error)))),
            Ok(Err(error)) => Err(QueueError::File(format!("queue.db: {error}"))),
            Err(_) => Err(QueueError::File("queue.db has not answered in time".into())),
        }
    }

    async fn ready(&self) -> Result<(), QueueError> {
        self.state.check()?;
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Ready(answer)).map_err(|_| closed())?;
        self.answer(answered, Instant::now() + PUBLISH_LIMIT).await
    }

    async fn examine(&self) -> Vec<Finding> {
        let examined = file::examine(self.file.real(), EXAMINE_LIMIT).await;
        let damage = self.file.judge(examined).err();
        let finding =
            |trouble: FileTrouble| Finding { broken: true, message: trouble.message, hint: trouble.hint };
        let leftover = self.file.leftover();
        let leftover =
            leftover.map(|found| Finding { broken: false, message: found.message, hint: found.hint });
        damage.map(finding).into_iter().chain(leftover).collect()
    }

    fn troubles(&self) -> Vec<Trouble> {
        self.state.trouble().map(|why| Trouble { part: PUBLISHING, why }).into_iter().collect()
    }

    async fn close(&self) {
        self.state.close();
        let (done, closed) = oneshot::channel();
        if self.requests.send(Request::Close(done)).is_ok()
            && tokio::time::timeout(CLOSE_LIMIT, closed).await.is_err()
        {
            tracing::warn!(
                "queue.db did not close in time; what was leased comes back when the leases run out"
            );
        }
    }
}

/// What a body takes of the room to wait in: at least one.
fn kib(body: &Bytes) -> u32 {
    u32::try_from((body.len() / 1024 + 1).min(WAITING_KIB_MAX)).unwrap_or(u32::MAX)
}

/// In one line: there is room for no hint where it goes.
fn describe(trouble: &FileTrouble) -> String {
    format!("{trouble}; {}", trouble.hint)
}

fn unusable(trouble: &FileTrouble) -> QueueError {
    QueueError::Misconfigured { message: trouble.message.clone(), hint: trouble.hint.clone() }
}

fn closed() -> QueueError {
    QueueError::Unavailable("the queue is closed".into())
}

/// How the writer fares, as the handles see it.
#[derive(Debug)]
struct WriterState {
    file: Arc<DataFile>,
    trouble: Mutex<Option<String>>,
    closed: AtomicBool,
    opened: Instant,
    /// Since when a transaction runs, in ms since `opened`; 0 while none does.
    busy_since: AtomicU64,
}

impl WriterState {
    fn new(file: Arc<DataFile>) -> Self {
        Self {
            file,
            trouble: Mutex::default(),
            closed: AtomicBool::new(false),
            opened: Instant::now(),
            busy_since: AtomicU64::new(0),
        }
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    fn begin(&self) {
        self.busy_since.store(self.elapsed(), Ordering::Relaxed);
    }

    fn end(&self) {
        self.busy_since.store(0, Ordering::Relaxed);
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Why nothing can be written at present.
    fn trouble(&self) -> Option<String> {
        let since = self.busy_since.load(Ordering::Relaxed);
        if since > 0 && u128::from(self.elapsed().saturating_sub(since)) > PUBLISH_LIMIT.as_millis() {
            return Some("the disk under queue.db has not answered for 5 s".into());
        }
        let file = self.file.trouble().map(|trouble| describe(&trouble));
        file.or_else(|| self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Refuses at once what cannot succeed at present.
    fn check(&self) -> Result<(), QueueError> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(closed());
        }
        self.trouble().map_or(Ok(()), |trouble| Err(QueueError::File(trouble)))
    }
}
