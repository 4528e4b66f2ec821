//! Kills every descendant but OpenCode, wherever it hid: other sessions, double forks, fork bombs.
//!
//! Killing while others fork loses the race: each kill frees a place for a new child. So all are
//! stopped first, look after look until a look finds nobody running; a stopped process cannot fork and
//! keeps its place in the container's pids limit. Only then they are killed. Where that does not
//! converge and OpenCode need not live, the kernel kills the whole namespace at one instant.
//!
//! OpenCode may go on working meanwhile: what it starts after the sweep began is spared, or the sweep
//! might never end.
//!
//! Processes that came in from outside (`kubectl exec`) are no descendants and live on: somebody
//! debugs with them, and the agent cannot make one.

use crate::procfs::{self, Descendants, Keep, Process, Snapshot};
use crate::reaper::Reaper;
use crate::{log, sys};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open, pidfd_send_signal,
};
use std::collections::HashSet;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const LIMIT: Duration = Duration::from_secs(10);
/// Looks for running processes before the frozen ones are killed anyway.
const FREEZE_LOOKS: u32 = 32;
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Kills all descendants but `keep` (and what it starts from now on) and collects them; returns how many were killed.
///
/// Ends after 10 seconds at the latest, with a warning if some are left (a process in an
/// uninterruptible system call cannot be killed by anybody).
pub async fn sweep(reaper: &Reaper, keep: Option<Pid>) -> u32 {
    if cfg!(feature = "weakened") {
        reaper.collect();
        return 0;
    }
    let own = getpid().as_raw_nonzero().get();
    let keep = keep.map(|pid| Keep {
        pid: pid.as_raw_nonzero().get(),
        since: procfs::now(),
    });
    let deadline = Instant::now() + LIMIT;
    let mut killed = HashSet::new();
    let mut pause = Duration::from_millis(1);
    let mut told = false;
    loop {
        reaper.collect();
        let found = match freeze(own, keep).await {
            Ok(found) => found,
            Err(error) if procfs::is_want(&error) && Instant::now() <= deadline => {
                if !told {
                    let error = error.to_string();
                    log::warn("a sweep waits for files", &[("error", error.into())]);
                }
                told = true;
                sleep(PAUSE_MAX).await;
                continue;
            }
            Err(error) => {
                log::error("cannot read /proc", &[("error", error.to_string().into())]);
                if keep.is_none() {
                    sys::kill_namespace();
                }
                break;
            }
        };
        if found.living.is_empty() && !found.unsure {
            break;
        }
        for process in &found.living {
            if signal(process, Signal::KILL) {
                killed.insert((process.pid, process.start));
            }
        }
        if Instant::now() > deadline {
            if keep.is_none() {
                sys::kill_namespace();
            }
            log::warn(
                "processes are left",
                &[("count", found.living.len().into())],
            );
            break;
        }
        // Not a guess but a pause between looks at a condition: the dead must be collected.
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
    reaper.collect();
    u32::try_from(killed.len()).unwrap_or(u32::MAX)
}

/// Stops descendants until a look finds none running; returns those of the last look.
async fn freeze(own: i32, keep: Option<Keep>) -> std::io::Result<Descendants> {
    let mut found = Snapshot::take()?.descendants(own, keep);
    let mut asked: HashSet<(i32, u64)> = HashSet::new();
    for _ in 0..FREEZE_LOOKS {
        let mut fresh = false;
        for process in found.living.iter().filter(|p| !p.is_frozen()) {
            // One that was asked and still runs is in the kernel, or another continues it: SIGKILL
            // ends it, and waiting for it would give the others time.
            fresh |= asked.insert((process.pid, process.start));
            signal(process, Signal::STOP);
        }
        if !fresh {
            break;
        }
        tokio::task::yield_now().await;
        found = Snapshot::take()?.descendants(own, keep);
    }
    Ok(found)
}

/// Signals exactly this process, never another that got its number since the look.
fn signal(process: &Process, signal: Signal) -> bool {
    let Some(pid) = Pid::from_raw(process.pid) else {
        return false;
    };
    let is_same = || Process::read(process.pid).is_some_and(|now| now.start == process.start);
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => is_same() && pidfd_send_signal(&fd, signal).is_ok(),
        // Kernels before 5.3 and old seccomp profiles.
        Err(Errno::NOSYS | Errno::PERM | Errno::MFILE | Errno::NFILE) => {
            is_same() && kill_process(pid, signal).is_ok()
        }
        Err(_) => false,
    }
}
