//! What calls used and what they may use, loops, answers without sense, keys that change.

use super::rig::{CHAT, MESSAGES, Provider, RESPONSES, Rig, Step, chunk, sse_head, target};
use crate::proxy::{Api, TurnLink, observe::Outcome, target::KeySource};
use contract::{
    event::TurnError,
    pod::{Loops, PodConfig, ProviderConfig, ProviderKind},
    spend::{Budget, Price},
};
use futures::FutureExt;
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};

const ASK: &str = r#"{"model":"c128k","stream":true}"#;

fn pod(endpoint: &str, kind: ProviderKind) -> PodConfig {
    PodConfig {
        providers: vec![ProviderConfig {
            name: "acme".into(),
            kind,
            endpoint: Some(endpoint.into()),
            models: Vec::new(),
            prices: vec![Price {
                model: "real-1".into(),
                input: 1_000_000,
                output: 2_000_000,
                cached_input: Some(100_000),
                cache_write: Some(4_000_000),
            }],
        }],
        ..PodConfig::default()
    }
}

/// A turn of session `heron` with a priced model.
fn bind(rig: &Rig, session: &str, api: Api, base: &str) -> Arc<TurnLink> {
    let mut bound = target(api, base);
    bound.provider = Some("acme".into());
    let link = TurnLink::new("heron", 7, "walrus");
    rig.bindings
        .bind_turn(session, Arc::new(bound), Arc::clone(&link));
    link
}

fn stopped(link: &TurnLink) -> Option<(TurnError, String)> {
    link.stopped().now_or_never()
}

fn chat(text: &str, usage: &str) -> String {
    format!(
        "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\ndata: {{\"choices\":[],\"usage\":{usage}}}\n\ndata: [DONE]\n\n"
    )
}

async fn sse(body: &str) -> Provider {
    Provider::answering("200 OK", "content-type: text/event-stream\r\n", body).await
}

