//! How the pod reaches the network.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the pod reaches the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Further certificate authorities for calls to models.
    #[serde(rename = "extraCABundle", skip_serializing_if = "Option::is_none")]
    pub extra_ca_bundle: Option<ExtraCaBundle>,

    /// A proxy for calls to models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,

    /// Where the agent may connect to.
    #[serde(default)]
    pub egress: Egress,
}

/// Where the agent may connect to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Egress {
    /// `open`: anywhere but the sidecar's own ports. `proxy-only`: TCP to the sidecar's proxies only and no UDP,
    /// which the node's kernel enforces (Landlock; see condition `Isolated`). Ports are what it tells apart, so
    /// that servers inside of the agent's container cannot be reached over TCP either.
    #[serde(default)]
    pub mode: EgressMode,

    /// What the sidecar's egress proxy lets through in mode `proxy-only`; without entries nothing. Tools find the
    /// proxy in HTTP_PROXY and HTTPS_PROXY. What was refused is told by `GET /egress` of the sidecar, as entries
    /// for here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub allow: Vec<EgressRule>,
}

/// Hosts that the agent may connect to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressRule {
    /// A name (`pypi.org`), all names below one (`*.pythonhosted.org`; not that name itself), or an address.
    #[schemars(
        length(min = 1, max = 253),
        extend("x-kubernetes-validations" = [
            {
                "rule": "isIP(self) || self.matches('^([*][.])?([a-zA-Z0-9_]([-a-zA-Z0-9_]{0,61}[a-zA-Z0-9_])?[.])*[a-zA-Z_]([-a-zA-Z0-9_]{0,61}[a-zA-Z0-9_])?$')",
                "message": "must be a name such as pypi.org, *.pythonhosted.org for all names below it, or an IP address; ports go into ports",
            },
        ])
    )]
    pub host: String,

    /// TCP ports; 443 if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(range(min = 1, max = 65535)))]
    pub ports: Vec<i32>,

    /// The name may have addresses of private networks, as a mirror in your own network has. Without it a name
    /// that resolves to one is refused. Loopback, link-local and metadata addresses are always refused.
    #[serde(default)]
    pub private: bool,
}

/// How the agent's connections are bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EgressMode {
    /// Anywhere but the sidecar's own ports.
    #[default]
    Open,
    /// The sidecar's proxies only.
    ProxyOnly,
}

/// Further certificate authorities.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExtraCaBundle {
    /// The key of a ConfigMap in this namespace that holds certificates in PEM.
    pub config_map: ConfigMapKeyRef,
}

/// A key of a ConfigMap in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKeyRef {
    /// Name of the ConfigMap.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub name: String,

    /// Key in the ConfigMap.
    #[serde(default = "default_key")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

fn default_key() -> String {
    "ca.crt".into()
}

/// A proxy for calls to models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// Where it is.
    #[schemars(
        length(min = 1, max = 1024),
        extend("x-kubernetes-validations" = [
            {
                "rule": "isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != '' && !self.contains('@')",
                "message": "must be an http or https URL without user info, as in http://proxy.example.com:3128",
            },
        ])
    )]
    pub http_proxy: String,

    /// Hosts, domains and networks that are reached without it, separated by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096), regex(pattern = r"^[^\x00-\x1F\x7F]+$"))]
    pub no_proxy: Option<String>,
}
