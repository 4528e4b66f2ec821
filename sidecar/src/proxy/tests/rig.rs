//! A proxy on a real port, a client that writes bytes, a provider that follows a script.

use crate::{
    audit::{Audit, Bounds},
    config::Config,
    keys::ProviderKeys,
    proxy::{
        Api, Bindings, Ledger, Observation, Proxy, Target,
        observe::{Metrics, Outcome},
        serve,
        target::KeySource,
    },
    settings::Settings,
};
use clap::Parser;
use contract::pod::PodConfig;
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub(super) const KEY: &str = "sk-canary/7f3a+91";

/// A proxy under test.
pub(super) struct Rig {
    pub(super) addr: SocketAddr,
    pub(super) bindings: Bindings,
    pub(super) metrics: Metrics,
    pub(super) news: mpsc::Receiver<Observation>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) keys: ProviderKeys,
    pub(super) config: tokio::sync::watch::Sender<Arc<PodConfig>>,
    pub(super) shutdown: CancellationToken,
    pub(super) server: JoinHandle<()>,
    folder: tempfile::TempDir,
}

impl Rig {
    /// One that knows this pod; both time-outs are one second.
    pub(super) async fn start(pod: PodConfig) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings::parse_from([
            "sidecar",
            "--model-header-timeout=1",
            "--model-chunk-timeout=1",
            "--proxy-port=1",
        ]);
        let bindings = Bindings::default();
        let (sender, news) = mpsc::channel(64);
        let keys = ProviderKeys::new(folder.path().to_owned());
        let (config_tx, config) = Config::changeable(pod);
        let audit = folder.path().join("audit");
        std::fs::create_dir(&audit).unwrap();
        let (audit, totals) = Audit::open(&audit, Bounds::default()).unwrap();
        let ledger = Ledger::new(audit, totals);
        let proxy = Proxy::new(
            &settings,
            config,
            keys.clone(),
            bindings.clone(),
            Arc::clone(&ledger),
        )
        .unwrap()
        .with_observer(Arc::new(sender));
        let metrics = proxy.metrics();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(listener, proxy.router(), shutdown.clone()));
        Self {
            addr,
            bindings,
            metrics,
            news,
            ledger,
            keys,
            config: config_tx,
            shutdown,
            server,
            folder,
        }
    }

    /// The audit log so far.
    pub(super) fn audit(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("audit/calls-000001.jsonl")).unwrap()
    }

    /// Changes the pod's configuration, as the operator does.
    pub(super) fn configure(&self, change: impl FnOnce(&mut PodConfig)) {
        self.config.send_modify(|pod| change(Arc::make_mut(pod)));
    }

    /// Mounts a key.
    pub(super) fn mount(&self, provider: &str, key: &str) {
        let folder = self.folder.path().join(provider);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("key"), key).unwrap();
    }

    /// A binding with a key of its own.
    pub(super) fn bind(&self, session: &str, api: Api, base: &str) {
        self.bindings.bind(session, Arc::new(target(api, base)));
    }

    /// A proper request, to be varied.
    pub(super) fn request(&self, path: &str, extra: &str, body: &str) -> String {
        format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n{extra}\
             Content-Length: {}\r\n\r\n{body}",
            self.addr,
            body.len()
        )
    }

    /// A chat call of a session and its whole answer.
    pub(super) async fn chat(&self, session: &str, body: &str) -> Answer {
        let head = format!("x-session-id: {session}\r\n");
        self.send(&self.request(CHAT, &head, body)).await
    }

    /// Sends bytes and reads to the end.
    pub(super) async fn send(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        // The proxy may answer and close before it has everything.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        Answer::read(&bytes)
    }

    /// Calls counted so far.
    pub(super) fn count(&self, outcome: Outcome) -> u64 {
        Api::ALL
            .map(|api| self.metrics.calls(api, outcome))
            .iter()
            .sum()
    }
}

pub(super) const CHAT: &str = "/chat/v1/chat/completions";
pub(super) const RESPONSES: &str = "/responses/v1/responses";
pub(super) const MESSAGES: &str = "/messages/v1/messages";

