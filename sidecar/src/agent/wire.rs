//! What OpenCode says, in the few words we use.
//!
//! All of it is untrusted: every field may be missing or of another type, unknown kinds are kept by
//! name, long names are dropped, and nothing here panics. JSON is read into a value first, because a
//! surprise in one field must not hide the others.

mod json;
#[cfg(test)]
mod tests;

use crate::agent::text::clip;
use contract::Usage;
use json::{
    MAX_ITEMS, MAX_LINE, MAX_NAME, changed_file, flag, id, integer, line, read_json, some_line,
    strings, take, take_text, usage,
};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The payload is no JSON object of the expected shape.
#[derive(Debug, thiserror::Error)]
#[error("OpenCode sent what is no {what}")]
pub(crate) struct ParseError {
    what: &'static str,
    #[source]
    source: Option<serde_json::Error>,
}

/// One `data:` payload of `GET /event`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OcEvent {
    /// Session it is about.
    pub(crate) session: Option<String>,
    /// What happened.
    pub(crate) kind: OcKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum OcKind {
    MessageUpdated(MessageInfo),
    PartUpdated(Part),
    PartDelta {
        message_id: String,
        part_id: String,
        field: String,
        delta: String,
    },
    SessionCreated {
        id: String,
        parent_id: Option<String>,
        title: Option<String>,
        agent: Option<String>,
    },
    /// Sum of the session so far, former turns included.
    SessionUsage(Usage),
    SessionStatus(SessionStatus),
    SessionIdle,
    SessionError(OcError),
    SessionCompacted,
    TodoUpdated(Vec<Todo>),
    PermissionAsked(Permission),
    PermissionReplied {
        id: String,
        /// `once`, `always` or `reject`.
        reply: String,
    },
    QuestionAsked {
        id: String,
        session: String,
    },
    Connected,
    Heartbeat,
    /// A kind that we do not use, by its name.
    Other(String),
}

/// Whether a session works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SessionStatus {
    Busy,
    Idle,
    Retry {
        attempt: u64,
        message: String,
        /// When it tries again, in milliseconds since 1970.
        next_ms: Option<i64>,
    },
}

/// An error as OpenCode names it. Headers, body and address of the provider's answer are left out
/// on purpose: they may hold secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OcError {
    pub(crate) name: String,
    pub(crate) message: String,
    pub(crate) status_code: Option<u16>,
    pub(crate) retryable: Option<bool>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Todo {
    pub(crate) content: String,
    pub(crate) status: String,
    pub(crate) priority: String,
}

/// OpenCode asks for consent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Permission {
    pub(crate) id: String,
    pub(crate) session: Option<String>,
    pub(crate) permission: String,
    pub(crate) patterns: Vec<String>,
    pub(crate) metadata: Value,
    /// OpenCode's own id of the call, see [`TurnMap::call_of`](super::map::TurnMap::call_of).
    pub(crate) call_id: Option<String>,
}

/// Element of `GET /session/{id}/message`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Message {
    pub(crate) info: MessageInfo,
    pub(crate) parts: Vec<Part>,
}

/// A message without its parts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct MessageInfo {
    pub(crate) id: String,
    pub(crate) session_id: String,
    /// `user` or `assistant`.
    pub(crate) role: String,
    /// The user message that an assistant's message answers.
    pub(crate) parent_id: Option<String>,
    pub(crate) finish: Option<String>,
    pub(crate) error: Option<OcError>,
    /// Milliseconds since 1970.
    pub(crate) created: Option<i64>,
    /// Milliseconds since 1970.
    pub(crate) completed: Option<i64>,
    pub(crate) mode: String,
    pub(crate) agent: String,
    /// Whether it is the summary that a compaction makes.
    pub(crate) summary: bool,
    pub(crate) tokens: Usage,
    pub(crate) cost: f64,
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    pub(crate) id: String,
    pub(crate) message_id: String,
    pub(crate) session_id: String,
    pub(crate) kind: PartKind,
}

