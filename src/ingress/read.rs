//! Owns reading a body: within its size, its time and the memory for bodies.
//!
//! Promises that memory is taken up by bytes that have come, never by what a head declares, and that whoever stops
//! sending gives way to whoever sends. Never looks at what it reads.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until, timeout_at},
};

use super::Bounds;

/// Bodies up to this size take up no room: the cap on connections bounds them.
const SMALL_BODY: usize = 16 * 1024;

/// Large bodies that may grow to their end where there is no room left, so that half-read bodies never wait for each
/// other.
const LANES: usize = 8;

/// What a large body has to bring in each [`Bounds::pace`], in bytes.
const PACE_BYTES: usize = 4 * 1024;

/// Where others wait for room, a body that has not brought [`SMALL_BODY`] for so long gives way.
const STALLED: Duration = Duration::from_millis(500);

/// Why a body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// It broke off, or is not well-formed.
    Broken,
    /// It is over the limit.
    TooLarge,
    /// It did not come in time, or kept others waiting.
    TooSlow,
    /// There was no room for it in time.
    NoRoom,
}

/// Reads the bodies of one listener.
pub(super) struct Reader {
    limit: usize,
    patience: Duration,
    pace: Duration,
    room: Arc<Room>,
}

/// A body, and the room that it takes up until this is dropped.
pub(super) struct Read {
    pub(super) body: Bytes,
    pub(super) room: Hold,
}

impl Reader {
    pub(super) fn new(bounds: &Bounds) -> Self {
        let room = Room {
            free: Arc::new(Semaphore::new(bounds.reading_bytes)),
            lanes: Arc::new(Semaphore::new(LANES)),
            freed: Notify::new(),
            readers: Mutex::default(),
        };
        Self {
            limit: bounds.body_limit,
            patience: bounds.body_timeout,
            pace: bounds.pace,
            room: Arc::new(room),
        }
    }

    /// Turns away a body that its head declares too large, before anything of it is read.
    pub(super) fn admits(&self, body: &Body) -> Result<(), Unread> {
        if declared(body) > self.limit { Err(Unread::TooLarge) } else { Ok(()) }
    }

    /// Reads a body to its end.
    pub(super) async fn read(&self, mut body: Body) -> Result<Read, Unread> {
        let declared = declared(&body);
        let mut bytes = Vec::with_capacity(declared.min(SMALL_BODY));
        let mut room = Room::hold(&self.room);
        let now = Instant::now();
        let (mut deadline, mut pace) = (now + self.patience, Pace { from: now, bytes: 0 });
        loop {
            let large = declared.max(bytes.len()) > SMALL_BODY;
            let until = if large { deadline.min(pace.from + self.pace) } else { deadline };
            let frame = tokio::select! {
                frame = timeout_at(until, body.frame()) => frame.map_err(|_| Unread::TooSlow)?,
                () = room.yields() => return Err(Unread::TooSlow),
            };
            let Some(frame) = frame else { break };
            // What is no data is a trailer, and means nothing to us.
            let Ok(data) = frame.map_err(|_| Unread::Broken)?.into_data() else { continue };
            let length = bytes.len() + data.len();
            if length > self.limit {
                return Err(Unread::TooLarge);
            }
            if length > bytes.capacity() {
                // Twice as much each time, so that a body in many small pieces is not copied for each of them.
                let most = if declared >= length { declared } else { self.limit };
                let capacity = (2 * bytes.capacity()).clamp(length, most);
                let asked = Instant::now();
                let wanted = capacity.saturating_sub(bytes.capacity().max(SMALL_BODY));
                room.take(wanted, asked + self.patience).await?;
                // Waiting for us is not the sender's slowness.
                let waited = asked.elapsed();
                (deadline, pace.from) = (deadline + waited, pace.from + waited);
                bytes.reserve_exact(capacity - bytes.len());
            }
            bytes.extend_from_slice(&data);
            if bytes.len() >= pace.bytes + PACE_BYTES {
                pace = Pace { from: Instant::now(), bytes: bytes.len() };
            }
            room.has(bytes.len());
        }
        room.finish();
        Ok(Read { body: Bytes::from(bytes), room })
    }
}

/// A body's length where its head tells, else 0.
fn declared(body: &Body) -> usize {
    usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX)
}

