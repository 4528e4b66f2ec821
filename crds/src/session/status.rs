//! What is.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is, as last seen by the operator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OpenCodeSessionStatus {
    /// The generation of the object that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Where the session stands, in one word. Programs should read `conditions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,

    /// What the agent does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,

    /// While a turn waits for something: for what, in one sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub activity_message: Option<String>,

    /// The parts of it: Ready, SecretsResolved, WorkspaceReady, PodReady, AgentReady, Isolated and, when so,
    /// AgentImageUnsupported.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,

    /// Name of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,

    /// Name of the claim that holds the workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_claim: Option<String>,

    /// Base URL of the session API inside of the cluster; changes with every pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,

    /// What all turns used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,

    /// How the turn of `spec.prompt` went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<SessionResult>,
}

/// Where a session stands. `Pending`: something that it needs is missing. `Starting`: the pod comes up.
/// `Ready`: it takes turns. `Suspending`: the pod
/// ends by `spec.suspend`. `Suspended`: no pod, by `spec.suspend`. `Failed`: it cannot work as declared.
/// `Terminating`: it is being deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    #[expect(
        missing_docs,
        reason = "a doc comment would turn the enum's schema into a oneOf"
    )]
    Pending,
    #[expect(missing_docs, reason = "see above")]
    Starting,
    #[expect(missing_docs, reason = "see above")]
    Ready,
    #[expect(missing_docs, reason = "see above")]
    Suspending,
    #[expect(missing_docs, reason = "see above")]
    Suspended,
    #[expect(missing_docs, reason = "see above")]
    Failed,
    #[expect(missing_docs, reason = "see above")]
    Terminating,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Starting,
        Self::Ready,
        Self::Suspending,
        Self::Suspended,
        Self::Failed,
        Self::Terminating,
    ];

    /// Its name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Starting => "Starting",
            Self::Ready => "Ready",
            Self::Suspending => "Suspending",
            Self::Suspended => "Suspended",
            Self::Failed => "Failed",
            Self::Terminating => "Terminating",
        }
    }
}

/// What the agent does. `Starting`: it does not answer yet. `Idle`: no turn runs. `Busy`: a turn runs.
/// `WaitingForApproval`: a turn waits for somebody. `WaitingForKey`: a turn waits for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Activity {
    #[expect(
        missing_docs,
        reason = "a doc comment would turn the enum's schema into a oneOf"
    )]
    Starting,
    #[expect(missing_docs, reason = "see above")]
    Idle,
    #[expect(missing_docs, reason = "see above")]
    Busy,
    #[expect(missing_docs, reason = "see above")]
    WaitingForApproval,
    #[expect(missing_docs, reason = "see above")]
    WaitingForKey,
}

/// What all model calls used since the journal began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Usage {
    /// Sent, received, read from a cache and written to one.
    pub total_tokens: i64,
    /// Sent and neither read from a cache nor written to one.
    pub input_tokens: i64,
    /// Received.
    pub output_tokens: i64,
    /// Spent on thinking, where the provider tells.
    pub reasoning_tokens: i64,
    /// Read from the provider's cache.
    pub cache_read_tokens: i64,
    /// Written to the provider's cache, where it tells.
    pub cache_write_tokens: i64,
    /// Calls that went to a provider.
    pub calls: i64,
    /// Calls whose tokens are estimated, because the answer did not tell them.
    pub estimated_calls: i64,
    /// Cost in USD of calls whose model has a price; absent where none has.
    #[serde(rename = "costUSD", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub cost_usd: Option<String>,
    /// What is left of `limits.budget`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_left: Option<BudgetLeft>,
    /// Where the audit log of model calls ends, as an anchor for `audit verify --head`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditHead>,
}

/// What is left of `limits.budget`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BudgetLeft {
    /// Tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<i64>,
    /// USD.
    #[serde(rename = "costUSD", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub cost_usd: Option<String>,
    /// Calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls: Option<i64>,
}

/// Where the audit log of model calls ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AuditHead {
    /// Number of the last record.
    pub count: i64,
    /// Its hash.
    #[schemars(length(max = 64))]
    pub hash: String,
}

/// How the turn of `spec.prompt` went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionResult {
    /// When it was recorded; from then on the prompt is never started again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,

    /// When it ended; absent while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,

    /// Why it ended: Completed, Cancelled, or what went wrong, as in ProviderAuth or TurnTimeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,

    /// What went wrong, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,

    /// The agent's last text, cut to 4096 bytes. The whole is in the session's events.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub final_message: Option<String>,

    /// Files that it changed, relative to the workspace; at most 100.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(max = 4096)), extend("x-kubernetes-list-type" = "atomic"))]
    pub files_modified: Vec<String>,
}
