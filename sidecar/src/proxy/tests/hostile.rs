//! Requests that OpenCode would not send. None of them may reach the provider.

use super::rig::{CHAT, MESSAGES, Provider, Rig};
use crate::proxy::{Api, BODY_MAX};
use contract::pod::PodConfig;
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const BODY: &str = r#"{"model":"c128k"}"#;

async fn rig() -> (Rig, Provider) {
    let provider = Provider::ok().await;
    let rig = Rig::start(PodConfig::default()).await;
    for api in Api::ALL {
        rig.bind(&format!("ses_{}", api.id()), api, &provider.base());
    }
    (rig, provider)
}

fn good(rig: &Rig) -> String {
    rig.request(CHAT, "x-session-id: ses_chat\r\n", BODY)
}

#[tokio::test]
async fn other_paths_methods_and_forms_are_refused() {
    let (rig, provider) = rig().await;
    let request = good(&rig);
    for (from, to, status) in [
        (CHAT, "/chat/v1/models", 404),
        (CHAT, "/chat/v1/embeddings", 404),
        (CHAT, "/responses/v1/chat/completions", 404),
        (CHAT, "/messages/v1/messages/count_tokens", 404),
        (CHAT, "/messages/v1/messages/batches", 404),
        (CHAT, "/chat/v1/../v1/chat/completions", 404),
        (CHAT, "/chat/v1//chat/completions", 404),
        (CHAT, "//chat/v1/chat/completions", 404),
        (CHAT, "/chat/v1/chat/completions/", 404),
        (CHAT, "/chat/v1/chat/%63ompletions", 404),
        (CHAT, "/CHAT/v1/chat/completions", 404),
        (CHAT, "/", 404),
        (CHAT, "/chat/v1/chat/completions?beta=true", 400),
        ("POST", "GET", 405),
        ("POST", "PUT", 405),
        ("POST", "OPTIONS", 405),
        ("POST", "TRACE", 405),
        ("POST", "CONNECT", 405),
        ("application/json", "text/plain", 415),
        ("application/json", "application/json; charset=utf-16", 415),
        ("application/json", "application/jsonp", 415),
        ("application/json", "multipart/form-data", 415),
        ("Content-Type: application/json\r\n", "", 415),
        ("x-session", "content-encoding: gzip\r\nx-session", 415),
        (
            "x-session",
            "upgrade: websocket\r\nconnection: upgrade\r\nx-session",
            400,
        ),
        (
            "x-session",
            "user-agent: a\r\nuser-agent: b\r\nx-session",
            400,
        ),
        ("ses_chat", "ses_chat,ses_2", 400),
        ("ses_chat", "../ses_chat", 400),
        ("ses_chat", "", 400),
    ] {
        let varied = request.replacen(from, to, 1);
        assert_ne!(varied, request, "{from}");
        let answer = rig.send(&varied).await;
        assert_eq!(answer.status, status, "{from} as {to}: {answer:?}");
        let message = answer.json()["error"]["message"].as_str().map(str::len);
        assert!(
            message.is_some_and(|length| length > 5),
            "{from} as {to}: {answer:?}"
        );
    }
    assert!(provider.seen().is_empty(), "{:?}", provider.seen());
    assert_eq!(
        rig.send(&request).await.status,
        200,
        "the unvaried one is fine"
    );
}

#[tokio::test]
async fn only_our_own_name_is_answered() {
    let (rig, provider) = rig().await;
    let request = good(&rig);
    let port = rig.addr.port();
    for host in [
        "evil.test".to_owned(),
        "127.0.0.1".to_owned(),
        format!("127.0.0.1:{}", port.wrapping_add(1)),
        format!("127.0.0.1.evil.test:{port}"),
        format!("evil.test:{port}"),
        format!("localhost.evil.test:{port}"),
        format!("user@127.0.0.1:{port}"),
        format!("[::1]:{port}"),
        format!("0.0.0.0:{port}"),
        format!("127.0.0.1:{port}:{port}"),
        String::new(),
    ] {
        let varied = request.replacen(&rig.addr.to_string(), &host, 1);
        let answer = rig.send(&varied).await;
        assert!(matches!(answer.status, 400 | 421), "{host}: {answer:?}");
    }
    assert!(provider.seen().is_empty());
    let named = request.replacen("127.0.0.1", "localhost", 1);
    assert_eq!(rig.send(&named).await.status, 200);
}

