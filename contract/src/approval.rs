//! Bodies of `/sessions/{id}/approvals`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What somebody has to decide.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Approval {
    /// For the path of the answer.
    pub approval_id: String,
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
