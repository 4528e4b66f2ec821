//! The operator dies between any two writes, before or after each: the next one ends in the same place.

use crate::{
    fake_api::{FakeApi, Fate},
    fixtures::{identity, idle, now, session, settings, summaries},
};
use operator::{
    apply::Writer,
    metrics::Metrics,
    session::reconcile::{Context, reconcile},
};
use serde_json::{Value, json};

/// A process: its memory is empty and its caches are as the cluster is.
fn process(api: &FakeApi) -> Context {
    Context {
        stores: api.stores(),
        summaries: summaries(),
        settings: settings(),
        writer: Writer::new(api.client(), Some("it".into())),
        metrics: Metrics::default(),
    }
}

/// Rounds until one writes nothing; `false` if the process died.
async fn run(api: &FakeApi) -> bool {
    for _ in 0..20 {
        let context = process(api);
        let session = api.session("quokka");
        if let Some(pod) = api
            .get("pods", "quokka")
            .filter(|p| p["status"]["podIP"].is_string())
        {
            let uid = pod["metadata"]["uid"].as_str().unwrap();
            context
                .summaries
                .record(&identity(&session), uid, idle(), now());
        }
        let before = api.0.lock().unwrap().log.len();
        let round = reconcile(&context, session, now()).await;
        if api.is_dead() {
            return false;
        }
        round.unwrap();
        if api.0.lock().unwrap().log.len() == before {
            return true;
        }
    }
    panic!("rounds never end: {:#?}", api.0.lock().unwrap().log);
}

/// What kubelet, volume controller and garbage collector do.
fn world(api: &FakeApi) {
    if let Some(mut claim) = api.get("persistentvolumeclaims", "quokka-workspace") {
        claim["status"] = json!({ "phase": "Bound" });
        api.put("persistentvolumeclaims", claim);
    }
    if let Some(mut pod) = api.get("pods", "quokka") {
        if pod["metadata"]["deletionTimestamp"].is_string() {
            api.remove("pods", "quokka");
        } else {
            pod["status"] = json!({
                "phase": "Running", "podIP": "127.0.0.1",
                "conditions": [{ "type": "Ready", "status": "True" }],
            });
            api.put("pods", pod);
        }
    }
}

/// Changes the spec as a user would.
fn user(api: &FakeApi, change: &Value) {
    let mut session = api.get("opencodesessions", "quokka").unwrap();
    for (key, value) in change.as_object().unwrap() {
        session["spec"][key] = value.clone();
    }
    session["metadata"]["generation"] =
        json!(session["metadata"]["generation"].as_i64().unwrap() + 1);
    api.put("opencodesessions", session);
}

/// A life: made, suspended, resumed, given another image, resized, grown and kept.
async fn life(api: &FakeApi, kill: Option<(usize, u64, Fate)>) -> (Vec<String>, bool) {
    let changes = [
        json!({}),
        json!({ "suspend": true }),
        json!({ "suspend": false }),
        json!({ "agent": { "image": "registry.test/next:1" } }),
        json!({ "limits": { "turnTimeout": "2h" } }),
        json!({ "agent": { "image": "registry.test/next:1", "resources": { "limits": { "memory": "3Gi" } } } }),
        json!({ "workspace": { "storage": "12Gi", "retention": { "policy": "Retain" } } }),
    ];
    let mut killed = false;
    for (step, change) in changes.iter().enumerate() {
        user(api, change);
        if let Some((at, nth, fate)) = kill
            && at == step
        {
            api.kill_at(nth, fate);
        }
        for _ in 0..4 {
            if !run(api).await {
                killed = true;
                api.revive();
                assert!(run(api).await);
            }
            world(api);
        }
        assert!(run(api).await || killed);
        api.revive();
    }
    (api.take_log(), killed)
}

/// The cluster without what differs between any two lives.
fn picture(api: &FakeApi) -> Value {
    let mut objects: Vec<Value> = api.0.lock().unwrap().objects.values().cloned().collect();
    for object in &mut objects {
        let meta = object["metadata"].as_object_mut().unwrap();
        for field in ["uid", "resourceVersion", "creationTimestamp"] {
            meta.remove(field);
        }
    }
    Value::Array(objects)
}

