//! The journal's own claim.

use super::claim::new_claim;
use crate::session::validate::{Validated, WorkspaceVolume};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

/// The claim for the journal, where the workspace is one that the session brings: that one may be
/// shared with others, and the journal must not be.
#[must_use]
pub fn build_journal_claim(validated: &Validated) -> Option<PersistentVolumeClaim> {
    let WorkspaceVolume::Existing { claim: _, journal } = &validated.workspace else {
        return None;
    };
    let identity = &validated.identity;
    Some(new_claim(
        identity,
        identity.journal_claim(),
        "journal",
        *journal,
        true,
    ))
}
