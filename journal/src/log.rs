//! One log: what its writers and readers hold.

use std::collections::VecDeque;
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use crate::batch::Batch;
use crate::entry::Entry;
use crate::error::{AppendError, ReadError, TrimError};
use crate::frame::{FRAME, HEADER};
use crate::scan::{Frames, Step};
use crate::segment::Segment;
use crate::shared::{FAILED, FULL, Shared};
use crate::sync::{lock, read, write};
use crate::writer::{Segments, Writer};

/// Largest [`Entry::size`] that is accepted: 8 MiB.
pub const MAX_ENTRY: usize = 8 << 20;
/// Entries are not merged beyond this, so that one stays easy to send.
const MAX_MERGED: usize = 1 << 20;
/// Refusals that are remembered.
const MAX_REFUSED: usize = 1024;

/// Where a log stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Number of the first kept event; one more than `last` if none is kept, so 1 in a new log.
    pub first: u64,
    /// Number of the last durable event; `first - 1` if there is none, so 0 in a new log.
    pub last: u64,
    /// All appends with a ticket up to this are durable, but for those that [`Log::refused`]
    /// names. Tickets begin anew with each open.
    pub ticket: u64,
}

/// A frame as [`Log::scan`] shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Number of the event; `None` for a note.
    pub event: Option<u64>,
    /// What [`Entry::encode`] wrote.
    pub payload: &'a [u8],
}

/// Where a [`Log::scan_on`] goes on; valid as long as the log is open. The default is the
/// beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Sequence of the segment; 0: none yet.
    segment: u32,
    offset: u64,
    /// Of the next event.
    number: u64,
}

type Observer = Arc<dyn Fn(Position) + Send + Sync>;

/// A log of a [`Journal`](crate::Journal). Reading goes on after the journal is closed.
pub struct Log<E> {
    name: Box<str>,
    /// Index among the journal's logs.
    id: usize,
    epoch: u64,
    shared: Arc<Shared>,
    queue: Mutex<Queue<E>>,
    position: Mutex<Position>,
    observer: Mutex<Option<Observer>>,
    segments: Arc<Segments>,
    trimming: Mutex<()>,
    /// Tickets of entries that came out too large, the latest ones.
    refused: Mutex<VecDeque<RangeInclusive<u64>>>,
    pub(crate) pending: Mutex<Pending<E>>,
}

/// An entry and the tickets of the appends that it is made of.
pub(crate) struct Queued<E> {
    pub(crate) entry: E,
    first: u64,
    last: u64,
}

impl<E> Queued<E> {
    pub(crate) fn tickets(&self) -> RangeInclusive<u64> {
        self.first..=self.last
    }
}

/// Filled by writers.
struct Queue<E> {
    entries: Vec<Queued<E>>,
    /// Size of `entries`.
    bytes: usize,
    /// Size of what the committer has taken and not yet made durable.
    taken: usize,
    /// Of the last append.
    ticket: u64,
    /// The committer knows that there is something.
    dirty: bool,
    closed: bool,
}

/// Taken by the committer, with the writing end.
pub(crate) struct Pending<E> {
    pub(crate) writer: Writer,
    pub(crate) entries: Vec<Queued<E>>,
    /// How many of `entries` are written.
    pub(crate) written: usize,
    /// Of the last of `entries`.
    ticket: u64,
}

impl<E: Entry> Log<E> {
    pub(crate) fn new(name: &str, id: usize, shared: Arc<Shared>, writer: Writer) -> Self {
        let segments = Arc::clone(&writer.segments);
        let (first, epoch) = {
            let list = read(&segments);
            let first = list.first().map_or(1, |s| s.header.first);
            (first, list.last().map_or(0, |s| s.header.epoch))
        };
        let position = Position {
            first,
            last: writer.next - 1,
            ticket: 0,
        };
        Self {
            name: name.into(),
            id,
            epoch,
            shared,
            queue: Mutex::new(Queue {
                entries: Vec::new(),
                bytes: 0,
                taken: 0,
                ticket: 0,
                dirty: false,
                closed: false,
            }),
            position: Mutex::new(position),
            observer: Mutex::new(None),
            segments,
            trimming: Mutex::new(()),
            refused: Mutex::default(),
            pending: Mutex::new(Pending {
                writer,
                entries: Vec::new(),
                written: 0,
                ticket: 0,
            }),
        }
    }

