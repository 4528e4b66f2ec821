//! Brings a checkpoint back, all of it or nothing.
//!
//! 1. Everything that has to come is written beside (in a folder at the top of the same mount, so that
//!    renaming works), hashed on the way, and synced. Until here the folder is as it was.
//! 2. A list of what to rename is written to the store. From here on a crash is taken up again.
//! 3. Names are exchanged: the old out, the new in. Renaming needs no space. If one fails, all are taken
//!    back.
//! 4. The list is removed, then what was moved out.

use crate::{
    error::{Context as _, Error},
    objects::{folder, join, pairs},
    oid::{Kind, Oid},
    pack_read::Packs,
    snapshot::STAGING,
    store::Store,
    sys,
    tree::{Node, What},
};
use rustix::{
    fs::{FileType, fchmod, symlinkat},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use std::{io::Write as _, os::fd::OwnedFd, path::Path};

const INTENT: &str = "restore.json";
const DEPTH: u32 = 512;
/// Longest target of a link, in bytes.
const LINK_MAX: u64 = 4096;

/// What is to be done, and how far it came.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Intent {
    /// Chosen by the caller.
    pub(crate) name: String,
    staging: String,
    undo: bool,
    steps: Vec<Step>,
}

/// One change. Its number is its name in the staging folder.
#[derive(Debug, Serialize, Deserialize)]
enum Step {
    /// The new thing comes to the path; what was there goes out.
    Put { path: Hex, had: bool },
    /// What is at the path goes out.
    Remove { path: Hex },
    /// A file's or folder's mode.
    Mode { path: Hex, from: u32, to: u32 },
}

/// Bytes in JSON.
#[derive(Clone, Debug)]
struct Hex(Vec<u8>);

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&digits)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let digits = String::deserialize(deserializer)?;
        let bytes = digits.as_bytes().chunks(2).map(|pair| {
            std::str::from_utf8(pair)
                .ok()
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
        });
        bytes
            .collect::<Option<_>>()
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("no hexadecimal digits"))
    }
}

/// How many changes a restore made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) written: u64,
    pub(crate) removed: u64,
    pub(crate) modes: u64,
}

struct Plan<'a> {
    top: &'a OwnedFd,
    packs: &'a Packs,
    staging: &'a OwnedFd,
    steps: Vec<Step>,
}

/// Makes the folder, which is as `now` says, what `target` says.
pub(crate) fn restore(
    store: &Store,
    packs: &Packs,
    top: &OwnedFd,
    now: Oid,
    target: Oid,
    name: &str,
) -> Result<Counts, Error> {
    remove_staging(top);
    let staging_name = [STAGING, sys::random().as_bytes()].concat();
    let staged = prepare(store, packs, top, now, target, name, &staging_name);
    let intent = match staged {
        Ok(intent) => intent,
        Err(error) => {
            store.remove(INTENT);
            remove_staging(top);
            return Err(error);
        }
    };
    let counts = counts(&intent);
    run(store, top, intent)?;
    Ok(counts)
}

fn prepare(
    store: &Store,
    packs: &Packs,
    top: &OwnedFd,
    now: Oid,
    target: Oid,
    name: &str,
    staging_name: &[u8],
) -> Result<Intent, Error> {
    let staging = sys::ensure_dir(top, staging_name, 0o700).context("make room for a restore")?;
    sys::ensure_dir(&staging, b"new", 0o700).context("make room for a restore")?;
    sys::ensure_dir(&staging, b"old", 0o700).context("make room for a restore")?;
    let mut plan = Plan {
        top,
        packs,
        staging: &staging,
        steps: Vec::new(),
    };
    plan.dir(b"", now, target)?;
    rustix::fs::syncfs(&staging).context("sync what is restored")?;
    let intent = Intent {
        name: name.to_owned(),
        staging: String::from_utf8_lossy(staging_name).into_owned(),
        undo: false,
        steps: plan.steps,
    };
    save(store, &intent)?;
    Ok(intent)
}

fn save(store: &Store, intent: &Intent) -> Result<(), Error> {
    let json = serde_json::to_vec(intent).map_err(std::io::Error::from);
    sys::replace(
        &store.dir,
        INTENT.as_bytes(),
        &json.context("note a restore")?,
    )
}

/// Whether there is a note of a restore, seen from outside.
pub(crate) fn is_noted(store: &Path) -> bool {
    store.join(INTENT).symlink_metadata().is_ok()
}

