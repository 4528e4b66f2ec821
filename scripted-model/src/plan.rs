//! Chooses the step for a request and fills it: from script to what is to be sent.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use crate::conversation::{Conversation, Dialect, Place};
use crate::encode::ErrorText;
use crate::library::{DEFAULT, INLINE, Library, TITLE, hex, inline_steps};
use crate::script::{ErrorBody, Fault, Finish, Part, Step, TextPart, ToolPart, Usage};
use crate::template::{Directive, TemplateError, Vars, fill_json};

/// Longer scripts of words or deltas are a typing error in a test.
const MOST_PIECES: u64 = 50_000_000;

/// What is to be sent.
#[derive(Debug)]
pub(crate) enum Answer {
    Reply(Reply),
    Error {
        status: u16,
        headers: Vec<(String, String)>,
        error: ErrorText,
    },
    Raw {
        status: u16,
        headers: Vec<(String, String)>,
        content_type: String,
        body: String,
    },
    Hang,
    Drop,
}

#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) finish: Finish,
    pub(crate) usage: Usage,
    pub(crate) split_bytes: Option<usize>,
}

/// A part with nothing left to fill in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Text {
        text: String,
        thinking: bool,
        chunk_chars: Option<usize>,
        delay: Duration,
    },
    Tool {
        id: String,
        name: String,
        arguments: String,
    },
    Flood {
        count: u64,
        text: String,
    },
    Wait(Duration),
    Raw(Bytes),
    EndlessLine(u64),
    Error(ErrorText),
    Hang,
    Abort,
    End,
}

#[derive(Debug)]
pub(crate) struct Plan {
    /// None if the prompt names no scenario and no title is asked for.
    pub(crate) scenario: Option<String>,
    pub(crate) step: usize,
    pub(crate) title: bool,
    pub(crate) answer: Answer,
}

/// Identifiers that do not repeat, not even after a restart of the server.
#[derive(Debug)]
pub(crate) struct Ids {
    nonce: String,
    next: AtomicU64,
}

impl Ids {
    pub(crate) fn new(nonce: impl Into<String>) -> Self {
        Self {
            nonce: nonce.into(),
            next: AtomicU64::new(1),
        }
    }

    pub(crate) fn next(&self, prefix: &str) -> String {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        format!("{prefix}{}{n:06}", self.nonce)
    }
}

/// How often each passing fault has come.
#[derive(Debug, Default)]
pub(crate) struct Counters(Mutex<HashMap<String, u64>>);

impl Counters {
    fn count(&self, key: String) -> u64 {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= 10_000 {
            map.clear();
        }
        let n = map.entry(key).or_insert(0);
        *n += 1;
        *n
    }

    pub(crate) fn clear(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

/// Everything beside the request that a plan depends on.
pub(crate) struct Planner<'a> {
    pub(crate) library: &'a Library,
    pub(crate) counters: &'a Counters,
    pub(crate) ids: &'a Ids,
    pub(crate) word_delay: Duration,
}

impl Planner<'_> {
    pub(crate) fn plan(
        &self,
        dialect: Dialect,
        talk: &Conversation,
        session: Option<&str>,
        body_bytes: usize,
    ) -> Plan {
        let title = talk.is_title_request();
        let place = talk.place();
        let Place {
            directive,
            step,
            turn,
        } = place;
        let scenario = if title {
            Some(TITLE.to_owned())
        } else {
            directive.as_ref().map(|d| d.name.clone())
        };
        let mut vars = Vars {
            directive: directive.clone().unwrap_or_default(),
            n: 1,
            step,
            user_messages: talk.user_messages(),
            remembered: talk.remembered(turn),
            model: talk.model.clone(),
            session: session.map(str::to_owned),
        };
        let answer = if title {
            self.scene(TITLE, 0, &mut vars)
        } else {
            match &directive {
                None => self.scene(DEFAULT, 0, &mut vars),
                Some(d) if d.name == INLINE => self.inline(d, step, &mut vars),
                Some(d) => self.scene(&d.name, step, &mut vars),
            }
        };
        let answer = answer.and_then(|chosen| match chosen {
            Chosen::Step(chosen) => {
                let key = format!(
                    "{}/{}/{turn}/{step}",
                    session.unwrap_or(""),
                    vars.directive.name
                );
                self.answer(dialect, &chosen, &vars, talk, body_bytes, key)
            }
            Chosen::Unknown(name) => Ok(complaint(format!(
                "There is no scenario {name:?}. Start the server with --list to see them."
            ))),
            Chosen::Refused(message) => Ok(complaint(message)),
        });
        let answer = answer.unwrap_or_else(|error| {
            let name = scenario.as_deref().unwrap_or(DEFAULT);
            complaint(format!("Scenario {name:?} cannot be played: {error}"))
        });
        Plan {
            scenario,
            step,
            title,
            answer,
        }
    }

