//! What users are told.

use crate::fixtures::{identity, idle, nothing, now, plan, seen, session, settled, valid};
use contract::{
    Usage,
    event::TurnError,
    session::SessionState,
    spend::{AuditHead, Budget, Spend},
    summary::{PromptError, PromptSession},
};
use crds::{
    OpenCodeSession,
    session::status::{OpenCodeSessionStatus, Phase},
};
use jiff::SignedDuration;
use operator::{
    apply::Applied,
    session::{
        decide::Step,
        observe::{Child, Foreign, Observed},
        status::{Input, compute, same, troubles},
        validate::validate,
    },
};
use std::sync::Arc;

fn status(observed: &Observed, applied: &[(Step, Applied)]) -> OpenCodeSessionStatus {
    let validated = valid(&observed.session);
    let plan = plan(observed);
    let input = Input {
        observed,
        wanted: Ok((&validated, &plan)),
        applied,
    };
    compute(&input, now())
}

fn condition<'a>(status: &'a OpenCodeSessionStatus, type_: &str) -> (&'a str, &'a str, &'a str) {
    let c = status.conditions.iter().find(|c| c.type_ == type_).unwrap();
    (&c.status, &c.reason, &c.message)
}

fn with_status(
    mut session: OpenCodeSession,
    status: OpenCodeSessionStatus,
) -> Arc<OpenCodeSession> {
    session.status = Some(status);
    Arc::new(session)
}

#[test]
fn all_is_well() {
    let status = status(&settled(&session("")), &[]);
    assert_eq!(status.phase, Some(Phase::Ready));
    assert_eq!(status.observed_generation, Some(3));
    assert_eq!(status.endpoint.as_deref(), Some("http://127.0.0.1:3003"));
    assert_eq!(status.workspace_claim.as_deref(), Some("quokka-workspace"));
    for type_ in [
        "Ready",
        "SecretsResolved",
        "WorkspaceReady",
        "PodReady",
        "AgentReady",
        "Isolated",
    ] {
        assert_eq!(condition(&status, type_).0, "True", "{type_}");
    }
    assert!(
        !status
            .conditions
            .iter()
            .any(|c| c.type_ == "AgentImageUnsupported")
    );
}

#[test]
fn computing_twice_changes_nothing_and_time_alone_is_no_change() {
    let mut observed = settled(&session(""));
    let first = status(&observed, &[]);
    observed.session = with_status(session(""), first.clone());
    let validated = valid(&observed.session);
    let plan = plan(&observed);
    let input = Input {
        observed: &observed,
        wanted: Ok((&validated, &plan)),
        applied: &[],
    };
    let later = compute(&input, now() + SignedDuration::from_hours(5));
    assert_eq!(later, first, "lastTransitionTime must not move");
    assert!(same(&later, &first));
    // A flip moves it.
    observed.pod = Child::Absent;
    observed.summary = None;
    let validated = valid(&observed.session);
    let plan = crate::fixtures::plan(&observed);
    let input = Input {
        observed: &observed,
        wanted: Ok((&validated, &plan)),
        applied: &[],
    };
    let flipped = compute(&input, now() + SignedDuration::from_hours(5));
    assert!(
        flipped.conditions[0].last_transition_time.0 > first.conditions[0].last_transition_time.0
    );
}

