//! Limits of the pod are real: in the cgroup, in the API.

use contract::{
    EventBody, SessionId, client::ClientError, event::TurnError, session::CreateSession,
};
use serde_json::json;
use tests::{
    Model, Session, eventually, run,
    session::{KEY, READY},
};

/// The log of model calls in the sidecar.
const AUDIT: &str = "/var/lib/opencode-operator/journal/audit";

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

/// Prompts until a turn is complete: a raised budget is there within seconds.
async fn becomes_enough(session: &Session) {
    let mut attempt = 0;
    eventually("a turn within the new budget", READY, || {
        attempt += 1;
        let name = format!("again-{attempt}");
        async move {
            let id = session.create(&name, "SCENARIO:hello").await;
            match &session.read(&id).await.ends()[0].body {
                EventBody::Complete(_) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        }
    })
    .await;
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
        becomes_enough(&session).await;
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

/// Money: priced calls, a budget in USD that ends a turn and is raised, and the log of it all, found good
/// by its own command with the anchor that the object has.
#[test]
fn a_budget_in_usd_is_kept_and_the_log_of_calls_agrees() {
    run("money", |ns| async move {
        let model = Model::start(&ns, "model", KEY).await;
        ns.secret("model-key", "key", KEY).await;
        let mut provider = model.provider("compatible", "model-key");
        provider["prices"] =
            json!([{"model": "scripted-1", "inputPerMillion": "3", "outputPerMillion": "15"}]);
        let budget = |usd: &str| json!({"limits": {"budget": {"costUSD": usd}}});
        let session = Session::apply_with(
            &ns,
            "chiffchaff",
            None,
            json!([provider]),
            budget("0.000001"),
        )
        .await;
        session.ready().await;
        let id = session.create("spends", "SCENARIO:hello").await;
        assert_eq!(session.read(&id).await.failed(), TurnError::BudgetExhausted);
        assert_eq!(
            model.requests().await.len(),
            0,
            "refused before it was sent"
        );

        session.patch(budget("25")).await;
        becomes_enough(&session).await;
        let usage = eventually("what it cost on the object", READY, || async {
            let usage = session.object().await?.status.and_then(|s| s.usage);
            let usage = usage.ok_or("no usage")?;
            let cost = usage
                .cost_usd
                .as_deref()
                .and_then(|usd| usd.parse::<f64>().ok());
            match (cost, &usage.audit) {
                (Some(cost), Some(_)) if cost > 0.0 => Ok((cost, usage)),
                _ => Err(format!("{usage:?}")),
            }
        })
        .await;
        let (cost, usage) = usage;
        let (input, output) = (usage.input_tokens as f64, usage.output_tokens as f64);
        let expected = (3.0 * input + 15.0 * output) / 1e6;
        // Each call is rounded up to a whole nano-USD.
        assert!(
            (cost - expected).abs() < 1e-7,
            "{cost} is not {expected}: {usage:?}"
        );
        let left: f64 = usage
            .budget_left
            .and_then(|left| left.cost_usd)
            .expect("what is left")
            .parse()
            .expect("a number");
        assert!((left + cost - 25.0).abs() < 1e-6, "{left} + {cost}");

        let audit = async |arguments: &[&str]| {
            let mut command = vec!["/sidecar", "audit"];
            command.extend_from_slice(arguments);
            session.exec("sidecar", &command).await
        };
        let head = usage.audit.expect("an anchor").hash;
        let verified = audit(&["verify", AUDIT, "--head", &head]).await;
        assert!(
            verified.ok && verified.out.starts_with("good:"),
            "{}{}",
            verified.out,
            verified.err
        );
        assert!(
            !audit(&["verify", AUDIT, "--head", &"0".repeat(64)])
                .await
                .ok
        );
        let shown = audit(&["show", AUDIT]).await.out;
        assert!(
            shown.contains("budget_exhausted") && shown.contains("scripted-1"),
            "{shown}"
        );
        assert!(!shown.contains(KEY), "{shown}");
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
