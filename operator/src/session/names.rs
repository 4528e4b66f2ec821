//! Names, labels and annotations of what belongs to a session.

use crds::OpenCodeSession;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use std::collections::BTreeMap;

/// Value of the label `app.kubernetes.io/managed-by` and name of the field manager.
pub const MANAGER: &str = "opencode-operator";
/// Value of the label `app.kubernetes.io/name`.
pub const APP: &str = "opencode-session";
/// Label that every child has.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Label with the session's name.
pub const INSTANCE: &str = "app.kubernetes.io/instance";
/// Annotation with the UID of the session that made a child. What has no owner reference (a retained
/// claim) is known by it.
pub const SESSION_UID: &str = "opencode-operator.dev/session-uid";
/// Annotation with the hash of everything in a pod that cannot be changed while it runs.
pub const TEMPLATE_HASH: &str = "opencode-operator.dev/template-hash";
/// Annotation with the containers' resources as last applied.
pub const RESOURCES: &str = "opencode-operator.dev/resources";
/// Annotation of a retained claim: for how many days it is meant to be kept.
pub const RETENTION_DAYS: &str = "opencode-operator.dev/retention-days";

/// The identity of a session: all that its children's metadata need.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Name of the object, at most 52 characters.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its UID.
    pub uid: String,
}

impl Identity {
    /// Of an object that the API server knows; `None` for one that it does not.
    #[must_use]
    pub fn of(session: &OpenCodeSession) -> Option<Self> {
        let ObjectMeta {
            name: Some(name),
            namespace: Some(namespace),
            uid: Some(uid),
            ..
        } = session.meta()
        else {
            return None;
        };
        Some(Self {
            name: name.clone(),
            namespace: namespace.clone(),
            uid: uid.clone(),
        })
    }

    /// Name of the pod.
    #[must_use]
    pub fn pod(&self) -> String {
        self.name.clone()
    }

    /// Name of the claim that the operator makes for the workspace.
    #[must_use]
    pub fn workspace_claim(&self) -> String {
        format!("{}-workspace", self.name)
    }

    /// Name of the journal's claim where the workspace is an existing one.
    #[must_use]
    pub fn journal_claim(&self) -> String {
        format!("{}-journal", self.name)
    }

    /// The owner reference that lets the garbage collector delete a child with its session.
    #[must_use]
    pub fn owner_reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: OpenCodeSession::api_version(&()).into_owned(),
            kind: OpenCodeSession::kind(&()).into_owned(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    /// Metadata of a child.
    #[must_use]
    pub fn child(&self, name: String, component: &str, owned: bool) -> ObjectMeta {
        let labels = [
            ("app.kubernetes.io/name", APP),
            (INSTANCE, self.name.as_str()),
            (MANAGED_BY, MANAGER),
            ("app.kubernetes.io/component", component),
        ];
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.namespace.clone()),
            labels: Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
            annotations: Some(BTreeMap::from([(SESSION_UID.to_owned(), self.uid.clone())])),
            owner_references: owned.then(|| vec![self.owner_reference()]),
            ..ObjectMeta::default()
        }
    }

    /// Whether an object of one of our names is ours: owned by this very session, or made by it and
    /// left without a controller. Neither the name nor a label is enough.
    #[must_use]
    pub fn owns(&self, meta: &ObjectMeta) -> bool {
        match controller(meta) {
            Some(owner) => owner.uid == self.uid,
            None => annotation(meta, SESSION_UID) == Some(&self.uid),
        }
    }
}

/// The owner that controls an object.
#[must_use]
pub fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
}

/// An annotation's value.
#[must_use]
pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}
