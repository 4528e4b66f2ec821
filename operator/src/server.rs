//! Health and metrics over HTTP: `/healthz`, `/readyz`, `/metrics`.

use crate::metrics::Metrics;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Set once the operator works: it leads and its caches are filled, or it waits to lead.
#[derive(Clone, Debug, Default)]
pub struct Ready(Arc<AtomicBool>);

impl Ready {
    /// From now on `/readyz` answers 200.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// All routes.
pub fn router(metrics: Metrics, ready: Ready) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(text))
        .with_state((metrics, ready))
}

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    ready: Ready,
    stop: CancellationToken,
) -> std::io::Result<()> {
    axum::serve(listener, router(metrics, ready))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

async fn readyz(State((_, ready)): State<(Metrics, Ready)>) -> impl IntoResponse {
    if ready.0.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok\n")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "caches are not filled yet\n",
        )
    }
}

async fn text(State((metrics, _)): State<(Metrics, Ready)>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics.text())
}
