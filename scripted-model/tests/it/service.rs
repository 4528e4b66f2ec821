//! Keys, the request log, and the server's life.

use scripted_model::{Library, Options, Outcome, RequestPage, ScriptedModel, key_digest};
use serde_json::{Value, json};

use crate::client::{DIALECTS, Dialect, PATIENCE, ask, http, prompt, start};

async fn hello(model: &ScriptedModel, dialect: Dialect, name: &str, value: &str) -> (u16, Value) {
    let body = dialect.body(
        false,
        &[json!({"role": "user", "content": "SCENARIO:hello"})],
    );
    let url = format!("http://{}{}", model.addr, dialect.path());
    let response = http()
        .post(url)
        .header(name, value)
        .json(&body)
        .send()
        .await
        .unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test]
async fn a_wrong_key_gets_the_providers_refusal() {
    let keys = vec!["sk-right-0123456789".to_owned(), "second".to_owned()];
    let model = ScriptedModel::start(Options {
        keys,
        ..Options::default()
    })
    .await
    .unwrap();
    for dialect in DIALECTS {
        for (name, value, status) in [
            ("authorization", "Bearer sk-right-0123456789", 200),
            ("x-api-key", "second", 200),
            ("authorization", "Bearer sk-wrong-0123456789", 401),
            ("x-api-key", "sk-right-01234567890", 401),
            ("x-other", "second", 401),
        ] {
            let (got, body) = hello(&model, dialect, name, value).await;
            assert_eq!(got, status, "{dialect:?} {name} {value}");
            if status == 401 && dialect == Dialect::Messages {
                assert_eq!(body["error"]["type"], "authentication_error");
            } else if name == "authorization" && status == 401 {
                assert_eq!(body["error"]["code"], "invalid_api_key");
                let message = body["error"]["message"].as_str().unwrap();
                assert!(
                    message.contains("sk-w") && !message.contains(&value[7..]),
                    "{message}"
                );
            }
            let record = model.requests().pop().unwrap();
            assert_eq!(record.status, Some(status));
            assert_eq!(
                record.scenario.is_some(),
                status == 200,
                "refused before the script"
            );
        }
    }
    let url = format!("{}/models", model.base_url());
    assert_eq!(http().get(&url).send().await.unwrap().status(), 401);
    let listed = http().get(&url).bearer_auth("second").send().await.unwrap();
    assert_eq!(
        listed.json::<Value>().await.unwrap()["data"][0]["id"],
        "scripted-1"
    );
    let health = format!("http://{}/healthz", model.addr);
    assert_eq!(http().get(health).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_key_can_be_changed_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    std::fs::write(&path, "old\n").unwrap();
    let options = Options {
        key_file: Some(path.clone()),
        ..Options::default()
    };
    let model = ScriptedModel::start(options).await.unwrap();
    assert_eq!(
        hello(&model, Dialect::Chat, "authorization", "Bearer old")
            .await
            .0,
        200
    );
    std::fs::write(&path, "new\n").unwrap();
    assert_eq!(
        hello(&model, Dialect::Chat, "authorization", "Bearer old")
            .await
            .0,
        401
    );
    assert_eq!(
        hello(&model, Dialect::Chat, "authorization", "Bearer new")
            .await
            .0,
        200
    );
}

#[tokio::test]
async fn the_log_tells_what_came_but_no_key() {
    let model = start().await;
    let url = format!("http://{}/a/b/chat/completions?x=1", model.addr);
    let body = json!({
        "model": "gpt-x", "stream": true, "temperature": 0.25, "max_tokens": 77,
        "max_completion_tokens": 78, "max_output_tokens": 79,
        "tools": [{"type": "function", "function": {"name": "bash"}}],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "SCENARIO:hello"},
        ],
    });
    let key = "sk-very-secret-key";
    let request = http()
        .post(url)
        .bearer_auth(key)
        .header("X-Session-Id", "ses_7")
        .json(&body);
    request.send().await.unwrap().text().await.unwrap();

    let page = http()
        .get(format!("http://{}/requests", model.addr))
        .send()
        .await
        .unwrap();
    let text = page.text().await.unwrap();
    assert!(!text.contains(key), "{text}");
    let page: RequestPage = serde_json::from_str(&text).unwrap();
    let [record] = page.requests.as_slice() else {
        panic!("{text}")
    };
    assert_eq!(
        (record.method.as_str(), record.path.as_str()),
        ("POST", "/a/b/chat/completions")
    );
    assert_eq!(
        record.headers["authorization"],
        format!("Bearer {}", key_digest(key))
    );
    assert_eq!(record.key_sha256, Some(key_digest(key)));
    assert_eq!(record.headers["x-session-id"], "ses_7");
    assert_eq!(record.session.as_deref(), Some("ses_7"));
    assert_eq!(
        (record.model.as_deref(), record.stream),
        (Some("gpt-x"), true)
    );
    assert_eq!(record.temperature, Some(0.25));
    let limits = (
        record.max_tokens,
        record.max_completion_tokens,
        record.max_output_tokens,
    );
    assert_eq!(limits, (Some(77), Some(78), Some(79)));
    assert_eq!(
        (record.message_count, record.tools.as_slice()),
        (2, ["bash".to_owned()].as_slice())
    );
    assert_eq!(
        (record.system.as_str(), record.last_user.as_deref()),
        ("Be brief.", Some("SCENARIO:hello"))
    );
    assert_eq!(
        (record.scenario.as_deref(), record.step),
        (Some("hello"), Some(0))
    );
    assert_eq!(
        (record.status, record.outcome),
        (Some(200), Outcome::Complete)
    );
}

