//! The routes. One handler takes every provider path, whatever its prefix.

use std::convert::Infallible;
use std::io;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::conversation::{Conversation, Dialect};
use crate::encode::{Envelope, ErrorText, error_body};
use crate::keys::{Keys, Refusal, key_digest, logged, masked, presented};
use crate::library::Library;
use crate::plan::{Answer, Counters, Ids, Plan, Planner, Reply};
use crate::play::{self, Whole};
use crate::record::{Outcome, RequestLog, RequestPage, RequestRecord, Ticket, tail};

/// The largest request body read.
const BODY_LIMIT: usize = 64 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) library: Library,
    pub(crate) keys: Keys,
    pub(crate) word_delay: Duration,
    pub(crate) models: Vec<String>,
    pub(crate) log_requests: bool,
    pub(crate) log: Arc<RequestLog>,
    pub(crate) counters: Counters,
    pub(crate) ids: Ids,
}

impl Model {
    pub(crate) fn clear(&self) {
        self.log.clear();
        self.counters.clear();
    }
}

/// Marks a response that must not be sent: the connection is closed instead.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DropConnection;

pub(crate) fn router(model: Arc<Model>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/requests", get(list).delete(clear))
        .fallback(provider)
        .with_state(model)
}

async fn list(State(model): State<Arc<Model>>) -> Json<RequestPage> {
    Json(model.log.page())
}

async fn clear(State(model): State<Arc<Model>>) -> StatusCode {
    model.clear();
    StatusCode::NO_CONTENT
}

async fn provider(
    State(model): State<Arc<Model>>,
    request: Request,
) -> Result<Response, Infallible> {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, BODY_LIMIT).await;
    let dialect = match head.method {
        Method::POST => Dialect::of_path(head.uri.path()),
        _ => None,
    };
    let json: Value = body
        .as_ref()
        .ok()
        .and_then(|b| serde_json::from_slice(b).ok())
        .unwrap_or_default();
    let talk = dialect.map(|d| Conversation::read(d, &json));
    let mut record = record(&head, body.as_ref().map_or(0, Bytes::len), &json);
    let refused = model.keys.check(&head.headers).await.err();
    let mut plan = None;
    if let Some(Ok(talk)) = &talk {
        describe(&mut record, talk);
        if let (Some(dialect), None) = (dialect, &refused) {
            let planner = Planner {
                library: &model.library,
                counters: &model.counters,
                ids: &model.ids,
                word_delay: model.word_delay,
            };
            let made = planner.plan(dialect, talk, record.session.as_deref(), record.body_bytes);
            record.scenario = made.scenario.clone();
            record.step = Some(made.step);
            record.title_request = made.title;
            plan = Some(made);
        }
    }
    let reply = Exchange {
        dialect: dialect.unwrap_or(default_dialect(&head.headers)),
        id: model.ids.next(""),
        line: line(&record),
        ticket: model.log.push(record),
        log: model.log_requests,
    };
    if let Err(error) = body {
        return Ok(reply.error(
            413,
            &[],
            &ErrorText::new(format!("Request too large: {error}")),
        ));
    }
    if let Some(refusal) = refused {
        return Ok(reply.unauthorized(&refusal));
    }
    Ok(match (dialect, talk, plan) {
        (Some(dialect), Some(Ok(talk)), Some(plan)) => reply.play(dialect, talk, plan).await,
        (_, Some(Err(message)), _) => {
            let message = if json.is_null() {
                "The body is not valid JSON.".into()
            } else {
                message
            };
            reply.error(400, &[], &ErrorText::new(message))
        }
        _ if head.method == Method::GET && head.uri.path().ends_with("/models") => {
            reply.models(&model.models)
        }
        _ => {
            let message = format!("Invalid URL ({} {})", head.method, head.uri.path());
            reply.error(404, &[], &ErrorText::new(message))
        }
    })
}

/// Requests outside the known paths still deserve an error in their client's shape.
fn default_dialect(headers: &HeaderMap) -> Dialect {
    if headers.contains_key("anthropic-version") {
        Dialect::Messages
    } else {
        Dialect::Chat
    }
}