/// A restore that was begun and not ended.
pub(crate) fn pending(store: &Store) -> Option<Intent> {
    serde_json::from_slice(&store.small(INTENT)?).ok()
}

/// Goes on with a list: forward or, where that fails, back.
pub(crate) fn run(store: &Store, top: &OwnedFd, mut intent: Intent) -> Result<(), Error> {
    let staging = sys::open_path(top, intent.staging.as_bytes()).and_then(|staging| {
        Ok((
            sys::open_path(&staging, b"new")?,
            sys::open_path(&staging, b"old")?,
        ))
    });
    let (new, old) = match staging {
        Ok(staging) => staging,
        Err(error) => {
            // Somebody removed it: nothing of the list can be done any more.
            store.remove(INTENT);
            return Err(Error::Unfinished(format!(
                "what was to come is gone: {error}"
            )));
        }
    };
    let mut failure = None;
    if !intent.undo {
        // Steps come in order: what lies before the last one that is seen to be done is done. A change
        // of a mode must not be done again, because another thing may have its path by now.
        let done = last(&intent.steps, |number, step| {
            step.is_done(&new, &old, number)
        });
        for (number, step) in intent.steps.iter().enumerate().skip(done) {
            if let Err(error) = forward(top, &new, &old, number, step) {
                failure = Some(format!("{}: {error}", step.shown()));
                break;
            }
        }
    }
    if failure.is_some() || intent.undo {
        intent.undo = true;
        save(store, &intent).map_err(|error| Error::Unfinished(error.to_string()))?;
        let touched = last(&intent.steps, |number, step| {
            step.is_touched(&new, &old, number)
        });
        let after = intent.steps[touched..].iter();
        let modes = after.take_while(|step| matches!(step, Step::Mode { .. }));
        let upto = touched + modes.count();
        for (number, step) in intent.steps[..upto].iter().enumerate().rev() {
            backward(top, &new, &old, number, step)
                .map_err(|error| Error::Unfinished(format!("{}: {error}", step.shown())))?;
        }
    }
    // Its list is still there: whoever hears of another error than this one would take it for the end.
    rustix::fs::syncfs(top)
        .map_err(|error| Error::Unfinished(format!("sync what is restored: {error}")))?;
    store.remove(INTENT);
    remove_staging(top);
    match (failure, intent.undo) {
        (Some(failure), _) => Err(Error::Blocked(failure)),
        (None, true) => Err(Error::Blocked("the restore was taken back".to_owned())),
        (None, false) => Ok(()),
    }
}

/// Removes what restores left, the finished and the never begun.
pub(crate) fn remove_staging(top: &OwnedFd) {
    let Ok(names) = sys::names(top, usize::MAX) else {
        return;
    };
    for name in names.iter().filter(|name| name.starts_with(STAGING)) {
        // What cannot be removed is no part of a checkpoint, and is tried again the next time.
        let _ = sys::remove_all(top, name, DEPTH);
    }
}

fn forward(
    top: &OwnedFd,
    new: &OwnedFd,
    old: &OwnedFd,
    number: usize,
    step: &Step,
) -> Result<(), Errno> {
    let number = number.to_string();
    let number = number.as_bytes();
    match step {
        Step::Put { path, had } => {
            if sys::look(new, number)?.is_none() {
                return Ok(());
            }
            let (dir, name) = sys::open_parent(top, &path.0)?;
            if *had && sys::look(old, number)?.is_none() {
                sys::rename(&dir, name, old, number, false)?;
            }
            // Whatever came there meanwhile stays: then this restore fails and is taken back.
            sys::rename(new, number, &dir, name, false)
        }
        Step::Remove { path } => {
            if sys::look(old, number)?.is_some() {
                return Ok(());
            }
            let (dir, name) = sys::open_parent(top, &path.0)?;
            match sys::rename(&dir, name, old, number, false) {
                Err(Errno::NOENT) => Ok(()),
                renamed => renamed,
            }
        }
        Step::Mode { path, to, .. } => match mode(top, &path.0, *to) {
            // A mode for the sake of a removal that is done already.
            Err(Errno::NOENT) => Ok(()),
            changed => changed,
        },
    }
}