#[tokio::test]
async fn a_life_without_deaths_writes_little_and_nothing_in_vain() {
    let api = FakeApi::with(&session(""));
    let (log, _) = life(&api, None).await;
    assert!(!log.iter().any(|w| w.starts_with("USELESS")), "{log:#?}");
    let first_suspend = log.iter().position(|w| w.starts_with("delete")).unwrap();
    let start: Vec<_> = log[..first_suspend].to_vec();
    assert!(
        start.len() <= 4,
        "at most four writes to come up: {start:#?}"
    );
    assert_eq!(
        log.iter()
            .filter(|w| *w == "create persistentvolumeclaims quokka-workspace")
            .count(),
        1
    );
    assert_eq!(
        log.iter().filter(|w| *w == "create pods quokka").count(),
        3,
        "{log:#?}"
    );
    assert!(
        log.contains(&"patch pods/resize quokka".to_owned()),
        "{log:#?}"
    );
    let claim = api
        .get("persistentvolumeclaims", "quokka-workspace")
        .unwrap();
    assert!(claim["metadata"]["ownerReferences"].is_null());
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "12Gi");
}

#[tokio::test]
async fn dying_at_any_write_ends_in_the_same_place() {
    let api = FakeApi::with(&session(""));
    let (undisturbed, _) = life(&api, None).await;
    let pods = |log: &[String]| log.iter().filter(|w| *w == "create pods quokka").count();
    let expected = picture(&api);
    let mut deaths = 0;
    for step in 0..7 {
        for nth in 0..12 {
            let mut any = false;
            for fate in [Fate::DiesBefore, Fate::DiesAfter] {
                let api = FakeApi::with(&session(""));
                let (log, killed) = life(&api, Some((step, nth, fate))).await;
                any |= killed;
                deaths += u32::from(killed);
                let context = format!("step {step}, write {nth}, {fate:?}: {log:#?}");
                assert_eq!(picture(&api), expected, "{context}");
                assert_eq!(pods(&log), pods(&undisturbed), "a pod too many: {context}");
            }
            if !any {
                break;
            }
        }
    }
    assert!(deaths >= 20, "the test must really kill: {deaths}");
}

#[tokio::test]
async fn a_cache_that_is_behind_never_makes_a_second_pod() {
    let api = FakeApi::with(&session(""));
    let old = process(&api);
    assert!(run(&api).await);
    let made = api.get("pods", "quokka").unwrap()["metadata"]["uid"].clone();
    api.take_log();
    // This process still believes that nothing exists.
    let requeue = reconcile(&old, api.session("quokka"), now()).await.unwrap();
    assert_eq!(api.get("pods", "quokka").unwrap()["metadata"]["uid"], made);
    assert!(!api.take_log().iter().any(|w| w.starts_with("create")));
    assert!(requeue.is_some_and(|r| r.as_secs() <= 1), "{requeue:?}");
}

#[tokio::test]
async fn foreign_objects_of_our_names_are_neither_taken_nor_deleted() {
    for resource in ["pods", "persistentvolumeclaims"] {
        let api = FakeApi::with(&session(""));
        let name = if resource == "pods" {
            "quokka"
        } else {
            "quokka-workspace"
        };
        let foreign = json!({
            "apiVersion": "v1", "kind": if resource == "pods" { "Pod" } else { "PersistentVolumeClaim" },
            "metadata": {"name": name, "namespace": "burrow", "uid": "theirs",
                // Even with our labels: labels are no proof.
                "labels": {"app.kubernetes.io/managed-by": "opencode-operator", "app.kubernetes.io/instance": "quokka"}},
        });
        api.put(resource, foreign);
        let before = api.get(resource, name);
        assert!(run(&api).await);
        assert_eq!(api.get(resource, name), before);
        let text =
            api.get("opencodesessions", "quokka").unwrap()["status"]["conditions"].to_string();
        assert!(text.contains("ForeignObject"), "{text}");
        // The same without labels, so that the cache does not know it.
        let mut hidden = before.unwrap();
        hidden["metadata"].as_object_mut().unwrap().remove("labels");
        api.put(resource, hidden);
        let before = api.get(resource, name);
        assert!(run(&api).await);
        assert_eq!(api.get(resource, name), before);
        let text =
            api.get("opencodesessions", "quokka").unwrap()["status"]["conditions"].to_string();
        assert!(text.contains("ForeignObject"), "{text}");
    }
}
