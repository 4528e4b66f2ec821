//! The one shape of every error answer, and its stable codes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Body of every answer with a status of 400 or more.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// What happened, to what, and what to do next.
    pub error: String,
    /// For machines.
    pub details: ErrorDetails,
    /// When.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub timestamp: Timestamp,
}

/// The part of an error for machines.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorDetails {
    /// Stable code.
    pub code: ErrorCode,
    /// Every wrong field of the request, for [`ErrorCode::InvalidRequest`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldError>,
}

/// One wrong field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FieldError {
    /// Path in the body, as in `model_config.provider`; `body`, `path` or a header's name.
    pub field: String,
    /// The rule that it breaks.
    pub rule: String,
}

impl FieldError {
    /// A field and its rule.
    pub fn new(field: impl Into<String>, rule: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            rule: rule.into(),
        }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])+ $name:ident = $text:literal $status:literal,)+) => {
        /// Stable codes of error answers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub enum ErrorCode {
            $($(#[$doc])+ #[serde(rename = $text)] $name,)+
        }

        impl ErrorCode {
            /// All of them, for docs/errors.md.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The code as it stands in `details.code`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// HTTP status that goes with it.
            #[must_use]
            pub fn http_status(self) -> u16 {
                match self { $(Self::$name => $status,)+ }
            }
        }
    };
}

codes! {
    /// A field, header or path segment breaks its rule; `details.fields` names each.
    InvalidRequest = "invalid_request" 400,
    /// The cursor does not parse or lies in the future.
    InvalidCursor = "invalid_cursor" 400,
    /// No token, or one that does not verify.
    Unauthorized = "unauthorized" 401,
    /// The token does not allow this.
    Forbidden = "forbidden" 403,
    /// No such path.
    NotFound = "not_found" 404,
    /// No such session.
    SessionNotFound = "session_not_found" 404,
    /// No such approval, or it was answered before.
    ApprovalNotFound = "approval_not_found" 404,
    /// No such checkpoint: it never was, or it was forgotten for newer ones.
    CheckpointNotFound = "checkpoint_not_found" 404,
    /// The path exists, the method does not.
    MethodNotAllowed = "method_not_allowed" 405,
    /// A session with this id exists or existed: ids are never used again.
    SessionExists = "session_exists" 409,
    /// The session's turn still runs: wait for its end or cancel it.
    TurnRunning = "turn_running" 409,
    /// The key that came with the session is gone since a restart: send `api_key` again.
    KeyRequired = "key_required" 409,
    /// The same Idempotency-Key came with another body.
    IdempotencyMismatch = "idempotency_mismatch" 409,
    /// `spec.checkpoints.mode` is `off`.
    CheckpointsOff = "checkpoints_off" 409,
    /// The store of checkpoints lacks something, or it was tampered with.
    CheckpointDamaged = "checkpoint_damaged" 409,
    /// Something in the workspace is in the way.
    CheckpointBlocked = "checkpoint_blocked" 409,
    /// The body is larger than allowed.
    PayloadTooLarge = "payload_too_large" 413,
    /// More bytes or files than a checkpoint, or what is made of it, may have.
    CheckpointTooLarge = "checkpoint_too_large" 413,
    /// The body is not `application/json`.
    UnsupportedMediaType = "unsupported_media_type" 415,
    /// As many turns run as are allowed; Retry-After says when to try again.
    TooManySessions = "too_many_sessions" 503,
    /// The journal cannot be written: the volume is full or broken.
    JournalUnavailable = "journal_unavailable" 503,
    /// The checkpoint, or what was to be done with it, failed for now.
    CheckpointFailed = "checkpoint_failed" 503,
    /// OpenCode does not answer yet.
    AgentUnavailable = "agent_unavailable" 503,
    /// The sidecar is stopping.
    ShuttingDown = "shutting_down" 503,
    /// The session's volume is full, or nearly.
    VolumeFull = "volume_full" 507,
    /// A fault of ours; the log has it under the same x-request-id.
    Internal = "internal" 500,
}