/// How many steps there are up to the last one of which `is` is true.
fn last(steps: &[Step], is: impl Fn(&[u8], &Step) -> bool) -> usize {
    let steps = steps.iter().enumerate();
    steps
        .rev()
        .find(|(number, step)| is(number.to_string().as_bytes(), step))
        .map_or(0, |(number, _)| number + 1)
}

fn backward(
    top: &OwnedFd,
    new: &OwnedFd,
    old: &OwnedFd,
    number: usize,
    step: &Step,
) -> Result<(), Errno> {
    let number = number.to_string();
    let number = number.as_bytes();
    match step {
        Step::Put { path, had } => {
            let (dir, name) = sys::open_parent(top, &path.0)?;
            let moved_out = sys::look(old, number)?.is_some();
            if sys::look(new, number)?.is_none() && (moved_out || !*had) {
                match sys::rename(&dir, name, new, number, false) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error),
                }
            }
            if moved_out {
                sys::rename(old, number, &dir, name, false)?;
            }
            Ok(())
        }
        Step::Remove { path } => {
            if sys::look(old, number)?.is_none() {
                return Ok(());
            }
            let (dir, name) = sys::open_parent(top, &path.0)?;
            sys::rename(old, number, &dir, name, false)
        }
        Step::Mode { path, from, .. } => match mode(top, &path.0, *from) {
            // It is moved out or not there yet; its mode comes with it.
            Err(Errno::NOENT) => Ok(()),
            changed => changed,
        },
    }
}

fn mode(top: &OwnedFd, path: &[u8], mode: u32) -> Result<(), Errno> {
    let (dir, name) = sys::open_parent(top, path)?;
    sys::chmod(&dir, name, mode)
}

impl Step {
    fn is_done(&self, new: &OwnedFd, old: &OwnedFd, number: &[u8]) -> bool {
        match self {
            Self::Put { .. } => matches!(sys::look(new, number), Ok(None)),
            Self::Remove { .. } => matches!(sys::look(old, number), Ok(Some(_))),
            Self::Mode { .. } => false,
        }
    }

    fn is_touched(&self, new: &OwnedFd, old: &OwnedFd, number: &[u8]) -> bool {
        let is_put = matches!(self, Self::Put { .. });
        self.is_done(new, old, number) || is_put && matches!(sys::look(old, number), Ok(Some(_)))
    }

    fn shown(&self) -> String {
        let (Self::Put { path, .. } | Self::Remove { path } | Self::Mode { path, .. }) = self;
        crate::diff::shown(&path.0)
    }
}

fn counts(intent: &Intent) -> Counts {
    let mut counts = Counts::default();
    for step in &intent.steps {
        match step {
            Step::Put { .. } => counts.written += 1,
            Step::Remove { .. } => counts.removed += 1,
            Step::Mode { .. } => counts.modes += 1,
        }
    }
    counts
}

