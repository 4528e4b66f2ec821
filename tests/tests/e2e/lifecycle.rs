//! From the first apply to the last trace: changes of the spec, foreign images, deletion.

use contract::{EventBody, SessionId, client::ClientError, session::CreateSession};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{Api, ResourceExt};
use serde_json::json;
use std::{
    path::Path,
    time::{Duration, Instant},
};
use tests::{
    Model, Namespace, Recorder, Session, Witness, eventually, node, run,
    session::{KEY, READY, TURN},
};

/// Waits until a volume is gone: object and folder.
async fn volume_gone(ns: &Namespace, name: &str, folder: &Path) {
    let volumes = Api::<PersistentVolume>::all(ns.client.clone());
    eventually(&format!("volume {name} to be gone"), READY, || async {
        let object = volumes
            .get_opt(name)
            .await
            .map_err(|e| e.to_string())?
            .is_some();
        let there = folder.exists();
        if object || there {
            Err(format!("object: {object}, folder: {there}"))
        } else {
            Ok(())
        }
    })
    .await;
}

/// Everything with the label of a session, of every kind that may exist in a namespace and that we may have made.
async fn traces(ns: &Namespace, name: &str) -> String {
    let kinds = "ocs,pods,pvc,secrets,configmaps,services,serviceaccounts,roles,rolebindings,deployments,statefulsets,replicasets,jobs,networkpolicies,leases,pdb";
    let label = format!("app.kubernetes.io/instance={name}");
    ns.kubectl(&["get", kinds, "-l", &label, "-o", "name"], "")
        .await
}

#[test]
fn deletion_leaves_nothing_even_while_a_turn_runs() {
    run("delete", |ns| async move {
        let (session, _model) =
            Session::apply(&ns, "bunting", Some("SCENARIO:bash-long 300"), json!({})).await;
        let id = session.prompt_id();
        let mut reader = Recorder::default();
        let prints = |r: &Recorder| {
            matches!(
                r.events.last().map(|e| &e.event.body),
                Some(EventBody::Output(_))
            )
        };
        tokio::time::timeout(TURN, reader.read_until(&session, &id, prints))
            .await
            .expect("bash prints");
        let (volume, folder) = node::volume(&ns, "bunting-workspace").await;
        assert!(folder.join("workspace").is_dir(), "{}", folder.display());
        let pod = session.pod_uid().await;

        let deleted = Instant::now();
        // The reader is told before the connection ends, or it is cut; either way it is no hang.
        let tail = async {
            while let Some(mut stream) =
                tokio::time::timeout(Duration::from_secs(5), reader.open(&session, &id))
                    .await
                    .unwrap_or(None)
            {
                use futures::StreamExt;
                while let Some(Ok(event)) = stream.next().await {
                    reader.take(&event);
                }
                if reader.ended() {
                    break;
                }
            }
            deleted.elapsed()
        };
        let (tail, ()) = tokio::join!(tail, async {
            ns.kubectl(&["delete", "ocs", "bunting", "--wait=false"], "")
                .await;
        });
        eprintln!(
            "FIGURE deleted in mid-turn -> the reader's stream is over: {tail:?}, with {:?}",
            reader.events.last().map(|e| e.event.body.name())
        );
        session.gone("ocs", "bunting", READY).await;
        session.gone("pod", "bunting", READY).await;
        eprintln!(
            "FIGURE deleted in mid-turn -> pod gone: {:?}",
            deleted.elapsed()
        );
        session.gone("pvc", "bunting-workspace", READY).await;
        volume_gone(&ns, &volume, &folder).await;
        eprintln!(
            "FIGURE deleted in mid-turn -> volume gone: {:?}",
            deleted.elapsed()
        );
        assert_eq!(traces(&ns, "bunting").await, "");
        assert!(node::find(&pod, "opencode").is_empty() && node::find(&pod, "sidecar").is_empty());
    });
}

