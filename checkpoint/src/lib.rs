//! Checkpoints of a folder, kept in git's object store without git.
//!
//! The folder belongs to an agent that is not trusted, and so does the store. Therefore: links are never
//! followed, no hook, filter or configuration of the folder means anything here, every object is hashed
//! again before it is used, and memory and time are bounded. A checkpoint is one hash, its *root*:
//! whoever keeps it elsewhere can tell later whether what comes back is what was.
//!
//! Blocking calls, no async. One [`Checkpoints`] per folder, whose calls exclude each other
//! where they must; two processes on one store are not provided for.

mod branch;
mod cache;
mod diff;
mod error;
mod ignore;
mod intent;
mod objects;
mod oid;
mod pack_read;
mod pack_write;
mod patch;
mod prune;
mod restore;
mod snapshot;
mod store;
mod sys;
mod tree;

pub use branch::{Branch, Made};
use diff::Change;
pub use error::Error;
pub use oid::Oid;
use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use store::Store;
use tree::Node;

/// Largest patch of one file in a [`Difference`], in bytes.
pub const TEXT_MAX: usize = 256 * 1024;

/// Bounds of a checkpoint.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Keep what git ignores, too.
    pub include_ignored: bool,
    /// Most files and folders.
    pub max_files: u64,
    /// Most bytes that one checkpoint may add to the store.
    pub max_pack_bytes: u64,
    /// Longest time.
    pub time: Duration,
}

/// Something that is not part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Relative to the folder.
    pub path: Vec<u8>,
    /// Why, for people.
    pub why: &'static str,
}

/// A checkpoint that was taken.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Its root: the hash of all that it holds.
    pub root: Oid,
    /// Files and folders that were looked at.
    pub entries: u64,
    /// Files in it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that were new to the store.
    pub new_objects: u64,
    /// Bytes that they take there.
    pub new_bytes: u64,
    /// Bytes of the whole store.
    pub store_bytes: u64,
    /// Packs in the store.
    pub packs: u64,
    /// Files that changed while they were read, each time.
    pub changing: u64,
    /// What was left out; the first hundred.
    pub skipped: Vec<Skipped>,
    /// How many were left out.
    pub skipped_count: u64,
}

impl Taken {
    fn empty() -> Self {
        Self {
            root: Oid([0; 32]),
            entries: 0,
            files: 0,
            bytes: 0,
            new_objects: 0,
            new_bytes: 0,
            store_bytes: 0,
            packs: 0,
            changing: 0,
            skipped: Vec::new(),
            skipped_count: 0,
        }
    }
}

/// A checkpoint that was restored.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The checkpoint that was taken just before.
    pub before: Taken,
    /// Files, links and whole folders that were written.
    pub written: u64,
    /// Files, links and whole folders that were removed.
    pub removed: u64,
    /// Changes of modes alone.
    pub modes: u64,
    /// Whether the folder, looked at afterwards, is what the checkpoint says. False where something is
    /// ignored now and was not then, cannot be read, or was changed at once.
    pub exact: bool,
}

/// One file that differs between two checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Relative to the folder; bytes that are no UTF-8 are replaced.
    pub path: String,
    /// Mode before, as in `100644`; `None`: it was not there.
    pub old_mode: Option<String>,
    /// Mode after; `None`: it is no more.
    pub new_mode: Option<String>,
    /// Whether it is no text, or too large to be compared line by line.
    pub binary: bool,
    /// Hunks of a unified diff; empty for binary files and changes of modes.
    pub hunks: String,
    /// Whether `hunks` was cut at [`TEXT_MAX`].
    pub cut: bool,
    /// Lines added.
    pub additions: u64,
    /// Lines removed.
    pub deletions: u64,
}

/// The checkpoints of one folder.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    base: PathBuf,
    below: String,
    /// Held by whatever writes to the store or the folder.
    writing: Mutex<()>,
}

