//! Bodies of `/sessions`.

use crate::{
    SessionId, Usage,
    spend::{Budget, Spend},
};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};

/// Largest prompt, in bytes.
pub const PROMPT_MAX: usize = 5 * 1024 * 1024;

/// Which API the provider speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Provider {
    /// OpenAI's responses API.
    Openai,
    /// Anthropic's messages API.
    Anthropic,
    /// Any endpoint that speaks OpenAI's chat completions.
    Local,
}

/// The model of a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelConfig {
    /// API of the provider.
    pub provider: Provider,
    /// Name of the model at the provider.
    pub model: String,
    /// Key for this session only; held in memory, never stored. Without it the key of the pod's
    /// provider is used.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "expose"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, write_only))]
    pub api_key: Option<SecretString>,
    /// 0 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Most tokens of one answer, 1 to 1,000,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Only these tools; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled_tools: Option<Vec<String>>,
    /// Appended to `model` with a dash, as providers name dated versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_version: Option<String>,
    /// Base URL of the API. An endpoint that the pod does not declare needs `api_key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_endpoint: Option<String>,
}

fn expose<S: Serializer>(key: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    key.as_ref()
        .map(ExposeSecret::expose_secret)
        .serialize(serializer)
}

/// `POST /sessions`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateSession {
    /// Chosen by the caller, never used again.
    pub session_id: SessionId,
    /// The first turn: 1 byte to 5 MiB.
    pub prompt: String,
    /// The model; absent (an extension): the pod's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_config: Option<ModelConfig>,
    /// Added to OpenCode's own system prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
}

/// `POST /sessions/{id}/turns`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateTurn {
    /// 1 byte to 5 MiB.
    pub prompt: String,
    /// The session's key again, where it came with the session and a restart forgot it.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "expose"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, write_only))]
    pub api_key: Option<SecretString>,
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SessionState {
    /// The turn is recorded and waits for the agent or for a key.
    Pending,
    /// A turn runs.
    Running,
    /// The last turn ended with `complete`.
    Completed,
    /// The last turn ended with an error.
    Failed,
    /// The last turn was cancelled.
    Cancelled,
}

impl SessionState {
    /// Whether a turn is under way.
    #[must_use]
    pub fn is_active(self) -> bool {
        matches!(self, Self::Pending | Self::Running)
    }
}

/// A session, as `POST /sessions`, `GET /sessions` and `GET /sessions/{id}/status` tell it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Session {
    /// Its id.
    pub session_id: SessionId,
    /// Where it stands.
    pub status: SessionState,
    /// When it was recorded.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub created_at: Timestamp,
    /// When its last event was recorded.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub updated_at: Timestamp,
    /// Number of the last turn, from 1.
    pub turn: u32,
    /// Cursor of the last event: a stream opened with it gets only what is new.
    pub last_event_id: String,
    /// Provider and model, as in `anthropic/claude-x`.
    pub model: String,
    /// One sentence: what it does or why nothing happens.
    pub reason: String,
    /// What all turns used, as OpenCode counts it.
    pub usage: Usage,
    /// What this session's model calls used, sub-agents included, as the proxy metered them.
    #[serde(default)]
    pub spend: Spend,
    /// What is left of the pod's budget, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_left: Option<Budget>,
    /// The key that came with the session is gone: the next turn must bring `api_key`.
    pub key_required: bool,
    /// The agent's own session, for looking it up in OpenCode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opencode_session_id: Option<String>,
}

/// `GET /sessions`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionList {
    /// By time of creation.
    pub sessions: Vec<Session>,
}

/// `GET /sessions/{id}/events`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventPage {
    /// In order.
    pub events: Vec<NumberedEvent>,
    /// Cursor to ask on with.
    pub next: String,
    /// Whether there is more now.
    pub more: bool,
}

/// An event with its cursor; a `gap` made for this reader has none.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NumberedEvent {
    /// `<epoch>-<n>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The event.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::Event))]
    pub event: serde_json::Value,
}

/// `GET /sessions/{id}/diff`: what the last turn changed in the workspace.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Diff {
    /// The turn.
    pub turn: u32,
    /// By path.
    pub files: Vec<FileDiff>,
}

/// One changed file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileDiff {
    /// Relative to the workspace.
    pub path: String,
    /// `added`, `deleted` or `modified`.
    pub status: String,
    /// Unified diff.
    pub patch: String,
    /// Lines added.
    pub additions: u64,
    /// Lines removed.
    pub deletions: u64,
}