#[tokio::test]
async fn answers_are_metered_recorded_and_passed_unchanged() {
    let bodies = [
        (Api::Chat, ProviderKind::Compatible, CHAT, chat("hi", r#"{"prompt_tokens":140,"completion_tokens":30,"prompt_tokens_details":{"cached_tokens":40}}"#)),
        (Api::Responses, ProviderKind::Openai, RESPONSES, "event: response.completed\ndata: {\"response\":{\"usage\":{\"input_tokens\":140,\"output_tokens\":30,\"input_tokens_details\":{\"cached_tokens\":40}}}}\n\n".to_owned()),
        (Api::Messages, ProviderKind::Anthropic, MESSAGES, "event: message_start\ndata: {\"message\":{\"usage\":{\"input_tokens\":100,\"cache_creation_input_tokens\":10,\"cache_read_input_tokens\":40,\"output_tokens\":1}}}\n\nevent: message_delta\ndata: {\"usage\":{\"output_tokens\":30}}\n\n".to_owned()),
    ];
    for (api, kind, path, body) in bodies {
        let provider = sse(&body).await;
        let rig = Rig::start(pod(&provider.base(), kind)).await;
        let link = bind(&rig, "ses_1", api, &provider.base());
        let answer = rig
            .send(&rig.request(path, "x-session-id: ses_1\r\n", ASK))
            .await;
        assert_eq!((answer.status, answer.body.as_str()), (200, body.as_str()));
        assert!(answer.whole && stopped(&link).is_none());
        let written = if api == Api::Messages { 10 } else { 0 };
        // The call's end was durable before the answer's end was told.
        let spend = rig.ledger.spend_of("heron");
        assert_eq!(
            (
                spend.calls,
                spend.input_tokens,
                spend.output_tokens,
                spend.cached_input_tokens,
                spend.cache_write_tokens,
            ),
            (1, 100, 30, 40, written),
            "{api:?}"
        );
        assert_eq!(
            spend.cost_nano_usd,
            100_000 + 60_000 + 4_000 + written * 4_000
        );
        assert_eq!((spend.estimated_calls, spend.unpriced_calls), (0, 0));
        let audit = rig.audit();
        let last: serde_json::Value = serde_json::from_str(audit.lines().last().unwrap()).unwrap();
        for (field, value) in [
            ("session", "heron"),
            ("author", "walrus"),
            ("opencode_session", "ses_1"),
            ("provider", "acme"),
            ("model", "real-1"),
            ("outcome", "ok"),
        ] {
            assert_eq!(last[field], value, "{last}");
        }
        assert_eq!((&last["turn"], &last["status"]), (&7.into(), &200.into()));
        assert!(
            last["request"].is_null() && last["answer"].is_null(),
            "no content"
        );
        let head = rig.ledger.head().borrow().clone().unwrap();
        assert_eq!(last["hash"], head.hash.as_str());
    }
}

#[tokio::test]
async fn what_is_not_told_is_estimated_and_failures_cost_nothing() {
    let provider = sse("data: {\"choices\":[{\"delta\":{\"content\":\"01234567\"}}]}\n\n").await;
    let rig = Rig::start(PodConfig::default()).await;
    rig.bind("ses_1", Api::Chat, &provider.base());
    assert_eq!(rig.chat("ses_1", ASK).await.status, 200);
    let spend = rig.ledger.spend();
    assert_eq!(
        (
            spend.output_tokens,
            spend.estimated_calls,
            spend.unpriced_calls
        ),
        (2, 1, 1)
    );
    assert_eq!(
        spend.input_tokens,
        (r#"{"model":"real-1","stream":true}"#.len() as u64).div_ceil(4)
    );
    let failing = Provider::answering("500 No", "", "{\"usage\":{\"prompt_tokens\":5}}").await;
    rig.bind("ses_1", Api::Chat, &failing.base());
    assert_eq!(rig.chat("ses_1", ASK).await.status, 500);
    let after = rig.ledger.spend();
    assert_eq!((after.calls, after.tokens()), (2, spend.tokens()));
}

#[tokio::test]
async fn content_is_recorded_only_where_asked_for_and_without_the_key() {
    let body = chat(&format!("echo {}", super::rig::KEY), "null");
    let provider = sse(&body).await;
    let rig = Rig::start(PodConfig {
        audit_content: true,
        ..PodConfig::default()
    })
    .await;
    rig.bind("ses_1", Api::Chat, &provider.base());
    rig.chat(
        "ses_1",
        r#"{"model":"c128k","stream":true,"messages":"PROMPT"}"#,
    )
    .await;
    let audit = rig.audit();
    assert!(
        audit.contains("PROMPT") && audit.contains("echo"),
        "{audit}"
    );
    assert!(!audit.contains("canary"), "{audit}");
}

#[tokio::test]
async fn a_budget_cuts_in_mid_stream_and_ends_the_turn() {
    let go = Arc::new(Notify::new());
    let delta = |n: usize| {
        chunk(&format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n",
            "x".repeat(n)
        ))
    };
    let script = vec![
        sse_head(),
        delta(40),
        Step::Wait(Arc::clone(&go)),
        delta(400),
        Step::Hang,
    ];
    let provider = Provider::start(script).await;
    let mut config = pod(&provider.base(), ProviderKind::Compatible);
    config.limits.budget.tokens = Some(100);
    let rig = Rig::start(config).await;
    let link = bind(&rig, "ses_1", Api::Chat, &provider.base());
    let mut stream = TcpStream::connect(rig.addr).await.unwrap();
    let request = rig.request(CHAT, "x-session-id: ses_1\r\n", ASK);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    while !text.windows(40).any(|part| part == [b'x'; 40]) {
        assert_ne!(stream.read_buf(&mut text).await.unwrap(), 0);
    }
    assert!(stopped(&link).is_none());
    go.notify_one();
    let _ = stream.read_to_end(&mut text).await;
    let text = String::from_utf8(text).unwrap();
    assert!(
        !text.contains(&"x".repeat(400)) && !text.ends_with("0\r\n\r\n"),
        "{text}"
    );
    provider.left.notified().await;
    let (code, message) = stopped(&link).unwrap();
    assert_eq!(code, TurnError::BudgetExhausted);
    assert!(
        message.contains("limits.budget.tokens") && message.contains("118 of 100"),
        "{message}"
    );
    assert_eq!(rig.metrics.budget_stops("tokens"), 1);
    assert_eq!(rig.count(Outcome::Budget), 1);
    let spend = rig.ledger.spend();
    assert_eq!((spend.output_tokens, spend.estimated_calls), (110, 1));

    // The next call is refused before anything is sent, and in a way that OpenCode does not repeat.
    let link = bind(&rig, "ses_1", Api::Chat, &provider.base());
    let answer = rig.chat("ses_1", ASK).await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (400, Some("budget_exhausted"))
    );
    assert_eq!(stopped(&link).unwrap().0, TurnError::BudgetExhausted);
    provider.one();

    // Raised, it works at once.
    rig.configure(|pod| pod.limits.budget.tokens = Some(10_000));
    let fine = sse(&chat("hi", "{}")).await;
    let link = bind(&rig, "ses_1", Api::Chat, &fine.base());
    assert_eq!(rig.chat("ses_1", ASK).await.status, 200);
    assert!(stopped(&link).is_none());
    // Lowered below what is used, the call under way is cut, too.
    rig.configure(|pod| {
        pod.limits.budget = Budget {
            calls: Some(2),
            ..Budget::default()
        }
    });
    assert_eq!(
        rig.chat("ses_1", ASK).await.json()["error"]["code"],
        "budget_exhausted"
    );
    assert_eq!(rig.metrics.budget_stops("calls"), 1);
}

#[tokio::test]
async fn a_budget_of_money_needs_a_price() {
    let provider = sse(&chat(
        "hi",
        r#"{"prompt_tokens":1000,"completion_tokens":1000}"#,
    ))
    .await;
    let mut config = pod(&provider.base(), ProviderKind::Compatible);
    config.limits.budget.cost_nano_usd = Some(3_000_000);
    let rig = Rig::start(config).await;
    let link = bind(&rig, "ses_1", Api::Chat, &provider.base());
    assert_eq!(rig.chat("ses_1", ASK).await.status, 200);
    assert_eq!(rig.ledger.spend().cost_nano_usd, 3_000_000);
    assert_eq!(rig.chat("ses_1", ASK).await.status, 400);
    let (_, message) = stopped(&link).unwrap();
    assert!(message.contains("0.003 of 0.003 used"), "{message}");
    rig.configure(|pod| {
        pod.limits.budget.cost_nano_usd = Some(1 << 40);
        pod.providers[0].prices.clear();
    });
    let link = bind(&rig, "ses_1", Api::Chat, &provider.base());
    let answer = rig.chat("ses_1", ASK).await;
    assert_eq!(answer.json()["error"]["code"], "model_unpriced");
    let (code, message) = stopped(&link).unwrap();
    assert_eq!(code, TurnError::ModelUnpriced);
    assert!(message.contains("providers[].prices"), "{message}");
    assert_eq!(provider.seen().len(), 1);
}

/// Two streams at once: each may be one chunk beyond the end, not more.
#[tokio::test]
async fn two_at_once_overrun_by_a_chunk_each_at_most() {
    let mut script = vec![sse_head()];
    for _ in 0..200 {
        script.push(chunk(&format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n",
            "x".repeat(40)
        )));
    }
    script.push(Step::Hang);
    let provider = Provider::start(script).await;
    let mut config = pod(&provider.base(), ProviderKind::Compatible);
    config.limits.budget.tokens = Some(500);
    let rig = Rig::start(config).await;
    bind(&rig, "ses_1", Api::Chat, &provider.base());
    bind(&rig, "ses_2", Api::Chat, &provider.base());
    let (a, b) = tokio::join!(rig.chat("ses_1", ASK), rig.chat("ses_2", ASK));
    assert!(!a.whole && !b.whole);
    // The words that were passed on, ten tokens a chunk, stay below the budget.
    let passed = (a.body + &b.body).matches("data:").count() as u64 * 10;
    assert!(passed <= 500, "{passed}");
    let used = rig.ledger.spend().tokens();
    // A read may hold several chunks of the provider's: what one read of the socket brings.
    assert!(used > 500, "{used}");
}