#[test]
fn retain_leaves_exactly_the_claim_without_an_owner() {
    run("retain", |ns| async move {
        let patch = json!({"workspace": {"retention": {"policy": "Retain", "days": 7}}});
        let (session, _model) =
            Session::apply(&ns, "siskin", Some("SCENARIO:write-file"), patch).await;
        session.read(&session.prompt_id()).await.completed();
        let (_, folder) = node::volume(&ns, "siskin-workspace").await;
        ns.kubectl(&["delete", "ocs", "siskin", "--wait=true"], "")
            .await;
        session.gone("pod", "siskin", READY).await;
        let trace = traces(&ns, "siskin").await;
        assert_eq!(trace.trim(), "persistentvolumeclaim/siskin-workspace");
        let claim = ns
            .api::<PersistentVolumeClaim>()
            .get("siskin-workspace")
            .await
            .expect("retained");
        assert!(
            claim.owner_references().is_empty() && claim.metadata.deletion_timestamp.is_none(),
            "{:?}",
            claim.metadata
        );
        assert_eq!(
            claim
                .annotations()
                .get("opencode-operator.dev/retention-days")
                .map(String::as_str),
            Some("7")
        );
        assert!(
            folder.join("workspace/hello.txt").is_file(),
            "the files are there"
        );

        // The next object of this name does not help itself to it.
        let providers = json!([{"name": "model", "kind": "compatible", "endpoint": "http://model/v1", "apiKeySecretRef": {"name": "model-key", "key": "key"}}]);
        let next = Session::apply_with(&ns, "siskin", None, providers, json!({})).await;
        next.wait_condition("WorkspaceReady", "False: ForeignObject", READY)
            .await;
        ns.kubectl(&["delete", "ocs", "siskin", "--wait=true"], "")
            .await;
        let still = ns
            .api::<PersistentVolumeClaim>()
            .get("siskin-workspace")
            .await
            .expect("still retained");
        assert_eq!(still.uid(), claim.uid());
    });
}

#[test]
fn an_existing_claim_is_used_and_never_touched() {
    run("existing", |ns| async move {
        let mine = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "mine"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        ns.kubectl(&["apply", "-f", "-"], &mine.to_string()).await;
        let patch = json!({"workspace": {"storage": null, "existingClaim": "mine"}, "journal": {"storage": "256Mi"}});
        let (session, _model) =
            Session::apply(&ns, "redpoll", Some("SCENARIO:write-file"), patch.clone()).await;
        session.read(&session.prompt_id()).await.completed();
        session.ready().await;
        session
            .wait_condition("WorkspaceReady", "True: InUse", READY)
            .await;

        let (_, folder) = node::volume(&ns, "mine").await;
        let (journal, journal_folder) = node::volume(&ns, "redpoll-journal").await;
        let said = ns
            .kubectl(
                &[
                    "get",
                    "pvc",
                    "redpoll-journal",
                    "-o",
                    "jsonpath={.spec.resources.requests.storage}",
                ],
                "",
            )
            .await;
        assert_eq!(said, "256Mi");
        assert!(
            journal_folder.join("journal").is_dir() && !folder.join("journal").exists(),
            "the journal has its own volume"
        );
        let claim = ns
            .api::<PersistentVolumeClaim>()
            .get("mine")
            .await
            .expect("mine");
        assert!(
            claim.owner_references().is_empty() && claim.labels().is_empty(),
            "{:?}",
            claim.metadata
        );

        ns.kubectl(&["delete", "ocs", "redpoll", "--wait=true"], "")
            .await;
        session.gone("pod", "redpoll", READY).await;
        session.gone("pvc", "redpoll-journal", READY).await;
        volume_gone(&ns, &journal, &journal_folder).await;
        let after = ns
            .api::<PersistentVolumeClaim>()
            .get("mine")
            .await
            .expect("still mine");
        assert_eq!(
            (after.uid(), after.metadata.deletion_timestamp),
            (claim.uid(), None)
        );
        assert!(
            folder.join("workspace/hello.txt").is_file(),
            "the files are there"
        );

        // Another session goes on with the files, as another conversation.
        let providers = json!([{"name": "model", "kind": "compatible", "endpoint": "http://model/v1", "apiKeySecretRef": {"name": "model-key", "key": "key"}}]);
        let next = Session::apply_with(
            &ns,
            "twite",
            Some("SCENARIO:read hello.txt"),
            providers,
            patch,
        )
        .await;
        let history = next.read(&next.prompt_id()).await;
        history.completed();
        let read = history
            .events
            .iter()
            .any(|e| matches!(&e.event.body, EventBody::ToolResult(r) if r.ok && r.tool == "read"));
        assert!(read, "{:?}", history.names());
    });
}

