//! Counts for Prometheus. Labels are of fixed lists: never a name, never free text.

use crds::session::status::Phase;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

/// All counts; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    rounds: Histogram,
    errors: Family<Reason, Counter>,
    unparsable: Counter,
    deleted: Family<Reason, Counter>,
    sessions: Family<PhaseLabel, Gauge>,
    phases: Arc<Mutex<HashMap<String, Phase>>>,
    leader: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let rounds = Histogram::new([0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 20.0]);
        let errors = Family::default();
        let unparsable = Counter::default();
        let deleted = Family::default();
        let sessions = Family::<PhaseLabel, Gauge>::default();
        let leader = Gauge::default();
        let mut registry = Registry::with_prefix("opencode_operator");
        registry.register("reconcile_seconds", "Duration of rounds", rounds.clone());
        registry.register(
            "reconcile_errors",
            "Rounds that failed, by reason",
            errors.clone(),
        );
        registry.register(
            "unparsable_objects",
            "Objects from a watch that could not be parsed and were passed over",
            unparsable.clone(),
        );
        registry.register(
            "pods_deleted",
            "Pods deleted by the operator, by reason",
            deleted.clone(),
        );
        registry.register("sessions", "Sessions by phase", sessions.clone());
        registry.register(
            "leader",
            "1 while this process is the leader",
            leader.clone(),
        );
        for phase in Phase::ALL {
            // Every phase is shown from the start, with 0.
            drop(sessions.get_or_create(&PhaseLabel {
                phase: phase.as_str(),
            }));
        }
        Self {
            registry: Arc::new(registry),
            rounds,
            errors,
            unparsable,
            deleted,
            sessions,
            phases: Arc::default(),
            leader,
        }
    }
}

impl Metrics {
    /// A round ended.
    pub fn round(&self, took: Duration) {
        self.rounds.observe(took.as_secs_f64());
    }

    /// A round failed.
    pub fn error(&self, reason: crate::reason::Reason) {
        let reason = reason.as_str();
        self.errors.get_or_create(&Reason { reason }).inc();
    }

    /// An object could not be parsed.
    pub fn unparsable(&self) {
        self.unparsable.inc();
    }

    /// The operator deleted a pod.
    pub fn pod_deleted(&self, reason: crate::reason::Reason) {
        let reason = reason.as_str();
        self.deleted.get_or_create(&Reason { reason }).inc();
    }

    /// Whether this process leads.
    pub fn leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// A session is in this phase now; `None`: it is gone.
    pub fn phase(&self, session_uid: &str, phase: Option<Phase>) {
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match phase {
            Some(phase) => phases.insert(session_uid.to_owned(), phase),
            None => phases.remove(session_uid),
        };
        if before == phase {
            return;
        }
        let gauge = |phase: Phase| {
            self.sessions
                .get_or_create(&PhaseLabel {
                    phase: phase.as_str(),
                })
                .clone()
        };
        if let Some(before) = before {
            gauge(before).dec();
        }
        if let Some(phase) = phase {
            gauge(phase).inc();
        }
    }

    /// The text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_counts_in_one_phase_only() {
        let metrics = Metrics::default();
        metrics.phase("a", Some(Phase::Starting));
        metrics.phase("a", Some(Phase::Ready));
        metrics.phase("b", Some(Phase::Ready));
        metrics.phase("b", None);
        let text = metrics.text();
        assert!(
            text.contains("opencode_operator_sessions{phase=\"Ready\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("opencode_operator_sessions{phase=\"Starting\"} 0"),
            "{text}"
        );
    }
}
