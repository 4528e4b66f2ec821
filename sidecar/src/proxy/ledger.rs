//! What calls used so far and what they may use: the pod's hard budget.
//!
//! Calls under way count with what is known of them at every chunk, so that a call is refused, or cut in
//! mid-stream, by what all calls together use. Sums come from the audit log and outlive a restart.

use crate::audit::{Audit, AuditError, Counted, Ended, Started, Totals};
use contract::spend::{AuditHead, Budget, Price, Spend, Tokens, usd};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Refusals written in a minute; whoever calls in vain must not push older records out of the log.
const REFUSALS_MAX: u32 = 60;
const MINUTE: Duration = Duration::from_secs(60);

/// All calls of the pod.
#[derive(Debug)]
pub(crate) struct Ledger {
    audit: Audit,
    books: Mutex<Books>,
}

#[derive(Debug)]
struct Books {
    settled: Spend,
    sessions: BTreeMap<String, Spend>,
    open: HashMap<u64, Spend>,
    next_call: u64,
    /// Refusals since then: written, and not written.
    refusals: (Instant, u32, u64),
}

/// Which budget is used up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exhausted {
    /// `tokens`, `costUSD` or `calls`.
    pub(crate) which: &'static str,
    used: String,
    limit: String,
    /// What the call would have needed at least, where something is left.
    needs: Option<String>,
}

impl Exhausted {
    /// What happened and what to do.
    pub(crate) fn message(&self) -> String {
        let Self {
            which,
            used,
            limit,
            needs,
        } = self;
        let needs = needs.as_ref().map_or_else(String::new, |needs| {
            format!(", and the next call needs about {needs} for its prompt alone")
        });
        format!(
            "the budget limits.budget.{which} of this pod is used up: {used} of {limit} used{needs}. Raise \
             spec.limits.budget.{which} (it works at once, without a restart), then send the prompt again"
        )
    }
}

/// A call that was admitted. It counts until it is settled.
#[derive(Debug)]
pub(crate) struct Entry {
    ledger: Arc<Ledger>,
    pub(crate) call: u64,
}

impl Ledger {
    /// Goes on with the sums of the log.
    pub(crate) fn new(audit: Audit, totals: Totals) -> Arc<Self> {
        let Totals {
            next_call,
            spend,
            sessions,
            open: _,
        } = totals;
        Arc::new(Self {
            audit,
            books: Mutex::new(Books {
                settled: spend,
                sessions: sessions
                    .into_iter()
                    .map(|(id, (_, spend))| (id, spend))
                    .collect(),
                open: HashMap::new(),
                next_call,
                refusals: (Instant::now(), 0, 0),
            }),
        })
    }

    /// Lets a call with this much input through, or says which budget does not allow it.
    pub(crate) fn admit(
        self: &Arc<Self>,
        tokens: Tokens,
        price: Option<&Price>,
        budget: &Budget,
    ) -> Result<Entry, Exhausted> {
        let spend = Counted::new(tokens, true, price).spend();
        let mut books = self.books();
        check_before(budget, &books.used(), &spend)?;
        let call = books.next_call;
        books.next_call += 1;
        books.open.insert(call, spend);
        Ok(Entry {
            ledger: Arc::clone(self),
            call,
        })
    }

    /// Records the beginning of a call; it must not be made where that fails.
    pub(crate) async fn start(&self, started: Started) -> Result<(), AuditError> {
        self.audit.start(started).await
    }

    /// Records an end or a refusal. What is returned resolves when it is durable. Of a flood of refusals
    /// most are only counted.
    pub(crate) fn end(&self, mut ended: Ended) -> Option<impl Future<Output = ()> + Send + use<>> {
        if ended.call.is_none() {
            let mut books = self.books();
            let (since, written, left_out) = &mut books.refusals;
            if since.elapsed() > MINUTE {
                (*since, *written) = (Instant::now(), 0);
            }
            if *written >= REFUSALS_MAX {
                *left_out += 1;
                return None;
            }
            *written += 1;
            ended.not_written = std::mem::take(left_out);
        }
        let durable = self.audit.end(ended);
        Some(async move {
            if !matches!(durable.await, Ok(Ok(()))) {
                tracing::error!(
                    "the end of a model call is not in the audit log: its volume is full or broken"
                );
            }
        })
    }