    fn inline(
        &self,
        directive: &Directive,
        step: usize,
        vars: &mut Vars,
    ) -> Result<Chosen, TemplateError> {
        let text = crate::template::Template("{{all}}".into()).fill(vars)?;
        debug_assert_eq!(directive.name, INLINE);
        match inline_steps(&text) {
            Ok(steps) => self.pick(&steps, step, vars),
            Err(error) => Ok(Chosen::Refused(error.to_string())),
        }
    }

    fn scene(&self, name: &str, step: usize, vars: &mut Vars) -> Result<Chosen, TemplateError> {
        match self.library.get(name) {
            Some(scenario) => self.pick(&scenario.steps, step, vars),
            None => Ok(Chosen::Unknown(name.to_owned())),
        }
    }

    /// The step at `index`, repetitions counted; past the end the default text.
    fn pick(&self, steps: &[Step], index: usize, vars: &mut Vars) -> Result<Chosen, TemplateError> {
        let mut left = index as u64;
        for step in steps {
            let count = step.repeat.as_ref().map_or(Ok(1), |n| n.get(vars))?;
            if left < count {
                vars.n = left + 1;
                return Ok(Chosen::Step(Box::new(step.clone())));
            }
            left -= count;
        }
        let over = self.library.get(DEFAULT).and_then(|s| s.steps.first());
        Ok(over.map_or_else(
            || Chosen::Unknown(DEFAULT.to_owned()),
            |step| Chosen::Step(Box::new(step.clone())),
        ))
    }

    fn answer(
        &self,
        dialect: Dialect,
        step: &Step,
        vars: &Vars,
        talk: &Conversation,
        body_bytes: usize,
        key: String,
    ) -> Result<Answer, TemplateError> {
        if let Some(fault) = &step.fault {
            let over = match &step.times {
                Some(times) => self.counters.count(key) > times.get(vars)?,
                None => false,
            };
            if !over {
                return ready_fault(fault, vars);
            }
        }
        let pieces = step
            .parts
            .iter()
            .map(|part| self.piece(dialect, part, vars))
            .collect::<Result<Vec<_>, _>>()?;
        let calls = pieces.iter().any(|p| matches!(p, Piece::Tool { .. }));
        let natural = if calls {
            Finish::ToolCalls
        } else {
            Finish::Stop
        };
        let usage = step
            .usage
            .unwrap_or_else(|| estimate(&pieces, talk, body_bytes));
        Ok(Answer::Reply(Reply {
            finish: step.finish.unwrap_or(natural),
            usage,
            split_bytes: step.split_bytes,
            pieces,
        }))
    }

    fn piece(&self, dialect: Dialect, part: &Part, vars: &Vars) -> Result<Piece, TemplateError> {
        let paced = |text, thinking| Piece::Text {
            text,
            thinking,
            chunk_chars: None,
            delay: self.word_delay,
        };
        Ok(match part {
            Part::Say(text) => paced(text.fill(vars)?, false),
            Part::Think(text) => paced(text.fill(vars)?, true),
            Part::Text(TextPart {
                text,
                words,
                letters,
                delay_ms,
                chunk_chars,
            }) => Piece::Text {
                text: match (text, words, letters) {
                    (Some(text), _, _) => text.fill(vars)?,
                    (None, Some(words), _) => made_up(words.get(vars)?.min(MOST_PIECES)),
                    (None, None, Some(n)) => "a".repeat(n.get(vars)?.min(MOST_PIECES) as usize),
                    (None, None, None) => String::new(),
                },
                thinking: false,
                chunk_chars: *chunk_chars,
                delay: match delay_ms {
                    Some(ms) => Duration::from_millis(ms.get(vars)?),
                    None => self.word_delay,
                },
            },
            Part::Tool(ToolPart { name, args, raw }) => Piece::Tool {
                id: self.ids.next(if dialect == Dialect::Messages {
                    "toolu_"
                } else {
                    "call_"
                }),
                name: name.fill(vars)?,
                arguments: match (raw, args) {
                    (Some(raw), _) => raw.fill(vars)?,
                    (None, Some(args)) => fill_json(args, vars)?.to_string(),
                    (None, None) => Value::Object(serde_json::Map::new()).to_string(),
                },
            },
            Part::Flood { count, text } => Piece::Flood {
                count: count.get(vars)?.min(MOST_PIECES),
                text: text.clone(),
            },
            Part::WaitMs(ms) => Piece::Wait(Duration::from_millis(ms.get(vars)?)),
            Part::Raw(text) => Piece::Raw(Bytes::from(text.clone())),
            Part::EndlessLine { max_bytes } => Piece::EndlessLine(max_bytes.get(vars)?),
            // Checked when it was loaded.
            Part::RawHex(text) => Piece::Raw(Bytes::from(hex(text).unwrap_or_default())),
            Part::StreamError(error) => Piece::Error(error_text(error, vars)?),
            Part::Hang => Piece::Hang,
            Part::Abort => Piece::Abort,
            Part::End => Piece::End,
        })
    }
}