impl Plan<'_> {
    /// Two folders of one path. Its own mode is the matter of the folder above.
    fn dir(&mut self, path: &[u8], now: Oid, target: Oid) -> Result<(), Error> {
        if now == target {
            return Ok(());
        }
        for (old, new) in pairs(folder(self.packs, &now)?, folder(self.packs, &target)?) {
            match (old, new) {
                (Some(old), Some(new)) if old == new => {}
                (Some(old), Some(new)) => self.both(path, &old, &new)?,
                (Some(old), None) => self.gone(path, &old)?,
                (None, Some(new)) => {
                    let at = join(path, &new.name);
                    let there = self.unknown(&at)?;
                    self.put(&at, &new, there)?;
                }
                (None, None) => {}
            }
        }
        Ok(())
    }

    fn both(&mut self, path: &[u8], old: &Node, new: &Node) -> Result<(), Error> {
        let at = join(path, &new.name);
        match (old.what, new.what) {
            (What::Dir, What::Dir) => {
                // To rename in it we must be able to write in it.
                let open = old.mode | 0o700;
                let changes = old.oid != new.oid;
                let between = if changes { open } else { old.mode };
                self.mode(&at, old.mode, between);
                self.dir(&at, old.oid, new.oid)?;
                self.mode(&at, between, new.mode);
            }
            (What::File, What::File) if old.oid == new.oid => self.mode(&at, old.mode, new.mode),
            (What::Dir, _) => {
                if !self.covered(&at, &old.oid)? {
                    return Err(Error::Blocked(format!(
                        "{} must become a file, and holds files that no checkpoint has; move them",
                        crate::diff::shown(&at)
                    )));
                }
                self.mode(&at, old.mode, old.mode | 0o700);
                self.put(&at, new, true)?;
            }
            _ => self.put(&at, new, true)?,
        }
        Ok(())
    }

    /// Something that the target does not have.
    fn gone(&mut self, path: &[u8], old: &Node) -> Result<(), Error> {
        let at = join(path, &old.name);
        if old.what == What::Dir {
            // To be moved, a folder must be writable; what is ignored in it stays, and so it.
            self.mode(&at, old.mode, old.mode | 0o700);
            if !self.covered(&at, &old.oid)? {
                for node in folder(self.packs, &old.oid)? {
                    self.gone(&at, &node)?;
                }
                self.mode(&at, old.mode | 0o700, old.mode);
                return Ok(());
            }
        }
        self.steps.push(Step::Remove { path: Hex(at) });
        Ok(())
    }

    /// Whether a name that the checkpoint of now does not have is taken all the same.
    fn unknown(&self, path: &[u8]) -> Result<bool, Error> {
        let stat = match sys::open_parent(self.top, path) {
            Ok((dir, name)) => sys::look(&dir, name),
            Err(error) => Err(error),
        };
        match stat.context("look at a file")? {
            None => Ok(false),
            Some(stat) => match sys::kind(&stat) {
                FileType::RegularFile | FileType::Directory | FileType::Symlink => {
                    Err(Error::Blocked(format!(
                        "{} is in the way and could not be read; move it",
                        crate::diff::shown(path)
                    )))
                }
                _ => Ok(true),
            },
        }
    }

    /// Whether a folder holds nothing but what its checkpoint has.
    fn covered(&self, path: &[u8], tree: &Oid) -> Result<bool, Error> {
        let dir = sys::open_path(self.top, path).context("open a folder")?;
        self.covers(&dir, tree)
    }

    fn covers(&self, dir: &OwnedFd, tree: &Oid) -> Result<bool, Error> {
        let nodes = folder(self.packs, tree)?;
        for name in sys::names(dir, usize::MAX)? {
            let Ok(at) = nodes.binary_search_by(|node| node.name.cmp(&name)) else {
                return Ok(false);
            };
            if nodes[at].what == What::Dir {
                let Ok(sub) = sys::open_dir(dir, &name) else {
                    return Ok(false);
                };
                if !self.covers(&sub, &nodes[at].oid)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn mode(&mut self, path: &[u8], from: u32, to: u32) {
        if from != to {
            self.steps.push(Step::Mode {
                path: Hex(path.to_vec()),
                from,
                to,
            });
        }
    }

    /// Writes something beside, to be renamed to its place.
    fn put(&mut self, path: &[u8], node: &Node, had: bool) -> Result<(), Error> {
        let number = self.steps.len().to_string();
        let new = sys::open_path(self.staging, b"new").context("open a folder")?;
        self.stage(&new, number.as_bytes(), node, true)?;
        self.steps.push(Step::Put {
            path: Hex(path.to_vec()),
            had,
        });
        if node.what == What::Dir {
            self.mode(path, node.mode | 0o700, node.mode);
        }
        Ok(())
    }

    fn stage(&self, dir: &OwnedFd, name: &[u8], node: &Node, first: bool) -> Result<(), Error> {
        match node.what {
            What::Link => {
                let target = self.packs.read(&node.oid, Kind::Blob, LINK_MAX)?;
                symlinkat(&target[..], dir, name).context("restore a link")
            }
            What::File => {
                let mut file = sys::create(dir, name, 0o600).context("restore a file")?;
                self.packs.copy(&node.oid, Kind::Blob, &mut |bytes| {
                    file.write_all(bytes).context("restore a file")
                })?;
                let mode = rustix::fs::Mode::from_raw_mode(node.mode);
                fchmod(&file, mode).context("restore a mode")
            }
            What::Dir => {
                let sub = sys::ensure_dir(dir, name, 0o700).context("restore a folder")?;
                for node in folder(self.packs, &node.oid)? {
                    self.stage(&sub, &node.name, &node, false)?;
                }
                // The outermost one is moved, which takes the right to write in it.
                let mode = if first { node.mode | 0o700 } else { node.mode };
                fchmod(&sub, rustix::fs::Mode::from_raw_mode(mode)).context("restore a mode")
            }
        }
    }
}