    /// The name it was created with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Random, made with the log; another one only after acknowledged events were lost.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Puts an entry into the queue and returns its ticket: the entry is durable once
    /// [`Position::ticket`] has reached it. Never waits for the disk.
    pub fn append(&self, entry: E) -> Result<u64, AppendError> {
        self.push(entry, false)
    }

    /// As [`append`](Self::append), but also while the disk is full, where it uses the reserve,
    /// and while the log is backlogged, up to a bound of its own. For the end of a turn.
    pub fn append_urgent(&self, entry: E) -> Result<u64, AppendError> {
        self.push(entry, true)
    }

    fn push(&self, mut entry: E, urgent: bool) -> Result<u64, AppendError> {
        let size = entry.size();
        if size > MAX_ENTRY {
            return Err(AppendError::TooLarge);
        }
        let mut guard = lock(&self.queue);
        let queue = &mut *guard;
        if queue.closed {
            return Err(AppendError::Closed);
        }
        match self.shared.state() {
            FAILED => return Err(AppendError::Failed),
            FULL if !urgent => return Err(AppendError::Full),
            _ => {}
        }
        let options = &self.shared.options;
        let extra = if urgent {
            options.reserve_bytes as usize
        } else {
            0
        };
        let held = queue.bytes + queue.taken;
        // An empty queue takes anything, else an entry above the bound would wait for ever.
        if held > 0 && held.saturating_add(size) > options.queue_bytes.saturating_add(extra) {
            return Err(AppendError::Backlogged);
        }
        let ticket = queue.ticket + 1;
        let merged = match queue.entries.last_mut() {
            Some(tail) => {
                let before = tail.entry.size();
                if before.saturating_add(size) > MAX_MERGED {
                    Err(entry)
                } else {
                    tail.entry.merge(entry).map(|()| {
                        tail.last = ticket;
                        queue.bytes = queue.bytes.saturating_sub(before) + tail.entry.size();
                    })
                }
            }
            None => Err(entry),
        };
        if let Err(back) = merged {
            entry = back;
            queue.bytes += size;
            queue.entries.push(Queued {
                entry,
                first: ticket,
                last: ticket,
            });
        }
        queue.ticket = ticket;
        let wake = !std::mem::replace(&mut queue.dirty, true);
        drop(guard);
        if wake {
            self.shared.wake(self.id);
        }
        Ok(ticket)
    }

    /// Whether the append with this ticket was accepted and could not be written, because its
    /// payload came out above [`MAX_PAYLOAD`](crate::MAX_PAYLOAD). Known once
    /// [`Position::ticket`] has reached it; the last 1,024 such entries are remembered.
    pub fn refused(&self, ticket: u64) -> bool {
        lock(&self.refused)
            .iter()
            .any(|range| range.contains(&ticket))
    }

    /// Remembers a refusal; once, though a write may be repeated.
    pub(crate) fn refuse(&self, tickets: RangeInclusive<u64>) {
        let mut refused = lock(&self.refused);
        if !refused.contains(&tickets) {
            if refused.len() == MAX_REFUSED {
                refused.pop_front();
            }
            refused.push_back(tickets);
        }
    }

    /// Bytes of entries that are accepted and not yet durable.
    pub fn queued_bytes(&self) -> usize {
        let queue = lock(&self.queue);
        queue.bytes + queue.taken
    }

    /// Where the log stands: what is durable.
    pub fn position(&self) -> Position {
        *lock(&self.position)
    }

