//! One thing that happened in a session, as every reader sees it.
//!
//! On a stream an event is `id: <cursor>`, `event: <type>`, `data: <this as JSON>`. Numbered events
//! are stored in exactly this form and never change. [`Gap`] is also sent unnumbered, when a cursor
//! cannot be served; `heartbeat` is never numbered.
//!
//! Changes are additive: a reader ignores fields and types that it does not know.

use crate::usage::Usage;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Name of the agent that the user talks to; sub-agents are `main/1`, `main/2`, …
pub const MAIN_AGENT: &str = "main";

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// Number of the turn in its session, from 1.
    pub turn: u32,
    /// When the sidecar recorded it. For people; order is given by the event's number.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub ts: Timestamp,
    /// Who did it: [`MAIN_AGENT`] or a sub-agent.
    pub agent: String,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum EventBody {
    /// Text of the assistant or of a running tool.
    Output(Output),
    /// The model calls a tool.
    ToolCall(ToolCall),
    /// A tool ended.
    ToolResult(ToolResult),
    /// Where the turn stands.
    Status(Status),
    /// Something went wrong; with `fatal` the turn is over.
    Error(ErrorEvent),
    /// The turn is done.
    Complete(Complete),
    /// A tool needs somebody's consent, or got its answer.
    Approval(ApprovalEvent),
    /// Events that the reader should have had are no longer to be had.
    Gap(Gap),
}

impl EventBody {
    /// The `event:` line of the stream.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Output(_) => "output",
            Self::ToolCall(_) => "tool_call",
            Self::ToolResult(_) => "tool_result",
            Self::Status(_) => "status",
            Self::Error(_) => "error",
            Self::Complete(_) => "complete",
            Self::Approval(_) => "approval",
            Self::Gap(_) => "gap",
        }
    }

    /// Whether this is the last event of its turn: `complete`, `error` with `fatal`, or
    /// `status` `cancelled`.
    #[must_use]
    pub fn ends_turn(&self) -> bool {
        match self {
            Self::Complete(_) => true,
            Self::Error(error) => error.fatal,
            Self::Status(status) => status.status == StatusKind::Cancelled,
            Self::Output(_)
            | Self::ToolCall(_)
            | Self::ToolResult(_)
            | Self::Approval(_)
            | Self::Gap(_) => false,
        }
    }
}

/// Whose text an [`Output`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum OutputSource {
    /// The assistant's answer.
    Assistant,
    /// What a running tool printed so far (stdout and stderr merged, as OpenCode gives it).
    Tool,
}

/// A piece of text. The text of a part is all its pieces in order; a piece with `replace` begins
/// it anew.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Output {
    /// The piece.
    pub text: String,
    /// Which text it belongs to.
    pub part_id: String,
    /// Where in that text it begins, in bytes of UTF-8.
    pub offset: u64,
    /// Whose text it is.
    pub source: OutputSource,
    /// What came before in this part was not what the agent stored: drop it, this is the text.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
}

/// The model calls a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ToolCall {
    /// Joins call, output (`part_id`) and result.
    pub call_id: String,
    /// Name of the tool, as in `bash`.
    pub tool: String,
    /// Arguments, as the model gave them.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub input: serde_json::Value,
}

/// A tool ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ToolResult {
    /// As in its [`ToolCall`].
    pub call_id: String,
    /// Name of the tool.
    pub tool: String,
    /// False where the tool itself failed; a command with an exit code above 0 is no failure.
    pub ok: bool,
    /// What the model is told. Long texts are cut by OpenCode (`truncated`).
    pub output: String,
    /// One line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Exit code of a command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// Whether `output` is not all there was.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// How long it ran, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
}

/// Where a turn stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum StatusKind {
    /// Recorded; the agent is not yet ready for it.
    Queued,
    /// A key is missing; it goes on by itself when the Secret is there.
    WaitingForKey,
    /// The agent works.
    Running,
    /// The model thinks.
    Thinking,
    /// A step (one model call and its tools) began or ended; `progress` says which.
    Step,
    /// The provider refused or failed for now; OpenCode tries again.
    Retrying,
    /// The conversation is being shortened.
    Compacting,
    /// The agent's list of things to do changed.
    Todo,
    /// A sub-agent began.
    SubAgent,
    /// OpenCode was restarted; the turn goes on if it could, else an `error` follows.
    AgentRestarted,
    /// The watchdog saw something that hangs or loops, or memory run low; `detail` has its `cause`.
    Watchdog,
    /// The workspace was kept as it is after the turn, or could not be: `progress` says so, `detail` is a
    /// [`CheckpointDetail`](crate::checkpoint::CheckpointDetail).
    Checkpoint,
    /// The turn was cancelled: its last event.
    Cancelled,
}

/// Where the turn stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Status {
    /// The state.
    pub status: StatusKind,
    /// One sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// What the step that ended used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// When OpenCode tries again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub retry_at: Option<Timestamp>,
    /// More, by kind: the list of things to do, the sub-agent's description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub detail: Option<serde_json::Value>,
}

impl Status {
    /// A state with one sentence.
    #[must_use]
    pub fn new(status: StatusKind, progress: impl Into<String>) -> Self {
        Self {
            status,
            progress: Some(progress.into()),
            usage: None,
            retry_at: None,
            detail: None,
        }
    }
}

/// Something went wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorEvent {
    /// What, to what, and what to do next.
    pub error: String,
    /// Whether the turn is over.
    pub fatal: bool,
    /// Stable reason for machines, see [`TurnError`].
    pub code: TurnError,
}

