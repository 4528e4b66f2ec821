//! Callers that are wrong, hasty, slow or gone.

use crate::{
    process,
    reader::Reader,
    stack::{Stack, TOKEN, run, shared},
};
use contract::session::PROMPT_MAX;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Sends a POST and closes the connection without waiting for its answer.
pub(crate) async fn send_and_leave(stack: &Stack, path: &str, body: &str) {
    let mut stream = TcpStream::connect(("127.0.0.1", stack.port)).await.unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
}

/// A request that has to be refused within a second; its status and body. What is refused changes nothing,
/// so that a busy machine gets another try.
async fn refused(stack: &Stack, request: reqwest::RequestBuilder) -> (u16, Value) {
    let mut took = Vec::new();
    while took.len() < 3 {
        let began = Instant::now();
        let request = request.try_clone().expect("its body is at hand");
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let url = answer.url().to_string();
        let text = answer.text().await.unwrap();
        let Ok(body) = serde_json::from_str::<Value>(&text) else {
            panic!("{status} without the contract's body for {url:.200}: {text}");
        };
        assert!(stack.sidecar_lives());
        took.push(began.elapsed());
        if began.elapsed() < Duration::from_secs(1) {
            return (status, body);
        }
    }
    panic!("never within a second: {took:?}");
}

pub(crate) fn post(
    stack: &Stack,
    path: &str,
    body: impl Into<reqwest::Body>,
) -> reqwest::RequestBuilder {
    let request = stack.http.post(stack.url(path)).bearer_auth(TOKEN);
    request
        .header("content-type", "application/json")
        .body(body)
}

