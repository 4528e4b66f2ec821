//! Calls that work.

use super::rig::{CHAT, KEY, MESSAGES, Provider, RESPONSES, Rig, Step, chunk, sse_head, target};
use crate::proxy::{Api, What, observe::Outcome, target::KeySource};
use contract::pod::{ModelChoice, PodConfig, ProviderConfig, ProviderKind};
use scripted_model::{Options, ScriptedModel, key_digest};
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};

fn provider(name: &str, kind: ProviderKind, endpoint: &str) -> ProviderConfig {
    ProviderConfig {
        name: name.into(),
        kind,
        endpoint: Some(endpoint.into()),
        models: Vec::new(),
        prices: Vec::new(),
    }
}

fn choice(provider: &str, name: &str) -> ModelChoice {
    ModelChoice {
        provider: provider.into(),
        name: name.into(),
        temperature: None,
        max_tokens: None,
    }
}

const BODIES: [(Api, &str, &str); 3] = [
    (
        Api::Chat,
        CHAT,
        r#"{"model":"c128k","stream":true,"messages":[{"role":"user","content":"hello"}]}"#,
    ),
    (
        Api::Responses,
        RESPONSES,
        r#"{"model":"c200k","stream":true,"input":[{"role":"user","content":"hello"}]}"#,
    ),
    (
        Api::Messages,
        MESSAGES,
        r#"{"model":"c1m","stream":true,"max_tokens":9,"messages":[{"role":"user","content":"hello"}]}"#,
    ),
];

#[tokio::test]
async fn all_three_dialects_stream_and_a_rotated_key_is_used_at_once() {
    let old = "sk-old-11111111";
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), old).unwrap();
    let options = Options {
        key_file: Some(keys.path().to_owned()),
        ..Options::default()
    };
    let model = ScriptedModel::start(options).await.unwrap();
    let kinds = [
        (Api::Chat, ProviderKind::Compatible),
        (Api::Responses, ProviderKind::Openai),
        (Api::Messages, ProviderKind::Anthropic),
    ];
    let providers = kinds.map(|(api, kind)| provider(api.id(), kind, &model.base_url()));
    let mut rig = Rig::start(PodConfig {
        providers: providers.into(),
        ..PodConfig::default()
    })
    .await;
    for (api, path, body) in BODIES {
        rig.mount(api.id(), old);
        let session = format!("ses_{}", api.id());
        let mut bound = target(api, &model.base_url());
        bound.key = KeySource::Provider(api.id().into());
        rig.bindings.bind(session.as_str(), Arc::new(bound));
        let call = rig.request(path, &format!("x-session-id: {session}\r\n"), body);

        let answer = rig.send(&call).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.head.contains("content-type: text/event-stream"));
        assert!(answer.whole && answer.body.contains("data: "), "{answer:?}");
        let request = model.requests().pop().unwrap();
        assert_eq!(request.model.as_deref(), Some("real-1"));
        assert_eq!(request.key_sha256.unwrap(), key_digest(old));
        assert_eq!(request.session, None);

        let new = format!("sk-new-{}-2222", api.id());
        std::fs::write(keys.path(), &new).unwrap();
        assert_eq!(
            rig.send(&call).await.status,
            401,
            "the provider rotated first"
        );
        rig.mount(api.id(), &new);
        assert_eq!(rig.send(&call).await.status, 200);
        std::fs::write(keys.path(), old).unwrap();
        rig.mount(api.id(), old);
        let told = std::iter::from_fn(|| rig.news.try_recv().ok()).map(|news| {
            assert_eq!(news.session.as_deref(), Some(session.as_str()));
            news.what
        });
        let statuses: Vec<_> = told.collect();
        let expected = [200, 401, 200].map(|status| What::Upstream { status });
        assert_eq!(statuses, expected);
    }
    assert_eq!(rig.count(Outcome::Ok), 6);
    assert_eq!(rig.count(Outcome::ClientError), 3);
}

