//! The workspace's claim.

use crate::session::{
    names::{Identity, RETENTION_DAYS},
    validate::{Validated, WorkspaceVolume},
};
use crds::quantity::Bytes;
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

/// The claim for the workspace; `None` where the session brings one.
///
/// A retained claim has no owner reference from the start, so that no instant exists in which the
/// garbage collector would take it.
#[must_use]
pub fn build_claim(validated: &Validated) -> Option<PersistentVolumeClaim> {
    let WorkspaceVolume::Own {
        storage,
        class,
        retain,
        days,
    } = &validated.workspace
    else {
        return None;
    };
    let identity = &validated.identity;
    let mut claim = new_claim(
        identity,
        identity.workspace_claim(),
        "workspace",
        *storage,
        !retain,
    );
    if let Some(days) = days {
        claim
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(RETENTION_DAYS.into(), days.to_string());
    }
    claim
        .spec
        .get_or_insert_default()
        .storage_class_name
        .clone_from(class);
    Some(claim)
}

pub(super) fn new_claim(
    identity: &Identity,
    name: String,
    component: &str,
    storage: Bytes,
    owned: bool,
) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: identity.child(name, component, owned),
        spec: Some(PersistentVolumeClaimSpec {
            // Not ReadWriteOncePod: drivers that are no CSI drivers (local-path among them) refuse it,
            // and the class does not tell. A second pod cannot exist anyway: it would need the name.
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), Quantity(storage.to_string()))].into()),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}