/// Every wrong body of POST /sessions, with a word of the rule it breaks.
fn wrong_bodies() -> Vec<(Vec<u8>, &'static str)> {
    let json = |value: Value| value.to_string().into_bytes();
    let with = |field: &str, value: Value| {
        let mut body = json!({"session_id": "x", "prompt": "x"});
        body[field] = value;
        body.to_string().into_bytes()
    };
    let model = |field: &str, value: Value| {
        let mut body = json!({"session_id": "x", "prompt": "x", "model_config": {"provider": "local", "model": "m"}});
        body["model_config"][field] = value;
        body.to_string().into_bytes()
    };
    let deep = format!(
        r#"{{"session_id":"x","prompt":"x","model_config":{}1{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let many: serde_json::Map<_, _> = (0..10_000).map(|n| (format!("f{n}"), json!(n))).collect();
    vec![
        (b"".to_vec(), "body"),
        (b"{".to_vec(), "body"),
        (b"\xff\xfe{}".to_vec(), "body"),
        (b"{} {}".to_vec(), "body"),
        (b"[1,2]".to_vec(), "body"),
        (b"null".to_vec(), "body"),
        (deep.into_bytes(), "body"),
        (json(Value::Object(many)), "session_id"),
        (json(json!({"prompt": "x"})), "session_id"),
        (with("session_id", json!("a/b")), "session_id"),
        (with("session_id", json!("..")), "session_id"),
        (with("session_id", json!(".hidden")), "session_id"),
        (with("session_id", json!("")), "session_id"),
        (with("session_id", json!("ä")), "session_id"),
        (with("session_id", json!("a\nb")), "session_id"),
        (with("session_id", json!("a".repeat(129))), "session_id"),
        (
            with("session_id", json!("a".repeat(1_000_000))),
            "session_id",
        ),
        (with("session_id", json!(7)), "session_id"),
        (with("prompt", json!("")), "prompt"),
        (with("prompt", json!("a\u{0}b")), "prompt"),
        (with("prompt", json!("a\u{1b}[31m")), "prompt"),
        (with("prompt", json!(["x"])), "prompt"),
        (with("prompt", json!("x".repeat(PROMPT_MAX + 1))), "prompt"),
        (with("system_prompt", json!(1)), "system_prompt"),
        (with("surprise", json!(1)), "surprise"),
        (with("model_config", json!("gpt")), "model_config"),
        (model("provider", json!("cohere")), "provider"),
        (model("model", json!("")), "model"),
        (model("model", json!(null)), "model"),
        (model("temperature", json!(2.1)), "temperature"),
        (model("temperature", json!("hot")), "temperature"),
        (model("max_tokens", json!(0)), "max_tokens"),
        (model("max_tokens", json!(1e300)), "max_tokens"),
        (model("enabled_tools", json!("bash")), "enabled_tools"),
        (model("enabled_tools", json!(["../bash"])), "enabled_tools"),
        (
            model("api_endpoint", json!("file:///etc/passwd")),
            "api_endpoint",
        ),
        (model("api_endpoint", json!("http://127.0.0.1:1/v1")), "api"),
        (model("surprise", json!(1)), "surprise"),
    ]
}

#[test]
fn wrong_requests_are_refused_with_field_and_rule() {
    run(async {
        let stack = shared().await;
        stack.still_works().await;
        let (before, _) = process::memory(stack.sidecar_pid());
        for (body, word) in wrong_bodies() {
            let shown = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
            let (status, answer) = refused(stack, post(stack, "/sessions", body)).await;
            assert_eq!(status, 400, "{shown}: {answer}");
            assert_eq!(
                answer["details"]["code"], "invalid_request",
                "{shown}: {answer}"
            );
            let fields = answer["details"]["fields"].to_string();
            assert!(fields.contains(word), "{shown}: {answer}");
            assert!(
                answer.to_string().len() < 8 * 1024,
                "{shown}: an answer of {}",
                answer.to_string().len()
            );
        }
        assert!(
            stack
                .client
                .session(&contract::SessionId::new("x").unwrap())
                .await
                .is_err(),
            "one was taken"
        );

        // Far too large, declared or not.
        let large = vec![b'x'; 40 * 1024 * 1024];
        let request = post(stack, "/sessions", large).send().await;
        // The connection may be cut while the rest is still being sent.
        assert!(request.is_err() || request.is_ok_and(|answer| answer.status() == 413));
        for (media, status) in [
            ("text/plain", 415),
            ("application/x-www-form-urlencoded", 415),
        ] {
            let request = stack
                .http
                .post(stack.url("/sessions"))
                .bearer_auth(TOKEN)
                .header("content-type", media)
                .body("{}");
            assert_eq!(refused(stack, request).await.0, status);
        }
        let (after, peak) = process::memory(stack.sidecar_pid());
        assert!(peak < 200, "{peak} MiB at most");
        assert!(after < before + 100, "{before} MiB, then {after} MiB");
        stack.still_works().await;
    });
}

#[test]
fn wrong_paths_tokens_and_cursors_are_refused() {
    run(async {
        let stack = shared().await;
        let (id, reader) = stack.play("SCENARIO:hello").await;
        let get = |path: &str| stack.http.get(stack.url(path)).bearer_auth(TOKEN);

        for token in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer wrong",
            "Basic dGVzdDp0ZXN0",
            "Bearer test-token2",
            "Bearer eyJhbGciOiJub25lIn0.e30.",
        ] {
            for path in ["/sessions", "/metrics", "/events", "/nowhere"] {
                let request = stack
                    .http
                    .get(stack.url(path))
                    .header("authorization", token);
                let (status, body) = refused(stack, request).await;
                assert_eq!(
                    (status, &body["details"]["code"]),
                    (401, &json!("unauthorized")),
                    "{token:?} {path}"
                );
            }
        }
        let (status, _) = refused(stack, stack.http.get(stack.url("/sessions"))).await;
        assert_eq!(status, 401);

        for (path, status) in [
            ("/nowhere", 404),
            ("/sessions/", 404),
            ("/sessions/none/status", 404),
            ("/sessions/none/stream", 404),
            ("/sessions/none/events", 404),
            ("/sessions/none/approvals", 404),
            ("/sessions/none/diff", 404),
            ("/sessions/..%2f..%2fetc%2fpasswd/status", 400),
            ("/sessions/%00/status", 400),
            ("/sessions/a%20b/stream", 400),
            ("/sessions/%ff/status", 400),
        ] {
            let (got, body) = refused(stack, get(path)).await;
            assert_eq!(got, status, "{path}: {body}");
        }
        let long = format!("/sessions/{}/status", "a".repeat(30_000));
        assert_eq!(refused(stack, get(&long)).await.0, 400);
        for method in [Method::PUT, Method::PATCH] {
            let request = stack
                .http
                .request(method, stack.url("/sessions"))
                .bearer_auth(TOKEN);
            assert_eq!(refused(stack, request).await.0, 405);
        }
        assert_eq!(
            refused(
                stack,
                stack
                    .http
                    .delete(stack.url("/sessions/none"))
                    .bearer_auth(TOKEN)
            )
            .await
            .0,
            404
        );

        let last = reader.cursor().unwrap();
        let future = format!("{}-{}", last.epoch, last.n + 1);
        let endless = format!("{}-99999999999999999999999", last.epoch);
        let huge = "9".repeat(10_000);
        let cursors = [
            "x",
            "-",
            "-1",
            "1",
            "ffff-1",
            "0x1-1",
            &future,
            &endless,
            &huge,
            "\u{feff}1-1",
            "a b",
            "%00",
            &format!("{}-", last.epoch),
            &format!("{}--1", last.epoch),
            &format!("{}-+1", last.epoch),
            &format!("{}-1-1", last.epoch),
        ];
        for cursor in cursors {
            for path in ["stream", "events"] {
                let request = get(&format!("/sessions/{id}/{path}")).query(&[("after", cursor)]);
                let (status, body) = refused(stack, request).await;
                assert_eq!(
                    (status, &body["details"]["code"]),
                    (400, &json!("invalid_cursor")),
                    "{path} {cursor:?}"
                );
            }
            if let Ok(header) = reqwest::header::HeaderValue::from_str(cursor) {
                let request =
                    get(&format!("/sessions/{id}/stream")).header("last-event-id", header);
                assert_eq!(refused(stack, request).await.0, 400, "{cursor:?}");
            }
        }
        for query in ["limit=x", "limit=-1", "surprise=1"] {
            let (status, body) =
                refused(stack, get(&format!("/sessions/{id}/events?{query}"))).await;
            assert_eq!(status, 400, "{query}: {body}");
        }
        let (status, _) =
            refused(stack, get(&format!("/sessions/{id}/stream?follow=perhaps"))).await;
        assert_eq!(status, 400);
        let (status, body) = refused(
            stack,
            post(
                stack,
                &format!("/sessions/{id}/approvals/x"),
                r#"{"decision":"perhaps"}"#,
            ),
        )
        .await;
        assert_eq!(status, 400, "{body}");
        for key in ["", "a b", &"k".repeat(129)] {
            let request = post(stack, "/sessions", r#"{"session_id":"x","prompt":"x"}"#)
                .header("idempotency-key", key);
            assert_eq!(refused(stack, request).await.0, 400, "{key:?}");
        }
    });
}

/// What no HTTP client sends.
#[test]
fn what_is_no_http_closes_only_its_own_connection() {
    run(async {
        let stack = shared().await;
        let header = format!(
            "GET /sessions HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
            "y".repeat(200_000)
        );
        let headers = format!(
            "GET /sessions HTTP/1.1\r\nhost: x\r\n{}\r\n",
            "x: y\r\n".repeat(5_000)
        );
        for bytes in [
            header.as_bytes(),
            headers.as_bytes(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET /sessions HTTP/9.9\r\n\r\n",
            b"\0\0\0\0\0\0\0\0\r\n\r\n",
            b"POST /sessions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nX",
            b"POST /sessions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        ] {
            let mut stream = TcpStream::connect(("127.0.0.1", stack.port)).await.unwrap();
            // It may be closed before all is written.
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let read = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
            assert!(read.is_ok(), "left open: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(60)]));
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        }
        stack.still_works().await;
    });
}

#[test]
fn a_prompt_of_five_mebibytes_is_taken() {
    run(async {
        let stack = shared().await;
        let mut prompt = String::from("SCENARIO:hello ");
        prompt.push_str(&"é".repeat((PROMPT_MAX - prompt.len()) / 2));
        let (id, reader) = stack.play(&prompt).await;
        // It is more than the model's context: OpenCode shortens it, and goes on.
        reader.complete();
        assert!(stack.model_calls(&id).await >= 1);
        let (_, peak) = process::memory(stack.sidecar_pid());
        assert!(peak < 200, "{peak} MiB");
        stack.still_works().await;
    });
}

#[test]
fn slow_callers_and_readers_that_do_not_read_hold_up_nobody() {
    run(async {
        let stack = shared().await;
        let id = stack.begin("SCENARIO:long 20000").await;
        let mut held = Vec::new();
        for n in 0..100 {
            let mut stream = TcpStream::connect(("127.0.0.1", stack.port)).await.unwrap();
            let request = match n % 4 {
                // A head that never ends, a body that never comes, readers that never read.
                0 => "POST /sess".to_owned(),
                1 => format!(
                    "POST /sessions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\ncontent-length: 5000000\r\n\r\n{{"
                ),
                _ => format!(
                    "GET /sessions/{id}/stream?follow=true HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n"
                ),
            };
            stream.write_all(request.as_bytes()).await.unwrap();
            held.push(stream);
        }
        let mut reader = Reader::default();
        stack.read_turn(&mut reader, &id).await;
        reader.complete();
        let began = Instant::now();
        stack.client.sessions().await.unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
        stack.still_works().await;
        let (_, peak) = process::memory(stack.sidecar_pid());
        assert!(peak < 200, "{peak} MiB");
        // A head that never ends is closed.
        let mut byte = [0];
        let closed = timeout(Duration::from_secs(20), held[0].read(&mut byte)).await;
        assert!(closed.is_ok(), "a connection without a request is kept");
    });
}
