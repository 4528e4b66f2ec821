//! Providers on a bad day.

use super::rig::{CHAT, KEY, MESSAGES, Provider, Rig, Step, chunk, sse_head, target};
use crate::proxy::{Api, Observation, What, observe::Outcome, target::KeySource};
use contract::pod::{PodConfig, ProviderConfig, ProviderKind};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const BODY: &str = r#"{"model":"c128k"}"#;

async fn rig(provider: &Provider) -> Rig {
    let rig = Rig::start(PodConfig::default()).await;
    rig.bind("ses_1", Api::Chat, &provider.base());
    rig.bind("ses_m", Api::Messages, &provider.base());
    rig
}

fn news(rig: &mut Rig) -> Vec<What> {
    std::iter::from_fn(|| rig.news.try_recv().ok())
        .map(|Observation { what, .. }| what)
        .collect()
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Provider::ok().await;
    for status in ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"] {
        let location = format!("location: {}/chat/completions\r\n", elsewhere.base());
        let provider = Provider::answering(status, &location, "go away").await;
        let rig = rig(&provider).await;
        let answer = rig.chat("ses_1", BODY).await;
        assert_eq!(answer.status, 502, "{answer:?}");
        assert_eq!(answer.json()["error"]["code"], "redirect");
        assert!(!answer.head.contains("location"));
        provider.one();
    }
    assert!(elsewhere.seen().is_empty(), "the key went elsewhere");
}

#[tokio::test]
async fn an_echoed_key_is_starred() {
    let stars = "*".repeat(KEY.len());
    let body = format!("{{\"error\":\"Incorrect API key provided: {KEY}\"}}");
    let headers = format!("x-request-id: {KEY}\r\nrequest-id: r-2\r\n");
    let provider = Provider::answering("401 No", &headers, &body).await;
    let rig1 = rig(&provider).await;
    for (path, session) in [(CHAT, "ses_1"), (MESSAGES, "ses_m")] {
        let head = format!("x-session-id: {session}\r\n");
        let answer = rig1.send(&rig1.request(path, &head, BODY)).await;
        assert_eq!(answer.status, 401);
        assert_eq!(answer.body, body.replace(KEY, &stars));
        assert!(!answer.head.contains(KEY), "{answer:?}");
        assert!(answer.head.contains("request-id: r-2"));
    }

    let (left, right) = KEY.split_at(7);
    let script = vec![
        sse_head(),
        chunk(&format!("data: {KEY} and {left}")),
        chunk(right),
        chunk(&format!("!\n\ndata: {left}\n\n{left}")),
        Step::Send("0\r\n\r\n".into()),
    ];
    let provider = Provider::start(script).await;
    let rig2 = rig(&provider).await;
    let answer = rig2.chat("ses_1", BODY).await;
    assert!(answer.whole);
    assert_eq!(
        answer.body,
        format!("data: {stars} and {stars}!\n\ndata: {left}\n\n{left}")
    );
}

#[tokio::test]
async fn a_compressed_answer_could_hide_the_key() {
    let headers = "content-encoding: gzip\r\n";
    let provider = Provider::answering("200 OK", headers, "whatever").await;
    let rig = rig(&provider).await;
    let answer = rig.chat("ses_1", BODY).await;
    assert_eq!(answer.status, 502);
    assert!(!answer.body.contains("whatever"));
}

#[tokio::test]
async fn silence_before_the_answer_is_cut() {
    let provider = Provider::start(vec![Step::Hang]).await;
    let mut rig = rig(&provider).await;
    let answer = rig.chat("ses_1", BODY).await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (504, Some("timeout"))
    );
    provider.left.notified().await;
    let request = rig.request(MESSAGES, "x-session-id: ses_m\r\n", BODY);
    let answer = rig.send(&request).await;
    assert_eq!(answer.json()["error"]["type"], "timeout_error");
    assert_eq!(news(&mut rig), [What::Timeout, What::Timeout]);
    assert_eq!(rig.count(Outcome::Timeout), 2);
}

#[tokio::test]
async fn silence_within_the_answer_breaks_it() {
    let script = vec![sse_head(), chunk("data: 1\n\n"), Step::Hang];
    let provider = Provider::start(script).await;
    let mut rig = rig(&provider).await;
    let answer = rig.chat("ses_1", BODY).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "data: 1\n\n"));
    assert!(!answer.whole, "it must not look like an end");
    provider.left.notified().await;
    assert_eq!(
        news(&mut rig),
        [What::Upstream { status: 200 }, What::Timeout]
    );
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_whole() {
    for script in [
        vec![sse_head(), chunk("data: 1\n\n")],
        vec![sse_head(), Step::Send("9\r\ndata".into())],
        vec![Step::Send(
            "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"short".into(),
        )],
    ] {
        let provider = Provider::start(script).await;
        let mut rig = rig(&provider).await;
        let answer = rig.chat("ses_1", BODY).await;
        assert_eq!(answer.status, 200);
        assert!(!answer.whole, "{answer:?}");
        assert_eq!(news(&mut rig), [What::Upstream { status: 200 }, What::Cut]);
        assert_eq!(rig.count(Outcome::Cut), 1);
    }
}

