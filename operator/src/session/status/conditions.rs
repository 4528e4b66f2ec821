//! The conditions: one function each, from what is.

use super::Input;
use crate::{
    apply::Applied,
    session::{
        decide::{DeleteReason, Step, condition, pod_ready},
        observe::{Child, Foreign},
        validate::{ProviderKey, Validated, WorkspaceVolume},
    },
};
use k8s_openapi::api::core::v1::{ContainerStatus, PersistentVolumeClaim, Pod};

/// The session takes turns.
pub const READY: &str = "Ready";
/// Every provider's key is there.
pub const SECRETS_RESOLVED: &str = "SecretsResolved";
/// The volumes are there.
pub const WORKSPACE_READY: &str = "WorkspaceReady";
/// The pod is ready.
pub const POD_READY: &str = "PodReady";
/// OpenCode answers.
pub const AGENT_READY: &str = "AgentReady";
/// The agent's tools are kept from the ports of the pod.
pub const ISOLATED: &str = "Isolated";
/// Present only when so: the image cannot run OpenCode.
pub const AGENT_IMAGE_UNSUPPORTED: &str = "AgentImageUnsupported";
/// Reason of [`WORKSPACE_READY`]: the volume stays as large as it is.
pub const REASON_EXPANSION_REFUSED: &str = "ExpansionRefused";

const FOREIGN: &str = "ForeignObject";
const REFUSED: &str = "Refused";
const MESSAGE_MAX: usize = 1024;

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    True,
    False,
    Unknown,
}

