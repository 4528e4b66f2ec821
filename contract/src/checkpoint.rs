//! Bodies of `/checkpoints`.

use crate::{SessionId, session::ModelConfig};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Why a checkpoint was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum CheckpointKind {
    /// A turn ended.
    Turn,
    /// Somebody asked for it.
    Manual,
    /// Something was about to be restored.
    BeforeRestore,
}

/// A checkpoint of the workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Checkpoint {
    /// `c1`, `c2`, …; never used again.
    pub checkpoint_id: String,
    /// When it was taken.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub created_at: Timestamp,
    /// Why.
    pub kind: CheckpointKind,
    /// The session whose turn ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// The turn that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<u32>,
    /// Another turn ran meanwhile: it may hold half of that one's work.
    pub mixed: bool,
    /// SHA-256 of all that it holds; a restore is refused where the store no longer has just that.
    pub root: String,
    /// Files in it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that it added to the store.
    pub stored_bytes: u64,
    /// Files that changed each time they were read.
    #[serde(default)]
    pub changing: u64,
    /// Whether files that git ignores are in it.
    #[serde(default)]
    pub include_ignored: bool,
    /// What was left out, at most 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
    /// How many were left out.
    #[serde(default)]
    pub skipped_count: u64,
}

/// What a checkpoint's event in its session says (`detail` of `status` `checkpoint`). Neither `checkpoint_id`
/// nor `failed`: it is still being taken, and will be in `GET /checkpoints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointDetail {
    /// Which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_id: Option<String>,
    /// As in [`Checkpoint`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// As in [`Checkpoint`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mixed: bool,
    /// Why there is none: a code as of the same request to `POST /checkpoints`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<crate::ErrorCode>,
}

/// Something that is not part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Skipped {
    /// Relative to the workspace; bytes that are no UTF-8 are replaced.
    pub path: String,
    /// Why, in a few words.
    pub reason: String,
}

/// `GET /checkpoints`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CheckpointList {
    /// Oldest first.
    pub checkpoints: Vec<Checkpoint>,
    /// Bytes of the store when last seen.
    pub store_bytes: u64,
    /// Why the last one that was wanted could not be taken; absent: it could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// `GET /checkpoints/{from}/diff/{to}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CheckpointDiff {
    /// By path.
    pub files: Vec<Difference>,
    /// Whether there are more.
    pub truncated: bool,
}

/// One file that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Difference {
    /// Relative to the workspace; bytes that are no UTF-8 are replaced.
    pub path: String,
    /// `added`, `deleted` or `modified`.
    pub status: String,
    /// Mode before, as in `100644`; a link is `120000`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_mode: Option<String>,
    /// Mode after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_mode: Option<String>,
    /// No text, or larger than 1 MiB: there are no hunks.
    pub binary: bool,
    /// Hunks of a unified diff.
    pub hunks: String,
    /// `hunks` is cut.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// Lines added.
    pub additions: u64,
    /// Lines removed.
    pub deletions: u64,
}

/// Answer of `POST /checkpoints/{id}/restore`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Restored {
    /// The checkpoint of what was there before.
    pub before: Checkpoint,
    /// Files, links and whole folders written.
    pub written: u64,
    /// Files, links and whole folders removed.
    pub removed: u64,
    /// Whether the workspace is now just what the checkpoint holds. Else something is ignored by git,
    /// could not be read, or was changed at once.
    pub exact: bool,
}

/// `POST /checkpoints/{id}/fork`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Fork {
    /// Of the new session; never used before.
    pub session_id: SessionId,
    /// Its first turn. Before it come the turns that the checkpoint's session had by then.
    pub prompt: String,
    /// Its model; absent: the pod's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_config: Option<ModelConfig>,
    /// Added to OpenCode's own system prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// Bring the workspace back too (default). All sessions of the pod share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<bool>,
}

/// `POST /checkpoints/{id}/branch`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateBranch {
    /// Name below `refs/heads/`; it must be free.
    pub name: String,
    /// Message of the commit; absent: one that names the checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Answer of `POST /checkpoints/{id}/branch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Branch {
    /// The branch.
    pub name: String,
    /// Its commit.
    pub commit: String,
    /// The commit of HEAD, its parent; absent where HEAD has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
}
