//! Bringing OpenCode to rest.

use super::Drive;
use crate::agent::opencode::Activity;
use contract::event::StatusKind;
use std::time::Duration;
use tokio::time::Instant;

/// How long an aborted OpenCode may take to become idle. With the bounds below and the runner's grace
/// for a restart it fits into what the process has after SIGTERM.
const ABORT_BOUND: Duration = Duration::from_secs(8);
/// How long an OpenCode that has a prompt may stay idle before it counts as one that never begins.
const BEGIN_BOUND: Duration = Duration::from_secs(2);
/// How long one look at the stored messages may take after an abort.
const SETTLE_BOUND: Duration = Duration::from_secs(3);

impl Drive {
    /// Brings OpenCode to rest after a turn that did not end by itself: refuse what it asks for,
    /// abort, wait until idle, take over what it stored, kill what is left of the tools.
    pub(super) async fn stop(&mut self) {
        if !self.heard || self.process_gone() {
            return;
        }
        let idle = tokio::time::timeout(ABORT_BOUND, self.rest()).await.is_ok();
        if self.process_gone() {
            return;
        }
        let settled = async {
            if let Err(error) = self.settle().await {
                tracing::warn!(session_id = %self.session.id(), %error, "what OpenCode stored is not all recorded");
            }
            self.agent().opencode().read_models().await
        };
        let models = tokio::time::timeout(SETTLE_BOUND, settled).await;
        if models.is_err() {
            tracing::warn!(session_id = %self.session.id(), "stored messages were not read in time");
        }
        if !idle {
            let text = format!(
                "OpenCode did not come to rest within {} s of being told to stop",
                ABORT_BOUND.as_secs()
            );
            self.restart_agent(&text).await;
        } else if let Ok(Err(error)) = models
            && error.is_of_server()
        {
            self.restart_agent(&format!("OpenCode can run no turn any more: {error}"))
                .await;
        } else if self.app.store.running() <= 1 {
            self.agent().reap().await;
        }
    }

    /// Restarts OpenCode. Other turns end with it: one that nobody can stop, or that never works again,
    /// is worse.
    async fn restart_agent(&self, why: &str) {
        self.app.metrics.watch.restarted();
        let text = format!("{why}: it is restarted");
        if let Err(error) = self.emit_status(StatusKind::AgentRestarted, &text).await {
            tracing::warn!(session_id = %self.session.id(), %error, "readers are not told of a restart");
        }
        self.agent().restart(why).await;
    }

    /// Whether OpenCode's process that had the turn has ended, and the run with it.
    pub(super) fn process_gone(&self) -> bool {
        let state = self.agent().state();
        let state = state.borrow();
        self.process
            .is_some_and(|process| process != state.generation || state.ended)
    }

    /// Returns when OpenCode does nothing for this session any more.
    async fn rest(&mut self) {
        while !self.process_gone() {
            self.refuse_asks().await;
            if let Err(error) = self.agent().opencode().abort(self.oc_session()).await {
                tracing::warn!(session_id = %self.session.id(), %error, "abort was not answered");
            }
            if self.idle_within(Duration::from_secs(1)).await && !self.begins_late().await {
                // One may have been asked while the abort was on its way.
                return self.refuse_asks().await;
            }
        }
    }

    /// Whether OpenCode, which is idle, takes up the prompt only now: an abort that comes before it does
    /// stops nothing.
    async fn begins_late(&mut self) -> bool {
        let sent = self.session.state().delivered;
        if !sent || self.run.has_begun() || self.map.outcome().has_assistant {
            return false;
        }
        let late = tokio::time::timeout(BEGIN_BOUND, self.run.begins());
        late.await.is_ok()
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
