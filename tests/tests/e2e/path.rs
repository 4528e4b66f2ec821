//! The main job: apply, ready, a turn done, the file really there, every event out.

use contract::{
    EventBody, SessionId,
    event::{OutputSource, StatusKind},
};
use serde_json::json;
use tests::{
    Model, Session, eventually, run, run_alone,
    session::{KEY, READY, TURN},
};

#[test]
fn an_applied_session_does_its_prompt_and_tells_all_of_it() {
    run("path", |ns| async move {
        let (session, model) =
            Session::apply(&ns, "pelican", Some("SCENARIO:demo please"), json!({})).await;
        session.ready().await;
        let history = session.read(&session.prompt_id()).await;
        history.check();
        assert!(history.gaps.is_empty());
        let complete = history.completed();
        assert_eq!(complete.files_modified, ["greet.sh", "greetings.txt"]);
        assert!(session.file("greet.sh").await.contains("said hello in"));
        let texts = history.texts(OutputSource::Assistant);
        assert!(
            texts.values().any(|text| text == &complete.final_message),
            "{texts:?}"
        );
        let ticks: String = history.texts(OutputSource::Tool).into_values().collect();
        assert!(
            ticks.contains("tick"),
            "what bash prints comes while it runs: {ticks:?}"
        );
        assert!(complete.usage.input_tokens > 0 && complete.usage.output_tokens > 0);
        assert!(
            matches!(&history.events[0].event.body, EventBody::Status(s) if s.status == StatusKind::Queued)
        );

        let result = eventually("the result in the object's status", READY, || async {
            let status = session.object().await?.status.unwrap_or_default();
            status
                .result
                .clone()
                .filter(|r| r.finished_at.is_some())
                .ok_or(format!("{status:?}"))
        })
        .await;
        assert_eq!(result.reason.as_deref(), Some("Completed"));
        assert_eq!(result.files_modified, complete.files_modified);
        assert_eq!(
            result.final_message.as_deref(),
            Some(complete.final_message.as_str())
        );
        for kind in [
            "SecretsResolved",
            "WorkspaceReady",
            "PodReady",
            "AgentReady",
        ] {
            session.wait_condition(kind, "True", READY).await;
        }
        let table = ns
            .kubectl(&["get", "ocs", "pelican", "-o", "wide"], "")
            .await;
        for word in [
            "PHASE",
            "ACTIVITY",
            "MODEL",
            "AGE",
            "POD",
            "WORKSPACE",
            "TOKENS",
            "Ready",
            "Idle",
            "scripted-1",
        ] {
            assert!(table.contains(word), "{word} in {table}");
        }
        assert!(!model.requests().await.is_empty());
    });
}

#[test]
fn a_backend_starts_a_session_and_reads_its_stream() {
    run("backend", |ns| async move {
        let (session, model) = Session::apply(&ns, "heron", None, json!({})).await;
        // Before the pod is ready: the request is recorded and waits.
        let id = session.create("job-1", "SCENARIO:write-many now").await;
        let history = session.read(&id).await;
        history.check();
        assert!(!history.completed().files_modified.is_empty());
        for file in &history.completed().files_modified {
            let there = session
                .exec("agent", &["test", "-e", &format!("/workspace/{file}")])
                .await
                .ok;
            let said_deleted = session
                .exec("agent", &["git", "-C", "/workspace", "status", "--short"])
                .await;
            assert!(
                there || !said_deleted.out.contains(file.as_str()),
                "{file}: {}",
                said_deleted.out
            );
        }
        let status = session
            .client()
            .await
            .session(&id)
            .await
            .expect("its status");
        assert_eq!(status.turn, 1);
        assert_eq!(
            status.model,
            "local/scripted-1".replace("local", status.model.split('/').next().unwrap_or_default())
        );
        let requests = model.requests().await;
        assert!(
            requests.iter().all(|r| r["path"]
                .as_str()
                .is_some_and(|p| p.ends_with("/chat/completions"))),
            "{requests:?}"
        );
    });
}

