//! Who decides when a tool wants to run.

use super::agent::ToolAction;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who decides when a tool wants to run, and what happens when nobody does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Approvals {
    /// Rules for what tools are used for. The last one that matches decides; where none does,
    /// `agent.tools` does. Takes effect without a restart, on calls that wait too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub policy: Vec<ApprovalRule>,

    /// How long somebody has to answer, as in `90s`, `10m`, `1h`.
    #[schemars(schema_with = "crate::schema::time_limit")]
    pub timeout: String,

    /// What happens then. `deny`: the call does not run; the agent is told so and goes on. `allow`: it runs.
    pub on_timeout: OnTimeout,
}

impl Default for Approvals {
    fn default() -> Self {
        Self {
            policy: Vec::new(),
            timeout: "10m".into(),
            on_timeout: OnTimeout::Deny,
        }
    }
}

/// A rule about what a tool is used for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalRule {
    /// OpenCode's permission, as in `bash`, `edit`, `webfetch`. `*` is any text, `?` one character.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[a-zA-Z0-9_*?-]+$"))]
    pub tool: String,

    /// What it is used for, as in `git push *` (a command), `docs/*` (a file) or `https://example.com/*`. `*` is
    /// any text, `?` one character; ` *` at the end may also be nothing. Default: anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 512),
        regex(pattern = r"^[^\x00-\x08\x0B-\x1F\x7F]+$")
    )]
    pub pattern: Option<String>,

    /// `allow`: it runs. `ask`: somebody must approve. `deny`: it does not run; the agent is told so and goes on.
    pub action: ToolAction,
}

/// `deny`: the call does not run. `allow`: it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    #[default]
    #[expect(
        missing_docs,
        reason = "a doc comment would turn the enum's schema into a oneOf"
    )]
    Deny,
    #[expect(missing_docs, reason = "see above")]
    Allow,
}
