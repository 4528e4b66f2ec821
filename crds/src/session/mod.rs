//! `OpenCodeSession`: one agent, one pod, one workspace.

pub mod agent;
pub mod approvals;
pub mod checkpoints;
pub mod model;
pub mod network;
pub mod status;
pub mod watchdog;
pub mod workspace;

use agent::{Agent, Sidecar};
use approvals::Approvals;
use checkpoints::Checkpoints;
use kube::CustomResource;
use model::{Model, Provider};
use network::Network;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use status::OpenCodeSessionStatus;
use watchdog::Watchdog;
use workspace::{Journal, Workspace};

/// Longest name of an object: what the operator makes from it must fit into 63 characters.
pub const NAME_MAX: usize = 52;

/// An AI coding agent (OpenCode) with a workspace of its own: one pod and one volume, kept as long as
/// the object lives.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "opencode-operator.dev",
    version = "v1alpha1",
    kind = "OpenCodeSession",
    plural = "opencodesessions",
    singular = "opencodesession",
    shortname = "ocs",
    category = "all",
    namespaced,
    status = "OpenCodeSessionStatus",
    derive = "PartialEq",
    doc = "An AI coding agent (OpenCode) with a workspace of its own: one pod and one volume, kept as long as the object lives.",
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase","description":"Where the session stands."}"#,
    printcolumn = r#"{"name":"Activity","type":"string","jsonPath":".status.activity","description":"What the agent does."}"#,
    printcolumn = r#"{"name":"Model","type":"string","jsonPath":".spec.model.name","description":"The model."}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp","description":"Since when the object exists."}"#,
    printcolumn = r#"{"name":"Waits","type":"string","jsonPath":".status.activityMessage","priority":1,"description":"What a turn waits for."}"#,
    printcolumn = r#"{"name":"Pod","type":"string","jsonPath":".status.podName","priority":1,"description":"The pod."}"#,
    printcolumn = r#"{"name":"Workspace","type":"string","jsonPath":".status.workspaceClaim","priority":1,"description":"The claim of the workspace."}"#,
    printcolumn = r#"{"name":"Tokens","type":"integer","jsonPath":".status.usage.totalTokens","priority":1,"description":"Tokens used by all turns."}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "self.providers.exists(p, p.name == self.model.provider)",
        "message": "model.provider must be the name of an entry of providers",
        "fieldPath": ".model.provider",
    },
    {
        "rule": "self.providers.all(p, p.name != self.model.provider || !has(p.models) || p.models.size() == 0 || p.models.exists(m, m.name == self.model.name))",
        "message": "model.name must be one of the models that its provider lists; add it there, or remove that list to allow any",
        "fieldPath": ".model.name",
    },
    {
        "rule": "!has(self.smallModel) || self.providers.exists(p, p.name == self.smallModel.provider)",
        "message": "smallModel.provider must be the name of an entry of providers",
        "fieldPath": ".smallModel",
    },
    {
        "rule": "!has(self.smallModel) || self.providers.all(p, p.name != self.smallModel.provider || !has(p.models) || p.models.size() == 0 || p.models.exists(m, m.name == self.smallModel.name))",
        "message": "smallModel.name must be one of the models that its provider lists; add it there, or remove that list to allow any",
        "fieldPath": ".smallModel",
    },
    {
        "rule": "!has(self.limits.budget) || !has(self.limits.budget.costUSD) || self.providers.exists(p, p.name == self.model.provider && has(p.prices) && p.prices.exists(r, r.model == self.model.name))",
        "message": "limits.budget.costUSD needs a price for model: add an entry for model.name to prices of its provider, or remove costUSD and bound tokens instead",
        "fieldPath": ".limits.budget.costUSD",
    },
    {
        "rule": "!has(self.limits.budget) || !has(self.limits.budget.costUSD) || !has(self.smallModel) || self.providers.exists(p, p.name == self.smallModel.provider && has(p.prices) && p.prices.exists(r, r.model == self.smallModel.name))",
        "message": "limits.budget.costUSD needs a price for smallModel: add an entry for smallModel.name to prices of its provider, or remove costUSD and bound tokens instead",
        "fieldPath": ".limits.budget.costUSD",
    },
    {
        "rule": "!has(oldSelf.prompt) || (has(self.prompt) && self.prompt == oldSelf.prompt)",
        "message": "prompt cannot be changed once set: it starts the first turn, at most once; start another turn through the session API, or create another object",
        "fieldPath": ".prompt",
    },
    {
        "rule": "!has(self.journal.storage) || has(self.workspace.existingClaim)",
        "message": "journal.storage is used only with workspace.existingClaim; without it the journal lies on the workspace's volume: raise workspace.storage instead",
        "fieldPath": ".journal.storage",
    },
]))]
pub struct OpenCodeSessionSpec {
    /// Where models come from. Keys stay in Secrets of this namespace; the agent never sees them.
    #[schemars(
        length(min = 1, max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub providers: Vec<Provider>,

    /// The model that the agent works with, unless a session started through the API names another.
    pub model: Model,

    /// A cheaper model for titles and summaries. Default: the same as `model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub small_model: Option<Model>,

    /// The first task, started by itself and at most once ever, as a session named like this object.
    /// Longer ones go through the session API (5 MiB).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 65536),
        extend("x-kubernetes-validations" = [
            {
                "rule": "size(bytes(self)) <= 98304",
                "message": "must be at most 96 KiB of UTF-8; start longer tasks through the session API, or put the text into a file of the workspace",
            },
            {
                "rule": "!self.matches('[\\x00-\\x08\\x0B\\x0C\\x0E-\\x1F\\x7F]')",
                "message": "must not contain control characters other than newline and tab; remove them",
            },
            {
                "rule": "self.matches('[^ \\t\\r\\n]')",
                "message": "must not be blank; leave the field out to start no turn",
            },
        ])
    )]
    pub prompt: Option<String>,

    /// Added to OpenCode's own system prompt in every session of this pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 32768),
        extend("x-kubernetes-validations" = [
            {
                "rule": "size(bytes(self)) <= 49152",
                "message": "must be at most 48 KiB of UTF-8; put longer instructions into a file of the workspace and name it in agent.instructions",
            },
            {
                "rule": "!self.matches('[\\x00-\\x08\\x0B\\x0C\\x0E-\\x1F\\x7F]')",
                "message": "must not contain control characters other than newline and tab; remove them",
            },
        ])
    )]
    pub system_prompt: Option<String>,

    /// The volume that the agent works on.
    #[serde(default)]
    pub workspace: Workspace,

    /// The record of every event.
    #[serde(default)]
    pub journal: Journal,

    /// The container that OpenCode and its tools run in.
    #[serde(default)]
    pub agent: Agent,

    /// Who decides when a tool wants to run.
    #[serde(default)]
    pub approvals: Approvals,

    /// When the workspace is kept, to be compared and restored.
    #[serde(default)]
    pub checkpoints: Checkpoints,

    /// How the pod reaches the network.
    #[serde(default)]
    pub network: Network,

    /// The trusted container beside the agent.
    #[serde(default)]
    pub sidecar: Sidecar,

    /// Bounds of the pod.
    #[serde(default)]
    pub limits: Limits,

    /// True: no pod, the volume is kept. Turns under way are ended cleanly with the reason
    /// `shutting_down`. False: a new pod on the same volume, with its conversations.
    #[serde(default)]
    pub suspend: bool,
}

