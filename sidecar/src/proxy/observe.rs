//! What others learn of model calls: news for a session's readers, and counters.

use super::breaker::Loop;
#[cfg(test)]
use super::target::Api;
use crate::audit::Counted;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use std::time::Duration;
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
    /// It showed a certificate of no known authority.
    Untrusted,
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

    /// A call ended, however it did.
    fn ended(&self, _call: &Ended<'_>) {}
}

/// A call that ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended<'a> {
    /// OpenCode's session, as the call named it: untrusted.
    pub(crate) session: Option<&'a str>,
    /// Whose way of calling it was, see [`Api::vendor`].
    pub(crate) provider: &'static str,
    /// `None`: it did not come so far.
    pub(crate) model: Option<&'a str>,
    /// Tokens sent, those read from a cache or written to one included; 0: the call counted for nothing.
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
    /// Of the answer; 0: none came.
    pub(crate) status: u16,
    /// Of a fixed list, see [`Outcome`].
    pub(crate) outcome: &'static str,
    pub(crate) started: std::time::Instant,
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
    /// Cut in mid-stream, because a budget was used up.
    Budget,
    /// A 2xx that is no answer of a model.
    Garbled,
}

impl Outcome {
    pub(super) fn as_str(self) -> &'static str {
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
            Self::Budget => "budget",
            Self::Garbled => "garbled",
        }
    }

    pub(super) fn of(status: u16) -> Self {
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
    pub(super) running: Gauge,
    echoes: Counter,
    tokens: Family<KindLabel, Counter>,
    cost: Counter,
    estimated: Counter,
    budget_stops: Family<BudgetLabel, Counter>,
    loop_stops: Family<LoopLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BudgetLabel {
    budget: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LoopLabel {
    reason: &'static str,
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
            tokens: Family::default(),
            cost: Counter::default(),
            estimated: Counter::default(),
            budget_stops: Family::default(),
            loop_stops: Family::default(),
        }
    }
}

impl Metrics {
    /// Registers them under the sidecar's prefix.
    pub(crate) fn register(&self, registry: &mut Registry) {
        // Each from the start: a rate needs a zero to rise from.
        for budget in ["tokens", "costUSD", "calls"] {
            drop(self.budget_stops.get_or_create(&BudgetLabel { budget }));
        }
        for reason in Loop::CODES {
            drop(self.loop_stops.get_or_create(&LoopLabel { reason }));
        }
        let calls = self.calls.clone();
        registry.register("model_calls", "Calls of models by API and outcome", calls);
        let help = "How long calls of models took, answer included, by API";
        registry.register("model_call_seconds", help, self.seconds.clone());
        let running = self.running.clone();
        registry.register("model_calls_running", "Calls of models under way", running);
        let help = "Keys starred in answers of providers";
        registry.register("model_key_echoes", help, self.echoes.clone());
        let help = "Tokens of model calls by kind";
        registry.register("model_tokens", help, self.tokens.clone());
        let help = "Cost of model calls that have a price, in nano-USD";
        registry.register("model_cost_nano_usd", help, self.cost.clone());
        let help = "Model calls whose tokens are estimated";
        registry.register("model_calls_estimated", help, self.estimated.clone());
        let help = "Model calls that were refused or cut because a budget is used up";
        registry.register("model_budget_stops", help, self.budget_stops.clone());
        let help = "Model calls that were refused as a loop";
        registry.register("model_loop_stops", help, self.loop_stops.clone());
    }

    /// A call ended.
    pub(super) fn count_call(
        &self,
        api: &'static str,
        outcome: Outcome,
        took: Duration,
        counted: &Counted,
    ) {
        let seconds = self.seconds.get_or_create(&ApiLabel { api });
        seconds.observe(took.as_secs_f64());
        let outcome = outcome.as_str();
        self.calls.get_or_create(&CallLabels { api, outcome }).inc();
        let kinds = [
            ("input", counted.input_tokens),
            ("output", counted.output_tokens),
            ("cached_input", counted.cached_input_tokens),
            ("cache_write", counted.cache_write_tokens),
        ];
        for (kind, tokens) in kinds.into_iter().filter(|(_, tokens)| *tokens > 0) {
            self.tokens
                .get_or_create(&KindLabel { kind })
                .inc_by(tokens);
        }
        self.cost.inc_by(counted.cost_nano_usd.unwrap_or(0));
        self.estimated.inc_by(u64::from(counted.estimated));
    }

    /// A budget stopped a call.
    pub(super) fn count_budget_stop(&self, budget: &'static str) {
        self.budget_stops
            .get_or_create(&BudgetLabel { budget })
            .inc();
    }

    /// A call was a loop.
    pub(super) fn count_loop_stop(&self, reason: &'static str) {
        self.loop_stops.get_or_create(&LoopLabel { reason }).inc();
    }

    #[cfg(test)]
    pub(crate) fn loop_stops(&self, reason: &'static str) -> u64 {
        self.loop_stops.get_or_create(&LoopLabel { reason }).get()
    }

    #[cfg(test)]
    pub(crate) fn budget_stops(&self, budget: &'static str) -> u64 {
        self.budget_stops
            .get_or_create(&BudgetLabel { budget })
            .get()
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
