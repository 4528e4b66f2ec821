//! Every fault, as an HTTP client sees it.

use scripted_model::{Outcome, ScriptedModel};
use serde_json::Value;

use crate::client::{DIALECTS, Dialect, PATIENCE, ask, prompt, start};

/// Status, `retry-after` and body.
async fn refused(
    model: &ScriptedModel,
    dialect: Dialect,
    name: &str,
) -> (u16, Option<String>, Value) {
    let response = prompt(model, dialect, true, &format!("SCENARIO:{name}"))
        .await
        .unwrap();
    let retry = response
        .headers()
        .get("retry-after")
        .map(|v| v.to_str().unwrap().to_owned());
    (
        response.status().as_u16(),
        retry,
        response.json().await.unwrap(),
    )
}

#[tokio::test]
async fn errors_have_status_headers_and_the_dialects_body() {
    let model = start().await;
    for (name, status, retry, openai, anthropic) in [
        (
            "err400",
            400,
            None,
            "invalid_request_error",
            "invalid_request_error",
        ),
        (
            "err401",
            401,
            None,
            "invalid_request_error",
            "authentication_error",
        ),
        ("err403", 403, None, "permission_error", "permission_error"),
        (
            "err404",
            404,
            None,
            "invalid_request_error",
            "not_found_error",
        ),
        (
            "err413",
            413,
            None,
            "invalid_request_error",
            "request_too_large",
        ),
        (
            "overflow",
            400,
            None,
            "invalid_request_error",
            "invalid_request_error",
        ),
        (
            "err429",
            429,
            Some("3"),
            "rate_limit_error",
            "rate_limit_error",
        ),
        (
            "err429long",
            429,
            Some("3600"),
            "rate_limit_error",
            "rate_limit_error",
        ),
        (
            "err429nohdr",
            429,
            None,
            "rate_limit_error",
            "rate_limit_error",
        ),
        ("quota", 429, None, "insufficient_quota", "billing_error"),
        ("err500", 500, None, "server_error", "api_error"),
        ("err503", 503, None, "server_error", "api_error"),
        ("err529", 529, None, "overloaded_error", "overloaded_error"),
        (
            "status 418",
            418,
            None,
            "invalid_request_error",
            "invalid_request_error",
        ),
    ] {
        for dialect in DIALECTS {
            let (got, got_retry, body) = refused(&model, dialect, name).await;
            assert_eq!(
                (got, got_retry.as_deref()),
                (status, retry),
                "{name} {dialect:?}"
            );
            let kind = if dialect == Dialect::Messages {
                anthropic
            } else {
                openai
            };
            assert_eq!(body["error"]["type"], kind, "{name} {dialect:?}");
            assert!(!body["error"]["message"].as_str().unwrap().is_empty());
            assert_eq!(body["type"] == "error", dialect == Dialect::Messages);
        }
    }
    let code = |body: Value| body["error"]["code"].clone();
    assert_eq!(
        code(refused(&model, Dialect::Chat, "overflow").await.2),
        "context_length_exceeded"
    );
    assert_eq!(
        code(refused(&model, Dialect::Chat, "quota").await.2),
        "insufficient_quota"
    );
    let body = refused(&model, Dialect::Messages, "overflow").await.2;
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .starts_with("prompt is too long")
    );
    let body = refused(&model, Dialect::Chat, "err404").await.2;
    assert!(
        body["error"]["message"].as_str().unwrap().contains("`m-1`"),
        "the model's name"
    );
}

#[tokio::test]
async fn a_passing_fault_comes_so_often_and_counts_per_place() {
    let model = start().await;
    for (name, status) in [
        ("err429once", 429),
        ("err500once 3", 500),
        ("err503once 1", 503),
    ] {
        let times = if name.ends_with('3') {
            3
        } else if name.ends_with('1') {
            1
        } else {
            2
        };
        for _ in 0..times {
            assert_eq!(
                refused(&model, Dialect::Chat, name).await.0,
                status,
                "{name}"
            );
        }
        for _ in 0..2 {
            let answer = ask(&model, Dialect::Chat, true, &format!("SCENARIO:{name}")).await;
            assert!(answer.text.starts_with("Fine after"), "{name}");
        }
    }
    // Another message of the conversation begins anew, and so does a cleared server.
    let messages = [
        serde_json::json!({"role": "user", "content": "hello"}),
        serde_json::json!({"role": "user", "content": "SCENARIO:err429once"}),
    ];
    let body = Dialect::Chat.body(true, &messages);
    let response = crate::client::send(&model, Dialect::Chat, &body)
        .await
        .unwrap();
    assert_eq!(response.status(), 429);
    model.clear_requests();
    assert_eq!(refused(&model, Dialect::Chat, "err429once").await.0, 429);
}

