//! The pod's turn lock: who works on the workspace now. Turns share it; a checkpoint wants them out, but
//! not at any price; a restore has it alone.

use std::time::Duration;
use tokio::{sync::watch, time::Instant};

/// Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Gate(watch::Sender<State>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Turns that work.
    working: u32,
    held: Option<Held>,
    /// A turn worked while it was held.
    touched: bool,
    /// Turns and restores that ever came to the workspace.
    entered: u64,
}

/// Why turns wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// A checkpoint is being taken.
    Taking,
    /// The workspace becomes what it was.
    Restoring,
}

/// A turn that works, until it is dropped.
#[derive(Debug)]
pub(crate) struct Working(Gate);

/// The gate held, until it is dropped.
#[derive(Debug)]
pub(crate) struct Holding(Gate);

impl Gate {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::default())
    }

    /// A turn begins to work. It waits while the workspace is restored, and at most `patience` for a
    /// checkpoint. Cancel safe.
    pub(crate) async fn enter(&self, patience: Duration) -> Working {
        let deadline = Instant::now() + patience;
        let mut news = self.0.subscribe();
        loop {
            let patient = Instant::now() < deadline;
            let mut entered = false;
            self.0.send_if_modified(|state| {
                entered = match state.held {
                    None => true,
                    Some(Held::Taking) => !patient,
                    Some(Held::Restoring) => false,
                };
                if entered {
                    state.working += 1;
                    state.entered += 1;
                    state.touched = true;
                }
                entered
            });
            if entered {
                return Working(self.clone());
            }
            tokio::select! {
                // The sender lives as long as `self`.
                _ = news.wait_for(|state| state.held.is_none()) => {}
                () = tokio::time::sleep_until(deadline), if patient => {}
            }
        }
    }

    /// Holds turns back, but for those that work already. Only one may hold the gate at a time: callers
    /// have an order of their own.
    pub(super) fn take(&self) -> Holding {
        self.0.send_modify(|state| {
            state.held = Some(Held::Taking);
            state.touched = state.working > 0;
        });
        Holding(self.clone())
    }

    /// Holds all turns back; `None`: one works.
    pub(super) fn restore(&self) -> Option<Holding> {
        let idle = self.0.send_if_modified(|state| {
            let idle = state.working == 0;
            if idle {
                state.held = Some(Held::Restoring);
                state.entered += 1;
                state.touched = false;
            }
            idle
        });
        idle.then(|| Holding(self.clone()))
    }

    /// Turns and restores that ever came to the workspace: more than before means that somebody else may have
    /// changed it.
    pub(crate) fn entered(&self) -> u64 {
        self.0.borrow().entered
    }

    /// Why turns that begin wait now.
    pub(crate) fn held(&self) -> Option<Held> {
        self.0.borrow().held
    }
}

impl Holding {
    /// Whether a turn worked meanwhile.
    pub(super) fn mixed(&self) -> bool {
        self.0.0.borrow().touched
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.working -= 1);
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.held = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_checkpoint_holds_turns_back_for_a_while_and_tells_if_one_worked() {
        let gate = Gate::new();
        let idle = gate.take();
        assert!(!idle.mixed());
        let began = Instant::now();
        assert!(gate.enter(PATIENCE).now_or_never().is_none());
        // It goes on in the end, and the checkpoint says so.
        let turn = gate.enter(PATIENCE).await;
        assert!(began.elapsed() >= PATIENCE);
        assert!(idle.mixed());
        drop(idle);
        let beside = gate.take();
        assert!(beside.mixed(), "one works");
        drop((turn, beside));
        assert!(!gate.take().mixed());
        let entered = gate.entered();
        drop(gate.enter(PATIENCE).await);
        drop(gate.restore().unwrap());
        assert_eq!(gate.entered(), entered + 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_restore_is_alone() {
        let gate = Gate::new();
        let turn = gate.enter(PATIENCE).await;
        assert!(gate.restore().is_none());
        drop(turn);
        let restoring = gate.restore().unwrap();
        assert_eq!(gate.held(), Some(Held::Restoring));
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(PATIENCE).await }
        });
        tokio::time::sleep(100 * PATIENCE).await;
        assert!(!waiting.is_finished());
        drop(restoring);
        drop(waiting.await.unwrap());
        assert_eq!(gate.held(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_gives_up_waiting_is_not_counted() {
        let gate = Gate::new();
        let restoring = gate.restore().unwrap();
        assert!(gate.enter(PATIENCE).now_or_never().is_none());
        drop(restoring);
        assert!(gate.restore().is_some());
    }
}