#[tokio::test]
async fn loops_are_stopped_with_a_reason() {
    let provider = sse(&chat("hi", "{}")).await;
    let mut config = PodConfig::default();
    config.limits.loops = Loops {
        calls_per_minute: 6,
        same_request: 3,
    };
    let rig = Rig::start(config).await;
    let link = bind(&rig, "ses_1", Api::Chat, &provider.base());
    assert_eq!(rig.chat("ses_1", ASK).await.status, 200);
    assert_eq!(rig.chat("ses_1", ASK).await.status, 200);
    let third = rig.chat("ses_1", ASK).await;
    assert_eq!(
        (third.status, third.json()["error"]["code"].as_str()),
        (400, Some("same_request"))
    );
    let (code, message) = stopped(&link).unwrap();
    assert_eq!(code, TurnError::CallLoop);
    assert!(
        message.contains("3 times in a row") && message.contains("limits.loops.sameRequest"),
        "{message}"
    );
    assert_eq!(rig.metrics.loop_stops("same_request"), 1);
    for n in 0..3 {
        let other = format!("{{\"model\":\"c128k\",\"stream\":true,\"n\":{n}}}");
        assert_eq!(rig.chat("ses_1", &other).await.status, 200);
    }
    let link = bind(&rig, "ses_1", Api::Chat, &provider.base());
    assert_eq!(
        rig.chat("ses_1", "{\"model\":\"c128k\",\"x\":1}")
            .await
            .status,
        400
    );
    assert_eq!(stopped(&link).unwrap().0, TurnError::CallLoop);
    assert_eq!(rig.metrics.loop_stops("calls_per_minute"), 1);
    assert_eq!(provider.seen().len(), 5);
}

