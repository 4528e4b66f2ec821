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
    intent::{self, Counts, Hex, Intent, Step, remove_staging},
    objects::{folder, join, pairs},
    oid::{Kind, Oid},
    pack_read::Packs,
    snapshot::STAGING,
    store::Store,
    sys,
    tree::{Node, What},
};
use rustix::fs::{FileType, fchmod, symlinkat};
use std::{io::Write as _, os::fd::OwnedFd};

/// Longest target of a link, in bytes.
const LINK_MAX: u64 = 4096;

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
            intent::forget(store);
            remove_staging(top);
            return Err(error);
        }
    };
    let counts = intent.counts();
    intent.run(store, top)?;
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
    Intent::note(store, name, staging_name, plan.steps)
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
