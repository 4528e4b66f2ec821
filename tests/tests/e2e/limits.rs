//! Limits of the pod are real: in the cgroup, in the API.

use contract::{
    EventBody, SessionId, client::ClientError, event::TurnError, session::CreateSession,
};
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

#[test]
fn a_budget_ends_turns_and_is_raised_without_another_pod() {
    run("budget", |ns| async move {
        let calls = |most: u32| json!({"limits": {"budget": {"calls": most}}});
        let (session, _model) = Session::apply(&ns, "dunnock", None, calls(1)).await;
        session.ready().await;
        let id = session
            .create("spends", "SCENARIO:bash <<<echo hello>>>")
            .await;
        assert_eq!(session.read(&id).await.failed(), TurnError::BudgetExhausted);

        let pod = session.pod_uid().await;
        session.patch(calls(100)).await;
        let mut attempt = 0;
        eventually("a turn within the new budget", READY, || {
            attempt += 1;
            let (session, name) = (&session, format!("again-{attempt}"));
            async move {
                let id = session.create(&name, "SCENARIO:hello").await;
                let reader = session.read(&id).await;
                match &reader.ends()[0].body {
                    EventBody::Complete(_) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            }
        })
        .await;
        assert_eq!(session.pod_uid().await, pod);
        eventually("the calls on the object", READY, || async {
            let usage = session
                .object()
                .await?
                .status
                .and_then(|status| status.usage);
            match usage {
                Some(usage) if usage.calls > 1 => Ok(()),
                usage => Err(format!("{usage:?}")),
            }
        })
        .await;
    });
}
