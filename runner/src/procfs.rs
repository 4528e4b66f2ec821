//! Which processes there are and who descends from whom, from `/proc`.

use rustix::io::Errno;
use rustix::param::clock_ticks_per_second;
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::fs;
use std::io;

/// Walks in a `/proc` that changes before the answer is "unsure".
const WALKS: usize = 5;
/// Deeper than any tree of processes: the largest pid.
const DEPTH_MAX: usize = 1 << 22;

/// A process at one instant. `start` tells it from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Parent.
    pub parent: i32,
    /// State letter as in `ps`.
    pub state: u8,
    /// Threads that are not collected.
    pub threads: u64,
    /// Start in clock ticks since boot.
    pub start: u64,
}

impl Process {
    /// Whether it is dead already and only waits for its parent. One whose first thread ended looks
    /// like a zombie but its other threads run.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x') && self.threads <= 1
    }

    /// Whether it cannot run, hence cannot fork.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        matches!(self.state, b'T' | b't') || self.is_dead()
    }

    /// The process `pid` now, if it lives.
    #[must_use]
    pub fn read(pid: i32) -> Option<Self> {
        Self::look(pid).ok()?
    }

    /// The same.
    ///
    /// # Errors
    /// It cannot be known now, for want of files or memory.
    fn look(pid: i32) -> io::Result<Option<Self>> {
        match fs::read(format!("/proc/{pid}/stat")) {
            Ok(stat) => Ok(parse(&stat)),
            Err(error) if is_want(&error) => Err(error),
            // It is gone.
            Err(_) => Ok(None),
        }
    }
}

/// A process to spare, and which of its children.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// It itself.
    pub pid: i32,
    /// Children of it that began later than this (ticks since boot) are spared with all below them.
    pub since: u64,
}

/// Whether something failed for want of files or memory: it may work a little later.
#[must_use]
pub fn is_want(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

/// Now, in the unit of [`Process::start`].
#[must_use]
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let hz = clock_ticks_per_second();
    let second = u64::try_from(now.tv_sec).unwrap_or(0);
    let part = u64::try_from(now.tv_nsec).unwrap_or(0) * hz / 1_000_000_000;
    second * hz + part
}

/// All processes, read one after the other: those that fork or die meanwhile may be missed, so callers
/// look again until nothing new turns up.
#[derive(Debug, Default)]
pub struct Snapshot {
    processes: HashMap<i32, Process>,
}

/// Descendants of a process in a [`Snapshot`].
#[derive(Debug, Default)]
pub struct Descendants {
    /// Living ones.
    pub living: Vec<Process>,
    /// Whether to look again: a process lost its parent while the snapshot was taken, so that it may be
    /// one too, or a dead one waits to be collected by the ancestor.
    pub unsure: bool,
}

impl Snapshot {
    /// Reads `/proc`.
    ///
    /// # Errors
    /// `/proc` is not there or cannot be listed, or files or memory ran out, see [`is_want`].
    pub fn take() -> io::Result<Self> {
        let mut processes = HashMap::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            if let Some(pid) = name.to_str().and_then(|n| n.parse().ok())
                && let Some(process) = Process::look(pid)?
            {
                processes.insert(pid, process);
            }
        }
        Ok(Self { processes })
    }

    /// How many processes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.processes.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    /// The process `pid`.
    #[must_use]
    pub fn get(&self, pid: i32) -> Option<Process> {
        self.processes.get(&pid).copied()
    }

    /// All living descendants of `ancestor` but what is to be kept.
    #[must_use]
    pub fn descendants(&self, ancestor: i32, keep: Option<Keep>) -> Descendants {
        let mut found = Descendants::default();
        for process in self.processes.values() {
            match self.descends(process, ancestor, keep) {
                Some(true) if !process.is_dead() => found.living.push(*process),
                Some(true) if process.parent == ancestor => found.unsure = true,
                Some(_) => {}
                None => found.unsure = true,
            }
        }
        found
    }

    /// Whether `pid` descends from `ancestor`; false for one that is gone.
    #[must_use]
    pub fn is_descendant(&self, pid: i32, ancestor: i32) -> bool {
        self.processes
            .get(&pid)
            .is_some_and(|p| self.descends(p, ancestor, None) == Some(true))
    }

    /// Walks up in the snapshot; where that has a hole because parents died meanwhile, in `/proc` as it
    /// is now. `None`: it changes too fast.
    fn descends(&self, process: &Process, ancestor: i32, keep: Option<Keep>) -> Option<bool> {
        let in_snapshot = |pid| self.processes.get(&pid).copied();
        walk(*process, ancestor, keep, in_snapshot).or_else(|| {
            (0..WALKS).find_map(|_| match Process::read(process.pid) {
                Some(now) if now.start == process.start => walk(now, ancestor, keep, Process::read),
                // It is gone.
                _ => Some(false),
            })
        })
    }
}

