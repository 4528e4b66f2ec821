//! The operator killed again and again while it works.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{ResourceExt, api::ListParams};
use serde_json::json;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tests::{
    Model, Namespace, Session, Witness, eventually, kubectl::kubectl, run_alone, session::KEY,
};

const SYSTEM: &str = "opencode-operator-system";
const OPERATOR: &str = "app.kubernetes.io/name=opencode-operator";

/// Ends every operator at once, without a word. Its pods are nobody's data.
async fn kill_operators() {
    let args = [
        "-n",
        SYSTEM,
        "delete",
        "pod",
        "-l",
        OPERATOR,
        "--grace-period=0",
        "--force",
        "--wait=false",
    ];
    let said = kubectl(&args, "").await;
    assert!(
        said.ok || said.err.contains("NotFound") || said.err.contains("not found"),
        "{}",
        said.err
    );
}

async fn owners(ns: &Namespace) -> Vec<(String, Vec<String>)> {
    let pods = ns
        .api::<Pod>()
        .list(&ListParams::default())
        .await
        .expect("pods");
    let claims = ns
        .api::<PersistentVolumeClaim>()
        .list(&ListParams::default())
        .await
        .expect("claims");
    let uids = |refs: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference]| {
        refs.iter().map(|o| o.uid.clone()).collect()
    };
    let pods = pods
        .items
        .iter()
        .map(|p| (format!("pod {}", p.name_any()), uids(p.owner_references())));
    let claims = claims.items.iter().map(|c| {
        (
            format!("claim {}", c.name_any()),
            uids(c.owner_references()),
        )
    });
    pods.chain(claims)
        .filter(|(name, _)| name != "pod model")
        .collect()
}

#[test]
fn an_operator_killed_between_writes_leaves_one_pod_and_one_claim_each() {
    run_alone("kills", |ns| async move {
        let model = Model::start(&ns, "model", KEY).await;
        ns.secret("model-key", "key", KEY).await;
        let witness = Witness::start(&ns);
        let mut changes = witness.changes();
        let small = json!({"agent": {"resources": {"requests": {"cpu": "20m", "memory": "64Mi"}}}, "workspace": {"storage": "64Mi"}});
        let names = ["avocet", "bittern", "crake", "dunnock", "egret"];
        let mut sessions = Vec::new();
        let began = Instant::now();
        for name in names {
            let providers = json!([model.provider("compatible", "model-key")]);
            sessions.push(Session::apply_with(&ns, name, None, providers, small.clone()).await);
            kill_operators().await;
        }
        // Blindly, then each time right after something was seen to happen.
        let (mut kills, mut after_a_write) = (names.len(), 0);
        while began.elapsed() < Duration::from_secs(10)
            || (after_a_write < 6 && began.elapsed() < Duration::from_secs(90))
        {
            let pause = Duration::from_millis(if began.elapsed() < Duration::from_secs(10) {
                300
            } else {
                8000
            });
            changes.mark_unchanged();
            if tokio::time::timeout(pause, changes.changed()).await.is_ok() {
                after_a_write += 1;
            }
            kill_operators().await;
            kills += 1;
        }
        let over = Instant::now();
        let made = [witness.pods(), witness.claims()].map(|seen| seen.ever.len());
        eprintln!("FIGURE pods and claims made under fire: {made:?}");
        for session in &sessions {
            session
                .wait_condition("Ready", "True", Duration::from_secs(240))
                .await;
            eprintln!(
                "FIGURE last kill -> {} Ready: {:?}",
                session.name,
                over.elapsed()
            );
        }
        eprintln!(
            "FIGURE the operator was killed {kills} times, {after_a_write} of them right after a change"
        );

        let (pods, claims) = (witness.pods(), witness.claims());
        for name in names {
            for (what, seen) in [("pod", &pods), ("claim", &claims)] {
                assert_eq!(
                    seen.most.get(name),
                    Some(&1),
                    "{what}s of {name} at one time: {seen:#?}"
                );
                assert_eq!(
                    seen.ever.get(name).map(BTreeSet::len),
                    Some(1),
                    "{what}s of {name} ever: {seen:#?}"
                );
            }
        }
        let mut uids = Vec::new();
        for session in &sessions {
            uids.push(
                session
                    .object()
                    .await
                    .expect("the object")
                    .uid()
                    .expect("a UID"),
            );
        }
        let children = owners(&ns).await;
        assert_eq!(children.len(), 2 * names.len(), "{children:?}");
        for (child, owners) in children {
            assert!(
                owners.len() == 1 && uids.contains(&owners[0]),
                "orphan {child}: {owners:?}"
            );
        }
        // Nobody was forgotten: the last one still works.
        let id = sessions[4].create("works", "SCENARIO:hello").await;
        sessions[4].read(&id).await.completed();
        eventually(
            "the operator to be well again",
            Duration::from_secs(60),
            || async {
                let said = kubectl(
                    &[
                        "-n",
                        SYSTEM,
                        "rollout",
                        "status",
                        "deployment/opencode-operator",
                        "--timeout=5s",
                    ],
                    "",
                )
                .await;
                if said.ok {
                    Ok(())
                } else {
                    Err(said.out + &said.err)
                }
            },
        )
        .await;
    });
}
