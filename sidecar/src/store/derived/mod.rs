//! `state.json` and `decisions.md` beside each session's journal: for people and their tools.
//!
//! Both are made from the durable part of the journal and from nothing else. Deleting or garbling
//! them loses nothing: the next start makes them again. A thread of its own writes them when
//! something worth a line became durable (a turn's begin or end, an approval, a restart), so neither
//! the agent's text nor a reader ever waits for it. What cannot be written now is tried again later;
//! while the journal's disk is full nothing is written at all, because the space is for events.

pub(crate) mod digest;
mod files;
pub(crate) mod state;
#[cfg(test)]
mod tests;
mod words;

use super::record::Record;
use digest::Digest;
use journal::{Health, Log, Mark, ReadError};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};
use tokio::sync::watch;

/// How long until what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(30);

/// Files that could not be made; nothing depends on them.
#[derive(Debug, thiserror::Error)]
enum DerivedError {
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("the journal cannot be read")]
    Read(#[from] ReadError),
}

/// Tells the thread that a log has something new; clones tell the same one.
#[derive(Clone, Default)]
pub(crate) struct Bell(Arc<Inner>);

#[derive(Default)]
struct Inner {
    wanted: Mutex<Wanted>,
    rung: Condvar,
}

#[derive(Default)]
struct Wanted {
    logs: BTreeMap<Box<str>, Arc<Log<Record>>>,
    /// Look again at what could not be written.
    again: bool,
    closing: bool,
}

impl Bell {
    /// Quick, as the journal's committer calls it.
    pub(crate) fn ring(&self, log: &Arc<Log<Record>>) {
        let mut wanted = self.wanted();
        if !wanted.logs.contains_key(log.name()) {
            wanted.logs.insert(log.name().into(), Arc::clone(log));
        }
        self.0.rung.notify_one();
    }

    /// The disk may have room again.
    pub(crate) fn again(&self) {
        self.wanted().again = true;
        self.0.rung.notify_one();
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread. Dropping it lets it write what waits, once.
pub(crate) struct Scribe {
    bell: Bell,
    thread: Option<JoinHandle<()>>,
}

impl Scribe {
    /// Begins with all of `logs`: what is not as their journals say is made again.
    pub(crate) fn spawn(
        dir: &Path,
        bell: Bell,
        health: watch::Receiver<Health>,
        logs: impl Iterator<Item = Arc<Log<Record>>>,
    ) -> io::Result<Self> {
        for log in logs {
            bell.ring(&log);
        }
        let worker = Worker {
            dir: dir.to_owned(),
            bell: bell.clone(),
            health,
            known: HashMap::new(),
            held: BTreeMap::new(),
        };
        let thread = std::thread::Builder::new()
            .name("derived".into())
            .spawn(|| worker.run())?;
        Ok(Self {
            bell,
            thread: Some(thread),
        })
    }
}

impl Drop for Scribe {
    fn drop(&mut self) {
        self.bell.wanted().closing = true;
        self.bell.0.rung.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes state.json and decisions.md panicked");
        }
    }
}

struct Worker {
    dir: PathBuf,
    bell: Bell,
    health: watch::Receiver<Health>,
    /// Sessions whose files are as their journal was.
    known: HashMap<Box<str>, Known>,
    /// Sessions whose files could not be written.
    held: BTreeMap<Box<str>, Arc<Log<Record>>>,
}

/// How far the files of a session are.
struct Known {
    mark: Mark,
    digest: Digest,
    /// Size of `decisions.md`.
    bytes: u64,
    /// What `state.json` says.
    written: Option<Digest>,
}

impl Worker {
    fn run(mut self) {
        while let Some(logs) = self.wait() {
            for (name, log) in logs {
                if *self.health.borrow() == Health::Full {
                    self.held.insert(name, log);
                    continue;
                }
                match self.update(&log) {
                    Ok(()) => drop(self.held.remove(&name)),
                    Err(error) => {
                        let new = self.held.insert(name, log).is_none();
                        if new {
                            let error = &error as &dyn std::error::Error;
                            tracing::warn!(
                                error,
                                "state.json and decisions.md of a session are old"
                            );
                        }
                    }
                }
            }
        }
    }