impl Verdict {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// A condition without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) type_: &'static str,
    pub(super) verdict: Verdict,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Draft {
    fn new(type_: &'static str, verdict: Verdict, reason: &str, message: impl AsRef<str>) -> Self {
        let message: String = message
            .as_ref()
            .chars()
            .filter(|c| !c.is_control() || *c == '\n')
            .collect();
        Self {
            type_,
            verdict,
            reason: reason.to_owned(),
            message: super::cut(&message, MESSAGE_MAX),
        }
    }

    /// Whether somebody must do something before the session can start.
    pub(super) fn blocks(&self) -> bool {
        self.verdict != Verdict::True && is_trouble(&self.reason)
    }
}

/// Reasons that are worth an Event; all others are steps on the way.
pub(super) fn is_trouble(reason: &str) -> bool {
    !matches!(
        reason,
        "Ready"
            | "Bound"
            | "InUse"
            | "AllPresent"
            | "Answering"
            | "Enforced"
            | "NotEnforced"
            | "Creating"
            | "ClaimPending"
            | "Starting"
            | "NotReported"
            | "Suspended"
            | "Terminating"
            | "UpdateWaits"
            | "Replacing"
            | "PodAbsent"
            | "Deleted"
    )
}

pub(super) fn drafts(input: &Input<'_>) -> Vec<Draft> {
    let (validated, plan) = match input.wanted {
        Ok(wanted) => wanted,
        Err(invalid) => {
            // Nothing is done for a spec that makes no sense; what runs goes on.
            let mut drafts = vec![Draft::new(
                READY,
                Verdict::False,
                invalid.reason(),
                invalid.to_string(),
            )];
            drafts.extend(
                [
                    SECRETS_RESOLVED,
                    WORKSPACE_READY,
                    POD_READY,
                    AGENT_READY,
                    ISOLATED,
                ]
                .map(|type_| {
                    Draft::new(
                        type_,
                        Verdict::Unknown,
                        "NotReported",
                        "The spec is wrong; see condition Ready.",
                    )
                }),
            );
            return drafts;
        }
    };
    let workspace = workspace(input, validated);
    let secrets = secrets(input, validated);
    let pod = pod(input, validated);
    let (agent, unsupported) = agent(input);
    let isolated = isolated(input);
    // In place it was refused, and a new pod would cut a turn.
    let resize_refused = matches!(
        tried(input, |s| matches!(s, Step::Resize { .. })),
        Some(Applied::Refused(_))
    );
    let ready = ready(
        validated.suspend,
        plan.update_waits || resize_refused,
        &[&workspace, &pod, &secrets, &agent],
    );
    let mut drafts = vec![ready, secrets, workspace, pod, agent, isolated];
    drafts.extend(unsupported);
    drafts
}

fn ready(suspended: bool, update_waits: bool, parts: &[&Draft]) -> Draft {
    if suspended {
        return Draft::new(
            READY,
            Verdict::False,
            "Suspended",
            "spec.suspend is true; set it to false to go on with the same volume.",
        );
    }
    // Trouble explains more than the waiting that follows from it.
    let first = parts
        .iter()
        .find(|d| d.blocks())
        .or_else(|| parts.iter().find(|d| d.verdict != Verdict::True));
    match first {
        Some(draft) => Draft::new(READY, Verdict::False, &draft.reason, &draft.message),
        None if update_waits => Draft::new(
            READY,
            Verdict::True,
            "UpdateWaits",
            "The session takes turns. A change of the spec needs a new pod and waits until no turn runs.",
        ),
        None => Draft::new(READY, Verdict::True, "Ready", "The session takes turns."),
    }
}

fn tried<'a>(input: &'a Input<'_>, is: impl Fn(&Step) -> bool) -> Option<&'a Applied> {
    input
        .applied
        .iter()
        .find(|(step, _)| is(step))
        .map(|(_, applied)| applied)
}

fn workspace(input: &Input<'_>, validated: &Validated) -> Draft {
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
            FOREIGN,
            foreign_message("PersistentVolumeClaim", &name, foreign),
        ),
        (_, Some(Applied::Refused(why))) => draft(
            Verdict::False,
            REFUSED,
            format!("PersistentVolumeClaim {name} for the {role} was refused: {why}"),
        ),
        (Child::Own(claim), _) => {
            if let Some(Applied::ExpansionRefused(why)) = changed {
                return draft(
                    Verdict::True,
                    REASON_EXPANSION_REFUSED,
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
                    REASON_EXPANSION_REFUSED,
                    kept.message.clone(),
                );
            }
            own_claim(claim, &name, validated, input)
        }
        (Child::Absent, _) => draft(
            Verdict::False,
            "Creating",
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
            "ClaimTerminating",
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
                "ClaimLost",
                format!(
                    "PersistentVolumeClaim {name} lost its volume; restore the volume, or delete the claim to begin anew."
                ),
            );
        }
        Some(_) | None => {
            return draft(
                Verdict::False,
                "ClaimPending",
                format!(
                    "PersistentVolumeClaim {name} has no volume yet: kubectl describe pvc {name}"
                ),
            );
        }
    }
    match &validated.workspace {
        WorkspaceVolume::Own { .. } => draft(
            Verdict::True,
            "Bound",
            format!("PersistentVolumeClaim {name} is bound."),
        ),
        WorkspaceVolume::Existing { claim, .. } => match input.observed.pod.own() {
            Some(pod) if pod_ready(pod) => draft(
                Verdict::True,
                "InUse",
                format!("PersistentVolumeClaim {claim} is mounted."),
            ),
            Some(_) | None => draft(
                Verdict::Unknown,
                "NotReported",
                format!(
                    "PersistentVolumeClaim {claim} is yours; condition PodReady says whether it can be used."
                ),
            ),
        },
    }
}

fn foreign_message(kind: &str, name: &str, foreign: &Foreign) -> String {
    let owner = foreign
        .owner
        .as_ref()
        .map(|o| format!(" (controlled by {o})"))
        .unwrap_or_default();
    if foreign.terminating {
        format!("{kind} {name} of somebody else{owner} is being deleted; the name is awaited.")
    } else {
        format!(
            "{kind} {name} exists and does not belong to this session{owner}; it is neither used nor deleted. Delete or rename it, or give this session another name."
        )
    }
}

