//! What the user is told: pure, from what is, what was tried and how it went.

mod conditions;
mod diff;

pub use conditions::{
    AGENT_IMAGE_UNSUPPORTED, AGENT_READY, ISOLATED, POD_READY, READY, REASON_EXPANSION_REFUSED,
    SECRETS_RESOLVED, WORKSPACE_READY,
};
pub use diff::merge_patch;

use super::decide::Step;
use super::{
    decide::{Plan, pod_ready},
    observe::{Child, Observed},
    validate::{Invalid, Validated, WorkspaceVolume},
};
use crate::apply::Applied;
use conditions::{Draft, Verdict};
use contract::{
    event::TurnError,
    pod::API_PORT,
    session::SessionState,
    spend::usd,
    summary::{self, PromptSession, Summary},
};
use crds::session::status::{
    Activity, AuditHead, BudgetLeft, OpenCodeSessionStatus, Phase, SessionResult, Usage,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};

/// What the status is computed from.
#[derive(Debug)]
pub struct Input<'a> {
    /// What is.
    pub observed: &'a Observed,
    /// What is wanted, or why that makes no sense.
    pub wanted: Result<(&'a Validated, &'a Plan), &'a Invalid>,
    /// The steps that were tried and how they went, in order.
    pub applied: &'a [(Step, Applied)],
}

/// The status that the object should have. `now` is used only for conditions that flip.
#[must_use]
pub fn compute(input: &Input<'_>, now: Timestamp) -> OpenCodeSessionStatus {
    let session = &input.observed.session;
    let previous = session.status.clone().unwrap_or_default();
    let generation = session.metadata.generation;
    let drafts = conditions::drafts(input);
    let phase = phase(input, &drafts);
    let conditions = drafts
        .into_iter()
        .map(|draft| settle(draft, &previous.conditions, generation, now))
        .collect();
    let pod = input
        .observed
        .pod
        .own()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let summary = input.observed.summary.as_ref().map(|seen| &seen.summary);
    OpenCodeSessionStatus {
        observed_generation: generation,
        phase: Some(phase),
        activity: activity(input, &previous),
        activity_message: activity_message(input),
        conditions,
        pod_name: pod_name(input),
        workspace_claim: match input.wanted {
            Ok((validated, _)) => Some(match &validated.workspace {
                WorkspaceVolume::Own { .. } => validated.identity.workspace_claim(),
                WorkspaceVolume::Existing { claim, .. } => claim.clone(),
            }),
            Err(_) => previous.workspace_claim.clone(),
        },
        endpoint: pod.and_then(endpoint),
        usage: summary.map(|s| usage(s)).or(previous.usage),
        result: summary
            .and_then(|s| s.prompt_session.as_ref())
            .map(result)
            .or(previous.result),
    }
}

fn pod_name(input: &Input<'_>) -> Option<String> {
    if let Child::Own(pod) = &input.observed.pod {
        return pod.metadata.name.clone();
    }
    let (validated, _) = input.wanted.ok()?;
    input
        .applied
        .iter()
        .any(|(step, applied)| *step == Step::CreatePod && *applied == Applied::Done)
        .then(|| validated.identity.pod())
}

/// `lastTransitionTime` moves only when the status flips.
fn settle(
    draft: Draft,
    previous: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let Draft {
        type_,
        verdict,
        reason,
        message,
    } = draft;
    let status = verdict.as_str().to_owned();
    let since = previous
        .iter()
        .find(|c| c.type_ == type_ && c.status == status)
        .map_or(Time(now), |c| c.last_transition_time.clone());
    Condition {
        type_: type_.into(),
        status,
        reason: reason.as_str().into(),
        message,
        observed_generation: generation,
        last_transition_time: since,
    }
}