#[test]
fn a_change_that_needs_a_new_pod_waits_until_no_turn_runs() {
    run("change", |ns| async move {
        let witness = Witness::start(&ns);
        let (session, _model) = Session::apply(
            &ns,
            "linnet",
            Some("REMEMBER:cobalt-ladder SCENARIO:bash-long 12"),
            json!({}),
        )
        .await;
        let id = session.prompt_id();
        session.ready().await;
        let mut reader = Recorder::default();
        let prints = |r: &Recorder| {
            matches!(
                r.events.last().map(|e| &e.event.body),
                Some(EventBody::Output(_))
            )
        };
        tokio::time::timeout(TURN, reader.read_until(&session, &id, prints))
            .await
            .expect("bash prints");
        let before = session.restarts().await;

        session
            .patch(json!({"agent": {"env": [{"name": "COLOUR", "value": "vermilion"}]}}))
            .await;
        let message = session
            .wait_condition("Ready", "True: UpdateWaits", READY)
            .await;
        assert!(message.contains("waits until no turn runs"), "{message}");
        assert_eq!(session.pod_uid().await, before.0);
        tokio::time::timeout(TURN, reader.read_to_end(&session, &id))
            .await
            .expect("the turn ends");
        reader.completed();
        let done = Instant::now();
        let now = eventually("another pod", READY, || async {
            let uid = session.pod_uid().await;
            if uid == before.0 {
                Err("the same pod".into())
            } else {
                Ok(uid)
            }
        })
        .await;
        session.wait_condition("Ready", "True: Ready", READY).await;
        eprintln!(
            "FIGURE turn done -> new pod Ready with the change: {:?}",
            done.elapsed()
        );
        assert_eq!(
            session
                .exec("agent", &["sh", "-c", "echo $COLOUR"])
                .await
                .out
                .trim(),
            "vermilion"
        );

        session.turn(&id, "SCENARIO:recall").await;
        let history = session.read(&id).await;
        history.check();
        history.continues(&reader);
        assert!(
            history.completed().final_message.contains("cobalt-ladder"),
            "{:?}",
            history.completed()
        );

        // A limit is a matter of the configuration: no new pod.
        let changed = Instant::now();
        session
            .patch(json!({"limits": {"maxConcurrentSessions": 1}}))
            .await;
        let held = session.create("holds", "SCENARIO:bash-sleep 300").await;
        let mut tries = 0;
        loop {
            tries += 1;
            let body = CreateSession {
                session_id: SessionId::new(format!("extra-{tries}")).expect("an id"),
                prompt: "SCENARIO:hello".into(),
                model_config: None,
                system_prompt: None,
            };
            match session.client().await.create_session(&body).await {
                Err(ClientError::Api { status: 503, body }) => {
                    assert_eq!(body.details.code, contract::ErrorCode::TooManySessions);
                    break;
                }
                // Not there yet.
                Ok(_) => drop(session.read(&body.session_id).await),
                Err(other) => panic!("{other}"),
            }
            assert!(changed.elapsed() < READY, "the limit is not applied");
        }
        eprintln!(
            "FIGURE limits.maxConcurrentSessions patched -> in force: {:?} ({tries} tries)",
            changed.elapsed()
        );
        session
            .client()
            .await
            .cancel(&held)
            .await
            .expect("cancelled");
        let (uid, restarts) = session.restarts().await;
        assert_eq!(uid, now);
        assert!(restarts.values().all(|count| *count == 0), "{restarts:?}");
        let pods = witness.pods();
        assert_eq!(
            (pods.ever["linnet"].len(), pods.most["linnet"]),
            (2, 1),
            "{pods:#?}"
        );
    });
}

