//! `/checkpoints`: the workspace as it was.

use super::{
    body,
    error::ApiError,
    path::InPath,
    sessions::{going_on, idempotency, repeated_session},
};
use crate::{
    agent::runner::DiffBounds,
    app::{App, NewSession, TurnRequest},
    auth::Caller,
    checkpoints::{self, Cause, Failure},
    store::BeginError,
};
use axum::{
    Extension, Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use contract::{
    ErrorBody, ErrorCode, FieldError,
    checkpoint::{
        Branch, Checkpoint, CheckpointDiff, CheckpointList, CreateBranch, Fork, Restored,
    },
    session::Session,
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use std::sync::Arc;

/// In the place of an id: a checkpoint of nothing.
const EMPTY: &str = "empty";
/// Most files of a comparison, and bytes of all their hunks.
const DIFF: DiffBounds = DiffBounds {
    files: 2000,
    bytes: 8 << 20,
};
/// Largest patch, in bytes: it is held in memory until it is known to be whole.
const PATCH_MAX: u64 = 32 << 20;

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        Self::new(failure.code, failure.message)
    }
}

/// The checkpoint of an id in a path.
fn find(app: &App, id: &str) -> Result<Checkpoint, ApiError> {
    let digits = id.strip_prefix('c').unwrap_or_default();
    let is_id = (1..=20).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    if !is_id {
        return Err(ApiError::invalid(vec![FieldError::new(
            "checkpoint_id",
            "must be c and a number, as in GET /checkpoints",
        )]));
    }
    Ok(checkpoints::find(app, id)?)
}

fn root(app: &App, id: &str) -> Result<Option<String>, ApiError> {
    if id == EMPTY {
        return Ok(None);
    }
    find(app, id).map(|checkpoint| Some(checkpoint.root))
}

/// All checkpoints that are kept, oldest first.
#[utoipa::path(get, path = "/checkpoints", responses((status = 200, body = CheckpointList), (status = 401, body = ErrorBody)))]
pub(super) async fn list(State(app): State<Arc<App>>) -> Json<CheckpointList> {
    let last_error = app.checkpoints.last_error();
    let book = app.store.book();
    Json(CheckpointList {
        checkpoints: book.kept().to_vec(),
        store_bytes: book.store_bytes(),
        last_error,
    })
}

/// Take one now. While a turn runs it is marked `mixed`.
#[utoipa::path(post, path = "/checkpoints",
    responses((status = 201, body = Checkpoint), (status = 401, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 503, body = ErrorBody), (status = 507, body = ErrorBody)))]
pub(super) async fn take(
    State(app): State<Arc<App>>,
    body: Body,
) -> Result<(StatusCode, Json<Checkpoint>), ApiError> {
    body::none(body).await?;
    going_on(&app)?;
    let taken = checkpoints::begin(&app, Cause::Manual).await;
    let checkpoint = taken.map_err(|error| ApiError::internal(&error))??;
    Ok((StatusCode::CREATED, Json(checkpoint)))
}

/// What differs between two checkpoints, file by file; `empty` stands for one of nothing. What lies in a
/// `.git` is left out.
#[utoipa::path(get, path = "/checkpoints/{from}/diff/{to}", params(("from" = String, Path), ("to" = String, Path)),
    responses((status = 200, body = CheckpointDiff), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn diff(
    State(app): State<Arc<App>>,
    InPath((from, to)): InPath<(String, String)>,
) -> Result<Json<CheckpointDiff>, ApiError> {
    let (from, to) = (root(&app, &from)?, root(&app, &to)?);
    let _reading = app.checkpoints.reading().await?;
    let diff = app.agent.runner().diff_checkpoints(from, to, DIFF).await;
    Ok(Json(diff.map_err(Failure::from)?))
}

/// The same as a patch for `git apply`, binary files included; at most 32 MiB.
#[utoipa::path(get, path = "/checkpoints/{from}/patch/{to}", params(("from" = String, Path), ("to" = String, Path)),
    responses((status = 200, content_type = "text/x-patch", body = String), (status = 400, body = ErrorBody),
        (status = 401, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn patch(
    State(app): State<Arc<App>>,
    InPath((from, to)): InPath<(String, String)>,
) -> Result<Response, ApiError> {
    let (from, to) = (root(&app, &from)?, root(&app, &to)?);
    let _reading = app.checkpoints.reading().await?;
    let runner = app.agent.runner();
    let patch = runner.patch_checkpoints(from, to, PATCH_MAX).await;
    let patch = patch.map_err(Failure::from)?;
    let kind = HeaderValue::from_static("text/x-patch");
    Ok(([(header::CONTENT_TYPE, kind)], patch).into_response())
}

/// Bring the workspace back, all of it or nothing. What is there before becomes a checkpoint of its own;
/// what git ignores and the checkpoint does not have stays. 409 while a turn runs in the pod.
#[utoipa::path(post, path = "/checkpoints/{checkpoint_id}/restore", params(("checkpoint_id" = String, Path)),
    responses((status = 200, body = Restored), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 503, body = ErrorBody), (status = 507, body = ErrorBody)))]
