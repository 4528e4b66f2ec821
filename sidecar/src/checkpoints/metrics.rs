//! Counters of checkpoints.

use super::Failure;
use contract::ErrorCode;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use std::time::Duration;

/// Codes that may come out; others count as `internal`.
const CODES: &[ErrorCode] = &[
    ErrorCode::AgentUnavailable,
    ErrorCode::CheckpointBlocked,
    ErrorCode::CheckpointDamaged,
    ErrorCode::CheckpointFailed,
    ErrorCode::CheckpointTooLarge,
    ErrorCode::Internal,
    ErrorCode::JournalUnavailable,
    ErrorCode::VolumeFull,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// What became of checkpoints.
#[derive(Debug)]
pub(crate) struct CheckpointMetrics {
    taken: Family<Outcome, Counter>,
    seconds: Histogram,
    restores: Family<Outcome, Counter>,
    pub(super) kept: Gauge,
    pub(super) store_bytes: Gauge,
}

impl CheckpointMetrics {
    pub(super) fn new() -> Self {
        let metrics = Self {
            taken: Family::default(),
            seconds: Histogram::new([0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 60.0, 300.0]),
            restores: Family::default(),
            kept: Gauge::default(),
            store_bytes: Gauge::default(),
        };
        let failed = CODES.iter().map(|code| code.as_str());
        for outcome in ["ok", "mixed"].into_iter().chain(failed.clone()) {
            drop(metrics.taken.get_or_create(&Outcome { outcome }));
        }
        for outcome in ["ok"].into_iter().chain(failed) {
            drop(metrics.restores.get_or_create(&Outcome { outcome }));
        }
        metrics
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "checkpoints",
            "Checkpoints that were wanted: ok, mixed with a turn that ran, or the code of their failure",
            self.taken.clone(),
        );
        registry.register(
            "checkpoint_seconds",
            "How long checkpoints took that were taken",
            self.seconds.clone(),
        );
        registry.register(
            "checkpoint_restores",
            "Restores of the workspace: ok, or the code of their failure",
            self.restores.clone(),
        );
        registry.register(
            "checkpoints_kept",
            "Checkpoints that there are",
            self.kept.clone(),
        );
        registry.register(
            "checkpoint_store_bytes",
            "Size of the checkpoints' store when last heard of",
            self.store_bytes.clone(),
        );
    }

    pub(super) fn taken(&self, mixed: bool, took: Duration) {
        let outcome = if mixed { "mixed" } else { "ok" };
        self.taken.get_or_create(&Outcome { outcome }).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub(super) fn failed(&self, failure: &Failure) {
        self.taken.get_or_create(&outcome(failure)).inc();
    }

    pub(super) fn restored(&self, done: Result<(), &Failure>) {
        let outcome = match done {
            Ok(()) => Outcome { outcome: "ok" },
            Err(failure) => outcome(failure),
        };
        self.restores.get_or_create(&outcome).inc();
    }
}

fn outcome(failure: &Failure) -> Outcome {
    let known = CODES.iter().find(|code| **code == failure.code);
    Outcome {
        outcome: known.unwrap_or(&ErrorCode::Internal).as_str(),
    }
}