/// What a part is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PartKind {
    Text {
        text: String,
        /// Whether `text` is final.
        ended: bool,
        synthetic: bool,
        ignored: bool,
    },
    Reasoning {
        text: String,
        ended: bool,
    },
    Tool {
        tool: String,
        /// OpenCode's own; it may repeat.
        call_id: String,
        state: ToolState,
    },
    StepStart,
    StepFinish {
        reason: String,
        tokens: Usage,
        cost: f64,
    },
    Patch {
        files: Vec<String>,
    },
    Compaction,
    Other(String),
}

/// How far a tool is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ToolState {
    Pending,
    Running {
        input: Value,
        /// What it printed so far: cumulative, the last 30,000 characters.
        output: Option<String>,
        /// The session of the sub-agent that a `task` runs.
        child: Option<String>,
    },
    Completed {
        input: Value,
        output: String,
        title: Option<String>,
        metadata_output: Option<String>,
        exit: Option<i64>,
        truncated: bool,
        /// The file that `write` or `edit` changed.
        file: Option<String>,
        child: Option<String>,
        /// Milliseconds since 1970.
        start: Option<i64>,
        /// Milliseconds since 1970.
        end: Option<i64>,
    },
    Error {
        input: Value,
        error: String,
        metadata_output: Option<String>,
        child: Option<String>,
        /// Milliseconds since 1970.
        start: Option<i64>,
        /// Milliseconds since 1970.
        end: Option<i64>,
    },
}

impl OcEvent {
    /// Reads one `data:` payload of `GET /event`.
    ///
    /// # Errors
    /// When it is no JSON, or no object with a `type`.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, ParseError> {
        const WHAT: &str = "event";
        let mut value = read_json(json, WHAT)?;
        let Some(kind) = value.get("type").and_then(Value::as_str) else {
            return Err(ParseError {
                what: WHAT,
                source: None,
            });
        };
        let kind = clip(kind, MAX_NAME).into_owned();
        let mut properties = take(&mut value, "properties");
        let session = id(&properties, "sessionID")
            .or_else(|| {
                properties
                    .get("info")
                    .and_then(|info| id(info, "sessionID"))
            })
            .or_else(|| {
                properties
                    .get("part")
                    .and_then(|part| id(part, "sessionID"))
            });
        let (session, kind) = match kind.as_str() {
            "message.updated" => {
                let mut info = MessageInfo::from_value(&take(&mut properties, "info"));
                if info.session_id.is_empty() {
                    info.session_id = session.clone().unwrap_or_default();
                }
                (session, OcKind::MessageUpdated(info))
            }
            "message.part.updated" => {
                let mut part = Part::from_value(take(&mut properties, "part"));
                if part.session_id.is_empty() {
                    part.session_id = session.clone().unwrap_or_default();
                }
                (session, OcKind::PartUpdated(part))
            }
            "message.part.delta" => {
                let delta = OcKind::PartDelta {
                    message_id: id(&properties, "messageID").unwrap_or_default(),
                    part_id: id(&properties, "partID").unwrap_or_default(),
                    field: line(&properties, "field", MAX_NAME),
                    delta: take_text(&mut properties, "delta").unwrap_or_default(),
                };
                (session, delta)
            }
            "session.created" | "session.updated" => {
                let info = take(&mut properties, "info");
                let own = id(&info, "id").or(session);
                let event = if kind == "session.created" {
                    OcKind::SessionCreated {
                        id: own.clone().unwrap_or_default(),
                        parent_id: id(&info, "parentID"),
                        title: some_line(&info, "title"),
                        agent: some_line(&info, "agent"),
                    }
                } else {
                    OcKind::SessionUsage(usage(info.get("tokens")))
                };
                (own, event)
            }
            "session.status" => {
                let status = SessionStatus::from_value(&take(&mut properties, "status"));
                let event = status.map_or(OcKind::Other(kind), OcKind::SessionStatus);
                (session, event)
            }
            "session.idle" => (session, OcKind::SessionIdle),
            "session.error" => {
                let error = OcError::from_value(&take(&mut properties, "error"));
                (session, OcKind::SessionError(error))
            }
            "session.compacted" => (session, OcKind::SessionCompacted),
            "todo.updated" => {
                let todos = Todo::list(&take(&mut properties, "todos"));
                (session, OcKind::TodoUpdated(todos))
            }
            "permission.asked" => {
                let permission = Permission::from_value(properties);
                (session, OcKind::PermissionAsked(permission))
            }
            "permission.replied" => {
                let id = id(&properties, "requestID")
                    .or_else(|| id(&properties, "permissionID"))
                    .unwrap_or_default();
                let reply = line(&properties, "reply", MAX_NAME);
                (session, OcKind::PermissionReplied { id, reply })
            }
            "question.asked" => {
                let asked = OcKind::QuestionAsked {
                    id: id(&properties, "id").unwrap_or_default(),
                    session: session.clone().unwrap_or_default(),
                };
                (session, asked)
            }
            "server.connected" => (session, OcKind::Connected),
            "server.heartbeat" => (session, OcKind::Heartbeat),
            _ => (session, OcKind::Other(kind)),
        };
        Ok(Self { session, kind })
    }
}