#[tokio::test]
async fn only_the_listed_headers_go_out() {
    let sent = "x-session-id: ses_1\r\nx-session-affinity: ses_1\r\nAuthorization: Bearer dummy\r\n\
                x-api-key: dummy\r\napi-key: dummy\r\nCookie: a=b\r\nX-Forwarded-For: 10.0.0.1\r\n\
                User-Agent: opencode/1\r\nAccept: text/event-stream\r\nAccept-Encoding: gzip, br\r\n\
                anthropic-version: 2023-06-01\r\nanthropic-beta: fine-1\r\nopenai-beta: r=1\r\n\
                openai-organization: org\r\nOrigin: http://evil.test\r\nProxy-Authorization: x\r\n\
                Connection: close, x-api-key\r\nTE: trailers\r\n";
    for (api, path, body) in BODIES {
        let stream = "content-type: text/event-stream\r\n";
        let provider = Provider::answering("200 OK", stream, "data: [DONE]\n\n").await;
        let rig = Rig::start(PodConfig::default()).await;
        rig.bind("ses_1", api, &provider.base());
        let answer = rig.send(&rig.request(path, sent, body)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let seen = provider.one();
        let mut expected = vec![
            "accept",
            "accept-encoding",
            "content-length",
            "content-type",
            "host",
            "user-agent",
        ];
        let line = match api {
            Api::Messages => {
                expected.extend(["anthropic-beta", "anthropic-version", "x-api-key"]);
                assert_eq!(seen.header("x-api-key"), Some(KEY));
                "POST /v1/messages HTTP/1.1"
            }
            Api::Chat | Api::Responses => {
                expected.extend(["authorization", "openai-beta"]);
                assert_eq!(
                    seen.header("authorization").unwrap(),
                    format!("Bearer {KEY}")
                );
                if api == Api::Chat {
                    "POST /v1/chat/completions HTTP/1.1"
                } else {
                    "POST /v1/responses HTTP/1.1"
                }
            }
        };
        expected.sort_unstable();
        assert_eq!(seen.header_names(), expected);
        assert_eq!(seen.head.lines().next(), Some(line));
        assert_eq!(seen.header("accept-encoding"), Some("identity"));
        assert_eq!(seen.header("user-agent"), Some("opencode/1"));
        assert_eq!(seen.header("host").unwrap(), provider.addr.to_string());
    }
}

#[tokio::test]
async fn bodies_and_answers_keep_their_bytes() {
    let answer_body = "{\"n\":1e400,\"x\":0.1000,  \"é\":\"\\u00e9\"}\r\n\0";
    let headers = "content-type: text/odd; x=1\r\nx-request-id: r-1\r\nset-cookie: a=b\r\n\
                   server: s\r\nretry-after: 3600\r\nopenai-organization: org\r\n";
    let provider = Provider::answering("429 Slow", headers, answer_body).await;
    let rig = Rig::start(PodConfig::default()).await;
    rig.bind("ses_1", Api::Chat, &provider.base());
    let body = "{\"z\":[1e400, 0.1000],\"model\":\"c32k\",\"a\":\"\\u00e9\\ud83d\\ude00 é\",\
                \"temperature\":0.30,\"max_tokens\":32000}";
    let answer = rig.chat("ses_1", body).await;
    assert_eq!(provider.one().body, body.replace("c32k", "real-1"));
    assert_eq!((answer.status, answer.body.as_str()), (429, answer_body));
    let mut names: Vec<_> = answer
        .head
        .lines()
        .skip(1)
        .map(|line| line.split(':').next().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "connection",
            "content-type",
            "date",
            "retry-after",
            "transfer-encoding",
            "x-request-id"
        ]
    );
    assert!(answer.head.contains("content-type: text/odd; x=1\r\n"));
    assert!(answer.head.contains("retry-after: 60"), "{answer:?}");
    assert_eq!(rig.count(Outcome::RateLimited), 1);
}

