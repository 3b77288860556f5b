//! Owns reading a body: within its size, its time, and the memory that large bodies share.
//!
//! Promises that memory is taken up by bytes that have come, never by what a head declares; that the body that needs least
//! is served first; that half-read bodies never wait for each other; and that a stalled sender's body gives way where
//! others wait. Never looks at what it reads.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{Bounds, refusal::Refusal};

/// Bodies up to this size take up no room: the bound on connections bounds them.
const SMALL_BODY: usize = 16 * 1024;

/// How many bytes of a large body have to come in each [`Bounds::pace`].
const PACE_BYTES: usize = 4 * 1024;

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
        let room = Room::new(bounds.reading_bytes, bounds.stalled);
        Self { limit: bounds.body_limit, patience: bounds.body_timeout, pace: bounds.pace, room }
    }

    /// Refuses a body that its head declares too large, before anything of it is read.
    pub(super) fn admits(&self, body: &Incoming) -> Result<(), Refusal> {
        if declared(body) > self.limit { Err(Refusal::TooLarge) } else { Ok(()) }
    }

    /// Reads a body to its end.
    pub(super) async fn read(&self, mut body: Incoming) -> Result<Read, Refusal> {
        let declared = declared(&body);
        let mut bytes = Vec::with_capacity(declared.min(SMALL_BODY));
        let mut room = Hold::new(&self.room);
        let now = Instant::now();
        let (mut deadline, mut pace) = (now + self.patience, Pace { from: now, bytes: 0 });
        loop {
            let large = declared.max(bytes.len()) > SMALL_BODY;
            let until = if large { deadline.min(pace.from + self.pace) } else { deadline };
            let frame = tokio::select! {
                frame = timeout_at(until, body.frame()) => frame.map_err(|_| Refusal::TooSlow)?,
                () = room.yields() => return Err(Refusal::TooSlow),
            };
            let Some(frame) = frame else { break };
            // Anything else is a trailer, which means nothing here.
            let Ok(data) = frame.map_err(|_| Refusal::BrokenBody)?.into_data() else { continue };
            let length = bytes.len() + data.len();
            if length > self.limit {
                return Err(Refusal::TooLarge);
            }
            if length > bytes.capacity() {
                // Twice as much each time, so that a body in many small pieces is not copied for each of them.
                let most = if declared >= length { declared } else { self.limit };
                let capacity = (2 * bytes.capacity()).clamp(length, most);
                let asked = Instant::now();
                let wanted = capacity.saturating_sub(bytes.capacity().max(SMALL_BODY));
                timeout(self.patience, room.take(wanted))
                    .await
                    .map_err(|_| Refusal::Unavailable)?
                    .map_err(|_: Yield| Refusal::TooSlow)?;
                // That wait was ours, not the sender's.
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
fn declared(body: &Incoming) -> usize {
    usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX)
}

/// Where the current stretch of a body began.
struct Pace {
    from: Instant,
    bytes: usize,
}

/// How many bodies may grow to their end although no room is left, so that half-read bodies do not wait for each other for
/// ever.
const LANES: usize = 8;

/// A sender that has brought fewer bytes for a while has stalled. The first round trip of a distant one brings more.
const PIECE: usize = 8 * 1024;

/// Memory for large bodies that are being read. A stranger can take it up, because signatures are checked after reading.
pub(super) struct Room {
    state: Mutex<State>,
}

struct State {
    free: usize,
    stalled: Duration,
    lanes: usize,
    next: u64,
    large: HashMap<u64, Large>,
}

/// A large body.
struct Large {
    taken: usize,
    /// It may grow to its end.
    lane: bool,
    stage: Stage,
    /// When its sender last had brought [`PIECE`] more, and how many bytes there were then.
    brought: Instant,
    bytes: usize,
    /// Notified when the stage changes.
    changed: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waits for its sender.
    Reading,
    /// Waits for room for so many bytes more.
    Waiting(usize),
    /// Has to give way.
    Yielding,
    /// Has come to its end.
    Whole,
}

impl Room {
    /// Room for so many bytes; a sender that has brought too little for `stalled` gives way where others wait.
    pub(super) fn new(bytes: usize, stalled: Duration) -> Arc<Self> {
        let state = State { free: bytes, stalled, lanes: LANES, next: 0, large: HashMap::new() };
        Arc::new(Self { state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Hands out what is free, to the bodies that need least first, so that a sender that fills the room with large bodies
    /// does not keep the usual ones out.
    fn hand_out(&mut self) {
        let waiting = self.large.iter().filter_map(|(id, large)| match large.stage {
            Stage::Waiting(bytes) => Some((bytes, *id)),
            Stage::Reading | Stage::Yielding | Stage::Whole => None,
        });
        let mut waiting: Vec<(usize, u64)> = waiting.collect();
        waiting.sort_unstable();
        for (bytes, id) in waiting {
            let Some(large) = self.large.get_mut(&id) else { continue };
            if bytes <= self.free {
                self.free -= bytes;
                large.taken += bytes;
            } else if self.lanes > 0 {
                self.lanes -= 1;
                large.lane = true;
            } else {
                return;
            }
            (large.stage, large.brought) = (Stage::Reading, Instant::now());
            large.changed.notify_one();
        }
    }

    /// Makes the body whose sender has stalled longest give way, one at a time. Returns when to try again.
    fn reclaim(&mut self, now: Instant) -> Instant {
        let stalled = self.stalled;
        let later = now + stalled;
        if self.large.values().any(|large| large.stage == Stage::Yielding) {
            return later;
        }
        let reading = self.large.values_mut().filter(|large| large.stage == Stage::Reading);
        match reading.min_by_key(|large| large.brought) {
            Some(large) if large.brought + stalled <= now => {
                large.stage = Stage::Yielding;
                large.changed.notify_one();
                later
            }
            Some(large) => large.brought + stalled,
            None => later,
        }
    }

    fn is_waited_for(&self) -> bool {
        self.large.values().any(|large| matches!(large.stage, Stage::Waiting(_)))
    }
}

/// The body has to give way.
#[derive(Debug)]
pub(super) struct Yield;

/// The room that one body takes up: given back when dropped.
pub(super) struct Hold {
    room: Arc<Room>,
    /// Once it is large.
    id: Option<u64>,
    changed: Arc<Notify>,
}

impl Hold {
    pub(super) fn new(room: &Arc<Room>) -> Self {
        Self { room: Arc::clone(room), id: None, changed: Arc::new(Notify::new()) }
    }

    /// Takes up room for so many bytes more; waits for it.
    pub(super) async fn take(&mut self, bytes: usize) -> Result<(), Yield> {
        if bytes == 0 {
            return Ok(());
        }
        let now = Instant::now();
        {
            let mut state = self.room.state();
            let id = *self.id.get_or_insert(state.next);
            state.next = state.next.max(id + 1);
            let large = state.large.entry(id).or_insert_with(|| Large {
                taken: 0,
                lane: false,
                stage: Stage::Reading,
                brought: now,
                bytes: 0,
                changed: Arc::clone(&self.changed),
            });
            match large.stage {
                Stage::Yielding => return Err(Yield),
                Stage::Reading | Stage::Waiting(_) | Stage::Whole if large.lane => return Ok(()),
                Stage::Reading | Stage::Waiting(_) | Stage::Whole => large.stage = Stage::Waiting(bytes),
            }
            state.hand_out();
        }
        loop {
            let again = {
                let mut state = self.room.state();
                match self.id.and_then(|id| state.large.get(&id)).map(|large| large.stage) {
                    Some(Stage::Waiting(_)) => state.reclaim(Instant::now()),
                    _ => return Ok(()),
                }
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(again) => {}
            }
        }
    }

    /// So many bytes have come.
    pub(super) fn has(&self, bytes: usize) {
        self.change(|large| {
            if bytes >= large.bytes + PIECE {
                (large.brought, large.bytes) = (Instant::now(), bytes);
            }
        });
    }

    /// Resolves when the body has to give way.
    pub(super) async fn yields(&self) {
        loop {
            self.changed.notified().await;
            let state = self.room.state();
            if self.id.and_then(|id| state.large.get(&id)).is_some_and(|large| large.stage == Stage::Yielding)
            {
                return;
            }
        }
    }

    /// The body is whole: it keeps its room.
    pub(super) fn finish(&self) {
        self.change(|large| large.stage = Stage::Whole);
    }

    fn change(&self, change: impl FnOnce(&mut Large)) {
        if let Some(id) = self.id {
            self.room.state().large.get_mut(&id).map(change);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.room.state();
        let Some(large) = self.id.and_then(|id| state.large.remove(&id)) else { return };
        state.free += large.taken;
        state.lanes += usize::from(large.lane);
        state.hand_out();
        if state.is_waited_for() {
            state.reclaim(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const STALLED: Duration = Duration::from_millis(250);

    fn got(taken: Option<Result<(), Yield>>) -> Option<bool> {
        taken.map(|taken| taken.is_ok())
    }

    #[tokio::test]
    async fn who_needs_least_is_served_first_and_a_lane_to_the_end_is_left() {
        let room = Room::new(100, STALLED);
        // Nine that want more than there is: all but one may be read to their end.
        let mut holds: Vec<Hold> = (0..=LANES).map(|_| Hold::new(&room)).collect();
        let taken: Vec<_> = holds.iter_mut().map(|hold| got(hold.take(101).now_or_never())).collect();
        assert_eq!(taken, [vec![Some(true); LANES], vec![None]].concat());
        assert_eq!(got(holds[0].take(1_000_000).now_or_never()), Some(true));

        let (mut all, mut small, mut large) = (Hold::new(&room), Hold::new(&room), Hold::new(&room));
        assert_eq!(got(all.take(100).now_or_never()), Some(true));
        assert_eq!(got(large.take(90).now_or_never()), None);
        assert_eq!(got(small.take(20).now_or_never()), None);
        drop(all);
        let taken = |hold: &Hold| hold.id.map(|id| room.state().large[&id].taken);
        assert_eq!((taken(&small), taken(&large)), (Some(20), Some(0)));
        drop((small, large, holds));
        let state = room.state();
        assert_eq!((state.free, state.lanes, state.large.len()), (100, LANES, 0));
    }

    #[tokio::test]
    async fn the_sender_that_has_stalled_longest_gives_way_and_no_whole_body_does() {
        let room = Room::new(0, STALLED);
        let mut holds: Vec<Hold> = (0..LANES).map(|_| Hold::new(&room)).collect();
        for hold in &mut holds {
            assert!(hold.take(1).await.is_ok());
        }
        holds[0].finish();
        let mut waiting = Hold::new(&room);
        assert_eq!(got(waiting.take(1).now_or_never()), None);
        let now = Instant::now();
        assert!(room.state().reclaim(now - STALLED) > now - STALLED);
        assert!(!room.state().large.values().any(|large| large.stage == Stage::Yielding));
        room.state().reclaim(now + STALLED);
        // One at a time.
        room.state().reclaim(now + 2 * STALLED);
        let yields: Vec<bool> = holds.iter().map(|hold| hold.yields().now_or_never().is_some()).collect();
        assert_eq!(yields.iter().filter(|yields| **yields).count(), 1);
        assert!(yields[1], "{yields:?}");
    }
}