    /// Calls `f` after each sync that moved this log, on the committer's thread and outside of
    /// locks: it must be quick and must not wait for this journal. Replaces the former one. Look
    /// at [`position`](Self::position) after setting it: a move just before is not told again.
    pub fn on_durable(&self, f: Box<dyn Fn(Position) + Send + Sync>) {
        *lock(&self.observer) = Some(Arc::from(f));
    }

    /// Durable events after number `after`: at least one if there is one, else as many as fit
    /// into `max_bytes` on disk. Empty if there is none yet.
    ///
    /// One positioned read per segment. Blocks on the disk.
    pub fn read(&self, after: u64, max_bytes: usize) -> Result<Batch, ReadError> {
        let position = self.position();
        let mut next = after.saturating_add(1);
        let mut batch = Batch::new(next);
        if next > position.last {
            return Ok(batch);
        }
        if next < position.first {
            return Err(ReadError::Trimmed {
                first: position.first,
            });
        }
        while next <= position.last {
            let left = max_bytes.saturating_sub(batch.bytes.len());
            let first = batch.is_empty();
            let got = self
                .find(next)
                .ok_or(ReadError::Trimmed { first: next })
                .and_then(|segment| {
                    let opened = segment.open(&*self.shared.fs, &self.shared.pool)?;
                    segment.read(&opened, &mut batch.bytes, next..=position.last, left, first)
                });
            match got {
                Ok(Some(last)) => batch.last = last,
                Ok(None) => break,
                // What was read before the error counts; the next call meets it again.
                Err(error) if first => return Err(self.trimmed(next, error)),
                Err(_) => break,
            }
            next = batch.last + 1;
        }
        Ok(batch)
    }

    /// A file that vanished because of a trim is told as such.
    fn trimmed(&self, event: u64, error: ReadError) -> ReadError {
        if let ReadError::Io { source, .. } = &error
            && source.kind() == io::ErrorKind::NotFound
        {
            // A trim that is under way first removes the file, then raises `first`.
            let _done = lock(&self.trimming);
        }
        let first = self.position().first;
        if event < first {
            ReadError::Trimmed { first }
        } else {
            error
        }
    }

    /// The segment with a durable event.
    fn find(&self, event: u64) -> Option<Arc<Segment>> {
        let list = read(&self.segments);
        // Of several with the same first event, all but the last have notes only.
        let behind = list.partition_point(|s| s.header.first <= event);
        list.get(behind.checked_sub(1)?).cloned()
    }