    /// What all calls used that ended.
    pub(crate) fn spend(&self) -> Spend {
        self.books().settled
    }

    /// The same of one session.
    pub(crate) fn spend_of(&self, session: &str) -> Spend {
        self.books()
            .sessions
            .get(session)
            .copied()
            .unwrap_or_default()
    }

    /// Where the audit log ends.
    pub(crate) fn head(&self) -> tokio::sync::watch::Receiver<Option<AuditHead>> {
        self.audit.head()
    }

    /// Returns when the audit log failed for good.
    pub(crate) async fn failed(&self) {
        self.audit.failed().await;
    }

    /// As if the log had failed.
    #[cfg(test)]
    pub(crate) fn fail(&self) {
        self.audit.fail();
    }

    /// Writes what waits. Blocks.
    pub(crate) fn close(&self) {
        self.audit.close();
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Sums only: nothing is half changed.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// Calls under way included.
    fn used(&self) -> Spend {
        let mut sum = self.settled;
        for spend in self.open.values() {
            sum += *spend;
        }
        sum
    }
}

impl Entry {
    /// What is known of the call now. The error is the budget that is used up by it: cut it.
    pub(crate) fn update(
        &self,
        tokens: Tokens,
        price: Option<&Price>,
        budget: &Budget,
    ) -> Result<(), Exhausted> {
        let mut books = self.ledger.books();
        books
            .open
            .insert(self.call, Counted::new(tokens, true, price).spend());
        check_within(budget, &books.used())
    }

    /// The call is over and used this.
    pub(crate) fn settle(self, session: Option<&str>, counted: &Counted) {
        let mut books = self.ledger.books();
        books.open.remove(&self.call);
        books.settled += counted.spend();
        if let Some(session) = session {
            *books.sessions.entry(session.to_owned()).or_default() += counted.spend();
        }
    }

