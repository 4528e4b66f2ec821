//! The watchdog's side of a turn: what is looked at, and what follows.

use super::{Drive, End};
use crate::{
    agent::opencode::Activity,
    store::session::JournalError,
    watchdog::{Cause, Finding},
};
use contract::{
    EventBody,
    event::{ErrorEvent, MAIN_AGENT},
    pod::Watchdog,
};
use std::time::Duration;
use tokio::time::Instant;

/// Meaningless answers of the provider in a row that end a turn: OpenCode would ask for ever.
const UNKNOWN_FINISHES: u32 = 3;

impl Drive {
    fn bounds(&self) -> Watchdog {
        self.app.config.pod().limits.watchdog.clone()
    }

    /// What is to be seen after every event.
    pub(super) fn loops(&self) -> Option<Finding> {
        if self.map.unknown_finishes() >= UNKNOWN_FINISHES {
            return Some(Finding::new(
                Cause::Garbled,
                "the provider's answers made no sense several times in a row (no valid stream, or one \
                 that stops without a reason); check providers[].endpoint and what stands between",
            ));
        }
        self.watch.loops(&self.bounds())
    }

    /// How soon to look again at a turn that works.
    pub(super) fn next_look(&self, most: Duration) -> Duration {
        self.watch.next_look(&self.bounds(), most)
    }

    /// Looks for what hangs in a turn that OpenCode says it works at.
    pub(super) async fn hangs(&mut self, activity: Activity) -> Option<Finding> {
        let bounds = self.bounds();
        let now = Instant::now();
        let asking: Vec<Option<String>> = {
            let state = self.session.state();
            let pending = state.asks.list(self.session.id());
            pending.into_iter().map(|ask| ask.call_id).collect()
        };
        if activity == Activity::Retry || !asking.is_empty() {
            self.watch.excused(now);
        }
        for call in asking.into_iter().flatten() {
            self.watch.asks(&call, now);
        }
        if self.watch.wants_tools(&bounds, now) {
            let trees = match self.agent().tools().await {
                Ok(trees) => Some(trees),
                Err(error) => {
                    tracing::debug!(%error, "what tools use is not to be had");
                    None
                }
            };
            self.watch.tools_used(trees.as_deref(), Instant::now());
        }
        self.watch.hangs(&bounds, Instant::now())
    }

    /// Tells readers what was seen.
    pub(super) async fn notice(&self, finding: &Finding, step: &str) -> Result<(), JournalError> {
        let body = EventBody::Status(finding.status(step));
        self.session
            .emit(self.number, [(MAIN_AGENT.to_owned(), body)])
            .await
    }

    /// First step of what follows: it is counted and told. The caller stops the turn.
    pub(super) async fn found(&self, finding: Finding) -> Result<End, JournalError> {
        tracing::warn!(session_id = %self.session.id(), turn = self.number, cause = finding.cause.label(), finding.text, "the watchdog ends a turn");
        self.app.metrics.watch.found(finding.cause);
        self.notice(&finding, "abort").await?;
        // What OpenCode said itself tells more than that it did not stop.
        let own = self.map.outcome().error;
        Ok(match own.filter(|_| finding.cause == Cause::NoEnd) {
            Some(error) => End::Failed(ErrorEvent {
                error: format!("{}; {}", error.error, finding.text),
                ..error
            }),
            None => End::failed(finding.cause.code(), finding.text),
        })
    }
}