    /// What is to be written; `None` when there is nothing more.
    fn wait(&mut self) -> Option<BTreeMap<Box<str>, Arc<Log<Record>>>> {
        let bell = self.bell.clone();
        let mut wanted = bell.wanted();
        loop {
            let mut logs = std::mem::take(&mut wanted.logs);
            if std::mem::take(&mut wanted.again) {
                logs.extend(self.held.iter().map(|(n, l)| (n.clone(), Arc::clone(l))));
            }
            if !logs.is_empty() {
                return Some(logs);
            }
            if wanted.closing {
                return None;
            }
            let rung = &bell.0.rung;
            if self.held.is_empty() {
                wanted = rung.wait(wanted).unwrap_or_else(PoisonError::into_inner);
            } else {
                let waited = rung.wait_timeout(wanted, AGAIN);
                let (guard, over) = waited.unwrap_or_else(PoisonError::into_inner);
                wanted = guard;
                wanted.again |= over.timed_out();
            }
        }
    }

    fn update(&mut self, log: &Arc<Log<Record>>) -> Result<(), DerivedError> {
        let dir = self.dir.join(log.name());
        let decisions = dir.join(files::DECISIONS);
        // Taken out: after an error everything is looked at anew.
        let known = self.known.remove(log.name());
        let mut known = match known {
            Some(known) if files::size(&decisions) == Some(known.bytes) => known,
            _ => begin(log, &dir)?,
        };
        let mut text = String::new();
        log.scan_on(&mut known.mark, &mut |frame| {
            known.digest.take(frame, &mut |line| text.push_str(line));
        })?;
        if !text.is_empty() {
            files::append(&decisions, &text).map_err(|source| DerivedError::Write {
                path: decisions,
                source,
            })?;
            known.bytes += text.len() as u64;
        }
        known.digest.first_event = log.position().first;
        if known.written.as_ref() != Some(&known.digest) {
            files::replace_state(&dir, &state::encode(&known.digest)).map_err(|source| {
                DerivedError::Write {
                    path: dir.join(files::STATE),
                    source,
                }
            })?;
            known.written = Some(known.digest.clone());
        }
        self.known.insert(log.name().into(), known);
        Ok(())
    }
}

/// Looks at files of which nothing is known: `decisions.md` is made anew unless it is what the journal
/// says, `state.json` is read.
fn begin(log: &Log<Record>, dir: &Path) -> Result<Known, DerivedError> {
    let path = dir.join(files::DECISIONS);
    let mut compare = files::Compare::open(&path);
    let (mut mark, mut digest) = fold(log, &mut |line| compare.take(line))?;
    let bytes = match compare.same() {
        Some(bytes) => bytes,
        None => {
            let wrong = |source| DerivedError::Write {
                path: path.clone(),
                source,
            };
            let mut fresh = files::Fresh::create(&path).map_err(wrong)?;
            (mark, digest) = fold(log, &mut |line| fresh.take(line))?;
            fresh.finish(&path).map_err(wrong)?
        }
    };
    let written = files::read_state(dir);
    if let Some(written) = &written
        && written.epoch == digest.epoch
        && written.last_event > digest.last_event
    {
        tracing::error!(
            session_id = log.name(),
            said = written.last_event,
            journal = digest.last_event,
            "the journal ends before state.json: was an older copy of the volume restored?"
        );
    }
    Ok(Known {
        mark,
        digest,
        bytes,
        // Of an old copy it is not known that state.json itself is whole.
        written: files::is_whole(dir).then_some(written).flatten(),
    })
}

/// The whole journal so far.
fn fold(log: &Log<Record>, say: &mut dyn FnMut(&str)) -> Result<(Mark, Digest), ReadError> {
    let mut mark = Mark::default();
    let mut digest = Digest::new(log.name(), log.epoch());
    say(&words::heading(log.name()));
    log.scan_on(&mut mark, &mut |frame| digest.take(frame, say))?;
    digest.first_event = log.position().first;
    Ok((mark, digest))
}
