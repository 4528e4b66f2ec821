//! HTTP client of the sidecar, for operator, gateway and tests.
//!
//! No call retries by itself. Streams are pulled: dropping one closes its connection; resume with
//! the last cursor.

mod checkpoints;

pub use checkpoints::CHECKPOINT_TIMEOUT;

use crate::{
    Cursor, ErrorBody, SessionId,
    approval::{Answer, ApprovalList},
    session::{CreateSession, CreateTurn, EventPage, Session, SessionList},
    summary::Summary,
};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};
use std::{pin::Pin, time::Duration};

/// Longest accepted SSE event, in bytes.
pub const SSE_EVENT_MAX: usize = 32 * 1024 * 1024;
/// Bound of every call that is no stream.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A sidecar.
#[derive(Clone, Debug)]
pub struct SidecarClient {
    http: reqwest::Client,
    base: String,
    token: SecretString,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection, no answer in time, or a cut one.
    #[error("the sidecar could not be reached")]
    Transport(#[source] reqwest::Error),
    /// An error answer.
    #[error("the sidecar answered {status}: {}", body.error)]
    Api {
        /// HTTP status.
        status: u16,
        /// What it said.
        body: Box<ErrorBody>,
    },
    /// An answer that is none of ours.
    #[error("the sidecar answered {status} with a body that is not of its contract")]
    Unexpected {
        /// HTTP status.
        status: u16,
    },
    /// An event longer than [`SSE_EVENT_MAX`].
    #[error("an event of the stream is longer than {SSE_EVENT_MAX} bytes")]
    TooLong,
}

/// One SSE event: the fields as sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SseEvent {
    /// `id:`, if any.
    pub id: Option<String>,
    /// `event:`; empty: none given.
    pub event: String,
    /// `data:` lines joined by a newline.
    pub data: String,
}

/// SSE events of one response.
pub type SseStream = Pin<Box<dyn Stream<Item = Result<SseEvent, ClientError>> + Send>>;

impl SidecarClient {
    /// `base` as in `http://10.0.0.7:3003`; `token` goes into the Authorization header.
    #[must_use]
    pub fn new(http: reqwest::Client, base: impl Into<String>, token: SecretString) -> Self {
        let base = base.into().trim_end_matches('/').to_owned();
        Self { http, base, token }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(self.token.expose_secret())
    }

    async fn call<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        let mut request = self.request(method, path).timeout(CALL_TIMEOUT);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = checked(request.send().await.map_err(ClientError::Transport)?).await?;
        let status = response.status().as_u16();
        response
            .json()
            .await
            .map_err(|_| ClientError::Unexpected { status })
    }

    /// `POST /sessions`.
    pub async fn create_session(&self, body: &CreateSession) -> Result<Session, ClientError> {
        self.call(Method::POST, "/sessions", Some(body)).await
    }

    /// `POST /sessions/{id}/turns`.
    pub async fn create_turn(
        &self,
        id: &SessionId,
        body: &CreateTurn,
    ) -> Result<Session, ClientError> {
        self.call(Method::POST, &format!("/sessions/{id}/turns"), Some(body))
            .await
    }

    /// `GET /sessions`.
    pub async fn sessions(&self) -> Result<SessionList, ClientError> {
        self.call::<(), _>(Method::GET, "/sessions", None).await
    }

    /// `GET /sessions/{id}/status`.
    pub async fn session(&self, id: &SessionId) -> Result<Session, ClientError> {
        self.call::<(), _>(Method::GET, &format!("/sessions/{id}/status"), None)
            .await
    }

    /// `DELETE /sessions/{id}`: cancels; returns when the agent is idle again.
    pub async fn cancel(&self, id: &SessionId) -> Result<(), ClientError> {
        let request = self
            .request(Method::DELETE, &format!("/sessions/{id}"))
            .timeout(Duration::from_secs(60));
        checked(request.send().await.map_err(ClientError::Transport)?)
            .await
            .map(drop)
    }

    /// `GET /sessions/{id}/events`.
    pub async fn events(
        &self,
        id: &SessionId,
        after: Option<Cursor>,
        limit: u32,
    ) -> Result<EventPage, ClientError> {
        let after = after.map(|c| format!("&after={c}")).unwrap_or_default();
        self.call::<(), _>(
            Method::GET,
            &format!("/sessions/{id}/events?limit={limit}{after}"),
            None,
        )
        .await
    }

    /// `GET /sessions/{id}/approvals`.
    pub async fn approvals(&self, id: &SessionId) -> Result<ApprovalList, ClientError> {
        self.call::<(), _>(Method::GET, &format!("/sessions/{id}/approvals"), None)
            .await
    }

    /// `POST /sessions/{id}/approvals/{approval_id}`.
    pub async fn answer(
        &self,
        id: &SessionId,
        approval_id: &str,
        answer: &Answer,
    ) -> Result<(), ClientError> {
        let request = self
            .request(
                Method::POST,
                &format!("/sessions/{id}/approvals/{approval_id}"),
            )
            .timeout(CALL_TIMEOUT)
            .json(answer);
        checked(request.send().await.map_err(ClientError::Transport)?)
            .await
            .map(drop)
    }

    /// `GET /sessions/{id}/stream`; `None` where nothing runs and the cursor is at the end (204).
    pub async fn stream(
        &self,
        id: &SessionId,
        after: Option<Cursor>,
        follow: bool,
    ) -> Result<Option<SseStream>, ClientError> {
        let query = if follow { "?follow=true" } else { "" };
        let mut request = self.request(Method::GET, &format!("/sessions/{id}/stream{query}"));
        if let Some(after) = after {
            request = request.header("Last-Event-ID", after.to_string());
        }
        let response = checked(request.send().await.map_err(ClientError::Transport)?).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        Ok(Some(sse(response.bytes_stream())))
    }

    /// `GET /events`: the pod's summary now and after every change.
    pub async fn summaries(
        &self,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<Summary, ClientError>> + Send>>, ClientError> {
        let request = self.request(Method::GET, "/events");
        let response = checked(request.send().await.map_err(ClientError::Transport)?).await?;
        let status = response.status().as_u16();
        let events = sse(response.bytes_stream()).filter_map(move |event| async move {
            match event {
                Ok(event) if event.event == "summary" => Some(
                    serde_json::from_str(&event.data)
                        .map_err(|_| ClientError::Unexpected { status }),
                ),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            }
        });
        Ok(Box::pin(events))
    }
}

