//! The session API on port 3003: one list of routes, a file per resource.

mod approvals;
mod body;
mod checkpoints;
mod diff;
mod error;
mod events;
mod health;
mod path;
mod pod;
mod sessions;
mod stream;

use crate::{app::App, auth};
use axum::{
    extract::{MatchedPath, Request, State},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
};
use bootstrap::trace::{Kind, Parent, Span};
use contract::{Cursor, ErrorCode, SessionId};
use error::ApiError;
use http::{HeaderMap, HeaderValue, Method};
use opentelemetry::KeyValue;
use std::{sync::Arc, time::Instant};
use tracing::{Instrument, field};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

/// Paths that want no token.
const OPEN: &[&str] = &["/healthz", "/health", "/ready"];
/// Header that joins an answer, the log and a report.
const REQUEST_ID: &str = "x-request-id";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "opencode-operator sidecar",
        description = "Sessions with a coding agent in one pod. Every path but /healthz, /health and /ready wants `Authorization: Bearer`.",
        license(name = "Apache-2.0"),
    ),
    components(schemas(contract::Event, contract::summary::Summary))
)]
struct Document;

fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(sessions::create, sessions::list))
        .routes(routes!(sessions::cancel))
        .routes(routes!(sessions::status))
        .routes(routes!(sessions::turn))
        .routes(routes!(stream::stream))
        .routes(routes!(events::events))
        .routes(routes!(approvals::list))
        .routes(routes!(approvals::answer))
        .routes(routes!(diff::diff))
        .routes(routes!(checkpoints::list, checkpoints::take))
        .routes(routes!(checkpoints::diff))
        .routes(routes!(checkpoints::patch))
        .routes(routes!(checkpoints::restore))
        .routes(routes!(checkpoints::fork))
        .routes(routes!(checkpoints::branch))
        .routes(routes!(pod::summary))
        .routes(routes!(pod::metrics))
        .routes(routes!(pod::egress))
        .routes(routes!(health::healthz))
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
}

/// The API. Tests call the same.
pub(crate) fn router(app: Arc<App>) -> axum::Router {
    let (router, _) = routes().split_for_parts();
    router
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn(to_its_end))
        // Within the authentication: who has no token cannot fill the queue of spans.
        .layer(from_fn_with_state(Arc::clone(&app), traced))
        .layer(from_fn_with_state(Arc::clone(&app), authenticate))
        .layer(from_fn_with_state(Arc::clone(&app), request_id))
        .with_state(app)
}

/// The OpenAPI document as committed in docs/openapi.json.
#[must_use]
pub fn openapi_json() -> String {
    let (_, document) = routes().split_for_parts();
    let mut json = document
        .to_pretty_json()
        .expect("the document is plain data");
    json.push('\n');
    json
}

async fn not_found() -> ApiError {
    ApiError::new(
        ErrorCode::NotFound,
        "there is no such path; docs/openapi.json lists all",
    )
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(
        ErrorCode::MethodNotAllowed,
        "this path does not take this method",
    )
}

async fn authenticate(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    if OPEN.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    match auth::check(&app, request.method(), request.uri().path(), request.headers()) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(auth::Refused::Unauthorized) => ApiError::new(
            ErrorCode::Unauthorized,
            "send `Authorization: Bearer <token>` with a valid token of this pod or its shared secret",
        )
        .into_response(),
        Err(auth::Refused::Forbidden) => {
            ApiError::new(ErrorCode::Forbidden, "the token's scopes do not allow this").into_response()
        }
    }
}

/// Lets what changes something run to its end: a server drops the handler of a caller that is gone,
/// and a turn that is recorded and not started, or an answer that the agent never hears, would be
/// left behind.
async fn to_its_end(request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let handler = tokio::spawn(next.run(request).in_current_span());
    handler.await.unwrap_or_else(|error| {
        tracing::error!(%error, "a request's handler panicked");
        ApiError::new(ErrorCode::Internal, "the request failed; the log has more").into_response()
    })
}

/// The span of the request, as a `traceparent` for what it begins; `None`: traces are off.
#[derive(Clone, Debug)]
struct TraceParent(Option<String>);

