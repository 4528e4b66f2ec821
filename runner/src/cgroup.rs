//! Memory and CPU of the container, from the files of cgroup v2 or v1.
//!
//! A container sees its own cgroup at `/sys/fs/cgroup`. Memory is what the kubelet calls the working set:
//! use without the page cache that can be dropped, because that is what a limit is compared with.

use contract::runner::Cgroup;
use std::fs;
use std::path::Path;

/// v1 shows "no limit" as a huge number near 2^63.
const NO_LIMIT: u64 = 1 << 60;

/// Where a container sees its cgroup.
pub const ROOT: &str = "/sys/fs/cgroup";

/// Reads the container's cgroup; what is absent stays 0 or `None`.
#[must_use]
pub fn read(root: &Path) -> Cgroup {
    if root.join("memory.current").exists() || root.join("cpu.stat").exists() {
        read_v2(root)
    } else {
        read_v1(root)
    }
}

fn read_v2(root: &Path) -> Cgroup {
    let used = number(root, "memory.current").unwrap_or(0);
    let droppable = keyed(root, "memory.stat", "inactive_file").unwrap_or(0);
    Cgroup {
        memory_bytes: used.saturating_sub(droppable),
        memory_limit_bytes: number(root, "memory.max"),
        cpu_usec: keyed(root, "cpu.stat", "usage_usec").unwrap_or(0),
        cpu_limit_millis: text(root, "cpu.max").and_then(|max| {
            let (quota, period) = max.trim().split_once(' ')?;
            millis(quota.parse().ok()?, period.parse().ok()?)
        }),
        oom_kills: keyed(root, "memory.events", "oom_kill").unwrap_or(0),
    }
}

fn read_v1(root: &Path) -> Cgroup {
    let used = number(root, "memory/memory.usage_in_bytes").unwrap_or(0);
    let droppable = keyed(root, "memory/memory.stat", "total_inactive_file").unwrap_or(0);
    // The controller is mounted under both names, together or alone.
    let cpu = |file: &str| {
        number(root, &format!("cpu/{file}"))
            .or_else(|| number(root, &format!("cpu,cpuacct/{file}")))
    };
    let time =
        number(root, "cpuacct/cpuacct.usage").or_else(|| number(root, "cpu,cpuacct/cpuacct.usage"));
    Cgroup {
        memory_bytes: used.saturating_sub(droppable),
        memory_limit_bytes: number(root, "memory/memory.limit_in_bytes").filter(|l| *l < NO_LIMIT),
        cpu_usec: time.unwrap_or(0) / 1000,
        // -1 means no limit and does not parse.
        cpu_limit_millis: cpu("cpu.cfs_quota_us")
            .zip(cpu("cpu.cfs_period_us"))
            .and_then(|(quota, period)| millis(quota, period)),
        oom_kills: keyed(root, "memory/memory.oom_control", "oom_kill").unwrap_or(0),
    }
}

fn millis(quota: u64, period: u64) -> Option<u64> {
    quota.checked_mul(1000)?.checked_div(period)
}

fn text(root: &Path, file: &str) -> Option<String> {
    fs::read_to_string(root.join(file)).ok()
}

fn number(root: &Path, file: &str) -> Option<u64> {
    text(root, file)?.trim().parse().ok()
}

fn keyed(root: &Path, file: &str, key: &str) -> Option<u64> {
    let text = text(root, file)?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        dir
    }

    #[test]
    fn version_2() {
        let dir = root(&[
            ("memory.current", "1000\n"),
            ("memory.stat", "anon 1\ninactive_file 300\n"),
            ("memory.max", "4096\n"),
            ("cpu.stat", "usage_usec 77\nuser_usec 5\n"),
            ("cpu.max", "150000 100000\n"),
            (
                "memory.events",
                "low 0\noom 3\noom_kill 2\noom_group_kill 9\n",
            ),
        ]);
        let wanted = Cgroup {
            memory_bytes: 700,
            memory_limit_bytes: Some(4096),
            cpu_usec: 77,
            cpu_limit_millis: Some(1500),
            oom_kills: 2,
        };
        assert_eq!(read(dir.path()), wanted);
    }

    #[test]
    fn version_2_without_limits() {
        let dir = root(&[
            ("memory.current", "5"),
            ("memory.max", "max\n"),
            ("cpu.max", "max 100000\n"),
        ]);
        assert_eq!(
            read(dir.path()),
            Cgroup {
                memory_bytes: 5,
                ..Cgroup::default()
            }
        );
    }

    #[test]
    fn version_1() {
        let dir = root(&[
            ("memory/memory.usage_in_bytes", "1000"),
            (
                "memory/memory.stat",
                "inactive_file 1\ntotal_inactive_file 400\n",
            ),
            ("memory/memory.limit_in_bytes", "9223372036854771712"),
            (
                "memory/memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
            ),
            ("cpu,cpuacct/cpuacct.usage", "5000999"),
            ("cpu,cpuacct/cpu.cfs_quota_us", "50000"),
            ("cpu,cpuacct/cpu.cfs_period_us", "100000"),
        ]);
        let wanted = Cgroup {
            memory_bytes: 600,
            memory_limit_bytes: None,
            cpu_usec: 5000,
            cpu_limit_millis: Some(500),
            oom_kills: 4,
        };
        assert_eq!(read(dir.path()), wanted);
    }

    #[test]
    fn nothing_and_nonsense_are_zero() {
        assert_eq!(read(root(&[]).path()), Cgroup::default());
        let dir = root(&[
            ("memory.current", "-1"),
            ("cpu.stat", ""),
            ("cpu.max", "5 0"),
        ]);
        assert_eq!(read(dir.path()), Cgroup::default());
    }
}