#[test]
fn a_missing_secret_names_provider_secret_key_and_the_command() {
    let mut observed = settled(&session(""));
    let mut missing = idle();
    missing.missing_keys = vec!["acme".into()];
    observed.summary = Some(seen(missing));
    let status = status(&observed, &[]);
    let (verdict, reason, message) = condition(&status, "SecretsResolved");
    assert_eq!((verdict, reason), ("False", "SecretMissing"));
    for part in [
        "provider acme",
        "key token",
        "Secret acme-secret",
        "kubectl -n burrow create secret generic acme-secret",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(condition(&status, "Ready").1, "SecretMissing");
    assert_eq!(status.phase, Some(Phase::Pending));
    let events = troubles(None, &status);
    assert_eq!(
        events.len(),
        1,
        "one Event, not one for Ready too: {events:?}"
    );
}

#[test]
fn foreign_objects_are_reported_with_what_to_do() {
    let foreign = Foreign {
        terminating: false,
        owner: Some("Deployment shop".into()),
    };
    let observed = nothing(&session(""));
    let applied = [
        (Step::CreateClaim, Applied::Done),
        (Step::CreatePod, Applied::Foreign(foreign)),
    ];
    let status = status(&observed, &applied);
    let (_, reason, message) = condition(&status, "PodReady");
    assert_eq!(reason, "ForeignObject");
    assert!(
        message.contains("Deployment shop") && message.contains("another name"),
        "{message}"
    );
    assert_eq!(status.phase, Some(Phase::Pending));
}

#[test]
fn a_refused_pod_says_what_the_api_server_said() {
    let applied = [(
        Step::CreatePod,
        Applied::Refused("exceeded quota: small".into()),
    )];
    let status = status(&nothing(&session("")), &applied);
    assert!(
        condition(&status, "PodReady")
            .2
            .contains("exceeded quota: small")
    );
    assert_eq!(condition(&status, "Ready").1, "Refused");
}

#[test]
fn an_unsupported_image_is_a_condition_and_a_failure() {
    let mut observed = settled(&session(""));
    let mut summary = idle();
    summary.agent.ready = false;
    summary.agent.unsupported = Some("The image has no git; add it.".into());
    observed.summary = Some(seen(summary));
    let status = status(&observed, &[]);
    assert_eq!(condition(&status, "AgentImageUnsupported").0, "True");
    assert_eq!(status.phase, Some(Phase::Failed));
}

#[test]
fn an_invalid_spec_is_failed_and_keeps_what_was() {
    let mut bad = session("  limits: {turnTimeout: never}\n");
    bad.status = Some(status(&settled(&session("")), &[]));
    let observed = nothing(&bad);
    let invalid = validate(&identity(&bad), &bad).unwrap_err();
    let status = compute(
        &Input {
            observed: &observed,
            wanted: Err(&invalid),
            applied: &[],
        },
        now(),
    );
    assert_eq!(status.phase, Some(Phase::Failed));
    assert_eq!(condition(&status, "Ready").1, "OutOfRange");
    assert!(condition(&status, "Ready").2.contains("limits.turnTimeout"));
    assert_eq!(status.workspace_claim.as_deref(), Some("quokka-workspace"));
}

#[test]
fn the_result_stays_when_the_sidecar_is_gone_and_is_cut() {
    let mut observed = settled(&session("  prompt: x\n"));
    let mut summary = idle();
    summary.usage = Usage {
        input_tokens: 5,
        output_tokens: u64::MAX,
        ..Usage::default()
    };
    summary.prompt_session = Some(PromptSession {
        session_id: "quokka".to_owned().try_into().unwrap(),
        state: SessionState::Failed,
        started_at: "2031-05-06T07:00:00.123456Z".parse().unwrap(),
        finished_at: Some(now()),
        final_message: Some("é".repeat(5000)),
        files_modified: (0..200).map(|i| format!("f{i}")).collect(),
        error: Some(PromptError {
            code: TurnError::ProviderAuth,
            message: "401".into(),
        }),
    });
    observed.summary = Some(seen(summary));
    let first = status(&observed, &[]);
    let result = first.result.clone().unwrap();
    assert_eq!(result.reason.as_deref(), Some("ProviderAuth"));
    assert_eq!(result.final_message.as_ref().unwrap().len(), 4096);
    assert_eq!(result.files_modified.len(), 100);
    assert_eq!(
        result.started_at.unwrap().0.subsec_nanosecond(),
        0,
        "the API server stores seconds"
    );
    assert_eq!(first.usage.clone().unwrap().total_tokens, i64::MAX);

    observed.session = with_status(session("  prompt: x\n"), first.clone());
    observed.pod = Child::Absent;
    observed.summary = None;
    let later = status(&observed, &[]);
    assert_eq!((later.result, later.usage), (first.result, first.usage));
}

#[test]
fn usage_is_what_the_proxy_metered() {
    let mut observed = settled(&session(""));
    let mut summary = idle();
    summary.usage = Usage {
        input_tokens: 1,
        reasoning_tokens: 4,
        ..Usage::default()
    };
    summary.spend = Spend {
        calls: 3,
        input_tokens: 100,
        output_tokens: 20,
        cached_input_tokens: 7,
        cache_write_tokens: 5,
        cost_nano_usd: 1_250_000,
        estimated_calls: 1,
        unpriced_calls: 2,
    };
    summary.budget_left = Some(Budget {
        tokens: Some(50),
        cost_nano_usd: Some(0),
        calls: None,
    });
    summary.audit = Some(AuditHead {
        count: 9,
        hash: "ab".repeat(32),
    });
    observed.summary = Some(seen(summary.clone()));
    let usage = status(&observed, &[]).usage.unwrap();
    assert_eq!(
        (
            usage.total_tokens,
            usage.input_tokens,
            usage.cache_read_tokens,
            usage.cache_write_tokens
        ),
        (132, 100, 7, 5)
    );
    assert_eq!(
        (usage.calls, usage.estimated_calls, usage.reasoning_tokens),
        (3, 1, 4)
    );
    assert_eq!(usage.cost_usd.as_deref(), Some("0.00125"));
    let left = usage.budget_left.unwrap();
    assert_eq!(
        (left.tokens, left.cost_usd.as_deref(), left.calls),
        (Some(50), Some("0"), None)
    );
    assert_eq!(usage.audit.unwrap().count, 9);
    // Nothing has a price: no cost, not a cost of nothing.
    summary.spend.unpriced_calls = 3;
    observed.summary = Some(seen(summary));
    assert_eq!(status(&observed, &[]).usage.unwrap().cost_usd, None);
}

#[test]
fn phases_of_suspension() {
    let suspended = session("  suspend: true\n");
    assert_eq!(
        status(&settled(&suspended), &[]).phase,
        Some(Phase::Suspending)
    );
    let gone = status(&nothing(&suspended), &[]);
    assert_eq!(gone.phase, Some(Phase::Suspended));
    assert_eq!(condition(&gone, "Ready").1, "Suspended");
    assert_eq!(gone.endpoint, None);
    assert!(troubles(None, &gone).is_empty(), "a wish is no trouble");
}

#[test]
fn a_stuck_container_is_explained_with_a_bounded_reason() {
    let mut observed = settled(&session(""));
    let mut pod = observed.pod.own().unwrap().clone();
    pod.status = Some(
        serde_json::from_value(serde_json::json!({
            "phase": "Pending",
            "containerStatuses": [{
                "name": "agent", "image": "registry.test/none", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not \u{1b}[31mfound"}},
            }],
        }))
        .unwrap(),
    );
    observed.pod = Child::Own(Arc::new(pod));
    observed.summary = None;
    let status = status(&observed, &[]);
    let (_, reason, message) = condition(&status, "PodReady");
    assert_eq!(reason, "ImagePullFailed");
    assert!(
        message.contains("registry.test/none") && !message.contains('\u{1b}'),
        "{message:?}"
    );
    assert_eq!(status.phase, Some(Phase::Pending));
}

#[test]
fn what_a_turn_waits_for_is_shown_while_the_sidecar_says_so() {
    let mut observed = settled(&session("  prompt: x\n"));
    let mut summary = idle();
    summary.activity_message = Some(format!("Waiting\u{1b} for {}", "ü".repeat(600)));
    observed.summary = Some(seen(summary));
    let shown = status(&observed, &[]).activity_message.unwrap();
    assert!(
        shown.starts_with("Waiting for ü") && shown.len() <= 512,
        "{shown}"
    );
    observed.summary.as_mut().unwrap().connected = false;
    assert_eq!(status(&observed, &[]).activity_message, None);
}

#[test]
fn the_sidecar_is_told_where_each_key_is_to_be_found() {
    let config = valid(&session("")).config;
    let sources: Vec<_> = config.key_sources.values().collect();
    assert!(
        sources[0].starts_with("Secret ") && sources[0].contains(", key "),
        "{sources:?}"
    );
    assert!(config.key_sources.contains_key(&config.providers[0].name));
}
