//! What is: read from the caches of the watches and from the sidecar's summary, never from the spec.

use super::names::Identity;
use crate::summaries::{Seen, Summaries};
use crds::OpenCodeSession;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{
    ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};
use std::sync::Arc;

/// The caches of the watches. They hold only objects with our label, so what they do not show may
/// still exist: creation by POST finds out.
#[derive(Clone, Debug)]
pub struct Stores {
    /// Pods with our label.
    pub pods: Store<Pod>,
    /// Claims with our label.
    pub claims: Store<PersistentVolumeClaim>,
}

/// What is.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The object itself, as the cache has it.
    pub session: Arc<OpenCodeSession>,
    /// The pod of our name.
    pub pod: Child<Pod>,
    /// The workspace's claim of our name.
    pub claim: Child<PersistentVolumeClaim>,
    /// The journal's claim of our name.
    pub journal_claim: Child<PersistentVolumeClaim>,
    /// What the pod's sidecar said last.
    pub summary: Option<Seen>,
}

/// An object of a name that is ours to use.
#[derive(Clone, Debug)]
pub enum Child<K> {
    /// There is none, as far as the cache knows.
    Absent,
    /// Ours.
    Own(Arc<K>),
    /// Somebody else's, or of an earlier session of this name.
    Foreign(Foreign),
}

/// Why an object is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Whether it is being deleted, so that waiting helps.
    pub terminating: bool,
    /// Kind and name of its controller, if it has one.
    pub owner: Option<String>,
}

impl<K: kube::Resource> Child<K> {
    /// Tells whose an object is.
    #[must_use]
    pub fn classify(identity: &Identity, object: Option<Arc<K>>) -> Self {
        match object {
            None => Self::Absent,
            Some(object) if identity.owns(object.meta()) => Self::Own(object),
            Some(object) => Self::Foreign(Foreign::of(object.as_ref())),
        }
    }

    /// The object, if it is ours.
    #[must_use]
    pub fn own(&self) -> Option<&K> {
        match self {
            Self::Own(object) => Some(object),
            Self::Absent | Self::Foreign(_) => None,
        }
    }
}

impl Foreign {
    /// Describes an object that is not ours.
    #[must_use]
    pub fn of<K: kube::Resource>(object: &K) -> Self {
        Self {
            terminating: object.meta().deletion_timestamp.is_some(),
            owner: super::names::controller(object.meta())
                .map(|o| format!("{} {}", o.kind, o.name)),
        }
    }
}

/// Reads what is. No request is made.
#[must_use]
pub fn observe(
    identity: &Identity,
    session: Arc<OpenCodeSession>,
    stores: &Stores,
    summaries: &Summaries,
) -> Observed {
    let pod = find(&stores.pods, identity, &identity.pod());
    let summary = pod
        .own()
        .and_then(ResourceExt::uid)
        .and_then(|pod_uid| summaries.get(&identity.uid, &pod_uid));
    Observed {
        session,
        pod,
        claim: find(&stores.claims, identity, &identity.workspace_claim()),
        journal_claim: find(&stores.claims, identity, &identity.journal_claim()),
        summary,
    }
}

fn find<K>(store: &Store<K>, identity: &Identity, name: &str) -> Child<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + 'static,
{
    let key = ObjectRef::new(name).within(&identity.namespace);
    Child::classify(identity, store.get(&key))
}