fn record(head: &Parts, body_bytes: usize, json: &Value) -> RequestRecord {
    let text = |name: &str| head.headers.get(name)?.to_str().ok().map(str::to_owned);
    RequestRecord {
        seq: 0,
        time: jiff::Timestamp::now(),
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        headers: head
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), logged(name.as_str(), value)))
            .collect(),
        key_sha256: presented(&head.headers).map(|key| key_digest(&key)),
        session: text("x-session-id").or_else(|| text("x-session-affinity")),
        body_bytes,
        model: json["model"].as_str().map(str::to_owned),
        stream: json["stream"].as_bool().unwrap_or(false),
        temperature: json["temperature"].as_f64(),
        max_tokens: json["max_tokens"].as_u64(),
        max_completion_tokens: json["max_completion_tokens"].as_u64(),
        max_output_tokens: json["max_output_tokens"].as_u64(),
        message_count: 0,
        tools: Vec::new(),
        system: String::new(),
        last_user: None,
        title_request: false,
        scenario: None,
        step: None,
        status: None,
        outcome: Outcome::Open,
    }
}

fn describe(record: &mut RequestRecord, talk: &Conversation) {
    record.message_count = talk.message_count;
    record.tools.clone_from(&talk.tools);
    record.system = tail(&talk.system, 16 * 1024);
    record.last_user = talk.last_user().map(|text| tail(text, 4 * 1024));
}

/// One request being answered.
struct Exchange {
    dialect: Dialect,
    id: String,
    line: String,
    ticket: Ticket,
    log: bool,
}