#[tokio::test]
async fn answers_without_sense_are_refused_for_good() {
    for (status, headers, body) in [
        (
            "200 OK",
            "content-type: text/html\r\n",
            "<html>Sign in</html>",
        ),
        ("200 OK", "content-type: text/event-stream\r\n", ""),
        ("200 OK", "content-type: text/event-stream\r\n", "\n\n"),
        (
            "200 OK",
            "content-type: application/json\r\n",
            "{\"choices\":[]}",
        ),
        ("200 OK", "", "plain words"),
        ("204 No Content", "", ""),
    ] {
        let provider = Provider::answering(status, headers, body).await;
        let rig = Rig::start(PodConfig::default()).await;
        let link = bind(&rig, "ses_1", Api::Chat, &provider.base());
        let answer = rig.chat("ses_1", ASK).await;
        assert_eq!(
            (answer.status, answer.json()["error"]["code"].as_str()),
            (400, Some("bad_answer")),
            "{headers}{body}"
        );
        assert!(!answer.body.contains("Sign in"));
        let (code, message) = stopped(&link).unwrap();
        assert_eq!(code, TurnError::ProviderGarbled);
        assert!(message.contains("providers[].endpoint"), "{message}");
        assert_eq!(rig.count(Outcome::Garbled), 1);
        assert_eq!(rig.ledger.spend().tokens(), 0);
        // A title that fails ends no turn.
        let link = bind(&rig, "ses_1", Api::Chat, &provider.base());
        assert_eq!(
            rig.chat("ses_1", r#"{"model":"small","stream":true}"#)
                .await
                .status,
            400
        );
        assert!(stopped(&link).is_none());
    }
}

/// The endpoint and its key are changed together while a turn runs that was resolved before.
#[tokio::test]
async fn a_new_key_never_goes_to_the_old_endpoint() {
    let (old, new) = (Provider::ok().await, Provider::ok().await);
    let rig = Rig::start(pod(&old.base(), ProviderKind::Compatible)).await;
    let mut bound = target(Api::Chat, &old.base());
    bound.key = KeySource::Provider("acme".into());
    let link = TurnLink::new("heron", 1, "walrus");
    rig.bindings
        .bind_turn("ses_1", Arc::new(bound), Arc::clone(&link));
    rig.mount("acme", "sk-old-11111111");
    let body = r#"{"model":"c128k"}"#;
    assert_eq!(rig.chat("ses_1", body).await.status, 200);
    rig.mount("acme", "sk-new-22222222");
    rig.configure(|pod| pod.providers[0].endpoint = Some(new.base()));
    let answer = rig.chat("ses_1", body).await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (400, Some("endpoint_changed"))
    );
    assert_eq!(stopped(&link).unwrap().0, TurnError::EndpointChanged);
    assert!(new.seen().is_empty());
    assert_eq!(
        old.one().header("authorization"),
        Some("Bearer sk-old-11111111")
    );
    for change in [
        |pod: &mut PodConfig| pod.providers.clear(),
        |pod: &mut PodConfig| pod.providers[0].kind = ProviderKind::Openai,
        |pod: &mut PodConfig| pod.providers[0].name = "other".into(),
    ] {
        let before = pod(&old.base(), ProviderKind::Compatible);
        rig.configure(|pod| *pod = before);
        rig.configure(change);
        assert_eq!(rig.chat("ses_1", body).await.status, 400);
    }
    old.one();
}

