//! Connections of the proxy: bounded in number, in the size of a head, in time, and one request
//! each.

use super::{guard, refusal::Refusal, target::Api};
use axum::{Router, body::Body};
use http::Request;
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{io::Cursor, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// Longest time for a head to arrive.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long running calls may go on after shutdown: turns were ended before, so there are none.
const DRAIN_TIME: Duration = Duration::from_secs(2);
/// Pause after a failed accept, as when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The port that a request came in by; set by [`serve`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalPort(pub(crate) u16);

/// Serves until `shutdown`, then lets running calls end for a moment and cuts the rest.
pub(crate) async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let port = listener
        .local_addr()
        .map(|addr| LocalPort(addr.port()))
        .ok();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let permit = Arc::clone(&room).acquire_owned().await.ok()?;
            Some((listener.accept().await, permit))
        };
        let (accepted, permit) = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            Some(accepted) = accepted => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let router = router.clone();
                connections.spawn(async move {
                    connection(stream, router, port).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for a model call");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(DRAIN_TIME, all).await.is_err() {
        tracing::info!(calls = connections.len(), "cutting model calls");
    }
    connections.shutdown().await;
}

async fn connection(mut stream: TcpStream, router: Router, port: Option<LocalPort>) {
    // Best effort: without it small chunks wait, nothing breaks.
    let _ = stream.set_nodelay(true);
    let head = match timeout(HEAD_TIME, guard::read_head(&mut stream)).await {
        Ok(Ok(head)) => head,
        Ok(Err(guard::Bad::Gone)) | Err(_) => return,
        Ok(Err(guard::Bad::Head(rule))) => {
            tracing::warn!(rule, "refused a request to the model proxy");
            refuse(stream, rule).await;
            return;
        }
    };
    let (read, write) = stream.into_split();
    let io = tokio::io::join(Cursor::new(head).chain(read), write);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        if let Some(port) = port {
            request.extensions_mut().insert(port);
        }
        router.clone().oneshot(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(HEAD_TIME)
        .serve_connection(TokioIo::new(io), service)
        .await;
    if let Err(error) = served {
        // OpenCode going away is daily business.
        tracing::debug!(%error, "a connection of the model proxy broke");
    }
}

/// Answers what the HTTP server must not see.
async fn refuse(mut stream: TcpStream, rule: &str) {
    let response = Refusal::bad_request(rule).into_response(Api::Chat);
    let Ok(body) = response.into_body().collect().await else {
        return;
    };
    let body = body.to_bytes();
    let mut answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(&body);
    let goodbye = async {
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would reset the connection before the answer is read.
        let mut rest = (&mut stream).take(1024 * 1024);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    let _ = timeout(Duration::from_secs(1), goodbye).await;
}
