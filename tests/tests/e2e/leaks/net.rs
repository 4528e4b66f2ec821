//! The attacker's host, and a provider that works for the attacker: both in this process, reached by pods at the node's address.

use serde_json::json;
use std::{
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tests::Namespace;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    process::{Child, Command},
    time::timeout,
};

/// Most of a connection that is kept, in bytes.
const KEPT: usize = 64 * 1024;
/// Silence after which a connection is over.
const SILENCE: Duration = Duration::from_secs(3);

/// Where clouds tell machines their credentials.
pub(super) const METADATA: &str = "169.254.169.254";

/// A name in the cluster for the node's address.
pub(super) async fn name(ns: &Namespace, node: &str) -> String {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "attacker"}, "spec": {"clusterIP": "None"}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [{"addresses": [node]}],
         "metadata": {"name": "attacker", "labels": {"kubernetes.io/service-name": "attacker"}}},
    ]});
    ns.kubectl(&["apply", "-f", "-"], &list.to_string()).await;
    format!("attacker.{}.svc.cluster.local", ns.name)
}

/// A metadata service inside of the network of the pod that this process belongs to; until dropped.
pub(super) async fn metadata(pid: u32) -> Child {
    const SERVER: &str = r#"use IO::Socket::INET; $| = 1; my $l = IO::Socket::INET->new(LocalAddr => $ARGV[0], LocalPort => 80, Listen => 9) or die "$!\n";
        print "ready\n"; while (my $c = $l->accept) { sysread $c, my $q, 4096; print $c "HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\nMETADATA-CREDENTIAL"; close $c }"#;
    let script = format!("ip addr add {METADATA}/32 dev lo && exec perl -e \"$1\" {METADATA}");
    let mut server = Command::new("nsenter")
        .arg(format!("--net=/proc/{pid}/ns/net"))
        .args(["sh", "-c", &script, "sh", SERVER])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("nsenter runs on the node");
    let mut ready = [0; 6];
    let mut out = server.stdout.take().expect("piped");
    out.read_exact(&mut ready)
        .await
        .expect("the metadata service listens");
    server
}

/// What arrived, a text per connection or packet.
#[derive(Clone, Default)]
pub(super) struct Arrived(Arc<Mutex<Vec<String>>>);

impl Arrived {
    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one connection brought all of these.
    pub(super) fn together(&self, needles: &[&str]) -> bool {
        self.lock()
            .iter()
            .any(|text| needles.iter().all(|needle| text.contains(needle)))
    }

    fn begin(&self) -> usize {
        let mut all = self.lock();
        all.push(String::new());
        all.len() - 1
    }

    fn more(&self, index: usize, bytes: &[u8]) -> String {
        let mut all = self.lock();
        let text = &mut all[index];
        if text.len() < KEPT {
            text.push_str(&String::from_utf8_lossy(bytes));
        }
        text.clone()
    }
}

/// The attacker's host: TCP and UDP on one port.
pub(super) async fn attacker() -> (u16, Arrived) {
    let (port, arrived) = serve().await;
    let packets = UdpSocket::bind(("0.0.0.0", port))
        .await
        .expect("the port is free for UDP too");
    let seen = arrived.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, _)) = packets.recv_from(&mut buffer).await {
            let index = seen.begin();
            seen.more(index, &buffer[..length]);
        }
    });
    (port, arrived)
}

/// The provider: it does what stands after `DO:` in a message.
pub(super) async fn provider() -> (u16, Arrived) {
    serve().await
}

async fn serve() -> (u16, Arrived) {
    let listener = TcpListener::bind("0.0.0.0:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let arrived = Arrived::default();
    let seen = arrived.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                // A client that leaves in the middle has said what it had to say.
                connection(stream, seen).await.ok();
            });
        }
    });
    (port, arrived)
}

async fn connection(mut stream: TcpStream, seen: Arrived) -> std::io::Result<()> {
    let index = seen.begin();
    let mut buffer = [0; 8192];
    loop {
        let read = timeout(SILENCE, stream.read(&mut buffer)).await;
        let Ok(Ok(length @ 1..)) = read else {
            return Ok(());
        };
        let text = seen.more(index, &buffer[..length]);
        if is_whole(&text) {
            return answer(stream, &text).await;
        }
    }
}

/// A request with all of its body.
fn is_whole(text: &str) -> bool {
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    match header(head, "content-length").and_then(|length| length.parse().ok()) {
        Some::<usize>(length) => body.len() >= length,
        None if header(head, "transfer-encoding").is_some() => body.ends_with("0\r\n\r\n"),
        None => true,
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

async fn answer(mut stream: TcpStream, request: &str) -> std::io::Result<()> {
    let head = request.split("\r\n\r\n").next().unwrap_or_default();
    let key = header(head, "x-api-key")
        .or_else(|| header(head, "authorization").map(|value| value.trim_start_matches("Bearer ")))
        .unwrap_or_default();
    let wish = request
        .split_once("DO:")
        .and_then(|(_, rest)| rest.split([' ', '"']).next())
        .unwrap_or_default();
    let error = format!(
        r#"{{"error":{{"type":"authentication_error","message":"Incorrect API key provided: {key}"}}}}"#
    );
    let json = |status: &str, more: &str, body: &str| {
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{more}content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    };
    let bytes = match wish.split_once('=') {
        Some((status @ ("302" | "307" | "308"), to)) => json(
            &format!("{status} Elsewhere"),
            &format!("location: {to}\r\n"),
            "",
        ),
        _ if wish == "body" => json("401 Unauthorized", "", &error),
        _ if wish == "header" => json("400 Bad Request", &format!("x-request-id: {key}\r\n"), "{}"),
        _ if wish == "hex" => {
            let hex: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
            json(
                "400 Bad Request",
                "",
                &format!(r#"{{"error":{{"message":"{hex}"}}}}"#),
            )
        }
        _ if wish == "gzip" => {
            // One stored block; the checksum is wrong, which zcat says after it has shown the text.
            let length = u16::try_from(error.len()).expect("short");
            let mut body = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
            body.extend(length.to_le_bytes());
            body.extend((!length).to_le_bytes());
            body.extend(error.bytes());
            body.extend([0; 8]);
            let mut bytes = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            )
            .into_bytes();
            bytes.extend(body);
            bytes
        }
        _ if wish == "pieces" => {
            stream.set_nodelay(true)?;
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
            stream.write_all(head.as_bytes()).await?;
            for piece in key.as_bytes().chunks(3) {
                stream.write_all(piece).await?;
                stream.flush().await?;
                // Pieces that the kernel joins would be one.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            return stream.shutdown().await;
        }
        _ => json("200 OK", "", r#"{"content":[{"type":"text","text":"ok"}]}"#),
    };
    stream.write_all(&bytes).await?;
    stream.shutdown().await
}
