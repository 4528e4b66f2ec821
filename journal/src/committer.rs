//! The one thread that writes: takes all queues, writes and syncs each log that has something,
//! and tells what is durable. While a sync runs, whatever arrives waits and merges: there is no
//! timer, and the batch is as large as the disk is slow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::entry::Entry;
use crate::error::{CloseError, Fault, Health};
use crate::frame::{self, EVENT, MAX_PAYLOAD, NOTE};
use crate::log::{Log, Pending};
use crate::registry::Registry;
use crate::reserve::Reserve;
use crate::shared::{FAILED, FULL, Shared};
use crate::sync::lock;

/// How long nothing has to come before a log counts as idle and gets its mark: in a steady flow a
/// mark after each batch would only be a further write.
const LINGER: Duration = Duration::from_millis(2);

/// Bytes encoded before they are written: one write for all but the largest batches.
const CHUNK: usize = 1 << 20;

pub(crate) struct Committer<E> {
    shared: Arc<Shared>,
    registry: Arc<Registry<E>>,
    reserve: Reserve,
    /// Numbers of the logs taken from the signal.
    dirty: Vec<usize>,
    /// Logs whose batch did not fit on the disk.
    held: Vec<usize>,
    /// Logs written to since the last idle moment.
    unmarked: Vec<usize>,
    probed: Instant,
    /// [`CHUNK`], but for tests.
    pub(crate) chunk_bytes: usize,
    chunk: Vec<u8>,
    offsets: Vec<u32>,
}

/// Says so if the thread ends by a panic.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("the committer panicked".to_owned());
        }
    }
}

impl<E: Entry> Committer<E> {
    pub(crate) fn new(shared: Arc<Shared>, registry: Arc<Registry<E>>) -> Self {
        let mut reserve = Reserve::new(&shared.dir, shared.options.reserve_bytes);
        // A start on a full disk is possible: reading must go on.
        if reserve.take(&*shared.fs).is_err() {
            shared.set_full(true);
        }
        Self {
            shared,
            registry,
            reserve,
            dirty: Vec::new(),
            held: Vec::new(),
            unmarked: Vec::new(),
            probed: Instant::now(),
            chunk_bytes: CHUNK,
            chunk: Vec::new(),
            offsets: Vec::new(),
        }
    }

    /// The thread: until the journal is closed.
    pub(crate) fn run(mut self) -> Result<(), CloseError> {
        let _alarm = Alarm(Arc::clone(&self.shared));
        while !self.wait() {
            self.step();
        }
        self.finish()
    }

    /// Waits for something to do; true if the journal is to be closed.
    fn wait(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut signal = lock(&shared.signal);
        let mut lingered = false;
        loop {
            if signal.closing || !signal.dirty.is_empty() {
                return signal.closing;
            }
            if !self.unmarked.is_empty() && !lingered {
                lingered = true;
                let waited = shared.wake.wait_timeout(signal, LINGER);
                signal = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
                continue;
            }
            if !self.unmarked.is_empty() {
                drop(signal);
                self.idle();
                signal = lock(&shared.signal);
                continue;
            }
            if shared.state() == FULL {
                let left = shared.options.probe.saturating_sub(self.probed.elapsed());
                if left.is_zero() {
                    return false;
                }
                let waited = shared.wake.wait_timeout(signal, left);
                signal = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
            } else {
                let waited = shared.wake.wait(signal);
                signal = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
            }
        }
    }

    /// Takes, writes, syncs and publishes what there is.
    pub(crate) fn step(&mut self) {
        std::mem::swap(&mut self.dirty, &mut lock(&self.shared.signal).dirty);
        let mut work = std::mem::take(&mut self.held);
        for id in self.dirty.drain(..) {
            if !work.contains(&id) {
                work.push(id);
            }
        }
        if self.shared.state() == FAILED {
            return;
        }
        let work: Vec<_> = work
            .into_iter()
            .filter_map(|id| Some((id, self.registry.get(id)?)))
            .collect();
        if let Err(Fault::Broken(reason)) = self.commit(&work) {
            // Fail-stop: what the disk holds is unknown until the next start reads it.
            self.shared.fail(reason);
            return;
        }
        self.probe();
    }

