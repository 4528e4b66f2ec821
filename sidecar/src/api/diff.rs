//! `GET /sessions/{id}/diff`: what the last turn changed.

use super::{error::ApiError, path::InPath, session};
use crate::app::App;
use axum::{Json, extract::State};
use contract::{ErrorBody, ErrorCode, session::Diff};
use std::sync::Arc;

/// What the last turn changed in the workspace, as OpenCode saw it.
#[utoipa::path(get, path = "/sessions/{session_id}/diff", params(("session_id" = String, Path)),
    responses((status = 200, body = Diff), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn diff(
    State(app): State<Arc<App>>,
    InPath(id): InPath<String>,
) -> Result<Json<Diff>, ApiError> {
    let session = session(&app, &id)?;
    let (turn, message_id) = {
        let state = session.state();
        (state.turn, state.message_id.clone())
    };
    let files = app
        .agent
        .opencode()
        .diff(&session.created.opencode_session, &message_id)
        .await
        .map_err(|error| {
            ApiError::new(
                ErrorCode::AgentUnavailable,
                format!("the agent does not tell its changes now: {error}"),
            )
        })?;
    Ok(Json(Diff { turn, files }))
}
