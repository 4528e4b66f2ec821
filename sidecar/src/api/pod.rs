//! `/events` and `/metrics`: the pod as a whole, for operator and Prometheus.

use super::error::ApiError;
use crate::app::App;
use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use contract::{ErrorBody, ErrorCode, egress::EgressReport, summary::Summary};
use http::{HeaderValue, header};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Interval};

/// How often a comment shows that the connection lives.
const COMMENT: Duration = Duration::from_secs(10);

/// The pod in brief: an SSE stream of `summary` events, now and after every change. Each is the whole
/// state; none is owed.
#[utoipa::path(get, path = "/events",
    responses((status = 200, content_type = "text/event-stream", body = Summary), (status = 401, body = ErrorBody)))]
pub(super) async fn summary(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let mut receiver = app.summary.get().cloned().ok_or_else(|| {
        ApiError::new(
            ErrorCode::AgentUnavailable,
            "the pod is only just starting: try again",
        )
    })?;
    receiver.mark_changed();
    let shutdown = app.shutdown.clone();
    let state = (receiver, tokio::time::interval(COMMENT), shutdown);
    let body = futures::stream::unfold(state, |(mut receiver, mut ticks, shutdown)| async move {
        let bytes = tokio::select! {
            () = shutdown.cancelled() => None,
            bytes = next(&mut receiver, &mut ticks) => bytes,
        }?;
        Some((Ok::<_, Infallible>(bytes), (receiver, ticks, shutdown)))
    });
    let mut response = Body::from_stream(body).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-transform"),
    );
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// What the agent was refused by the egress proxy for want of a rule, and the piece of a spec that would
/// allow it.
#[utoipa::path(get, path = "/egress",
    responses((status = 200, body = EgressReport), (status = 401, body = ErrorBody)))]
pub(super) async fn egress(State(app): State<Arc<App>>) -> Json<EgressReport> {
    Json(app.refused.report())
}

async fn next(receiver: &mut watch::Receiver<Summary>, ticks: &mut Interval) -> Option<Bytes> {
    tokio::select! {
        biased;
        changed = receiver.changed() => {
            changed.ok()?;
            let json = serde_json::to_string(&*receiver.borrow_and_update()).ok()?;
            Some(Bytes::from(format!("event: summary\ndata: {json}\n\n")))
        }
        _ = ticks.tick() => Some(Bytes::from_static(b":\n\n")),
    }
}

/// Metrics in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", responses((status = 200, content_type = "text/plain", body = String), (status = 401, body = ErrorBody)))]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let looked = {
        let app = Arc::clone(&app);
        // Counts the journal's files.
        tokio::task::spawn_blocking(move || app.metrics.look(&app)).await
    };
    looked.map_err(|error| ApiError::internal(&error))?;
    let text = app
        .metrics
        .text()
        .map_err(|error| ApiError::internal(&error))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok((
        [(header::CONTENT_TYPE, HeaderValue::from_static(kind))],
        text,
    )
        .into_response())
}
