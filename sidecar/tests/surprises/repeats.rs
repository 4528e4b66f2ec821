//! Requests that come again, whose caller is gone, that are too many, or lack their key.

use crate::{
    callers::{post, send_and_leave},
    reader::Reader,
    stack::{Setup, Stack, run, shared},
};
use contract::{
    client::ClientError,
    event::TurnError,
    session::{CreateSession, CreateTurn, ModelConfig, Provider},
};
use serde_json::{Value, json};

#[test]
fn the_same_request_from_ten_at_once_is_one_session() {
    run(async {
        let stack = shared().await;
        for round in 0..5 {
            let id = stack.id();
            let body = json!({"session_id": id, "prompt": "SCENARIO:hello"}).to_string();
            let send = |path: String, body: String, key: String| async move {
                let answer = post(stack, &path, body)
                    .header("idempotency-key", key)
                    .send()
                    .await
                    .unwrap();
                (
                    answer.status().as_u16(),
                    answer.json::<Value>().await.unwrap(),
                )
            };
            let ten =
                (0..10).map(|_| tokio::spawn(send("/sessions".into(), body.clone(), "k1".into())));
            for answer in futures::future::join_all(ten.collect::<Vec<_>>()).await {
                let (status, body) = answer.unwrap();
                assert_eq!(status, 201, "{round}: {body}");
                assert_eq!(body["session_id"], json!(id));
            }
            let mut reader = Reader::default();
            stack.read_turn(&mut reader, &id).await;
            reader.complete();
            let turn = json!({"prompt": "SCENARIO:hello"}).to_string();
            let ten = (0..10).map(|_| {
                tokio::spawn(send(
                    format!("/sessions/{id}/turns"),
                    turn.clone(),
                    "k2".into(),
                ))
            });
            for answer in futures::future::join_all(ten.collect::<Vec<_>>()).await {
                let (status, body) = answer.unwrap();
                assert_eq!((status, &body["turn"]), (201, &json!(2)), "{round}: {body}");
            }
            stack.read_turn(&mut reader, &id).await;
            reader.complete();
            assert_eq!(stack.model_calls(&id).await, 2);
            let other = send(
                format!("/sessions/{id}/turns"),
                json!({"prompt": "other"}).to_string(),
                "k2".into(),
            )
            .await;
            assert_eq!(
                (other.0, &other.1["details"]["code"]),
                (409, &json!("idempotency_mismatch"))
            );
            // Without the key, ids are never used again.
            let again = stack.create(&id, "SCENARIO:hello").await;
            assert!(
                matches!(again, Err(ClientError::Api { status: 409, .. })),
                "{again:?}"
            );
        }
    });
}

/// A caller that is gone before its answer must not leave a turn that nobody runs.
#[test]
fn a_request_whose_caller_is_gone_runs_or_was_never_there() {
    run(async {
        let stack = shared().await;
        let mut ids = Vec::new();
        for _ in 0..20 {
            let id = stack.id();
            let body = json!({"session_id": id, "prompt": "SCENARIO:hello"}).to_string();
            send_and_leave(stack, "/sessions", &body).await;
            ids.push(id);
        }
        stack.still_works().await;
        for id in ids {
            if stack.client.session(&id).await.is_ok() {
                let mut reader = Reader::default();
                stack.read_turn(&mut reader, &id).await;
                reader.complete();
            }
        }
    });
}

#[test]
fn at_the_limit_callers_are_told_when_to_come_back() {
    run(async {
        let config = json!({"limits": {"maxConcurrentSessions": 2, "turnTimeoutSeconds": 600}});
        let stack = Stack::start(Setup::default().config(config)).await;
        let one = stack.begin("SCENARIO:slow 2000 20").await;
        let two = stack.begin("SCENARIO:slow 2000 20").await;
        let third = stack.id();
        let body = json!({"session_id": third, "prompt": "SCENARIO:hello"}).to_string();
        let answer = post(&stack, "/sessions", body).send().await.unwrap();
        assert_eq!(answer.status(), 503);
        let after: u32 = answer.headers()["retry-after"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((1..=60).contains(&after));
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["details"]["code"], "too_many_sessions");
        let busy = stack
            .client
            .create_turn(
                &one,
                &CreateTurn {
                    prompt: "x".into(),
                    api_key: None,
                },
            )
            .await;
        assert!(
            matches!(busy, Err(ClientError::Api { status: 409, .. })),
            "{busy:?}"
        );
        stack.client.cancel(&one).await.unwrap();
        // The id was not used up.
        stack.create(&third, "SCENARIO:hello").await.unwrap();
        stack.client.cancel(&two).await.unwrap();
        let mut reader = Reader::default();
        stack.read_turn(&mut reader, &third).await;
        reader.complete();
    });
}

#[test]
fn a_key_that_came_with_its_session_is_asked_for_after_a_restart() {
    run(async {
        let stack = Stack::start(Setup::default()).await;
        let own = |model: &str| ModelConfig {
            provider: Provider::Local,
            model: model.into(),
            api_key: Some("sk-own".into()),
            temperature: None,
            max_tokens: None,
            enabled_tools: None,
            model_version: None,
            api_endpoint: Some(stack.model.base_url()),
        };
        let id = stack.id();
        let begin = |session_id: contract::SessionId, prompt: &str| CreateSession {
            session_id,
            prompt: prompt.into(),
            model_config: Some(own("own-1")),
            system_prompt: None,
        };
        stack
            .client
            .create_session(&begin(id.clone(), "SCENARIO:hello"))
            .await
            .unwrap();
        let mut reader = Reader::default();
        stack.read_turn(&mut reader, &id).await;
        reader.complete();
        // And one that is cut by the restart.
        let cut = stack.id();
        stack
            .client
            .create_session(&begin(cut.clone(), "SCENARIO:slow 2000 20"))
            .await
            .unwrap();
        let mut of_cut = Reader::default();
        stack.read(&mut of_cut, &cut, crate::reader::speaks).await;
        stack.kill_sidecar();
        stack.start_sidecar();
        stack.ready().await;
        stack.read_turn(&mut of_cut, &cut).await;
        of_cut.failed(TurnError::KeyRequired);

        assert!(stack.client.session(&id).await.unwrap().key_required);
        let without = CreateTurn {
            prompt: "SCENARIO:hello".into(),
            api_key: None,
        };
        match stack.client.create_turn(&id, &without).await {
            Err(ClientError::Api { status: 409, body }) => {
                assert_eq!(body.details.code, contract::ErrorCode::KeyRequired);
            }
            other => panic!("{other:?}"),
        }
        let with = CreateTurn {
            prompt: "SCENARIO:whoami".into(),
            api_key: Some("sk-own".into()),
        };
        stack.client.create_turn(&id, &with).await.unwrap();
        stack.read_turn(&mut reader, &id).await;
        assert!(
            reader.complete().final_message.contains("own-1"),
            "{:?}",
            reader.complete()
        );
        // The key is nowhere on the disk.
        let found = std::process::Command::new("grep")
            .args(["-rl", "sk-own"])
            .arg(&stack.dir)
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    });
}
