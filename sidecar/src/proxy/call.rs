//! One call on its way: counted, logged, recorded, whatever becomes of it. Never a body, never a key.

use super::{
    bindings::{Bound, TurnLink},
    breaker::{Breaker, Digest},
    code::Code,
    content::Content,
    ledger::{Entry, Exhausted, Ledger},
    meter::{Meter, Shape},
    observe::{self, Metrics, Observation, Observer, Outcome, What},
    refusal::Refusal,
    target::{Api, Target},
};
use crate::{
    audit::{AuditError, Counted, Ended, Started, Who},
    config::Config,
    keys::ProviderKeys,
};
use contract::{event::TurnError, spend::Price};
use std::{sync::Arc, time::Instant};

/// What all calls share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) metrics: Metrics,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) breaker: Arc<Breaker>,
    pub(crate) config: Config,
    pub(crate) keys: ProviderKeys,
}

/// A call under way. Dropping it counts, logs and records it; one that was never ended was aborted.
pub(crate) struct Call {
    shared: Shared,
    api: Api,
    who: Who,
    turn: Option<Arc<TurnLink>>,
    small: bool,
    price: Option<Price>,
    entry: Option<Entry>,
    meter: Meter,
    content: Option<Content>,
    digest: Option<Digest>,
    /// As the provider answered, or we.
    status: u16,
    /// Code of our refusal.
    refused: Option<Code>,
    bytes: u64,
    outcome: Outcome,
    started: Instant,
    /// The provider has the request, and did not begin to answer: it may bill it all the same.
    awaited: bool,
    recorded: bool,
}