#[test]
fn an_image_that_cannot_run_opencode_is_a_condition_and_no_crash_loop() {
    run("image", |ns| async move {
        let patch = json!({"agent": {"image": "localhost/opencode-operator-local/busybox:1"}});
        let (session, _model) =
            Session::apply(&ns, "fieldfare", Some("SCENARIO:hello"), patch).await;
        let message = session
            .wait_condition("AgentImageUnsupported", "True", READY)
            .await;
        assert!(
            message.contains("glibc") && message.contains("use an image with"),
            "{message}"
        );
        let ready = session
            .wait_condition("Ready", "False: ImageUnsupported", READY)
            .await;
        eprintln!("FIGURE unsupported image: {ready}");
        let phase = ns
            .kubectl(
                &["get", "ocs", "fieldfare", "-o", "jsonpath={.status.phase}"],
                "",
            )
            .await;
        assert_eq!(phase, "Failed");
        // The runner and the sidecar stay up; the turn is recorded and waits.
        let client = session.client().await;
        let known = eventually("the prompt's session", READY, || async {
            client
                .session(&session.prompt_id())
                .await
                .map_err(|e| e.to_string())
        })
        .await;
        assert!(known.status.is_active(), "{known:?}");
        let (before, restarts) = session.restarts().await;
        assert!(restarts.values().all(|count| *count == 0), "{restarts:?}");

        // Mended by the spec alone: nothing runs, so nothing is waited for, and the prompt still comes first.
        session.patch(json!({"agent": {"image": null}})).await;
        let history = tokio::time::timeout(2 * TURN, session.read(&session.prompt_id()))
            .await
            .expect("the turn runs");
        history.check();
        history.completed();
        assert_ne!(session.pod_uid().await, before);
        session.ready().await;
        assert_eq!(session.condition("AgentImageUnsupported").await, "absent");
    });
}

#[test]
fn a_volume_grows_only_and_a_prompt_is_never_changed() {
    run("grow", |ns| async move {
        let model = Model::start(&ns, "model", KEY).await;
        ns.secret("model-key", "key", KEY).await;
        let providers = json!([model.provider("compatible", "model-key")]);
        let patch = json!({"suspend": true, "workspace": {"storage": "2Gi"}});
        let session =
            Session::apply_with(&ns, "brambling", Some("SCENARIO:hello"), providers, patch).await;
        let refused: [(serde_json::Value, &str); 4] = [
            (
                json!({"workspace": {"storage": "1Gi"}}),
                "storage can only grow",
            ),
            (
                json!({"workspace": {"storage": null, "existingClaim": "mine"}}),
                "existingClaim cannot be changed",
            ),
            (json!({"prompt": "another"}), "prompt cannot be changed"),
            (json!({"prompt": null}), "prompt cannot be changed"),
        ];
        for (spec, says) in refused {
            let patch = json!({"spec": spec}).to_string();
            let said = ns
                .try_kubectl(
                    &["patch", "ocs", "brambling", "--type=merge", "-p", &patch],
                    "",
                )
                .await;
            assert!(
                !said.ok && said.err.contains(says),
                "{spec}: {}{}",
                said.out,
                said.err
            );
        }
        // Growing is taken; this class cannot, and the session says so instead of failing.
        session.gone("pod", "brambling", READY).await;
        eventually("the claim", READY, || async {
            let said = ns
                .try_kubectl(&["get", "pvc", "brambling-workspace"], "")
                .await;
            if said.ok { Ok(()) } else { Err(said.err) }
        })
        .await;
        session.patch(json!({"suspend": false})).await;
        session.read(&session.prompt_id()).await.completed();
        session
            .patch(json!({"workspace": {"storage": "3Gi"}}))
            .await;
        let message = session
            .wait_condition("WorkspaceReady", "True: ExpansionRefused", READY)
            .await;
        assert!(message.contains("allow expansion"), "{message}");
        session.ready().await;
    });
}
