//! Builders: pure, one Kubernetes kind each.

pub mod claim;
pub mod journal_claim;
pub mod pod;

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

use super::{
    decide::Step,
    names::{Identity, RESOURCES, RETENTION_DAYS},
    validate::{Validated, WorkspaceVolume},
};
use crate::apply::{Target, Write as ApiWrite};
use contract::pod::{CONFIG_ANNOTATION, KEYS_ANNOTATION, REFRESH_ANNOTATION};
use crds::quantity::Bytes;
use serde_json::{Map, Value, json};

/// The request for a step. Changes name the object's UID, so that they fail on any other object of
/// that name.
#[must_use]
pub fn build(
    step: &Step,
    validated: &Validated,
    settings: &PodSettings,
    prompt_consumed: bool,
) -> Option<ApiWrite> {
    let identity = &validated.identity;
    Some(match step {
        Step::CreateClaim => ApiWrite::CreateClaim(Box::new(claim::build_claim(validated)?)),
        Step::CreateJournalClaim => {
            ApiWrite::CreateClaim(Box::new(journal_claim::build_journal_claim(validated)?))
        }
        Step::CreatePod => ApiWrite::CreatePod(Box::new(pod::build_pod(
            validated,
            settings,
            prompt_consumed,
        ))),
        Step::AdjustClaim {
            uid,
            resource_version,
            grow,
            retention,
        } => {
            let WorkspaceVolume::Own {
                storage,
                retain,
                days,
                ..
            } = &validated.workspace
            else {
                return None;
            };
            let mut metadata = json!({ "uid": uid });
            if *retention {
                // The list is replaced as a whole: only if nobody changed the claim in between.
                metadata["resourceVersion"] = json!(resource_version);
                metadata["ownerReferences"] = if *retain {
                    Value::Null
                } else {
                    json!([identity.owner_reference()])
                };
                metadata["annotations"] = json!({ RETENTION_DAYS: days.map(|d| d.to_string()) });
            }
            let mut patch = json!({ "metadata": metadata });
            if *grow {
                patch["spec"] = storage_request(*storage);
            }
            ApiWrite::PatchClaim {
                target: target(identity, identity.workspace_claim()),
                patch,
                grows: *grow,
            }
        }
        Step::GrowJournalClaim { uid } => {
            let WorkspaceVolume::Existing { journal, .. } = &validated.workspace else {
                return None;
            };
            ApiWrite::PatchClaim {
                target: target(identity, identity.journal_claim()),
                patch: json!({ "metadata": { "uid": uid }, "spec": storage_request(*journal) }),
                grows: true,
            }
        }
        Step::Annotate {
            uid,
            config,
            keys,
            refresh,
        } => {
            let mut annotations = Map::new();
            if *config {
                annotations.insert(
                    CONFIG_ANNOTATION.into(),
                    pod::config_json(validated, prompt_consumed).into(),
                );
            }
            if *keys {
                annotations.insert(KEYS_ANNOTATION.into(), settings.public_keys.clone().into());
            }
            if let Some(at) = refresh {
                annotations.insert(REFRESH_ANNOTATION.into(), at.to_string().into());
            }
            ApiWrite::PatchPod {
                target: target(identity, identity.pod()),
                patch: json!({ "metadata": { "uid": uid, "annotations": annotations } }),
            }
        }
        Step::Resize {
            uid,
            replace_if_refused,
        } => {
            let (agent, sidecar) = pod::build_resources(validated, settings);
            ApiWrite::ResizePod {
                target: target(identity, identity.pod()),
                uid: uid.clone(),
                resize: json!({
                    "metadata": { "uid": uid },
                    "spec": {
                        "containers": [{ "name": pod::AGENT, "resources": agent }],
                        "initContainers": [{ "name": pod::SIDECAR, "resources": sidecar }],
                    },
                }),
                record: json!({ "metadata": {
                    "uid": uid,
                    "annotations": { RESOURCES: pod::resources_json(validated, settings) },
                }}),
                replace_if_refused: *replace_if_refused,
            }
        }
        Step::DeletePod { uid, why: _ } => ApiWrite::DeletePod {
            target: target(identity, identity.pod()),
            uid: uid.clone(),
        },
    })
}

fn target(identity: &Identity, name: String) -> Target {
    Target {
        namespace: identity.namespace.clone(),
        name,
    }
}

fn storage_request(size: Bytes) -> Value {
    json!({ "resources": { "requests": { "storage": size.to_string() } } })
}
