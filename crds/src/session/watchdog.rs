//! How long something may hang or repeat itself before it is stopped.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How long something may hang or repeat itself before it is stopped. `0s` and 0 switch a watch off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Watchdog {
    /// A turn that works and of which OpenCode says nothing, while no tool runs; it ends with the reason
    /// `agent_silent`.
    #[schemars(schema_with = "crate::schema::patience")]
    pub silence: String,

    /// A tool that neither prints nor computes nor reads nor writes; the turn ends with the reason
    /// `tool_stalled`.
    #[schemars(schema_with = "crate::schema::patience")]
    pub tool_idle: String,

    /// A turn that goes on after OpenCode said that it failed; it ends with that error.
    #[schemars(schema_with = "crate::schema::patience")]
    pub after_error: String,

    /// An OpenCode that does not answer; it is restarted, and its turns end with the reason
    /// `agent_unresponsive`.
    #[schemars(schema_with = "crate::schema::patience")]
    pub unresponsive: String,

    /// Model calls of one turn, those of sub-agents included; then it ends with the reason `loop`.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_steps: i32,

    /// The same call with the same result so often in a row; then the turn ends with the reason `loop`.
    #[schemars(
        range(min = 0, max = 10_000),
        extend("x-kubernetes-validations" = [
            {"rule": "self == 0 || self >= 3", "message": "must be 0 or at least 3"},
        ])
    )]
    pub same_call: i32,

    /// Memory of the agent's container above which OpenCode is restarted once no turn runs, in per cent
    /// of its limit.
    #[schemars(range(min = 0, max = 100))]
    pub memory_percent: i32,

    /// Age at which OpenCode is restarted once no turn runs.
    #[schemars(schema_with = "crate::schema::age")]
    pub recycle_after: String,
}

impl Default for Watchdog {
    fn default() -> Self {
        Self {
            silence: "10m".into(),
            tool_idle: "10m".into(),
            after_error: "1m".into(),
            unresponsive: "1m".into(),
            max_steps: 1000,
            same_call: 20,
            memory_percent: 85,
            recycle_after: "24h".into(),
        }
    }
}
