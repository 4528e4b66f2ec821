//! Every error answer.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use contract::{ErrorBody, ErrorCode, FieldError, error::ErrorDetails};
use http::{HeaderValue, StatusCode, header::RETRY_AFTER};

use crate::{
    app::StartError,
    store::{
        BeginError,
        reader::{FutureCursor, ReaderError},
        session::JournalError,
    },
};

/// An error answer in the making.
#[derive(Debug)]
pub(crate) struct ApiError {
    code: ErrorCode,
    message: String,
    fields: Vec<FieldError>,
}

impl ApiError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            fields: Vec::new(),
        }
    }

    /// Names every wrong field.
    pub(crate) fn invalid(fields: Vec<FieldError>) -> Self {
        let all: Vec<String> = fields
            .iter()
            .map(|f| format!("{} {}", f.field, f.rule))
            .collect();
        Self {
            code: ErrorCode::InvalidRequest,
            message: all.join("; "),
            fields,
        }
    }

    /// Names one more wrong field.
    pub(crate) fn and(mut self, field: FieldError) -> Self {
        self.fields.push(field);
        Self::invalid(self.fields)
    }

    pub(crate) fn session_not_found(id: &str) -> Self {
        Self::new(
            ErrorCode::SessionNotFound,
            format!("there is no session {id}; GET /sessions lists all"),
        )
    }

    /// A fault of ours: logged here, once; the answer says no more than where to look.
    pub(crate) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut chain = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            chain = format!("{chain}: {error}");
            source = error.source();
        }
        tracing::error!(error = chain, "internal error");
        Self::new(
            ErrorCode::Internal,
            "internal error; the sidecar's log has it under this x-request-id",
        )
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = ErrorBody {
            error: self.message,
            details: ErrorDetails {
                code: self.code,
                fields: self.fields,
            },
            timestamp: crate::store::session::now(),
        };
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from_static("2"));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(
                http::header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer"),
            );
        }
        response
    }
}

impl From<JournalError> for ApiError {
    fn from(error: JournalError) -> Self {
        Self::new(
            ErrorCode::JournalUnavailable,
            format!("{error}; free space on the session's volume"),
        )
    }
}

impl From<StartError> for ApiError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Model(fields) => Self::invalid(fields),
            StartError::Begin(error) => error.into(),
        }
    }
}

impl From<BeginError> for ApiError {
    fn from(error: BeginError) -> Self {
        match error {
            BeginError::Exists => Self::new(
                ErrorCode::SessionExists,
                "a session with this id exists or existed; ids are never used again: choose another, or POST \
                 /sessions/{session_id}/turns to go on with this one",
            ),
            BeginError::TurnRunning => Self::new(
                ErrorCode::TurnRunning,
                "a turn of this session still runs: wait for its last event, or DELETE /sessions/{session_id} to cancel it",
            ),
            BeginError::TooMany => Self::new(
                ErrorCode::TooManySessions,
                "as many turns run as limits.maxConcurrentSessions allows: try again when one has ended",
            ),
            BeginError::Journal(error) => error.into(),
        }
    }
}

impl From<FutureCursor> for ApiError {
    fn from(error: FutureCursor) -> Self {
        Self::new(ErrorCode::InvalidCursor, format!("the cursor {error}"))
    }
}

impl From<ReaderError> for ApiError {
    fn from(error: ReaderError) -> Self {
        Self::internal(&error)
    }
}