    fn commit(&mut self, work: &[(usize, Arc<Log<E>>)]) -> Result<(), Fault> {
        // All are written before the first sync, so that one sync may carry several.
        for (id, log) in work {
            let pending = &mut *lock(&log.pending);
            log.take(pending);
            while let Err(fault) = self.write(log, pending) {
                if let Fault::Broken(_) = fault {
                    return Err(fault);
                }
                let released = self.reserve.release(&*self.shared.fs);
                self.shared.set_full(true);
                if !released {
                    self.held.push(*id);
                    break;
                }
            }
        }
        for (id, log) in work {
            let pending = &mut *lock(&log.pending);
            let began = Instant::now();
            if pending.writer.sync()? {
                self.shared.synced(began.elapsed());
            }
            log.publish(pending);
            if !self.unmarked.contains(id) {
                self.unmarked.push(*id);
            }
        }
        Ok(())
    }

    /// Writes what is pending of one log, a chunk at a time.
    fn write(&mut self, log: &Log<E>, pending: &mut Pending<E>) -> Result<(), Fault> {
        let limit = self.shared.options.segment_bytes;
        while pending.written < pending.entries.len() {
            let seed = pending.writer.prepare(limit)?.seed();
            let base = pending.writer.end;
            let mut flag = pending.writer.flag();
            self.chunk.clear();
            self.offsets.clear();
            let mut written = pending.written;
            for queued in &pending.entries[written..] {
                let put = |entry: &E, chunk: &mut _, offsets: &mut _| {
                    frame_of(entry, chunk, offsets, seed, base, flag)
                };
                let (chunk, offsets) = (&mut self.chunk, &mut self.offsets);
                let done = put(&queued.entry, chunk, offsets).or_else(|len| {
                    let other = queued.entry.stand_in(len).ok_or(len)?;
                    put(&other, chunk, offsets)
                });
                match done {
                    Ok(()) => flag = 0,
                    Err(_) => log.refuse(queued.tickets()),
                }
                written += 1;
                let end = u64::from(base) + self.chunk.len() as u64;
                if self.chunk.len() >= self.chunk_bytes || end >= limit {
                    break;
                }
            }
            if !self.chunk.is_empty() {
                pending.writer.put(&self.chunk, &self.offsets)?;
            }
            pending.written = written;
            if self.chunk.capacity() > 4 * CHUNK {
                self.chunk = Vec::new();
            }
        }
        Ok(())
    }

    /// While the disk is full: looks whether that is over.
    fn probe(&mut self) {
        self.probed = Instant::now();
        if self.shared.state() != FULL || !self.held.is_empty() {
            return;
        }
        // Twice the reserve, so that it does not go to and fro.
        let fs = &*self.shared.fs;
        let wanted = self.shared.options.reserve_bytes.saturating_mul(2);
        let free = fs.free_bytes(&self.shared.dir).unwrap_or(0);
        if free >= wanted && self.reserve.take(fs).is_ok() {
            self.shared.set_full(false);
        }
    }

    /// Nothing waits: marks the ends of the logs written to.
    pub(crate) fn idle(&mut self) {
        for id in std::mem::take(&mut self.unmarked) {
            if self.shared.state() == FAILED || self.held.contains(&id) {
                continue;
            }
            let Some(log) = self.registry.get(id) else {
                continue;
            };
            if let Err(Fault::Broken(reason)) = lock(&log.pending).writer.idle() {
                self.shared.fail(reason);
            }
        }
    }

    /// The last step, after which no append is accepted.
    pub(crate) fn finish(mut self) -> Result<(), CloseError> {
        for log in self.registry.close() {
            log.close();
        }
        self.step();
        self.idle();
        match self.shared.health() {
            Health::Failed(reason) => Err(CloseError::Failed(reason)),
            Health::Full if !self.held.is_empty() => Err(CloseError::Full),
            Health::Ok | Health::Full => Ok(()),
        }
    }
}

/// Appends the frame of an entry; if its payload is too large nothing, and returns its length.
fn frame_of<E: Entry>(
    entry: &E,
    chunk: &mut Vec<u8>,
    offsets: &mut Vec<u32>,
    seed: u32,
    base: u32,
    flag: u8,
) -> Result<(), usize> {
    let begin = chunk.len();
    let offset = base + begin as u32;
    let kind = if entry.is_event() { EVENT } else { NOTE };
    let len = frame::encode(chunk, seed, offset, kind | flag, |out| entry.encode(out));
    if len > MAX_PAYLOAD {
        chunk.truncate(begin);
        return Err(len);
    }
    if entry.is_event() {
        offsets.push(offset);
    }
    Ok(())
}