/// Where the present stretch of a body began.
struct Pace {
    from: Instant,
    bytes: usize,
}

/// Memory for large bodies that are being read. Anybody can take it up.
struct Room {
    free: Arc<Semaphore>,
    lanes: Arc<Semaphore>,
    /// Somebody has given room back.
    freed: Notify,
    readers: Mutex<Readers>,
}

#[derive(Default)]
struct Readers {
    next: u64,
    large: HashMap<u64, Large>,
}

/// A large body that is being read.
struct Large {
    /// When it last had brought a good piece, and how many bytes there were then.
    brought: Instant,
    bytes: usize,
    /// It waits for room, not for its sender.
    waits: bool,
    yields: Arc<Notify>,
}

impl Room {
    fn hold(room: &Arc<Self>) -> Hold {
        Hold { room: Arc::clone(room), id: None, taken: None, lane: None, yields: Arc::new(Notify::new()) }
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the body whose sender has stalled longest give way, if there is one; tells when to try again.
    fn reclaim(&self, now: Instant) -> Instant {
        let mut readers = self.readers();
        let stalled =
            readers.large.iter().filter(|(_, large)| !large.waits).min_by_key(|(_, large)| large.brought);
        let stalled = stalled.map(|(id, large)| (*id, large.brought + STALLED));
        match stalled {
            Some((id, at)) if at <= now => {
                if let Some(large) = readers.large.remove(&id) {
                    large.yields.notify_one();
                }
                now + STALLED
            }
            Some((_, at)) => at,
            None => now + STALLED,
        }
    }
}

/// The room that one body takes up: given back when dropped.
pub(super) struct Hold {
    room: Arc<Room>,
    /// Once it is large.
    id: Option<u64>,
    taken: Option<OwnedSemaphorePermit>,
    lane: Option<OwnedSemaphorePermit>,
    yields: Arc<Notify>,
}

impl Hold {
    /// Takes up room for so many bytes more.
    async fn take(&mut self, bytes: usize, deadline: Instant) -> Result<(), Unread> {
        if bytes == 0 || self.lane.is_some() {
            return Ok(());
        }
        let wanted = u32::try_from(bytes).map_err(|_| Unread::TooLarge)?;
        let room = Arc::clone(&self.room);
        if self.id.is_none() {
            let mut readers = room.readers();
            let large =
                Large { brought: Instant::now(), bytes: 0, waits: false, yields: Arc::clone(&self.yields) };
            let id = readers.next;
            readers.next += 1;
            readers.large.insert(id, large);
            self.id = Some(id);
        }
        loop {
            let freed = room.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Ok(permit) = Arc::clone(&room.free).try_acquire_many_owned(wanted) {
                match &mut self.taken {
                    Some(taken) => taken.merge(permit),
                    None => self.taken = Some(permit),
                }
                break;
            }
            self.waits(true);
            let again = room.reclaim(Instant::now());
            tokio::select! {
                lane = Arc::clone(&room.lanes).acquire_owned() => {
                    self.lane = Some(lane.map_err(|_| Unread::NoRoom)?);
                    break;
                }
                () = freed => {}
                () = sleep_until(again) => {}
                () = sleep_until(deadline) => return Err(Unread::NoRoom),
            }
        }
        self.waits(false);
        Ok(())
    }

    fn change(&self, change: impl FnOnce(&mut Large)) {
        if let Some(id) = self.id {
            self.room.readers().large.get_mut(&id).map(change);
        }
    }

    fn waits(&self, waits: bool) {
        self.change(|large| {
            if large.waits && !waits {
                large.brought = Instant::now();
            }
            large.waits = waits;
        });
    }

    /// So many bytes have come.
    fn has(&self, bytes: usize) {
        self.change(|large| {
            if bytes >= large.bytes + SMALL_BODY {
                (large.brought, large.bytes) = (Instant::now(), bytes);
            }
        });
    }

    /// Resolves when the body has to give way.
    async fn yields(&self) {
        self.yields.notified().await;
    }

    /// The body is whole: it keeps its room.
    fn finish(&self) {
        if let Some(id) = self.id {
            self.room.readers().large.remove(&id);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.finish();
        if self.taken.take().is_some() {
            self.room.freed.notify_waiters();
        }
    }
}