impl Checkpoints {
    /// Checkpoints of `folder`, in a store at `base`/`below` which is made when it is needed. `base`
    /// must exist; names below it are not followed if they are links.
    #[must_use]
    pub fn new(folder: PathBuf, base: PathBuf, below: &str) -> Self {
        Self {
            folder,
            base,
            below: below.to_owned(),
            writing: Mutex::new(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        // What a panic left is what a crash leaves: it is cleaned up by the next call.
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<(Store, OwnedFd), Error> {
        Ok((
            Store::open(&self.base, &self.below)?,
            sys::open_root(&self.folder)?,
        ))
    }

    /// Takes a checkpoint.
    ///
    /// # Errors
    /// Those of the file system and of `limits`; nothing is kept then.
    pub fn take(&self, limits: &Limits) -> Result<Taken, Error> {
        self.take_beside(limits, None)
    }

    /// Takes a checkpoint; what `guide` has is kept even where it is ignored.
    ///
    /// # Errors
    /// As [`Self::take`], and [`Error::Corrupt`] where `guide` cannot be read.
    pub fn take_beside(&self, limits: &Limits, guide: Option<Oid>) -> Result<Taken, Error> {
        let _writing = self.lock();
        let (store, top) = self.open()?;
        recover(&store, &top)?;
        snapshot::take(&store, &top, limits, guide)
    }

    /// Makes the folder what it was at `target`, all of it or nothing, after a checkpoint of what it
    /// is now. What is ignored by git and not part of `target` stays as it is. `name` is noted, for
    /// [`Self::recover`].
    ///
    /// # Errors
    /// [`Error::Corrupt`] where an object is not what its name says, [`Error::Blocked`] where something
    /// is in the way: the folder is as it was. [`Error::Unfinished`]: it is neither.
    pub fn restore(&self, target: Oid, name: &str, limits: &Limits) -> Result<Restored, Error> {
        let _writing = self.lock();
        let (store, top) = self.open()?;
        recover(&store, &top)?;
        let before = snapshot::take(&store, &top, limits, Some(target))?;
        let packs = store.packs()?;
        let counts = restore::restore(&store, &packs, &top, before.root, target, name)?;
        let after = snapshot::take(&store, &top, limits, Some(target));
        Ok(Restored {
            before,
            written: counts.written,
            removed: counts.removed,
            modes: counts.modes,
            exact: after.is_ok_and(|after| after.root == target),
        })
    }

    /// Ends a restore that a crash cut, forward where it can. Returns its name and whether the folder is
    /// restored; `None`: there was none.
    ///
    /// # Errors
    /// Those of the file system; it is tried again by the next call.
    pub fn recover(&self) -> Result<Option<(String, bool)>, Error> {
        let _writing = self.lock();
        // Nothing is made just to look.
        if !intent::is_noted(&self.base.join(&self.below)) {
            return Ok(None);
        }
        let (store, top) = self.open()?;
        recover(&store, &top)
    }

    /// Tells what differs, file by file in order of names, until `tell` says false. False: it did.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::TooSlow`], and what `tell` returns.
    pub fn diff(
        &self,
        old: Option<Oid>,
        new: Option<Oid>,
        time: Duration,
        tell: &mut dyn FnMut(Difference) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        let (store, _) = self.open()?;
        let packs = store.packs()?;
        let until = Instant::now() + time;
        diff::changes(&packs, old, new, until, &mut |change| {
            tell(difference(&packs, &change)?)
        })
    }

    /// Writes a patch for `git apply`, of at most `most` bytes.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Corrupt`], [`Error::TooSlow`], and what `sink` returns.
    pub fn patch(
        &self,
        old: Option<Oid>,
        new: Option<Oid>,
        most: u64,
        time: Duration,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (store, _) = self.open()?;
        patch::write(&store.packs()?, old, new, most, Instant::now() + time, sink)
    }

    /// Writes a checkpoint as a branch into the folder's own repository; working files, index and HEAD
    /// stay as they are.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a bad name, [`Error::Blocked`] where there is no repository or the name is
    /// taken.
    pub fn branch(&self, root: Oid, branch: &Branch, time: Duration) -> Result<Made, Error> {
        let _writing = self.lock();
        let (store, top) = self.open()?;
        branch::make(&store.packs()?, &top, root, branch, Instant::now() + time)
    }

    /// Forgets all checkpoints but these. Returns the bytes that the store has then.
    ///
    /// # Errors
    /// Those of the file system; what is kept stays whole.
    pub fn prune(&self, keep: &[Oid], time: Duration) -> Result<u64, Error> {
        let _writing = self.lock();
        let (store, _) = self.open()?;
        prune::prune(&store, keep, Instant::now() + time)?;
        store.bytes()
    }
}

fn recover(store: &Store, top: &OwnedFd) -> Result<Option<(String, bool)>, Error> {
    let Some(intent) = intent::pending(store) else {
        return Ok(None);
    };
    let name = intent.name.clone();
    match intent.run(store, top) {
        Ok(()) => Ok(Some((name, true))),
        Err(Error::Blocked(_)) => Ok(Some((name, false))),
        Err(error) => Err(error),
    }
}

fn difference(packs: &pack_read::Packs, change: &Change) -> Result<Difference, Error> {
    let (old, new) = (change.old.as_ref(), change.new.as_ref());
    let mode = |node: &Node| match node.what {
        tree::What::File => format!("100{:03o}", node.mode),
        _ => node.git_mode().to_owned(),
    };
    let mut difference = Difference {
        path: diff::shown(&change.path),
        old_mode: old.map(mode),
        new_mode: new.map(mode),
        binary: false,
        hunks: String::new(),
        cut: false,
        additions: 0,
        deletions: 0,
    };
    if matches!((old, new), (Some(a), Some(b)) if a.oid == b.oid) {
        return Ok(difference);
    }
    match (diff::content(packs, old)?, diff::content(packs, new)?) {
        (Some(old), Some(new)) if !diff::is_binary(&old) && !diff::is_binary(&new) => {
            let (mut hunks, additions, deletions) = diff::unified(&old, &new);
            difference.cut = hunks.len() > TEXT_MAX;
            hunks.truncate(TEXT_MAX);
            difference.hunks = String::from_utf8_lossy(&hunks).into_owned();
            difference.additions = additions;
            difference.deletions = deletions;
        }
        _ => difference.binary = true,
    }
    Ok(difference)
}
