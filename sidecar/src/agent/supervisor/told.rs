//! The state as everybody sees it.

use super::AgentState;
use tokio::sync::watch;

/// The state that everybody sees. Clones share it.
#[derive(Clone)]
pub(super) struct Told(pub(super) watch::Sender<AgentState>);

impl Told {
    pub(super) fn not_ready(&self, message: String) {
        self.change(|s| {
            s.ready = false;
            s.message = Some(message);
        });
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut AgentState)) {
        self.0.send_if_modified(|state| {
            let before = state.clone();
            change(state);
            *state != before
        });
    }

    pub(super) fn now(&self) -> watch::Ref<'_, AgentState> {
        self.0.borrow()
    }
}
