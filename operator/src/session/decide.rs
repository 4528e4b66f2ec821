//! What to do: pure, from what is and what is wanted.

use super::{
    build::pod,
    names::{RESOURCES, RETENTION_DAYS, TEMPLATE_HASH, annotation, controller},
    observe::{Child, Observed},
    status::{REASON_EXPANSION_REFUSED, WORKSPACE_READY},
    validate::{Validated, WorkspaceVolume},
};
use crate::reason::Reason;
use contract::pod::{CONFIG_ANNOTATION, KEYS_ANNOTATION, REFRESH_ANNOTATION};
use crds::{OpenCodeSession, quantity::Bytes};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use std::time::Duration;

/// When nothing is expected: what an event was missed for is found then.
pub const REQUEUE_SLOW: Duration = Duration::from_secs(600);
/// When something is awaited that no watch tells: objects without our label.
pub const REQUEUE_FOREIGN: Duration = Duration::from_secs(10);
/// Shortest life of a pod that ended by itself before it is replaced, so that a node which evicts at
/// once is not flooded.
pub const REPLACE_AFTER: SignedDuration = SignedDuration::from_secs(10);
/// Between two looks for a missing Secret, in the first minute and later.
pub const REFRESH_EVERY: [SignedDuration; 2] =
    [SignedDuration::from_secs(2), SignedDuration::from_secs(30)];

/// Looks for another key after one was refused. The sidecar tells of at most five refusals of a key, so
/// that these are at most 20 for each.
pub const REFRESH_REFUSED: [SignedDuration; 4] = [
    SignedDuration::ZERO,
    SignedDuration::from_secs(5),
    SignedDuration::from_secs(20),
    SignedDuration::from_secs(60),
];

/// One change. Bodies are made by [`super::build`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the workspace's claim.
    CreateClaim,
    /// Make the journal's claim.
    CreateJournalClaim,
    /// Change the workspace's claim.
    AdjustClaim {
        /// Which one.
        uid: String,
        /// Its version: the list of owners is replaced as a whole.
        resource_version: String,
        /// Ask for the declared size.
        grow: bool,
        /// Set owner and annotation by the retention.
        retention: bool,
    },
    /// Ask for the declared size of the journal.
    GrowJournalClaim {
        /// Which one.
        uid: String,
    },
    /// Make the pod.
    CreatePod,
    /// Change annotations of the running pod.
    Annotate {
        /// Which one.
        uid: String,
        /// Write the configuration.
        config: bool,
        /// Write the public keys.
        keys: bool,
        /// Make the kubelet look for Secrets again.
        refresh: Option<Timestamp>,
    },
    /// Change resources of the running pod.
    Resize {
        /// Which one.
        uid: String,
        /// Where the cluster refuses: whether a new pod may take its place now.
        replace_if_refused: bool,
    },
    /// Delete the pod with its grace period.
    DeletePod {
        /// Which one.
        uid: String,
        /// Why.
        why: DeleteReason,
    },
}

/// Why a pod is deleted; the name is the reason of the Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteReason {
    /// The user suspended the session.
    Suspended,
    /// A change needs a new pod.
    TemplateChanged,
    /// It ended by itself: evicted, or its node shut down.
    PodEnded,
    /// New resources do not fit on its node.
    ResizeInfeasible,
}

impl DeleteReason {
    /// Reason of Event and metric.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Self::Suspended => Reason::Suspended,
            Self::TemplateChanged => Reason::TemplateChanged,
            Self::PodEnded => Reason::PodEnded,
            Self::ResizeInfeasible => Reason::ResizeInfeasible,
        }
    }
}

/// What to do, and what is waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order; the first that does not succeed ends the round.
    pub steps: Vec<Step>,
    /// A change waits for the end of running turns.
    pub update_waits: bool,
    /// When to look again, whatever happens.
    pub requeue: Option<Duration>,
}

/// What a pod made now would carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// Value of [`TEMPLATE_HASH`].
    pub template: String,
    /// Value of [`CONFIG_ANNOTATION`] with `promptConsumed` false and true.
    pub config: [String; 2],
    /// Value of [`KEYS_ANNOTATION`].
    pub keys: String,
    /// Value of [`RESOURCES`].
    pub resources: String,
}

/// Whether the prompt was taken up before, by the status or by the sidecar.
#[must_use]
pub fn prompt_consumed(observed: &Observed) -> bool {
    let recorded = observed
        .session
        .status
        .as_ref()
        .and_then(|s| s.result.as_ref())
        .is_some_and(|r| r.started_at.is_some());
    recorded
        || observed
            .summary
            .as_ref()
            .is_some_and(|seen| seen.summary.prompt_session.is_some())
}

