//! Volumes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Size of a workspace that names none.
pub const DEFAULT_STORAGE: &str = "10Gi";
/// Size of a journal's own claim that names none.
pub const DEFAULT_JOURNAL_STORAGE: &str = "1Gi";

/// The volume that the agent works on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!has(self.existingClaim) || (!has(self.storage) && !has(self.storageClassName))",
        "message": "existingClaim excludes storage and storageClassName: the claim has its own; remove one side",
    },
    {
        "rule": "!has(self.existingClaim) || !has(self.retention) || self.retention.policy == 'Delete'",
        "message": "existingClaim excludes retention.policy Retain: a claim that you bring is always kept; remove retention",
    },
    {
        "rule": "has(self.existingClaim) == has(oldSelf.existingClaim) && (!has(self.existingClaim) || self.existingClaim == oldSelf.existingClaim)",
        "message": "existingClaim cannot be changed: the conversations lie on that volume; create another object",
        "fieldPath": ".existingClaim",
    },
    {
        "rule": "has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)",
        "message": "storageClassName cannot be changed: the volume exists; create another object",
        "fieldPath": ".storageClassName",
    },
    {
        "rule": "has(self.existingClaim) || quantity(has(self.storage) ? self.storage : '10Gi').compareTo(quantity(has(oldSelf.storage) ? oldSelf.storage : '10Gi')) >= 0",
        "message": "storage can only grow (not set means 10Gi): volumes cannot shrink; keep the larger size, or create another object",
        "fieldPath": ".storage",
    },
]))]
pub struct Workspace {
    /// Size of the volume; can grow later where its class allows. Default: 10Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::volume_size")]
    pub storage: Option<String>,

    /// Class of the volume. Default: the cluster's default class. Cannot be changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub storage_class_name: Option<String>,

    /// Name of a claim in this namespace to use instead of a new one; it is never deleted. The journal
    /// then gets a claim of its own. Cannot be changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub existing_claim: Option<String>,

    /// What becomes of the volume when this object is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// What becomes of the volume when the object is deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!has(self.days) || self.policy == 'Retain'",
        "message": "days needs policy Retain; set it, or remove days",
    },
]))]
pub struct Retention {
    /// `Delete`: the claim goes with the object. `Retain`: the claim stays, without owner.
    #[serde(default)]
    pub policy: RetentionPolicy,

    /// How many days a retained claim is meant to be kept. Recorded on the claim as an annotation; this
    /// version deletes no retained claim by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3650))]
    pub days: Option<i32>,
}

/// `Delete`: the claim goes with the object. `Retain`: the claim stays, without owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RetentionPolicy {
    #[default]
    #[expect(
        missing_docs,
        reason = "a doc comment would turn the enum's schema into a oneOf"
    )]
    Delete,
    #[expect(missing_docs, reason = "see above")]
    Retain,
}

/// The record of every event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "quantity(has(self.storage) ? self.storage : '1Gi').compareTo(quantity(has(oldSelf.storage) ? oldSelf.storage : '1Gi')) >= 0",
        "message": "storage can only grow (not set means 1Gi): volumes cannot shrink; keep the larger size, or create another object",
        "fieldPath": ".storage",
    },
]))]
pub struct Journal {
    /// Size of the journal's own claim, used with `workspace.existingClaim` only. Default: 1Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::volume_size")]
    pub storage: Option<String>,

    /// True: the audit log of model calls also holds the first 16 KiB of each request and answer, prompts
    /// and files of the workspace included. Keys are blotted out as far as they are known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub audit_content: bool,
}