#[test]
fn the_second_turn_remembers_the_first_through_a_new_pod_and_a_suspension() {
    run("memory", |ns| async move {
        let (session, _model) = Session::apply(
            &ns,
            "magpie",
            Some("REMEMBER:quartz-lantern SCENARIO:hello"),
            json!({}),
        )
        .await;
        let id = session.prompt_id();
        session.read(&id).await.completed();
        session.turn(&id, "SCENARIO:recall").await;
        let history = session.read(&id).await;
        assert!(
            history.completed().final_message.contains("quartz-lantern"),
            "{:?}",
            history.completed()
        );

        let before = session.pod().await.metadata.uid;
        ns.kubectl(&["delete", "pod", "magpie", "--wait=true"], "")
            .await;
        eventually("another pod", READY, || async {
            let now = session.pod().await.metadata.uid;
            if now == before {
                Err("the same pod".into())
            } else {
                Ok(())
            }
        })
        .await;
        session.turn(&id, "SCENARIO:recall").await;
        let after_delete = session.read(&id).await;
        assert_eq!(
            after_delete.events[..history.events.len()].len(),
            history.events.len()
        );
        assert!(
            after_delete
                .completed()
                .final_message
                .contains("quartz-lantern")
        );

        session.patch(json!({"suspend": true})).await;
        eventually("no pod while suspended", TURN, || async {
            let said = ns.try_kubectl(&["get", "pod", "magpie"], "").await;
            if said.ok { Err(said.out) } else { Ok(()) }
        })
        .await;
        eventually("phase Suspended", READY, || async {
            let phase = session.object().await?.status.and_then(|s| s.phase);
            if phase.is_some_and(|p| p.as_str() == "Suspended") {
                Ok(())
            } else {
                Err(format!("{phase:?}"))
            }
        })
        .await;
        session.patch(json!({"suspend": false})).await;
        session.turn(&id, "SCENARIO:recall").await;
        let history = session.read(&id).await;
        history.check();
        assert!(history.completed().final_message.contains("quartz-lantern"));
        assert_eq!(history.ends().len(), 4);
    });
}

#[test]
fn two_sessions_work_with_two_models_at_once_in_one_pod() {
    // Two turns at once of ten calls each: with three more pods beside them they met the bound of a turn.
    run_alone("models", |ns| async move {
        let first = Model::start(&ns, "first", KEY).await;
        let second = Model::start(&ns, "second", "sk-second-0123456789").await;
        ns.secret("first-key", "key", KEY).await;
        ns.secret("second-key", "key", "sk-second-0123456789").await;
        let providers = json!([
            first.provider("compatible", "first-key"),
            second.provider("anthropic", "second-key")
        ]);
        let session = Session::apply_with(&ns, "curlew", None, providers, json!({})).await;
        let one = session.create("one", "SCENARIO:slow-tools").await;
        let client = session.client().await;
        let two = SessionId::new("two").expect("an id");
        let body = serde_json::from_value(json!({
            "session_id": "two", "prompt": "SCENARIO:slow-tools",
            "model_config": {"provider": "anthropic", "model": "other-2", "temperature": 0.25, "max_tokens": 777},
        }))
        .expect("a request");
        client.create_session(&body).await.expect("taken");
        let (a, b) = tokio::join!(session.read(&one), session.read(&two));
        a.completed();
        b.completed();
        let firsts = first.requests().await;
        let seconds = second.requests().await;
        assert!(
            firsts.iter().all(|r| r["model"] == "scripted-1"),
            "{firsts:?}"
        );
        let main: Vec<_> = seconds
            .iter()
            .filter(|r| r["title_request"] != true)
            .collect();
        assert!(
            !main.is_empty()
                && main.iter().all(|r| r["model"] == "other-2"
                    && r["max_tokens"] == 777
                    && r["temperature"] == 0.25),
            "{seconds:?}"
        );
        // Both at once: each model got a call while the other's turn ran.
        let span = |all: &[serde_json::Value]| {
            let times: Vec<String> = all
                .iter()
                .filter_map(|r| r["time"].as_str().map(str::to_owned))
                .collect();
            (times.iter().min().cloned(), times.iter().max().cloned())
        };
        let ((from_1, to_1), (from_2, to_2)) = (span(&firsts), span(&seconds));
        assert!(from_1 < to_2 && from_2 < to_1, "the turns did not overlap");
    });
}

#[test]
fn a_cancelled_turn_ends_so_and_leaves_no_process() {
    run("cancel", |ns| async move {
        let (session, _model) = Session::apply(&ns, "dunlin", None, json!({})).await;
        let id = session
            .create("long", "SCENARIO:bash <<<sleep 4242 & sleep 4243>>>")
            .await;
        let client = session.client().await;
        eventually("the tool at work", TURN, || async {
            let said = session
                .exec(
                    "agent",
                    &["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"],
                )
                .await;
            if said.out.contains("sleep 4243") {
                Ok(())
            } else {
                Err(said.out + &said.err)
            }
        })
        .await;
        client.cancel(&id).await.expect("cancelled");
        let history = session.read(&id).await;
        history.check();
        assert!(
            matches!(&history.ends()[..], [end] if matches!(&end.body, EventBody::Status(s) if s.status == StatusKind::Cancelled))
        );
        let said = session
            .exec(
                "agent",
                &["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"],
            )
            .await;
        assert!(!said.out.contains("sleep 424"), "{}", said.out);
        session.turn(&id, "SCENARIO:hello").await;
        session.read(&id).await.completed();
        client
            .cancel(&id)
            .await
            .expect("cancelling what does not run is no error");
    });
}