#[tokio::test]
async fn dropped_connections_give_no_answer_at_all() {
    let model = start().await;
    for dialect in DIALECTS {
        for stream in [true, false] {
            let error = prompt(&model, dialect, stream, "SCENARIO:drop")
                .await
                .unwrap_err();
            assert!(!error.is_timeout() && error.status().is_none(), "{error:?}");
            let record = model.requests().pop().unwrap();
            assert_eq!((record.status, record.outcome), (None, Outcome::Cut));
        }
    }
    for _ in 0..2 {
        prompt(&model, Dialect::Chat, true, "SCENARIO:droponce")
            .await
            .unwrap_err();
    }
    let answer = ask(&model, Dialect::Chat, true, "SCENARIO:droponce").await;
    assert_eq!(answer.text, "Fine after the lost connection.");
}

#[tokio::test]
async fn a_hanging_answer_ends_with_its_client() {
    let model = start().await;
    for stream in [true, false] {
        let before = model.requests().len();
        let asked = prompt(&model, Dialect::Chat, stream, "SCENARIO:hang");
        tokio::select! {
            answer = asked => panic!("{answer:?}"),
            seen = model.wait_until(|r| r.len() > before) => {
                assert_eq!(seen[before].outcome, Outcome::Open);
            }
        }
        let left = model.wait_until(|r| r[before].outcome != Outcome::Open);
        let left = tokio::time::timeout(PATIENCE, left).await.unwrap();
        assert_eq!(
            (left[before].status, left[before].outcome),
            (None, Outcome::ClientGone)
        );
    }
}

#[tokio::test]
async fn text_before_a_hang_arrives_and_the_clients_leave_is_noticed() {
    let model = start().await;
    for (n, dialect) in DIALECTS.into_iter().enumerate() {
        let mut response = prompt(&model, dialect, true, "SCENARIO:hangmid")
            .await
            .unwrap();
        let mut body = String::new();
        while dialect.read(true, &body).text != "Some partial text and then" {
            let chunk = tokio::time::timeout(PATIENCE, response.chunk())
                .await
                .unwrap();
            body.push_str(std::str::from_utf8(&chunk.unwrap().unwrap()).unwrap());
        }
        let read = dialect.read(true, &body);
        assert!(read.finish.is_none() && !read.done, "{dialect:?}");
        assert_eq!(model.requests()[n].outcome, Outcome::Open);
        drop(response);
        let left = model.wait_until(|r| r[n].outcome != Outcome::Open);
        let left = tokio::time::timeout(PATIENCE, left).await.unwrap();
        assert_eq!(left[n].outcome, Outcome::ClientGone, "{dialect:?}");
    }
}

/// Reads to the end; whether it was a clean one.
async fn read(model: &ScriptedModel, dialect: Dialect, name: &str) -> (String, bool) {
    let mut response = prompt(model, dialect, true, &format!("SCENARIO:{name}"))
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let mut body = Vec::new();
    let clean = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => break true,
            Err(error) => {
                assert!(!error.is_timeout());
                break false;
            }
        }
    };
    (String::from_utf8_lossy(&body).into_owned(), clean)
}

