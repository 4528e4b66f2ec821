//! Connections of the way out: bounded in number and time, one decision each.

use super::{
    Egress,
    address::{Reach, reach},
    head::{self, Asked, BadHead, How},
    policy::{Destination, Verdict, verdict},
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_util::{io::InspectReader, sync::CancellationToken};

/// Connections at once. Package managers open a few dozen.
const CONNECTIONS_MAX: usize = 128;
/// Connections beyond these that are told so at once.
const REFUSALS_MAX: usize = 16;
/// Longest time for a head to arrive.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Longest time to resolve a name and to connect.
const DIAL_TIME: Duration = Duration::from_secs(15);
/// Longest silence of a tunnel, in both directions.
const IDLE_TIME: Duration = Duration::from_secs(300);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;
/// Pause after a failed accept, as when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The network, so that tests need none.
pub(super) trait Network: Send + Sync {
    fn resolve(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;
    fn connect(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>>;
}

pub(super) type Resolver = Arc<dyn Network>;

struct System;

impl Network for System {
    fn resolve(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, port)).await?;
            Ok(found.take(ADDRESSES_MAX).collect())
        })
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(address))
    }
}

pub(super) fn system_resolver() -> Resolver {
    Arc::new(System)
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decided {
    decision: &'static str,
}

/// Counters of the way out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    decisions: Family<Decided, Counter>,
    open: Gauge,
    bytes: Counter,
}

impl Metrics {
    /// Counts one that was turned away.
    fn busy(&self) {
        let decision = Denied::Busy.label();
        self.decisions.get_or_create(&Decided { decision }).inc();
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        // Each from the start: a rate needs a zero to rise from.
        for decision in Denied::EACH
            .map(Denied::label)
            .into_iter()
            .chain(["allowed"])
        {
            drop(self.decisions.get_or_create(&Decided { decision }));
        }
        registry.register(
            "egress_decisions",
            "Connections that the agent asked the egress proxy for, by what was decided",
            self.decisions.clone(),
        );
        registry.register(
            "egress_connections",
            "Connections through the egress proxy that are open",
            self.open.clone(),
        );
        registry.register(
            "egress_bytes",
            "Bytes through the egress proxy, both directions",
            self.bytes.clone(),
        );
    }
}

/// Why a connection was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denied {
    NotListed,
    Direct,
    Private,
    Never,
    Unresolved,
    Unreachable,
    Busy,
    Malformed(&'static str),
}

impl Denied {
    const EACH: [Self; 8] = [
        Self::NotListed,
        Self::Direct,
        Self::Private,
        Self::Never,
        Self::Unresolved,
        Self::Unreachable,
        Self::Busy,
        Self::Malformed(""),
    ];

    /// Label of metric and log.
    fn label(self) -> &'static str {
        match self {
            Self::NotListed => "not_listed",
            Self::Direct => "direct",
            Self::Private => "private_address",
            Self::Never => "forbidden_address",
            Self::Unresolved => "unresolved",
            Self::Unreachable => "unreachable",
            Self::Busy => "busy",
            Self::Malformed(_) => "malformed",
        }
    }

    fn status(self) -> &'static str {
        match self {
            Self::NotListed | Self::Direct | Self::Private | Self::Never => "403 Forbidden",
            Self::Unresolved | Self::Unreachable => "502 Bad Gateway",
            Self::Busy => "503 Service Unavailable",
            Self::Malformed(_) => "400 Bad Request",
        }
    }

    /// What the person who reads a tool's output should do next.
    fn words(self, to: Option<&Destination>) -> String {
        let to = to.map_or_else(String::new, |to| format!("{}:{}", to.host, to.port));
        match self {
            Self::NotListed => format!(
                "{to} is not on this session's list: add it to spec.network.egress.allow of the OpenCodeSession"
            ),
            Self::Direct => {
                "spec.network.egress.mode is open: connect directly, without this proxy".to_owned()
            }
            Self::Private => format!(
                "{to} has an address of a private network: set `private: true` in its entry of spec.network.egress.allow"
            ),
            Self::Never => format!(
                "{to} leads to this machine, to the link or to a metadata service, which is never allowed"
            ),
            Self::Unresolved => format!("{to}: the name cannot be resolved"),
            Self::Unreachable => format!("{to} cannot be reached"),
            Self::Busy => format!("{CONNECTIONS_MAX} connections are open: try again"),
            Self::Malformed(rule) => rule.to_owned(),
        }
    }
}

/// Serves until `shutdown`, then cuts what is open.
pub(crate) async fn serve(listener: TcpListener, egress: Egress, shutdown: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Even a refusal costs a task and a socket.
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let egress = egress.clone();
                if let Ok(permit) = Arc::clone(&room).try_acquire_owned() {
                    connections.spawn(async move {
                        connection(stream, &egress).await;
                        drop(permit);
                    });
                } else if let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() {
                    connections.spawn(async move {
                        egress.decided(None, Err(Denied::Busy));
                        refuse(stream, Denied::Busy, None).await;
                        drop(permit);
                    });
                } else {
                    // Closed without a word: a flood gets no more of us.
                    egress.metrics.busy();
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of the egress proxy");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn connection(mut stream: TcpStream, egress: &Egress) {
    let asked = match timeout(HEAD_TIME, head::read(&mut stream)).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(BadHead::Gone)) | Err(_) => return,
        Ok(Err(BadHead::Wrong(rule))) => {
            let denied = Denied::Malformed(rule);
            egress.decided(None, Err(denied));
            return refuse(stream, denied, None).await;
        }
    };
    match egress.dial(&asked.to).await {
        Err(denied) => {
            egress.decided(Some(&asked.to), Err(denied));
            refuse(stream, denied, Some(&asked.to)).await;
        }
        Ok(upstream) => {
            let address = upstream.peer_addr().ok().map(|peer| peer.ip());
            egress.decided(Some(&asked.to), Ok(address));
            egress.metrics.open.inc();
            let (passed, ended) = pass(stream, upstream, &asked, &egress.metrics.bytes).await;
            egress.metrics.open.dec();
            tracing::info!(
                host = asked.to.host,
                port = asked.to.port,
                bytes = passed,
                ended,
                "egress ended"
            );
        }
    }
}