fn phase(input: &Input<'_>, drafts: &[Draft]) -> Phase {
    let find = |type_: &str| drafts.iter().find(|d| d.type_ == type_);
    let Ok((validated, _)) = input.wanted else {
        return if input.observed.session.metadata.deletion_timestamp.is_some() {
            Phase::Terminating
        } else {
            Phase::Failed
        };
    };
    if input.observed.session.metadata.deletion_timestamp.is_some() {
        return Phase::Terminating;
    }
    if validated.suspend {
        return if input.observed.pod.own().is_some() {
            Phase::Suspending
        } else {
            Phase::Suspended
        };
    }
    if find(AGENT_IMAGE_UNSUPPORTED).is_some() {
        return Phase::Failed;
    }
    if find(READY).is_some_and(|d| d.verdict == Verdict::True) {
        return Phase::Ready;
    }
    if drafts.iter().any(Draft::blocks) {
        Phase::Pending
    } else {
        Phase::Starting
    }
}

fn activity(input: &Input<'_>, previous: &OpenCodeSessionStatus) -> Option<Activity> {
    let pod = input.observed.pod.own()?;
    let Some(seen) = &input.observed.summary else {
        return if pod_ready(pod) {
            previous.activity
        } else {
            Some(Activity::Starting)
        };
    };
    Some(match seen.summary.activity {
        summary::Activity::Starting => Activity::Starting,
        summary::Activity::Idle => Activity::Idle,
        summary::Activity::Busy => Activity::Busy,
        summary::Activity::WaitingForApproval => Activity::WaitingForApproval,
        summary::Activity::WaitingForKey => Activity::WaitingForKey,
    })
}

/// Only as long as the sidecar says so: what it said before it fell silent may be over.
fn activity_message(input: &Input<'_>) -> Option<String> {
    let seen = input.observed.summary.as_ref()?;
    let message = seen.summary.activity_message.as_deref()?;
    let plain: String = message.chars().filter(|c| !c.is_control()).collect();
    seen.connected.then(|| cut(&plain, 512))
}

fn endpoint(pod: &Pod) -> Option<String> {
    let ip = pod
        .status
        .as_ref()?
        .pod_ip
        .as_deref()
        .filter(|ip| !ip.is_empty())?;
    Some(base_url(ip))
}

/// Base URL of the sidecar at an address.
#[must_use]
pub fn base_url(ip: &str) -> String {
    if ip.contains(':') {
        format!("http://[{ip}]:{API_PORT}")
    } else {
        format!("http://{ip}:{API_PORT}")
    }
}

/// The proxy's count where it has one: it knows calls that OpenCode does not count.
fn usage(summary: &Summary) -> Usage {
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let contract::Usage {
        input_tokens,
        output_tokens,
        reasoning_tokens,
        cache_read_tokens,
        cache_write_tokens,
    } = summary.usage;
    let spend = summary.spend;
    let metered = spend.calls > 0;
    let pick = |proxy: u64, opencode: u64| count(if metered { proxy } else { opencode });
    Usage {
        total_tokens: pick(spend.tokens(), summary.usage.total()),
        input_tokens: pick(spend.input_tokens, input_tokens),
        output_tokens: pick(spend.output_tokens, output_tokens),
        reasoning_tokens: count(reasoning_tokens),
        cache_read_tokens: pick(spend.cached_input_tokens, cache_read_tokens),
        cache_write_tokens: pick(spend.cache_write_tokens, cache_write_tokens),
        calls: count(spend.calls),
        estimated_calls: count(spend.estimated_calls),
        cost_usd: (spend.calls > spend.unpriced_calls).then(|| usd(spend.cost_nano_usd)),
        budget_left: summary.budget_left.map(|left| BudgetLeft {
            tokens: left.tokens.map(count),
            cost_usd: left.cost_nano_usd.map(usd),
            calls: left.calls.map(count),
        }),
        audit: summary.audit.as_ref().map(|head| AuditHead {
            count: count(head.count),
            hash: cut(&head.hash, 64),
        }),
    }
}

