//! Bringing OpenCode to rest.

use super::Drive;
use crate::agent::opencode::Activity;
use contract::event::StatusKind;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// How long an aborted OpenCode may take to become idle. With the bound below, five seconds for a restart
/// and the checkpoint it fits into what turns have after SIGTERM (`TURNS_END`, 17 s).
const ABORT_BOUND: Duration = Duration::from_secs(8);
/// How long an OpenCode that has a prompt may stay idle before it counts as one that never begins.
const BEGIN_BOUND: Duration = Duration::from_secs(4);
/// How long one look at the stored messages, and at what OpenCode keeps for life, may take after that.
const SETTLE_BOUND: Duration = Duration::from_secs(3);

impl Drive {
    /// Brings OpenCode to rest after a turn that did not end by itself: refuse what it asks for,
    /// abort, wait until idle, take over what it stored, kill what is left of the tools.
    pub(super) async fn stop(&mut self) {
        if !self.heard || self.process_gone() {
            return;
        }
        let generation = self.agent().state().borrow().generation;
        let until = Instant::now() + ABORT_BOUND;
        let idle = timeout_at(until, self.rest(until)).await.is_ok();
        if self.process_gone() {
            return;
        }
        let opencode = self.agent().opencode().clone();
        let (settled, kept) = tokio::join!(
            timeout(SETTLE_BOUND, self.settle()),
            timeout(SETTLE_BOUND, opencode.prepare()),
        );
        let session_id = self.session.id();
        match settled {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%session_id, %error, "what OpenCode stored is not all recorded");
            }
            Err(_) => tracing::warn!(%session_id, "stored messages were not read in time"),
        }
        if !idle {
            let text = format!(
                "OpenCode did not come to rest within {} s of being told to stop",
                ABORT_BOUND.as_secs()
            );
            self.restart_agent(generation, &text).await;
        } else if let Ok(Err(error)) = kept
            && error.is_spoilt()
        {
            tracing::error!(%session_id, %error, "OpenCode keeps a failure for life");
            self.restart_agent(generation, "OpenCode can run no turn any more")
                .await;
        } else if self.app.store.running() <= 1 {
            self.agent().reap().await;
        }
    }

    /// Restarts OpenCode. Other turns end with it: one that nobody can stop, or that never works again,
    /// is worse.
    async fn restart_agent(&self, generation: u64, why: &str) {
        self.app.metrics.watch.restarted();
        let text = format!("{why}: it is restarted");
        if let Err(error) = self.emit_status(StatusKind::AgentRestarted, &text).await {
            tracing::warn!(session_id = %self.session.id(), %error, "readers are not told of a restart");
        }
        self.agent().restart(generation, why).await;
    }

    /// Whether OpenCode's process that had the turn has ended, and the run with it.
    pub(super) fn process_gone(&self) -> bool {
        let state = self.agent().state();
        let state = state.borrow();
        self.process
            .is_some_and(|process| process != state.generation || state.ended)
    }

    /// Returns when OpenCode does nothing for this session any more, and will not begin to.
    async fn rest(&mut self, until: Instant) {
        while !self.process_gone() {
            self.refuse_asks().await;
            // Before the abort: one that comes before the run does stops nothing.
            let begun = self.begun();
            if let Err(error) = self.agent().opencode().abort(self.oc_session()).await {
                tracing::warn!(session_id = %self.session.id(), %error, "abort was not answered");
            }
            if self.idle_within(Duration::from_secs(1)).await
                && (begun || !self.begins_late(until).await)
            {
                // One may have been asked while the abort was on its way.
                return self.refuse_asks().await;
            }
        }
    }

    /// Whether OpenCode took up the prompt, or never had it.
    fn begun(&self) -> bool {
        let sent = self.session.state().delivered;
        !sent || self.run.has_begun() || self.map.outcome().has_assistant
    }

    /// Whether OpenCode, which is idle, takes up the prompt only now.
    async fn begins_late(&mut self, until: Instant) -> bool {
        // Some time is left for what follows.
        let most = until - Duration::from_millis(500);
        let deadline = most.min(Instant::now() + BEGIN_BOUND);
        while Instant::now() < deadline {
            tokio::select! {
                () = self.run.begins() => return true,
                // The stream may have lost its begin.
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
            let activity = self.agent().opencode().activity(self.oc_session()).await;
            if matches!(activity, Ok(Activity::Busy | Activity::Retry)) {
                return true;
            }
        }
        false
    }

    async fn idle_within(&self, bound: Duration) -> bool {
        let deadline = Instant::now() + bound;
        loop {
            match self.agent().opencode().activity(self.oc_session()).await {
                Ok(Activity::Idle) => return true,
                Ok(Activity::Busy | Activity::Retry) => {}
                Err(error) => tracing::debug!(%error, "OpenCode's status is not to be had"),
            }
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