#[tokio::test]
async fn streams_break_in_each_scripted_way() {
    let model = start().await;
    let partial = "Some partial text and then";
    for dialect in DIALECTS {
        let (body, clean) = read(&model, dialect, "cut").await;
        let answer = dialect.read(true, &body);
        assert_eq!(
            (answer.text.as_str(), clean, answer.done),
            (partial, false, false)
        );
        assert_eq!(answer.finish, None);

        let (body, clean) = read(&model, dialect, "cutclean").await;
        let answer = dialect.read(true, &body);
        assert_eq!(
            (answer.text.as_str(), clean, answer.done),
            (partial, true, false)
        );

        let (body, clean) = read(&model, dialect, "nofinish").await;
        let answer = dialect.read(true, &body);
        assert_eq!((answer.finish, clean), (None, true));
        assert_eq!(answer.text, "Text without a finish reason");
        assert_eq!(
            answer.done,
            dialect != Dialect::Responses,
            "its terminator is its finish"
        );

        let (body, clean) = read(&model, dialect, "errmid").await;
        let answer = dialect.read(true, &body);
        assert_eq!(
            (answer.text.as_str(), clean, answer.done),
            (partial, true, false)
        );
        assert_eq!(answer.error.unwrap()["message"], "Overloaded");

        let (body, clean) = read(&model, dialect, "badsse-mid").await;
        let answer = dialect.read(true, &body);
        assert_eq!(
            (answer.text.as_str(), answer.broken, clean),
            (partial, 1, true)
        );

        let (body, _) = read(&model, dialect, "badutf8").await;
        assert!(body.contains('\u{fffd}'));

        let (body, clean) = read(&model, dialect, "noise").await;
        let answer = dialect.read(true, &body);
        assert_eq!(
            (answer.text.as_str(), clean, answer.done),
            ("Fine after the noise.", true, true)
        );
        assert!(body.contains(": a comment\n"));
    }
}

#[tokio::test]
async fn answers_that_are_no_streams() {
    let model = start().await;
    let get = async |name: &str| {
        let response = prompt(&model, Dialect::Chat, true, &format!("SCENARIO:{name}"))
            .await
            .unwrap();
        let kind = response.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        (
            response.status().as_u16(),
            kind,
            response.text().await.unwrap(),
        )
    };
    let (status, kind, body) = get("html").await;
    assert_eq!((status, kind.as_str()), (200, "text/html"));
    assert!(body.starts_with("<html>"));
    let (status, kind, _) = get("err502html").await;
    assert_eq!((status, kind.as_str()), (502, "text/html"));
    let (status, kind, body) = get("empty").await;
    assert_eq!(
        (status, kind.as_str(), body.as_str()),
        (200, "text/event-stream", "")
    );
    let (status, kind, body) = get("json200").await;
    assert_eq!(
        (status, kind.as_str(), body.as_str()),
        (200, "application/json", "{\"ok\": true}")
    );
    let (status, _, body) = get("badjson").await;
    assert_eq!(status, 200);
    serde_json::from_str::<Value>(&body).unwrap_err();
    let (status, kind, body) = get("badsse").await;
    assert!(status == 200 && kind.starts_with("text/event-stream"));
    assert_eq!(Dialect::Chat.read(true, &body).broken, 1);
}

#[tokio::test]
async fn an_endless_line_ends_at_its_limit() {
    let model = start().await;
    let mut response = prompt(&model, Dialect::Chat, true, "SCENARIO:endless-line 3000000")
        .await
        .unwrap();
    let (mut length, mut lines) = (0, 0);
    while let Some(chunk) = response.chunk().await.unwrap() {
        length += chunk.len();
        lines += chunk.iter().filter(|b| **b == b'\n').count();
    }
    assert!((3_000_000..3_000_100).contains(&length), "{length}");
    assert_eq!(lines, 0);
}

#[tokio::test]
async fn documents_break_too() {
    let model = start().await;
    for dialect in DIALECTS {
        let response = prompt(&model, dialect, false, "SCENARIO:cut")
            .await
            .unwrap();
        assert!(response.text().await.is_err(), "{dialect:?}");
        let response = prompt(&model, dialect, false, "SCENARIO:cutclean")
            .await
            .unwrap();
        let half = response.text().await.unwrap();
        assert!(half.starts_with('{') && serde_json::from_str::<Value>(&half).is_err());
        let response = prompt(&model, dialect, false, "SCENARIO:errmid")
            .await
            .unwrap();
        assert_eq!(response.status(), 500);
        let answer = ask(&model, dialect, false, "SCENARIO:nofinish").await;
        assert_eq!(answer.finish, None);
    }
}
