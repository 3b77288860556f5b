//! Owns reading a body: within its size, its time and the memory for bodies.
//!
//! Promises that memory is taken up by bytes that have come, never by what a head declares. Never looks at what it reads.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Bounds,
    room::{Hold, Room, Yield},
};

/// Bodies up to this size take up no room: the cap on connections bounds them.
const SMALL_BODY: usize = 16 * 1024;

/// What a large body has to bring in each [`Bounds::pace`], in bytes.
const PACE_BYTES: usize = 4 * 1024;

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
        let room = Room::new(bounds.reading_bytes, bounds.stalled);
        Self { limit: bounds.body_limit, patience: bounds.body_timeout, pace: bounds.pace, room }
    }

    /// Turns away a body that its head declares too large, before anything of it is read.
    pub(super) fn admits(&self, body: &Body) -> Result<(), Unread> {
        if declared(body) > self.limit { Err(Unread::TooLarge) } else { Ok(()) }
    }

    /// Reads a body to its end.
    pub(super) async fn read(&self, mut body: Body) -> Result<Read, Unread> {
        let declared = declared(&body);
        let mut bytes = Vec::with_capacity(declared.min(SMALL_BODY));
        let mut room = Hold::new(&self.room);
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
                timeout(self.patience, room.take(wanted))
                    .await
                    .map_err(|_| Unread::NoRoom)?
                    .map_err(|_: Yield| Unread::TooSlow)?;
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
