//! `/sessions`: begin, list, look, prompt again, cancel.

use super::{body, error::ApiError, path::InPath, session as find};
use crate::{
    app::{App, NewSession, StartError, TurnRequest},
    auth::Caller,
    store::{BeginError, record::Idempotency, session},
};
use axum::{Extension, Json, body::Body, extract::State};
use contract::{
    ErrorBody, ErrorCode, SessionId,
    session::{CreateSession, CreateTurn, Session, SessionList},
};
use http::{HeaderMap, StatusCode};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Begin a session with its first turn. Answers as soon as it is recorded, even while the agent
/// still starts. With `Idempotency-Key` the same request may be sent again.
#[utoipa::path(post, path = "/sessions", request_body = CreateSession,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 128 printable characters")),
    responses((status = 201, body = Session), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 413, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(trace): Extension<super::TraceParent>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Session>), ApiError> {
    let (object, bytes) = body::read(&headers, body).await?;
    let create = body::create_session(object)?;
    super::name_session(&create.session_id);
    let idempotency = idempotency(&headers, &bytes)?;
    if let Some(session) = repeated_session(&app, &create.session_id, idempotency.as_ref()).await? {
        return Ok((StatusCode::CREATED, Json(session)));
    }
    going_on(&app)?;
    let request = TurnRequest {
        prompt: create.prompt,
        author: caller.subject,
        idempotency,
        trace: trace.0,
    };
    let id = create.session_id.clone();
    let wanted = request.idempotency.clone();
    let started = app
        .create_session(
            NewSession {
                id: create.session_id,
                model_config: create.model_config,
                system_prompt: create.system_prompt,
                conversation: None,
            },
            request,
        )
        .await;
    match started {
        Ok(session) => Ok((StatusCode::CREATED, Json(app.told(&session)))),
        Err(error) => {
            let exists = matches!(error, StartError::Begin(BeginError::Exists));
            if exists {
                app.store.made(&id).await;
            }
            // The same request may have come at the same time and been faster.
            if exists && let Some(session) = repeated_session(&app, &id, wanted.as_ref()).await? {
                return Ok((StatusCode::CREATED, Json(session)));
            }
            Err(error.into())
        }
    }
}

/// Prompt a session again.
#[utoipa::path(post, path = "/sessions/{session_id}/turns", request_body = CreateTurn,
    params(("session_id" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = Session), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn turn(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(trace): Extension<super::TraceParent>,
    InPath(id): InPath<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Session>), ApiError> {
    let session = find(&app, &id)?;
    let (object, bytes) = body::read(&headers, body).await?;
    let create = body::create_turn(object)?;
    let idempotency = idempotency(&headers, &bytes)?;
    if let Some(session) = repeated(&app, &session, idempotency.as_ref(), None).await? {
        return Ok((StatusCode::CREATED, Json(session)));
    }
    going_on(&app)?;
    if create.api_key.is_some() && session.created.own_key {
        session.state().request_key = create.api_key;
    }
    if session.key_required() {
        return Err(ApiError::new(
            ErrorCode::KeyRequired,
            "the key that came with this session is never stored and was lost with a restart: send `api_key` again",
        ));
    }
    let request = TurnRequest {
        prompt: create.prompt,
        author: caller.subject,
        idempotency,
        trace: trace.0,
    };
    let wanted = request.idempotency.clone();
    if let Err(error) = app.create_turn(&session, request).await {
        if matches!(error, StartError::Begin(BeginError::TurnRunning))
            && let Some(session) = repeated(&app, &session, wanted.as_ref(), None).await?
        {
            return Ok((StatusCode::CREATED, Json(session)));
        }
        return Err(error.into());
    }
    Ok((StatusCode::CREATED, Json(app.told(&session))))
}

/// All sessions, oldest first.
#[utoipa::path(get, path = "/sessions", responses((status = 200, body = SessionList), (status = 401, body = ErrorBody)))]
pub(super) async fn list(State(app): State<Arc<App>>) -> Json<SessionList> {
    Json(SessionList {
        sessions: app
            .store
            .all()
            .iter()
            .map(|session| app.told(session))
            .collect(),
    })
}

/// Where a session stands; `reason` says in one sentence what it does or why nothing happens.
#[utoipa::path(get, path = "/sessions/{session_id}/status", params(("session_id" = String, Path)),
    responses((status = 200, body = Session), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn status(
    State(app): State<Arc<App>>,
    InPath(id): InPath<String>,
) -> Result<Json<Session>, ApiError> {
    Ok(Json(app.told(&*find(&app, &id)?)))
}

/// Cancel the turn under way. Answers when the agent is idle again; the history stays.
#[utoipa::path(delete, path = "/sessions/{session_id}", params(("session_id" = String, Path)),
    responses((status = 204), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    InPath(id): InPath<String>,
) -> Result<StatusCode, ApiError> {
    let session = find(&app, &id)?;
    let running = session.state().running.clone();
    if let Some(running) = running {
        running.cancel.cancel();
        running.ended.cancelled().await;
    }
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn going_on(app: &App) -> Result<(), ApiError> {
    if app.shutdown.is_cancelled() {
        return Err(ApiError::new(
            ErrorCode::ShuttingDown,
            "the pod is stopping: try again when it is back",
        ));
    }
    Ok(())
}

pub(super) fn idempotency(
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Option<Idempotency>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let key = value
        .to_str()
        .ok()
        .filter(|key| (1..=128).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()));
    match key {
        Some(key) => Ok(Some(Idempotency {
            key: key.to_owned(),
            body: Sha256::digest(body)
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect(),
        })),
        None => Err(ApiError::invalid(vec![contract::FieldError::new(
            "Idempotency-Key",
            "must be 1 to 128 printable ASCII characters without spaces",
        )])),
    }
}

/// The answer to a request that came before and is recorded; an error where its body was another.
async fn repeated(
    app: &App,
    session: &session::Session,
    wanted: Option<&Idempotency>,
    turn: Option<u32>,
) -> Result<Option<Session>, ApiError> {
    let Some(wanted) = wanted else {
        return Ok(None);
    };
    let (known, begun) = {
        let state = session.state();
        (state.idempotency.get(&wanted.key).cloned(), state.begun)
    };
    match known {
        Some((known, of)) if known == *wanted && turn.is_none_or(|turn| turn == of) => {
            app.store.durable(session, begun).await?;
            Ok(Some(app.told(session)))
        }
        Some(_) => Err(ApiError::new(
            ErrorCode::IdempotencyMismatch,
            "this Idempotency-Key came before with another body: use a new key for a new request",
        )),
        None => Ok(None),
    }
}

/// The same for the request that began a session.
pub(super) async fn repeated_session(
    app: &App,
    id: &SessionId,
    wanted: Option<&Idempotency>,
) -> Result<Option<Session>, ApiError> {
    match app.store.get(id) {
        Some(session) => repeated(app, &session, wanted, Some(1)).await,
        None => Ok(None),
    }
}
