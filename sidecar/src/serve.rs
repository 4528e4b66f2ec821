//! An HTTP/1 server with bounds that axum's own does not have: a head that does not arrive, too
//! many connections, a shutdown that waits for ever.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use socket2::SockRef;
use std::{sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 4096;
/// Longest time for a request's head.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Largest head, in bytes.
const HEAD_MAX: usize = 64 * 1024;
/// Most bytes that the kernel holds for a connection beyond those on their way.
const UNSENT: u32 = 32 * 1024;
/// Longest time for open connections to end after `shutdown`.
const END_TIME: Duration = Duration::from_secs(5);

/// Serves until `shutdown`, then lets requests under way end, for at most five seconds.
pub(crate) async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    while let Some(Ok(place)) = shutdown
        .run_until_cancelled(Arc::clone(&places).acquire_owned())
        .await
    {
        let stream = match shutdown.run_until_cancelled(listener.accept()).await {
            Some(Ok((stream, _))) => stream,
            Some(Err(error)) => {
                // Out of file descriptors or a connection that was gone again: the next may do.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            None => break,
        };
        // Events are small and matter now.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was refused");
        }
        // What a reader does not take stays here, where it is counted, and not in the kernel's buffers, which
        // may grow to MiB for each connection and count for the container too.
        if let Err(error) = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT) {
            tracing::debug!(%error, "TCP_NOTSENT_LOWAT was refused");
        }
        let service = TowerToHyperService::new(router.clone());
        let shutdown = shutdown.clone();
        connections.spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIME)
                .max_buf_size(HEAD_MAX)
                .serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            let result = tokio::select! {
                result = connection.as_mut() => result,
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = result {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    }
    connections.close();
    if tokio::time::timeout(END_TIME, connections.wait())
        .await
        .is_err()
    {
        tracing::info!(
            open = connections.len(),
            "connections were still open at the end"
        );
    }
}
