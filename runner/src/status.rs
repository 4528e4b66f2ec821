//! The state that watchers see: every change in order, none merged away.

use contract::runner::{Isolation, Phase, State};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::broadcast;

/// Changes that a slow watcher may be behind before it gets the newest state instead.
const BEHIND: usize = 64;

/// Current state and its watchers.
#[derive(Debug)]
pub struct Status {
    state: Mutex<State>,
    changes: broadcast::Sender<State>,
}

impl Status {
    /// Stopped, generation 0, under a new random id.
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            generation: 0,
            runner_id: random_hex(),
            phase: Phase::Stopped,
            isolation: None,
        };
        Self {
            state: Mutex::new(state),
            changes: broadcast::Sender::new(BEHIND),
        }
    }

    /// The state now.
    #[must_use]
    pub fn get(&self) -> State {
        self.lock().clone()
    }

    /// The state now and, without a hole between, what follows.
    #[must_use]
    pub fn watch(&self) -> (State, broadcast::Receiver<State>) {
        let state = self.lock();
        (state.clone(), self.changes.subscribe())
    }

    /// A new generation with its first phase and, if that is known, what is refused to it.
    pub fn begin(&self, phase: Phase, isolation: Option<Isolation>) -> u64 {
        let mut state = self.lock();
        state.generation += 1;
        state.phase = phase;
        state.isolation = isolation;
        self.publish(&state);
        state.generation
    }

    /// What is refused to `generation`; too late for it if another began.
    pub fn isolated(&self, generation: u64, isolation: Isolation) {
        let mut state = self.lock();
        if state.generation == generation {
            state.isolation = Some(isolation);
            self.publish(&state);
        }
    }

    /// Changes the phase of `generation`; too late for it if another began.
    pub fn set(&self, generation: u64, phase: Phase) {
        let mut state = self.lock();
        if state.generation == generation && state.phase != phase {
            state.phase = phase;
            self.publish(&state);
        }
    }

    fn publish(&self, state: &State) {
        // Without watchers there is nobody to tell.
        let _ = self.changes.send(state.clone());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Status {
    fn default() -> Self {
        Self::new()
    }
}

/// 16 random hex digits.
pub(crate) fn random_hex() -> String {
    let mut bytes = [0_u8; 8];
    if getrandom::fill(&mut bytes).is_err() {
        // Only uniqueness among runners of one pod is needed.
        let nanos = jiff::Timestamp::now().as_nanosecond();
        bytes = u64::try_from(nanos & i128::from(u64::MAX))
            .unwrap_or_default()
            .to_le_bytes();
    }
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_reaches_a_watcher_and_late_ones_are_dropped() {
        let status = Status::new();
        let (first, mut changes) = status.watch();
        assert_eq!((first.generation, first.phase), (0, Phase::Stopped));
        let one = status.begin(Phase::Running { pid: 41 }, None);
        status.set(one, Phase::Stopped);
        status.set(one, Phase::Stopped);
        let two = status.begin(Phase::Running { pid: 43 }, None);
        status.set(one, Phase::Stopped);
        status.isolated(one, Isolation::default());
        assert_eq!(status.get().isolation, None);
        let seen: Vec<_> = std::iter::from_fn(|| changes.try_recv().ok())
            .map(|s| (s.generation, s.phase))
            .collect();
        assert_eq!(
            seen,
            [
                (1, Phase::Running { pid: 41 }),
                (1, Phase::Stopped),
                (2, Phase::Running { pid: 43 })
            ]
        );
        assert_eq!(two, 2);
        assert_ne!(Status::new().get().runner_id, first.runner_id);
    }
}
