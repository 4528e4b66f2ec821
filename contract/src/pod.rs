//! What the operator tells a pod, and where things lie in it.
//!
//! The operator writes [`PodConfig`] as JSON into the pod's annotation [`CONFIG_ANNOTATION`] and the
//! public keys into [`KEYS_ANNOTATION`]; the kubelet shows both to the sidecar as files of a downward
//! API volume and renews them without a restart. No secret is ever part of either.

mod approvals;
mod checkpoints;
mod watchdog;

pub use approvals::{Approvals, OnTimeout, PolicyRule};
pub use checkpoints::{CheckpointMode, Checkpoints};
pub use watchdog::Watchdog;

use crate::spend::{Budget, Price};
use serde::{Deserialize, Serialize};
use sha2_hex::hash_json;
use std::collections::BTreeMap;

/// Annotation that holds the [`PodConfig`].
pub const CONFIG_ANNOTATION: &str = "opencode-operator.dev/config";
/// Annotation that holds the [`crate::token::KeySet`].
pub const KEYS_ANNOTATION: &str = "opencode-operator.dev/public-keys";
/// Annotation that is touched to make the kubelet look for Secrets again.
pub const REFRESH_ANNOTATION: &str = "opencode-operator.dev/refresh";

/// Folder of the downward API volume in the sidecar: files [`CONFIG_FILE`] and [`KEYS_FILE`].
pub const CONFIG_DIR: &str = "/etc/opencode-operator";
/// Name of the configuration's file.
pub const CONFIG_FILE: &str = "config.json";
/// Name of the public keys' file.
pub const KEYS_FILE: &str = "public-keys.json";
/// Folder of provider keys in the sidecar: `<provider>/key` each.
pub const PROVIDER_KEYS_DIR: &str = "/var/run/opencode-operator/keys";
/// File name of a provider's key in its folder.
pub const PROVIDER_KEY_FILE: &str = "key";
/// File of the shared secret in the sidecar, where the spec names one.
pub const SHARED_SECRET_FILE: &str = "/var/run/opencode-operator/shared-secret/token";
/// Journal folder in the sidecar.
pub const JOURNAL_DIR: &str = "/var/lib/opencode-operator/journal";
/// Folder shared by both containers, with the runner's socket.
pub const SOCKET_DIR: &str = "/run/opencode-operator";
/// The runner's socket in [`SOCKET_DIR`].
pub const SOCKET_FILE: &str = "runner.sock";
/// The agent's workspace.
pub const WORKSPACE_DIR: &str = "/workspace";
/// The agent's HOME.
pub const HOME_DIR: &str = "/home/agent";
/// Folder with the runner in the agent container.
pub const RUNNER_DIR: &str = "/opt/opencode-operator/runner";
/// Folder with OpenCode in the agent container.
pub const OPENCODE_DIR: &str = "/opt/opencode-operator/opencode";
/// Port of the sidecar's API.
pub const API_PORT: u16 = 3003;
/// Port of the credential proxy, loopback only.
pub const PROXY_PORT: u16 = 3004;
/// Port of the egress proxy, loopback only.
pub const EGRESS_PORT: u16 = 3005;
/// Port of OpenCode, loopback only.
pub const OPENCODE_PORT: u16 = 4096;

/// What a pod is to do; everything that the sidecar may learn without a restart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodConfig {
    /// Name of the OpenCodeSession; also the id of the session of `prompt`.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its UID: the audience of tokens.
    pub uid: String,
    /// Where models come from.
    pub providers: Vec<ProviderConfig>,
    /// Where the key of each provider is to be found, in words for people, as in `Secret team-keys, key
    /// openai`, by the provider's name.
    pub key_sources: BTreeMap<String, String>,
    /// The pod's model, unless a session brings its own.
    pub model: Option<ModelChoice>,
    /// For titles and summaries.
    pub small_model: Option<ModelChoice>,
    /// First turn of the session named like the object, at most once ever.
    pub prompt: Option<String>,
    /// The prompt was taken up before: never start it again, even if the journal is gone.
    pub prompt_consumed: bool,
    /// Added to OpenCode's system prompt in every session.
    pub system_prompt: Option<String>,
    /// Absolute paths of files that OpenCode reads as instructions.
    pub instructions: Vec<String>,
    /// What tools may do; empty: all of them.
    pub tools: Vec<ToolRule>,
    /// Who decides when a tool wants to run.
    pub approvals: Approvals,
    /// When the workspace is kept.
    #[serde(skip_serializing_if = "Checkpoints::is_default")]
    pub checkpoints: Checkpoints,
    /// MCP servers that OpenCode connects to.
    pub mcp_servers: Vec<McpServer>,
    /// Bounds.
    pub limits: Limits,
    /// HTTP proxy for model calls.
    pub http_proxy: Option<String>,
    /// Hosts that are reached without it, as in NO_PROXY.
    pub no_proxy: Option<String>,
    /// Whether the audit log of model calls holds the beginning of requests and answers.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub audit_content: bool,
    /// Where else the agent's container may connect to.
    pub egress: Egress,
}