fn result(session: &PromptSession) -> SessionResult {
    let PromptSession {
        session_id: _,
        state,
        started_at,
        finished_at,
        final_message,
        files_modified,
        error,
    } = session;
    let reason = match state {
        SessionState::Pending | SessionState::Running => None,
        SessionState::Completed => Some("Completed"),
        SessionState::Cancelled => Some("Cancelled"),
        SessionState::Failed => Some(error.as_ref().map_or("Failed", |e| turn_error(e.code))),
    };
    SessionResult {
        started_at: Some(Time(second(*started_at))),
        finished_at: finished_at.map(|t| Time(second(t))),
        reason: reason.map(str::to_owned),
        message: error.as_ref().map(|e| cut(&e.message, 1024)),
        final_message: final_message
            .as_ref()
            .map(|m| cut(m, summary::FINAL_MESSAGE_MAX)),
        files_modified: files_modified
            .iter()
            .take(summary::FILES_MODIFIED_MAX)
            .map(|f| cut(f, 4096))
            .collect(),
    }
}

/// The API server stores whole seconds: a finer time would differ from it for ever.
fn second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// At most `max` bytes, whole characters.
pub(crate) fn cut(text: &str, max: usize) -> String {
    text[..text.floor_char_boundary(max)].to_owned()
}

fn turn_error(code: TurnError) -> &'static str {
    match code {
        TurnError::ProviderAuth => "ProviderAuth",
        TurnError::ProviderRateLimit => "ProviderRateLimit",
        TurnError::ProviderError => "ProviderError",
        TurnError::ProviderUnreachable => "ProviderUnreachable",
        TurnError::ProviderGarbled => "ProviderGarbled",
        TurnError::ModelNotFound => "ModelNotFound",
        TurnError::ContextOverflow => "ContextOverflow",
        TurnError::ContentFilter => "ContentFilter",
        TurnError::KeyRequired => "KeyRequired",
        TurnError::Rejected => "Rejected",
        TurnError::TurnTimeout => "TurnTimeout",
        TurnError::AgentDied => "AgentDied",
        TurnError::AgentUnresponsive => "AgentUnresponsive",
        TurnError::AgentSilent => "AgentSilent",
        TurnError::ToolStalled => "ToolStalled",
        TurnError::Loop => "Loop",
        TurnError::Interrupted => "Interrupted",
        TurnError::AgentError => "AgentError",
        TurnError::DiskFull => "DiskFull",
        TurnError::ShuttingDown => "ShuttingDown",
        TurnError::BudgetExhausted => "BudgetExhausted",
        TurnError::ModelUnpriced => "ModelUnpriced",
        TurnError::CallLoop => "CallLoop",
        TurnError::EndpointChanged => "EndpointChanged",
    }
}

/// Whether two statuses say the same; times of conditions are not compared.
#[must_use]
pub fn same(a: &OpenCodeSessionStatus, b: &OpenCodeSessionStatus) -> bool {
    let timeless = |status: &OpenCodeSessionStatus| {
        let mut status = status.clone();
        for condition in &mut status.conditions {
            condition.last_transition_time = Time(Timestamp::UNIX_EPOCH);
        }
        status
    };
    timeless(a) == timeless(b)
}

/// What just got worse, as reason and message: one Event each.
#[must_use]
pub fn troubles(
    before: Option<&OpenCodeSessionStatus>,
    after: &OpenCodeSessionStatus,
) -> Vec<(String, String)> {
    let before = before.map(|s| s.conditions.as_slice()).unwrap_or_default();
    after
        .conditions
        .iter()
        .filter(|c| conditions::is_trouble(&c.reason))
        .filter(|c| {
            !before
                .iter()
                .any(|b| b.type_ == c.type_ && b.reason == c.reason)
        })
        // The sum of the others is no news of its own.
        .filter(|c| {
            c.type_ != READY
                || !after
                    .conditions
                    .iter()
                    .any(|o| o.type_ != READY && o.reason == c.reason)
        })
        .map(|c| (c.reason.clone(), cut(&c.message, 1000)))
        .collect()
}

/// Whether all that changed is how far a start has come, which is written with the end of the start.
#[must_use]
pub fn only_progress(before: &OpenCodeSessionStatus, after: &OpenCodeSessionStatus) -> bool {
    before.phase == Some(Phase::Starting)
        && after.phase == Some(Phase::Starting)
        && before.observed_generation == after.observed_generation
        && before.result == after.result
        && !after
            .conditions
            .iter()
            .any(|c| conditions::is_trouble(&c.reason))
}