impl Message {
    /// Reads the answer of `GET /session/{id}/message`. Unlike plain serde it also reads texts that
    /// OpenCode cut in the middle of a surrogate pair.
    ///
    /// # Errors
    /// When it is no JSON array.
    pub(crate) fn parse_list(json: &[u8]) -> Result<Vec<Self>, ParseError> {
        const WHAT: &str = "list of messages";
        match read_json(json, WHAT)? {
            Value::Array(messages) => Ok(messages.into_iter().map(Self::from_value).collect()),
            _ => Err(ParseError {
                what: WHAT,
                source: None,
            }),
        }
    }

    fn from_value(mut value: Value) -> Self {
        let info = MessageInfo::from_value(&take(&mut value, "info"));
        let parts = match take(&mut value, "parts") {
            Value::Array(parts) => parts.into_iter().map(Part::from_value).collect(),
            _ => Vec::new(),
        };
        Self { info, parts }
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self::from_value)
    }
}

impl MessageInfo {
    fn from_value(value: &Value) -> Self {
        let time = value.get("time");
        Self {
            id: id(value, "id").unwrap_or_default(),
            session_id: id(value, "sessionID").unwrap_or_default(),
            role: line(value, "role", MAX_NAME),
            parent_id: id(value, "parentID"),
            finish: value
                .get("finish")
                .and_then(Value::as_str)
                .map(|finish| clip(finish, MAX_NAME).into_owned()),
            error: value
                .get("error")
                .filter(|error| error.is_object())
                .map(OcError::from_value),
            created: time.and_then(|time| integer(time, "created")),
            completed: time.and_then(|time| integer(time, "completed")),
            mode: line(value, "mode", MAX_NAME),
            agent: line(value, "agent", MAX_NAME),
            // On a user's message `summary` is an object and says something else.
            summary: value.get("summary") == Some(&Value::Bool(true)),
            tokens: usage(value.get("tokens")),
            cost: value.get("cost").and_then(Value::as_f64).unwrap_or(0.0),
        }
    }
}

impl Part {
    fn from_value(mut value: Value) -> Self {
        Self {
            id: id(&value, "id").unwrap_or_default(),
            message_id: id(&value, "messageID").unwrap_or_default(),
            session_id: id(&value, "sessionID").unwrap_or_default(),
            kind: PartKind::from_value(&mut value),
        }
    }
}

