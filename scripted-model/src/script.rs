//! The script's types, as they are written in YAML.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::template::{Num, Template};

/// A file of scripts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptFile {
    /// Scenarios by name (ASCII letters, digits, `-` and `_`).
    pub scenarios: BTreeMap<String, Scenario>,
}

/// What the model says in one conversation.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// One line for the reader of `--list`.
    #[serde(default)]
    pub about: String,
    /// One step per model call. After the last step the default text is given.
    pub steps: Vec<Step>,
}

/// One answer of the model: parts, or a fault, or a fault that passes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The answer.
    #[serde(default)]
    pub parts: Vec<Part>,
    /// What goes wrong before an answer begins.
    #[serde(default)]
    pub fault: Option<Fault>,
    /// With `fault` and `parts`: the fault comes this many times, then the parts.
    #[serde(default)]
    pub times: Option<Num>,
    /// This step stands for so many equal steps; `{{n}}` counts them from 1.
    #[serde(default)]
    pub repeat: Option<Num>,
    /// How the answer ends. Default: `tool_calls` if there is a tool call, else `stop`.
    #[serde(default)]
    pub finish: Option<Finish>,
    /// Token counts. Default: estimated from the request's and the answer's length.
    #[serde(default)]
    pub usage: Option<Usage>,
    /// Cut the stream into writes of so many bytes, without regard for characters.
    #[serde(default)]
    pub split_bytes: Option<usize>,
}

/// A piece of an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Text, word by word at the server's default pace.
    Say(Template),
    /// Text with a pace of its own, or a number of made-up words.
    Text(TextPart),
    /// Thinking, word by word.
    Think(Template),
    /// A tool call.
    Tool(ToolPart),
    /// Many equal deltas as fast as the socket takes them.
    Flood {
        /// How many.
        count: Num,
        /// The text of each.
        text: String,
    },
    /// Silence, in milliseconds.
    WaitMs(Num),
    /// Bytes put on the stream as they are.
    Raw(String),
    /// The same, in hexadecimal with or without spaces, for bytes that are no text.
    RawHex(String),
    /// One line of the stream that does not end before so many bytes.
    EndlessLine {
        /// Length of the line in bytes.
        max_bytes: Num,
    },
    /// The dialect's error event in mid-stream.
    StreamError(ErrorBody),
    /// Silence until the client gives up.
    Hang,
    /// The connection breaks.
    Abort,
    /// The stream ends in good order but with neither finish reason nor terminator.
    End,
}

/// Text with its own pace. Exactly one of `text`, `words` and `letters` is given.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextPart {
    /// What to say.
    #[serde(default)]
    pub text: Option<Template>,
    /// How many made-up words to say (`word1 word2 ...`).
    #[serde(default)]
    pub words: Option<Num>,
    /// How many letters to say without a space.
    #[serde(default)]
    pub letters: Option<Num>,
    /// Wait after each delta, in milliseconds.
    #[serde(default)]
    pub delay_ms: Option<Num>,
    /// Characters per delta, instead of one word per delta.
    #[serde(default)]
    pub chunk_chars: Option<usize>,
}

/// A tool call. At most one of `args` and `raw` is given; without both: `{}`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolPart {
    /// The tool's name.
    pub name: Template,
    /// The arguments; placeholders are filled inside strings.
    #[serde(default)]
    pub args: Option<Value>,
    /// The arguments' text as it is, well formed or not.
    #[serde(default)]
    pub raw: Option<Template>,
}

/// What goes wrong instead of an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The provider's error.
    Error(ErrorFault),
    /// Any status, type and body.
    Answer(AnswerFault),
    /// The request is read and nothing is ever said.
    Hang,
    /// The connection is closed before an answer.
    Drop,
}

/// An error in the body's shape of the dialect asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorFault {
    /// HTTP status.
    pub status: Num,
    /// Extra headers, such as `retry-after`.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// What the error says.
    pub error: ErrorBody,
}

/// An error's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorBody {
    /// For people.
    pub message: Template,
    /// OpenAI's type; Anthropic's follows from the status unless `anthropic_type` is given.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// OpenAI's code.
    #[serde(default)]
    pub code: Option<String>,
    /// Anthropic's type.
    #[serde(default)]
    pub anthropic_type: Option<String>,
    /// Anthropic's words, where clients tell errors apart by them.
    #[serde(default)]
    pub anthropic_message: Option<Template>,
}

/// An answer that no provider should give.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerFault {
    /// HTTP status; default 200.
    #[serde(default = "ok")]
    pub status: u16,
    /// Extra headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// `content-type`; default `application/json`.
    #[serde(default = "json")]
    pub content_type: String,
    /// The body as it is.
    #[serde(default)]
    pub body: String,
}

fn ok() -> u16 {
    200
}

fn json() -> String {
    "application/json".to_owned()
}

/// Why the model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// It had said everything.
    Stop,
    /// It wants its tools run.
    ToolCalls,
    /// The token limit.
    Length,
    /// The provider's filter.
    ContentFilter,
    /// It does not say: the stream ends properly but gives no reason.
    None,
}

/// Token counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Prompt tokens, cached ones included.
    pub input: u64,
    /// Answer tokens, reasoning included.
    pub output: u64,
    /// Prompt tokens read from the cache.
    #[serde(default)]
    pub cached: u64,
    /// Tokens spent on thinking.
    #[serde(default)]
    pub reasoning: u64,
}