/// Decides. `now` is the only clock.
#[must_use]
pub fn decide(
    observed: &Observed,
    validated: &Validated,
    print: &Fingerprint,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan {
        requeue: Some(REQUEUE_SLOW),
        ..Plan::default()
    };
    if observed.session.metadata.deletion_timestamp.is_some() {
        // The garbage collector takes the children; making one now would only be in its way.
        return Plan::default();
    }
    let volumes_usable = claims(&mut plan, observed, validated);
    match &observed.pod {
        Child::Absent if validated.suspend || !volumes_usable => {}
        Child::Absent => plan.steps.push(Step::CreatePod),
        Child::Foreign(_) => plan.wait(REQUEUE_FOREIGN),
        Child::Own(pod) => running_pod(&mut plan, pod, observed, validated, print, now),
    }
    plan
}

impl Plan {
    fn wait(&mut self, at_most: Duration) {
        self.requeue = Some(self.requeue.map_or(at_most, |d| d.min(at_most)));
    }
}

/// Returns whether a pod may be made on the volumes.
fn claims(plan: &mut Plan, observed: &Observed, validated: &Validated) -> bool {
    let (child, declared, create) = match &validated.workspace {
        WorkspaceVolume::Own { storage, .. } => (&observed.claim, *storage, Step::CreateClaim),
        WorkspaceVolume::Existing { journal, .. } => {
            (&observed.journal_claim, *journal, Step::CreateJournalClaim)
        }
    };
    match child {
        Child::Absent => {
            plan.steps.push(create);
            true
        }
        Child::Foreign(_) => {
            plan.wait(REQUEUE_FOREIGN);
            false
        }
        Child::Own(claim) if claim.metadata.deletion_timestamp.is_some() => false,
        Child::Own(claim) => {
            let uid = claim.metadata.uid.clone().unwrap_or_default();
            let grow = requested(claim).is_some_and(|size| size < declared)
                && !expansion_was_refused(&observed.session);
            match &validated.workspace {
                WorkspaceVolume::Own { retain, days, .. } => {
                    let retention = retention_differs(claim, *retain, *days);
                    if grow || retention {
                        plan.steps.push(Step::AdjustClaim {
                            uid,
                            resource_version: claim
                                .metadata
                                .resource_version
                                .clone()
                                .unwrap_or_default(),
                            grow,
                            retention,
                        });
                    }
                }
                WorkspaceVolume::Existing { .. } if grow => {
                    plan.steps.push(Step::GrowJournalClaim { uid });
                }
                WorkspaceVolume::Existing { .. } => {}
            }
            true
        }
    }
}

fn requested(claim: &PersistentVolumeClaim) -> Option<Bytes> {
    let requests = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    requests.get("storage")?.0.parse().ok()
}

/// A class that cannot expand refuses each time; asking again makes sense only for another spec.
fn expansion_was_refused(session: &OpenCodeSession) -> bool {
    session.status.iter().flat_map(|s| &s.conditions).any(|c| {
        c.type_ == WORKSPACE_READY
            && c.reason == REASON_EXPANSION_REFUSED
            && c.observed_generation == session.metadata.generation
    })
}

fn retention_differs(claim: &PersistentVolumeClaim, retain: bool, days: Option<i32>) -> bool {
    let owned = controller(&claim.metadata).is_some();
    let recorded = annotation(&claim.metadata, RETENTION_DAYS);
    owned == retain || recorded != days.map(|d| d.to_string()).as_deref()
}

fn running_pod(
    plan: &mut Plan,
    pod: &Pod,
    observed: &Observed,
    validated: &Validated,
    print: &Fingerprint,
    now: Timestamp,
) {
    if pod.metadata.deletion_timestamp.is_some() {
        // Its name is free only when it is gone, on a lost node perhaps never: nothing is forced.
        return;
    }
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let delete = |why| Step::DeletePod {
        uid: uid.clone(),
        why,
    };
    if validated.suspend {
        plan.steps.push(delete(DeleteReason::Suspended));
        return;
    }
    if ended(pod) {
        let age = pod
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(SignedDuration::MAX, |t| now.duration_since(t.0));
        if age >= REPLACE_AFTER {
            plan.steps.push(delete(DeleteReason::PodEnded));
        } else {
            plan.wait((REPLACE_AFTER - age).unsigned_abs());
        }
        return;
    }
    let idle = idle(pod, observed);
    let replace = if annotation(&pod.metadata, TEMPLATE_HASH) != Some(&print.template) {
        Some(DeleteReason::TemplateChanged)
    } else if resize_infeasible(pod) {
        Some(DeleteReason::ResizeInfeasible)
    } else {
        None
    };
    match replace {
        Some(why) if idle => {
            plan.steps.push(delete(why));
            return;
        }
        Some(_) => plan.update_waits = true,
        None => {}
    }
    let config = annotation(&pod.metadata, CONFIG_ANNOTATION)
        .is_none_or(|written| !print.config.iter().any(|wanted| wanted == written));
    let keys = annotation(&pod.metadata, KEYS_ANNOTATION) != Some(&print.keys);
    let refresh = refresh(plan, pod, observed, now);
    if config || keys || refresh.is_some() {
        plan.steps.push(Step::Annotate {
            uid: uid.clone(),
            config,
            keys,
            refresh,
        });
    }
    if replace.is_none() && annotation(&pod.metadata, RESOURCES) != Some(&print.resources) {
        plan.steps.push(Step::Resize {
            uid,
            replace_if_refused: idle,
        });
    }
}

