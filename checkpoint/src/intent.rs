//! The list of what a restore renames: carried out to its end or taken back, also by a process that
//! finds it after a crash.

use crate::{
    error::{Context as _, Error},
    snapshot::STAGING,
    store::Store,
    sys,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::{os::fd::OwnedFd, path::Path};

const INTENT: &str = "restore.json";
const DEPTH: u32 = 512;
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
pub(crate) enum Step {
    /// The new thing comes to the path; what was there goes out.
    Put { path: Hex, had: bool },
    /// What is at the path goes out.
    Remove { path: Hex },
    /// A file's or folder's mode.
    Mode { path: Hex, from: u32, to: u32 },
}

/// Bytes in JSON.
#[derive(Clone, Debug)]
pub(crate) struct Hex(pub(crate) Vec<u8>);

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

impl Intent {
    /// Writes the list down: from now on a crash is taken up again.
    pub(crate) fn note(
        store: &Store,
        name: &str,
        staging: &[u8],
        steps: Vec<Step>,
    ) -> Result<Self, Error> {
        let intent = Self {
            name: name.to_owned(),
            staging: String::from_utf8_lossy(staging).into_owned(),
            undo: false,
            steps,
        };
        intent.save(store)?;
        Ok(intent)
    }

    fn save(&self, store: &Store) -> Result<(), Error> {
        let json = serde_json::to_vec(self).map_err(std::io::Error::from);
        sys::replace(
            &store.dir,
            INTENT.as_bytes(),
            &json.context("note a restore")?,
        )
    }

    /// Goes on with a list: forward or, where that fails, back.
    pub(crate) fn run(mut self, store: &Store, top: &OwnedFd) -> Result<(), Error> {
        let places = match Places::open(top, self.staging.as_bytes()) {
            Ok(places) => places,
            Err(error) => {
                // Somebody removed it: nothing of the list can be done any more.
                store.remove(INTENT);
                return Err(Error::Unfinished(format!(
                    "what was to come is gone: {error}"
                )));
            }
        };
        let mut failure = None;
        if !self.undo {
            // Steps come in order: what lies before the last one that is seen to be done is done. A change
            // of a mode must not be done again, because another thing may have its path by now.
            let done = last(&self.steps, |number, step| step.is_done(&places, number));
            for (number, step) in self.steps.iter().enumerate().skip(done) {
                if let Err(error) = places.forward(number, step) {
                    failure = Some(format!("{}: {error}", step.shown()));
                    break;
                }
            }
        }
        if failure.is_some() || self.undo {
            self.undo = true;
            self.save(store)
                .map_err(|error| Error::Unfinished(error.to_string()))?;
            let touched = last(&self.steps, |number, step| step.is_touched(&places, number));
            let after = self.steps[touched..].iter();
            let modes = after.take_while(|step| matches!(step, Step::Mode { .. }));
            let upto = touched + modes.count();
            for (number, step) in self.steps[..upto].iter().enumerate().rev() {
                places
                    .backward(number, step)
                    .map_err(|error| Error::Unfinished(format!("{}: {error}", step.shown())))?;
            }
        }
        // Its list is still there: whoever hears of another error than this one would take it for the end.
        rustix::fs::syncfs(top)
            .map_err(|error| Error::Unfinished(format!("sync what is restored: {error}")))?;
        store.remove(INTENT);
        remove_staging(top);
        match (failure, self.undo) {
            (Some(failure), _) => Err(Error::Blocked(failure)),
            (None, true) => Err(Error::Blocked("the restore was taken back".to_owned())),
            (None, false) => Ok(()),
        }
    }

    /// What it changes.
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for step in &self.steps {
            match step {
                Step::Put { .. } => counts.written += 1,
                Step::Remove { .. } => counts.removed += 1,
                Step::Mode { .. } => counts.modes += 1,
            }
        }
        counts
    }
}

/// Removes the note: there is nothing to take up.
pub(crate) fn forget(store: &Store) {
    store.remove(INTENT);
}

/// Whether there is a note of a restore, seen from outside.
pub(crate) fn is_noted(store: &Path) -> bool {
    store.join(INTENT).symlink_metadata().is_ok()
}

/// A restore that was begun and not ended.
pub(crate) fn pending(store: &Store) -> Option<Intent> {
    serde_json::from_slice(&store.small(INTENT)?).ok()
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

/// How many steps there are up to the last one of which `is` is true.
fn last(steps: &[Step], is: impl Fn(&[u8], &Step) -> bool) -> usize {
    let steps = steps.iter().enumerate();
    steps
        .rev()
        .find(|(number, step)| is(&name(*number), step))
        .map_or(0, |(number, _)| number + 1)
}

/// Where things lie: at their paths, or by their number beside.
struct Places<'a> {
    top: &'a OwnedFd,
    new: OwnedFd,
    old: OwnedFd,
}

impl<'a> Places<'a> {
    fn open(top: &'a OwnedFd, staging: &[u8]) -> Result<Self, Errno> {
        let staging = sys::open_path(top, staging)?;
        Ok(Self {
            top,
            new: sys::open_path(&staging, b"new")?,
            old: sys::open_path(&staging, b"old")?,
        })
    }

    fn forward(&self, number: usize, step: &Step) -> Result<(), Errno> {
        let Self { top, new, old } = self;
        let number = &name(number)[..];
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

    fn backward(&self, number: usize, step: &Step) -> Result<(), Errno> {
        let Self { top, new, old } = self;
        let number = &name(number)[..];
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
}

/// A step's number as a file's name.
fn name(number: usize) -> Vec<u8> {
    number.to_string().into_bytes()
}

fn mode(top: &OwnedFd, path: &[u8], mode: u32) -> Result<(), Errno> {
    let (dir, name) = sys::open_parent(top, path)?;
    sys::chmod(&dir, name, mode)
}

impl Step {
    fn is_done(&self, places: &Places<'_>, number: &[u8]) -> bool {
        match self {
            Self::Put { .. } => matches!(sys::look(&places.new, number), Ok(None)),
            Self::Remove { .. } => matches!(sys::look(&places.old, number), Ok(Some(_))),
            Self::Mode { .. } => false,
        }
    }

    fn is_touched(&self, places: &Places<'_>, number: &[u8]) -> bool {
        let is_put = matches!(self, Self::Put { .. });
        self.is_done(places, number)
            || is_put && matches!(sys::look(&places.old, number), Ok(Some(_)))
    }

    fn shown(&self) -> String {
        let (Self::Put { path, .. } | Self::Remove { path } | Self::Mode { path, .. }) = self;
        crate::diff::shown(&path.0)
    }
}

#[cfg(test)]
mod tests;
