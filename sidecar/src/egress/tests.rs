//! The way out over real sockets; names and addresses are the test's.

use super::{Egress, Metrics, Refused, serve, serve::Network};
use crate::config::Config;
use contract::pod::{self, EgressMode, EgressRule, PodConfig};
use futures::future::BoxFuture;
use prometheus_client::registry::Registry;
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Names with their addresses; whatever is dialled is the test's own server.
struct Map {
    names: HashMap<&'static str, Vec<IpAddr>>,
    server: SocketAddr,
    dialled: Arc<Mutex<Vec<SocketAddr>>>,
    lookups: Arc<Mutex<Vec<String>>>,
}

impl Network for Map {
    fn resolve(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let found = self.names.get(host.as_str()).cloned();
        self.lookups.lock().unwrap().push(host);
        Box::pin(async move {
            let found = found.ok_or(io::ErrorKind::NotFound)?;
            Ok(found
                .into_iter()
                .map(|ip| SocketAddr::new(ip, port))
                .collect())
        })
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> {
        self.dialled.lock().unwrap().push(address);
        Box::pin(TcpStream::connect(self.server))
    }
}

struct World {
    proxy: SocketAddr,
    egress: Egress,
    dialled: Arc<Mutex<Vec<SocketAddr>>>,
    lookups: Arc<Mutex<Vec<String>>>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

/// Answers each connection with what came, once the line has ended.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = vec![0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut bytes).await {
                    if stream.write_all(&bytes[..n]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn rule(host: &str, ports: &[u16], private: bool) -> EgressRule {
    EgressRule {
        host: host.into(),
        ports: ports.to_vec(),
        private,
    }
}

async fn world(mode: EgressMode) -> World {
    let ip = |text: &str| text.parse().unwrap();
    let names = HashMap::from([
        ("good.test", vec![ip("203.0.113.5")]),
        ("corp.test", vec![ip("10.1.2.3")]),
        ("meta.test", vec![ip("169.254.169.254")]),
        ("self.test", vec![ip("127.0.0.1")]),
        ("mixed.test", vec![ip("203.0.113.5"), ip("127.0.0.1")]),
    ]);
    let (dialled, lookups) = (Arc::default(), Arc::default());
    let network = Map {
        names,
        server: echo().await,
        dialled: Arc::clone(&dialled),
        lookups: Arc::clone(&lookups),
    };
    let pod = PodConfig {
        egress: pod::Egress {
            mode,
            allow: vec![
                rule("*.test", &[443, 80], false),
                rule("corp.test", &[8080], true),
                rule("self.test", &[8080], true),
                rule("198.51.100.9", &[443], false),
                rule("127.0.0.1", &[443], true),
            ],
        },
        ..PodConfig::default()
    };
    let egress = Egress {
        config: Config::changeable(pod).1,
        refused: Arc::<Refused>::default(),
        metrics: Metrics::default(),
        resolver: Arc::new(network),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(serve(listener, egress.clone(), shutdown.clone()));
    World {
        proxy,
        egress,
        dialled,
        lookups,
        shutdown,
        task,
    }
}

impl World {
    /// Sends bytes; what comes back until it ends, or until `enough`.
    async fn say(&self, bytes: &str, enough: &str) -> String {
        let mut stream = TcpStream::connect(self.proxy).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut said = Vec::new();
        let read = async {
            while enough.is_empty() || !String::from_utf8_lossy(&said).contains(enough) {
                // A flood's end may still be refused by a reset.
                if !matches!(stream.read_buf(&mut said).await, Ok(1..)) {
                    return;
                }
            }
        };
        timeout(Duration::from_secs(10), read).await.unwrap();
        String::from_utf8(said).unwrap()
    }

    fn metrics(&self) -> String {
        let mut registry = Registry::default();
        self.egress.metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    async fn connect(&self, to: &str) -> String {
        self.say(&format!("CONNECT {to} HTTP/1.1\r\n\r\n"), "\r\n\r\n")
            .await
    }
}

#[tokio::test]
async fn what_is_listed_passes_byte_for_byte() {
    let world = world(EgressMode::ProxyOnly).await;
    let said = world
        .say(
            "CONNECT good.test:443 HTTP/1.1\r\n\r\n\x16\x03hello",
            "hello",
        )
        .await;
    assert_eq!(
        said,
        "HTTP/1.1 200 Connection established\r\n\r\n\x16\x03hello"
    );
    let said = world
        .say(
            "GET http://good.test/x HTTP/1.1\r\nproxy-connection: x\r\n\r\n",
            "\r\n\r\n",
        )
        .await;
    assert_eq!(
        said,
        "GET /x HTTP/1.1\r\nhost: good.test\r\nconnection: close\r\n\r\n"
    );
    assert!(world.connect("corp.test:8080").await.contains(" 200 "));
    assert!(world.connect("198.51.100.9:443").await.contains(" 200 "));
    let dialled: Vec<String> = world
        .dialled
        .lock()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        dialled,
        [
            "203.0.113.5:443",
            "203.0.113.5:80",
            "10.1.2.3:8080",
            "198.51.100.9:443"
        ],
        "the very address that was looked at"
    );
    assert_eq!(world.lookups.lock().unwrap().len(), 3, "each name once");
}

#[tokio::test]
async fn everything_else_is_refused_with_what_to_do() {
    let world = world(EgressMode::ProxyOnly).await;
    for (to, status, words) in [
        ("evil.example:443", "403", "spec.network.egress.allow"),
        ("good.test:22", "403", "spec.network.egress.allow"),
        ("192.0.2.1:443", "403", "spec.network.egress.allow"),
        ("[2001:db8::1]:443", "403", "spec.network.egress.allow"),
        ("corp.test:443", "403", "private: true"),
        ("meta.test:443", "403", "never"),
        ("self.test:443", "403", "never"),
        ("self.test:8080", "403", "never"),
        ("127.0.0.1:443", "403", "never"),
        ("mixed.test:443", "403", "never"),
        ("unknown.test:443", "502", "resolved"),
        ("2130706433:443", "400", "host:port"),
    ] {
        let said = world
            .say(&format!("CONNECT {to} HTTP/1.1\r\n\r\n"), "")
            .await;
        assert!(
            said.starts_with(&format!("HTTP/1.1 {status} ")) && said.contains(words),
            "{to}: {said}"
        );
    }
    assert!(world.dialled.lock().unwrap().is_empty());
    let report = world.egress.refused.report();
    let hosts: Vec<_> = report.refused.iter().map(|r| r.host.as_str()).collect();
    assert_eq!(
        hosts,
        ["192.0.2.1", "2001:db8::1", "evil.example", "good.test"]
    );
    assert!(
        world
            .lookups
            .lock()
            .unwrap()
            .iter()
            .all(|host| host.ends_with(".test")),
        "what is not listed is not even looked up: names can carry data out"
    );
    let text = world.metrics();
    assert!(
        text.contains(r#"egress_decisions_total{decision="not_listed"} 4"#),
        "{text}"
    );
}

#[tokio::test]
async fn where_the_way_is_open_the_proxy_says_so() {
    let world = world(EgressMode::Open).await;
    let said = world.connect("good.test:443").await;
    assert!(said.starts_with("HTTP/1.1 403"), "{said}");
    assert!(world.egress.refused.report().refused.is_empty());
}

#[tokio::test]
async fn too_many_and_silent_callers_hold_up_nobody_and_the_end_is_prompt() {
    let world = world(EgressMode::ProxyOnly).await;
    let mut open = Vec::new();
    for _ in 0..128 {
        open.push(TcpStream::connect(world.proxy).await.unwrap());
    }
    let said = world.connect("good.test:443").await;
    assert!(said.starts_with("HTTP/1.1 503"), "{said}");
    open.pop();
    let again = async { while !world.connect("good.test:443").await.contains(" 200 ") {} };
    timeout(Duration::from_secs(10), again).await.unwrap();
    world.shutdown.cancel();
    timeout(Duration::from_secs(10), world.task)
        .await
        .expect("prompt")
        .unwrap();
}

/// Who holds every place and asks for more gets no task and no socket of ours for it.
#[tokio::test]
async fn a_flood_is_turned_away_without_a_word_and_counted() {
    let world = world(EgressMode::ProxyOnly).await;
    let mut open = Vec::new();
    for _ in 0..128 {
        open.push(TcpStream::connect(world.proxy).await.unwrap());
    }
    // They neither ask nor go: each refusal in words lasts until its time is up.
    let mut flood = Vec::new();
    for _ in 0..200 {
        flood.push(TcpStream::connect(world.proxy).await.unwrap());
    }
    let mut without_a_word = 0;
    for stream in &mut flood {
        let mut said = Vec::new();
        let read = timeout(Duration::from_secs(10), stream.read_to_end(&mut said));
        // A reset is a close too.
        let _ = read.await.expect("answered or closed in time");
        if said.is_empty() {
            without_a_word += 1;
        } else {
            assert!(said.starts_with(b"HTTP/1.1 503"), "{said:?}");
        }
    }
    assert!(without_a_word >= 100, "{without_a_word} of 200");
    let text = world.metrics();
    let counted = r#"egress_decisions_total{decision="busy"} 200"#;
    assert!(text.contains(counted), "{text}");
    drop(open);
    let again = async { while !world.connect("good.test:443").await.contains(" 200 ") {} };
    timeout(Duration::from_secs(10), again).await.unwrap();
}
