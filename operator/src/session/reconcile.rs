//! One round for one session: observe, validate, decide, build, apply, status.

use super::{
    build::{self, PodSettings},
    decide::{self, DeleteReason, Plan, REQUEUE_FOREIGN, Step},
    names::Identity,
    observe::{self, Child, Stores},
    status,
    validate::validate,
};
use crate::{
    apply::{Applied, ApplyError, Writer},
    metrics::Metrics,
    reason::Reason,
    summaries::Summaries,
};
use crds::OpenCodeSession;
use jiff::{SignedDuration, Timestamp};
use kube::runtime::events::{Event, EventType};
use std::{sync::Arc, time::Duration};

/// When the cache was behind.
const REQUEUE_STALE: Duration = Duration::from_secs(1);
/// When the API server refused something that may be allowed later, as with a quota.
const REQUEUE_REFUSED: Duration = Duration::from_secs(15);
/// For how long the steps of a start are not written one by one.
const PROGRESS_PAUSE: SignedDuration = SignedDuration::from_secs(5);

/// What every round shares.
#[derive(Debug)]
pub struct Context {
    /// The caches.
    pub stores: Stores,
    /// What the sidecars say.
    pub summaries: Summaries,
    /// The operator's share of every pod.
    pub settings: PodSettings,
    /// Writes.
    pub writer: Writer,
    /// Counts.
    pub metrics: Metrics,
}

/// One round. Returns when to look again if nothing happens before.
pub async fn reconcile(
    context: &Context,
    session: Arc<OpenCodeSession>,
    now: Timestamp,
) -> Result<Option<Duration>, ApplyError> {
    let Some(identity) = Identity::of(&session) else {
        return Ok(None);
    };
    let observed = observe::observe(&identity, session, &context.stores, &context.summaries);
    follow(context, &identity, &observed);
    let (wanted, plan) = match validate(&identity, &observed.session) {
        Ok(validated) => {
            let print = decide::fingerprint(&validated, &context.settings);
            let plan = decide::decide(&observed, &validated, &print, now);
            (Ok(validated), plan)
        }
        Err(invalid) => (Err(invalid), Plan::default()),
    };
    let mut requeue = plan.requeue;
    let mut applied = Vec::new();
    let mut failure = None;
    if let Ok(validated) = &wanted {
        let prompt_consumed = decide::prompt_consumed(&observed);
        for step in &plan.steps {
            let Some(write) = build::build(step, validated, &context.settings, prompt_consumed)
            else {
                continue;
            };
            match context.writer.apply(&identity, write).await {
                Ok(outcome) => {
                    let go_on = matches!(outcome, Applied::Done | Applied::ExpansionRefused(_));
                    requeue = sooner(requeue, &outcome);
                    applied.push((step.clone(), outcome));
                    if !go_on {
                        break;
                    }
                }
                // The status still tells what was done before.
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
    }
    let input = status::Input {
        observed: &observed,
        wanted: wanted.as_ref().map(|validated| (validated, &plan)),
        applied: &applied,
    };
    let written = write_status(context, &identity, &input, now).await?;
    announce(context, &observed.session, &applied).await;
    if let Some(error) = failure {
        return Err(error);
    }
    Ok(written.or(requeue))
}

/// Listens to the sidecar as soon as the pod has an address.
fn follow(context: &Context, identity: &Identity, observed: &observe::Observed) {
    let Child::Own(pod) = &observed.pod else {
        return;
    };
    let address = pod
        .status
        .as_ref()
        .and_then(|s| s.pod_ip.as_deref())
        .filter(|ip| !ip.is_empty());
    if let (Some(address), Some(uid), None) =
        (address, &pod.metadata.uid, &pod.metadata.deletion_timestamp)
    {
        let base = status::base_url(address);
        let ready = decide::pod_ready(pod);
        context
            .summaries
            .follow(identity, uid, base, ready, &context.stores.pods);
    }
}

fn sooner(requeue: Option<Duration>, outcome: &Applied) -> Option<Duration> {
    let wanted = match outcome {
        Applied::Done | Applied::Replaced(_) | Applied::ExpansionRefused(_) => return requeue,
        Applied::Stale => REQUEUE_STALE,
        Applied::Foreign(_) => REQUEUE_FOREIGN,
        Applied::Refused(_) => REQUEUE_REFUSED,
    };
    Some(requeue.map_or(wanted, |r| r.min(wanted)))
}

/// Writes the status if it differs. Returns when to look again if it was not worth a write yet.
async fn write_status(
    context: &Context,
    identity: &Identity,
    input: &status::Input<'_>,
    now: Timestamp,
) -> Result<Option<Duration>, ApplyError> {
    let session = &input.observed.session;
    let before = session.status.as_ref();
    let after = status::compute(input, now);
    context.metrics.phase(&identity.uid, after.phase);
    if before.is_some_and(|before| status::same(before, &after)) {
        return Ok(None);
    }
    if let (Some(before), Some(pod)) = (before, input.observed.pod.own()) {
        let age = pod
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|t| now.duration_since(t.0));
        if let Some(left) = age
            .map(|age| PROGRESS_PAUSE - age)
            .filter(SignedDuration::is_positive)
            && status::only_progress(before, &after)
        {
            return Ok(Some(left.unsigned_abs()));
        }
    }
    if let Some(patch) = status::merge_patch(before, &after) {
        match context.writer.status(identity, &patch).await? {
            Applied::Done | Applied::Stale => {}
            other => tracing::warn!(
                session = identity.name,
                namespace = identity.namespace,
                ?other,
                "status refused"
            ),
        }
        for (reason, note) in status::troubles(before, &after) {
            let event = Event {
                type_: EventType::Warning,
                reason,
                note: Some(note),
                action: "Reconcile".into(),
                secondary: None,
            };
            context.writer.event(session, &event).await;
        }
    }
    Ok(None)
}

/// Tells why a pod was ended: the one thing that happens to a session and leaves no condition.
async fn announce(context: &Context, session: &OpenCodeSession, applied: &[(Step, Applied)]) {
    for (step, outcome) in applied {
        let (reason, note) = match (step, outcome) {
            (Step::DeletePod { why, .. }, Applied::Done) => (
                why.reason(),
                match why {
                    DeleteReason::Suspended => "The pod ends, because spec.suspend is true.".to_owned(),
                    DeleteReason::TemplateChanged => {
                        "The pod is replaced, because a change needs a new one; no turn was running.".to_owned()
                    }
                    DeleteReason::PodEnded => "The pod ended by itself and is replaced on the same volume.".to_owned(),
                    DeleteReason::ResizeInfeasible => {
                        "The pod is replaced, because its node cannot give it the new resources.".to_owned()
                    }
                },
            ),
            (Step::Resize { .. }, Applied::Replaced(why)) => (
                Reason::ResizeRefused,
                format!("The pod is replaced, because its resources cannot be changed in place: {}", status::cut(why, 800)),
            ),
            _ => continue,
        };
        context.metrics.pod_deleted(reason);
        let event = Event {
            type_: EventType::Normal,
            reason: reason.as_str().into(),
            note: Some(note),
            action: "DeletePod".into(),
            secondary: None,
        };
        context.writer.event(session, &event).await;
    }
}
