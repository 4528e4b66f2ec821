//! `/healthz`, `/health`, `/ready`: open, and telling nothing but what is wrong.

use super::error::ApiError;
use crate::app::App;
use axum::{Json, extract::State};
use contract::{ErrorBody, ErrorCode, FieldError};
use journal::Health;
use serde_json::{Value, json};
use std::sync::Arc;

/// The process answers.
#[utoipa::path(get, path = "/healthz", responses((status = 200, description = "alive")))]
pub(super) async fn healthz() -> Json<Value> {
    Json(json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}))
}

/// The same as /healthz.
#[utoipa::path(get, path = "/health", responses((status = 200, description = "alive")))]
pub(super) async fn health() -> Json<Value> {
    healthz().await
}

/// Whether a turn could run now: workspace writable, agent answering, journal writable.
#[utoipa::path(get, path = "/ready",
    responses((status = 200, description = "ready"), (status = 503, body = ErrorBody, description = "names what is not")))]
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let mut wrong = Vec::new();
    match &*app.store.health().borrow() {
        Health::Ok => {}
        Health::Full => wrong.push(FieldError::new(
            "journal",
            "cannot be written: the volume is full",
        )),
        Health::Failed(_) => wrong.push(FieldError::new(
            "journal",
            "cannot be written: the volume failed",
        )),
    }
    let agent = app.agent.state().borrow().clone();
    if agent.ready {
        if let Err(error) = app.agent.check_workspace().await {
            wrong.push(FieldError::new("workspace", error.to_string()));
        }
    } else {
        let text = agent
            .message
            .unwrap_or_else(|| "does not answer yet".into());
        wrong.push(FieldError::new("agent", text));
    }
    if app.shutdown.is_cancelled() {
        wrong.push(FieldError::new("sidecar", "is stopping"));
    }
    if wrong.is_empty() {
        return Ok(Json(json!({"status": "ready"})));
    }
    let text: Vec<String> = wrong
        .iter()
        .map(|w| format!("{} {}", w.field, w.rule))
        .collect();
    Err(ApiError::new(
        ErrorCode::AgentUnavailable,
        format!("not ready: {}", text.join("; ")),
    ))
}
