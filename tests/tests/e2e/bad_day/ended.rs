//! Pods that end without anybody deleting them: by the kubelet's hand, by an eviction.

use contract::{EventBody, event::TurnError};
use serde_json::json;
use std::time::Instant;
use tests::{
    Recorder, Session, Witness, eventually, run,
    session::{READY, TURN},
};

async fn successor(session: &Session, of: &str) -> String {
    let uid = eventually("another pod", READY, || async {
        let uid = session.pod_uid().await;
        if uid == of {
            Err("the same pod".into())
        } else {
            Ok(uid)
        }
    })
    .await;
    session.ready().await;
    uid
}

#[test]
fn a_pod_that_the_kubelet_ends_or_somebody_evicts_is_replaced() {
    run("ended", |ns| async move {
        let witness = Witness::start(&ns);
        let prompt = "REMEMBER:ochre-satchel SCENARIO:bash-long 300";
        let (session, _model) = Session::apply(&ns, "pipit", Some(prompt), json!({})).await;
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
        let first = session.pod_uid().await;

        // As after an eviction by its node: the object stays, phase Failed.
        let ended = Instant::now();
        let deadline = json!({"spec": {"activeDeadlineSeconds": 1}}).to_string();
        ns.kubectl(&["patch", "pod", "pipit", "-p", &deadline], "")
            .await;
        tokio::time::timeout(2 * TURN, reader.read_to_end(&session, &id))
            .await
            .expect("the turn ends");
        eprintln!(
            "FIGURE pod failed -> a reader has the turn's end: {:?}",
            ended.elapsed()
        );
        let code = reader.failed();
        assert!(
            matches!(
                code,
                TurnError::AgentDied | TurnError::Interrupted | TurnError::ShuttingDown
            ),
            "{code:?}"
        );
        let second = successor(&session, &first).await;
        eprintln!(
            "FIGURE pod failed -> successor Ready: {:?}",
            ended.elapsed()
        );
        session.turn(&id, "SCENARIO:recall").await;
        let history = session.read(&id).await;
        history.check();
        history.continues(&reader);
        assert!(history.completed().final_message.contains("ochre-satchel"));
        let events = ns
            .kubectl(
                &[
                    "get",
                    "events",
                    "--field-selector=reason=PodEnded",
                    "-o",
                    "json",
                ],
                "",
            )
            .await;
        assert!(events.contains("replaced on the same volume"), "{events}");

        // Evicted through the API, as a drained node does it.
        let evicted = Instant::now();
        let path = format!("/api/v1/namespaces/{}/pods/pipit/eviction", ns.name);
        let body =
            json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "pipit"}});
        ns.kubectl(&["create", "--raw", &path, "-f", "-"], &body.to_string())
            .await;
        successor(&session, &second).await;
        eprintln!(
            "FIGURE pod evicted -> successor Ready: {:?}",
            evicted.elapsed()
        );
        session.turn(&id, "SCENARIO:recall").await;
        let last = session.read(&id).await;
        last.check();
        last.continues(&history);
        assert!(last.completed().final_message.contains("ochre-satchel"));
        assert_eq!(last.ends().len(), 3);

        let pods = witness.pods();
        assert_eq!(
            (pods.ever["pipit"].len(), pods.most["pipit"]),
            (3, 1),
            "{pods:#?}"
        );
        assert_eq!(witness.claims().ever["pipit"].len(), 1);
    });
}
