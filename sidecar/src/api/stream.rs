//! `GET /sessions/{id}/stream`: events as they become durable, from any cursor on.

use super::{cursor, error::ApiError, path::InPath, session};
use crate::{
    app::App,
    metrics::StreamGuard,
    store::{
        reader::Reader,
        session::{View, now},
    },
};
use axum::{
    body::Body,
    extract::{Query, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use contract::{ErrorBody, Event, EventBody, event::MAIN_AGENT};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};
use tokio_util::sync::CancellationToken;

/// A comment that ends no block.
const COMMENT_LINE: &[u8] = b":\n";
/// How often a comment shows that the connection lives.
const COMMENT: Duration = Duration::from_secs(10);
/// How often a `heartbeat` event does.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// What may be asked of a stream.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Params {
    after: Option<String>,
    #[serde(default)]
    follow: bool,
}

/// Events of a session as Server-Sent Events, from the cursor on: what is stored, then what comes.
/// Ends after the last event of the turn; with `follow=true` it stays for further turns.
#[utoipa::path(get, path = "/sessions/{session_id}/stream",
    params(("session_id" = String, Path), ("after" = Option<String>, Query), ("follow" = Option<bool>, Query),
        ("Last-Event-ID" = Option<String>, Header, description = "wins over `after`")),
    responses((status = 200, content_type = "text/event-stream", body = String),
        (status = 204, description = "nothing runs and the cursor is at the end"),
        (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn stream(
    State(app): State<Arc<App>>,
    InPath(id): InPath<String>,
    query: Result<Query<Params>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let session = session(&app, &id)?;
    let Query(params) = query.map_err(|error| {
        ApiError::invalid(vec![contract::FieldError::new("query", error.body_text())])
    })?;
    let cursor = cursor(&headers, params.after.as_deref())?;
    let view = session.view();
    let (active, turn) = {
        let state = session.state();
        (state.running.is_some(), state.turn)
    };
    let (reader, gap) = Reader::open(Arc::clone(&session), cursor)?;
    let at_end = gap.is_none() && reader.after() == view.borrow().position.last;
    if cursor.is_some() && at_end && !active && !params.follow {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let mut first = greeting(&id, retry_ms());
    if let Some(gap) = gap {
        app.metrics.gap(&gap);
        let event = Event {
            turn,
            ts: now(),
            agent: MAIN_AGENT.into(),
            body: EventBody::Gap(gap),
        };
        let mut bytes = Vec::new();
        crate::store::record::encode_event(&event, &mut bytes);
        first.push_str(&String::from_utf8_lossy(&bytes));
    }
    let live = Live {
        first: Some(Bytes::from(first)),
        reader,
        view,
        until: (!params.follow).then_some(turn),
        over: false,
        comment: ticks(COMMENT),
        heartbeat: ticks(HEARTBEAT),
        shutdown: app.shutdown.clone(),
        _guard: app.metrics.stream(),
    };
    let body = futures::stream::unfold(live, |mut live| async move {
        live.next()
            .await
            .map(|bytes| (Ok::<_, Infallible>(bytes), live))
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

/// The first lines of a stream. No empty line: it would end a block without data, and some clients take
/// that for an event.
fn greeting(id: &str, retry_ms: u64) -> String {
    format!(": session {id}\nretry: {retry_ms}\n")
}

fn ticks(every: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// 1 to 3 seconds, so that readers of a restarted pod do not all come back at once.
fn retry_ms() -> u64 {
    1000 + getrandom::u32().map_or(0, |random| u64::from(random % 2000))
}

/// A stream under way. Pulled by the connection: a slow reader holds nothing but its place.
struct Live {
    first: Option<Bytes>,
    reader: Reader,
    view: watch::Receiver<View>,
    until: Option<u32>,
    over: bool,
    comment: Interval,
    heartbeat: Interval,
    shutdown: CancellationToken,
    _guard: StreamGuard,
}

impl Live {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        if self.over {
            return None;
        }
        loop {
            let view = *self.view.borrow_and_update();
            match self.reader.next_sse(self.until).await {
                Ok(Some(piece)) => {
                    self.over = piece.ends;
                    return Some(piece.bytes);
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(cursor = %self.reader.cursor(), %error, "a stream ends: its journal cannot be read");
                    return None;
                }
            }
            if !view.active && self.until.is_some() {
                return None;
            }
            tokio::select! {
                biased;
                changed = self.view.changed() => if changed.is_err() { return None },
                () = self.shutdown.cancelled(), if !view.active => return None,
                _ = self.heartbeat.tick() => {
                    return Some(Bytes::from(format!("event: heartbeat\ndata: {{\"ts\":\"{}\"}}\n\n", now())));
                }
                _ = self.comment.tick() => return Some(Bytes::from_static(COMMENT_LINE)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_an_event_ends_a_block() {
        for lines in [greeting("wombat", 7).as_bytes(), COMMENT_LINE] {
            assert!(lines.ends_with(b"\n") && !lines.windows(2).any(|two| two == b"\n\n"));
        }
    }
}
