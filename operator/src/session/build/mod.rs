//! Builders: pure, one Kubernetes kind each.

pub mod claim;
pub mod journal_claim;
pub mod pod;
mod request;

pub use request::build;

use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// What the operator's own settings contribute to every pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSettings {
    /// Image of the sidecar.
    pub sidecar_image: String,
    /// Image with the runner at `/runner`.
    pub runner_image: String,
    /// Image with OpenCode at `/opencode`.
    pub opencode_image: String,
    /// Image of the agent where a session names none.
    pub agent_image: String,
    /// `Always`, `IfNotPresent` or `Never`, for the images above.
    pub image_pull_policy: Option<String>,
    /// How the binaries get into the agent container.
    pub binaries: Binaries,
    /// Level of the sidecar's and runner's logs.
    pub log_level: String,
    /// Where the sidecar sends its traces.
    pub otlp_endpoint: Option<String>,
    /// JSON of [`contract::token::KeySet`].
    pub public_keys: String,
    /// Resources of a container whose session names none.
    pub default_resources: DefaultResources,
}

/// Resources where a session names none. A container without requests is the first to be evicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultResources {
    /// Requests of the agent.
    pub agent_requests: Vec<(String, String)>,
    /// Limits of the agent.
    pub agent_limits: Vec<(String, String)>,
    /// Requests of the sidecar.
    pub sidecar_requests: Vec<(String, String)>,
    /// Limits of the sidecar.
    pub sidecar_limits: Vec<(String, String)>,
}

impl Default for DefaultResources {
    fn default() -> Self {
        let list = |items: &[(&str, &str)]| {
            items
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        Self {
            agent_requests: list(&[("cpu", "100m"), ("memory", "512Mi")]),
            agent_limits: list(&[("memory", "2Gi")]),
            sidecar_requests: list(&[("cpu", "20m"), ("memory", "32Mi")]),
            sidecar_limits: list(&[("memory", "256Mi")]),
        }
    }
}

/// How runner and OpenCode get into the agent container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binaries {
    /// Mounted from their images: nothing is copied.
    ImageVolume,
    /// Copied by init containers, where the cluster has no image volumes.
    Copy,
}

/// First 16 hex digits of the SHA-256 of the JSON form.
pub(crate) fn hash<T: Serialize>(value: &T) -> String {
    let json = serde_json::to_vec(value).expect("a built object has a JSON form");
    Sha256::digest(&json)
        .iter()
        .take(8)
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}
