//! Condition PodReady.

use super::{Draft, POD_READY, Verdict, foreign_message, tried};
use crate::{
    apply::Applied,
    reason::Reason,
    session::{
        decide::{DeleteReason, Step, condition, pod_ready},
        observe::Child,
        status::Input,
        validate::Validated,
    },
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

pub(super) fn pod(input: &Input<'_>, validated: &Validated) -> Draft {
    let draft =
        |verdict, reason: Reason, message: String| Draft::new(POD_READY, verdict, reason, message);
    let name = validated.identity.pod();
    let created = tried(input, |s| *s == Step::CreatePod);
    let deleted = input.applied.iter().find_map(|(step, applied)| match step {
        Step::DeletePod { why, .. } => Some((*why, applied)),
        _ => None,
    });
    match (&input.observed.pod, created) {
        (Child::Foreign(foreign), _) | (Child::Absent, Some(Applied::Foreign(foreign))) => draft(
            Verdict::False,
            Reason::ForeignObject,
            foreign_message("Pod", &name, foreign),
        ),
        (Child::Absent, Some(Applied::Refused(why))) => draft(
            Verdict::False,
            Reason::Refused,
            format!("Pod {name} was refused: {why}"),
        ),
        (Child::Absent, _) if validated.suspend => draft(
            Verdict::False,
            Reason::Suspended,
            "There is no pod while spec.suspend is true.".into(),
        ),
        (Child::Absent, Some(_)) => draft(
            Verdict::False,
            Reason::Creating,
            format!("Pod {name} is being created."),
        ),
        (Child::Absent, None) => draft(
            Verdict::False,
            Reason::PodAbsent,
            format!("Pod {name} does not exist."),
        ),
        (Child::Own(pod), _) => {
            if let Some((why, Applied::Done)) = deleted {
                let (reason, message) = match why {
                    DeleteReason::Suspended => (
                        Reason::Suspended,
                        "The pod ends, because spec.suspend is true.",
                    ),
                    DeleteReason::TemplateChanged => (
                        Reason::Replacing,
                        "The pod is replaced, because a change needs a new one.",
                    ),
                    DeleteReason::PodEnded => (
                        Reason::Replacing,
                        "The pod ended by itself and is replaced.",
                    ),
                    DeleteReason::ResizeInfeasible => (
                        Reason::Replacing,
                        "The pod is replaced, because its resources cannot be changed where it is.",
                    ),
                };
                return draft(Verdict::False, reason, message.into());
            }
            let resized = tried(input, |s| matches!(s, Step::Resize { .. }));
            match resized {
                Some(Applied::Replaced(why)) => draft(
                    Verdict::False,
                    Reason::Replacing,
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
        |verdict, reason: Reason, message: String| Draft::new(POD_READY, verdict, reason, message);
    let name = validated.identity.pod();
    if pod.metadata.deletion_timestamp.is_some() {
        return draft(
            Verdict::False,
            if validated.suspend {
                Reason::Suspended
            } else {
                Reason::Terminating
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
            Reason::PodEnded,
            format!("Pod {name} ended by itself ({why}) and is replaced."),
        );
    }
    if pod_ready(pod) {
        return draft(
            Verdict::True,
            Reason::Ready,
            format!("Pod {name} is ready."),
        );
    }
    if let Some(scheduled) = condition(pod, "PodScheduled").filter(|c| c.status == "False") {
        let message = scheduled.message.as_deref().unwrap_or("no node fits");
        return draft(
            Verdict::False,
            Reason::Unschedulable,
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
        Reason::Starting,
        format!("Pod {name} is starting."),
    )
}

/// Why a container does not come up by itself, with a reason of a fixed list: the kubelet's own texts
/// are no names for metrics.
fn stuck(container: &ContainerStatus) -> Option<(Reason, String)> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    let known = match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable" => Reason::ImagePullFailed,
        "CrashLoopBackOff" => Reason::CrashLoop,
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            Reason::ContainerFailed
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
    let text = if known == Reason::CrashLoop {
        let name = &container.name;
        format!(
            "it ends again and again, image {image}.{ended} See: kubectl logs -c {name} --previous"
        )
    } else {
        format!("{reason}, image {image}: {detail}.{ended}")
    };
    Some((known, text))
}