#[tokio::test]
async fn smuggling_ends_at_the_door() {
    let (rig, provider) = rig().await;
    let request = good(&rig);
    let length = format!("Content-Length: {}", BODY.len());
    let absolute = format!("http://{}{CHAT}", rig.addr);
    let both = format!("{length}\r\nTransfer-Encoding: chunked");
    let turned = format!("Transfer-Encoding: chunked\r\n{length}");
    let twice = format!("{length}\r\n{length}");
    for (from, to) in [
        (length.as_str(), twice.as_str()),
        (&length, "Content-Length: 1\r\nContent-Length: 17"),
        (&length, &both),
        (&length, &turned),
        (&length, "Transfer-Encoding: xchunked"),
        (&length, "Transfer-Encoding: chunked, identity"),
        (&length, "Transfer-Encoding : chunked"),
        (&length, "Content-Length: 17\nX: y"),
        (&length, "X: a\r\n Content-Length: 17"),
        (&length, "Content-Length: 0x11"),
        (&length, "Content-Length: 99999999999999999999999"),
        (&length, ""),
        (CHAT, absolute.as_str()),
        (CHAT, "http://evil.test/chat/v1/chat/completions"),
        (
            "x-session-id: ses_chat",
            "x-session-id: ses_chat\r\nX-Session-Id: ses_2",
        ),
        (
            "x-session-id: ses_chat",
            "x-session-id: ses_chat\r\nHost: evil.test",
        ),
        (
            "x-session-id: ses_chat",
            "x-session-id: ses_chat\r\nx-a: b\rc",
        ),
        ("HTTP/1.1", "HTTP/1.0"),
        ("HTTP/1.1", "HTTP/2.0"),
    ] {
        let varied = request.replacen(from, to, 1);
        assert_ne!(varied, request, "{from}");
        let answer = rig.send(&varied).await;
        assert!(
            (400..500).contains(&answer.status),
            "{from:?} as {to:?}: {answer:?}"
        );
    }
    assert!(provider.seen().is_empty(), "{:?}", provider.seen());

    // A second request behind the first is never looked at.
    let answer = rig.send(&format!("{request}{request}")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.head.matches("http/1.1").count(), 1);
    assert!(!answer.body.to_lowercase().contains("http/1.1"));
    provider.one();

    // Chunks alone are fine, and arrive with one length.
    let chunks = "6\r\n{\"mode\r\nb\r\nl\":\"c128k\"}\r\n0\r\n\r\n";
    let chunked = request.replacen(&length, "Transfer-Encoding: chunked", 1);
    let chunked = chunked.replacen(BODY, chunks, 1);
    assert_eq!(rig.send(&chunked).await.status, 200);
    let seen = provider.seen().pop().unwrap();
    assert_eq!(seen.body, r#"{"model":"real-1"}"#);
    assert!(seen.header("transfer-encoding").is_none());
}

#[tokio::test]
async fn bodies_that_read_in_two_ways_are_refused() {
    let (rig, provider) = rig().await;
    for body in [
        "",
        "[]",
        "{",
        r#"{"model":"c128k","model":"x"}"#,
        r#"{"model":"c128k","mod\u0065l":"x"}"#,
        r#"{"model":"c128k"}{"model":"x"}"#,
        r#"{"messages":[]}"#,
        r#"{"model":["c128k"]}"#,
    ] {
        let answer = rig.chat("ses_chat", body).await;
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
    }
    let head = "x-session-id: ses_messages\r\n";
    let answer = rig.send(&rig.request(MESSAGES, head, "{")).await;
    assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    assert!(provider.seen().is_empty());
}

#[tokio::test]
async fn an_oversized_body_is_413_and_takes_no_memory() {
    let (rig, provider) = rig().await;
    let large = format!("{{\"model\":\"c128k\",\"x\":\"{}\"}}", "a".repeat(BODY_MAX));
    let answer = rig.chat("ses_chat", &large).await;
    assert_eq!(answer.status, 413, "{answer:?}");

    // Without a length it is only known when it is too much.
    let mut stream = TcpStream::connect(rig.addr).await.unwrap();
    let length = format!("Content-Length: {}", BODY.len());
    let head = good(&rig).replacen(&length, "Transfer-Encoding: chunked", 1);
    let head = head.replacen(BODY, "", 1);
    stream.write_all(head.as_bytes()).await.unwrap();
    let piece = format!("100000\r\n{}\r\n", "a".repeat(0x10_0000));
    for _ in 0..=(BODY_MAX >> 20) {
        stream.write_all(piece.as_bytes()).await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(provider.seen().is_empty());
}

#[tokio::test]
async fn many_large_bodies_at_once_are_refused_and_room_comes_back() {
    let (rig, provider) = rig().await;
    let rig = Arc::new(rig);
    let filler = "a".repeat(BODY_MAX - 100);
    let large = Arc::new(format!("{{\"model\":\"c128k\",\"x\":\"{filler}\"}}"));
    // Three that stop just before their end fill the memory, so that one of them is refused.
    let mut streams = Vec::new();
    let request = rig.request(CHAT, "x-session-id: ses_chat\r\n", &large);
    let (most, last) = request.split_at(request.len() - 1);
    let mut refused = 0;
    for _ in 0..3 {
        let mut stream = TcpStream::connect(rig.addr).await.unwrap();
        stream.write_all(most.as_bytes()).await.unwrap();
        streams.push(stream);
    }
    for mut stream in streams {
        let _ = stream.write_all(last.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        match &answer[..12] {
            b"HTTP/1.1 503" => refused += 1,
            b"HTTP/1.1 200" => {}
            other => panic!("{}", String::from_utf8_lossy(other)),
        }
    }
    assert_eq!(refused, 1);
    assert_eq!(provider.seen().len(), 2);
    assert_eq!(rig.chat("ses_chat", BODY).await.status, 200);
}

#[tokio::test]
async fn an_endless_head_is_cut() {
    let (rig, provider) = rig().await;
    let request = good(&rig);
    let long = request.replacen("ses_chat", &"a".repeat(64 * 1024), 1);
    let answer = rig.send(&long).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    let many = request.replacen(
        "x-session",
        &format!("{}x-session", "a: b\r\n".repeat(500)),
        1,
    );
    assert!((400..500).contains(&rig.send(&many).await.status));
    assert!(provider.seen().is_empty());
}
