//! `/sessions/{id}/approvals`: what waits for somebody's consent.

use super::{body, error::ApiError, path::InPath, session};
use crate::{app::App, auth::Caller, store::session::Settle};
use axum::{Extension, Json, body::Body, extract::State};
use contract::{
    ErrorBody, ErrorCode,
    approval::{Answer, ApprovalList},
    event::DecidedBy,
};
use http::{HeaderMap, StatusCode};
use std::sync::Arc;

/// Approvals that wait, oldest first.
#[utoipa::path(get, path = "/sessions/{session_id}/approvals", params(("session_id" = String, Path)),
    responses((status = 200, body = ApprovalList), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    InPath(id): InPath<String>,
) -> Result<Json<ApprovalList>, ApiError> {
    let session = session(&app, &id)?;
    let approvals = session.state().asks.list(session.id());
    Ok(Json(ApprovalList { approvals }))
}

/// Answer one. The answer is recorded before the agent hears it.
#[utoipa::path(post, path = "/sessions/{session_id}/approvals/{approval_id}", request_body = Answer,
    params(("session_id" = String, Path), ("approval_id" = String, Path)),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn answer(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    InPath((id, approval_id)): InPath<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let session = session(&app, &id)?;
    let (object, _) = body::read(&headers, body).await?;
    let Answer { decision, message } = body::answer(object)?;
    let settle = Settle {
        decision,
        decided: DecidedBy::Caller,
        by: caller.subject,
        message,
    };
    let ticket = session.settle(&approval_id, &settle)?.ok_or_else(|| {
        ApiError::new(
            ErrorCode::ApprovalNotFound,
            "nothing waits under this id: it was answered, or its turn is over",
        )
    })?;
    app.metrics.watch.settled(&settle);
    app.store.durable(&session, ticket).await?;
    let answered = settle.answered();
    let told = app
        .agent
        .opencode()
        .reply_permission(&approval_id, answered.decision, answered.message.as_deref())
        .await;
    app.changed();
    match told {
        // The turn itself may have been faster: it looks for asks that are answered.
        Err(error) if !error.is_not_found() => {
            tracing::warn!(session_id = %session.id(), approval_id, %error, "an answer did not reach OpenCode");
            Err(ApiError::new(
                ErrorCode::AgentUnavailable,
                "the answer is recorded, but the agent could not be told; it is told when it is back",
            ))
        }
        _ => Ok(StatusCode::NO_CONTENT),
    }
}
