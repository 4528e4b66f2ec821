//! Spans of turns, for a collector: request → turn → waiting for the agent → model calls → tools.
//!
//! Names and attributes by OpenTelemetry's conventions for generative AI
//! (<https://opentelemetry.io/docs/specs/semconv/gen-ai/>); never prompts, answers, arguments or keys.
//! Providers learn nothing of it: no `traceparent` goes out with a model call.

use crate::proxy::{Ended, Target};
use bootstrap::trace::{Kind, Parent, Span, Traces};
use contract::{EventBody, SessionId, event::TurnError};
use opentelemetry::KeyValue;
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

/// Longest name that the agent gave and that is told, in bytes.
const NAME_MAX: usize = 64;
/// Most spans of tools at once, and most sessions of OpenCode that are known: the agent makes both.
const MANY: usize = 1024;

/// Which turn a model call belongs to, by OpenCode's session. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls {
    traces: Traces,
    turns: Arc<RwLock<HashMap<String, Parent>>>,
}

impl Calls {
    pub(crate) fn new(traces: Traces) -> Self {
        Self {
            traces,
            turns: Arc::default(),
        }
    }

    pub(crate) fn traces(&self) -> &Traces {
        &self.traces
    }

    fn bind(&self, opencode_session: &str, turn: Parent) {
        let mut turns = self.turns.write().unwrap_or_else(PoisonError::into_inner);
        if turns.len() < MANY {
            turns.insert(opencode_session.to_owned(), turn);
        }
    }

    /// Forgets a turn; the session's next one may have begun.
    fn unbind(&self, opencode_sessions: &[String], turn: Parent) {
        let mut turns = self.turns.write().unwrap_or_else(PoisonError::into_inner);
        for session in opencode_sessions {
            if turns.get(session) == Some(&turn) {
                turns.remove(session);
            }
        }
    }

    /// A model call ended.
    pub(crate) fn ended(&self, call: &Ended<'_>) {
        if !self.traces.on() {
            return;
        }
        let parent = call.session.and_then(|session| {
            let turns = self.turns.read().unwrap_or_else(PoisonError::into_inner);
            turns.get(session).copied()
        });
        let model = call.model.unwrap_or("unknown");
        let start = SystemTime::now().checked_sub(call.started.elapsed());
        let mut span = self.traces.begin(
            || format!("chat {model}"),
            Kind::Client,
            parent,
            start,
            || {
                vec![
                    KeyValue::new("gen_ai.operation.name", "chat"),
                    KeyValue::new("gen_ai.provider.name", call.provider),
                    KeyValue::new("gen_ai.request.model", model.to_owned()),
                    KeyValue::new("gen_ai.usage.input_tokens", count(call.input_tokens)),
                    KeyValue::new("gen_ai.usage.output_tokens", count(call.output_tokens)),
                    KeyValue::new("http.response.status_code", i64::from(call.status)),
                ]
            },
        );
        if call.outcome != "ok" {
            span.failed(call.outcome);
        }
    }
}

/// Spans of one turn. Dropping it ends them.
pub(crate) struct TurnSpans {
    calls: Calls,
    turn: Span,
    wait: Span,
    tools: HashMap<String, Span>,
    /// OpenCode's sessions whose calls belong to this turn.
    bound: Vec<String>,
}

impl TurnSpans {
    /// A turn begins; `request` is the `traceparent` of the request that brought it.
    pub(crate) fn begin(
        calls: &Calls,
        session: &SessionId,
        opencode_session: &str,
        number: u32,
        target: &Target,
        request: Option<&str>,
    ) -> Self {
        let label = target.label();
        let turn = calls.traces.begin(
            || "invoke_agent opencode".to_owned(),
            Kind::Internal,
            request.and_then(Parent::parse),
            None,
            || {
                let (provider, model) = label.split_once('/').unwrap_or(("unknown", &label));
                vec![
                    KeyValue::new("gen_ai.operation.name", "invoke_agent"),
                    KeyValue::new("gen_ai.agent.name", "opencode"),
                    KeyValue::new("gen_ai.conversation.id", session.to_string()),
                    KeyValue::new("gen_ai.provider.name", provider.to_owned()),
                    KeyValue::new("gen_ai.request.model", model.to_owned()),
                    KeyValue::new("opencode.turn", i64::from(number)),
                ]
            },
        );
        let parent = turn.parent();
        let wait = calls.traces.begin(
            || "wait for agent".to_owned(),
            Kind::Internal,
            parent,
            None,
            Vec::new,
        );
        let mut spans = Self {
            calls: calls.clone(),
            turn,
            wait,
            tools: HashMap::new(),
            bound: Vec::new(),
        };
        spans.bind(opencode_session);
        spans
    }

    /// The trace's id, for the log.
    pub(crate) fn trace_id(&self) -> Option<String> {
        self.turn.parent().map(|parent| parent.trace_id())
    }

    /// Calls of this session of OpenCode belong to the turn: its own, or a sub-agent's.
    pub(crate) fn bind(&mut self, opencode_session: &str) {
        let Some(parent) = self.turn.parent() else {
            return;
        };
        let known = self.bound.iter().any(|bound| bound == opencode_session);
        if !known && self.bound.len() < MANY {
            self.calls.bind(opencode_session, parent);
            self.bound.push(opencode_session.to_owned());
        }
    }

    /// OpenCode has the prompt.
    pub(crate) fn delivered(&mut self) {
        self.wait = Span::default();
    }

    /// An event of the turn.
    pub(crate) fn event(&mut self, body: &EventBody) {
        if !self.calls.traces.on() {
            return;
        }
        match body {
            EventBody::ToolCall(call) if self.tools.len() < MANY => {
                let name = plain(&call.tool);
                let span = self.calls.traces.begin(
                    || format!("execute_tool {name}"),
                    Kind::Internal,
                    self.turn.parent(),
                    None,
                    || {
                        vec![
                            KeyValue::new("gen_ai.operation.name", "execute_tool"),
                            KeyValue::new("gen_ai.tool.name", name.clone()),
                            KeyValue::new("gen_ai.tool.call.id", plain(&call.call_id)),
                        ]
                    },
                );
                self.tools.insert(call.call_id.clone(), span);
            }
            EventBody::ToolResult(result) => {
                if let Some(mut span) = self.tools.remove(&result.call_id)
                    && !result.ok
                {
                    span.failed("tool_failed");
                }
            }
            _ => {}
        }
    }

    /// The turn ended with this event.
    pub(crate) fn end(&mut self, end: &EventBody) {
        match end {
            EventBody::Complete(complete) => self.turn.set(|| {
                vec![
                    KeyValue::new(
                        "gen_ai.usage.input_tokens",
                        count(complete.usage.input_tokens),
                    ),
                    KeyValue::new(
                        "gen_ai.usage.output_tokens",
                        count(complete.usage.output_tokens),
                    ),
                ]
            }),
            EventBody::Error(error) => self.turn.failed(TurnError::as_str(error.code)),
            _ => self.turn.failed("cancelled"),
        }
    }
}

impl Drop for TurnSpans {
    fn drop(&mut self) {
        if let Some(turn) = self.turn.parent() {
            self.calls.unbind(&self.bound, turn);
        }
    }
}

fn count(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

/// What the agent named, short and in one line.
fn plain(text: &str) -> String {
    let end = text.floor_char_boundary(NAME_MAX);
    text[..end].chars().filter(|c| !c.is_control()).collect()
}