/// `None`: a parent is not to be found.
fn walk(
    process: Process,
    ancestor: i32,
    keep: Option<Keep>,
    find: impl Fn(i32) -> Option<Process>,
) -> Option<bool> {
    if process.pid == ancestor || keep.is_some_and(|keep| keep.pid == process.pid) {
        return Some(false);
    }
    let mut at = process;
    for _ in 0..DEPTH_MAX {
        if keep.is_some_and(|keep| keep.pid == at.parent && keep.since < at.start) {
            return Some(false);
        }
        if at.parent == ancestor {
            return Some(true);
        }
        if at.parent <= 0 {
            return Some(false);
        }
        at = find(at.parent)?;
    }
    // Parents that changed while they were read may form a ring.
    None
}

/// proc(5): `pid (comm) state ppid … starttime`; comm may hold spaces, brackets and newlines.
fn parse(stat: &[u8]) -> Option<Process> {
    let open = stat.iter().position(|b| *b == b'(')?;
    let close = stat.iter().rposition(|b| *b == b')')?;
    let pid = std::str::from_utf8(&stat[..open])
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let mut rest = std::str::from_utf8(stat.get(close + 1..)?)
        .ok()?
        .split_ascii_whitespace();
    let state = *rest.next()?.as_bytes().first()?;
    let parent = rest.next()?.parse().ok()?;
    // Fields 20 and 22; the last one taken was 4.
    let threads = rest.nth(15)?.parse().ok()?;
    let start = rest.nth(1)?.parse().ok()?;
    Some(Process {
        pid,
        threads,
        parent,
        state,
        start,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32) -> Process {
        Process {
            pid,
            parent,
            state: b'S',
            threads: 1,
            start: 1,
        }
    }

    fn snapshot(all: &[Process]) -> Snapshot {
        Snapshot {
            processes: all.iter().map(|p| (p.pid, *p)).collect(),
        }
    }

    #[test]
    fn a_hostile_name_does_not_move_the_fields() {
        let stat = b"77 (a) S 1 (\n) T 70 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 3 0 4242 9 9\n";
        assert_eq!(
            parse(stat),
            Some(Process {
                pid: 77,
                parent: 70,
                state: b'T',
                threads: 3,
                start: 4242
            })
        );
        assert_eq!(parse(b"77 (a"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn the_own_process_is_found_below_its_parent() {
        let me = Process::read(std::process::id().cast_signed()).unwrap();
        assert!(Snapshot::take().unwrap().is_descendant(me.pid, me.parent));
        assert!(!Snapshot::take().unwrap().is_descendant(me.parent, me.pid));
    }

    #[test]
    fn descendants_are_all_below_but_the_kept_one_and_what_came_from_outside() {
        let zombie = Process {
            state: b'Z',
            ..process(6, 2)
        };
        // Its first thread ended, another runs.
        let headless = Process {
            state: b'Z',
            threads: 2,
            ..process(7, 1)
        };
        let all = [
            process(1, 0),
            process(2, 1),
            process(3, 2),
            process(4, 3),
            process(5, 0),
            zombie,
            headless,
        ];
        let found = snapshot(&all).descendants(1, Some(Keep { pid: 2, since: 1 }));
        let mut pids: Vec<_> = found.living.iter().map(|p| p.pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, [3, 4, 7]);
        assert!(!found.unsure);
    }

    #[test]
    fn what_the_kept_one_began_later_is_kept_with_all_below_it() {
        let late = |pid, parent| Process {
            start: 9,
            ..process(pid, parent)
        };
        let all = [
            process(1, 0),
            process(2, 1),
            process(3, 2),
            late(4, 3),
            late(5, 2),
            late(6, 5),
            late(7, 1),
        ];
        let found = snapshot(&all).descendants(1, Some(Keep { pid: 2, since: 1 }));
        let mut pids: Vec<_> = found.living.iter().map(|p| p.pid).collect();
        pids.sort_unstable();
        // 4: below an old one; 7: an orphan.
        assert_eq!(pids, [3, 4, 7]);
    }

    #[test]
    fn starts_and_the_clock_agree() {
        let before = now();
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let start = Process::read(child.id().cast_signed()).unwrap().start;
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            before <= start && start <= now(),
            "{before} {start} {}",
            now()
        );
    }

    #[test]
    fn a_dead_child_asks_for_another_look_until_it_is_collected() {
        let dead = Process {
            state: b'Z',
            ..process(6, 1)
        };
        let found = snapshot(&[process(1, 0), dead]).descendants(1, None);
        assert!(found.living.is_empty() && found.unsure);
    }

    #[test]
    fn a_hole_in_the_snapshot_is_looked_up_and_rings_end() {
        // Above the largest pid, so these are gone.
        let gone = snapshot(&[process(1, 0), process(5_000_009, 5_000_008)]).descendants(1, None);
        assert!(gone.living.is_empty() && !gone.unsure);
        let ring = [process(5_000_003, 5_000_004), process(5_000_004, 5_000_003)];
        assert!(snapshot(&ring).descendants(1, None).living.is_empty());
        // This process is not: its parent is found although the snapshot has none.
        let me = Process::read(std::process::id().cast_signed()).unwrap();
        let found = snapshot(&[Process {
            parent: 5_000_001,
            ..me
        }])
        .descendants(me.parent, None);
        assert_eq!(found.living.len(), 1);
    }
}
