//! OpenAI chat completions.

use serde_json::{Map, Value, json};

use super::{Block, Encoder, Envelope, ErrorText, error_body, event};
use crate::conversation::Dialect;
use crate::script::{Finish, Usage};

pub(super) struct Chat {
    envelope: Envelope,
    /// Tool calls opened so far; the last one's index is one less.
    calls: usize,
    open: Option<Block>,
}

impl Chat {
    pub(super) fn new(envelope: Envelope) -> Self {
        Self {
            envelope,
            calls: 0,
            open: None,
        }
    }

    fn chunk(&self, choices: Value) -> Value {
        json!({
            "id": self.envelope.id,
            "object": "chat.completion.chunk",
            "created": self.envelope.created,
            "model": self.envelope.model,
            "choices": choices,
        })
    }

    fn choice(&self, delta: Value, finish: Option<&str>) -> String {
        let choice = json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
        event(None, &self.chunk(choice))
    }
}

impl Encoder for Chat {
    fn begin(&mut self) -> String {
        self.choice(json!({"role": "assistant", "content": ""}), None)
    }

    fn open(&mut self, block: &Block) -> String {
        self.open = Some(block.clone());
        let Block::Tool { id, name } = block else {
            return String::new();
        };
        self.calls += 1;
        let call = json!({"tool_calls": [{
            "index": self.calls - 1,
            "id": id,
            "type": "function",
            "function": {"name": name, "arguments": ""},
        }]});
        self.choice(call, None)
    }

    fn delta(&mut self, text: &str) -> String {
        let delta = match &self.open {
            Some(Block::Thinking) => json!({"reasoning_content": text}),
            Some(Block::Tool { .. }) => json!({"tool_calls": [{
                "index": self.calls - 1,
                "function": {"arguments": text},
            }]}),
            Some(Block::Text) | None => json!({"content": text}),
        };
        self.choice(delta, None)
    }

    fn close(&mut self) -> String {
        self.open = None;
        String::new()
    }

    fn finish(&mut self, finish: Finish, usage: &Usage) -> String {
        let mut out = String::new();
        if let Some(reason) = reason(finish) {
            out.push_str(&self.choice(json!({}), Some(reason)));
            if self.envelope.stream_usage {
                let mut chunk = self.chunk(json!([]));
                chunk["usage"] = usage_object(usage);
                out.push_str(&event(None, &chunk));
            }
        }
        out.push_str("data: [DONE]\n\n");
        out
    }

    fn error(&mut self, error: &ErrorText) -> String {
        event(None, &error_body(Dialect::Chat, 500, error, ""))
    }
}

pub(super) fn whole(
    envelope: &Envelope,
    blocks: &[(Block, String)],
    finish: Finish,
    usage: &Usage,
) -> Value {
    let (mut text, mut thinking, mut calls) = (String::new(), String::new(), Vec::new());
    for (block, content) in blocks {
        match block {
            Block::Text => text.push_str(content),
            Block::Thinking => thinking.push_str(content),
            Block::Tool { id, name } => calls.push(json!({
                "id": id,
                "type": "function",
                "function": {"name": name, "arguments": content},
            })),
        }
    }
    let mut message = Map::new();
    message.insert("role".into(), "assistant".into());
    let silent = text.is_empty() && !calls.is_empty();
    message.insert(
        "content".into(),
        if silent { Value::Null } else { text.into() },
    );
    if !thinking.is_empty() {
        message.insert("reasoning_content".into(), thinking.into());
    }
    if !calls.is_empty() {
        message.insert("tool_calls".into(), calls.into());
    }
    json!({
        "id": envelope.id,
        "object": "chat.completion",
        "created": envelope.created,
        "model": envelope.model,
        "choices": [{"index": 0, "message": message, "finish_reason": reason(finish)}],
        "usage": usage_object(usage),
    })
}

fn reason(finish: Finish) -> Option<&'static str> {
    match finish {
        Finish::Stop => Some("stop"),
        Finish::ToolCalls => Some("tool_calls"),
        Finish::Length => Some("length"),
        Finish::ContentFilter => Some("content_filter"),
        Finish::None => None,
    }
}

fn usage_object(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    })
}