async fn checked(response: reqwest::Response) -> Result<reqwest::Response, ClientError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let status = status.as_u16();
    match response.json::<ErrorBody>().await {
        Ok(body) => Err(ClientError::Api {
            status,
            body: Box::new(body),
        }),
        Err(_) => Err(ClientError::Unexpected { status }),
    }
}

/// Cuts a byte stream into SSE events. Comments and `retry:` are skipped. Ends with the stream; a
/// cut event at the end is dropped, as the SSE standard says.
pub fn sse<S>(bytes: S) -> SseStream
where
    S: Stream<Item = Result<Bytes, reqwest::Error>> + Send + 'static,
{
    struct State<S> {
        bytes: Pin<Box<S>>,
        buffer: BytesMut,
        scanned: usize,
        event: SseEvent,
        has_data: bool,
    }
    let state = State {
        bytes: Box::pin(bytes),
        buffer: BytesMut::new(),
        scanned: 0,
        event: SseEvent::default(),
        has_data: false,
    };
    Box::pin(futures::stream::try_unfold(state, |mut s| async move {
        loop {
            if let Some(end) = s.buffer[s.scanned..].iter().position(|b| *b == b'\n') {
                let line = s.buffer.split_to(s.scanned + end + 1);
                s.scanned = 0;
                let line = String::from_utf8_lossy(&line[..line.len() - 1]);
                let line = line.strip_suffix('\r').unwrap_or(&line);
                if line.is_empty() {
                    let event = std::mem::take(&mut s.event);
                    if std::mem::take(&mut s.has_data) {
                        return Ok(Some((event, s)));
                    }
                    continue;
                }
                let (field, value) = line.split_once(':').unwrap_or((line, ""));
                let value = value.strip_prefix(' ').unwrap_or(value);
                match field {
                    "id" => s.event.id = Some(value.to_owned()),
                    "event" => value.clone_into(&mut s.event.event),
                    "data" => {
                        if s.has_data {
                            s.event.data.push('\n');
                        }
                        s.event.data.push_str(value);
                        s.has_data = true;
                        if s.event.data.len() > SSE_EVENT_MAX {
                            return Err(ClientError::TooLong);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            s.scanned = s.buffer.len();
            if s.scanned > SSE_EVENT_MAX {
                return Err(ClientError::TooLong);
            }
            match s.bytes.next().await {
                Some(Ok(chunk)) => s.buffer.extend_from_slice(&chunk),
                Some(Err(error)) => return Err(ClientError::Transport(error)),
                None => return Ok(None),
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn parse(chunks: &[&'static str]) -> Vec<SseEvent> {
        let chunks: Vec<_> = chunks
            .iter()
            .map(|c| Ok(Bytes::from_static(c.as_bytes())))
            .collect();
        sse(futures::stream::iter(chunks))
            .map(Result::unwrap)
            .collect()
            .await
    }

    #[tokio::test]
    async fn events_are_found_however_the_bytes_are_cut() {
        let whole = "retry: 5\n\n: hello\n\nid: a-1\nevent: output\ndata: {\"x\":1}\n\nevent: heartbeat\ndata: {}\n\nid: cut";
        let expected = parse(&[whole]).await;
        assert_eq!(expected.len(), 2);
        assert_eq!(expected[0].id.as_deref(), Some("a-1"));
        for i in 1..whole.len() {
            assert_eq!(
                parse(&[&whole[..i], &whole[i..]]).await,
                expected,
                "cut at {i}"
            );
        }
    }

    /// Streams as version 1 sent them. This file only ever grows: what is stored must parse for ever.
    #[tokio::test]
    async fn old_streams_parse_for_ever() {
        let golden = include_str!("../testdata/v1.sse");
        let events = parse(&[golden]).await;
        assert_eq!(events.len(), 13);
        let mut n = 0;
        for sse in events.iter().filter(|sse| sse.event != "heartbeat") {
            let event: crate::Event = serde_json::from_str(&sse.data).unwrap();
            assert_eq!(event.body.name(), sse.event);
            if let Some(id) = &sse.id {
                n += 1;
                assert_eq!(id.parse::<Cursor>().unwrap().n, n);
            }
            // Written again it is the same: no field was dropped or renamed.
            let again: serde_json::Value = serde_json::to_value(&event).unwrap();
            let was: serde_json::Value = serde_json::from_str(&sse.data).unwrap();
            assert_eq!(again, was, "{}", sse.data);
        }
        assert_eq!(n, 11);
    }
}
