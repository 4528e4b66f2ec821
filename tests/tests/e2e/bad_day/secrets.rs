//! Keys that come late and keys that change.

use contract::{
    EventBody,
    event::{StatusKind, TurnError},
};
use serde_json::json;
use std::time::{Duration, Instant};
use tests::{
    Model, Recorder, Session, eventually, run,
    session::{KEY, READY, TURN},
};

#[test]
fn a_missing_secret_is_named_and_when_it_comes_the_turn_goes_on_by_itself() {
    run("nokey", |ns| async move {
        let model = Model::start(&ns, "model", KEY).await;
        let providers = json!([model.provider("compatible", "late-key")]);
        let session = Session::apply_with(
            &ns,
            "whimbrel",
            Some("SCENARIO:hello"),
            providers,
            json!({}),
        )
        .await;
        let id = session.prompt_id();

        let message = session
            .wait_condition("SecretsResolved", "False: SecretMissing", READY)
            .await;
        let todo = format!(
            "kubectl -n {} create secret generic late-key --from-literal=key=",
            ns.name
        );
        for part in ["key key of Secret late-key", todo.as_str()] {
            assert!(message.contains(part), "{part} in {message}");
        }
        let ready = session
            .wait_condition("Ready", "False: SecretMissing", READY)
            .await;
        assert!(ready.contains(&todo), "{ready}");
        let mut reader = Recorder::default();
        let waits = |r: &Recorder| r.says(StatusKind::WaitingForKey);
        tokio::time::timeout(TURN, reader.read_until(&session, &id, waits))
            .await
            .expect("the turn waits for its key");
        eventually("activity WaitingForKey", READY, || async {
            let activity = session.object().await?.status.and_then(|s| s.activity);
            let name = format!("{activity:?}");
            if name == "Some(WaitingForKey)" {
                Ok(())
            } else {
                Err(name)
            }
        })
        .await;
        let events = ns.kubectl(&["get", "events", "-o", "json"], "").await;
        assert!(
            events.contains("SecretMissing"),
            "an Event tells too: {events}"
        );
        assert!(
            model.requests().await.is_empty(),
            "nothing is asked without a key"
        );
        // So that the time below is the key's alone, not that of OpenCode's start.
        session.wait_condition("AgentReady", "True", READY).await;
        let before = session.restarts().await;

        // A Secret of that name without that key is not it.
        ns.kubectl(
            &[
                "create",
                "secret",
                "generic",
                "late-key",
                "--from-literal=other=x",
            ],
            "",
        )
        .await;
        ns.kubectl(&["delete", "secret", "late-key"], "").await;

        let created = Instant::now();
        ns.kubectl(
            &[
                "create",
                "secret",
                "generic",
                "late-key",
                &format!("--from-literal=key={KEY}"),
            ],
            "",
        )
        .await;
        let runs = |r: &Recorder| r.says(StatusKind::Running);
        tokio::time::timeout(TURN, reader.read_until(&session, &id, runs))
            .await
            .expect("the turn runs");
        let took = created.elapsed();
        eprintln!("FIGURE Secret created -> turn runs: {took:?}");
        tokio::time::timeout(TURN, reader.read_to_end(&session, &id))
            .await
            .expect("the turn ends");
        eprintln!(
            "FIGURE Secret created -> turn complete: {:?}",
            created.elapsed()
        );
        reader.check();
        reader.completed();
        // Without the operator's nudge the kubelet looks every 60 to 90 s.
        assert!(took < Duration::from_secs(30), "{took:?}");
        session
            .wait_condition("SecretsResolved", "True", READY)
            .await;
        session.ready().await;
        assert_eq!(
            session.restarts().await,
            before,
            "the same pod, nothing restarted"
        );
        assert!(before.1.values().all(|count| *count == 0), "{before:?}");
        let waited = reader.events.iter().filter(|e| matches!(&e.event.body, EventBody::Status(s) if s.status == StatusKind::WaitingForKey));
        assert_eq!(waited.count(), 1, "said once");
    });
}

