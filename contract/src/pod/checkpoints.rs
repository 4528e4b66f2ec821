//! When the workspace is kept, and how much of it.

use serde::{Deserialize, Serialize};

/// When the workspace is kept, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Checkpoints {
    /// When one is taken.
    pub mode: CheckpointMode,
    /// Most checkpoints; the oldest ones go. At least 1.
    pub keep: u32,
    /// Bytes that their store may take.
    pub max_bytes: u64,
    /// Keep what git ignores, too.
    pub include_ignored: bool,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self {
            mode: CheckpointMode::AfterTurn,
            keep: 50,
            max_bytes: 2 << 30,
            include_ignored: false,
        }
    }
}

impl Checkpoints {
    /// Whether nothing differs from the default.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// When a checkpoint is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointMode {
    /// After every turn, and when somebody asks for it.
    #[default]
    AfterTurn,
    /// When somebody asks for it.
    OnDemand,
    /// Never. What is there can still be compared and restored.
    Off,
}