pub(super) fn target(api: Api, base: &str) -> Target {
    Target {
        api,
        base: base.parse().unwrap(),
        key: KeySource::Request(KEY.into()),
        provider: None,
        model: "real-1".into(),
        temperature: None,
        max_tokens: None,
        context_window: None,
    }
}

/// An answer as it came over the wire.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// In lower case.
    pub(super) head: String,
    pub(super) body: String,
    /// Whether the end came where it was announced.
    pub(super) whole: bool,
}

impl Answer {
    fn read(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let Some((head, rest)) = text.split_once("\r\n\r\n") else {
            return Self {
                status: 0,
                head: text.into_owned(),
                body: String::new(),
                whole: false,
            };
        };
        let head = head.to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let (body, whole) = if head.contains("transfer-encoding: chunked") {
            unchunk(rest)
        } else {
            (rest.to_owned(), true)
        };
        Self {
            status,
            head,
            body,
            whole,
        }
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

fn unchunk(mut rest: &str) -> (String, bool) {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (body, true);
        }
        body.push_str(&after[..size.min(after.len())]);
        rest = after.get(size + 2..).unwrap_or("");
    }
    (body, false)
}

/// A step of a provider's answer.
#[derive(Clone)]
pub(super) enum Step {
    Send(String),
    /// The same for what is no text.
    Bytes(Vec<u8>),
    /// Until the test says so.
    Wait(Arc<Notify>),
    /// Until the other side goes away.
    Hang,
}

/// A request as the provider saw it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) head: String,
    pub(super) body: String,
}

impl Seen {
    /// Names of all headers, sorted, in lower case.
    pub(super) fn header_names(&self) -> Vec<String> {
        let lines = self.head.lines().skip(1);
        let mut names: Vec<_> = lines
            .map(|line| line.split(':').next().unwrap().to_ascii_lowercase())
            .collect();
        names.sort();
        names
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// A provider that answers every request by the same script.
pub(super) struct Provider {
    pub(super) addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Told when a caller went away during [`Step::Hang`].
    pub(super) left: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Provider {
    pub(super) async fn start(script: Vec<Step>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let left = Arc::new(Notify::new());
        let (log, gone) = (Arc::clone(&seen), Arc::clone(&left));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, log, gone) = (script.clone(), Arc::clone(&log), Arc::clone(&gone));
                tokio::spawn(async move { play(stream, script, &log, &gone).await });
            }
        });
        Self {
            addr,
            seen,
            left,
            task,
        }
    }

    /// One that answers with this body at once.
    pub(super) async fn answering(status: &str, headers: &str, body: &str) -> Self {
        let length = body.len();
        let text = format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n{body}");
        Self::start(vec![Step::Send(text)]).await
    }

    pub(super) async fn ok() -> Self {
        Self::answering("200 OK", "content-type: application/json\r\n", "{}").await
    }

    pub(super) fn base(&self) -> String {
        format!("http://{}/v1", self.addr)
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The only request.
    pub(super) fn one(&self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:#?}");
        seen[0].clone()
    }
}

async fn play(stream: TcpStream, script: Vec<Step>, log: &Mutex<Vec<Seen>>, gone: &Notify) {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let mut request = Seen {
        head: head.trim_end().to_owned(),
        body: String::new(),
    };
    let length = request
        .header("content-length")
        .map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    request.body = String::from_utf8(body).unwrap();
    log.lock().unwrap().push(request);
    for step in script {
        match step {
            Step::Send(text) => stream.write_all(text.as_bytes()).await.unwrap(),
            Step::Bytes(bytes) => stream.write_all(&bytes).await.unwrap(),
            Step::Wait(go) => go.notified().await,
            Step::Hang => {
                let mut rest = [0];
                while matches!(stream.read(&mut rest).await, Ok(n) if n > 0) {}
                gone.notify_one();
            }
        }
    }
}

/// A chunk of a chunked body.
pub(super) fn chunk(text: &str) -> Step {
    Step::Send(format!("{:x}\r\n{text}\r\n", text.len()))
}

/// Head of an event stream.
pub(super) fn sse_head() -> Step {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                transfer-encoding: chunked\r\n\r\n";
    Step::Send(head.into())
}
