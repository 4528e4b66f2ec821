//! How long something may hang or repeat itself before the sidecar stops it.

use serde::{Deserialize, Serialize};

/// Bounds of the watchdog. 0 switches a watch off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Watchdog {
    /// A turn that works and of which OpenCode says nothing, no tool running: seconds.
    pub silence_seconds: u64,
    /// A tool that neither prints nor computes nor reads nor writes: seconds.
    pub tool_idle_seconds: u64,
    /// A turn that goes on after OpenCode said that it failed: seconds.
    pub after_error_seconds: u64,
    /// An OpenCode that does not answer: seconds.
    pub unresponsive_seconds: u64,
    /// Model calls of one turn, sub-agents included.
    pub max_steps: u32,
    /// The same call with the same result so often in a row.
    pub same_call: u32,
    /// Memory of the agent's container above which OpenCode is restarted once nothing runs, in per
    /// cent of its limit.
    pub memory_percent: u32,
    /// Age at which OpenCode is restarted once nothing runs: seconds.
    pub recycle_after_seconds: u64,
}

impl Default for Watchdog {
    fn default() -> Self {
        Self {
            silence_seconds: 600,
            tool_idle_seconds: 600,
            after_error_seconds: 60,
            unresponsive_seconds: 60,
            max_steps: 1000,
            same_call: 20,
            memory_percent: 85,
            recycle_after_seconds: 24 * 3600,
        }
    }
}
