//! What journal, logs and committer share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::error::Health;
use crate::fs::Fs;
use crate::segment::Pool;
use crate::sync::lock;

/// Bounds.
#[derive(Clone, Debug)]
pub struct Options {
    /// A segment that has as many bytes is followed by a new one; 2 GiB at most. 64 MiB.
    pub segment_bytes: u64,
    /// Disk space kept back for urgent entries. 1 MiB.
    pub reserve_bytes: u64,
    /// Bytes of entries of one log that wait or are being written. 8 MiB.
    pub queue_bytes: usize,
    /// How often a full disk is looked at again. One second.
    pub probe: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            reserve_bytes: 1 << 20,
            queue_bytes: 8 << 20,
            probe: Duration::from_secs(1),
        }
    }
}

pub(crate) const OK: u8 = 0;
pub(crate) const FULL: u8 = 1;
pub(crate) const FAILED: u8 = 2;

type Observer = Arc<dyn Fn(Health) + Send + Sync>;
type SyncObserver = Arc<dyn Fn(Duration) + Send + Sync>;

pub(crate) struct Shared {
    pub(crate) fs: Arc<dyn Fs>,
    pub(crate) dir: PathBuf,
    pub(crate) options: Options,
    pub(crate) pool: Arc<Pool>,
    pub(crate) signal: Mutex<Signal>,
    pub(crate) wake: Condvar,
    /// `OK`, `FULL` or `FAILED`.
    state: AtomicU8,
    reason: Mutex<String>,
    observer: Mutex<Option<Observer>>,
    syncs: Mutex<Option<SyncObserver>>,
}

/// What the committer waits for.
#[derive(Default)]
pub(crate) struct Signal {
    /// Numbers of logs with something in their queue.
    pub(crate) dirty: Vec<usize>,
    pub(crate) closing: bool,
}

impl Shared {
    pub(crate) fn new(fs: Arc<dyn Fs>, dir: PathBuf, mut options: Options) -> Self {
        // Offsets in a segment are 32 bits, and a batch may pass the bound by one entry.
        options.segment_bytes = options.segment_bytes.min(2 << 30);
        Self {
            fs,
            dir,
            options,
            pool: Arc::default(),
            signal: Mutex::default(),
            wake: Condvar::new(),
            state: AtomicU8::new(OK),
            reason: Mutex::default(),
            observer: Mutex::default(),
            syncs: Mutex::default(),
        }
    }

    pub(crate) fn state(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }

    pub(crate) fn health(&self) -> Health {
        match self.state() {
            OK => Health::Ok,
            FULL => Health::Full,
            _ => Health::Failed(lock(&self.reason).clone()),
        }
    }

    pub(crate) fn observe(&self, observer: Observer) {
        *lock(&self.observer) = Some(observer);
    }

    pub(crate) fn observe_syncs(&self, observer: SyncObserver) {
        *lock(&self.syncs) = Some(observer);
    }

    /// A sync took so long.
    pub(crate) fn synced(&self, took: Duration) {
        let observer = lock(&self.syncs).clone();
        if let Some(observer) = observer {
            observer(took);
        }
    }

    /// Moves between `Ok` and `Full`; a failure stays.
    pub(crate) fn set_full(&self, full: bool) {
        let (from, to) = if full { (OK, FULL) } else { (FULL, OK) };
        if self
            .state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            self.tell();
        }
    }

    /// Final. The first reason is kept.
    pub(crate) fn fail(&self, reason: String) {
        {
            let mut kept = lock(&self.reason);
            if self.state() == FAILED {
                return;
            }
            *kept = reason;
            self.state.store(FAILED, Ordering::Release);
        }
        self.tell();
    }

    fn tell(&self) {
        let observer = lock(&self.observer).clone();
        if let Some(observer) = observer {
            observer(self.health());
        }
    }

    pub(crate) fn wake(&self, log: usize) {
        lock(&self.signal).dirty.push(log);
        self.wake.notify_one();
    }
}