macro_rules! turn_errors {
    ($($(#[$doc:meta])+ $name:ident = $text:literal,)+) => {
        /// Why a turn ended badly. Stable: names never change their meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        pub enum TurnError {
            $($(#[$doc])+ #[serde(rename = $text)] $name,)+
        }

        impl TurnError {
            /// All of them. docs/errors.md explains each; a test fails when one lacks there.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// As it stands in the event's `code`; also a label of metrics.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

turn_errors! {
    /// The provider refused the key (401, 403).
    ProviderAuth = "provider_auth",
    /// The provider's limit of requests or money (429, quota), after all retries.
    ProviderRateLimit = "provider_rate_limit",
    /// Any other answer of the provider that is an error.
    ProviderError = "provider_error",
    /// The provider did not answer, or stopped in mid-answer, after all retries.
    ProviderUnreachable = "provider_unreachable",
    /// A 2xx of the provider was no answer of a model, or its answers made no sense several times in a row.
    ProviderGarbled = "provider_garbled",
    /// The model does not exist or may not be used.
    ModelNotFound = "model_not_found",
    /// The conversation no longer fits into the model's context.
    ContextOverflow = "context_overflow",
    /// The provider's content filter stopped it.
    ContentFilter = "content_filter",
    /// The key that came with the request is gone: it is never stored.
    KeyRequired = "key_required",
    /// A tool's question or permission was rejected and the agent stopped.
    Rejected = "rejected",
    /// The turn ran longer than allowed.
    TurnTimeout = "turn_timeout",
    /// OpenCode died or was restarted in mid-turn.
    AgentDied = "agent_died",
    /// OpenCode did not answer for too long and was restarted.
    AgentUnresponsive = "agent_unresponsive",
    /// OpenCode worked at the turn and said nothing for too long.
    AgentSilent = "agent_silent",
    /// A tool neither printed nor computed for too long.
    ToolStalled = "tool_stalled",
    /// Too many model calls, or the same call again and again.
    Loop = "loop",
    /// The pod or the sidecar ended in mid-turn and the turn could not be taken up again.
    Interrupted = "interrupted",
    /// OpenCode refused or failed for a reason of its own.
    AgentError = "agent_error",
    /// The volume is full.
    DiskFull = "disk_full",
    /// The sidecar was told to stop.
    ShuttingDown = "shutting_down",
    /// The pod's budget of tokens, money or calls is used up.
    BudgetExhausted = "budget_exhausted",
    /// The pod has a budget of money and this model has no price.
    ModelUnpriced = "model_unpriced",
    /// The agent called the model too often, or with the same request again and again.
    CallLoop = "call_loop",
    /// The endpoint of the model's provider was changed in mid-turn.
    EndpointChanged = "endpoint_changed",
}

/// The turn is done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Complete {
    /// The assistant's last text, as OpenCode stored it.
    pub final_message: String,
    /// Files that changed, relative to the workspace, sorted.
    pub files_modified: Vec<String>,
    /// What the turn used, sub-agents included.
    #[serde(default)]
    pub usage: Usage,
    /// Why the model stopped: `stop`, `length`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<String>,
}

/// A tool needs consent, or got its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ApprovalEvent {
    /// For `POST /sessions/{id}/approvals/{approval_id}`.
    pub approval_id: String,
    /// Whether it is asked or answered.
    pub state: ApprovalState,
    /// What is asked for, as in `bash`.
    pub permission: String,
    /// What of it, as in the commands to run.
    pub patterns: Vec<String>,
    /// The tool that wants to run, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// The call that waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// Until when somebody may answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub until: Option<Timestamp>,
    /// What kind of answer it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided: Option<DecidedBy>,
    /// Who or what answered: the caller's subject, or the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// What the answer said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Where an approval stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum ApprovalState {
    /// Somebody has to decide.
    Pending,
    /// Allowed.
    Approved,
    /// Refused.
    Rejected,
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum DecidedBy {
    /// Somebody, through the session API.
    Caller,
    /// A rule of the pod.
    Policy,
    /// An earlier answer `always` of this session.
    Consent,
    /// Nobody answered in time.
    Deadline,
    /// The agent's own side: refused along with another call, or answered past this API.
    Agent,
}

/// Events that a reader should have had are no longer to be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Gap {
    /// First missing number.
    pub from: u64,
    /// Last missing number; the next event has `to + 1`.
    pub to: u64,
    /// Why.
    pub reason: GapReason,
}

/// Why events are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum GapReason {
    /// Older events were removed to free space.
    Trimmed,
    /// The cursor is of another history: the volume was lost, restored or quarantined.
    EpochChanged,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_flat_and_round_trips() {
        let event = Event {
            turn: 2,
            ts: "2026-11-21T08:00:00Z".parse().unwrap(),
            agent: MAIN_AGENT.into(),
            body: EventBody::Output(Output {
                text: "hi".into(),
                part_id: "prt_1".into(),
                offset: 3,
                source: OutputSource::Assistant,
                replace: false,
            }),
        };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(
            json,
            r#"{"turn":2,"ts":"2026-11-21T08:00:00Z","agent":"main","type":"output","text":"hi","part_id":"prt_1","offset":3,"source":"assistant"}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let json = r#"{"turn":1,"ts":"2026-11-21T08:00:00Z","agent":"main","type":"status","status":"running","later":1}"#;
        assert_eq!(
            serde_json::from_str::<Event>(json).unwrap().body.name(),
            "status"
        );
    }
}