impl Exchange {
    fn head(&self, status: u16, content_type: &str, extra: &[(String, String)]) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() =
            StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        let request_id = match self.dialect {
            Dialect::Messages => HeaderName::from_static("request-id"),
            Dialect::Chat | Dialect::Responses => HeaderName::from_static("x-request-id"),
        };
        let set = |headers: &mut HeaderMap, name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        set(headers, request_id, &format!("req_{}", self.id));
        set(headers, header::CONTENT_TYPE, content_type);
        for (name, value) in extra {
            if let Ok(name) = HeaderName::try_from(name) {
                set(headers, name, value);
            }
        }
        self.ticket.status(status);
        self.tell(&status.to_string());
        response
    }

    fn tell(&self, what: &str) {
        if self.log {
            // A lost log line is no reason to fail a request.
            let _ = writeln!(
                io::stderr(),
                "{} seq={} {what}",
                self.line,
                self.ticket.seq()
            );
        }
    }

    fn bytes(self, mut head: Response, body: impl Into<Body>, outcome: Outcome) -> Response {
        *head.body_mut() = body.into();
        self.ticket.close(outcome);
        head
    }

    fn error(self, status: u16, headers: &[(String, String)], error: &ErrorText) -> Response {
        let body = error_body(self.dialect, status, error, &format!("req_{}", self.id));
        let head = self.head(status, "application/json", headers);
        self.bytes(head, body.to_string(), Outcome::Complete)
    }

    fn unauthorized(self, refusal: &Refusal) -> Response {
        let message = match refusal {
            Refusal::Missing => "You didn't provide an API key. You need to provide your API key \
                in an Authorization header using Bearer auth (i.e. Authorization: Bearer \
                YOUR_KEY)."
                .to_owned(),
            Refusal::Wrong(key) => format!(
                "Incorrect API key provided: {}. You can find your API key in your account's \
                 settings.",
                masked(key)
            ),
        };
        let anthropic = match refusal {
            Refusal::Missing => "x-api-key header is required",
            Refusal::Wrong(_) => "invalid x-api-key",
        };
        let error = ErrorText {
            message,
            code: matches!(refusal, Refusal::Wrong(_)).then(|| "invalid_api_key".to_owned()),
            anthropic_message: Some(anthropic.to_owned()),
            ..ErrorText::default()
        };
        self.error(401, &[], &error)
    }

    fn models(self, models: &[String]) -> Response {
        let entry = |id: &String| {
            json!({
                "id": id, "object": "model", "created": 1, "owned_by": "scripted-model",
                "type": "model", "display_name": id, "created_at": "1970-01-01T00:00:01Z",
            })
        };
        let data: Vec<Value> = models.iter().map(entry).collect();
        let body = json!({
            "object": "list", "data": data, "has_more": false,
            "first_id": models.first(), "last_id": models.last(),
        });
        let head = self.head(200, "application/json", &[]);
        self.bytes(head, body.to_string(), Outcome::Complete)
    }

    async fn play(self, dialect: Dialect, talk: Conversation, plan: Plan) -> Response {
        match plan.answer {
            Answer::Error {
                status,
                headers,
                error,
            } => self.error(status, &headers, &error),
            Answer::Raw {
                status,
                headers,
                content_type,
                body,
            } => {
                let head = self.head(status, &content_type, &headers);
                self.bytes(head, body, Outcome::Complete)
            }
            Answer::Hang => self.hang().await,
            Answer::Drop => self.dropped(),
            Answer::Reply(reply) => {
                let prefix = match dialect {
                    Dialect::Chat => "chatcmpl-",
                    Dialect::Responses => "resp_",
                    Dialect::Messages => "msg_",
                };
                let envelope = Envelope {
                    id: format!("{prefix}{}", self.id),
                    created: jiff::Timestamp::now().as_second(),
                    model: talk.model,
                    stream_usage: talk.stream_usage,
                };
                if talk.stream {
                    self.stream(dialect, envelope, reply)
                } else {
                    self.document(dialect, &envelope, &reply).await
                }
            }
        }
    }

    /// Ends when the client leaves, which drops this future and with it the ticket.
    async fn hang(self) -> Response {
        self.tell("hangs");
        std::future::pending().await
    }

    fn dropped(self) -> Response {
        self.tell("drops the connection");
        self.ticket.close(Outcome::Cut);
        let mut response = StatusCode::SERVICE_UNAVAILABLE.into_response();
        response.extensions_mut().insert(DropConnection);
        response
    }

    fn stream(self, dialect: Dialect, envelope: Envelope, reply: Reply) -> Response {
        let mut head = self.head(200, "text/event-stream; charset=utf-8", &[]);
        let headers = head.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        let (tx, rx) = mpsc::channel(1);
        // Ends by itself: when the script is over, or when the receiver is dropped with
        // the connection.
        tokio::spawn(async move {
            if let Some(outcome) = play::stream(dialect, envelope, reply, tx).await {
                self.ticket.close(outcome);
            } else {
                self.tell("client left");
            }
        });
        *head.body_mut() = Body::from_stream(play::flushed(ReceiverStream::new(rx)));
        head
    }

    async fn document(self, dialect: Dialect, envelope: &Envelope, reply: &Reply) -> Response {
        let json = "application/json";
        match play::document(dialect, envelope, reply).await {
            Whole::Document(text) => {
                let head = self.head(200, json, &[]);
                self.bytes(head, text, Outcome::Complete)
            }
            Whole::Half { text, abort } => {
                let head = self.head(200, json, &[]);
                let broken = abort.then(|| Err(io::Error::other("as scripted")));
                let parts = std::iter::once(Ok(Bytes::from(text))).chain(broken);
                let body = Body::from_stream(play::flushed(futures::stream::iter(parts)));
                self.bytes(head, body, Outcome::Cut)
            }
            Whole::Raw(bytes) => {
                let head = self.head(200, json, &[]);
                self.bytes(head, bytes, Outcome::Complete)
            }
            Whole::EndlessLine(bytes) => {
                let head = self.head(200, json, &[]);
                let blocks = futures::stream::iter(play::filler(bytes)).map(Ok::<_, io::Error>);
                self.bytes(head, Body::from_stream(blocks), Outcome::Cut)
            }
            Whole::Error(error) => self.error(500, &[], &error),
            Whole::Hang => self.hang().await,
        }
    }
}

/// What the log line says about the request.
fn line(record: &RequestRecord) -> String {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    // A client's text must not break the line or move the terminal's cursor.
    let clean = |text: String| -> String {
        text.chars()
            .take(200)
            .map(|c| if c.is_control() { '?' } else { c })
            .collect()
    };
    format!(
        "{} {} {} model={} session={} scenario={} step={} stream={} bytes={}",
        record.time,
        record.method,
        clean(record.path.clone()),
        clean(or_dash(&record.model)),
        clean(or_dash(&record.session)),
        clean(or_dash(&record.scenario)),
        record
            .step
            .map_or_else(|| "-".to_owned(), |s| s.to_string()),
        record.stream,
        record.body_bytes,
    )
}
