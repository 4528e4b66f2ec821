//! Stops loops of calls: too many in a minute, and the same request again and again.

use super::code::Code;
use contract::pod::Loops;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Sessions looked after at once: their ids come from OpenCode. The quietest is forgotten first.
const SESSIONS_MAX: usize = 4096;
const MINUTE: Duration = Duration::from_secs(60);

/// SHA-256 of a request's body.
pub(crate) type Digest = [u8; 32];

/// Who called how often.
#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    rates: HashMap<String, VecDeque<Instant>>,
    repeats: HashMap<String, Repeat>,
}

#[derive(Debug)]
struct Repeat {
    last: Digest,
    /// Calls with it that were answered, in a row.
    answered: u32,
    at: Instant,
}

/// Why a call is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loop {
    Rate(u32),
    Repeat(u32),
}

impl Loop {
    /// Labels of its metric: what [`Self::code`] says, as text.
    pub(crate) const CODES: [&str; 2] = [Code::CallsPerMinute.as_str(), Code::SameRequest.as_str()];

    /// Of its refusal.
    pub(crate) fn code(self) -> Code {
        match self {
            Self::Rate(_) => Code::CallsPerMinute,
            Self::Repeat(_) => Code::SameRequest,
        }
    }

    /// What happened and what to do.
    pub(crate) fn message(self) -> String {
        match self {
            Self::Rate(most) => format!(
                "the agent called the model more than {most} times in a minute (limits.loops.callsPerMinute), which \
                 looks like a loop: look at what it does, then send another prompt in a minute, or raise that limit"
            ),
            Self::Repeat(times) => format!(
                "the agent sent the same request to the model {times} times in a row (limits.loops.sameRequest), \
                 which looks like a loop: send another prompt, or raise that limit"
            ),
        }
    }
}

impl Breaker {
    /// Takes note of a call of `caller` (OpenCode's session, or none) that counts for `root`.
    pub(crate) fn check(
        &self,
        root: &str,
        caller: &str,
        digest: &Digest,
        loops: &Loops,
    ) -> Result<(), Loop> {
        let now = Instant::now();
        let mut tables = self.tables();
        let Tables { rates, repeats } = &mut *tables;
        forget(rates, |calls| calls.back().copied());
        let calls = rates.entry(root.to_owned()).or_default();
        while calls
            .front()
            .is_some_and(|at| now.duration_since(*at) >= MINUTE)
        {
            calls.pop_front();
        }
        if calls.len() >= loops.calls_per_minute as usize {
            return Err(Loop::Rate(loops.calls_per_minute));
        }
        calls.push_back(now);
        forget(repeats, |repeat| Some(repeat.at));
        let repeat = repeats.entry(caller.to_owned()).or_insert(Repeat {
            last: *digest,
            answered: 0,
            at: now,
        });
        repeat.at = now;
        if repeat.last != *digest {
            (repeat.last, repeat.answered) = (*digest, 0);
        } else if repeat.answered.saturating_add(1) >= loops.same_request.max(2) {
            return Err(Loop::Repeat(loops.same_request.max(2)));
        }
        Ok(())
    }

    /// A call was answered to its end. What failed is not told: OpenCode rightly tries it again.
    pub(crate) fn answered(&self, caller: &str, digest: &Digest) {
        if let Some(repeat) = self
            .tables()
            .repeats
            .get_mut(caller)
            .filter(|r| r.last == *digest)
        {
            repeat.answered = repeat.answered.saturating_add(1);
        }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Counters only: nothing is half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes room in a full table: whoever was silent for a minute goes, or else the quietest.
fn forget<T>(table: &mut HashMap<String, T>, last: impl Fn(&T) -> Option<Instant>) {
    if table.len() < SESSIONS_MAX {
        return;
    }
    let now = Instant::now();
    table.retain(|_, entry| last(entry).is_some_and(|at| now.duration_since(at) < MINUTE));
    if table.len() >= SESSIONS_MAX
        && let Some(quietest) = table
            .iter()
            .min_by_key(|(_, entry)| last(entry))
            .map(|(id, _)| id.clone())
    {
        table.remove(&quietest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPS: Loops = Loops {
        calls_per_minute: 10,
        same_request: 3,
    };

    #[tokio::test(start_paused = true)]
    async fn a_minutes_calls_are_counted_by_root() {
        let breaker = Breaker::default();
        for n in 0..10 {
            let caller = format!("child{n}");
            breaker.check("root", &caller, &[n; 32], &LOOPS).unwrap();
            tokio::time::advance(Duration::from_secs(5)).await;
        }
        assert_eq!(
            breaker.check("root", "x", &[99; 32], &LOOPS),
            Err(Loop::Rate(10))
        );
        breaker.check("other", "x", &[99; 32], &LOOPS).unwrap();
        tokio::time::advance(Duration::from_secs(11)).await;
        breaker.check("root", "x", &[98; 32], &LOOPS).unwrap();
        assert!(Loop::Rate(10).message().contains("callsPerMinute"));
    }

    #[tokio::test]
    async fn only_answered_repeats_in_a_row_are_a_loop() {
        let breaker = Breaker::default();
        let loops = Loops {
            calls_per_minute: 1000,
            ..LOOPS
        };
        let (same, other) = ([1; 32], [2; 32]);
        for _ in 0..50 {
            breaker.check("r", "s", &same, &loops).unwrap();
        }
        breaker.answered("s", &same);
        breaker.check("r", "s", &same, &loops).unwrap();
        breaker.answered("s", &same);
        assert_eq!(breaker.check("r", "s", &same, &loops), Err(Loop::Repeat(3)));
        breaker.check("r", "s2", &same, &loops).unwrap();
        breaker.check("r", "s", &other, &loops).unwrap();
        breaker.check("r", "s", &same, &loops).unwrap();
    }

    #[tokio::test]
    async fn a_flood_of_sessions_is_bounded() {
        let breaker = Breaker::default();
        for n in 0..SESSIONS_MAX + 100 {
            breaker
                .check(&n.to_string(), &n.to_string(), &[0; 32], &LOOPS)
                .unwrap();
        }
        assert!(breaker.tables().rates.len() <= SESSIONS_MAX);
        assert!(breaker.tables().repeats.len() <= SESSIONS_MAX);
    }
}