fn secrets(input: &Input<'_>, validated: &Validated) -> Draft {
    let Some(seen) = &input.observed.summary else {
        return Draft::new(
            SECRETS_RESOLVED,
            Verdict::Unknown,
            "NotReported",
            "The sidecar has not told yet.",
        );
    };
    let missing: Vec<&ProviderKey> = validated
        .provider_keys
        .iter()
        .filter(|key| seen.summary.missing_keys.contains(&key.provider))
        .collect();
    if missing.is_empty() {
        return Draft::new(
            SECRETS_RESOLVED,
            Verdict::True,
            "AllPresent",
            "Every provider has its key.",
        );
    }
    let namespace = &validated.identity.namespace;
    let list: Vec<String> = missing
        .iter()
        .map(|ProviderKey { provider, secret }| {
            let (name, key) = (&secret.name, &secret.key);
            format!(
                "provider {provider}: key {key} of Secret {name} is absent or empty; create it with: kubectl -n {namespace} create secret generic {name} --from-literal={key}=..."
            )
        })
        .collect();
    Draft::new(
        SECRETS_RESOLVED,
        Verdict::False,
        "SecretMissing",
        list.join("\n"),
    )
}

fn pod(input: &Input<'_>, validated: &Validated) -> Draft {
    let draft =
        |verdict, reason: &str, message: String| Draft::new(POD_READY, verdict, reason, message);
    let name = validated.identity.pod();
    let created = tried(input, |s| *s == Step::CreatePod);
    let deleted = input.applied.iter().find_map(|(step, applied)| match step {
        Step::DeletePod { why, .. } => Some((*why, applied)),
        _ => None,
    });
    match (&input.observed.pod, created) {
        (Child::Foreign(foreign), _) | (Child::Absent, Some(Applied::Foreign(foreign))) => draft(
            Verdict::False,
            FOREIGN,
            foreign_message("Pod", &name, foreign),
        ),
        (Child::Absent, Some(Applied::Refused(why))) => draft(
            Verdict::False,
            REFUSED,
            format!("Pod {name} was refused: {why}"),
        ),
        (Child::Absent, _) if validated.suspend => draft(
            Verdict::False,
            "Suspended",
            "There is no pod while spec.suspend is true.".into(),
        ),
        (Child::Absent, Some(_)) => draft(
            Verdict::False,
            "Creating",
            format!("Pod {name} is being created."),
        ),
        (Child::Absent, None) => draft(
            Verdict::False,
            "PodAbsent",
            format!("Pod {name} does not exist."),
        ),
        (Child::Own(pod), _) => {
            if let Some((why, Applied::Done)) = deleted {
                let (reason, message) = match why {
                    DeleteReason::Suspended => {
                        ("Suspended", "The pod ends, because spec.suspend is true.")
                    }
                    DeleteReason::TemplateChanged => (
                        "Replacing",
                        "The pod is replaced, because a change needs a new one.",
                    ),
                    DeleteReason::PodEnded => {
                        ("Replacing", "The pod ended by itself and is replaced.")
                    }
                    DeleteReason::ResizeInfeasible => (
                        "Replacing",
                        "The pod is replaced, because its resources cannot be changed where it is.",
                    ),
                };
                return draft(Verdict::False, reason, message.into());
            }
            let resized = tried(input, |s| matches!(s, Step::Resize { .. }));
            match resized {
                Some(Applied::Replaced(why)) => draft(
                    Verdict::False,
                    "Replacing",
                    format!(
                        "The pod is replaced, because its resources cannot be changed in place: {why}"
                    ),
                ),
                _ => own_pod(pod, validated),
            }
        }
    }
}

