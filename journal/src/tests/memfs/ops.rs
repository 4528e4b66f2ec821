//! The calls that the journal makes.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::{DirOp, Fault, FileOp, MemFs, Node, apply, eio, enospc};
use crate::fs::{DirEntry, Fs, FsFile, Lock, Mode};
use crate::tests::support::Rng;

impl Fs for MemFs {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Box<dyn FsFile>> {
        let mut state = self.state();
        state.plain("open")?;
        let node = match (state.find(path), mode) {
            (Ok(node), Mode::Create) => {
                let Node::File {
                    current, pending, ..
                } = &mut state.nodes[node]
                else {
                    return Err(io::ErrorKind::IsADirectory.into());
                };
                current.clear();
                pending.push(FileOp::Truncate(0));
                node
            }
            (Ok(node), _) => node,
            (Err(_), Mode::Create) => {
                let (dir, name) = state.parent(path)?;
                let node = state.nodes.len();
                state.nodes.push(Node::File {
                    durable: Vec::new(),
                    current: Vec::new(),
                    pending: Vec::new(),
                    allocated: 0,
                });
                state.dir_op(dir, DirOp::Link(name, node));
                node
            }
            (Err(error), _) => return Err(error),
        };
        Ok(Box::new(MemFile {
            fs: self.clone(),
            node,
        }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut state = self.state();
        state.plain("list")?;
        let Node::Dir { current, .. } = &state.nodes[state.find(dir)?] else {
            return Err(io::ErrorKind::NotADirectory.into());
        };
        let is_dir = |node: usize| matches!(state.nodes[node], Node::Dir { .. });
        Ok(current
            .iter()
            .map(|(n, &i)| DirEntry {
                name: n.clone(),
                is_dir: is_dir(i),
            })
            .collect())
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.plain("make_dir")?;
        let (parent, name) = state.parent(dir)?;
        if state.find(dir).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let node = state.nodes.len();
        state.nodes.push(Node::Dir {
            durable: BTreeMap::new(),
            current: BTreeMap::new(),
            pending: Vec::new(),
        });
        state.dir_op(parent, DirOp::Link(name, node));
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.plain("remove_dir")?;
        let Node::Dir { current, .. } = &state.nodes[state.find(dir)?] else {
            return Err(io::ErrorKind::NotADirectory.into());
        };
        if !current.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let (parent, name) = state.parent(dir)?;
        state.dir_op(parent, DirOp::Unlink(name));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.plain("remove")?;
        let node = state.find(path)?;
        if matches!(state.nodes[node], Node::Dir { .. }) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let (parent, name) = state.parent(path)?;
        state.dir_op(parent, DirOp::Unlink(name));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.plain("rename")?;
        let node = state.find(from)?;
        let ((dir, old), (other, new)) = (state.parent(from)?, state.parent(to)?);
        assert_eq!(
            dir, other,
            "a rename across folders is two entries, not atomic"
        );
        if let Ok(there) = state.find(to)
            && let Node::Dir { current, .. } = &state.nodes[there]
            && !current.is_empty()
        {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        state.dir_op(dir, DirOp::Rename(old, new, node));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.plain("sync_dir")?;
        let node = state.find(dir)?;
        let Node::Dir {
            durable,
            current,
            pending,
        } = &mut state.nodes[node]
        else {
            return Err(io::ErrorKind::NotADirectory.into());
        };
        durable.clone_from(current);
        pending.clear();
        Ok(())
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        let mut state = self.state();
        state.plain("free_bytes")?;
        Ok(state.capacity.saturating_sub(state.used()))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        let mut state = self.state();
        state.plain("lock")?;
        Ok(state
            .locks
            .insert(path.to_owned())
            .then(|| Box::new(MemLock(self.clone(), path.to_owned())) as Lock))
    }

    fn random(&self) -> io::Result<u64> {
        let mut state = self.state();
        state.plain("random")?;
        Ok(state.rng.next())
    }
}

struct MemLock(MemFs, PathBuf);

impl Drop for MemLock {
    fn drop(&mut self) {
        self.0.state().locks.remove(&self.1);
    }
}

struct MemFile {
    fs: MemFs,
    node: usize,
}

impl FsFile for MemFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let state = &mut *self.fs.state();
        let (len, result) = match state.call("write") {
            Some(Fault::Short) => (1, Ok(1)),
            Some(Fault::Eio) => (bytes.len() / 2, Err(eio())),
            Some(Fault::Enospc) => (bytes.len() / 2, Err(enospc())),
            None if state.short_writes => {
                let len = 1 + state.rng.below(bytes.len());
                (len, Ok(len))
            }
            None => (bytes.len(), Ok(bytes.len())),
        };
        let at = offset as usize;
        let Node::File {
            current, allocated, ..
        } = &state.nodes[self.node]
        else {
            panic!()
        };
        // Blocks beyond what the file has come from what is free.
        let own = (current.len() as u64).max(*allocated);
        let room = state
            .capacity
            .saturating_sub(state.used())
            .saturating_add(own);
        let (len, result) = match usize::try_from(room.saturating_sub(offset)) {
            Ok(0) => return Err(enospc()),
            Ok(room) if room < len => (room, Ok(room)),
            _ => (len, result),
        };
        let Node::File {
            current, pending, ..
        } = &mut state.nodes[self.node]
        else {
            panic!()
        };
        apply(current, at, &bytes[..len]);
        pending.push(FileOp::Write(at, bytes[..len].to_vec()));
        result
    }

    fn read_at(&self, out: &mut Vec<u8>, offset: u64, len: usize) -> io::Result<()> {
        let mut state = self.fs.state();
        state.plain("read")?;
        let Node::File { current, .. } = &state.nodes[self.node] else {
            panic!("no file")
        };
        let begin = current.len().min(offset as usize);
        let end = current.len().min(begin + len);
        out.extend_from_slice(&current[begin..end]);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        let mut state = self.fs.state();
        state.plain("size")?;
        let Node::File { current, .. } = &state.nodes[self.node] else {
            panic!("no file")
        };
        Ok(current.len() as u64)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.fs.state();
        state.plain("truncate")?;
        let Node::File {
            current,
            pending,
            allocated,
            ..
        } = &mut state.nodes[self.node]
        else {
            panic!("no file")
        };
        current.truncate(len as usize);
        *allocated = 0;
        pending.push(FileOp::Truncate(len as usize));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.fs.state();
        state.syncs += 1;
        let failed = state.plain("sync");
        let mut rng = Rng(state.rng.next());
        let Node::File {
            durable,
            current,
            pending,
            ..
        } = &mut state.nodes[self.node]
        else {
            panic!("no file")
        };
        // Not simply `current`: what a failed sync has dropped stays dropped.
        for op in pending
            .iter()
            .filter(|_| failed.is_ok() || rng.below(2) == 0)
        {
            match op {
                FileOp::Write(at, bytes) => apply(durable, *at, bytes),
                FileOp::Truncate(len) => durable.truncate(*len),
            }
        }
        if failed.is_ok() {
            durable.resize(current.len(), 0);
        }
        pending.clear();
        failed
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.fs.state();
        state.plain("allocate")?;
        let used = state.used();
        let capacity = state.capacity;
        let Node::File {
            current, allocated, ..
        } = &mut state.nodes[self.node]
        else {
            panic!("no file")
        };
        let own = (current.len() as u64).max(*allocated);
        if used.saturating_sub(own) + own.max(offset + len) > capacity {
            return Err(enospc());
        }
        *allocated = (*allocated).max(offset + len);
        Ok(())
    }
}
