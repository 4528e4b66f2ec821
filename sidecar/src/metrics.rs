//! What Prometheus may ask. Labels are of small fixed sets: never names, ids or free text.
//!
//! A part that counts keeps its counters in a type of its own with `register(&mut Registry)`, called
//! once in `run`; what can be read off the state is read when somebody asks ([`Metrics::look`]).
//! Each metric needs a row in docs/metrics.md: a test fails when one lacks.

mod watch;

pub(crate) use watch::WatchMetrics;

use crate::app::App;
use contract::{
    EventBody,
    event::{Gap, GapReason, TurnError},
};
use journal::Health;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answer {
    method: &'static str,
    class: &'static str,
}

/// Kinds of tokens, in the order of [`tokens`].
const TOKENS: [&str; 5] = ["input", "output", "reasoning", "cache_read", "cache_write"];

/// All metrics of the process.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    turns: Family<Outcome, Counter>,
    turn_seconds: Histogram,
    turn_wait_seconds: Histogram,
    gaps: Family<Reason, Counter>,
    readers: Gauge,
    answers: Family<Answer, Counter>,
    sync_seconds: Histogram,
    /// Watchdog and approvals.
    pub(crate) watch: WatchMetrics,
    seen: Seen,
}

/// What is read off the state.
#[derive(Default)]
struct Seen {
    sessions: Gauge,
    turns_running: Gauge,
    turns_waiting: Gauge,
    approvals_waiting: Gauge,
    events: Counter,
    tokens: Family<Kind, Counter>,
    journal_bytes: Gauge,
    journal_queued_bytes: Gauge,
    journal_writable: Gauge,
    agent_ready: Gauge,
    opencode_starts: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("opencode_sidecar");
        let metrics = Self {
            turns: Family::default(),
            turn_seconds: Histogram::new([
                1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0,
            ]),
            turn_wait_seconds: Histogram::new([0.01, 0.05, 0.2, 1.0, 5.0, 20.0, 60.0, 300.0]),
            gaps: Family::default(),
            readers: Gauge::default(),
            answers: Family::default(),
            sync_seconds: Histogram::new([
                0.0002, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 5.0,
            ]),
            watch: WatchMetrics::default(),
            seen: Seen::default(),
            registry: Mutex::default(),
        };
        metrics.register_own(&mut registry);
        metrics.watch.register(&mut registry);
        metrics.seen.register(&mut registry);
        metrics.show_all();
        Self {
            registry: Mutex::new(registry),
            ..metrics
        }
    }

    fn register_own(&self, registry: &mut Registry) {
        registry.register(
            "turns",
            "Turns that ended: complete, cancelled, or the code of their error",
            self.turns.clone(),
        );
        registry.register(
            "turn_seconds",
            "How long turns took, from their start in this process",
            self.turn_seconds.clone(),
        );
        registry.register(
            "turn_wait_seconds",
            "How long turns waited for their key and for OpenCode before they were given to it",
            self.turn_wait_seconds.clone(),
        );
        registry.register(
            "gaps",
            "Readers that were told that events are no longer to be had, by reason",
            self.gaps.clone(),
        );
        registry.register("readers", "Event streams open now", self.readers.clone());
        registry.register(
            "http_answers",
            "Answers of the session API by method and class of status",
            self.answers.clone(),
        );
        registry.register(
            "journal_sync_seconds",
            "How long the journal's syncs took",
            self.sync_seconds.clone(),
        );
    }

    /// Every value of a label is shown from the start, with 0: a rate over a series that only just
    /// appeared misses its first step.
    fn show_all(&self) {
        for outcome in ["complete", "cancelled"]
            .into_iter()
            .chain(TurnError::ALL.iter().map(|error| error.as_str()))
        {
            drop(self.turns.get_or_create(&Outcome { outcome }));
        }
        for reason in [GapReason::Trimmed, GapReason::EpochChanged] {
            let reason = gap_reason(reason);
            drop(self.gaps.get_or_create(&Reason { reason }));
        }
        for kind in TOKENS {
            drop(self.seen.tokens.get_or_create(&Kind { kind }));
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

    /// A turn ended with this event after so long.
    pub(crate) fn turn_ended(&self, end: &EventBody, took: Duration) {
        let outcome = match end {
            EventBody::Complete(_) => "complete",
            EventBody::Error(error) => error.code.as_str(),
            _ => "cancelled",
        };
        self.turns.get_or_create(&Outcome { outcome }).inc();
        self.turn_seconds.observe(took.as_secs_f64());
    }

    /// A turn was given to OpenCode after so long.
    pub(crate) fn turn_waited(&self, waited: Duration) {
        self.turn_wait_seconds.observe(waited.as_secs_f64());
    }

    /// A reader was told of missing events.
    pub(crate) fn gap(&self, gap: &Gap) {
        let reason = gap_reason(gap.reason);
        self.gaps.get_or_create(&Reason { reason }).inc();
    }

    /// The API answered.
    pub(crate) fn answered(&self, method: &http::Method, status: http::StatusCode) {
        let method = match method.as_str() {
            "GET" => "GET",
            "POST" => "POST",
            "DELETE" => "DELETE",
            _ => "other",
        };
        let class = match status.as_u16() {
            ..=199 => "1xx",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            500.. => "5xx",
        };
        self.answers.get_or_create(&Answer { method, class }).inc();
    }

    /// To be told of each sync of the journal.
    pub(crate) fn sync_observer(&self) -> Box<dyn Fn(Duration) + Send + Sync> {
        let syncs = self.sync_seconds.clone();
        Box::new(move |took| syncs.observe(took.as_secs_f64()))
    }

    /// Counts a stream until the guard is dropped.
    pub(crate) fn stream(&self) -> StreamGuard {
        self.readers.inc();
        StreamGuard(self.readers.clone())
    }

    /// Reads off the state what is not counted as it happens. Reads the journal's folder: blocks.
    pub(crate) fn look(&self, app: &App) {
        let Seen {
            sessions,
            turns_running,
            turns_waiting,
            approvals_waiting,
            events,
            tokens: _,
            journal_bytes,
            journal_queued_bytes,
            journal_writable,
            agent_ready,
            opencode_starts,
        } = &self.seen;
        let all = app.store.all();
        let (mut running, mut waiting, mut approvals, mut queued, mut last) = (0, 0, 0, 0, 0);
        for session in &all {
            last += session.log().position().last;
            queued += session.log().queued_bytes();
            let state = session.state();
            approvals += state.asks.pending.len();
            if state.running.is_some() {
                running += 1;
                waiting += usize::from(!state.delivered);
            }
        }
        set(sessions, all.len());
        set(turns_running, running);
        set(turns_waiting, waiting);
        set(approvals_waiting, approvals);
        set(journal_queued_bytes, queued);
        raise(events, last);
        for (kind, count) in TOKENS.into_iter().zip(tokens(&app.store.usage())) {
            raise(&self.seen.tokens.get_or_create(&Kind { kind }), count);
        }
        set(journal_bytes, bytes_below(app.store.dir()));
        journal_writable.set(i64::from(*app.store.health().borrow() == Health::Ok));
        let agent = app.agent.state().borrow().clone();
        agent_ready.set(i64::from(agent.ready));
        raise(opencode_starts, u64::from(agent.starts));
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

impl Seen {
    fn register(&self, registry: &mut Registry) {
        let Self {
            sessions,
            turns_running,
            turns_waiting,
            approvals_waiting,
            events,
            tokens,
            journal_bytes,
            journal_queued_bytes,
            journal_writable,
            agent_ready,
            opencode_starts,
        } = self;
        for (name, help, gauge) in [
            ("sessions", "Sessions in the journal", sessions),
            ("turns_running", "Turns under way", turns_running),
            (
                "turns_waiting",
                "Turns under way that OpenCode was not given yet",
                turns_waiting,
            ),
            (
                "approvals_waiting",
                "Approvals that wait for somebody",
                approvals_waiting,
            ),
            (
                "journal_bytes",
                "Size of the journal on its volume",
                journal_bytes,
            ),
            (
                "journal_queued_bytes",
                "Size of what waits to be written to the journal",
                journal_queued_bytes,
            ),
            (
                "journal_writable",
                "1 while the journal takes entries",
                journal_writable,
            ),
            ("agent_ready", "1 while OpenCode answers", agent_ready),
        ] {
            registry.register(name, help, gauge.clone());
        }
        let help = "Events of all sessions since the journal began";
        registry.register("events", help, events.clone());
        let help = "Tokens of all sessions since the journal began, as OpenCode counts them";
        registry.register("tokens", help, tokens.clone());
        let help = "Starts of OpenCode since the pod began";
        registry.register("opencode_starts", help, opencode_starts.clone());
    }
}

fn gap_reason(reason: GapReason) -> &'static str {
    match reason {
        GapReason::Trimmed => "trimmed",
        GapReason::EpochChanged => "epoch_changed",
    }
}

fn tokens(usage: &contract::Usage) -> [u64; 5] {
    let contract::Usage {
        input_tokens,
        output_tokens,
        reasoning_tokens,
        cache_read_tokens,
        cache_write_tokens,
    } = *usage;
    [
        input_tokens,
        output_tokens,
        reasoning_tokens,
        cache_read_tokens,
        cache_write_tokens,
    ]
}

fn set(gauge: &Gauge, value: impl TryInto<i64>) {
    gauge.set(value.try_into().unwrap_or(i64::MAX));
}

/// To a value that never falls.
fn raise(counter: &Counter<u64, AtomicU64>, value: u64) {
    counter.inner().fetch_max(value, Ordering::Relaxed);
}

/// Size of the files in a folder and the folders in it; what vanishes meanwhile counts nothing.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
            Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |meta| meta.len()),
            Ok(_) | Err(_) => 0,
        })
        .sum()
}

/// An open stream.
pub(crate) struct StreamGuard(Gauge);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
