//! Restarts that are due once nobody would be disturbed: for another configuration, for memory, for age.

use super::told::Told;
use crate::{
    agent::{router::Router, runner::Runner, timings::Timings},
    metrics::WatchMetrics,
    watchdog::{Cause, Finding, Patience},
};
use contract::runner::{Cgroup, Launch};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

/// Why OpenCode is started anew while nothing runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Configuration,
    Memory,
    Age,
}

impl Why {
    pub(crate) const ALL: [Self; 3] = [Self::Configuration, Self::Memory, Self::Age];

    /// Label of metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Memory => "memory",
            Self::Age => "age",
        }
    }

    /// For people.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Configuration => "its configuration changed",
            Self::Memory => "its container uses much memory and no turn runs",
            Self::Age => "it ran for long and no turn runs",
        }
    }
}

/// What is looked at. Clones share what they remember.
#[derive(Clone)]
pub(super) struct Due {
    pub(super) launch: watch::Receiver<Launch>,
    pub(super) patience: watch::Receiver<Patience>,
    pub(super) router: Router,
    pub(super) runner: Runner,
    pub(super) told: Told,
    pub(super) timings: Timings,
    pub(super) metrics: WatchMetrics,
    /// The fuse: a restart for memory did not help. Not again before memory was lower once.
    pub(super) in_vain: Arc<AtomicBool>,
}

impl Due {
    /// Waits until a restart is due for a process that began then, and nobody would be disturbed.
    pub(super) async fn wait(self, began: Instant) -> Why {
        let mut looked: Option<Instant> = None;
        let mut high = false;
        loop {
            sleep(self.timings.renew_every).await;
            let now = Instant::now();
            if looked.is_none_or(|looked| now - looked >= self.timings.memory_every) {
                looked = Some(now);
                high = self.memory(high).await;
            }
            let Some(why) = self.due(began, high).filter(|_| self.told.now().ready) else {
                continue;
            };
            // Whoever began a turn in this instant saw `ready` and subscribes now.
            self.told
                .not_ready(format!("{}: it starts anew", why.text()));
            sleep(self.timings.renew_pause).await;
            if let Some(why) = self.due(began, high) {
                if why == Why::Memory {
                    self.in_vain.store(true, Ordering::Relaxed);
                }
                return why;
            }
            self.told.change(|s| {
                s.ready = true;
                s.message = None;
            });
        }
    }

    /// How long OpenCode may not answer.
    pub(super) fn unwell_for(&self) -> Option<Duration> {
        self.patience.borrow().unwell_for
    }

    fn due(&self, began: Instant, high: bool) -> Option<Why> {
        if !self.router.is_idle() {
            return None;
        }
        let old = self.patience.borrow().recycle_after;
        if self.launch.has_changed().unwrap_or(false) {
            Some(Why::Configuration)
        } else if high && !self.in_vain.load(Ordering::Relaxed) {
            Some(Why::Memory)
        } else if old.is_some_and(|old| began.elapsed() >= old) {
            Some(Why::Age)
        } else {
            None
        }
    }

    /// Looks at the container's memory: whether it is above the soft limit. Tells running turns when it
    /// came to be so.
    async fn memory(&self, was_high: bool) -> bool {
        let Some(percent) = self.patience.borrow().memory_percent else {
            return false;
        };
        let cgroup = match self.runner.cgroup().await {
            Ok(cgroup) => cgroup,
            Err(error) => {
                tracing::debug!(%error, "the container's memory is not to be had");
                return was_high;
            }
        };
        let Some(used) = used(&cgroup) else {
            return false;
        };
        let high = used >= u64::from(percent);
        if high && !was_high {
            let text = format!(
                "the agent's container uses {used} % of its memory (limits.watchdog.memoryPercent is {percent}): \
                 OpenCode is restarted once no turn runs"
            );
            tracing::warn!(percent = used, "the agent's container uses much memory");
            self.metrics.found(Cause::Memory);
            self.router.notice(&Finding::new(Cause::Memory, text));
        }
        if !high {
            self.in_vain.store(false, Ordering::Relaxed);
        }
        high
    }
}

/// In per cent of the limit; nothing without one.
fn used(cgroup: &Cgroup) -> Option<u64> {
    let limit = cgroup.memory_limit_bytes.filter(|limit| *limit > 0)?;
    Some(
        u64::try_from(u128::from(cgroup.memory_bytes) * 100 / u128::from(limit))
            .unwrap_or(u64::MAX),
    )
}
