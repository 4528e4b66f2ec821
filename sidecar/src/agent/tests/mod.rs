//! The agent against doubles that lie, stall and flood.

mod opencode;
mod router;
mod runner;
mod stream;
mod supervisor;

use super::opencode::{Bounds, OpenCode};
use std::{
    io,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::task::AbortOnDropHandle;

/// The head of an answer that ends with its connection.
const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";

/// A request as the double got it.
#[derive(Clone, Debug)]
struct Got {
    method: String,
    /// With the query.
    path: String,
    head: String,
    body: String,
}

/// What the double does with it.
enum Act {
    /// Status and JSON.
    Say(u16, String),
    /// Nothing, and the connection stays open.
    Hang,
    /// The connection ends without a word.
    Drop,
    /// These bytes, then the end.
    Raw(Vec<u8>),
    /// The same after a while.
    Late(Vec<u8>, Duration),
    /// A head, then whatever comes.
    Stream(mpsc::Receiver<Vec<u8>>),
    /// A head, then these bytes again and again, as fast as they are taken.
    Flood(&'static [u8], Vec<u8>),
    /// A head, then one byte each time.
    Drip(u8, Duration),
}

type Handler = dyn Fn(&Got) -> Act + Send + Sync;

/// A server on loopback in OpenCode's place.
struct Double {
    port: u16,
    got: Arc<Mutex<Vec<Got>>>,
    _task: AbortOnDropHandle<()>,
}

impl Double {
    async fn start(handler: impl Fn(&Got) -> Act + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), handler)
    }

    fn on(listener: TcpListener, handler: impl Fn(&Got) -> Act + Send + Sync + 'static) -> Self {
        let port = listener.local_addr().unwrap().port();
        let got = Arc::new(Mutex::new(Vec::new()));
        let (log, handler): (_, Arc<Handler>) = (Arc::clone(&got), Arc::new(handler));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (log, handler) = (Arc::clone(&log), Arc::clone(&handler));
                connections.spawn(async move {
                    // A client that goes away is what many tests are about.
                    let _ = serve(stream, &log, &*handler).await;
                });
            }
        });
        Self {
            port,
            got,
            _task: AbortOnDropHandle::new(task),
        }
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// A client of this double with bounds for tests.
    fn client(&self) -> OpenCode {
        OpenCode::new(self.port, &"pw".into(), Path::new("/w s"), bounds())
    }
}

/// Short, and far longer than a busy machine keeps a test waiting.
fn bounds() -> Bounds {
    Bounds {
        quick: Duration::from_secs(1),
        slow: Duration::from_secs(1),
        silence: Duration::from_secs(1),
        line: Duration::from_secs(3),
    }
}

fn say(body: impl Into<String>) -> Act {
    Act::Say(200, body.into())
}

fn event(json: &str) -> Vec<u8> {
    format!("data: {json}\n\n").into_bytes()
}

fn connected() -> Vec<u8> {
    event(r#"{"id":"evt_1","type":"server.connected","properties":{}}"#)
}

fn idle(session: &str) -> Vec<u8> {
    event(&format!(
        r#"{{"id":"evt_2","type":"session.idle","properties":{{"sessionID":"{session}"}}}}"#
    ))
}

async fn serve(mut stream: TcpStream, log: &Mutex<Vec<Got>>, handler: &Handler) -> io::Result<()> {
    let got = read(&mut stream).await?;
    log.lock().unwrap().push(got.clone());
    match handler(&got) {
        Act::Say(status, body) => {
            let head = format!(
                "HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body.as_bytes()).await
        }
        Act::Hang => std::future::pending().await,
        Act::Drop => Ok(()),
        Act::Raw(bytes) => stream.write_all(&bytes).await,
        Act::Late(bytes, pause) => {
            tokio::time::sleep(pause).await;
            stream.write_all(&bytes).await
        }
        Act::Stream(mut chunks) => {
            stream.write_all(STREAM_HEAD).await?;
            while let Some(chunk) = chunks.recv().await {
                stream.write_all(&chunk).await?;
            }
            Ok(())
        }
        Act::Flood(head, chunk) => {
            stream.write_all(head).await?;
            loop {
                stream.write_all(&chunk).await?;
            }
        }
        Act::Drip(byte, pause) => {
            stream.write_all(STREAM_HEAD).await?;
            loop {
                stream.write_all(&[byte]).await?;
                tokio::time::sleep(pause).await;
            }
        }
    }
}

async fn read(stream: &mut TcpStream) -> io::Result<Got> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let length = head
        .to_ascii_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
        .unwrap_or(0);
    while bytes.len() < end + length {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let mut first = head.split(' ');
    Ok(Got {
        method: first.next().unwrap_or_default().to_owned(),
        path: first.next().unwrap_or_default().to_owned(),
        body: String::from_utf8_lossy(&bytes[end..]).into_owned(),
        head,
    })
}