/// Bounds of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Turns that may run at once; further sessions are refused with 503 until one ends.
    #[schemars(range(min = 1, max = 100))]
    pub max_concurrent_sessions: i32,

    /// Longest turn, as in `90s`, `30m`, `1h` or `1h30m`; longer ones end with the reason
    /// `turn_timeout`.
    #[schemars(schema_with = "crate::schema::time_limit")]
    pub turn_timeout: String,

    /// What all model calls of this pod may use, over all its sessions and restarts. When it is used up,
    /// calls under way are cut and their turns end with the reason `budget_exhausted`. Raising it works at
    /// once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,

    /// When calls of models count as a loop; the turn then ends with the reason `call_loop`.
    pub loops: Loops,

    /// How long something may hang or repeat itself before it is stopped.
    pub watchdog: Watchdog,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_concurrent_sessions: 5,
            turn_timeout: "1h".into(),
            budget: None,
            loops: Loops::default(),
            watchdog: Watchdog::default(),
        }
    }
}

/// What model calls may use. A field that is left out bounds nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Budget {
    /// Tokens of all kinds: sent, received, and read from a cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_i64))]
    pub tokens: Option<i64>,

    /// Cost in USD as text, as in `"25"` or `"0.5"`, with at most six decimals. Needs `prices` of the
    /// providers.
    #[serde(rename = "costUSD", skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 14),
        regex(pattern = r"^(1000000|[0-9]{1,6}(\.[0-9]{1,6})?)$"),
        extend("x-kubernetes-validations" = [
            {
                "rule": "self.matches('[1-9]')",
                "message": "must be more than 0; leave the field out to bound no cost, or suspend the session to stop it",
            },
        ])
    )]
    pub cost_usd: Option<String>,

    /// Calls of models, titles and sub-agents included.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub calls: Option<i64>,
}

/// When calls of models count as a loop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Loops {
    /// Most calls of one session, its sub-agents included, in a minute.
    #[schemars(range(min = 1, max = 100_000))]
    pub calls_per_minute: i32,

    /// The same request so many times in a row is stopped. Repeats after a failed call are not counted.
    #[schemars(range(min = 2, max = 1000))]
    pub same_request: i32,
}

impl Default for Loops {
    fn default() -> Self {
        Self {
            calls_per_minute: 300,
            same_request: 5,
        }
    }
}
