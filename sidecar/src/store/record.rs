//! What the journal of a session holds: events that readers see and notes that only we read.

use super::book::Entry;
use contract::{
    Event, EventBody, SessionId,
    approval::Decision,
    event::{ErrorEvent, StatusKind, TurnError},
    session::ModelConfig,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Longest text of merged `output` events, in bytes.
const MERGED_TEXT_MAX: usize = 4096;

/// One entry of a session's journal.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    /// Numbered; stored as it is sent, without its `id:` line.
    Event(Event),
    /// Not numbered; needed to go on after a restart.
    Note(Note),
}

/// What a restart must know beyond the events.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub(crate) enum Note {
    /// First of every journal.
    Created(Created),
    /// A turn was accepted.
    Turn(TurnNote),
    /// OpenCode has the turn's prompt: it must never be sent again.
    Delivered { turn: u32 },
    /// A new process of the sidecar goes on with the turn.
    TakenUp { turn: u32, at: Timestamp },
    /// An approval was answered with `always`.
    Always(Always),
    /// Of the pod's own journal.
    Checkpoints(Entry),
}

/// How a session was made. Its key, if it brought one, is never written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Created {
    pub session_id: SessionId,
    pub at: Timestamp,
    /// Chosen by us, so that making it twice makes one.
    pub opencode_session: String,
    pub model_config: Option<ModelConfig>,
    /// The session came with a key of its own.
    pub own_key: bool,
    pub system_prompt: Option<String>,
}

/// An accepted turn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TurnNote {
    pub turn: u32,
    pub at: Timestamp,
    /// Id of the user message, chosen by us.
    pub message_id: String,
    pub prompt: String,
    /// Who asked, from the token.
    pub author: String,
    pub idempotency: Option<Idempotency>,
    /// `traceparent` of the request that brought it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

/// A request that may come twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Idempotency {
    pub key: String,
    /// SHA-256 of the body.
    pub body: String,
}

/// A standing consent of one session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Always {
    pub permission: String,
    pub patterns: Vec<String>,
    pub decision: Decision,
}

impl Record {
    /// Whether it is worth a line in what people read of a session, see
    /// [`derived`](super::derived).
    pub(super) fn is_decision(&self) -> bool {
        match self {
            Self::Note(Note::Delivered { .. } | Note::Checkpoints(_)) => false,
            Self::Note(_) => true,
            Self::Event(event) => match &event.body {
                EventBody::Approval(_) | EventBody::Complete(_) | EventBody::Error(_) => true,
                EventBody::Status(status) => matches!(
                    status.status,
                    StatusKind::Queued
                        | StatusKind::WaitingForKey
                        | StatusKind::AgentRestarted
                        | StatusKind::Watchdog
                        | StatusKind::Cancelled
                ),
                EventBody::Output(_)
                | EventBody::ToolCall(_)
                | EventBody::ToolResult(_)
                | EventBody::Gap(_) => false,
            },
        }
    }
}

impl journal::Entry for Record {
    fn is_event(&self) -> bool {
        matches!(self, Self::Event(_))
    }

    /// Text that waits behind a sync joins the text before it: fewer events, the same text.
    fn merge(&mut self, next: Self) -> Result<(), Self> {
        let (Self::Event(first), Self::Event(second)) = (&mut *self, &next) else {
            return Err(next);
        };
        let (EventBody::Output(a), EventBody::Output(b)) = (&mut first.body, &second.body) else {
            return Err(next);
        };
        let joins = first.turn == second.turn
            && first.agent == second.agent
            && a.part_id == b.part_id
            && a.source == b.source
            && !b.replace
            && a.offset + a.text.len() as u64 == b.offset
            && a.text.len() + b.text.len() <= MERGED_TEXT_MAX;
        if !joins {
            return Err(next);
        }
        a.text.push_str(&b.text);
        Ok(())
    }

    fn size(&self) -> usize {
        const OVERHEAD: usize = 256;
        OVERHEAD
            + match self {
                Self::Event(event) => match &event.body {
                    EventBody::Output(output) => output.text.len(),
                    EventBody::ToolResult(result) => result.output.len(),
                    EventBody::Complete(complete) => {
                        complete.final_message.len()
                            + complete
                                .files_modified
                                .iter()
                                .map(String::len)
                                .sum::<usize>()
                    }
                    EventBody::Error(error) => error.error.len(),
                    EventBody::ToolCall(call) => json_size(&call.input),
                    EventBody::Status(status) => status.detail.as_ref().map_or(0, json_size),
                    EventBody::Approval(approval) => {
                        approval.patterns.iter().map(String::len).sum()
                    }
                    EventBody::Gap(_) => 0,
                },
                Self::Note(Note::Turn(turn)) => turn.prompt.len(),
                Self::Note(
                    Note::Created(_)
                    | Note::Delivered { .. }
                    | Note::TakenUp { .. }
                    | Note::Always(_)
                    | Note::Checkpoints(_),
                ) => OVERHEAD,
            }
    }

