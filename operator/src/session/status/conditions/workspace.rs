//! Condition WorkspaceReady.

use super::{Draft, REASON_EXPANSION_REFUSED, Verdict, WORKSPACE_READY, foreign_message, tried};
use crate::{
    apply::Applied,
    reason::Reason,
    session::{
        decide::{Step, pod_ready},
        observe::Child,
        status::Input,
        validate::{Validated, WorkspaceVolume},
    },
};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

pub(super) fn workspace(input: &Input<'_>, validated: &Validated) -> Draft {
    let draft =
        |verdict, reason, message: String| Draft::new(WORKSPACE_READY, verdict, reason, message);
    let identity = &validated.identity;
    let (child, name, role) = match &validated.workspace {
        WorkspaceVolume::Own { .. } => (
            &input.observed.claim,
            identity.workspace_claim(),
            "workspace",
        ),
        WorkspaceVolume::Existing { .. } => (
            &input.observed.journal_claim,
            identity.journal_claim(),
            "journal",
        ),
    };
    let created = tried(input, |s| {
        matches!(s, Step::CreateClaim | Step::CreateJournalClaim)
    });
    let changed = tried(input, |s| {
        matches!(s, Step::AdjustClaim { .. } | Step::GrowJournalClaim { .. })
    });
    match (child, created) {
        (Child::Foreign(foreign), _) | (Child::Absent, Some(Applied::Foreign(foreign))) => draft(
            Verdict::False,
            Reason::ForeignObject,
            foreign_message("PersistentVolumeClaim", &name, foreign),
        ),
        (_, Some(Applied::Refused(why))) => draft(
            Verdict::False,
            Reason::Refused,
            format!("PersistentVolumeClaim {name} for the {role} was refused: {why}"),
        ),
        (Child::Own(claim), _) => {
            if let Some(Applied::ExpansionRefused(why)) = changed {
                return draft(
                    Verdict::True,
                    Reason::ExpansionRefused,
                    format!(
                        "The volume of {name} keeps its size: {why}. Let its StorageClass allow expansion; the next change of the spec tries again."
                    ),
                );
            }
            let kept = input
                .observed
                .session
                .status
                .iter()
                .flat_map(|s| &s.conditions)
                .find(|c| {
                    c.type_ == WORKSPACE_READY
                        && c.reason == REASON_EXPANSION_REFUSED
                        && c.observed_generation == input.observed.session.metadata.generation
                });
            if let Some(kept) = kept {
                return draft(
                    Verdict::True,
                    Reason::ExpansionRefused,
                    kept.message.clone(),
                );
            }
            own_claim(claim, &name, validated, input)
        }
        (Child::Absent, _) => draft(
            Verdict::False,
            Reason::Creating,
            format!("PersistentVolumeClaim {name} is being created."),
        ),
    }
}

fn own_claim(
    claim: &PersistentVolumeClaim,
    name: &str,
    validated: &Validated,
    input: &Input<'_>,
) -> Draft {
    let draft =
        |verdict, reason, message: String| Draft::new(WORKSPACE_READY, verdict, reason, message);
    if claim.metadata.deletion_timestamp.is_some() {
        return draft(
            Verdict::False,
            Reason::ClaimTerminating,
            format!(
                "PersistentVolumeClaim {name} is being deleted by somebody; its data goes with it when the pod ends."
            ),
        );
    }
    match claim.status.as_ref().and_then(|s| s.phase.as_deref()) {
        Some("Bound") => {}
        Some("Lost") => {
            return draft(
                Verdict::False,
                Reason::ClaimLost,
                format!(
                    "PersistentVolumeClaim {name} lost its volume; restore the volume, or delete the claim to begin anew."
                ),
            );
        }
        Some(_) | None => {
            return draft(
                Verdict::False,
                Reason::ClaimPending,
                format!(
                    "PersistentVolumeClaim {name} has no volume yet: kubectl describe pvc {name}"
                ),
            );
        }
    }
    match &validated.workspace {
        WorkspaceVolume::Own { .. } => draft(
            Verdict::True,
            Reason::Bound,
            format!("PersistentVolumeClaim {name} is bound."),
        ),
        WorkspaceVolume::Existing { claim, .. } => match input.observed.pod.own() {
            Some(pod) if pod_ready(pod) => draft(
                Verdict::True,
                Reason::InUse,
                format!("PersistentVolumeClaim {claim} is mounted."),
            ),
            Some(_) | None => draft(
                Verdict::Unknown,
                Reason::NotReported,
                format!(
                    "PersistentVolumeClaim {claim} is yours; condition PodReady says whether it can be used."
                ),
            ),
        },
    }
}
