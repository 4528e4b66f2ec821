//! What is seen from outside: metrics, logs, the sentence that says why nothing happens.

use crate::{
    callers::post,
    reader::Reader,
    stack::{LONG, Setup, Stack, TOKEN, run, shared},
};
use bootstrap::exposition::{Expected, wrong};
use contract::{SessionId, event::TurnError};
use reqwest::header::HeaderValue;
use serde_json::{Value, json};
use std::time::Duration;

async fn metrics(stack: &Stack) -> String {
    let answer = stack
        .http
        .get(stack.url("/metrics"))
        .bearer_auth(TOKEN)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    answer.text().await.unwrap()
}

/// The value of a series; 0 where there is none.
fn value(metrics: &str, series: &str) -> f64 {
    metrics
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
        .map_or(0.0, |value| value.parse().unwrap())
}

#[test]
fn metrics_are_conventional_bounded_documented_and_true() {
    run(async {
        let stack = shared().await;
        let before = metrics(stack).await;
        let (id, reader) = stack.play("SCENARIO:hello").await;
        stack.play("SCENARIO:err401").await;
        // Whatever callers make up must not become a label.
        for path in ["/sessions/made-up", "/made/up?x=1", "/sessions/..%2f"] {
            let request = stack.http.request(
                reqwest::Method::from_bytes(b"INVENTED").unwrap(),
                stack.url(path),
            );
            request.bearer_auth(TOKEN).send().await.unwrap();
        }
        let after = metrics(stack).await;
        let grew = |series: &str| value(&after, series) - value(&before, series);
        assert!(grew("opencode_sidecar_turns_total{outcome=\"complete\"}") >= 1.0);
        assert!(grew("opencode_sidecar_turns_total{outcome=\"provider_auth\"}") >= 1.0);
        assert!(grew("opencode_sidecar_turn_seconds_count") >= 2.0);
        assert!(grew("opencode_sidecar_turn_wait_seconds_count") >= 2.0);
        assert!(grew("opencode_sidecar_events_total") >= reader.events.len() as f64);
        assert!(grew("opencode_sidecar_journal_sync_seconds_count") >= 2.0);
        assert!(grew("opencode_sidecar_journal_bytes") > 0.0);
        assert!(grew("opencode_sidecar_tokens_total{kind=\"input\"}") > 0.0);
        assert!(grew("opencode_sidecar_http_answers_total{method=\"other\",class=\"4xx\"}") >= 3.0);
        assert!(value(&after, "opencode_sidecar_opencode_starts_total") >= 1.0);
        assert_eq!(value(&after, "opencode_sidecar_agent_ready"), 1.0);
        assert_eq!(value(&after, "opencode_sidecar_journal_writable"), 1.0);
        assert!(!after.contains(id.as_str()), "an id in a label");

        let outcomes: Vec<_> = TurnError::ALL.iter().map(|error| error.as_str()).collect();
        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let docs = std::fs::read_to_string(docs).unwrap();
        let expected = Expected {
            prefix: "opencode_sidecar_",
            // All others are in the docs.
            labels: &[("outcome", &outcomes)],
            docs: &docs,
        };
        let wrong = wrong(&after, expected);
        assert!(wrong.is_empty(), "{wrong:#?}\n{after}");
    });
}

