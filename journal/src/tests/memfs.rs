//! A file system in memory that forgets what was not synced, tears it, mixes old and new sectors,
//! fails on command and fills up.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::support::Rng;

mod ops;

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