enum Chosen {
    Step(Box<Step>),
    Unknown(String),
    Refused(String),
}

/// Clients do not try again after a 400, so a typing error in a test shows at once.
fn complaint(message: String) -> Answer {
    let error = ErrorText {
        message,
        kind: Some("invalid_request_error".into()),
        code: Some("scripted_model".into()),
        ..ErrorText::default()
    };
    Answer::Error {
        status: 400,
        headers: Vec::new(),
        error,
    }
}

fn ready_fault(fault: &Fault, vars: &Vars) -> Result<Answer, TemplateError> {
    let pairs = |map: &std::collections::BTreeMap<String, String>| {
        map.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    Ok(match fault {
        Fault::Hang => Answer::Hang,
        Fault::Drop => Answer::Drop,
        Fault::Error(f) => Answer::Error {
            status: match f.status.get(vars)? {
                status @ 200..=599 => status as u16,
                status => return Err(TemplateError::NotANumber(format!("status {status}"))),
            },
            headers: pairs(&f.headers),
            error: error_text(&f.error, vars)?,
        },
        Fault::Answer(f) => Answer::Raw {
            status: f.status,
            headers: pairs(&f.headers),
            content_type: f.content_type.clone(),
            body: f.body.clone(),
        },
    })
}

fn error_text(error: &ErrorBody, vars: &Vars) -> Result<ErrorText, TemplateError> {
    let ErrorBody {
        message,
        kind,
        code,
        anthropic_type,
        anthropic_message,
    } = error;
    Ok(ErrorText {
        message: message.fill(vars)?,
        kind: kind.clone(),
        code: code.clone(),
        anthropic_type: anthropic_type.clone(),
        anthropic_message: anthropic_message
            .as_ref()
            .map(|m| m.fill(vars))
            .transpose()?,
    })
}

fn made_up(count: u64) -> String {
    use std::fmt::Write as _;
    (1..=count).fold(String::new(), |mut out, n| {
        let _ = write!(out, "{}word{n}", if n == 1 { "" } else { " " });
        out
    })
}

/// About four characters a token, as English has. From the second call of a
/// conversation on, half of the prompt counts as cached.
fn estimate(pieces: &[Piece], talk: &Conversation, body_bytes: usize) -> Usage {
    let tokens = |chars: usize| chars.div_ceil(4) as u64;
    let (mut output, mut reasoning) = (0, 0);
    for piece in pieces {
        match piece {
            Piece::Text {
                text,
                thinking: true,
                ..
            } => reasoning += tokens(text.len()),
            Piece::Text { text, .. } => output += tokens(text.len()),
            Piece::Tool {
                name, arguments, ..
            } => output += tokens(name.len() + arguments.len()),
            Piece::Flood { count, text } => output += count * tokens(text.len()),
            Piece::Wait(_)
            | Piece::Raw(_)
            | Piece::EndlessLine(_)
            | Piece::Error(_)
            | Piece::Hang
            | Piece::Abort
            | Piece::End => {}
        }
    }
    let input = tokens(body_bytes).max(1);
    let spoken = talk
        .turns
        .iter()
        .any(|t| t.role == crate::conversation::Role::Assistant);
    let cached = if spoken { input / 2 } else { 0 };
    Usage {
        input,
        output: output + reasoning,
        cached,
        reasoning,
    }
}
