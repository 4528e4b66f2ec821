//! Objects of somebody else under our names.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use serde_json::json;
use std::time::{Duration, Instant};
use tests::{
    Model, Namespace, Session, eventually, run,
    session::{KEY, READY},
};

/// What must not change of an object that is not ours.
async fn fingerprint(ns: &Namespace) -> [serde_json::Value; 2] {
    let pod = ns
        .api::<Pod>()
        .get("dotterel")
        .await
        .expect("the foreign pod is there");
    let claim = ns
        .api::<PersistentVolumeClaim>()
        .get("dotterel-workspace")
        .await
        .expect("the foreign claim is there");
    let view = |meta: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
        json!([
            meta.uid,
            meta.labels,
            meta.annotations,
            meta.owner_references,
            meta.deletion_timestamp,
            meta.finalizers
        ])
    };
    [view(pod.metadata), view(claim.metadata)]
}

#[test]
fn foreign_objects_of_our_names_are_reported_and_left_alone() {
    run("foreign", |ns| async move {
        let model = Model::start(&ns, "model", KEY).await;
        ns.secret("model-key", "key", KEY).await;
        // The claim even has our labels: they make nobody ours.
        let theirs = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "dotterel"}, "spec": {
                "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
                "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{"name": "theirs", "image": "localhost/opencode-operator-local/busybox:1", "imagePullPolicy": "Never",
                    "command": ["sleep", "3600"],
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}},
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "dotterel-workspace", "labels": {
                "app.kubernetes.io/name": "opencode-session", "app.kubernetes.io/instance": "dotterel", "app.kubernetes.io/managed-by": "opencode-operator"}},
             "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}},
        ]});
        ns.kubectl(&["apply", "-f", "-"], &theirs.to_string()).await;
        ns.kubectl(
            &[
                "wait",
                "--for=condition=Ready",
                "pod/dotterel",
                "--timeout=90s",
            ],
            "",
        )
        .await;
        let before = fingerprint(&ns).await;

        let providers = json!([model.provider("compatible", "model-key")]);
        let session = Session::apply_with(&ns, "dotterel", None, providers, json!({})).await;
        let message = session
            .wait_condition("WorkspaceReady", "False: ForeignObject", READY)
            .await;
        assert!(
            message.contains("dotterel-workspace") && message.contains("Delete or rename it"),
            "{message}"
        );
        session
            .wait_condition("Ready", "False: ForeignObject", READY)
            .await;
        eventually("an Event about it", READY, || async {
            let said = ns
                .kubectl(
                    &[
                        "get",
                        "events",
                        "--field-selector=reason=ForeignObject",
                        "-o",
                        "json",
                    ],
                    "",
                )
                .await;
            if said.contains("dotterel-workspace") {
                Ok(())
            } else {
                Err(said)
            }
        })
        .await;
        assert_eq!(fingerprint(&ns).await, before);

        let freed = Instant::now();
        ns.kubectl(&["delete", "pvc", "dotterel-workspace"], "")
            .await;
        let message = session
            .wait_condition("PodReady", "False: ForeignObject", READY)
            .await;
        eprintln!(
            "FIGURE foreign claim deleted -> the next obstacle is named: {:?}",
            freed.elapsed()
        );
        assert!(message.contains("Pod dotterel "), "{message}");
        let pod = ns
            .api::<Pod>()
            .get("dotterel")
            .await
            .expect("the foreign pod is there");
        assert_eq!(json!(pod.metadata.uid), before[0][0], "still theirs");
        assert!(
            pod.metadata.owner_references.is_none() && pod.metadata.deletion_timestamp.is_none()
        );

        let freed = Instant::now();
        ns.kubectl(&["delete", "pod", "dotterel"], "").await;
        session
            .wait_condition("Ready", "True", READY + Duration::from_secs(30))
            .await;
        eprintln!(
            "FIGURE foreign pod deleted -> session Ready: {:?}",
            freed.elapsed()
        );
        let id = session.create("works", "SCENARIO:hello").await;
        session.read(&id).await.completed();
    });
}
