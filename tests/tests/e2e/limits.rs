//! Limits of the pod are real: in the cgroup, in the API.

use contract::{SessionId, client::ClientError, session::CreateSession};
use serde_json::json;
use tests::{
    Session, eventually, run,
    session::{READY, TURN},
};

#[test]
fn limits_are_in_the_cgroup_change_in_place_and_bound_turns() {
    run("limits", |ns| async move {
        let patch = json!({
            "agent": {"resources": {"requests": {"cpu": "200m", "memory": "400Mi"}, "limits": {"cpu": "1500m", "memory": "1200Mi"}}},
            "limits": {"maxConcurrentSessions": 1, "turnTimeout": "20s"},
        });
        let (session, _model) = Session::apply(&ns, "sanderling", None, patch).await;
        session.ready().await;
        let memory =
            "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null";
        let said = session.exec("agent", &["sh", "-c", memory]).await;
        assert_eq!(said.out.trim(), (1200_u64 << 20).to_string());

        let id = session.create("hangs", "SCENARIO:hang").await;
        let second = CreateSession {
            session_id: SessionId::new("second").expect("an id"),
            prompt: "SCENARIO:hello".into(),
            model_config: None,
            system_prompt: None,
        };
        match session.client().await.create_session(&second).await {
            Err(ClientError::Api { status: 503, body }) => {
                assert_eq!(body.details.code, contract::ErrorCode::TooManySessions);
            }
            other => panic!("one turn at once is allowed, yet {other:?}"),
        }
        let history = session.read(&id).await;
        let end = serde_json::to_value(history.ends()[0]).expect("JSON");
        assert_eq!(end["code"], "turn_timeout", "{end}");

        // In place: the pod and its containers stay.
        let before = session.pod().await;
        session
            .patch(json!({"agent": {"resources": {"limits": {"memory": "1400Mi"}}}}))
            .await;
        eventually("the new limit in the cgroup", READY, || async {
            let said = session.exec("agent", &["sh", "-c", memory]).await;
            if said.out.trim() == (1400_u64 << 20).to_string() {
                Ok(())
            } else {
                Err(said.out + &said.err)
            }
        })
        .await;
        let after = session.pod().await;
        assert_eq!(before.metadata.uid, after.metadata.uid);
        let restarts = after
            .status
            .iter()
            .flat_map(|s| s.container_statuses.iter().flatten())
            .map(|c| c.restart_count)
            .sum::<i32>();
        assert_eq!(restarts, 0);
        let _ = TURN;
    });
}