/// Streams are metered on their way; not a byte of them changes, whatever they hold and however they
/// are cut.
#[tokio::test]
async fn streams_of_any_bytes_pass_unchanged() {
    for seed in 1..=6_u64 {
        let mut state = seed;
        let mut random = || {
            // Xorshift: any spread of bytes will do, but the same each time.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut sent = b"data: {\"usage\":{\"prompt_tokens\":1}}\n\n".to_vec();
        let alphabet = b"\"\\{}[]:,\n\r data:usage\x00\xff\xc3\xa9";
        sent.extend((0..100_000).map(|_| match random() % 4 {
            0 => (random() & 0xff) as u8,
            n => alphabet[(random() + n) as usize % alphabet.len()],
        }));
        let mut script = vec![sse_head()];
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(1 + random() as usize % 9000));
            let mut bytes = format!("{:x}\r\n", piece.len()).into_bytes();
            bytes.extend_from_slice(piece);
            bytes.extend_from_slice(b"\r\n");
            script.push(Step::Bytes(bytes));
            rest = after;
        }
        script.push(Step::Send("0\r\n\r\n".into()));
        let provider = Provider::start(script).await;
        let rig = Rig::start(PodConfig::default()).await;
        rig.bind("ses_1", Api::Chat, &provider.base());
        let mut stream = TcpStream::connect(rig.addr).await.unwrap();
        let body = r#"{"model":"c1m","stream":true}"#;
        let request = rig.request(CHAT, "x-session-id: ses_1\r\n", body);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let head = answer
            .windows(4)
            .position(|end| end == b"\r\n\r\n")
            .unwrap()
            + 4;
        assert!(unchunked(&answer[head..]) == sent, "seed {seed}");
    }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|end| end == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 4 + size..];
    }
}

#[tokio::test]
async fn temperature_and_limit_change_only_where_configured() {
    let provider = Provider::ok().await;
    let rig = Rig::start(PodConfig::default()).await;
    let mut bound = target(Api::Chat, &provider.base());
    bound.temperature = Some(0.25);
    bound.max_tokens = Some(77);
    rig.bindings.bind("ses_set", Arc::new(bound));
    rig.bind("ses_plain", Api::Chat, &provider.base());
    for (session, body, expected) in [
        (
            "ses_set",
            r#"{"max_completion_tokens":5,"model":"c1m"}"#,
            r#"{"max_completion_tokens":77,"model":"real-1","temperature":0.25}"#,
        ),
        ("ses_plain", r#"{"model":"c1m"}"#, r#"{"model":"real-1"}"#),
    ] {
        assert_eq!(rig.chat(session, body).await.status, 200);
        assert_eq!(provider.seen().pop().unwrap().body, expected);
    }
}

#[tokio::test]
async fn chunks_pass_as_they_come() {
    let go = Arc::new(Notify::new());
    let script = vec![
        sse_head(),
        chunk("data: 1\n\n"),
        Step::Wait(Arc::clone(&go)),
        chunk("data: 2\n\n"),
        Step::Send("0\r\n\r\n".into()),
    ];
    let provider = Provider::start(script).await;
    let rig = Rig::start(PodConfig::default()).await;
    rig.bind("ses_1", Api::Chat, &provider.base());
    let mut stream = TcpStream::connect(rig.addr).await.unwrap();
    let request = rig.request(CHAT, "x-session-id: ses_1\r\n", r#"{"model":"c1m"}"#);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"data: 1\n\n\r\n") {
        assert_ne!(stream.read_buf(&mut text).await.unwrap(), 0);
    }
    // Only now does the provider go on: what was read cannot have waited for it.
    go.notify_one();
    stream.read_to_end(&mut text).await.unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.ends_with("data: 2\n\n\r\n0\r\n\r\n"), "{text}");
}

