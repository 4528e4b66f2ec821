//! What the processes of tools use: for telling one that works from one that waits for ever.
//!
//! A tree is a child of OpenCode, or an orphan that the runner inherited, with all below it. What is
//! counted only grows while a tree lives: a process that ended counts in its parent that waited for it.
//! Whoever cannot be read counts as 0. Looks at one process after the other, so the sums are no instant's.

use crate::procfs::{Process, Snapshot};
use contract::runner::{TOOL_COMMAND_MAX, TOOL_TREES_MAX, ToolTree};
use rustix::param::clock_ticks_per_second;
use std::collections::HashMap;
use std::fs;
use std::io;

/// Processes whose children are tools, and that are none themselves.
#[derive(Clone, Copy, Debug)]
pub struct Roots {
    /// The runner.
    pub own: i32,
    /// OpenCode.
    pub agent: Option<i32>,
    /// What runs programs on its behalf.
    pub host: Option<i32>,
}

impl Roots {
    fn has(self, pid: i32) -> bool {
        pid == self.own || Some(pid) == self.agent || Some(pid) == self.host
    }
}

/// The trees below the roots, at most [`TOOL_TREES_MAX`], oldest first.
///
/// # Errors
/// `/proc` cannot be listed.
pub fn trees(roots: Roots) -> io::Result<Vec<ToolTree>> {
    let all = Snapshot::take()?;
    let mut trees: HashMap<i32, (Process, ToolTree)> = HashMap::new();
    for process in all.descendants(roots.own, None).living {
        if roots.has(process.pid) {
            continue;
        }
        let Some(root) = root(&all, process, roots) else {
            continue;
        };
        let (_, tree) = trees.entry(root.pid).or_insert_with(|| {
            let tree = ToolTree {
                pid: u32::try_from(root.pid).unwrap_or(0),
                start: root.start,
                command: command(root.pid),
                processes: 0,
                cpu_ms: 0,
                io_bytes: 0,
            };
            (root, tree)
        });
        tree.processes = tree.processes.saturating_add(1);
        tree.cpu_ms = tree.cpu_ms.saturating_add(cpu_ms(process.pid));
        tree.io_bytes = tree.io_bytes.saturating_add(io_bytes(process.pid));
    }
    let mut trees: Vec<ToolTree> = trees.into_values().map(|(_, tree)| tree).collect();
    trees.sort_by_key(|tree| (tree.start, tree.pid));
    trees.truncate(TOOL_TREES_MAX);
    Ok(trees)
}

/// The topmost process above this one that is below a root.
fn root(all: &Snapshot, process: Process, roots: Roots) -> Option<Process> {
    let mut at = process;
    // No tree is deeper than it has processes; parents that change while they are read may form a ring.
    for _ in 0..all.len() {
        if roots.has(at.parent) {
            return Some(at);
        }
        at = all.get(at.parent)?;
    }
    None
}

fn command(pid: i32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&words).replace('\0', " ");
    let end = words.floor_char_boundary(TOOL_COMMAND_MAX);
    words[..end].trim_end().to_owned()
}

/// proc(5): fields 14 to 17 are utime, stime, cutime and cstime in clock ticks.
fn cpu_ms(pid: i32) -> u64 {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    ticks(&stat).unwrap_or(0).saturating_mul(1000) / clock_ticks_per_second().max(1)
}

fn ticks(stat: &[u8]) -> Option<u64> {
    let close = stat.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    let fields = rest.split_ascii_whitespace().skip(11).take(4);
    // Those of children are signed in the kernel.
    Some(fields.filter_map(|field| field.parse::<u64>().ok()).sum())
}

/// What it read and wrote, files or not.
fn io_bytes(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let value = |line: &str| {
        let value = line
            .strip_prefix("rchar: ")
            .or_else(|| line.strip_prefix("wchar: "))?;
        value.trim().parse::<u64>().ok()
    };
    text.lines().filter_map(value).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    fn shell(script: &str) -> Child {
        Command::new("/bin/sh")
            .args(["-c", script])
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn tree(child: &Child) -> Option<ToolTree> {
        let own = std::process::id().cast_signed();
        let roots = Roots {
            own,
            agent: None,
            host: None,
        };
        let all = trees(roots).unwrap();
        all.into_iter().find(|tree| tree.pid == child.id())
    }

    fn wait(what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(Instant::now() < deadline, "never {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_tree_is_summed_up_and_told_from_a_sleeping_one() {
        let mut busy = shell("sh -c 'while :; do :; done'; echo never");
        let mut idle = shell("sleep 600; echo never");
        wait("two processes", || {
            tree(&busy).is_some_and(|tree| tree.processes == 2)
        });
        wait("CPU time", || {
            tree(&busy).is_some_and(|tree| tree.cpu_ms >= 200)
        });
        wait("asleep", || {
            tree(&idle).is_some_and(|tree| tree.processes == 2)
        });
        let before = tree(&idle).unwrap();
        assert_eq!(before.command, "/bin/sh -c sleep 600; echo never");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(tree(&idle).unwrap(), before);
        for child in [&mut busy, &mut idle] {
            let own = child.id().cast_signed();
            let below = Snapshot::take().unwrap().descendants(own, None).living;
            child.kill().unwrap();
            child.wait().unwrap();
            for process in below {
                let pid = rustix::process::Pid::from_raw(process.pid).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        assert!(tree(&busy).is_none());
    }

    #[test]
    fn a_hostile_name_does_not_move_the_fields() {
        let stat = b"77 (a) S 1 (\n) T 70 77 77 0 -1 4194560 1 0 0 0 3 4 5 -6 20 0 3 0 4242 9 9\n";
        assert_eq!(ticks(stat), Some(12));
        assert_eq!(ticks(b"77 (a"), None);
        assert_eq!(ticks(b""), None);
    }
}
