//! Start, stop and the accept loop.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::handler::{DropConnection, Model, router};
use crate::keys::Keys;
use crate::library::{Library, LibraryError};
use crate::plan::{Counters, Ids};
use crate::record::{RequestLog, RequestRecord};

/// How long a graceful stop lets open answers go on.
const GRACE: Duration = Duration::from_secs(2);

/// Why the server did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The built-in scripts are broken.
    #[error("scripts are refused")]
    Library(#[from] LibraryError),
    /// The address is not to be had.
    #[error("cannot listen on {addr}")]
    Listen {
        /// The address asked for.
        addr: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// The system gave no random numbers.
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
}

/// How to start. The default listens on a free loopback port, lets every key in, plays
/// the built-in scripts without delays and logs nothing.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 is any free one.
    pub listen: SocketAddr,
    /// The scripts; none stands for the built-in ones.
    pub scripts: Option<Library>,
    /// Keys let in. Without any and without a file, every request is.
    pub keys: Vec<String>,
    /// A file of further keys, one per line, read at each request.
    pub key_file: Option<PathBuf>,
    /// Wait after each word that has no pace of its own.
    pub word_delay: Duration,
    /// What `GET /models` lists. Any model is answered.
    pub models: Vec<String>,
    /// How many requests are remembered.
    pub remember: usize,
    /// Whether each request is a line on standard error.
    pub log_requests: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            scripts: None,
            keys: Vec::new(),
            key_file: None,
            word_delay: Duration::ZERO,
            models: vec!["scripted-1".to_owned()],
            remember: 1000,
            log_requests: false,
        }
    }
}

/// A running server. Dropping it cuts all connections at once, as a killed process does.
#[derive(Debug)]
pub struct ScriptedModel {
    /// Where it listens.
    pub addr: SocketAddr,
    model: Arc<Model>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl ScriptedModel {
    /// Listens and begins to answer on the current runtime.
    ///
    /// # Errors
    /// The address is taken, or the scripts are refused.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let Options {
            listen,
            scripts,
            keys,
            key_file,
            word_delay,
            models,
            remember,
            log_requests,
        } = options;
        let library = scripts.map_or_else(Library::builtin, Ok)?;
        let mut nonce = [0_u8; 6];
        getrandom::fill(&mut nonce).map_err(StartError::Random)?;
        let nonce: String = nonce.iter().map(|byte| format!("{byte:02x}")).collect();
        let listener = TcpListener::bind(listen).await;
        let (listener, addr) = listener
            .and_then(|l| l.local_addr().map(|addr| (l, addr)))
            .map_err(|source| StartError::Listen {
                addr: listen,
                source,
            })?;
        let model = Arc::new(Model {
            library,
            keys: Keys {
                listed: keys,
                file: key_file,
            },
            word_delay,
            models,
            log_requests,
            log: Arc::new(RequestLog::new(remember)),
            counters: Counters::default(),
            ids: Ids::new(nonce),
        });
        let stop = CancellationToken::new();
        let task = tokio::spawn(accept(listener, router(Arc::clone(&model)), stop.clone()));
        Ok(Self {
            addr,
            model,
            stop,
            task: Some(task),
        })
    }

    /// The address with the usual prefix, as a provider's base URL.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }

    /// The newest requests, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.model.log.page().requests
    }

    /// Forgets the requests so far, and how often passing faults have come.
    pub fn clear_requests(&self) {
        self.model.clear();
    }

    /// Waits until the list of requests satisfies `enough`, and returns it. Has no time
    /// limit of its own; cancel safe.
    pub async fn wait_until(
        &self,
        enough: impl FnMut(&[RequestRecord]) -> bool,
    ) -> Vec<RequestRecord> {
        self.model.log.wait_until(enough).await
    }

    /// Stops accepting, lets open answers go on for two seconds, then cuts them.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            // It only ends by a panic or a cancelled runtime; both are as stopped as can be.
            let _ = task.await;
        }
    }
}

impl Drop for ScriptedModel {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, router: Router, stop: CancellationToken) {
    // Dropped with this task, the set aborts every connection.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    connections.spawn(serve(socket, router.clone(), stop.clone()));
                }
                // Out of file descriptors, most likely: wait for some to be closed.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(GRACE, all_ended).await;
}

async fn serve(socket: TcpStream, router: Router, stop: CancellationToken) {
    // Deltas are small and must not wait for one another.
    let _ = socket.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let router = router.clone();
        async move {
            let response = match router.oneshot(request.map(axum::body::Body::new)).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            // An error is the one way to make hyper close without an answer.
            match response.extensions().get::<DropConnection>() {
                Some(_) => Err(io::Error::other("as scripted")),
                None => Ok(response),
            }
        }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
