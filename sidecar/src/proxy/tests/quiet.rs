//! What must not be seen or heeded: keys and bodies in logs, the process's own environment.

use super::rig::{CHAT, KEY, Provider, Rig, target};
use crate::{
    keys::ProviderKeys,
    proxy::{Api, Target, target::KeySource, upstream::Clients},
};
use contract::pod::{ModelChoice, PodConfig, ProviderConfig, ProviderKind};
use std::{
    io,
    sync::{Arc, Mutex},
};
use tracing_subscriber::filter::LevelFilter;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_key_and_no_body_in_any_log_line() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let echo = format!("{{\"error\":\"bad key {KEY}, ANSWER-CANARY\"}}");
    let provider = Provider::answering("401 No", "", &echo).await;
    let rig = Rig::start(PodConfig {
        http_proxy: Some("http://user:PROXY-CANARY@[bad".into()),
        ..PodConfig::default()
    })
    .await;
    rig.bind("ses_1", Api::Chat, &provider.base());
    let body = r#"{"model":"c128k","messages":"PROMPT-CANARY"}"#;
    assert_eq!(
        rig.chat("ses_1", body).await.status,
        502,
        "the HTTP proxy is unusable"
    );
    assert!(provider.seen().is_empty(), "and is not gone around");
    let rig = Rig::start(PodConfig::default()).await;
    rig.bind("ses_1", Api::Chat, &provider.base());
    rig.bind("ses_2", Api::Chat, "http://127.0.0.1:1/v1");
    rig.mount("main", KEY);
    assert_eq!(rig.chat("ses_1", body).await.status, 401);
    assert_eq!(rig.chat("ses_2", body).await.status, 502);
    let broken = r#"{"model":"c128k","messages":"PROMPT-CANARY""#;
    assert_eq!(rig.chat("ses_1", broken).await.status, 400);
    let smuggled = rig.request(CHAT, "content-length: 1\r\nx: PROMPT-CANARY\r\n", body);
    assert_eq!(rig.send(&smuggled).await.status, 400);
    drop(guard);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(
        text.contains("model call") && text.contains("real-1"),
        "{text}"
    );
    assert!(
        text.contains("ses_1") && text.contains("echoed its key"),
        "{text}"
    );
    for secret in [
        KEY,
        "canary/7f3a",
        "PROMPT-CANARY",
        "ANSWER-CANARY",
        "PROXY-CANARY",
    ] {
        assert!(!text.contains(secret), "{secret} in the log:\n{text}");
    }
}

#[test]
fn debug_shows_no_key() {
    let target = target(Api::Chat, "http://models.test/v1");
    assert!(matches!(target.key, KeySource::Request(_)));
    let text = format!(
        "{target:?} {target:#?} {:?}",
        target.with_key("sk-other".into())
    );
    assert!(
        !text.contains("canary") && !text.contains("sk-other"),
        "{text}"
    );
}

/// Runs itself again with proxies in the environment: whoever heeds them gets no answer.
#[test]
fn proxies_of_the_environment_are_ignored() {
    let names = [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "all_proxy",
    ];
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "proxy::tests::quiet::a_call_goes_straight"]);
    for name in names {
        command.env(name, "http://127.0.0.1:1");
    }
    command.env_remove("NO_PROXY").env_remove("no_proxy");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[tokio::test]
async fn a_call_goes_straight() {
    let provider = Provider::ok().await;
    let rig = Rig::start(PodConfig::default()).await;
    rig.bind("ses_1", Api::Chat, &provider.base());
    assert_eq!(rig.chat("ses_1", r#"{"model":"c128k"}"#).await.status, 200);
}

#[tokio::test]
async fn the_pods_http_proxy_is_used_but_for_its_exceptions() {
    let way_out = Provider::ok().await;
    let direct = Provider::ok().await;
    let rig = Rig::start(PodConfig {
        http_proxy: Some(format!("http://{}", way_out.addr)),
        no_proxy: Some("10.0.0.0/8, 127.0.0.1".into()),
        ..PodConfig::default()
    })
    .await;
    rig.bind("ses_far", Api::Chat, "http://models.test/v1");
    rig.bind("ses_near", Api::Chat, &direct.base());
    let body = r#"{"model":"c128k"}"#;
    assert_eq!(rig.chat("ses_far", body).await.status, 200);
    let line = "POST http://models.test/v1/chat/completions HTTP/1.1";
    assert_eq!(way_out.one().head.lines().next(), Some(line));
    assert_eq!(rig.chat("ses_near", body).await.status, 200);
    direct.one();
    way_out.one();
}

#[tokio::test]
async fn a_new_way_out_makes_a_new_client() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let clients = Clients::new(None).unwrap();
    let mut pod = PodConfig::default();
    clients.get(&pod).unwrap();
    pod.http_proxy = Some("http://[bad".into());
    assert!(clients.get(&pod).is_err());
    pod.http_proxy = Some("http://proxy.test:3128".into());
    clients.get(&pod).unwrap();
    // What is wrong with the file of authorities is logged; it must not keep the sidecar from telling.
    Clients::new(Some("/nowhere/ca.pem".as_ref()))
        .unwrap()
        .get(&pod)
        .unwrap();
    let empty = tempfile::NamedTempFile::new().unwrap();
    Clients::new(Some(empty.path())).unwrap().get(&pod).unwrap();
}

#[test]
fn a_missing_mounted_key_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let keys = ProviderKeys::new(folder.path().to_owned());
    let pod = PodConfig {
        providers: vec![ProviderConfig {
            name: "corp".into(),
            kind: ProviderKind::Anthropic,
            endpoint: None,
            models: Vec::new(),
            prices: Vec::new(),
        }],
        model: Some(ModelChoice {
            provider: "corp".into(),
            name: "claude-x".into(),
            temperature: None,
            max_tokens: None,
        }),
        ..PodConfig::default()
    };
    let target = Target::resolve(&pod, None).unwrap();
    assert_eq!(target.label(), "anthropic/claude-x");
    assert_eq!(target.key_missing(&keys).as_deref(), Some("corp"));
    std::fs::create_dir(folder.path().join("corp")).unwrap();
    std::fs::write(folder.path().join("corp/key"), "sk-now-there").unwrap();
    assert_eq!(target.key_missing(&keys), None);
    assert_eq!(target.with_key("k".into()).key_missing(&keys), None);
}