/// The pattern of a request's path, not what callers put into it: that may be anything.
fn route(request: &Request) -> String {
    let matched = request.extensions().get::<MatchedPath>();
    matched.map_or("-", MatchedPath::as_str).to_owned()
}

/// The span of a request that changes something, within the caller's trace. A malformed or repeated
/// header begins a trace of its own.
fn request_span(app: &App, request: &Request) -> Span {
    if *request.method() == Method::GET || OPEN.contains(&request.uri().path()) {
        return Span::default();
    }
    let mut given = request.headers().get_all("traceparent").iter();
    let parent = match (given.next(), given.next()) {
        (Some(value), None) => value.to_str().ok().and_then(Parent::parse),
        _ => None,
    };
    let (method, route) = (request.method().as_str(), route(request));
    app.calls.traces().begin(
        || format!("{method} {route}"),
        Kind::Server,
        parent,
        None,
        || {
            vec![
                KeyValue::new("http.request.method", method.to_owned()),
                KeyValue::new("http.route", route.clone()),
            ]
        },
    )
}

/// Opens the request's span and tells the handler of it.
async fn traced(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let mut trace = request_span(&app, &request);
    let parent = trace.parent().map(|parent| parent.header());
    request.extensions_mut().insert(TraceParent(parent));
    let response = next.run(request).await;
    let status = response.status();
    trace.set(|| {
        vec![KeyValue::new(
            "http.response.status_code",
            i64::from(status.as_u16()),
        )]
    });
    if status.is_server_error() {
        trace.failed("5xx");
    }
    response
}

/// Takes the caller's request id if it is a short plain one, else makes one. Every log line of the
/// request has it; so has the line that says how it was answered.
async fn request_id(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()))
        .map(str::to_owned);
    let id = given.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let method = request.method().clone();
    let open = OPEN.contains(&request.uri().path());
    let route = route(&request);
    let span = tracing::info_span!("request", request_id = id, session_id = field::Empty);
    let began = Instant::now();
    let mut response = { next.run(request).instrument(span.clone()).await };
    let status = response.status();
    app.metrics.answered(&method, status);
    span.in_scope(|| {
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let status = status.as_u16();
        match status {
            _ if open => {}
            401 | 500.. => {
                tracing::warn!(%method, route, status, ms, "request failed");
            }
            _ if method == Method::GET => {
                tracing::debug!(%method, route, status, ms, "request");
            }
            _ => tracing::info!(%method, route, status, ms, "request"),
        }
    });
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// From here on the request's log lines name the session.
fn name_session(id: &SessionId) {
    tracing::Span::current().record("session_id", id.as_str());
}

/// The session of a path.
fn session(app: &App, id: &str) -> Result<Arc<crate::store::session::Session>, ApiError> {
    let parsed = SessionId::new(id).map_err(|error| {
        ApiError::invalid(vec![contract::FieldError::new(
            "session_id",
            error.to_string(),
        )])
    })?;
    name_session(&parsed);
    app.store
        .get(&parsed)
        .ok_or_else(|| ApiError::session_not_found(id))
}

/// The cursor of a request: `Last-Event-ID`, which an EventSource renews, before `?after=`.
fn cursor(headers: &HeaderMap, after: Option<&str>) -> Result<Option<Cursor>, ApiError> {
    let header = match headers.get("last-event-id") {
        Some(value) => Some(
            value
                .to_str()
                .map_err(|_| invalid_cursor("Last-Event-ID"))?,
        ),
        None => None,
    };
    let (name, text) = match (header.filter(|text| !text.is_empty()), after) {
        (Some(text), _) => ("Last-Event-ID", text),
        (None, Some(text)) => ("after", text),
        (None, None) => return Ok(None),
    };
    text.parse().map(Some).map_err(|_| invalid_cursor(name))
}

fn invalid_cursor(name: &str) -> ApiError {
    ApiError::new(
        ErrorCode::InvalidCursor,
        format!("{name} {}", contract::cursor::InvalidCursor),
    )
}
