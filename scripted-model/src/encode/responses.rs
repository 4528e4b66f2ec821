//! OpenAI responses.

use serde_json::{Value, json};

use super::{Block, Encoder, Envelope, ErrorText, event};
use crate::script::{Finish, Usage};

pub(super) struct Responses {
    envelope: Envelope,
    sequence: u64,
    open: Option<(Block, String)>,
    output: Vec<Value>,
}

impl Responses {
    pub(super) fn new(envelope: Envelope) -> Self {
        Self {
            envelope,
            sequence: 0,
            open: None,
            output: Vec::new(),
        }
    }

    fn event(&mut self, kind: &str, mut data: Value) -> String {
        data["type"] = kind.into();
        data["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        event(Some(kind), &data)
    }

    fn index(&self) -> usize {
        self.output.len()
    }

    fn item_id(&self, block: &Block) -> String {
        item_id(&self.envelope, block, self.index())
    }
}

impl Encoder for Responses {
    fn begin(&mut self) -> String {
        let response = object(&self.envelope, "in_progress", &[], None, None);
        let mut out = self.event("response.created", json!({"response": response}));
        out.push_str(&self.event("response.in_progress", json!({"response": response})));
        out
    }

    fn open(&mut self, block: &Block) -> String {
        let (id, index) = (self.item_id(block), self.index());
        let added = json!({
            "output_index": index,
            "item": item(&id, block, None),
        });
        let mut out = self.event("response.output_item.added", added);
        match block {
            Block::Text => out.push_str(&self.event(
                "response.content_part.added",
                json!({"item_id": id, "output_index": index, "content_index": 0,
                    "part": {"type": "output_text", "text": "", "annotations": []}}),
            )),
            Block::Thinking => out.push_str(&self.event(
                "response.reasoning_summary_part.added",
                json!({"item_id": id, "output_index": index, "summary_index": 0,
                    "part": {"type": "summary_text", "text": ""}}),
            )),
            Block::Tool { .. } => {}
        }
        self.open = Some((block.clone(), String::new()));
        out
    }

    fn delta(&mut self, text: &str) -> String {
        let index = self.index();
        let Some((block, content)) = &mut self.open else {
            return String::new();
        };
        content.push_str(text);
        let block = block.clone();
        let id = self.item_id(&block);
        let mut data = json!({"item_id": id, "output_index": index, "delta": text});
        match block {
            Block::Text => {
                data["content_index"] = 0.into();
                self.event("response.output_text.delta", data)
            }
            Block::Thinking => {
                data["summary_index"] = 0.into();
                self.event("response.reasoning_summary_text.delta", data)
            }
            Block::Tool { .. } => self.event("response.function_call_arguments.delta", data),
        }
    }

    fn close(&mut self) -> String {
        let Some((block, text)) = self.open.take() else {
            return String::new();
        };
        let (id, index) = (self.item_id(&block), self.index());
        let mut out = String::new();
        match &block {
            Block::Text => {
                let at = json!({"item_id": id, "output_index": index, "content_index": 0});
                let mut done = at.clone();
                done["text"] = text.as_str().into();
                out.push_str(&self.event("response.output_text.done", done));
                let mut done = at;
                done["part"] = json!({"type": "output_text", "text": text, "annotations": []});
                out.push_str(&self.event("response.content_part.done", done));
            }
            Block::Thinking => {
                let at = json!({"item_id": id, "output_index": index, "summary_index": 0});
                let mut done = at.clone();
                done["text"] = text.as_str().into();
                out.push_str(&self.event("response.reasoning_summary_text.done", done));
                let mut done = at;
                done["part"] = json!({"type": "summary_text", "text": text});
                out.push_str(&self.event("response.reasoning_summary_part.done", done));
            }
            Block::Tool { .. } => {
                let done = json!({"item_id": id, "output_index": index, "arguments": text});
                out.push_str(&self.event("response.function_call_arguments.done", done));
            }
        }
        let item = item(&id, &block, Some(&text));
        self.output.push(item.clone());
        let done = json!({"output_index": index, "item": item});
        out.push_str(&self.event("response.output_item.done", done));
        out
    }

    fn finish(&mut self, finish: Finish, usage: &Usage) -> String {
        let Some((status, why)) = status(finish) else {
            return String::new();
        };
        let response = object(&self.envelope, status, &self.output, why, Some(usage));
        self.event(&format!("response.{status}"), json!({"response": response}))
    }

    fn error(&mut self, error: &ErrorText) -> String {
        let data = json!({
            "code": error.code.as_deref().unwrap_or("server_error"),
            "message": error.message,
            "param": null,
        });
        self.event("error", data)
    }
}

pub(super) fn whole(
    envelope: &Envelope,
    blocks: &[(Block, String)],
    finish: Finish,
    usage: &Usage,
) -> Value {
    let output: Vec<Value> = blocks
        .iter()
        .enumerate()
        .map(|(i, (block, text))| item(&item_id(envelope, block, i), block, Some(text)))
        .collect();
    let (status, why) = status(finish).unwrap_or(("in_progress", None));
    object(envelope, status, &output, why, Some(usage))
}

fn item_id(envelope: &Envelope, block: &Block, index: usize) -> String {
    let prefix = match block {
        Block::Text => "msg",
        Block::Thinking => "rs",
        Block::Tool { .. } => "fc",
    };
    let nonce = envelope.id.trim_start_matches("resp_");
    format!("{prefix}_{nonce}_{index}")
}

/// An output item, begun (`text` is none) or done.
fn item(id: &str, block: &Block, text: Option<&str>) -> Value {
    let status = if text.is_some() {
        "completed"
    } else {
        "in_progress"
    };
    match block {
        Block::Text => json!({
            "type": "message",
            "id": id,
            "role": "assistant",
            "status": status,
            "content": text.map_or_else(Vec::new, |t| {
                vec![json!({"type": "output_text", "text": t, "annotations": []})]
            }),
        }),
        Block::Thinking => json!({
            "type": "reasoning",
            "id": id,
            "summary": text.map_or_else(Vec::new, |t| {
                vec![json!({"type": "summary_text", "text": t})]
            }),
        }),
        Block::Tool { id: call, name } => json!({
            "type": "function_call",
            "id": id,
            "call_id": call,
            "name": name,
            "arguments": text.unwrap_or(""),
            "status": status,
        }),
    }
}

/// The response's status, and why it is incomplete.
fn status(finish: Finish) -> Option<(&'static str, Option<&'static str>)> {
    match finish {
        Finish::Stop | Finish::ToolCalls => Some(("completed", None)),
        Finish::Length => Some(("incomplete", Some("max_output_tokens"))),
        Finish::ContentFilter => Some(("incomplete", Some("content_filter"))),
        Finish::None => None,
    }
}

fn object(
    envelope: &Envelope,
    status: &str,
    output: &[Value],
    incomplete: Option<&str>,
    usage: Option<&Usage>,
) -> Value {
    json!({
        "id": envelope.id,
        "object": "response",
        "created_at": envelope.created,
        "model": envelope.model,
        "status": status,
        "error": null,
        "incomplete_details": incomplete.map(|reason| json!({"reason": reason})),
        "output": output,
        "usage": usage.map(|u| json!({
            "input_tokens": u.input,
            "input_tokens_details": {"cached_tokens": u.cached},
            "output_tokens": u.output,
            "output_tokens_details": {"reasoning_tokens": u.reasoning},
            "total_tokens": u.input + u.output,
        })),
    })
}