/// What waits for a key has not begun: a mended spec need not wait for it.
#[test]
fn a_wrong_secret_name_can_be_mended_while_a_turn_waits_for_it() {
    run("typo", |ns| async move {
        let model = Model::start(&ns, "model", KEY).await;
        ns.secret("model-key", "key", KEY).await;
        let providers = json!([model.provider("compatible", "modle-key")]);
        let session =
            Session::apply_with(&ns, "dipper", Some("SCENARIO:hello"), providers, json!({})).await;
        session
            .wait_condition("SecretsResolved", "False: SecretMissing", READY)
            .await;
        let mut reader = Recorder::default();
        let id = session.prompt_id();
        let waits = |r: &Recorder| r.says(StatusKind::WaitingForKey);
        tokio::time::timeout(TURN, reader.read_until(&session, &id, waits))
            .await
            .expect("the turn waits for its key");

        let mended = Instant::now();
        session
            .patch(json!({"providers": [model.provider("compatible", "model-key")]}))
            .await;
        session
            .wait_condition("SecretsResolved", "True", READY)
            .await;
        session.ready().await;
        eprintln!(
            "FIGURE name of the Secret mended -> Ready: {:?}",
            mended.elapsed()
        );
        let history = session.read(&id).await;
        history.check();
        history.continues(&reader);
        // The new pod takes the waiting turn up: nothing of it was lost with the old one.
        history.completed();
        session.turn(&id, "SCENARIO:hello").await;
        session.read(&id).await.completed();
    });
}

#[test]
fn a_rotated_secret_is_used_without_a_restart() {
    run("rotate", |ns| async move {
        let (session, model) = Session::apply(
            &ns,
            "turnstone",
            Some("REMEMBER:teal-anchor SCENARIO:hello"),
            json!({}),
        )
        .await;
        let id = session.prompt_id();
        session.read(&id).await.completed();
        session.ready().await;
        let before = session.restarts().await;

        let new = "sk-rotated-9876543210";
        ns.secret("model-accepts", "keys", new).await;
        // The double's own volume is renewed at the kubelet's leisure: a change of its pod hurries it.
        let http = reqwest::Client::builder()
            .no_proxy()
            .build()
            .expect("a client");
        let ask = |key: &'static str| {
            let body = json!({"model": "scripted-1", "stream": false, "messages": [{"role": "user", "content": "SCENARIO:hello"}]});
            http.post(format!("{}/v1/chat/completions", model.url))
                .bearer_auth(key)
                .json(&body)
                .timeout(Duration::from_secs(5))
                .send()
        };
        let mut round = 0;
        while ask(KEY).await.expect("answered").status() != 401 {
            round += 1;
            assert!(round < 240, "the double still takes the old key");
            ns.kubectl(
                &[
                    "annotate",
                    "pod",
                    "model",
                    "--overwrite",
                    &format!("round={round}"),
                ],
                "",
            )
            .await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert_eq!(ask(new).await.expect("answered").status(), 200);
        // The old key fails now, and says why.
        session.turn(&id, "SCENARIO:hello").await;
        let refused = session.read(&id).await;
        assert_eq!(refused.failed(), TurnError::ProviderAuth);

        let rotated = Instant::now();
        ns.secret("model-key", "key", new).await;
        let mut turns = 1;
        let history = loop {
            session.turn(&id, "SCENARIO:recall").await;
            let history = session.read(&id).await;
            turns += 1;
            if matches!(
                history.events.last().map(|e| &e.event.body),
                Some(EventBody::Complete(_))
            ) {
                break history;
            }
            assert_eq!(history.failed(), TurnError::ProviderAuth);
            assert!(
                rotated.elapsed() < Duration::from_secs(150),
                "the new key is still not used after {turns} turns"
            );
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        eprintln!(
            "FIGURE Secret rotated -> turn complete with the new key: {:?} ({turns} turns)",
            rotated.elapsed()
        );
        history.check();
        history.continues(&refused);
        assert!(
            history.completed().final_message.contains("teal-anchor"),
            "{:?}",
            history.completed()
        );
        assert_eq!(
            session.restarts().await,
            before,
            "the same pod, nothing restarted"
        );
        assert!(before.1.values().all(|count| *count == 0), "{before:?}");
    });
}