/// The sidecar's log as objects; every line is one.
fn log(stack: &Stack) -> Vec<Value> {
    let text = std::fs::read_to_string(stack.dir.join("sidecar.log")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect()
}

#[test]
fn each_log_line_of_a_request_has_its_id_and_none_has_content() {
    run(async {
        // At the lowest level, libraries included: nobody may be tempted into a leak.
        let setup = Setup::default().env("LOG_LEVEL", "trace");
        let stack = Stack::start(setup).await;
        let body = json!({
            "session_id": "wombat",
            "prompt": "SCENARIO:bash <<<echo canary-out$((6*7))put>>> canary-prompt",
            "system_prompt": "canary-system",
            "model_config": {"provider": "local", "model": "scripted-1", "api_key": "sk-own",
                             "api_endpoint": stack.model.base_url()},
        });
        let answer = post(&stack, "/sessions", body.to_string())
            .header("x-request-id", "req-quokka-1")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 201);
        assert_eq!(answer.headers()["x-request-id"], "req-quokka-1");
        let id = SessionId::new("wombat").unwrap();
        let mut reader = Reader::default();
        stack.read_turn(&mut reader, &id).await;
        let said = format!("{:?}", reader.events);
        assert!(said.contains("canary-out42put"), "the tool ran: {said}");

        for bad in ["a b", "", "ü", &"x".repeat(129)] {
            let request = stack.http.get(stack.url("/sessions/nobody/status"));
            let answer = request
                .bearer_auth(TOKEN)
                .header(
                    "x-request-id",
                    HeaderValue::from_bytes(bad.as_bytes()).unwrap(),
                )
                .send()
                .await
                .unwrap();
            let given = answer.headers()["x-request-id"].to_str().unwrap();
            assert_eq!(given.len(), 36, "a new one for {bad:?}: {given}");
        }
        // The line of the end is written after the event is.
        let ended =
            |line: &Value| line["message"] == "turn ended" && line["session_id"] == "wombat";
        let lines = loop {
            let lines = log(&stack);
            if lines.iter().any(ended) {
                break lines;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let of = |message: &str| -> Vec<&Value> {
            let mine =
                |line: &&Value| line["message"] == message && line["request_id"] == "req-quokka-1";
            lines.iter().filter(mine).collect()
        };
        for message in ["request", "turn ended"] {
            let found = of(message);
            assert_eq!(found.len(), 1, "{message}");
            assert_eq!(found[0]["session_id"], "wombat", "{message}");
        }
        assert_eq!(of("request")[0]["route"], "/sessions");
        assert_eq!(of("turn ended")[0]["turn"], 1);
        let text = std::fs::read_to_string(stack.dir.join("sidecar.log")).unwrap();
        for secret in ["canary-", "sk-own", "sk-real", TOKEN] {
            let line = text.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "{secret} in the log: {}", line.unwrap());
        }
    });
}

#[test]
fn the_status_says_in_one_sentence_why_nothing_happens() {
    run(async {
        let stack = shared().await;
        let says = async |id: &SessionId, begin: &str| {
            let deadline = tokio::time::Instant::now() + LONG;
            loop {
                let reason = stack.client.session(id).await.unwrap().reason;
                if reason.starts_with(begin) {
                    return reason;
                }
                assert!(tokio::time::Instant::now() < deadline, "{reason}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let id = stack.begin("SCENARIO:write-file").await;
        let asks = says(&id, "Waiting for an answer to approval per_").await;
        assert!(
            asks.contains("(edit: ") && asks.contains("hello.txt"),
            "{asks}"
        );
        stack.client.cancel(&id).await.unwrap();
        says(&id, "Nothing to do: the last turn was cancelled.").await;

        let id = stack.begin("SCENARIO:bash <<<sleep 600>>>").await;
        says(&id, "Tool bash has run for ").await;
        stack.client.cancel(&id).await.unwrap();

        let id = stack.begin("SCENARIO:late 600000").await;
        says(&id, "Waiting for the model's answer since ").await;
        stack.client.cancel(&id).await.unwrap();

        let (id, _) = stack.play("SCENARIO:hello").await;
        says(&id, "Nothing to do: the last turn is complete.").await;
        let (id, _) = stack.play("SCENARIO:err401").await;
        says(&id, "Nothing to do: the last turn failed: ").await;
    });
}

#[test]
fn a_missing_key_is_named_with_its_secret() {
    run(async {
        let setup = Setup::default().config(json!({
            "keySources": {"scripted": "Secret team-keys, key openai"},
        }));
        let stack = Stack::start(setup).await;
        std::fs::remove_file(stack.dir.join("keys/scripted/key")).unwrap();
        let id = stack.begin("SCENARIO:hello").await;
        let session = stack.client.session(&id).await.unwrap();
        assert_eq!(
            session.reason,
            "Waiting for Secret team-keys, key openai: it is absent or empty."
        );
        std::fs::write(stack.dir.join("keys/scripted/key"), "sk-real").unwrap();
        let mut reader = Reader::default();
        stack.read_turn(&mut reader, &id).await;
        reader.complete();
    });
}
