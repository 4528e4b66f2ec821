//! What watchdog and approvals did.

use crate::store::session::Settle;
use contract::{approval::Decision, event::DecidedBy};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Labels of an answered ask.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answer {
    decision: &'static str,
    by: &'static str,
}

/// Counters of watchdog and approvals.
#[derive(Debug, Default)]
pub(crate) struct WatchMetrics {
    approvals: Family<Answer, Counter>,
}

impl WatchMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "approvals",
            "Tool calls that were decided about, by decision and by what decided",
            self.approvals.clone(),
        );
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
