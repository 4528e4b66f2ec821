//! Who decides when a tool wants to run.

use super::ToolAction;
use serde::{Deserialize, Serialize};

/// Who decides when a tool wants to run, and what happens when nobody does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Approvals {
    /// The last rule that matches decides; before them come the pod's [`super::ToolRule`]s.
    pub policy: Vec<PolicyRule>,
    /// How long somebody has to answer, in seconds.
    pub timeout_seconds: u64,
    /// What happens then.
    pub on_timeout: OnTimeout,
}

impl Default for Approvals {
    fn default() -> Self {
        Self {
            policy: Vec::new(),
            timeout_seconds: 600,
            on_timeout: OnTimeout::Deny,
        }
    }
}

/// A rule about what a tool is used for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRule {
    /// OpenCode's permission, as in `bash`, `edit`, `webfetch`; `*` and `?` as in [`Self::pattern`].
    pub tool: String,
    /// What it is used for, as in `git push *`; absent: anything. `*` is any text, `?` one character.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// What happens.
    pub action: ToolAction,
}

/// What happens to a call that nobody decided about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// It does not run; the agent is told so and goes on.
    #[default]
    Deny,
    /// It runs.
    Allow,
}