impl Egress {
    fn decided(&self, to: Option<&Destination>, decision: Result<Option<IpAddr>, Denied>) {
        let label = decision.map_or_else(Denied::label, |_| "allowed");
        let decided = Decided { decision: label };
        self.metrics.decisions.get_or_create(&decided).inc();
        let (host, port) = to.map_or(("", 0), |to| (to.host.as_str(), to.port));
        match decision {
            Ok(address) => tracing::info!(host, port, ?address, decision = label, "egress"),
            Err(_) => tracing::warn!(host, port, decision = label, "egress refused"),
        }
        if let (Err(Denied::NotListed), Some(to)) = (decision, to) {
            self.refused.note(to, Timestamp::now());
        }
    }

    /// Decides, resolves once, looks at every address, connects to one of them.
    async fn dial(&self, to: &Destination) -> Result<TcpStream, Denied> {
        let private = match verdict(&self.config.pod().egress, to) {
            Verdict::Go { private } => private,
            Verdict::NotListed => return Err(Denied::NotListed),
            Verdict::Direct => return Err(Denied::Direct),
        };
        let deadline = tokio::time::Instant::now() + DIAL_TIME;
        let addresses = match to.address() {
            Some(address) => vec![SocketAddr::new(address, to.port)],
            None => {
                let resolved = self.resolver.resolve(to.host.clone(), to.port);
                match tokio::time::timeout_at(deadline, resolved).await {
                    Ok(Ok(addresses)) if !addresses.is_empty() => addresses,
                    _ => return Err(Denied::Unresolved),
                }
            }
        };
        // One bad address spoils the name: whoever mixes them is trying something.
        let worst = addresses.iter().map(|address| reach(address.ip())).max();
        match worst {
            Some(Reach::Public) => {}
            Some(Reach::Private) if private => {}
            Some(Reach::Private) => return Err(Denied::Private),
            Some(Reach::Never) | None => return Err(Denied::Never),
        }
        for address in addresses {
            let connected = self.resolver.connect(address);
            match tokio::time::timeout_at(deadline, connected).await {
                Ok(Ok(stream)) if is_own(&stream, address) => return Err(Denied::Never),
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => tracing::debug!(%address, %error, "egress not connected"),
                Err(_) => break,
            }
        }
        Err(Denied::Unreachable)
    }
}

/// Whether a connection ends at the address it began at: the pod's own, which no range tells.
fn is_own(stream: &TcpStream, dialled: SocketAddr) -> bool {
    stream
        .local_addr()
        .is_ok_and(|local| local.ip() == dialled.ip())
}

/// Passes bytes until one side ends, or both are silent for too long. Returns how many, and why it ended.
async fn pass(
    mut client: TcpStream,
    mut upstream: TcpStream,
    asked: &Asked,
    counter: &Counter,
) -> (u64, &'static str) {
    let opened = async {
        // Best effort: without it small chunks wait, nothing breaks.
        let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
        match &asked.how {
            How::Connect => {
                client
                    .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    .await?;
            }
            How::Forward(head) => upstream.write_all(head).await?,
        }
        upstream.write_all(&asked.rest).await
    };
    if !matches!(timeout(HEAD_TIME, opened).await, Ok(Ok(()))) {
        return (0, "broken");
    }
    let passed = Arc::new(AtomicU64::new(0));
    let count = |passed: &Arc<AtomicU64>| {
        let (passed, counter) = (Arc::clone(passed), counter.clone());
        move |bytes: &[u8]| {
            passed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            counter.inc_by(bytes.len() as u64);
        }
    };
    let mut client = InspectReader::new(client, count(&passed));
    let mut upstream = InspectReader::new(upstream, count(&passed));
    let silent = async {
        let mut before = 0;
        loop {
            tokio::time::sleep(IDLE_TIME).await;
            let now = passed.load(Ordering::Relaxed);
            if now == before {
                return;
            }
            before = now;
        }
    };
    let ended = tokio::select! {
        copied = copy_bidirectional(&mut client, &mut upstream) => match copied {
            Ok(_) => "closed",
            Err(_) => "broken",
        },
        () = silent => "idle",
    };
    (passed.load(Ordering::Relaxed), ended)
}

async fn refuse(mut stream: TcpStream, denied: Denied, to: Option<&Destination>) {
    let words = denied.words(to);
    let answer = format!(
        "HTTP/1.1 {}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{words}\n",
        denied.status(),
        words.len() + 1
    );
    let goodbye = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would reset the connection before the answer is read.
        let mut rest = tokio::io::AsyncReadExt::take(&mut stream, 1024 * 1024);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    let _ = timeout(Duration::from_secs(1), goodbye).await;
}
