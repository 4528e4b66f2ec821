//! The newest events of a session as streams send them, made once for all who read there.
//!
//! A thousand readers at the end of a session want the same bytes at the same moment. The first of them
//! reads the journal; the others take a slice of what it read. Nothing is pushed to anybody: who finds
//! its place no longer here reads the journal itself.

use super::record::event_json;
use bytes::Bytes;
use contract::{Epoch, Event};
use journal::Batch;
use std::{
    collections::{BTreeMap, VecDeque},
    io::Write,
    ops::RangeInclusive,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::{Notify, SemaphorePermit};

/// Most memory kept for the readers of a session; a larger run is kept alone.
const TAIL_BYTES: usize = 64 * 1024;
/// What a run takes beside its bytes, about.
const OVERHEAD: usize = 256;
/// A run above this (a large event, or a large piece) is shared far from the end, too.
const LARGE: usize = 64 * 1024;

/// Events as a stream sends them.
pub(crate) struct Piece {
    pub bytes: Bytes,
    /// Number of the last event.
    pub last: u64,
    /// The last one ends the turn that the reader came for.
    pub ends: bool,
}

/// The right to a large run; given back with it.
pub(super) type Place = SemaphorePermit<'static>;

/// Consecutive events in their sent form.
pub(super) struct Run {
    first: u64,
    bytes: Bytes,
    /// Offset behind each event.
    ends: Vec<u32>,
    /// Events that end a turn, and which one.
    turns: Vec<(u64, u32)>,
    _place: Option<Place>,
}

impl Run {
    /// `None` if there is no event in the batch.
    pub(super) fn new(epoch: Epoch, batch: &Batch, place: Option<Place>) -> Option<Self> {
        // Of an `id:` line with a number of ten digits.
        const ID: usize = 4 + 16 + 1 + 10 + 1;
        let events = batch.iter().count();
        let (first, _) = batch.iter().next()?;
        let head = format!("id: {epoch}-");
        let mut bytes = Vec::with_capacity(batch.size() + events * ID);
        let (mut ends, mut turns) = (Vec::with_capacity(events), Vec::new());
        for (n, payload) in batch {
            bytes.extend_from_slice(head.as_bytes());
            // Writing to memory cannot fail.
            let _ = writeln!(bytes, "{n}");
            bytes.extend_from_slice(payload);
            // A batch has at most one event above its bound, of at most 64 MiB.
            ends.push(bytes.len() as u32);
            if let Some(turn) = ended_turn(payload) {
                turns.push((n, turn));
            }
        }
        Some(Self {
            first,
            bytes: bytes.into(),
            ends,
            turns,
            _place: place,
        })
    }

    fn size(&self) -> usize {
        self.bytes.len() + self.ends.len() * size_of::<u32>() + OVERHEAD
    }

    fn events(&self) -> RangeInclusive<u64> {
        self.first..=self.first + self.ends.len() as u64 - 1
    }

    /// What comes after event `after`, of which the next must be in here. With `until` it ends with the
    /// last event of that turn or of a later one.
    pub(super) fn piece(&self, after: u64, until: Option<u32>) -> Piece {
        let mut ends = self.turns.iter().filter(|(n, _)| *n > after);
        let end = until.and_then(|until| ends.find(|(_, turn)| *turn >= until));
        let last = end.map_or(*self.events().end(), |(n, _)| *n);
        let offset = |n: u64| match n.checked_sub(self.first) {
            Some(at) => self.ends[at as usize] as usize,
            None => 0,
        };
        Piece {
            bytes: self.bytes.slice(offset(after)..offset(last)),
            last,
            ends: end.is_some(),
        }
    }
}

/// The newest runs of a session, while somebody reads there.
#[derive(Default)]
pub(super) struct Tail {
    runs: Mutex<VecDeque<Arc<Run>>>,
    /// Large ones that a stream still holds, by their first event.
    large: Mutex<BTreeMap<u64, Weak<Run>>>,
    reading: AtomicBool,
    read: Notify,
}

/// Where an event is to be had.
pub(super) enum Found<'a> {
    Here(Arc<Run>),
    /// Nowhere yet: read it for all.
    Missing(Reading<'a>),
}

/// The right to read for all; given back when dropped.
pub(super) struct Reading<'a>(&'a Tail);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.reading.store(false, Ordering::SeqCst);
        self.0.read.notify_waiters();
    }
}

impl Tail {
    /// The run with event `n`, or the right to read it. Waits while somebody else reads. Cancel safe.
    pub(super) async fn find(&self, n: u64) -> Found<'_> {
        loop {
            let read = self.read.notified();
            tokio::pin!(read);
            // Before looking: an end of the reading between look and wait must not be missed.
            read.as_mut().enable();
            if let Some(run) = self.get(n) {
                return Found::Here(run);
            }
            if !self.reading.swap(true, Ordering::SeqCst) {
                let reading = Reading(self);
                // It may have come between look and swap.
                return match self.get(n) {
                    Some(run) => Found::Here(run),
                    None => Found::Missing(reading),
                };
            }
            read.await;
        }
    }

    /// The run with event `n`, if somebody keeps it.
    pub(super) fn get(&self, n: u64) -> Option<Arc<Run>> {
        let kept = |runs: &VecDeque<Arc<Run>>| {
            let run = runs.iter().rev().find(|run| run.events().contains(&n));
            run.map(Arc::clone)
        };
        kept(&self.runs()).or_else(|| self.large().get(&n)?.upgrade())
    }

    /// Others who come to it while somebody holds it get it too.
    pub(super) fn remember(&self, run: &Arc<Run>) {
        if run.bytes.len() > LARGE {
            let mut large = self.large();
            large.retain(|_, run| run.strong_count() > 0);
            large.insert(run.first, Arc::downgrade(run));
        }
    }

    fn large(&self) -> MutexGuard<'_, BTreeMap<u64, Weak<Run>>> {
        // As below.
        self.large.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers of the events that are kept.
    #[cfg(test)]
    pub(super) fn events(&self) -> Option<RangeInclusive<u64>> {
        let runs = self.runs();
        Some(*runs.front()?.events().start()..=*runs.back()?.events().end())
    }

    fn runs(&self) -> MutexGuard<'_, VecDeque<Arc<Run>>> {
        // What a panic leaves behind is a list of whole runs.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reading<'_> {
    /// Others read it too.
    pub(super) fn share(&self, run: &Arc<Run>) {
        let mut runs = self.0.runs();
        runs.push_back(Arc::clone(run));
        let mut bytes: usize = runs.iter().map(|run| run.size()).sum();
        while runs.len() > 1 && bytes > TAIL_BYTES {
            bytes -= runs.pop_front().map_or(0, |run| run.size());
        }
    }
}

/// The turn that a stored event ends, if it ends one.
fn ended_turn(payload: &[u8]) -> Option<u32> {
    let may = [
        &b"event: complete\n"[..],
        b"event: error\n",
        b"event: status\n",
    ]
    .iter()
    .any(|prefix| payload.starts_with(prefix));
    if !may {
        return None;
    }
    let event: Event = serde_json::from_slice(event_json(payload)?).ok()?;
    event.body.ends_turn().then_some(event.turn)
}
