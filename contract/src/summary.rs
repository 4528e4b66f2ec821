//! The pod in brief: what the operator follows.
//!
//! `GET /events` is an SSE stream of `summary` events without ids. Each is the whole state; the
//! last one counts, none is owed.

use crate::{
    SessionId, Usage,
    event::TurnError,
    session::SessionState,
    spend::{AuditHead, Budget, Spend},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The pod in brief.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Summary {
    /// What goes on.
    pub activity: Activity,
    /// One sentence, while a turn waits for something: for what. It does not change by the second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity_message: Option<String>,
    /// Turns under way.
    pub running_turns: u32,
    /// Those of them that OpenCode was not given yet: they wait for a key or for the agent, and a new
    /// pod takes them up unharmed.
    #[serde(default)]
    pub waiting_turns: u32,
    /// Approvals that wait for somebody.
    pub pending_approvals: u32,
    /// All sessions of the pod since its journal began.
    pub usage: Usage,
    /// What all model calls used, as the proxy metered them since its audit log began.
    #[serde(default)]
    pub spend: Spend,
    /// What is left of the pod's budget, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_left: Option<Budget>,
    /// Where the audit log of model calls ends; absent before its first record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditHead>,
    /// Providers whose key file is absent or empty.
    pub missing_keys: Vec<String>,
    /// Providers whose mounted key was refused (401, 403) and has not changed since.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused_keys: Vec<RefusedKey>,
    /// The agent container.
    pub agent: AgentSummary,
    /// What the runner enforces on the agent.
    pub isolation: Isolation,
    /// The session of `spec.prompt`, once recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_session: Option<PromptSession>,
    /// Hash of the [`crate::pod::PodConfig`] in force, see [`crate::pod::PodConfig::hash`].
    pub config_hash: String,
}

/// A mounted key that its provider refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RefusedKey {
    /// Name of the provider.
    pub provider: String,
    /// When it was refused. Moves on with later refusals of the same key, at most five times and
    /// not within a minute.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub at: Timestamp,
}

/// What goes on in the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Activity {
    /// The agent does not answer yet.
    #[default]
    Starting,
    /// No turn runs.
    Idle,
    /// A turn runs.
    Busy,
    /// A turn waits for an approval.
    WaitingForApproval,
    /// A turn waits for a key.
    WaitingForKey,
}

/// The agent container, as the sidecar sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AgentSummary {
    /// OpenCode answers.
    pub ready: bool,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Starts since the pod began.
    pub starts: u32,
    /// Why the image cannot run OpenCode, in one sentence with what to add.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsupported: Option<String>,
    /// One sentence, when not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What is and is not enforced on the agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Isolation {
    /// Whether everything that the runner is to refuse was refused when it tried.
    pub enforced: bool,
    /// Why, or why not.
    #[serde(default)]
    pub reason: IsolationReason,
    /// What is refused and what is not.
    pub message: String,
}

/// Why the agent is isolated, or is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum IsolationReason {
    /// The runner did not tell yet.
    #[default]
    NotReported,
    /// Everything was refused.
    Enforced,
    /// The node's kernel has no Landlock, or another filter forbids it.
    LandlockUnavailable,
    /// Some of it was not refused.
    Partial,
    /// Sidecar and agent run as one user, as without Kubernetes: the agent can read the sidecar's files.
    SharedUser,
    /// A reason of a newer sidecar.
    #[serde(other)]
    NotEnforced,
}

impl IsolationReason {
    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotReported => "NotReported",
            Self::Enforced => "Enforced",
            Self::LandlockUnavailable => "LandlockUnavailable",
            Self::Partial => "Partial",
            Self::SharedUser => "SharedUser",
            Self::NotEnforced => "NotEnforced",
        }
    }
}

/// The session that `spec.prompt` started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PromptSession {
    /// Named like the object.
    pub session_id: SessionId,
    /// Where it stands.
    pub state: SessionState,
    /// When its first turn was recorded.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub started_at: Timestamp,
    /// When its first turn ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub finished_at: Option<Timestamp>,
    /// Last text, cut to [`FINAL_MESSAGE_MAX`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_message: Option<String>,
    /// Files changed, at most [`FILES_MODIFIED_MAX`].
    #[serde(default)]
    pub files_modified: Vec<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<PromptError>,
}

/// Why the first turn failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PromptError {
    /// For machines.
    pub code: TurnError,
    /// For people.
    pub message: String,
}

/// Longest `final_message` in a summary, in bytes.
pub const FINAL_MESSAGE_MAX: usize = 4096;
/// Most files in a summary.
pub const FILES_MODIFIED_MAX: usize = 100;