fn own_pod(pod: &Pod, validated: &Validated) -> Draft {
    let draft =
        |verdict, reason: &str, message: String| Draft::new(POD_READY, verdict, reason, message);
    let name = validated.identity.pod();
    if pod.metadata.deletion_timestamp.is_some() {
        return draft(
            Verdict::False,
            if validated.suspend {
                "Suspended"
            } else {
                "Terminating"
            },
            format!(
                "Pod {name} is ending. Its successor waits until it is gone; on a lost node that is when the node comes back or its object is deleted."
            ),
        );
    }
    let status = pod.status.as_ref();
    if let Some(phase @ ("Failed" | "Succeeded")) = status.and_then(|s| s.phase.as_deref()) {
        let why = status
            .and_then(|s| s.message.as_deref().or(s.reason.as_deref()))
            .unwrap_or(phase);
        return draft(
            Verdict::False,
            "PodEnded",
            format!("Pod {name} ended by itself ({why}) and is replaced."),
        );
    }
    if pod_ready(pod) {
        return draft(Verdict::True, "Ready", format!("Pod {name} is ready."));
    }
    if let Some(scheduled) = condition(pod, "PodScheduled").filter(|c| c.status == "False") {
        let message = scheduled.message.as_deref().unwrap_or("no node fits");
        return draft(
            Verdict::False,
            "Unschedulable",
            format!("Pod {name} has no node: {message}"),
        );
    }
    let containers = status.into_iter().flat_map(|s| {
        s.init_container_statuses
            .iter()
            .flatten()
            .chain(s.container_statuses.iter().flatten())
    });
    for container in containers {
        if let Some((reason, message)) = stuck(container) {
            return draft(
                Verdict::False,
                reason,
                format!("Container {}: {message}", container.name),
            );
        }
    }
    draft(
        Verdict::False,
        "Starting",
        format!("Pod {name} is starting."),
    )
}

/// Why a container does not come up by itself, with a reason of a fixed list: the kubelet's own texts
/// are no names for metrics.
fn stuck(container: &ContainerStatus) -> Option<(&'static str, String)> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    let known = match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable" => "ImagePullFailed",
        "CrashLoopBackOff" => "CrashLoop",
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            "ContainerFailed"
        }
        _ => return None,
    };
    let image = &container.image;
    let detail = waiting.message.as_deref().unwrap_or(reason);
    let ended = container
        .last_state
        .as_ref()
        .and_then(|s| s.terminated.as_ref())
        .map(|t| format!(" Last exit code {}.", t.exit_code))
        .unwrap_or_default();
    // The kubelet's text of a crash loop names the growing pause: it would be a new status each time.
    let text = if known == "CrashLoop" {
        let name = &container.name;
        format!(
            "it ends again and again, image {image}.{ended} See: kubectl logs -c {name} --previous"
        )
    } else {
        format!("{reason}, image {image}: {detail}.{ended}")
    };
    Some((known, text))
}

fn agent(input: &Input<'_>) -> (Draft, Option<Draft>) {
    let draft = |verdict, reason, message: &str| Draft::new(AGENT_READY, verdict, reason, message);
    let Some(seen) = &input.observed.summary else {
        return (
            draft(
                Verdict::Unknown,
                "NotReported",
                "The sidecar has not told yet.",
            ),
            None,
        );
    };
    let agent = &seen.summary.agent;
    if let Some(why) = &agent.unsupported {
        let unsupported = Draft::new(
            AGENT_IMAGE_UNSUPPORTED,
            Verdict::True,
            "ImageUnsupported",
            why,
        );
        return (
            draft(Verdict::False, "ImageUnsupported", why),
            Some(unsupported),
        );
    }
    if !seen.connected {
        return (
            draft(
                Verdict::Unknown,
                "NotReported",
                "The sidecar cannot be reached right now.",
            ),
            None,
        );
    }
    if agent.ready {
        let version = agent.version.as_deref().unwrap_or("of unknown version");
        return (
            draft(
                Verdict::True,
                "Answering",
                &format!("OpenCode {version} answers."),
            ),
            None,
        );
    }
    let message = agent.message.as_deref().unwrap_or("OpenCode is starting.");
    (draft(Verdict::False, "Starting", message), None)
}

fn isolated(input: &Input<'_>) -> Draft {
    let Some(seen) = input
        .observed
        .summary
        .as_ref()
        .filter(|seen| seen.summary.agent.ready)
    else {
        return Draft::new(
            ISOLATED,
            Verdict::Unknown,
            "NotReported",
            "The sidecar has not told yet.",
        );
    };
    let isolation = &seen.summary.isolation;
    if isolation.enforced {
        Draft::new(ISOLATED, Verdict::True, "Enforced", &isolation.message)
    } else {
        Draft::new(ISOLATED, Verdict::False, "NotEnforced", &isolation.message)
    }
}
