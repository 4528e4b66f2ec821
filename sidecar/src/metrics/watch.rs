//! What watchdog and approvals did.

use crate::{agent::supervisor::Why, store::session::Settle, watchdog::Cause};
use contract::{approval::Decision, event::DecidedBy};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};
use std::time::Duration;

/// Labels of an answered ask.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answer {
    decision: &'static str,
    by: &'static str,
}

/// Label of a finding.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Found {
    cause: &'static str,
}

/// Label of a restart while nothing runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Recycled {
    why: &'static str,
}

/// Counters of watchdog and approvals. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct WatchMetrics {
    approvals: Family<Answer, Counter>,
    found: Family<Found, Counter>,
    restarts: Counter,
    recycles: Family<Recycled, Counter>,
    away_seconds: Histogram,
}

impl Default for WatchMetrics {
    fn default() -> Self {
        Self {
            approvals: Family::default(),
            found: Family::default(),
            restarts: Counter::default(),
            recycles: Family::default(),
            away_seconds: Histogram::new([0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 60.0]),
        }
    }
}

impl WatchMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "approvals",
            "Tool calls that were decided about, by decision and by what decided",
            self.approvals.clone(),
        );
        registry.register(
            "watchdog_findings",
            "What the watchdog saw, by cause",
            self.found.clone(),
        );
        registry.register(
            "watchdog_restarts",
            "Restarts of OpenCode because it did not come to rest, did not answer or could run no turn any more",
            self.restarts.clone(),
        );
        registry.register(
            "opencode_recycles",
            "Restarts of OpenCode while no turn ran, by why",
            self.recycles.clone(),
        );
        registry.register(
            "opencode_away_seconds",
            "From a stop of OpenCode by the sidecar to its being ready again",
            self.away_seconds.clone(),
        );
        for cause in Cause::ALL {
            let cause = cause.label();
            drop(self.found.get_or_create(&Found { cause }));
        }
        for why in Why::ALL {
            let why = why.label();
            drop(self.recycles.get_or_create(&Recycled { why }));
        }
        for decision in [Decision::Once, Decision::Reject] {
            for by in [
                DecidedBy::Caller,
                DecidedBy::Policy,
                DecidedBy::Consent,
                DecidedBy::Deadline,
                DecidedBy::Agent,
            ] {
                drop(self.approvals.get_or_create(&answer(decision, by)));
            }
        }
    }

    /// The watchdog saw something.
    pub(crate) fn found(&self, cause: Cause) {
        let cause = cause.label();
        self.found.get_or_create(&Found { cause }).inc();
    }

    /// OpenCode is restarted because nothing else helps.
    pub(crate) fn restarted(&self) {
        self.restarts.inc();
    }

    /// OpenCode is restarted while nothing runs.
    pub(crate) fn recycled(&self, why: Why) {
        let why = why.label();
        self.recycles.get_or_create(&Recycled { why }).inc();
    }

    /// OpenCode is back after so long.
    pub(crate) fn back(&self, after: Duration) {
        self.away_seconds.observe(after.as_secs_f64());
    }

    /// An ask was settled.
    pub(crate) fn settled(&self, settle: &Settle) {
        let answer = answer(settle.decision, settle.decided);
        self.approvals.get_or_create(&answer).inc();
    }
}

fn answer(decision: Decision, by: DecidedBy) -> Answer {
    Answer {
        decision: match decision {
            Decision::Once | Decision::Always => "approved",
            Decision::Reject => "rejected",
        },
        by: match by {
            DecidedBy::Caller => "caller",
            DecidedBy::Policy => "policy",
            DecidedBy::Consent => "consent",
            DecidedBy::Deadline => "deadline",
            DecidedBy::Agent => "agent",
        },
    }
}
