//! What is decided, case by case.

use crate::fixtures::{
    bound_claim, idle, nothing, now, plan, running_pod, seen, session, settled, valid,
};
use contract::{
    pod::{CONFIG_ANNOTATION, REFRESH_ANNOTATION},
    summary::RefusedKey,
};
use jiff::SignedDuration;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time};
use operator::session::{
    decide::{DeleteReason, Step},
    names::{RESOURCES, TEMPLATE_HASH},
    observe::{Child, Foreign, Observed},
};
use std::sync::Arc;

fn with_pod(observed: &mut Observed, change: impl FnOnce(&mut Pod)) {
    let mut pod = observed.pod.own().unwrap().clone();
    change(&mut pod);
    observed.pod = Child::Own(Arc::new(pod));
}

fn annotate(pod: &mut Pod, key: &str, value: &str) {
    pod.metadata
        .annotations
        .get_or_insert_default()
        .insert(key.into(), value.into());
}

fn delete(why: DeleteReason) -> Vec<Step> {
    vec![Step::DeletePod {
        uid: "pod-uid-1".into(),
        why,
    }]
}

#[test]
fn nothing_exists_claim_first_then_pod() {
    assert_eq!(
        plan(&nothing(&session(""))).steps,
        [Step::CreateClaim, Step::CreatePod]
    );
    let brought = session("  workspace: {existingClaim: mine}\n");
    assert_eq!(
        plan(&nothing(&brought)).steps,
        [Step::CreateJournalClaim, Step::CreatePod]
    );
}

#[test]
fn a_settled_session_needs_nothing() {
    let plan = plan(&settled(&session("")));
    assert_eq!(plan.steps, []);
    assert!(!plan.update_waits);
    assert!(plan.requeue.is_some());
}

#[test]
fn a_session_that_goes_gets_nothing_new() {
    let mut going = session("");
    going.metadata.deletion_timestamp = Some(Time(now()));
    assert_eq!(plan(&nothing(&going)).steps, []);
}

#[test]
fn foreign_objects_are_left_alone() {
    let foreign = Foreign {
        terminating: false,
        owner: None,
    };
    let mut observed = nothing(&session(""));
    observed.pod = Child::Foreign(foreign.clone());
    assert_eq!(plan(&observed).steps, [Step::CreateClaim]);
    observed.claim = Child::Foreign(foreign);
    assert_eq!(plan(&observed).steps, []);
    observed.pod = Child::Absent;
    assert_eq!(
        plan(&observed).steps,
        [],
        "no pod on somebody else's volume"
    );
}

#[test]
fn a_terminating_pod_is_waited_for_and_never_replaced_early() {
    let mut observed = settled(&session(""));
    with_pod(&mut observed, |pod| {
        pod.metadata.deletion_timestamp = Some(Time(now()));
    });
    assert_eq!(plan(&observed).steps, []);
}

#[test]
fn an_ended_pod_is_replaced_but_not_at_once() {
    let mut observed = settled(&session(""));
    with_pod(&mut observed, |pod| {
        pod.status.get_or_insert_default().phase = Some("Failed".into());
    });
    assert_eq!(plan(&observed).steps, delete(DeleteReason::PodEnded));
    with_pod(&mut observed, |pod| {
        pod.metadata.creation_timestamp = Some(Time(now() - SignedDuration::from_secs(4)));
    });
    let soon = plan(&observed);
    assert_eq!(soon.steps, []);
    assert_eq!(soon.requeue.unwrap().as_secs(), 6);
}

#[test]
fn suspending_deletes_the_pod_and_keeps_the_claim() {
    let suspended = session("  suspend: true\n");
    assert_eq!(
        plan(&settled(&suspended)).steps,
        delete(DeleteReason::Suspended)
    );
    let mut gone = settled(&suspended);
    gone.pod = Child::Absent;
    assert_eq!(plan(&gone).steps, []);
}

