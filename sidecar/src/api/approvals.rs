//! `/sessions/{id}/approvals`: what waits for somebody's consent.

use super::{body, error::ApiError, path::InPath, session};
use crate::{
    app::App,
    auth::Caller,
    store::{
        record::{Always, Note},
        session::now,
    },
};
use axum::{Extension, Json, body::Body, extract::State};
use contract::{
    ErrorBody, ErrorCode, Event, EventBody,
    approval::{Answer, ApprovalList, Decision},
    event::{ApprovalEvent, ApprovalState, MAIN_AGENT},
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
    let mut approvals: Vec<_> = session.state().pending.values().cloned().collect();
    approvals.sort_by_key(|approval| approval.since);
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
    let (approval, turn) = {
        let mut state = session.state();
        // Removed under the lock: of two answers at once one is late.
        let approval = state.pending.remove(&approval_id).ok_or_else(|| {
            ApiError::new(
                ErrorCode::ApprovalNotFound,
                "nothing waits under this id: it was answered, or its turn is over",
            )
        })?;
        (approval, state.turn)
    };
    if decision == Decision::Always {
        let always = Always {
            permission: approval.permission.clone(),
            patterns: approval.patterns.clone(),
            decision: Decision::Once,
        };
        session.note(Note::Always(always.clone()))?;
        session.state().always.push(always);
    }
    let state = if decision == Decision::Reject {
        ApprovalState::Rejected
    } else {
        ApprovalState::Approved
    };
    let event = ApprovalEvent {
        approval_id: approval_id.clone(),
        state,
        permission: approval.permission,
        patterns: approval.patterns,
        call_id: approval.call_id,
        by: Some(caller.subject),
        message: message.clone(),
    };
    let event = Event {
        turn,
        ts: now(),
        agent: MAIN_AGENT.into(),
        body: EventBody::Approval(event),
    };
    let ticket = session.append(event)?;
    app.store.durable(&session, ticket).await?;
    let reply = if decision == Decision::Reject {
        Decision::Reject
    } else {
        Decision::Once
    };
    let told = app
        .agent
        .opencode()
        .reply_permission(&approval_id, reply, message.as_deref())
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