/// Where the agent's container may connect to, beside the sidecar's proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Egress {
    /// How it is bounded.
    pub mode: EgressMode,
    /// What the egress proxy lets through; counts only in [`EgressMode::ProxyOnly`].
    pub allow: Vec<EgressRule>,
}

/// Hosts that the egress proxy lets through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EgressRule {
    /// A name, `*.` and the end of names (not the end itself), or an address.
    pub host: String,
    /// TCP ports; empty: 443.
    pub ports: Vec<u16>,
    /// Its addresses may be of private networks.
    pub private: bool,
}

/// How the agent's connections are bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EgressMode {
    /// Any address and port but the sidecar's own ports.
    #[default]
    Open,
    /// The sidecar's proxies only: no other TCP port, no UDP.
    ProxyOnly,
}

impl PodConfig {
    /// First 16 hex digits of the SHA-256 of the JSON form: equal configurations, equal text.
    #[must_use]
    pub fn hash(&self) -> String {
        hash_json(self)
    }
}

/// A provider and its key's folder ([`PROVIDER_KEYS_DIR`]`/<name>`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProviderConfig {
    /// Unique in the pod.
    pub name: String,
    /// Which API it speaks.
    pub kind: ProviderKind,
    /// Base URL; absent: the provider's public one.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Models that may be used; empty: any.
    #[serde(default)]
    pub models: Vec<Model>,
    /// What its models cost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prices: Vec<Price>,
}

/// API of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// OpenAI's responses API.
    Openai,
    /// Anthropic's messages API.
    Anthropic,
    /// OpenAI's chat completions, at any endpoint.
    Compatible,
}

/// A model of a provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// Name at the provider.
    pub name: String,
    /// Tokens that fit.
    #[serde(default)]
    pub context_window: Option<u32>,
}

/// A model chosen from a provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelChoice {
    /// Name of a [`ProviderConfig`].
    pub provider: String,
    /// Name at the provider.
    pub name: String,
    /// 0 to 2.
    #[serde(default)]
    pub temperature: Option<f64>,
    /// Most tokens of one answer.
    #[serde(default)]
    pub max_tokens: Option<u32>,
}

/// What a tool may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolRule {
    /// OpenCode's permission, as in `bash`, `edit`, `webfetch`.
    pub name: String,
    /// What happens when it is used.
    pub action: ToolAction,
}

/// What happens when a tool is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToolAction {
    /// It runs.
    Allow,
    /// Somebody is asked.
    Ask,
    /// The model is not offered it.
    Deny,
}

/// An MCP server reached over HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct McpServer {
    /// Unique in the pod.
    pub name: String,
    /// Where.
    pub url: String,
}

/// Bounds of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Turns at once.
    pub max_concurrent_sessions: u32,
    /// Longest turn, in seconds.
    pub turn_timeout_seconds: u64,
    /// What all model calls of the pod may use.
    #[serde(default, skip_serializing_if = "Budget::is_none")]
    pub budget: Budget,
    /// When calls of models count as a loop.
    #[serde(default, skip_serializing_if = "Loops::is_default")]
    pub loops: Loops,
    /// What hangs or repeats itself.
    #[serde(default)]
    pub watchdog: Watchdog,
}

/// When calls of models count as a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Loops {
    /// Most calls of one session, its sub-agents included, in a minute.
    pub calls_per_minute: u32,
    /// The same request so many times in a row is stopped. A repeat after a failed call is not counted.
    pub same_request: u32,
}

impl Default for Loops {
    fn default() -> Self {
        Self {
            calls_per_minute: 300,
            same_request: 5,
        }
    }
}

impl Loops {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_concurrent_sessions: 5,
            turn_timeout_seconds: 3600,
            budget: Budget::default(),
            loops: Loops::default(),
            watchdog: Watchdog::default(),
        }
    }
}

mod sha2_hex {
    use serde::Serialize;
    use sha2::{Digest, Sha256};

    pub(super) fn hash_json<T: Serialize>(value: &T) -> String {
        let json = serde_json::to_vec(value).expect("plain data has a JSON form");
        Sha256::digest(&json)
            .iter()
            .take(8)
            .map(|b| format!("{b:02x}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_object_is_a_config_with_defaults() {
        let config: PodConfig = serde_json::from_str("{}").unwrap();
        assert_eq!(config.limits.max_concurrent_sessions, 5);
        assert_eq!(config.limits.turn_timeout_seconds, 3600);
        assert_eq!(config.approvals.on_timeout, OnTimeout::Deny);
        assert_eq!(config.limits.watchdog.tool_idle_seconds, 600);
        let part = r#"{"limits": {"maxConcurrentSessions": 2, "turnTimeoutSeconds": 7, "watchdog": {"maxSteps": 3}}}"#;
        let part: PodConfig = serde_json::from_str(part).unwrap();
        assert_eq!(part.limits.watchdog.max_steps, 3);
        assert_eq!(part.limits.watchdog.same_call, 20);
        assert_eq!(config.hash(), PodConfig::default().hash());
    }
}