    /// The call was not made after all.
    pub(crate) fn cancel(self) {
        self.ledger.books().open.remove(&self.call);
    }
}

fn check_before(budget: &Budget, used: &Spend, more: &Spend) -> Result<(), Exhausted> {
    let Budget {
        tokens,
        cost_nano_usd,
        calls,
    } = *budget;
    let beyond = |limit: Option<u64>, used: u64, more: u64| {
        limit.filter(|limit| used >= *limit || used.saturating_add(more) > *limit)
    };
    if let Some(limit) = beyond(calls, used.calls, 1) {
        return Err(exhausted("calls", used.calls, limit, None, |n| {
            n.to_string()
        }));
    }
    if let Some(limit) = beyond(tokens, used.tokens(), more.tokens()) {
        return Err(exhausted(
            "tokens",
            used.tokens(),
            limit,
            Some(more.tokens()),
            |n| n.to_string(),
        ));
    }
    if let Some(limit) = beyond(cost_nano_usd, used.cost_nano_usd, more.cost_nano_usd) {
        let more = Some(more.cost_nano_usd);
        return Err(exhausted("costUSD", used.cost_nano_usd, limit, more, usd));
    }
    Ok(())
}

fn check_within(budget: &Budget, used: &Spend) -> Result<(), Exhausted> {
    let Budget {
        tokens,
        cost_nano_usd,
        calls: _,
    } = *budget;
    let beyond = |limit: Option<u64>, used: u64| limit.filter(|limit| used > *limit);
    if let Some(limit) = beyond(tokens, used.tokens()) {
        return Err(exhausted("tokens", used.tokens(), limit, None, |n| {
            n.to_string()
        }));
    }
    if let Some(limit) = beyond(cost_nano_usd, used.cost_nano_usd) {
        return Err(exhausted("costUSD", used.cost_nano_usd, limit, None, usd));
    }
    Ok(())
}

fn exhausted(
    which: &'static str,
    used: u64,
    limit: u64,
    needs: Option<u64>,
    words: impl Fn(u64) -> String,
) -> Exhausted {
    Exhausted {
        which,
        used: words(used),
        limit: words(limit),
        needs: needs.filter(|_| used < limit).map(&words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Bounds;

    fn ledger(dir: &std::path::Path) -> Arc<Ledger> {
        let (audit, totals) = Audit::open(dir, Bounds::default()).unwrap();
        Ledger::new(audit, totals)
    }

    fn tokens(input: u64, output: u64) -> Tokens {
        Tokens {
            input,
            output,
            ..Tokens::default()
        }
    }

    #[tokio::test]
    async fn each_budget_refuses_and_cuts_and_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path());
        let price = Price {
            model: "m".into(),
            input: 1_000_000,
            output: 2_000_000,
            cached_input: None,
            cache_write: None,
        };
        let budget = |tokens, cost, calls| Budget {
            tokens,
            cost_nano_usd: cost,
            calls,
        };
        let entry = ledger
            .admit(
                tokens(100, 0),
                Some(&price),
                &budget(Some(100), None, Some(1)),
            )
            .unwrap();
        // Another at the same time sees the first.
        for (budget, which) in [
            (budget(None, None, Some(1)), "calls"),
            (budget(Some(150), None, None), "tokens"),
            (budget(None, Some(150_000), None), "costUSD"),
        ] {
            let refused = ledger
                .admit(tokens(51, 0), Some(&price), &budget)
                .unwrap_err();
            assert_eq!(refused.which, which);
            let message = refused.message();
            assert!(
                message.contains(&format!("Raise spec.limits.budget.{which} ")),
                "{message}"
            );
            assert!(
                message.contains("100 of 150")
                    || message.contains("1 of 1")
                    || message.contains("0.0001 of 0.00015"),
                "{message}"
            );
        }
        entry
            .update(
                tokens(100, 50),
                Some(&price),
                &budget(Some(150), Some(200_000), None),
            )
            .unwrap();
        let cut = entry.update(
            tokens(100, 51),
            Some(&price),
            &budget(Some(150), None, None),
        );
        assert_eq!(cut.unwrap_err().which, "tokens");
        let cut = entry.update(
            tokens(100, 51),
            Some(&price),
            &budget(None, Some(200_000), None),
        );
        assert!(
            cut.unwrap_err()
                .message()
                .contains("0.000202 of 0.0002 used")
        );
        entry.settle(
            Some("heron"),
            &Counted::new(tokens(90, 10), false, Some(&price)),
        );
        assert_eq!(ledger.spend().tokens(), 100);
        assert_eq!(ledger.spend_of("heron").cost_nano_usd, 110_000);
        ledger
            .admit(tokens(1, 0), None, &budget(Some(101), None, None))
            .unwrap()
            .cancel();
        assert_eq!(ledger.spend().calls, 1);
    }

    /// Many at once: together they may use what is allowed and not a call more.
    #[tokio::test]
    async fn nobody_slips_through_beside_another() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path());
        let budget = Budget {
            tokens: Some(1000),
            ..Budget::default()
        };
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let ledger = Arc::clone(&ledger);
                std::thread::spawn(move || {
                    (0..50)
                        .filter_map(|_| ledger.admit(tokens(10, 0), None, &budget).ok())
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let admitted: Vec<Entry> = threads
            .into_iter()
            .flat_map(|t| t.join().unwrap())
            .collect();
        assert_eq!(admitted.len(), 100);
        // One chunk each at most beyond the end.
        let mut beyond = 0;
        for entry in &admitted {
            beyond += u32::from(entry.update(tokens(10, 1), None, &budget).is_err());
        }
        assert_eq!(beyond, 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_refusals_is_counted_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path());
        let written = (0..1000)
            .filter(|_| ledger.end(Ended::default()).is_some())
            .count();
        assert_eq!(written, 60);
        tokio::time::advance(MINUTE * 2).await;
        assert!(ledger.end(Ended::default()).is_some());
        ledger.close();
        let text = std::fs::read_to_string(dir.path().join("calls-000001.jsonl")).unwrap();
        assert!(text.contains("\"not_written\":940"), "{text}");
    }
}