#[tokio::test]
async fn a_refused_key_is_told_until_it_changes() {
    let provider = Provider::answering("403 No", "", "{}").await;
    let config = pod(&provider.base(), ProviderKind::Compatible);
    let rig = Rig::start(config.clone()).await;
    let mut bound = target(Api::Chat, &provider.base());
    bound.key = KeySource::Provider("acme".into());
    rig.bindings.bind("ses_1", Arc::new(bound));
    rig.mount("acme", "sk-old-11111111");
    assert_eq!(rig.chat("ses_1", r#"{"model":"c128k"}"#).await.status, 403);
    let refused = rig.keys.still_refused(&config);
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].provider, "acme");
    rig.mount("acme", "sk-new-22222222");
    assert!(rig.keys.still_refused(&config).is_empty());
}

/// A sub-agent's first call comes before the news of it: it waits, and goes where its parent's go.
#[tokio::test]
async fn a_child_that_calls_first_gets_its_parents_model() {
    let (parents, pods) = (Provider::ok().await, Provider::ok().await);
    let mut config = pod(&pods.base(), ProviderKind::Compatible);
    config.model = Some(contract::pod::ModelChoice {
        provider: "acme".into(),
        name: "pod-model".into(),
        temperature: None,
        max_tokens: None,
    });
    let rig = Rig::start(config).await;
    rig.mount("acme", "sk-of-the-pod");
    bind(&rig, "ses_p", Api::Chat, &parents.base());
    let body = r#"{"model":"c128k"}"#;
    let news = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(pods.seen().is_empty() && parents.seen().is_empty());
        rig.bindings.bind_child("ses_kid", "ses_p");
    };
    let (answer, ()) = tokio::join!(rig.chat("ses_kid", body), news);
    assert_eq!(answer.status, 200);
    parents.one();
    assert_eq!(
        rig.ledger.spend_of("heron").calls,
        1,
        "it counts for its parent's session"
    );
    // One that nobody ever tells of counts for the pod.
    assert_eq!(rig.chat("ses_stranger", body).await.status, 200);
    pods.one();
}