    /// Shows all durable frames in order. Blocks on the disk.
    pub fn scan(&self, f: &mut dyn FnMut(Frame<'_>)) -> Result<(), ReadError> {
        self.scan_on(&mut Mark::default(), f)
    }

    /// As [`scan`](Self::scan), from where a mark stands, which moves to behind the last frame
    /// shown. After an error the mark stands behind what was shown.
    pub fn scan_on(&self, mark: &mut Mark, f: &mut dyn FnMut(Frame<'_>)) -> Result<(), ReadError> {
        let last = self.position().last;
        let list = read(&self.segments).clone();
        let begin = list.partition_point(|s| s.header.seq < mark.segment);
        for segment in &list[begin..] {
            if segment.header.seq != mark.segment {
                if mark.segment > 0 && segment.header.first > mark.number {
                    return Err(ReadError::Trimmed {
                        first: segment.header.first,
                    });
                }
                *mark = Mark {
                    segment: segment.header.seq,
                    offset: HEADER as u64,
                    number: segment.header.first,
                };
            }
            let opened = segment
                .open(&*self.shared.fs, &self.shared.pool)
                .map_err(|e| self.trimmed(segment.header.first, e))?;
            let end = u64::from(segment.end());
            let mut frames = Frames::from(&*opened.file, segment.seed(), mark.offset, end);
            loop {
                match frames.next().map_err(|e| segment.io(e))? {
                    Step::Frame {
                        offset,
                        head,
                        payload,
                    } => {
                        let event = head.is_event().then_some(mark.number);
                        if event > Some(last) {
                            return Ok(());
                        }
                        mark.number += u64::from(head.is_event());
                        mark.offset = u64::from(offset) + (FRAME + payload.len()) as u64;
                        f(Frame { event, payload });
                    }
                    Step::End => break,
                    Step::Bad => return Err(segment.damaged(frames.at())),
                }
            }
        }
        Ok(())
    }

    /// Drops the oldest segments as long as all their events are below `before`; notes in them
    /// go as well. The last segment always stays. Only raises [`Position::first`]. Blocks on the
    /// disk.
    pub fn trim(&self, before: u64) -> Result<(), TrimError> {
        let _one = lock(&self.trimming);
        loop {
            let oldest = {
                let list = read(&self.segments);
                // Not for notes alone: either `first` rises or nothing happens.
                let first = list.first().map_or(0, |s| s.header.first);
                let rises = list
                    .iter()
                    .any(|s| (first + 1..=before).contains(&s.header.first));
                match list.first() {
                    Some(oldest) if rises => Arc::clone(oldest),
                    _ => return Ok(()),
                }
            };
            let io = |source| TrimError::Io {
                path: oldest.path.clone(),
                source,
            };
            // One at a time, so that a crash never leaves a hole between segments.
            self.shared.fs.remove(&oldest.path).map_err(io)?;
            let dir = oldest.path.parent().unwrap_or(&self.shared.dir);
            // Before anybody hears of it: a crash must not lower `first` again.
            let synced = self.shared.fs.sync_dir(dir);
            let first = {
                let mut list = write(&self.segments);
                list.remove(0);
                list.first().map_or(oldest.header.first, |s| s.header.first)
            };
            lock(&self.position).first = first;
            synced.map_err(|source| {
                // As with every sync: asking again would not tell what is durable, and a hole
                // between segments is taken for damage.
                self.shared
                    .fail(format!("cannot sync {}: {source}", dir.display()));
                io(source)
            })?;
        }
    }

    /// Moves the queue to the committer.
    pub(crate) fn take(&self, pending: &mut Pending<E>) {
        let mut queue = lock(&self.queue);
        queue.dirty = false;
        queue.taken += std::mem::take(&mut queue.bytes);
        if pending.entries.is_empty() {
            std::mem::swap(&mut pending.entries, &mut queue.entries);
        } else {
            pending.entries.append(&mut queue.entries);
        }
        pending.ticket = queue.ticket;
    }

    /// Tells readers and writers what a sync made durable.
    pub(crate) fn publish(&self, pending: &mut Pending<E>) {
        let done = pending.written == pending.entries.len();
        let (position, moved) = {
            let mut position = lock(&self.position);
            let before = *position;
            // What a segment's end has synced may be more than the batch's whole.
            position.last = pending.writer.next - 1;
            if done {
                position.ticket = pending.ticket;
            }
            (*position, *position != before)
        };
        if done {
            lock(&self.queue).taken = 0;
        }
        if moved {
            let observer = lock(&self.observer).clone();
            if let Some(observer) = observer {
                observer(position);
            }
        }
        if done {
            pending.entries.clear();
            pending.written = 0;
            if pending.entries.capacity() > 64 << 10 {
                pending.entries = Vec::new();
            }
        }
    }

    /// Refuses all further appends.
    pub(crate) fn close(&self) {
        lock(&self.queue).closed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        struct Never;
        impl Entry for Never {
            fn is_event(&self) -> bool {
                true
            }
            fn merge(&mut self, next: Self) -> Result<(), Self> {
                Err(next)
            }
            fn size(&self) -> usize {
                0
            }
            fn encode(&self, _: &mut Vec<u8>) {}
        }
        shared::<Log<Never>>();
        shared::<crate::Journal<Never>>();
    }
}