#[test]
fn a_new_template_waits_for_running_turns() {
    let mut observed = settled(&session(""));
    with_pod(&mut observed, |pod| annotate(pod, TEMPLATE_HASH, "older"));
    assert_eq!(plan(&observed).steps, delete(DeleteReason::TemplateChanged));

    let mut busy = idle();
    busy.running_turns = 1;
    observed.summary = Some(seen(busy));
    let waiting = plan(&observed);
    assert_eq!((waiting.steps, waiting.update_waits), (vec![], true));

    // A turn that OpenCode was not given yet may wait for this very change.
    let mut waiting = idle();
    (waiting.running_turns, waiting.waiting_turns) = (1, 1);
    observed.summary = Some(seen(waiting));
    assert_eq!(plan(&observed).steps, delete(DeleteReason::TemplateChanged));

    // The stream is down: a turn may be running.
    let mut unknown = seen(idle());
    unknown.connected = false;
    observed.summary = Some(unknown);
    assert!(plan(&observed).update_waits);
    observed.summary = None;
    assert!(plan(&observed).update_waits);

    // A pod that never came up has nothing to lose.
    with_pod(&mut observed, |pod| {
        pod.status
            .get_or_insert_default()
            .conditions
            .as_mut()
            .unwrap()[0]
            .status = "False".into();
    });
    assert_eq!(plan(&observed).steps, delete(DeleteReason::TemplateChanged));
}

#[test]
fn a_new_configuration_is_an_annotation_and_no_new_pod() {
    let mut observed = settled(&session(""));
    observed.session = Arc::new(session("  limits: {turnTimeout: 2h}\n"));
    let steps = plan(&observed).steps;
    assert_eq!(
        steps,
        [Step::Annotate {
            uid: "pod-uid-1".into(),
            config: true,
            keys: false,
            refresh: None
        }]
    );
}

#[test]
fn a_consumed_prompt_alone_is_not_worth_a_write() {
    let consumed = session("  prompt: x\n");
    let mut observed = settled(&consumed);
    let validated = valid(&consumed);
    with_pod(&mut observed, |pod| {
        annotate(
            pod,
            CONFIG_ANNOTATION,
            &operator::session::build::pod::config_json(&validated, true),
        );
    });
    assert_eq!(plan(&observed).steps, []);
}

#[test]
fn resources_are_changed_in_place() {
    let mut observed = settled(&session(""));
    with_pod(&mut observed, |pod| annotate(pod, RESOURCES, "{}"));
    assert_eq!(
        plan(&observed).steps,
        [Step::Resize {
            uid: "pod-uid-1".into(),
            replace_if_refused: true
        }]
    );
    let mut busy = idle();
    busy.running_turns = 2;
    observed.summary = Some(seen(busy));
    assert_eq!(
        plan(&observed).steps,
        [Step::Resize {
            uid: "pod-uid-1".into(),
            replace_if_refused: false
        }]
    );
}

#[test]
fn a_resize_that_never_fits_becomes_a_new_pod() {
    let mut observed = settled(&session(""));
    with_pod(&mut observed, |pod| {
        let pending = serde_json::from_value(serde_json::json!(
            {"type": "PodResizePending", "status": "True", "reason": "Infeasible"}
        ));
        pod.status
            .get_or_insert_default()
            .conditions
            .as_mut()
            .unwrap()
            .push(pending.unwrap());
    });
    assert_eq!(
        plan(&observed).steps,
        delete(DeleteReason::ResizeInfeasible)
    );
}

#[test]
fn a_larger_claim_is_asked_for_and_a_smaller_one_never() {
    let mut observed = settled(&session(""));
    observed.session = Arc::new(session("  workspace: {storage: 11Gi}\n"));
    assert!(matches!(
        plan(&observed).steps[..],
        [Step::AdjustClaim {
            grow: true,
            retention: false,
            ..
        }]
    ));
    observed.session = Arc::new(session("  workspace: {storage: 9Gi}\n"));
    assert_eq!(plan(&observed).steps, []);
    // The same size in another form.
    observed.session = Arc::new(session("  workspace: {storage: 10240Mi}\n"));
    assert_eq!(plan(&observed).steps, []);
}

#[test]
fn retention_is_followed_both_ways() {
    let retain = "  workspace: {retention: {policy: Retain}}\n";
    let mut observed = settled(&session(""));
    observed.session = Arc::new(session(retain));
    assert!(matches!(
        plan(&observed).steps[..],
        [Step::AdjustClaim {
            grow: false,
            retention: true,
            ..
        }]
    ));
    let mut back = settled(&session(retain));
    back.claim = Child::Own(Arc::new(bound_claim(&valid(&session(retain)))));
    assert_eq!(plan(&back).steps, []);
    back.session = Arc::new(session(""));
    assert!(matches!(
        plan(&back).steps[..],
        [Step::AdjustClaim {
            grow: false,
            retention: true,
            ..
        }]
    ));
}