impl Call {
    pub(crate) fn begin(api: Api, shared: &Shared) -> Self {
        shared.metrics.running.inc();
        Self {
            shared: shared.clone(),
            api,
            who: Who {
                api: api.id().to_owned(),
                ..Who::default()
            },
            turn: None,
            small: false,
            price: None,
            entry: None,
            meter: Meter::new(0, false),
            content: None,
            digest: None,
            status: 0,
            refused: None,
            bytes: 0,
            outcome: Outcome::Aborted,
            started: Instant::now(),
            awaited: false,
            recorded: false,
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Whose call it is; `bound`: what is known of that session.
    pub(crate) fn of_session(&mut self, session: Option<String>, bound: Option<&Bound>) {
        self.who.opencode_session = session;
        self.turn = bound.and_then(|bound| bound.turn.clone());
        if let Some(turn) = &self.turn {
            self.who.session = Some(turn.session.clone());
            self.who.turn = Some(turn.turn);
            self.who.author = Some(turn.author.chars().take(256).collect());
        }
    }

    /// What is called. `small`: for a title or a summary, on which no turn depends.
    pub(crate) fn of_target(&mut self, target: &Target, price: Option<Price>, small: bool) {
        self.who.provider = Some(target.place());
        self.who.model = Some(target.model.clone());
        self.price = price;
        self.small = small;
    }

    /// Keeps the beginning of request and answer for the audit log.
    pub(crate) fn with_content(&mut self, content: Content) {
        self.content = Some(content);
    }

    /// Asks budgets for leave for a request of so many bytes, and records its beginning. From here on it
    /// counts as a call.
    pub(crate) async fn admit(&mut self, digest: Digest, bytes: usize) -> Result<(), Refusal> {
        self.digest = Some(digest);
        self.meter = Meter::new(bytes, self.api == Api::Messages);
        let budget = self.shared.config.pod().limits.budget;
        let tokens = self.meter.tokens();
        let entry = self
            .shared
            .ledger
            .admit(tokens, self.price.as_ref(), &budget)
            .map_err(|exhausted| {
                self.shared.metrics.count_budget_stop(exhausted.which);
                Refusal::budget(&exhausted)
            })?;
        let counted = Counted::new(tokens, true, self.price.as_ref());
        let started = Started {
            call: entry.call,
            who: self.who.clone(),
            input_tokens: tokens.input.saturating_add(tokens.cache_write),
            cost_nano_usd: counted.cost_nano_usd,
        };
        // Before the wait: a caller that leaves meanwhile leaves a call that ends like any other.
        self.entry = Some(entry);
        match self.shared.ledger.start(started).await {
            Ok(()) => Ok(()),
            Err(AuditError::Full | AuditError::Failed) => {
                if let Some(entry) = self.entry.take() {
                    entry.cancel();
                }
                Err(Refusal::unrecorded())
            }
        }
    }

    /// The request goes to the provider now.
    pub(crate) fn sending(&mut self) {
        self.awaited = true;
    }

    /// The provider began to answer.
    pub(crate) fn answered(&mut self, status: u16) {
        // What it refuses it does not bill.
        self.awaited &= (200..300).contains(&status);
        self.status = status;
        self.tell(What::Upstream { status });
    }

    /// What follows is an answer of this shape.
    pub(crate) fn answers(&mut self, shape: Shape) {
        self.awaited = false;
        self.meter.answers(shape);
    }

    /// Counts bytes before they are passed on. The error means that they must not be: a budget is used
    /// up, and the turn ends.
    pub(crate) fn metered(&mut self, bytes: &[u8]) -> Result<(), Exhausted> {
        self.meter.feed(bytes);
        let Some(entry) = &self.entry else {
            return Ok(());
        };
        let budget = self.shared.config.pod().limits.budget;
        entry
            .update(self.meter.tokens(), self.price.as_ref(), &budget)
            .inspect_err(|exhausted| {
                self.outcome = Outcome::Budget;
                self.refused = Some(Code::BudgetExhausted);
                self.shared.metrics.count_budget_stop(exhausted.which);
                self.stop_turn(TurnError::BudgetExhausted, &exhausted.message());
            })
    }

    /// Bytes passed on.
    pub(crate) fn passed(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if let Some(content) = &mut self.content {
            content.answer(bytes);
        }
    }

    /// The answer arrived whole.
    pub(crate) fn completed(&mut self) {
        self.outcome = Outcome::of(self.status);
        // One that ends with an error is repeated with good reason.
        if let (Outcome::Ok, Some(digest)) = (self.outcome, &self.digest)
            && !self.meter.failed()
        {
            self.shared.breaker.answered(self.caller(), digest);
        }
    }

    /// It failed in a way that readers are told.
    pub(crate) fn failed(&mut self, what: What) {
        self.outcome = match &what {
            What::Upstream { status } => Outcome::of(*status),
            What::Timeout => Outcome::Timeout,
            What::Unreachable | What::Untrusted => Outcome::Unreachable,
            What::Cut => Outcome::Cut,
            What::KeyMissing { .. } | What::KeyForgotten => Outcome::Refused,
        };
        self.tell(what);
    }

    /// The proxy answers itself. Where OpenCode would go on all the same, the turn is ended.
    pub(crate) fn refused(&mut self, refusal: &Refusal) {
        if self.status == 0 {
            self.status = refusal.status.as_u16();
        }
        self.refused = Some(refusal.code);
        if self.outcome == Outcome::Aborted {
            self.outcome = match refusal.code {
                Code::BadAnswer => Outcome::Garbled,
                _ => Outcome::Refused,
            };
        }
        if let Some(code) = refusal.ends_turn
            && !(self.small
                && matches!(
                    code,
                    TurnError::ProviderGarbled | TurnError::ProviderUnreachable
                ))
        {
            self.stop_turn(code, refusal.message());
        }
    }

    /// OpenCode's session, for counting repeats.
    pub(crate) fn caller(&self) -> &str {
        self.who.opencode_session.as_deref().unwrap_or_default()
    }

    /// Records the end, and waits until that is durable. Not again by [`Drop`].
    pub(crate) async fn record(&mut self) {
        if let Some(durable) = self.settle() {
            durable.await;
        }
    }

    fn settle(&mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        if std::mem::replace(&mut self.recorded, true) {
            return None;
        }
        self.shared.metrics.running.dec();
        let whole = self.outcome == Outcome::Ok;
        let (mut tokens, mut estimated) = self.meter.finish(whole);
        if self.awaited
            && matches!(
                self.outcome,
                Outcome::Aborted | Outcome::Timeout | Outcome::Cut
            )
        {
            (tokens, estimated) = (self.meter.tokens(), true);
        }
        let entry = self.entry.take();
        let mut counted = Counted::default();
        if entry.is_some() {
            counted = Counted::new(tokens, estimated, self.price.as_ref());
        }
        let (api, outcome) = (self.api.id(), self.outcome.as_str());
        let took = self.started.elapsed();
        let metrics = &self.shared.metrics;
        metrics.count_call(api, self.outcome, took, &counted);
        self.shared.observer.ended(&observe::Ended {
            session: self.who.opencode_session.as_deref(),
            provider: self.api.vendor(),
            model: self.who.model.as_deref(),
            input_tokens: counted.sent(),
            output_tokens: counted.output_tokens,
            status: self.status,
            outcome,
            started: self.started,
        });
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            api,
            outcome,
            refused = self.refused.map_or("-", Code::as_str),
            session_id = self.who.session.as_deref().unwrap_or("-"),
            opencode_session = self.who.opencode_session.as_deref().unwrap_or("-"),
            provider = self.who.provider.as_deref().unwrap_or("-"),
            model = self.who.model.as_deref().unwrap_or("-"),
            status = self.status,
            bytes = self.bytes,
            input_tokens = counted.input_tokens,
            output_tokens = counted.output_tokens,
            cached_input_tokens = counted.cached_input_tokens,
            cache_write_tokens = counted.cache_write_tokens,
            estimated = counted.estimated,
            ms,
            "model call"
        );
        let call = entry.as_ref().map(|entry| entry.call);
        if let Some(entry) = entry {
            entry.settle(self.who.session.as_deref(), &counted);
        }
        let (request, answer) = self.content.take().map(Content::end).unwrap_or_default();
        self.shared.ledger.end(Ended {
            call,
            who: self.who.clone(),
            outcome: outcome.to_owned(),
            status: (self.status > 0).then_some(self.status),
            refused: self.refused.map(|code| code.as_str().to_owned()),
            tokens: counted,
            ms,
            not_written: 0,
            request,
            answer,
        })
    }

    fn stop_turn(&self, code: TurnError, message: &str) {
        if let Some(turn) = &self.turn {
            turn.stop(code, message);
        }
    }

    fn tell(&self, what: What) {
        self.shared.observer.observe(Observation {
            session: self.who.opencode_session.clone(),
            what,
        });
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // Nobody waits: the record is on its way all the same.
        drop(self.settle());
    }
}
