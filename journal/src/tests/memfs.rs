//! A file system in memory that forgets what was not synced, tears it, mixes old and new sectors,
//! fails on command and fills up.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::support::Rng;
use crate::fs::{DirEntry, Fs, FsFile, Lock, Mode};

/// What goes wrong at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Input/output error; of a write, half was written; of a sync, the kernel forgets what it
    /// had to write and says nothing the next time.
    Eio,
    /// No space; of a write, half was written.
    Enospc,
    /// A write takes one byte only.
    Short,
}

enum FileOp {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

enum DirOp {
    Link(String, usize),
    Unlink(String),
    Rename(String, String, usize),
}

enum Node {
    File {
        durable: Vec<u8>,
        current: Vec<u8>,
        pending: Vec<FileOp>,
        allocated: u64,
    },
    Dir {
        durable: BTreeMap<String, usize>,
        current: BTreeMap<String, usize>,
        pending: Vec<DirOp>,
    },
}

struct State {
    nodes: Vec<Node>,
    locks: BTreeSet<PathBuf>,
    rng: Rng,
    calls: usize,
    fault: Option<(usize, Fault)>,
    fired: Option<&'static str>,
    capacity: u64,
    short_writes: bool,
    paused: bool,
    syncs: usize,
}

/// Shared between the journal and the test; lives on through crashes.
#[derive(Clone)]
pub(super) struct MemFs(Arc<Mutex<State>>);

fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

fn enospc() -> io::Error {
    io::Error::from_raw_os_error(28)
}

fn apply(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

impl DirOp {
    fn apply(&self, entries: &mut BTreeMap<String, usize>) {
        match self {
            Self::Link(name, node) => {
                entries.insert(name.clone(), *node);
            }
            Self::Unlink(name) => {
                entries.remove(name);
            }
            Self::Rename(from, to, node) => {
                entries.remove(from);
                entries.insert(to.clone(), *node);
            }
        }
    }
}

impl State {
    /// Counts a call; the fault to inject into it.
    fn call(&mut self, what: &'static str) -> Option<Fault> {
        if self.paused {
            return None;
        }
        let index = self.calls;
        self.calls += 1;
        match self.fault {
            Some((at, fault)) if at == index => {
                self.fired = Some(what);
                Some(fault)
            }
            _ => None,
        }
    }

    /// The same for a call that either works or fails as a whole.
    fn plain(&mut self, what: &'static str) -> io::Result<()> {
        match self.call(what) {
            Some(Fault::Eio) => Err(eio()),
            Some(Fault::Enospc) => Err(enospc()),
            Some(Fault::Short) | None => Ok(()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let mut at = 0;
        for part in path.components().skip(1) {
            let name = part.as_os_str().to_str().unwrap();
            let Node::Dir { current, .. } = &self.nodes[at] else {
                return Err(io::ErrorKind::NotADirectory.into());
            };
            at = *current.get(name).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    fn parent(&self, path: &Path) -> io::Result<(usize, String)> {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        Ok((self.find(path.parent().unwrap())?, name))
    }

    fn dir_op(&mut self, dir: usize, op: DirOp) {
        let Node::Dir {
            current, pending, ..
        } = &mut self.nodes[dir]
        else {
            panic!("no folder")
        };
        op.apply(current);
        pending.push(op);
    }

    /// What the files that have a name take.
    fn used(&self) -> u64 {
        fn below(nodes: &[Node], at: usize) -> u64 {
            match &nodes[at] {
                Node::File {
                    current, allocated, ..
                } => (current.len() as u64).max(*allocated),
                Node::Dir { current, .. } => current.values().map(|&n| below(nodes, n)).sum(),
            }
        }
        below(&self.nodes, 0)
    }
}

impl MemFs {
    pub(super) fn new(seed: u64) -> Self {
        let root = Node::Dir {
            durable: BTreeMap::new(),
            current: BTreeMap::new(),
            pending: Vec::new(),
        };
        Self(Arc::new(Mutex::new(State {
            nodes: vec![root],
            locks: BTreeSet::new(),
            rng: Rng(seed),
            calls: 0,
            fault: None,
            fired: None,
            capacity: u64::MAX,
            short_writes: false,
            paused: false,
            syncs: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        crate::sync::lock(&self.0)
    }

    /// Calls counted so far.
    pub(super) fn calls(&self) -> usize {
        self.state().calls
    }

    /// File syncs so far.
    pub(super) fn syncs(&self) -> usize {
        self.state().syncs
    }

    /// Fails the call with this index, once.
    pub(super) fn inject(&self, at: usize, fault: Fault) {
        let mut state = self.state();
        state.fault = Some((at, fault));
        state.fired = None;
    }

    /// Ends the injection; which call failed.
    pub(super) fn disarm(&self) -> Option<&'static str> {
        let mut state = self.state();
        state.fault = None;
        state.fired.take()
    }

    pub(super) fn set_capacity(&self, bytes: u64) {
        self.state().capacity = bytes;
    }

    pub(super) fn used(&self) -> u64 {
        self.state().used()
    }

    pub(super) fn set_short_writes(&self, on: bool) {
        self.state().short_writes = on;
    }

    /// Counts and fails nothing while the test itself looks.
    pub(super) fn pause(&self, on: bool) {
        self.state().paused = on;
    }

    pub(super) fn contents(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        let Node::File { current, .. } = &state.nodes[state.find(path).unwrap()] else {
            panic!("no file")
        };
        current.clone()
    }

    /// Replaces what is on the disk, as bit rot does.
    pub(super) fn rot(&self, path: &Path, content: Vec<u8>) {
        let mut state = self.state();
        let node = state.find(path).unwrap();
        let Node::File {
            durable,
            current,
            pending,
            ..
        } = &mut state.nodes[node]
        else {
            panic!("no file")
        };
        durable.clone_from(&content);
        *current = content;
        pending.clear();
    }

    /// Another disk with the same content.
    pub(super) fn fork(&self, seed: u64) -> Self {
        let fork = Self::new(seed);
        let state = self.state();
        fork.state().nodes = state
            .nodes
            .iter()
            .map(|node| match node {
                Node::File { current, .. } => Node::File {
                    durable: current.clone(),
                    current: current.clone(),
                    pending: Vec::new(),
                    allocated: 0,
                },
                Node::Dir { current, .. } => Node::Dir {
                    durable: current.clone(),
                    current: current.clone(),
                    pending: Vec::new(),
                },
            })
            .collect();
        fork
    }

    /// The process dies; the kernel still has everything.
    pub(super) fn kill(&self) {
        let mut state = self.state();
        state.locks.clear();
        state.capacity = u64::MAX;
    }

    /// The power goes: of what was not synced any part may be on the disk, in sectors of any size,
    /// each one old, new or (where the file grew) zeros.
    pub(super) fn power_loss(&self) {
        self.kill();
        let state = &mut *self.state();
        let rng = &mut state.rng;
        for node in &mut state.nodes {
            match node {
                Node::File {
                    durable,
                    current,
                    pending,
                    ..
                } => {
                    let sector = [1, 8, 16, 64, 512][rng.below(5)];
                    let keep = [0, 50, 90, 100][rng.below(4)];
                    let longest = pending.iter().fold(0, |longest, op| match op {
                        FileOp::Write(at, bytes) => longest.max(at + bytes.len()),
                        FileOp::Truncate(_) => longest,
                    });
                    for op in pending.drain(..) {
                        match op {
                            FileOp::Write(at, bytes) => {
                                let mut done = 0;
                                while done < bytes.len() {
                                    let begin = at + done;
                                    let len = (sector - begin % sector).min(bytes.len() - done);
                                    if rng.below(100) < keep {
                                        apply(durable, begin, &bytes[done..done + len]);
                                    }
                                    done += len;
                                }
                            }
                            FileOp::Truncate(len) => {
                                if rng.below(2) == 0 {
                                    durable.truncate(len);
                                }
                            }
                        }
                    }
                    if durable.len() < longest && rng.below(2) == 0 {
                        let len = durable.len() + rng.below(longest - durable.len() + 1);
                        durable.resize(len, 0);
                    }
                    current.clone_from(durable);
                }
                Node::Dir {
                    durable,
                    current,
                    pending,
                } => {
                    for op in pending.drain(..) {
                        if rng.below(2) == 0 {
                            op.apply(durable);
                        }
                    }
                    current.clone_from(durable);
                }
            }
        }
    }
}

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
