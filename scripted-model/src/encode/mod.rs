//! From pieces of an answer to the bytes of a dialect.

mod chat;
mod messages;
mod responses;

use serde_json::{Value, json};

use crate::conversation::Dialect;
use crate::script::{Finish, Usage};

/// An error's words with nothing left to fill in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ErrorText {
    pub(crate) message: String,
    pub(crate) kind: Option<String>,
    pub(crate) code: Option<String>,
    pub(crate) anthropic_type: Option<String>,
    pub(crate) anthropic_message: Option<String>,
}

impl ErrorText {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            ..Self::default()
        }
    }
}

/// What every message of one answer repeats.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: i64,
    pub(crate) model: String,
    /// Chat only.
    pub(crate) stream_usage: bool,
}

/// A run of deltas of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    Text,
    Thinking,
    Tool { id: String, name: String },
}

/// Writes one answer as server-sent events. Calls come in the order
/// `begin (open delta* close)* finish`; a script may stop anywhere.
pub(crate) trait Encoder: Send {
    fn begin(&mut self) -> String;
    fn open(&mut self, block: &Block) -> String;
    fn delta(&mut self, text: &str) -> String;
    fn close(&mut self) -> String;
    fn finish(&mut self, finish: Finish, usage: &Usage) -> String;
    fn error(&mut self, error: &ErrorText) -> String;
}

/// `usage` is for dialects that count the prompt at the beginning.
pub(crate) fn encoder(dialect: Dialect, envelope: Envelope, usage: Usage) -> Box<dyn Encoder> {
    match dialect {
        Dialect::Chat => Box::new(chat::Chat::new(envelope)),
        Dialect::Responses => Box::new(responses::Responses::new(envelope)),
        Dialect::Messages => Box::new(messages::Messages::new(envelope, usage)),
    }
}

/// The same answer as one JSON document.
pub(crate) fn whole(
    dialect: Dialect,
    envelope: &Envelope,
    blocks: &[(Block, String)],
    finish: Finish,
    usage: &Usage,
) -> Value {
    match dialect {
        Dialect::Chat => chat::whole(envelope, blocks, finish, usage),
        Dialect::Responses => responses::whole(envelope, blocks, finish, usage),
        Dialect::Messages => messages::whole(envelope, blocks, finish, usage),
    }
}

/// An error's document in the dialect's shape.
pub(crate) fn error_body(dialect: Dialect, status: u16, error: &ErrorText, id: &str) -> Value {
    match dialect {
        Dialect::Chat | Dialect::Responses => json!({"error": {
            "message": error.message,
            "type": error.kind.as_deref().unwrap_or(openai_type(status)),
            "param": null,
            "code": error.code,
        }}),
        Dialect::Messages => json!({
            "type": "error",
            "error": messages::error_object(status, error),
            "request_id": id,
        }),
    }
}

fn openai_type(status: u16) -> &'static str {
    match status {
        403 => "permission_error",
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

fn event(name: Option<&str>, data: &Value) -> String {
    match name {
        Some(name) => format!("event: {name}\ndata: {data}\n\n"),
        None => format!("data: {data}\n\n"),
    }
}
