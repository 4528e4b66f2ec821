//! How a turn ends.

use super::TurnMap;
use crate::agent::text::{MAX_SEEN, clip};
use crate::agent::wire::MessageInfo;
use contract::Usage;
use contract::event::ErrorEvent;
use std::collections::BTreeMap;

/// Longest last text, in bytes. The pieces of `output` have all of it.
const MAX_FINAL: usize = 1024 * 1024;

/// What is known of how a turn ends. An error is not an end: OpenCode may still recover (a
/// conversation that is too long is compacted), so wait until the session is idle.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// The first error that the turn did not recover from; `fatal` is set.
    pub(crate) error: Option<ErrorEvent>,
    /// Somebody aborted it.
    pub(crate) aborted: bool,
    /// Last text of the assistant.
    pub(crate) final_message: String,
    /// Relative to the workspace where they are inside of it; sorted.
    pub(crate) files_modified: Vec<String>,
    /// Sub-agents included.
    pub(crate) usage: Usage,
    /// Of the last message of the assistant.
    pub(crate) finish: Option<String>,
    /// Whether the assistant answered at all.
    pub(crate) has_assistant: bool,
    /// The last message of the assistant is complete and ends a run.
    pub(crate) completed: bool,
    /// How many messages in a row, up to the last complete one, ended for no known reason and called
    /// no tool.
    pub(crate) unknown_finishes: u32,
    /// Model calls that began, sub-agents not included.
    pub(crate) steps: u32,
}

impl TurnMap {
    /// What is known now. Costs time linear in the number of changed files and trailing unknown
    /// finishes.
    pub(crate) fn outcome(&self) -> Outcome {
        let last = self.answers.last();
        Outcome {
            error: self.error.clone(),
            aborted: self.aborted,
            final_message: self
                .answers
                .text
                .as_ref()
                .map_or("", |text| &text.text)
                .to_owned(),
            files_modified: self.files.iter().cloned().collect(),
            usage: self.usage,
            finish: last.and_then(|answer| answer.finish.clone()),
            has_assistant: last.is_some(),
            completed: last.is_some_and(Answer::ends_run),
            unknown_finishes: self.unknown_finishes(),
            steps: self.sessions.get(&self.root).map_or(0, |root| root.steps),
        }
    }
}

impl TurnMap {
    /// As in [`Outcome::unknown_finishes`], without the cost of the rest: for a look at every event.
    pub(crate) fn unknown_finishes(&self) -> u32 {
        self.answers.unknown_finishes()
    }
}

/// The assistant's messages of the root, in the order in which they began; summaries left out.
#[derive(Debug, Default)]
pub(super) struct Answers {
    by_time: BTreeMap<Key, Answer>,
    keys: BTreeMap<String, Key>,
    text: Option<LastText>,
}

type Key = (i64, String);

#[derive(Debug, Default)]
struct Answer {
    finish: Option<String>,
    completed: bool,
    failed: bool,
    tools: bool,
}

#[derive(Debug)]
struct LastText {
    key: Key,
    part: String,
    text: String,
}

impl Answer {
    fn ends_run(&self) -> bool {
        let ends = |finish: &str| finish != "tool-calls" && finish != "unknown";
        self.completed && self.finish.as_deref().is_some_and(ends)
    }

    fn is_good(&self) -> bool {
        let good = matches!(self.finish.as_deref(), Some("stop" | "length"));
        self.completed && good && !self.failed
    }
}

impl Answers {
    /// Takes note of a message. Whether it now shows that the run recovered: an answer that ended as
    /// it should.
    pub(super) fn update(&mut self, info: &MessageInfo, is_answer: bool) -> bool {
        if !is_answer {
            return false;
        }
        let key = self
            .keys
            .entry(info.id.clone())
            .or_insert_with(|| (info.created.unwrap_or(i64::MAX), info.id.clone()))
            .clone();
        let answer = self.by_time.entry(key).or_default();
        let before = answer.is_good();
        answer.finish = info.finish.clone().or(answer.finish.take());
        answer.completed |= info.completed.is_some();
        answer.failed |= info.error.is_some();
        let after = answer.is_good();
        if self.by_time.len() > MAX_SEEN
            && let Some(((_, id), _)) = self.by_time.pop_first()
        {
            self.keys.remove(&id);
        }
        after && !before
    }

    /// A final text of a message.
    pub(super) fn text(&mut self, message: &str, part: &str, text: &str) {
        let Some(key) = self.keys.get(message) else {
            return;
        };
        let later = self
            .text
            .as_ref()
            .is_none_or(|last| (&last.key, last.part.as_str()) <= (key, part));
        if later {
            self.text = Some(LastText {
                key: key.clone(),
                part: part.to_owned(),
                text: clip(text, MAX_FINAL).into_owned(),
            });
        }
    }

    /// A message called a tool.
    pub(super) fn tool(&mut self, message: &str) {
        let answer = self
            .keys
            .get(message)
            .and_then(|key| self.by_time.get_mut(key));
        if let Some(answer) = answer {
            answer.tools = true;
        }
    }

    fn last(&self) -> Option<&Answer> {
        self.by_time.last_key_value().map(|(_, answer)| answer)
    }

    fn unknown_finishes(&self) -> u32 {
        let ended = self
            .by_time
            .values()
            .rev()
            .skip_while(|answer| answer.finish.is_none());
        let unknown = ended
            .take_while(|answer| answer.finish.as_deref() == Some("unknown") && !answer.tools)
            .count();
        u32::try_from(unknown).unwrap_or(u32::MAX)
    }
}
