//! Collects every child that ends, ours and orphans alike, and tells who waits for one.
//!
//! `tokio::process` is not used: it waits for its own children by pid and leaves orphans alone, and a
//! second waiter for "any child" would take its exits away. Here is one waiter for all of them.
//!
//! A pid stays taken until its exit is collected. Collecting, spawning and signalling happen under
//! one lock, so a signal cannot hit a stranger that got the number of a child that is gone, and the
//! `wait` that std does when exec fails finds its child.

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, kill_process, kill_process_group, wait,
};
use std::collections::HashMap;
use std::io;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, if it exited.
    pub code: Option<i32>,
    /// Signal, if one killed it.
    pub signal: Option<i32>,
}

impl From<WaitStatus> for Exit {
    fn from(status: WaitStatus) -> Self {
        Self {
            code: status.exit_status(),
            signal: status.terminating_signal(),
        }
    }
}

/// The one that waits.
#[derive(Debug, Default)]
pub struct Reaper {
    waiting: Mutex<HashMap<i32, oneshot::Sender<Exit>>>,
}

impl Reaper {
    /// Starts collecting, until `closing`.
    ///
    /// # Errors
    /// SIGCHLD cannot be handled.
    pub fn start(tasks: &TaskTracker, closing: CancellationToken) -> io::Result<Arc<Self>> {
        let mut ended = signal(SignalKind::child())?;
        let reaper = Arc::new(Self::default());
        let this = Arc::clone(&reaper);
        tasks.spawn(async move {
            loop {
                this.collect();
                tokio::select! {
                    _ = ended.recv() => {}
                    () = closing.cancelled() => break,
                }
            }
        });
        Ok(reaper)
    }

    /// Spawns a child whose exit comes through the receiver.
    ///
    /// # Errors
    /// Those of fork and exec.
    pub fn spawn(
        &self,
        command: &mut Command,
    ) -> io::Result<(Child, Pid, oneshot::Receiver<Exit>)> {
        let mut waiting = self.lock();
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let (sender, receiver) = oneshot::channel();
        waiting.insert(pid.as_raw_nonzero().get(), sender);
        Ok((child, pid, receiver))
    }

    /// Collects all that ended so far; never blocks.
    pub fn collect(&self) {
        let mut waiting = self.lock();
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if let Some(waiter) = waiting.remove(&pid.as_raw_nonzero().get()) {
                        // Who lost interest does not mind.
                        let _ = waiter.send(status.into());
                    }
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Signals a child spawned here, and with `group` its whole process group, unless it ended.
    pub fn signal(&self, pid: Pid, signal: Signal, group: bool) {
        let waiting = self.lock();
        if waiting.contains_key(&pid.as_raw_nonzero().get()) {
            // It may be a zombie that is not collected yet.
            let _ = if group {
                kill_process_group(pid, signal)
            } else {
                kill_process(pid, signal)
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, oneshot::Sender<Exit>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