    /// Readers are told that something is missing, and a turn still has its end.
    fn stand_in(&self, len: usize) -> Option<Self> {
        let Self::Event(event) = self else {
            return None;
        };
        let error = ErrorEvent {
            error: format!(
                "an event of type {} came out with {len} bytes, too large to be recorded",
                event.body.name()
            ),
            fatal: event.body.ends_turn(),
            code: TurnError::AgentError,
        };
        Some(Self::Event(Event {
            turn: event.turn,
            ts: event.ts,
            agent: event.agent.clone(),
            body: EventBody::Error(error),
        }))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Event(event) => encode_event(event, out),
            Self::Note(note) => {
                serde_json::to_writer(out, note).expect("plain data has a JSON form");
            }
        }
    }
}

/// About how much memory a value takes.
fn json_size(value: &serde_json::Value) -> usize {
    use serde_json::Value;
    const EACH: usize = 32;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => EACH,
        Value::String(text) => EACH + text.len(),
        Value::Array(items) => EACH + items.iter().map(json_size).sum::<usize>(),
        Value::Object(fields) => {
            EACH + fields
                .iter()
                .map(|(name, value)| EACH + name.len() + json_size(value))
                .sum::<usize>()
        }
    }
}

/// `event:` and `data:` lines and the blank line: what a stream sends after the `id:` line.
pub(crate) fn encode_event(event: &Event, out: &mut Vec<u8>) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(event.body.name().as_bytes());
    out.extend_from_slice(b"\ndata: ");
    serde_json::to_writer(&mut *out, event).expect("plain data has a JSON form");
    out.extend_from_slice(b"\n\n");
}

/// The JSON of a stored event.
pub(crate) fn event_json(payload: &[u8]) -> Option<&[u8]> {
    let start = payload.iter().position(|b| *b == b'\n')? + 1;
    payload
        .get(start..)?
        .strip_prefix(b"data: ")?
        .strip_suffix(b"\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::event::{Output, OutputSource};
    use journal::Entry;

    fn output(text: &str, offset: u64) -> Record {
        Record::Event(Event {
            turn: 1,
            ts: Timestamp::UNIX_EPOCH,
            agent: "main".into(),
            body: EventBody::Output(Output {
                text: text.into(),
                part_id: "p".into(),
                offset,
                source: OutputSource::Assistant,
                replace: false,
            }),
        })
    }

    #[test]
    fn only_adjoining_text_merges_and_stays_bounded() {
        let mut first = output("ab", 0);
        assert!(first.merge(output("cd", 2)).is_ok());
        assert!(first.merge(output("x", 9)).is_err(), "a hole");
        assert!(
            first
                .merge(output(&"y".repeat(MERGED_TEXT_MAX), 4))
                .is_err(),
            "too long"
        );
        let mut bytes = Vec::new();
        first.encode(&mut bytes);
        let event: Event = serde_json::from_slice(event_json(&bytes).unwrap()).unwrap();
        assert!(matches!(event.body, EventBody::Output(o) if o.text == "abcd"));
    }

    #[test]
    fn what_is_too_large_is_told_and_a_turn_still_ends() {
        let Some(Record::Event(told)) = output("x", 0).stand_in(70_000_000) else {
            panic!("nothing stands in");
        };
        assert!(!told.body.ends_turn() && told.turn == 1);
        let complete = Record::Event(Event {
            body: EventBody::Complete(contract::event::Complete::default()),
            ..told
        });
        let Some(Record::Event(end)) = complete.stand_in(70_000_000) else {
            panic!("nothing stands in");
        };
        assert!(end.body.ends_turn());
    }

    #[test]
    fn line_breaks_in_text_stay_on_one_data_line() {
        let mut bytes = Vec::new();
        output("a\nb\r\n\u{2028}\u{0}", 0).encode(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.matches('\n').count(), 3, "{text:?}");
        assert!(!text.contains('\r'), "{text:?}");
    }
}
