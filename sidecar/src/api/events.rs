//! `GET /sessions/{id}/events`: stored events as JSON, page by page.

use super::{cursor, error::ApiError, path::InPath, session};
use crate::{
    app::App,
    store::{reader::Reader, session::now},
};
use axum::{
    Json,
    extract::{Query, State},
};
use contract::{
    Cursor, ErrorBody, Event, EventBody, FieldError,
    event::MAIN_AGENT,
    session::{EventPage, NumberedEvent},
};
use http::HeaderMap;
use serde::Deserialize;
use std::sync::Arc;

/// Most events of a page.
const LIMIT_MAX: usize = 1000;

/// What may be asked of a page.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Params {
    after: Option<String>,
    limit: Option<usize>,
}

/// Stored events after a cursor.
#[utoipa::path(get, path = "/sessions/{session_id}/events",
    params(("session_id" = String, Path), ("after" = Option<String>, Query),
        ("limit" = Option<usize>, Query, description = "1 to 1000, 100 unless told")),
    responses((status = 200, body = EventPage), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 404, body = ErrorBody)))]
pub(super) async fn events(
    State(app): State<Arc<App>>,
    InPath(id): InPath<String>,
    query: Result<Query<Params>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<EventPage>, ApiError> {
    let session = session(&app, &id)?;
    let Query(params) = query
        .map_err(|error| ApiError::invalid(vec![FieldError::new("query", error.body_text())]))?;
    let limit = params.limit.unwrap_or(100);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(ApiError::invalid(vec![FieldError::new(
            "limit",
            "must be from 1 to 1000",
        )]));
    }
    let cursor = cursor(&headers, params.after.as_deref())?;
    let (mut reader, gap) = Reader::open(Arc::clone(&session), cursor)?;
    let page = reader.page(limit).await?;
    let mut events = Vec::with_capacity(page.len() + 1);
    if let Some(gap) = gap {
        app.metrics.gap(&gap);
        let turn = session.state().turn;
        let gap = Event {
            turn,
            ts: now(),
            agent: MAIN_AGENT.into(),
            body: EventBody::Gap(gap),
        };
        let event = serde_json::to_value(gap).map_err(|error| ApiError::internal(&error))?;
        events.push(NumberedEvent { id: None, event });
    }
    for (n, json) in page {
        let id = Cursor {
            epoch: session.epoch(),
            n,
        }
        .to_string();
        let event = serde_json::from_slice(&json).map_err(|error| ApiError::internal(&error))?;
        events.push(NumberedEvent {
            id: Some(id),
            event,
        });
    }
    let more = reader.after() < session.log().position().last;
    Ok(Json(EventPage {
        events,
        next: reader.cursor().to_string(),
        more,
    }))
}
