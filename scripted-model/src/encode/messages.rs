//! Anthropic messages.

use serde_json::{Value, json};

use super::{Block, Encoder, Envelope, ErrorText, event};
use crate::script::{Finish, Usage};

pub(super) struct Messages {
    envelope: Envelope,
    index: usize,
    open: Option<Block>,
    prompt: Usage,
}

impl Messages {
    pub(super) fn new(envelope: Envelope, prompt: Usage) -> Self {
        Self {
            envelope,
            index: 0,
            open: None,
            prompt,
        }
    }

    fn block_delta(&self, delta: Value) -> String {
        let data = json!({"type": "content_block_delta", "index": self.index, "delta": delta});
        event(Some("content_block_delta"), &data)
    }
}

impl Encoder for Messages {
    fn begin(&mut self) -> String {
        let message = json!({
            "id": self.envelope.id,
            "type": "message",
            "role": "assistant",
            "model": self.envelope.model,
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
            "usage": usage_object(&Usage { output: 1, ..self.prompt }),
        });
        event(
            Some("message_start"),
            &json!({"type": "message_start", "message": message}),
        )
    }

    fn open(&mut self, block: &Block) -> String {
        self.open = Some(block.clone());
        let content = match block {
            Block::Text => json!({"type": "text", "text": ""}),
            Block::Thinking => json!({"type": "thinking", "thinking": "", "signature": ""}),
            Block::Tool { id, name } => {
                json!({"type": "tool_use", "id": id, "name": name, "input": {}})
            }
        };
        let data =
            json!({"type": "content_block_start", "index": self.index, "content_block": content});
        event(Some("content_block_start"), &data)
    }

    fn delta(&mut self, text: &str) -> String {
        self.block_delta(match &self.open {
            Some(Block::Thinking) => json!({"type": "thinking_delta", "thinking": text}),
            Some(Block::Tool { .. }) => json!({"type": "input_json_delta", "partial_json": text}),
            Some(Block::Text) | None => json!({"type": "text_delta", "text": text}),
        })
    }

    fn close(&mut self) -> String {
        let mut out = String::new();
        if self.open.take() == Some(Block::Thinking) {
            out.push_str(&self.block_delta(json!({
                "type": "signature_delta",
                "signature": signature(&self.envelope),
            })));
        }
        let data = json!({"type": "content_block_stop", "index": self.index});
        out.push_str(&event(Some("content_block_stop"), &data));
        self.index += 1;
        out
    }

    fn finish(&mut self, finish: Finish, usage: &Usage) -> String {
        let mut out = String::new();
        if let Some(reason) = reason(finish) {
            let data = json!({
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": null},
                "usage": usage_object(usage),
            });
            out.push_str(&event(Some("message_delta"), &data));
        }
        out.push_str(&event(
            Some("message_stop"),
            &json!({"type": "message_stop"}),
        ));
        out
    }

    fn error(&mut self, error: &ErrorText) -> String {
        let data = json!({"type": "error", "error": error_object(529, error)});
        event(Some("error"), &data)
    }
}

pub(super) fn whole(
    envelope: &Envelope,
    blocks: &[(Block, String)],
    finish: Finish,
    usage: &Usage,
) -> Value {
    let content: Vec<Value> = blocks
        .iter()
        .map(|(block, text)| match block {
            Block::Text => json!({"type": "text", "text": text}),
            Block::Thinking => {
                json!({"type": "thinking", "thinking": text, "signature": signature(envelope)})
            }
            // The provider sends an object here, so broken arguments become a string.
            Block::Tool { id, name } => json!({
                "type": "tool_use",
                "id": id,
                "name": name,
                "input": serde_json::from_str(text).unwrap_or_else(|_| Value::from(text.as_str())),
            }),
        })
        .collect();
    json!({
        "id": envelope.id,
        "type": "message",
        "role": "assistant",
        "model": envelope.model,
        "content": content,
        "stop_reason": reason(finish),
        "stop_sequence": null,
        "usage": usage_object(usage),
    })
}

pub(super) fn error_object(status: u16, error: &ErrorText) -> Value {
    let kind = match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    };
    json!({
        "type": error.anthropic_type.as_deref().unwrap_or(kind),
        "message": error.anthropic_message.as_ref().unwrap_or(&error.message),
    })
}

fn signature(envelope: &Envelope) -> String {
    format!("sig-{}", envelope.id)
}

fn reason(finish: Finish) -> Option<&'static str> {
    match finish {
        Finish::Stop => Some("end_turn"),
        Finish::ToolCalls => Some("tool_use"),
        Finish::Length => Some("max_tokens"),
        Finish::ContentFilter => Some("refusal"),
        Finish::None => None,
    }
}

/// Anthropic counts cached tokens apart from the others.
fn usage_object(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.input.saturating_sub(usage.cached),
        "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.output,
    })
}
