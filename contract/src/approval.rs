//! Bodies of `/sessions/{id}/approvals`.

use crate::SessionId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What somebody has to decide.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Approval {
    /// For the path of the answer.
    pub approval_id: String,
    /// The session that waits.
    pub session_id: SessionId,
    /// Who waits: `main`, or a sub-agent.
    pub agent: String,
    /// The tool that wants to run, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// What is asked for, as in `bash`.
    pub permission: String,
    /// What of it.
    pub patterns: Vec<String>,
    /// The call that waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// Since when.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub since: Timestamp,
    /// Until when somebody may answer; then the pod's `approvals.onTimeout` does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub until: Option<Timestamp>,
}

/// `GET /sessions/{id}/approvals`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApprovalList {
    /// Oldest first.
    pub approvals: Vec<Approval>,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Decision {
    /// This call.
    Once,
    /// This and every like one of this session; kept by the sidecar, OpenCode is told `once`.
    Always,
    /// Not this call.
    Reject,
}

/// `POST /sessions/{id}/approvals/{approval_id}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Answer {
    /// The answer.
    pub decision: Decision,
    /// Told to the agent; with `reject` it lets the agent go on another way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}