#[tokio::test]
async fn each_session_has_its_model_and_the_rest_counts_for_the_pod() {
    let [one, two, pods, small] = [
        Provider::ok().await,
        Provider::ok().await,
        Provider::ok().await,
        Provider::ok().await,
    ];
    let pod = PodConfig {
        providers: vec![
            provider("main", ProviderKind::Compatible, &pods.base()),
            provider("little", ProviderKind::Compatible, &small.base()),
        ],
        model: Some(choice("main", "pod-model")),
        small_model: Some(choice("little", "tiny")),
        ..PodConfig::default()
    };
    let rig = Rig::start(pod).await;
    rig.mount("main", "sk-of-the-pod");
    rig.mount("little", "sk-of-the-small");
    rig.bind("ses_1", Api::Chat, &one.base());
    rig.bind("ses_2", Api::Chat, &two.base());
    rig.bindings.bind_child("ses_1c", "ses_1");
    let body = r#"{"model":"c128k"}"#;
    let together = tokio::join!(
        rig.chat("ses_1", body),
        rig.chat("ses_2", body),
        rig.chat("ses_unknown", body),
        rig.chat("ses_1c", body),
        rig.chat("ses_1", r#"{"model":"small"}"#)
    );
    let (a, b, c, d, e) = together;
    assert_eq!([a, b, c, d, e].map(|answer| answer.status), [200; 5]);
    assert_eq!(one.seen().len(), 2, "with its child");
    two.one();
    let seen = pods.one();
    assert_eq!(seen.header("authorization"), Some("Bearer sk-of-the-pod"));
    assert_eq!(seen.body, r#"{"model":"pod-model"}"#);
    let seen = small.one();
    assert_eq!(seen.header("authorization"), Some("Bearer sk-of-the-small"));
    assert_eq!(seen.body, r#"{"model":"tiny"}"#);
}

#[tokio::test]
async fn a_small_model_of_another_kind_leaves_the_sessions_own() {
    let (own, small) = (Provider::ok().await, Provider::ok().await);
    let pod = PodConfig {
        providers: vec![provider("little", ProviderKind::Anthropic, &small.base())],
        small_model: Some(choice("little", "tiny")),
        ..PodConfig::default()
    };
    let rig = Rig::start(pod).await;
    rig.mount("little", "sk-of-the-small");
    rig.bind("ses_1", Api::Chat, &own.base());
    let body = r#"{"model":"small"}"#;
    assert_eq!(rig.chat("ses_1", body).await.status, 200);
    assert_eq!(
        rig.chat("ses_other", body).await.status,
        200,
        "the only session there is"
    );
    assert_eq!(own.seen().len(), 2);
    assert!(small.seen().is_empty());
    let head = "x-session-id: ses_1\r\n";
    assert_eq!(
        rig.send(&rig.request(MESSAGES, head, body)).await.status,
        200
    );
    assert_eq!(small.one().header("x-api-key"), Some("sk-of-the-small"));
}

#[tokio::test]
async fn unknown_sessions_and_models_are_refused_in_the_providers_shape() {
    let provider = Provider::ok().await;
    let rig = Rig::start(PodConfig::default()).await;
    let none = rig.chat("ses_1", r#"{"model":"c128k"}"#).await;
    assert_eq!(
        (none.status, none.json()["error"]["code"].as_str()),
        (404, Some("session_not_found"))
    );
    rig.bind("ses_1", Api::Chat, &provider.base());
    rig.bind("ses_2", Api::Chat, &provider.base());
    let two = rig.chat("ses_3", r#"{"model":"c128k"}"#).await;
    assert_eq!(two.status, 404, "which of two nobody can say");
    let request = rig.request(MESSAGES, "x-session-id: ses_1\r\n", r#"{"model":"c128k"}"#);
    let wrong_api = rig.send(&request).await;
    assert_eq!(wrong_api.status, 404);
    assert_eq!(wrong_api.json()["type"], "error");
    assert_eq!(wrong_api.json()["error"]["type"], "not_found_error");
    let model = rig.chat("ses_1", r#"{"model":"gpt-5-pro"}"#).await;
    assert_eq!(
        (model.status, model.json()["error"]["code"].as_str()),
        (404, Some("model_not_found"))
    );
    assert!(provider.seen().is_empty());
    assert_eq!(rig.count(Outcome::Refused), 4);
}