/// Evicted, or ended with its node.
fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

/// Whether no turn is cut by ending the pod. Where the sidecar tells nothing, a pod that is not ready
/// has nothing to cut, and one that is ready may be about to tell.
fn idle(pod: &Pod, observed: &Observed) -> bool {
    match &observed.summary {
        // A turn that only waits is no reason: what it waits for may be the very change.
        Some(seen) if seen.connected => seen.summary.running_turns <= seen.summary.waiting_turns,
        Some(_) | None => !pod_ready(pod),
    }
}

/// Whether the kubelet holds the pod for ready.
#[must_use]
pub fn pod_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// A condition of a pod.
#[must_use]
pub fn condition<'a>(
    pod: &'a Pod,
    type_: &str,
) -> Option<&'a k8s_openapi::api::core::v1::PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|c| c.type_ == type_)
}

fn resize_infeasible(pod: &Pod) -> bool {
    condition(pod, "PodResizePending")
        .is_some_and(|c| c.status == "True" && c.reason.as_deref() == Some("Infeasible"))
}

/// The kubelet looks for an absent optional Secret only at its next sync, up to a minute and a half
/// later, and for a changed one no sooner; any change of the pod makes it look at once.
fn refresh(plan: &mut Plan, pod: &Pod, observed: &Observed, now: Timestamp) -> Option<Timestamp> {
    let seen = observed.summary.as_ref().filter(|seen| seen.connected)?;
    let last =
        annotation(&pod.metadata, REFRESH_ANNOTATION).and_then(|t| t.parse::<Timestamp>().ok());
    let missing = refresh_missing(seen, last, now);
    let refused = seen
        .summary
        .refused_keys
        .iter()
        .filter_map(|key| refresh_refused(key.at, last, now))
        .min();
    let due = [missing, refused].into_iter().flatten().min()?;
    if due > SignedDuration::ZERO {
        plan.wait(due.unsigned_abs());
        return None;
    }
    // The next look, whatever it is for, asks again.
    plan.wait(REFRESH_EVERY[0].unsigned_abs());
    Some(now)
}

/// How long until the next look for a key that is missing; zero or less: now.
fn refresh_missing(
    seen: &crate::summaries::Seen,
    last: Option<Timestamp>,
    now: Timestamp,
) -> Option<SignedDuration> {
    if seen.summary.missing_keys.is_empty() {
        return None;
    }
    let missing_for = now.duration_since(seen.missing_since.unwrap_or(now));
    let [soon, late] = REFRESH_EVERY;
    let pause = if missing_for < SignedDuration::from_mins(1) {
        soon
    } else {
        late
    };
    Some(last.map_or(SignedDuration::ZERO, |last| {
        pause - now.duration_since(last)
    }))
}

/// The same for a key that was refused at that time: a few looks, each later than the one before, then
/// none, since the key may just be wrong. Nothing is remembered: the time of the last look says which
/// it was.
fn refresh_refused(
    at: Timestamp,
    last: Option<Timestamp>,
    now: Timestamp,
) -> Option<SignedDuration> {
    REFRESH_REFUSED
        .iter()
        .map(|after| at + *after)
        .find(|due| last.is_none_or(|last| last < *due))
        .map(|due| due.duration_since(now))
}

/// What a pod made now would carry.
#[must_use]
pub fn fingerprint(validated: &Validated, settings: &super::build::PodSettings) -> Fingerprint {
    let built = pod::build_pod(validated, settings, false);
    let take = |key: &str| {
        annotation(&built.metadata, key)
            .unwrap_or_default()
            .to_owned()
    };
    Fingerprint {
        template: take(TEMPLATE_HASH),
        config: [take(CONFIG_ANNOTATION), pod::config_json(validated, true)],
        keys: take(KEYS_ANNOTATION),
        resources: take(RESOURCES),
    }
}
