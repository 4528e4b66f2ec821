//! From a step to the request that does it.

use super::{PodSettings, claim, journal_claim, pod};
use crate::apply::{Target, Write as ApiWrite};
use crate::session::{
    decide::Step,
    names::{Identity, RESOURCES, RETENTION_DAYS},
    validate::{Validated, WorkspaceVolume},
};
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
