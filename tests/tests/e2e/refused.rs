//! What is wrong is refused with a message that says what to do, and nothing else happens.

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::{Session, run};

#[test]
fn a_bad_spec_is_refused_with_its_rule() {
    run("badspec", |ns| async move {
        let good = json!({
            "providers": [{"name": "p", "kind": "openai", "apiKeySecretRef": {"name": "s", "key": "k"}}],
            "model": {"provider": "p", "name": "m"},
        });
        let cases: [(&str, Value, &str); 5] = [
            (
                "model",
                json!({"provider": "q", "name": "m"}),
                "must be the name of an entry of providers",
            ),
            (
                "limits",
                json!({"maxConcurrentSessions": 0}),
                "maxConcurrentSessions",
            ),
            ("limits", json!({"turnTimeout": "0s"}), "must lie between"),
            (
                "journal",
                json!({"storage": "1Gi"}),
                "only with workspace.existingClaim",
            ),
            ("prompt", json!("   "), "must not be blank"),
        ];
        for (field, value, says) in cases {
            let mut spec = good.clone();
            spec[field] = value;
            let object = json!({"apiVersion": "opencode-operator.dev/v1alpha1", "kind": "OpenCodeSession", "metadata": {"name": "bad"}, "spec": spec});
            let said = ns
                .try_kubectl(&["apply", "-f", "-"], &object.to_string())
                .await;
            assert!(
                !said.ok && said.err.contains(says),
                "{field}: {} {}",
                said.out,
                said.err
            );
        }
        let said = ns.kubectl(&["get", "ocs,pods,pvc", "-o", "name"], "").await;
        assert_eq!(said, "");
    });
}

/// How soon a wrong request is refused.
const AT_ONCE: Duration = Duration::from_secs(1);

#[test]
fn bad_requests_get_a_4xx_that_names_field_and_rule_at_once() {
    run("badinput", |ns| async move {
        let (session, _model) = Session::apply(&ns, "knot", None, json!({})).await;
        session.client().await;
        let url = session.url().await;
        let http = reqwest::Client::builder()
            .no_proxy()
            .build()
            .expect("a client");
        let long = "x".repeat(5 * 1024 * 1024 + 1);
        let cases: Vec<(String, u16, &str)> = vec![
            ("{".into(), 400, "body"),
            ("[]".into(), 400, "body"),
            (json!({"session_id": "a"}).to_string(), 400, "prompt"),
            (json!({"session_id": "a", "prompt": ""}).to_string(), 400, "prompt"),
            (json!({"session_id": "a", "prompt": long}).to_string(), 400, "prompt"),
            (json!({"session_id": "a", "prompt": "\u{1}"}).to_string(), 400, "prompt"),
            (json!({"session_id": "a/b", "prompt": "x"}).to_string(), 400, "session_id"),
            (json!({"session_id": "..", "prompt": "x"}).to_string(), 400, "session_id"),
            (json!({"session_id": 7, "prompt": "x"}).to_string(), 400, "session_id"),
            (json!({"session_id": "a", "prompt": "x", "extra": 1}).to_string(), 400, "extra"),
            (json!({"session_id": "a", "prompt": "x", "model_config": {"provider": "nobody", "model": "m"}}).to_string(), 400, "model_config.provider"),
            (json!({"session_id": "a", "prompt": "x", "model_config": {"provider": "openai", "model": "m", "api_endpoint": "http://169.254.169.254/"}}).to_string(), 400, "model_config"),
        ];
        for (body, status, field) in cases {
            let shown: String = body.chars().take(80).collect();
            // What is refused changes nothing, so that a busy machine gets another try.
            let mut took = Vec::new();
            while took.len() < 3 && took.last().is_none_or(|last| *last >= AT_ONCE) {
                let began = Instant::now();
                let answer = http
                    .post(format!("{url}/sessions"))
                    .bearer_auth(&session.token)
                    .header("content-type", "application/json")
                    .body(body.clone())
                    .timeout(Duration::from_secs(10))
                    .send()
                    .await
                    .expect("answered");
                assert_eq!(answer.status(), status, "{shown}");
                assert!(answer.headers().contains_key("x-request-id"), "{shown}");
                let answer: Value = answer.json().await.expect("JSON");
                took.push(began.elapsed());
                let fields = answer["details"]["fields"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                assert!(
                    fields
                        .iter()
                        .any(|f| f["field"].as_str().is_some_and(|f| f.starts_with(field))),
                    "{shown}: {answer}"
                );
            }
            assert!(
                took.iter().any(|took| *took < AT_ONCE),
                "{shown} took {took:?}"
            );
        }
        for token in ["", "wrong", "eyJhbGciOiJub25lIn0.e30."] {
            let answer = http
                .get(format!("{url}/sessions"))
                .bearer_auth(token)
                .send()
                .await
                .expect("answered");
            assert_eq!(answer.status(), 401, "{token}");
        }
        for open in ["/healthz", "/health", "/ready"] {
            let answer = http
                .get(format!("{url}{open}"))
                .send()
                .await
                .expect("answered");
            assert_ne!(answer.status(), 401, "{open}");
        }
        let huge = http
            .get(format!("{url}/sessions"))
            .bearer_auth(&session.token)
            .header("x-big", "y".repeat(200_000))
            .send()
            .await;
        assert!(huge.is_err() || huge.is_ok_and(|answer| answer.status().is_client_error()));
        let list = session
            .client()
            .await
            .sessions()
            .await
            .expect("still there");
        assert!(list.sessions.is_empty(), "nothing was begun: {list:?}");
    });
}