pub(super) async fn restore(
    State(app): State<Arc<App>>,
    InPath(id): InPath<String>,
    body: Body,
) -> Result<Json<Restored>, ApiError> {
    find(&app, &id)?;
    body::none(body).await?;
    going_on(&app)?;
    Ok(Json(checkpoints::restore(&app, &id).await?))
}

/// Begin a new session with the conversation as it was at the checkpoint and, unless `restore` is false, the
/// workspace too, which all sessions of the pod share: then 409 while a turn runs.
#[utoipa::path(post, path = "/checkpoints/{checkpoint_id}/fork", request_body = Fork,
    params(("checkpoint_id" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = Session), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 503, body = ErrorBody), (status = 507, body = ErrorBody)))]
pub(super) async fn fork(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(trace): Extension<super::TraceParent>,
    InPath(id): InPath<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Session>), ApiError> {
    let (object, bytes) = body::read(&headers, body).await?;
    let fork = body::fork(object)?;
    super::name_session(&fork.session_id);
    // The same body for another checkpoint is another request.
    let idempotency = idempotency(&headers, &[id.as_bytes(), b"\n", &bytes].concat())?;
    let _first = app.checkpoints.fork().await?;
    if let Some(told) = repeated_session(&app, &fork.session_id, idempotency.as_ref()).await? {
        return Ok((StatusCode::CREATED, Json(told)));
    }
    let checkpoint = find(&app, &id)?;
    going_on(&app)?;
    if app.store.get(&fork.session_id).is_some() {
        return Err(BeginError::Exists.into());
    }
    app.check_model(fork.model_config.as_ref())?;
    let conversation = checkpoints::conversation(&app, &checkpoint).await?;
    if fork.restore != Some(false)
        && let Err(failure) = checkpoints::restore(&app, &id).await
    {
        if let Some(copy) = &conversation {
            app.agent.opencode().forget_session(copy).await;
        }
        return Err(failure.into());
    }
    let new_id = fork.session_id.clone();
    let new = NewSession {
        id: fork.session_id,
        model_config: fork.model_config,
        system_prompt: fork.system_prompt,
        conversation: conversation.clone(),
    };
    let request = TurnRequest {
        prompt: fork.prompt,
        author: caller.subject,
        idempotency,
        trace: trace.0,
    };
    let session = match app.create_session(new, request).await {
        Ok(session) => session,
        Err(error) => {
            // What was not recorded in time may be there all the same, and needs its conversation.
            let begun = app.store.get(&new_id);
            let needs = |copy: &String| {
                begun.is_some_and(|session| session.created.opencode_session == *copy)
            };
            if let Some(copy) = conversation.filter(|copy| !needs(copy)) {
                app.agent.opencode().forget_session(&copy).await;
            }
            return Err(error.into());
        }
    };
    tracing::info!(session_id = %session.id(), checkpoint_id = id, "forked");
    Ok((StatusCode::CREATED, Json(app.told(&session))))
}

/// Write a checkpoint as a branch into the workspace's own repository: objects and one new ref. Working files,
/// index and HEAD stay as they are.
#[utoipa::path(post, path = "/checkpoints/{checkpoint_id}/branch", request_body = CreateBranch,
    params(("checkpoint_id" = String, Path)),
    responses((status = 201, body = Branch), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 503, body = ErrorBody), (status = 507, body = ErrorBody)))]
pub(super) async fn branch(
    State(app): State<Arc<App>>,
    InPath(id): InPath<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Branch>), ApiError> {
    let (object, _) = body::read(&headers, body).await?;
    let CreateBranch { name, message } = body::branch(object)?;
    let checkpoint = find(&app, &id)?;
    let message = message.unwrap_or_else(|| format!("Checkpoint {id}"));
    let time = checkpoint.created_at.as_second();
    let runner = app.agent.runner();
    let made = runner
        .branch_checkpoint(checkpoint.root, name.clone(), message, time)
        .await;
    let (commit, parent) = made.map_err(Failure::from).map_err(|failure| {
        if failure.code == ErrorCode::InvalidRequest {
            return ApiError::invalid(vec![FieldError::new(
                "name",
                "must be a name that git takes for a branch",
            )]);
        }
        failure.into()
    })?;
    let branch = Branch {
        name,
        commit,
        parent,
    };
    Ok((StatusCode::CREATED, Json(branch)))
}
