//! A folder of logs.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::committer::Committer;
use crate::entry::Entry;
use crate::error::{CloseError, CreateError, Fault, Health, OpenError};
use crate::frame::Header;
use crate::fs::{Fs, Lock, RealFs};
use crate::log::Log;
use crate::recover::{self, NEW, Repair};
use crate::registry::Registry;
use crate::segment::{self, Segment};
use crate::shared::{FAILED, FULL, Options, Shared};
use crate::sync::lock;
use crate::writer::Writer;

/// The logs of one pod, in one folder, with one thread that writes.
pub struct Journal<E> {
    shared: Arc<Shared>,
    registry: Arc<Registry<E>>,
    creating: Mutex<()>,
    repairs: Vec<Repair>,
    thread: Option<JoinHandle<Result<(), CloseError>>>,
    /// Let go last: after the thread is joined.
    _lock: Lock,
}

impl<E: Entry> Journal<E> {
    /// Opens the journal in `dir`, which is made if its parent exists; recovers what a crash left
    /// and starts the committer. Reads every byte of every log once.
    pub fn open(dir: &Path, options: Options) -> Result<Self, OpenError> {
        Self::open_on(Arc::new(RealFs), dir, options)
    }

    /// As [`open`](Self::open) on another file system, for tests that inject faults.
    pub fn open_on(fs: Arc<dyn Fs>, dir: &Path, options: Options) -> Result<Self, OpenError> {
        let (mut journal, committer) = Self::open_parts(fs, dir, options)?;
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || committer.run())
            .map_err(|source| OpenError::Io {
                path: dir.to_owned(),
                source,
            })?;
        journal.thread = Some(thread);
        Ok(journal)
    }

    /// The journal and its committer, not running.
    pub(crate) fn open_parts(
        fs: Arc<dyn Fs>,
        dir: &Path,
        options: Options,
    ) -> Result<(Self, Committer<E>), OpenError> {
        let shared = Arc::new(Shared::new(fs, dir.to_owned(), options));
        let lock = recover::lock(&shared)?;
        let recovered = recover::all(&shared)?;
        let registry = Arc::new(Registry::new());
        let mut repairs = Vec::new();
        for log in recovered {
            repairs.extend(log.repair);
            registry.add(&log.name, |id| {
                Log::new(&log.name, id, Arc::clone(&shared), log.writer)
            });
        }
        let committer = Committer::new(Arc::clone(&shared), Arc::clone(&registry));
        let journal = Self {
            shared,
            registry,
            creating: Mutex::new(()),
            repairs,
            thread: None,
            _lock: lock,
        };
        Ok((journal, committer))
    }

    /// All logs, sorted by name.
    pub fn logs(&self) -> Vec<Arc<Log<E>>> {
        self.registry.sorted()
    }

    /// Logs whose damage was set aside at this open: those have a new epoch.
    pub fn repairs(&self) -> &[Repair] {
        &self.repairs
    }

    /// Makes a log; it is durable when this returns, and not there after an error. Blocks on the
    /// disk.
    pub fn create(&self, name: &str) -> Result<Arc<Log<E>>, CreateError> {
        if !is_name(name) {
            return Err(CreateError::InvalidName);
        }
        let _one = lock(&self.creating);
        if self.registry.contains(name) {
            return Err(CreateError::Exists);
        }
        match self.shared.state() {
            FULL => return Err(CreateError::Full),
            FAILED => return Err(CreateError::Unavailable),
            _ if self.registry.is_closed() => return Err(CreateError::Unavailable),
            _ => {}
        }
        let writer = self.make(name).map_err(|error| {
            if crate::error::is_full(&error) {
                CreateError::Full
            } else {
                CreateError::Io(error)
            }
        })?;
        let make = |id| Log::new(name, id, Arc::clone(&self.shared), writer);
        self.registry
            .add(name, make)
            .ok_or(CreateError::Unavailable)
    }

    /// Made under another name and renamed, so that it is there as a whole or not at all.
    fn make(&self, name: &str) -> std::io::Result<Writer> {
        let fs = &*self.shared.fs;
        let header = Header {
            seq: 1,
            epoch: recover::epoch(fs)?,
            first: 1,
            follows: 0,
        };
        let file_name = segment::file_name(&header);
        let staged = self.shared.dir.join(format!("{NEW}{name}"));
        let dir = self.shared.dir.join(name);
        recover::remove_all(fs, &staged)?;
        fs.make_dir(&staged)?;
        let made = segment::make(fs, &staged.join(&file_name), &header).and_then(|file| {
            fs.sync_dir(&staged)?;
            fs.rename(&staged, &dir)?;
            Ok(file)
        });
        let file = match made {
            Ok(file) => file,
            Err(error) => {
                // What is left is removed at the next start.
                let _ = recover::remove_all(fs, &staged);
                return Err(error);
            }
        };
        if let Err(error) = fs.sync_dir(&self.shared.dir) {
            // Whether the name is durable is unknown, and asking again would not tell.
            if let Fault::Broken(reason) = Fault::broken("sync", &self.shared.dir, &error) {
                self.shared.fail(reason);
            }
            return Err(error);
        }
        let pool = &self.shared.pool;
        let segment = Segment::new(dir.join(file_name), header, file, segment::empty(), pool);
        let segments = vec![Arc::new(segment)];
        Ok(Writer::new(
            Arc::clone(&self.shared.fs),
            Arc::clone(pool),
            dir,
            segments,
            false,
        ))
    }

    /// Whether appends are accepted.
    pub fn health(&self) -> Health {
        self.shared.health()
    }

    /// Calls `f` whenever the health changes, on the thread that noticed. Replaces the former one.
    pub fn on_health(&self, f: Box<dyn Fn(Health) + Send + Sync>) {
        self.shared.observe(Arc::from(f));
    }

    /// Calls `f` with the duration of each sync of a log, on the committer's thread: it must be quick.
    /// Replaces the former one.
    pub fn on_sync(&self, f: Box<dyn Fn(Duration) + Send + Sync>) {
        self.shared.observe_syncs(Arc::from(f));
    }

    /// Makes everything durable that was accepted, and ends the committer. Dropping does the same
    /// but cannot tell what went wrong. Logs that are still held can be read, not appended to.
    pub fn close(mut self) -> Result<(), CloseError> {
        self.end()
    }
}

impl<E> Journal<E> {
    fn end(&mut self) -> Result<(), CloseError> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        lock(&self.shared.signal).closing = true;
        self.shared.wake.notify_one();
        thread
            .join()
            .unwrap_or_else(|_| Err(CloseError::Failed("the committer panicked".to_owned())))
    }
}

impl<E> Drop for Journal<E> {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// 1 to 128 of `A-Za-z0-9._-`, beginning with a letter or digit, without `..`: a plain file name
/// everywhere, never hidden, never a way out of the folder.
pub(crate) fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=128).contains(&name.len())
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && name.bytes().all(allowed)
        && !name.contains("..")
}