#[test]
fn no_pod_on_a_claim_that_is_being_deleted() {
    let mut observed = nothing(&session(""));
    let mut claim = bound_claim(&valid(&session("")));
    claim.metadata.deletion_timestamp = Some(Time(now()));
    observed.claim = Child::Own(Arc::new(claim));
    assert_eq!(plan(&observed).steps, []);
}

#[test]
fn a_missing_secret_is_looked_for_again_and_again_but_not_too_often() {
    let mut observed = settled(&session(""));
    let mut missing = idle();
    missing.missing_keys = vec!["acme".into()];
    observed.summary = Some(seen(missing));
    let first = plan(&observed);
    assert_eq!(
        first.steps,
        [Step::Annotate {
            uid: "pod-uid-1".into(),
            config: false,
            keys: false,
            refresh: Some(now())
        }]
    );
    assert_eq!(first.requeue.unwrap().as_secs(), 2);
    let ago = |seconds| (now() - SignedDuration::from_secs(seconds)).to_string();
    with_pod(&mut observed, |pod| {
        annotate(pod, REFRESH_ANNOTATION, &ago(1));
    });
    assert_eq!(plan(&observed).steps, []);
    // After a minute every 30 s is enough.
    observed.summary.as_mut().unwrap().missing_since = Some(now() - SignedDuration::from_secs(61));
    with_pod(&mut observed, |pod| {
        annotate(pod, REFRESH_ANNOTATION, &ago(29));
    });
    let late = plan(&observed);
    assert_eq!((late.steps.len(), late.requeue.unwrap().as_secs()), (0, 1));
    with_pod(&mut observed, |pod| {
        annotate(pod, REFRESH_ANNOTATION, &ago(30));
    });
    assert_eq!(plan(&observed).steps.len(), 1);
    // Garbage in the annotation is no reason to stop.
    with_pod(&mut observed, |pod| {
        annotate(pod, REFRESH_ANNOTATION, "yesterday");
    });
    assert_eq!(plan(&observed).steps.len(), 1);
}

#[test]
fn a_refused_key_is_looked_for_a_few_times_and_then_left() {
    let mut observed = settled(&session(""));
    let refuse = |observed: &mut Observed, ago: i64| {
        let mut refused = idle();
        refused.refused_keys = vec![RefusedKey {
            provider: "acme".into(),
            at: now() - SignedDuration::from_secs(ago),
        }];
        observed.summary = Some(seen(refused));
    };
    refuse(&mut observed, 0);
    assert_eq!(plan(&observed).steps.len(), 1, "at once");
    // What is due next after each look, in seconds after the refusal.
    let touched = |observed: &mut Observed, ago: i64| {
        let at = (now() - SignedDuration::from_secs(ago)).to_string();
        with_pod(observed, |pod| annotate(pod, REFRESH_ANNOTATION, &at));
    };
    for (last, next) in [(0, 5), (5, 20), (20, 60)] {
        refuse(&mut observed, next - 1);
        touched(&mut observed, next - 1 - last);
        let waits = plan(&observed);
        assert_eq!(
            (waits.steps.len(), waits.requeue.unwrap().as_secs()),
            (0, 1),
            "{next}"
        );
        refuse(&mut observed, next);
        touched(&mut observed, next - last);
        assert_eq!(plan(&observed).steps.len(), 1, "{next}");
    }
    // Whatever comes later: this key was looked for often enough.
    for later in [61, 100, 10_000] {
        refuse(&mut observed, later);
        touched(&mut observed, later - 60);
        assert_eq!(plan(&observed).steps, [], "{later}");
    }
    // Another refusal is news.
    refuse(&mut observed, 0);
    touched(&mut observed, 30);
    assert_eq!(plan(&observed).steps.len(), 1);
    // What a sidecar said that is no longer heard is none.
    observed.summary.as_mut().unwrap().connected = false;
    assert_eq!(plan(&observed).steps, []);
}

#[test]
fn a_pod_without_our_marks_is_brought_up_to_date() {
    let mut observed = settled(&session(""));
    let mut bare = running_pod(&valid(&session("")), true);
    bare.metadata.annotations = None;
    observed.pod = Child::Own(Arc::new(bare));
    assert_eq!(plan(&observed).steps, delete(DeleteReason::TemplateChanged));
}
