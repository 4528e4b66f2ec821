//! Limits of the pod are real: in the cgroup, in the API.

use contract::{
    EventBody, SessionId, client::ClientError, event::TurnError, session::CreateSession,
};
use serde_json::json;
use tests::{Session, eventually, run, session::READY};

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

#[test]
fn a_container_that_is_nearly_full_gets_a_new_opencode_once_it_is_idle() {
    run("memory", |ns| async move {
        let patch = json!({
            "agent": {"resources": {"limits": {"memory": "1Gi"}}},
            "limits": {"watchdog": {"memoryPercent": 70}},
        });
        let (session, _model) = Session::apply(&ns, "ptarmigan", None, patch).await;
        session.ready().await;
        // It stays behind and holds 450 MB: OpenCode alone is far below the bound.
        let hoard = "( (head -c 450000000 /dev/zero; exec sleep 3600) | tail -c 900000000 ) >/dev/null 2>&1 </dev/null & echo started";
        let id = session
            .create("hoards", "REMEMBER:ibex SCENARIO:hello")
            .await;
        session.read(&id).await.completed();
        session
            .turn(&id, &format!("SCENARIO:bash <<<{hoard}>>>"))
            .await;
        session.read(&id).await.completed();
        let tails = "cat /proc/[0-9]*/comm | grep -cx tail";
        assert_eq!(
            session.exec("agent", &["sh", "-c", tails]).await.out.trim(),
            "1"
        );

        let metric = "opencode_sidecar_opencode_recycles_total{why=\"memory\"} 1";
        eventually("OpenCode is started anew", READY, || async {
            let metrics = session.metrics().await?;
            if metrics.lines().any(|line| line == metric) {
                Ok(())
            } else {
                Err(metrics)
            }
        })
        .await;
        session.ready().await;
        session.turn(&id, "SCENARIO:recall").await;
        let history = session.read(&id).await;
        let last = &history.completed().final_message;
        assert!(last.contains("ibex"), "{last}");
        assert_eq!(
            session.exec("agent", &["sh", "-c", tails]).await.out.trim(),
            "0"
        );
    });
}
