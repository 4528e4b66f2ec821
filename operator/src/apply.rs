//! The only place that writes to the API server (the lease library beside it).

use crate::{
    reason::Reason,
    session::{names::Identity, observe::Foreign},
};
use crds::OpenCodeSession;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::events::{Event, Recorder, Reporter},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{fmt::Debug, future::Future, time::Duration};

/// Bound of one request. The client retries 429, 503 and 504 by itself, for very long without it.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(15);

/// A namespaced object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// One change, ready to be sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// POST a claim.
    CreateClaim(Box<PersistentVolumeClaim>),
    /// POST a pod.
    CreatePod(Box<Pod>),
    /// Merge-patch a claim; the patch names its UID.
    PatchClaim {
        /// Which one.
        target: Target,
        /// JSON merge patch.
        patch: Value,
        /// It asks for a larger size.
        grows: bool,
    },
    /// Merge-patch a pod; the patch names its UID.
    PatchPod {
        /// Which one.
        target: Target,
        /// JSON merge patch.
        patch: Value,
    },
    /// Change resources in place, then record what was applied.
    ResizePod {
        /// Which one.
        target: Target,
        /// Its UID.
        uid: String,
        /// Strategic merge patch for the `resize` subresource.
        resize: Value,
        /// JSON merge patch with the record.
        record: Value,
        /// Delete it where the cluster refuses.
        replace_if_refused: bool,
    },
    /// DELETE a pod with its own grace period; never forced.
    DeletePod {
        /// Which one.
        target: Target,
        /// Its UID.
        uid: String,
    },
}

/// How a change went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Done.
    Done,
    /// The name belongs to somebody else.
    Foreign(Foreign),
    /// The cache was behind: look again soon.
    Stale,
    /// The API server refused it for good, and says why.
    Refused(String),
    /// A larger volume was refused.
    ExpansionRefused(String),
    /// Resources could not be changed in place; the pod was deleted for a new one.
    Replaced(String),
}

/// A request that failed for no reason of its own.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// No answer in time.
    #[error("the API server did not answer within {} s", WRITE_TIMEOUT.as_secs())]
    Timeout,
    /// No answer, or an error that is not about the request.
    #[error("the API server could not be asked")]
    Api(#[source] Box<kube::Error>),
}

impl ApplyError {
    /// Reason of Event and metric.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Timeout => Reason::ApiTimeout,
            Self::Api(_) => Reason::ApiError,
        }
    }
}

/// Writes.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    recorder: Recorder,
}

impl Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl Writer {
    /// Writes through `client`; Events name `instance` as their reporter.
    #[must_use]
    pub fn new(client: Client, instance: Option<String>) -> Self {
        let reporter = Reporter {
            controller: crate::session::names::MANAGER.into(),
            instance,
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
        }
    }

    /// Sends one change. Safe to repeat: creations fail on an existing name, changes on another UID.
    pub async fn apply(&self, identity: &Identity, write: Write) -> Result<Applied, ApplyError> {
        match write {
            Write::CreateClaim(claim) => self.create(identity, *claim).await,
            Write::CreatePod(pod) => self.create(identity, *pod).await,
            Write::PatchClaim {
                target,
                patch,
                grows,
            } => {
                let api = self.api::<PersistentVolumeClaim>(&target.namespace);
                let applied = merge(&api, &target.name, &patch).await?;
                Ok(match applied {
                    Applied::Refused(message) if grows => Applied::ExpansionRefused(message),
                    other => other,
                })
            }
            Write::PatchPod { target, patch } => {
                merge(&self.api::<Pod>(&target.namespace), &target.name, &patch).await
            }
            Write::ResizePod {
                target,
                uid,
                resize,
                record,
                replace_if_refused,
            } => {
                let api = self.api::<Pod>(&target.namespace);
                let (params, body) = (PatchParams::default(), Patch::Strategic(&resize));
                let call = api.patch_resize(&target.name, &params, &body);
                let result = bounded(call).await?;
                let forbidden =
                    matches!(&result, Err(kube::Error::Api(status)) if status.code == 403);
                match outcome(result)? {
                    // Forbidden, as by a quota: another pod would be forbidden too.
                    Applied::Refused(why) if replace_if_refused && !forbidden => {
                        match delete(&api, &target.name, &uid).await? {
                            Applied::Done => Ok(Applied::Replaced(why)),
                            other => Ok(other),
                        }
                    }
                    Applied::Done => merge(&api, &target.name, &record).await,
                    other => Ok(other),
                }
            }
            Write::DeletePod { target, uid } => {
                delete(&self.api::<Pod>(&target.namespace), &target.name, &uid).await
            }
        }
    }

    /// Merge-patches the status; `patch` is its difference.
    pub async fn status(&self, identity: &Identity, patch: &Value) -> Result<Applied, ApplyError> {
        let api = self.api::<OpenCodeSession>(&identity.namespace);
        let body = json!({ "metadata": { "uid": identity.uid }, "status": patch });
        let params = PatchParams::default();
        let body = Patch::Merge(&body);
        outcome(bounded(api.patch_status(&identity.name, &params, &body)).await?)
    }

    /// Publishes an Event about a session. A failure is logged: nothing depends on it.
    pub async fn event(&self, session: &OpenCodeSession, event: &Event) {
        let about = session.object_ref(&());
        let published = tokio::time::timeout(WRITE_TIMEOUT, self.recorder.publish(event, &about));
        match published.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, reason = event.reason, "an Event could not be written");
            }
            Err(_) => tracing::warn!(
                reason = event.reason,
                "an Event could not be written in time"
            ),
        }
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn create<K>(&self, identity: &Identity, object: K) -> Result<Applied, ApplyError>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Serialize
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let api = self.api::<K>(&identity.namespace);
        let params = PostParams {
            field_manager: Some(crate::session::names::MANAGER.into()),
            ..PostParams::default()
        };
        match bounded(api.create(&params, &object)).await? {
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                // Ours, made a moment ago and not in the cache yet, or somebody else's.
                let found = bounded(api.get_metadata_opt(&object.name_any()))
                    .await?
                    .map_err(failed)?;
                Ok(match found {
                    Some(meta) if !identity.owns(&meta.metadata) => {
                        Applied::Foreign(Foreign::of(&meta))
                    }
                    Some(_) | None => Applied::Stale,
                })
            }
            other => outcome(other),
        }
    }
}

async fn merge<K>(api: &Api<K>, name: &str, patch: &Value) -> Result<Applied, ApplyError>
where
    K: Clone + DeserializeOwned + Debug,
{
    outcome(bounded(api.patch(name, &PatchParams::default(), &Patch::Merge(patch))).await?)
}

async fn delete(api: &Api<Pod>, name: &str, uid: &str) -> Result<Applied, ApplyError> {
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.into()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    outcome(bounded(api.delete(name, &params)).await?)
}

async fn bounded<T>(
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<Result<T, kube::Error>, ApplyError> {
    tokio::time::timeout(WRITE_TIMEOUT, call)
        .await
        .map_err(|_| ApplyError::Timeout)
}

fn failed(error: kube::Error) -> ApplyError {
    ApplyError::Api(Box::new(error))
}

fn outcome<T>(result: Result<T, kube::Error>) -> Result<Applied, ApplyError> {
    match result {
        Ok(_) => Ok(Applied::Done),
        // Gone, or another object of that name by now.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Applied::Stale),
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 422) => {
            Ok(Applied::Refused(status.message.clone()))
        }
        Err(error) => Err(failed(error)),
    }
}
