//! What Prometheus may ask. Labels are of small fixed sets: never names or free text.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use std::sync::Mutex;

/// Label of a turn's end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct End {
    end: &'static str,
}

/// All metrics of the process.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    turns: Family<End, Counter>,
    streams: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("opencode_sidecar");
        let turns = Family::<End, Counter>::default();
        let streams = Gauge::default();
        registry.register(
            "turns",
            "Turns that ended, by their last event",
            turns.clone(),
        );
        registry.register("streams", "Event streams open now", streams.clone());
        Self {
            registry: Mutex::new(registry),
            turns,
            streams,
        }
    }

    /// For parts that keep counters of their own.
    pub(crate) fn register(&self, with: impl FnOnce(&mut Registry)) {
        with(
            &mut self
                .registry
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
    }

    pub(crate) fn turn_ended(&self, end: &'static str) {
        self.turns.get_or_create(&End { end }).inc();
    }

    /// Counts a stream until the guard is dropped.
    pub(crate) fn stream(&self) -> StreamGuard {
        self.streams.inc();
        StreamGuard(self.streams.clone())
    }

    /// The text format.
    pub(crate) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        let registry = self
            .registry
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// An open stream.
pub(crate) struct StreamGuard(Gauge);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