impl PartKind {
    fn from_value(value: &mut Value) -> Self {
        let kind = line(value, "type", MAX_NAME);
        let ended = |value: &Value| {
            value
                .get("time")
                .is_some_and(|time| time.get("end").is_some_and(Value::is_number))
        };
        match kind.as_str() {
            "text" => Self::Text {
                ended: ended(value),
                synthetic: flag(value, "synthetic"),
                ignored: flag(value, "ignored"),
                text: take_text(value, "text").unwrap_or_default(),
            },
            "reasoning" => Self::Reasoning {
                ended: ended(value),
                text: take_text(value, "text").unwrap_or_default(),
            },
            "tool" => Self::Tool {
                tool: line(value, "tool", MAX_NAME),
                call_id: id(value, "callID").unwrap_or_default(),
                state: ToolState::from_value(take(value, "state")),
            },
            "step-start" => Self::StepStart,
            "step-finish" => Self::StepFinish {
                reason: line(value, "reason", MAX_NAME),
                tokens: usage(value.get("tokens")),
                cost: value.get("cost").and_then(Value::as_f64).unwrap_or(0.0),
            },
            "patch" => Self::Patch {
                files: strings(value, "files"),
            },
            "compaction" => Self::Compaction,
            _ => Self::Other(kind),
        }
    }
}

impl ToolState {
    fn from_value(mut value: Value) -> Self {
        let status = line(&value, "status", MAX_NAME);
        let input = take(&mut value, "input");
        let mut metadata = take(&mut value, "metadata");
        let printed = take_text(&mut metadata, "output");
        let child = id(&metadata, "sessionId").or_else(|| id(&metadata, "sessionID"));
        let time = take(&mut value, "time");
        let (start, end) = (integer(&time, "start"), integer(&time, "end"));
        match status.as_str() {
            "running" => Self::Running {
                input,
                output: printed,
                child,
            },
            "completed" => Self::Completed {
                input,
                output: take_text(&mut value, "output").unwrap_or_default(),
                title: some_line(&value, "title"),
                metadata_output: printed,
                exit: integer(&metadata, "exit"),
                truncated: flag(&metadata, "truncated"),
                file: changed_file(&metadata),
                child,
                start,
                end,
            },
            "error" => Self::Error {
                input,
                error: take_text(&mut value, "error").unwrap_or_default(),
                metadata_output: printed,
                child,
                start,
                end,
            },
            _ => Self::Pending,
        }
    }
}

impl SessionStatus {
    fn from_value(value: &Value) -> Option<Self> {
        match value.get("type").and_then(Value::as_str)? {
            "busy" => Some(Self::Busy),
            "idle" => Some(Self::Idle),
            "retry" => Some(Self::Retry {
                attempt: value.get("attempt").and_then(Value::as_u64).unwrap_or(0),
                message: line(value, "message", MAX_LINE),
                next_ms: integer(value, "next"),
            }),
            _ => None,
        }
    }
}

impl OcError {
    fn from_value(value: &Value) -> Self {
        let data = value.get("data").unwrap_or(&Value::Null);
        Self {
            name: line(value, "name", MAX_NAME),
            message: line(data, "message", MAX_LINE),
            status_code: data
                .get("statusCode")
                .and_then(Value::as_u64)
                .and_then(|code| u16::try_from(code).ok()),
            retryable: data.get("isRetryable").and_then(Value::as_bool),
        }
    }
}

impl Todo {
    fn list(value: &Value) -> Vec<Self> {
        let todos = value.as_array().map(Vec::as_slice).unwrap_or_default();
        todos
            .iter()
            .take(MAX_ITEMS)
            .map(|todo| Self {
                content: line(todo, "content", MAX_LINE),
                status: line(todo, "status", MAX_NAME),
                priority: line(todo, "priority", MAX_NAME),
            })
            .collect()
    }
}

impl Permission {
    fn from_value(mut value: Value) -> Self {
        Self {
            id: id(&value, "id").unwrap_or_default(),
            session: id(&value, "sessionID"),
            permission: line(&value, "permission", MAX_NAME),
            patterns: strings(&value, "patterns"),
            call_id: value.get("tool").and_then(|tool| id(tool, "callID")),
            metadata: take(&mut value, "metadata"),
        }
    }
}
