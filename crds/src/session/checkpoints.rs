//! When the workspace is kept.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When the workspace is kept, and how much of it. A checkpoint can be compared, restored, forked into a new
/// session and exported through the session API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Checkpoints {
    /// `after-turn`: after every turn, and when somebody asks for it. `on-demand`: when somebody asks for it.
    /// `off`: never; those that there are can still be used.
    pub mode: CheckpointMode,

    /// Most checkpoints; the oldest ones go.
    #[schemars(range(min = 1, max = 1000))]
    pub keep: i32,

    /// What their store may take of the session's volume, as in `2Gi`; the oldest ones go. A workspace that alone
    /// needs more has no checkpoint.
    #[schemars(schema_with = "crate::schema::store_size")]
    pub max_size: String,

    /// Keep what git ignores, too, as build output and downloaded packages.
    pub include_ignored: bool,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self {
            mode: CheckpointMode::AfterTurn,
            keep: 50,
            max_size: "2Gi".into(),
            include_ignored: false,
        }
    }
}

/// When a checkpoint is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointMode {
    #[default]
    #[expect(
        missing_docs,
        reason = "a doc comment would turn the enum's schema into a oneOf"
    )]
    AfterTurn,
    #[expect(missing_docs, reason = "see above")]
    OnDemand,
    #[expect(missing_docs, reason = "see above")]
    Off,
}