#[tokio::test]
async fn the_log_is_bounded_and_can_be_cleared() {
    let options = Options {
        remember: 3,
        ..Options::default()
    };
    let model = ScriptedModel::start(options).await.unwrap();
    for n in 1..=5 {
        ask(&model, Dialect::Chat, false, &format!("SCENARIO:say {n}")).await;
    }
    let url = format!("http://{}/requests", model.addr);
    let page: RequestPage = http().get(&url).send().await.unwrap().json().await.unwrap();
    assert_eq!((page.total, page.forgotten), (5, 2));
    let seqs: Vec<u64> = page.requests.iter().map(|r| r.seq).collect();
    assert_eq!(seqs, [3, 4, 5]);
    assert_eq!(http().delete(&url).send().await.unwrap().status(), 204);
    let page: RequestPage = http().get(&url).send().await.unwrap().json().await.unwrap();
    assert_eq!((page.total, page.forgotten, page.requests.len()), (5, 5, 0));
    assert_eq!(Options::default().remember, 1000);
}

#[tokio::test]
async fn strays_get_the_providers_errors_and_are_logged() {
    let model = start().await;
    let url = |path: &str| format!("http://{}{path}", model.addr);
    let post = async |path: &str, body: &str| {
        let response = http()
            .post(url(path))
            .body(body.to_owned())
            .send()
            .await
            .unwrap();
        (
            response.status().as_u16(),
            response.json::<Value>().await.unwrap(),
        )
    };
    assert_eq!(post("/v1/embeddings", "{}").await.0, 404);
    let (status, body) = post("/v1/chat/completions", "{").await;
    assert_eq!(status, 400);
    assert_eq!(body["error"]["message"], "The body is not valid JSON.");
    let (status, body) = post("/v1/messages", "{\"messages\": []}").await;
    assert_eq!((status, &body["type"]), (400, &json!("error")));
    assert_eq!(post("/v1/responses", "{\"model\": \"m\"}").await.0, 400);
    assert_eq!(
        http()
            .get(url("/v1/messages"))
            .send()
            .await
            .unwrap()
            .status(),
        404
    );
    assert_eq!(model.requests().len(), 5);
}

#[tokio::test]
async fn large_bodies_are_read_and_larger_ones_refused() {
    let model = start().await;
    let filler = "x".repeat(5 << 20);
    let answer = ask(
        &model,
        Dialect::Chat,
        true,
        &format!("{filler} SCENARIO:hello"),
    )
    .await;
    assert_eq!(answer.text, "Hello from the scripted model.");
    let record = model.requests().pop().unwrap();
    assert!(
        record.last_user.unwrap().len() <= 4096,
        "the log does not keep bodies"
    );

    let response = http()
        .post(format!("{}/chat/completions", model.base_url()))
        .body(vec![b' '; (64 << 20) + 1])
        .send()
        .await;
    // The refusal may overtake the body, which some clients report as a broken pipe.
    if let Ok(response) = response {
        assert_eq!(response.status(), 413);
    }
    let seen = model.wait_until(|r| r.last().is_some_and(|r| r.status == Some(413)));
    tokio::time::timeout(PATIENCE, seen).await.unwrap();
}

#[tokio::test]
async fn own_scripts_are_added_to_the_built_in_ones() {
    let mut scripts = Library::builtin().unwrap();
    let mine = "scenarios: {mine: {steps: [{parts: [{say: 'mine {{1|none}}'}]}]}}";
    scripts.add_yaml("mine.yaml", mine).unwrap();
    let options = Options {
        scripts: Some(scripts),
        ..Options::default()
    };
    let model = ScriptedModel::start(options).await.unwrap();
    assert_eq!(
        ask(&model, Dialect::Chat, true, "SCENARIO:mine 1")
            .await
            .text,
        "mine 1"
    );
    assert_eq!(
        ask(&model, Dialect::Chat, true, "SCENARIO:whoami")
            .await
            .text,
        "model m-1, session ses_1"
    );
}

#[tokio::test]
async fn a_stop_lets_answers_end_and_a_drop_cuts_them() {
    let model = start().await;
    let addr = model.addr;
    let mut response = prompt(&model, Dialect::Chat, true, "SCENARIO:pause 500")
        .await
        .unwrap();
    let first = response.chunk().await.unwrap().unwrap();
    let stopped = tokio::spawn(model.stop());
    let rest = response.text().await.unwrap();
    let body = String::from_utf8(first.to_vec()).unwrap() + &rest;
    assert_eq!(
        Dialect::Chat.read(true, &body).text,
        "Before the pause. After the pause."
    );
    stopped.await.unwrap();
    tokio::net::TcpStream::connect(addr).await.unwrap_err();

    let model = start().await;
    let addr = model.addr;
    let mut response = prompt(&model, Dialect::Chat, true, "SCENARIO:hangmid")
        .await
        .unwrap();
    response.chunk().await.unwrap().unwrap();
    drop(model);
    let end = async { while let Ok(Some(_)) = response.chunk().await {} };
    tokio::time::timeout(PATIENCE, end).await.unwrap();
    let refused = async { while tokio::net::TcpStream::connect(addr).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
}

#[tokio::test]
async fn a_hanging_answer_does_not_hold_up_a_stop_for_ever() {
    let model = start().await;
    let mut response = prompt(&model, Dialect::Chat, true, "SCENARIO:hangmid")
        .await
        .unwrap();
    response.chunk().await.unwrap().unwrap();
    tokio::time::timeout(PATIENCE, model.stop()).await.unwrap();
}
