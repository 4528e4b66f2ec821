//! The containers of the pod.

use super::model::SecretKeyRef;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The container that OpenCode and its tools run in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// Image with the tools that the agent needs; any image with glibc or musl, git and CA
    /// certificates. OpenCode is added to it. Default: the operator's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 512),
        regex(pattern = r"^[A-Za-z0-9][-._:/@A-Za-z0-9]*$")
    )]
    pub image: Option<String>,

    /// Secrets of this namespace that hold credentials for the image's registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub image_pull_secrets: Vec<LocalObjectReference>,

    /// What the container asks for and may use; changed in a running pod where the cluster can.
    #[serde(default)]
    pub resources: Resources,

    /// Environment of the agent and its tools. Everything in it is seen by the model: no secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub env: Vec<EnvVar>,

    /// What tools may do. Default: all of them run without asking.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub tools: Vec<ToolRule>,

    /// Files of the workspace that the agent reads as instructions, relative to it. Default: AGENTS.md.
    #[serde(default = "default_instructions")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 256), regex(pattern = r"^[^/\x00-\x1F\x7F][^\x00-\x1F\x7F]*$")),
        extend("x-kubernetes-list-type" = "atomic", "x-kubernetes-validations" = [
            {
                "rule": "self.all(p, !(p == '..' || p.startsWith('../') || p.endsWith('/..') || p.contains('/../')))",
                "message": "must be paths inside of the workspace, as in docs/rules.md; remove every ..",
            },
        ])
    )]
    pub instructions: Vec<String>,

    /// MCP servers that the agent connects to over HTTP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub mcp_servers: Vec<McpServer>,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            image: None,
            image_pull_secrets: Vec::new(),
            resources: Resources::default(),
            env: Vec::new(),
            tools: Vec::new(),
            instructions: default_instructions(),
            mcp_servers: Vec::new(),
        }
    }
}

fn default_instructions() -> Vec<String> {
    vec!["AGENTS.md".into()]
}

/// An object of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalObjectReference {
    /// Its name.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub name: String,
}

/// What a container asks for and may use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What is set aside for it, as in `cpu: 500m` and `memory: 1Gi`. Default: the operator's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::quantities")]
    pub requests: BTreeMap<String, Quantity>,

    /// What it may use at most. Default: the operator's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::quantities")]
    pub limits: BTreeMap<String, Quantity>,
}

/// A variable of the agent's environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!(self.name in ['HOME', 'TMPDIR', 'WORKSPACE_DIR']) && !self.name.startsWith('OPENCODE_') && !self.name.startsWith('RUNNER_')",
        "message": "HOME, TMPDIR, WORKSPACE_DIR, OPENCODE_* and RUNNER_* are set by the operator; choose another name",
    },
]))]
pub struct EnvVar {
    /// Its name.
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$")
    )]
    pub name: String,

    /// Its value.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub value: String,
}

/// What a tool may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolRule {
    /// OpenCode's permission, as in `bash`, `edit`, `webfetch`; `*` is every other one.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^(\*|[a-z][a-z0-9_-]*)$"))]
    pub name: String,

    /// `allow`: it runs. `ask`: somebody must approve. `deny`: the model is not offered it.
    pub action: ToolAction,
}

/// `allow`: it runs. `ask`: somebody must approve. `deny`: the model is not offered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ToolAction {
    #[expect(
        missing_docs,
        reason = "a doc comment would turn the enum's schema into a oneOf"
    )]
    Allow,
    #[expect(missing_docs, reason = "see above")]
    Ask,
    #[expect(missing_docs, reason = "see above")]
    Deny,
}

/// An MCP server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct McpServer {
    /// Name of this entry, unique in the list.
    #[schemars(
        length(min = 1, max = 40),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,

    /// Where it is. Seen by the agent: no secrets.
    #[schemars(
        length(min = 1, max = 1024),
        extend("x-kubernetes-validations" = [
            {
                "rule": "isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != '' && !self.contains('@')",
                "message": "must be an http or https URL without user info, as in https://mcp.example.com/mcp",
            },
        ])
    )]
    pub url: String,
}

/// The trusted container beside the agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sidecar {
    /// What the container asks for and may use. Default: the operator's.
    #[serde(default)]
    pub resources: Resources,

    /// A bearer token for backends that talk to the sidecar directly. Who has it may do everything that
    /// this pod's API offers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_secret_ref: Option<SecretKeyRef>,
}
