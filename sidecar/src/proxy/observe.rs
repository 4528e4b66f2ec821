//! What others learn of model calls: news for a session's readers, counters, one log line a call.
//! Never a body, never a key.

use super::target::Api;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use std::{sync::Arc, time::Instant};
use tokio::sync::mpsc;

/// News of a model call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Observation {
    /// OpenCode's session, as the call named it: untrusted.
    pub(crate) session: Option<String>,
    pub(crate) what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// The provider began to answer.
    Upstream { status: u16 },
    /// The provider was silent too long, before its answer or within it, and was cut.
    Timeout,
    /// No connection to the provider, or no HTTP answer from it.
    Unreachable,
    /// The provider's answer broke off.
    Cut,
    /// The mounted key of this provider is not there.
    KeyMissing { provider: String },
    /// The key that came with the session is gone since a restart.
    KeyForgotten,
}

/// Is told of model calls. Must not block: it is called between chunks.
pub(crate) trait Observer: Send + Sync {
    fn observe(&self, observation: Observation);
}

/// Bounded: what does not fit is dropped, calls never wait for readers.
impl Observer for mpsc::Sender<Observation> {
    fn observe(&self, observation: Observation) {
        if self.try_send(observation).is_err() {
            tracing::debug!("nobody takes news of model calls");
        }
    }
}

/// Nobody listens.
#[derive(Debug)]
pub(crate) struct Unobserved;

impl Observer for Unobserved {
    fn observe(&self, _: Observation) {}
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ApiLabel {
    api: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CallLabels {
    api: &'static str,
    outcome: &'static str,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Answered to the end with 2xx.
    Ok,
    /// Answered with another 4xx.
    ClientError,
    /// Answered with 429.
    RateLimited,
    /// Answered with 5xx.
    ServerError,
    /// Silent too long.
    Timeout,
    /// No HTTP answer.
    Unreachable,
    /// Broke off.
    Cut,
    /// Not passed on by the proxy.
    Refused,
    /// OpenCode went away.
    Aborted,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientError => "client_error",
            Self::RateLimited => "rate_limited",
            Self::ServerError => "server_error",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Cut => "cut",
            Self::Refused => "refused",
            Self::Aborted => "aborted",
        }
    }

    fn of(status: u16) -> Self {
        match status {
            429 => Self::RateLimited,
            400..=499 => Self::ClientError,
            500.. => Self::ServerError,
            _ => Self::Ok,
        }
    }
}

/// Counters of the proxy. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    calls: Family<CallLabels, Counter>,
    seconds: Family<ApiLabel, Histogram, fn() -> Histogram>,
    running: Gauge,
    echoes: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = Family::new_with_constructor(
            (|| Histogram::new([0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0]))
                as fn() -> Histogram,
        );
        Self {
            calls: Family::default(),
            seconds,
            running: Gauge::default(),
            echoes: Counter::default(),
        }
    }
}

impl Metrics {
    /// Registers them under the sidecar's prefix.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let calls = self.calls.clone();
        registry.register("model_calls", "Calls of models by API and outcome", calls);
        let help = "How long calls of models took, answer included, by API";
        registry.register("model_call_seconds", help, self.seconds.clone());
        let running = self.running.clone();
        registry.register("model_calls_running", "Calls of models under way", running);
        let help = "Keys starred in answers of providers";
        registry.register("model_key_echoes", help, self.echoes.clone());
    }

    /// Keys that were starred.
    pub(crate) fn count_echoes(&self, count: u64) {
        self.echoes.inc_by(count);
    }

    #[cfg(test)]
    pub(crate) fn calls(&self, api: Api, outcome: Outcome) -> u64 {
        let (api, outcome) = (api.id(), outcome.as_str());
        self.calls.get_or_create(&CallLabels { api, outcome }).get()
    }
}

/// A call under way. Dropping it counts and logs it; one that was never ended was aborted.
pub(crate) struct Call {
    api: Api,
    session: Option<String>,
    model: Option<String>,
    status: u16,
    bytes: u64,
    outcome: Outcome,
    started: Instant,
    metrics: Metrics,
    observer: Arc<dyn Observer>,
}

impl Call {
    pub(crate) fn begin(api: Api, metrics: &Metrics, observer: &Arc<dyn Observer>) -> Self {
        metrics.running.inc();
        Self {
            api,
            session: None,
            model: None,
            status: 0,
            bytes: 0,
            outcome: Outcome::Aborted,
            started: Instant::now(),
            metrics: metrics.clone(),
            observer: Arc::clone(observer),
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn of_session(&mut self, session: Option<String>) {
        self.session = session;
    }

    pub(crate) fn of_model(&mut self, label: String) {
        self.model = Some(label);
    }

    /// The provider began to answer.
    pub(crate) fn answered(&mut self, status: u16) {
        self.status = status;
        self.tell(What::Upstream { status });
    }

    /// Bytes passed on.
    pub(crate) fn passed(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// The answer arrived whole.
    pub(crate) fn completed(&mut self) {
        self.outcome = Outcome::of(self.status);
    }

    /// It failed in a way that readers are told.
    pub(crate) fn failed(&mut self, what: What) {
        self.outcome = match &what {
            What::Upstream { status } => Outcome::of(*status),
            What::Timeout => Outcome::Timeout,
            What::Unreachable => Outcome::Unreachable,
            What::Cut => Outcome::Cut,
            What::KeyMissing { .. } | What::KeyForgotten => Outcome::Refused,
        };
        self.tell(what);
    }

    /// The proxy answered itself.
    pub(crate) fn refused(&mut self, status: u16) {
        self.status = status;
        if self.outcome == Outcome::Aborted {
            self.outcome = Outcome::Refused;
        }
    }

    fn tell(&self, what: What) {
        self.observer.observe(Observation {
            session: self.session.clone(),
            what,
        });
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.metrics.running.dec();
        let (api, outcome) = (self.api.id(), self.outcome.as_str());
        let labels = CallLabels { api, outcome };
        self.metrics.calls.get_or_create(&labels).inc();
        let took = self.started.elapsed();
        let seconds = self.metrics.seconds.get_or_create(&ApiLabel { api });
        seconds.observe(took.as_secs_f64());
        tracing::info!(
            api,
            outcome,
            opencode_session = self.session.as_deref().unwrap_or("-"),
            model = self.model.as_deref().unwrap_or("-"),
            status = self.status,
            bytes = self.bytes,
            ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "model call"
        );
    }
}
