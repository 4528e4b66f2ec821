//! Which processes there are and who descends from whom, from `/proc`.

use rustix::param::clock_ticks_per_second;
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::fs;
use std::io;

/// A process at one instant. `start` tells it from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Parent.
    pub parent: i32,
    /// State letter as in `ps`.
    pub state: u8,
    /// Start in clock ticks since boot.
    pub start: u64,
}

impl Process {
    /// Whether it is dead already and only waits for its parent.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// Whether it cannot run, hence cannot fork.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        matches!(self.state, b'T' | b't') || self.is_dead()
    }

    /// The process `pid` now, if it lives.
    #[must_use]
    pub fn read(pid: i32) -> Option<Self> {
        parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
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
    /// Whether a process lost its parent while the snapshot was taken, so that it may be one too.
    pub unsure: bool,
}

impl Snapshot {
    /// Reads `/proc`.
    ///
    /// # Errors
    /// `/proc` is not there or cannot be listed.
    pub fn take() -> io::Result<Self> {
        let mut processes = HashMap::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            if let Some(pid) = name.to_str().and_then(|n| n.parse().ok())
                && let Some(process) = Process::read(pid)
            {
                processes.insert(pid, process);
            }
        }
        Ok(Self { processes })
    }

    /// All living descendants of `ancestor` but what is to be kept.
    #[must_use]
    pub fn descendants(&self, ancestor: i32, keep: Option<Keep>) -> Descendants {
        let mut found = Descendants::default();
        for process in self.processes.values() {
            match self.descends(process, ancestor, keep) {
                Some(true) if !process.is_dead() => found.living.push(*process),
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

    /// `None`: a parent is not in the snapshot.
    fn descends(&self, process: &Process, ancestor: i32, keep: Option<Keep>) -> Option<bool> {
        if process.pid == ancestor || keep.is_some_and(|keep| keep.pid == process.pid) {
            return Some(false);
        }
        let mut at = process;
        // Parents changed while reading could form a ring.
        for _ in 0..=self.processes.len() {
            if keep.is_some_and(|keep| keep.pid == at.parent && keep.since < at.start) {
                return Some(false);
            }
            if at.parent == ancestor {
                return Some(true);
            }
            if at.parent <= 0 {
                return Some(false);
            }
            at = self.processes.get(&at.parent)?;
        }
        None
    }
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
    // starttime is field 22; two fields of 3 and 4 are taken.
    let start = rest.nth(17)?.parse().ok()?;
    Some(Process {
        pid,
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
        let stat = b"77 (a) S 1 (\n) T 70 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 9 9\n";
        assert_eq!(
            parse(stat),
            Some(Process {
                pid: 77,
                parent: 70,
                state: b'T',
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
        let mut zombie = process(6, 1);
        zombie.state = b'Z';
        let all = [
            process(1, 0),
            process(2, 1),
            process(3, 2),
            process(4, 3),
            process(5, 0),
            zombie,
        ];
        let found = snapshot(&all).descendants(1, Some(Keep { pid: 2, since: 1 }));
        let mut pids: Vec<_> = found.living.iter().map(|p| p.pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, [3, 4]);
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
    fn a_lost_parent_asks_for_another_look() {
        let found = snapshot(&[process(1, 0), process(9, 8)]).descendants(1, None);
        assert!(found.living.is_empty());
        assert!(found.unsure);
        // A ring ends.
        let ring = snapshot(&[process(3, 4), process(4, 3)]).descendants(1, None);
        assert!(ring.unsure);
    }
}
