//! What goes to OpenCode and comes from it, beyond [`crate::agent::wire`].

use contract::pod::ToolAction;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Bounds in time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Most calls; OpenCode's event loop is known to stall for 4 s.
    pub(crate) quick: Duration,
    /// Calls that read much, or make OpenCode load a folder for the first time.
    pub(crate) slow: Duration,
    /// Longest silence of the event stream; OpenCode says something every 10 s.
    pub(crate) silence: Duration,
    /// Longest wait, all in all, for the rest of a line of the event stream.
    pub(crate) line: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            quick: Duration::from_secs(10),
            slow: Duration::from_secs(30),
            silence: Duration::from_secs(30),
            line: Duration::from_secs(60),
        }
    }
}

/// A rule about a permission; of several that match the last one holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PermissionRule {
    /// As in `bash`; `*` is every one.
    pub(crate) permission: String,
    /// Of what is done with it; `*` is everything.
    pub(crate) pattern: String,
    pub(crate) action: ToolAction,
}

/// A prompt.
#[derive(Clone, Debug)]
pub(crate) struct PromptBody {
    /// From [`crate::agent::ids::message_id`].
    pub(crate) message_id: String,
    pub(crate) text: String,
    /// Added to OpenCode's own system prompt.
    pub(crate) system: Option<String>,
    pub(crate) provider_id: String,
    pub(crate) model_id: String,
}

/// What a session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    Busy,
    /// Waits before it asks the provider again.
    Retry,
    Idle,
}

/// A sub-agent's session.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Child {
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) title: Option<String>,
}

/// OpenCode waits for an answer to a question.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Question {
    pub(crate) id: String,
    /// Empty where OpenCode does not say.
    #[serde(rename = "sessionID", default)]
    pub(crate) session: String,
}
