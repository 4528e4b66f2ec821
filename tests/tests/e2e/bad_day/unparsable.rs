//! An object that the API server takes and the operator cannot read.

use serde_json::json;
use std::time::Duration;
use tests::{
    Model, Session, eventually,
    kubectl::kubectl,
    run_alone,
    session::{KEY, READY},
};

const SYSTEM: [&str; 2] = ["-n", "opencode-operator-system"];
const OPERATOR: &str = "app.kubernetes.io/name=opencode-operator";

async fn phase(session: &Session, wanted: &str) {
    eventually(
        &format!("phase {wanted} of {}", session.name),
        READY,
        || async {
            let said = session
                .ns
                .kubectl(
                    &[
                        "get",
                        "ocs",
                        &session.name,
                        "-o",
                        "jsonpath={.status.phase}",
                    ],
                    "",
                )
                .await;
            if said == wanted { Ok(()) } else { Err(said) }
        },
    )
    .await;
}

/// The schema allows what kube's types do not: a time whose offset is none. Somebody who may write the status writes it.
#[test]
fn one_object_that_cannot_be_read_does_not_stop_the_others() {
    run_alone("unreadable", |ns| async move {
        let model = Model::start(&ns, "model", KEY).await;
        let providers = || json!([model.provider("compatible", "model-key")]);
        let suspended = json!({"suspend": true});
        let bad = Session::apply_with(&ns, "phalarope", None, providers(), suspended.clone()).await;
        phase(&bad, "Suspended").await;
        let poison = json!({"status": {"conditions": [{
            "type": "Ready", "status": "False", "reason": "Poison", "message": "", "lastTransitionTime": "2026-11-21T08:00:00+99:99",
        }]}});
        let patch = [
            "patch",
            "ocs",
            "phalarope",
            "--subresource=status",
            "--type=merge",
            "-p",
        ];
        let poison = poison.to_string();
        let args: Vec<&str> = patch.iter().copied().chain([poison.as_str()]).collect();
        ns.kubectl(&args, "").await;
        assert!(bad.object().await.is_err(), "kube's types cannot read it");

        // Those that came later are served: by the operator that runs, and by one that begins with it in its first list.
        let other =
            Session::apply_with(&ns, "sanderling", None, providers(), suspended.clone()).await;
        phase(&other, "Suspended").await;
        let all: Vec<&str> = SYSTEM
            .iter()
            .copied()
            .chain(["delete", "pod", "-l", OPERATOR, "--wait=true"])
            .collect();
        assert!(kubectl(&all, "").await.ok);
        let third = Session::apply_with(&ns, "godwit", None, providers(), suspended).await;
        phase(&third, "Suspended").await;

        // Somebody is told which one it is.
        let logs: Vec<&str> = SYSTEM
            .iter()
            .copied()
            .chain(["logs", "-l", OPERATOR, "--tail=2000"])
            .collect();
        eventually(
            "the operator's log to name it",
            Duration::from_secs(30),
            || async {
                let said = kubectl(&logs, "").await;
                let named = said
                    .out
                    .lines()
                    .any(|line| line.contains("phalarope") && line.contains(&ns.name));
                if named {
                    Ok(())
                } else {
                    Err(said.out.lines().rev().take(3).collect())
                }
            },
        )
        .await;

        // Mended, it is served again.
        let mend = json!({"status": {"conditions": null, "phase": null}}).to_string();
        let args: Vec<&str> = patch.iter().copied().chain([mend.as_str()]).collect();
        ns.kubectl(&args, "").await;
        phase(&bad, "Suspended").await;
    });
}