#[tokio::test]
async fn no_http_behind_the_endpoint_is_502() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let garbage = Provider::start(vec![Step::Send("SSH-2.0-hello\r\n\r\n".into())]).await;
    let silent = Provider::start(vec![]).await;
    for addr in [closed, garbage.addr, silent.addr] {
        let mut rig = Rig::start(PodConfig::default()).await;
        rig.bind("ses_1", Api::Chat, &format!("http://{addr}/v1"));
        let answer = rig.chat("ses_1", BODY).await;
        assert_eq!(
            (answer.status, answer.json()["error"]["code"].as_str()),
            (502, Some("unreachable"))
        );
        assert_eq!(news(&mut rig), [What::Unreachable]);
    }
}

#[tokio::test]
async fn a_missing_key_is_401_and_nothing_is_sent() {
    let provider = Provider::ok().await;
    let mut rig = Rig::start(PodConfig {
        providers: vec![ProviderConfig {
            name: "main".into(),
            kind: ProviderKind::Anthropic,
            endpoint: Some(provider.base()),
            models: Vec::new(),
            prices: Vec::new(),
        }],
        ..PodConfig::default()
    })
    .await;
    let mut bound = target(Api::Messages, &provider.base());
    bound.key = KeySource::Provider("main".into());
    rig.bindings.bind("ses_1", Arc::new(bound.clone()));
    bound.key = KeySource::Forgotten;
    rig.bindings.bind("ses_2", Arc::new(bound));
    for session in ["ses_1", "ses_2"] {
        let head = format!("x-session-id: {session}\r\n");
        let answer = rig.send(&rig.request(MESSAGES, &head, BODY)).await;
        assert_eq!(answer.status, 401);
        assert_eq!(answer.json()["error"]["type"], "authentication_error");
    }
    rig.mount("main", "sk-with a-space");
    let head = "x-session-id: ses_1\r\n";
    assert_eq!(
        rig.send(&rig.request(MESSAGES, head, BODY)).await.status,
        401
    );
    assert!(provider.seen().is_empty());
    let missing = What::KeyMissing {
        provider: "main".into(),
    };
    assert_eq!(
        news(&mut rig),
        [missing.clone(), What::KeyForgotten, missing]
    );
    rig.mount("main", "sk-mounted-later");
    assert_eq!(
        rig.send(&rig.request(MESSAGES, head, BODY)).await.status,
        200
    );
}

#[tokio::test]
async fn the_provider_is_let_go_when_opencode_leaves() {
    for script in [
        vec![Step::Hang],
        vec![sse_head(), chunk("data: 1\n\n"), Step::Hang],
    ] {
        let streams = script.len() > 1;
        let provider = Provider::start(script).await;
        // Long enough that only the leaving can be the reason.
        let rig = rig(&provider).await;
        let mut stream = TcpStream::connect(rig.addr).await.unwrap();
        let request = rig.request(CHAT, "x-session-id: ses_1\r\n", BODY);
        stream.write_all(request.as_bytes()).await.unwrap();
        if streams {
            let mut text = Vec::new();
            while !text.ends_with(b"data: 1\n\n\r\n") {
                assert_ne!(stream.read_buf(&mut text).await.unwrap(), 0);
            }
        }
        while provider.seen().is_empty() {
            tokio::task::yield_now().await;
        }
        drop(stream);
        let before_any_timeout = Duration::from_millis(700);
        timeout(before_any_timeout, provider.left.notified())
            .await
            .unwrap();
        while rig.count(Outcome::Aborted) == 0 {
            tokio::task::yield_now().await;
        }
        // The provider had the request: leaving early is no way around a budget.
        let spend = rig.ledger.spend();
        assert_eq!((spend.calls, spend.estimated_calls), (1, 1));
        assert!(spend.input_tokens > 0, "{spend:?}");
    }
}

#[tokio::test]
async fn shutdown_is_bounded() {
    let script = vec![sse_head(), chunk("data: 1\n\n"), Step::Hang];
    let provider = Provider::start(script).await;
    let mut rig = rig(&provider).await;
    let mut stream = TcpStream::connect(rig.addr).await.unwrap();
    let mut idle = TcpStream::connect(rig.addr).await.unwrap();
    let request = rig.request(CHAT, "x-session-id: ses_1\r\n", BODY);
    stream.write_all(request.as_bytes()).await.unwrap();
    rig.news.recv().await.unwrap();
    rig.shutdown.cancel();
    timeout(Duration::from_secs(5), rig.server)
        .await
        .unwrap()
        .unwrap();
    let mut rest = Vec::new();
    let _ = idle.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
    assert!(TcpStream::connect(rig.addr).await.is_err());
}
