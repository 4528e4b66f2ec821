//! What a session does, or why nothing happens, in one sentence.
//!
//! [`Doing`] is kept from the session's events; [`sentence`] is pure and says the one thing that
//! matters most: what somebody must do comes before what only takes time.

use contract::{
    Event, EventBody,
    approval::Approval,
    event::{OutputSource, StatusKind},
    session::SessionState,
};
use jiff::Timestamp;
use std::collections::BTreeMap;

/// Longest quotation of what others said, in bytes.
const QUOTE_MAX: usize = 200;
/// Most running tools that are remembered; the model decides how many there are.
const TOOLS_MAX: usize = 256;

/// What the events of the turn under way say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Doing {
    /// When the turn was recorded.
    since: Option<Timestamp>,
    /// Running tools by call: name and start.
    tools: BTreeMap<String, (String, Timestamp)>,
    step: Step,
    /// When the last event was recorded.
    last: Option<Timestamp>,
    /// How the last turn went wrong.
    error: Option<String>,
}

#[derive(Clone, Debug, Default)]
enum Step {
    #[default]
    Model,
    /// The model speaks.
    Speaking,
    Thinking,
    Compacting,
    /// The provider refused or failed: its words and when it is asked again.
    Retrying(String, Option<Timestamp>),
}

impl Doing {
    /// A turn begins.
    pub(crate) fn begin(&mut self, at: Timestamp) {
        *self = Self {
            since: Some(at),
            last: Some(at),
            ..Self::default()
        };
    }

    /// An event of the turn was recorded.
    pub(crate) fn apply(&mut self, event: &Event) {
        self.last = Some(event.ts);
        match &event.body {
            EventBody::ToolCall(call) if self.tools.len() < TOOLS_MAX => {
                let tool = (quote(&call.tool), event.ts);
                self.tools.insert(call.call_id.clone(), tool);
                self.step = Step::Model;
            }
            EventBody::ToolResult(result) => {
                self.tools.remove(&result.call_id);
                self.step = Step::Model;
            }
            EventBody::Output(output) if output.source == OutputSource::Assistant => {
                self.step = Step::Speaking;
            }
            EventBody::Status(status) => match status.status {
                StatusKind::Thinking => self.step = Step::Thinking,
                StatusKind::Compacting => self.step = Step::Compacting,
                StatusKind::Retrying => {
                    let words = status.progress.as_deref().unwrap_or_default();
                    self.step = Step::Retrying(quote(words), status.retry_at);
                }
                StatusKind::Step | StatusKind::Running | StatusKind::AgentRestarted => {
                    self.step = Step::Model;
                }
                StatusKind::Queued
                | StatusKind::WaitingForKey
                | StatusKind::Todo
                | StatusKind::SubAgent
                | StatusKind::Watchdog
                | StatusKind::Checkpoint
                | StatusKind::Cancelled => {}
            },
            EventBody::Error(error) => self.error = Some(quote(&error.error)),
            EventBody::ToolCall(_)
            | EventBody::Output(_)
            | EventBody::Complete(_)
            | EventBody::Approval(_)
            | EventBody::Gap(_) => {}
        }
        if event.body.ends_turn() {
            self.tools.clear();
        }
    }
}

/// What else counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// A turn is under way.
    pub running: bool,
    pub status: Option<SessionState>,
    /// OpenCode has the prompt.
    pub delivered: bool,
    /// The journal takes no entries, for this reason.
    pub journal: Option<&'static str>,
    /// Where the key that is absent or empty is to be found, as in `Secret team-keys, key openai`.
    pub key_missing: Option<String>,
    /// The key that came with the session is gone since a restart.
    pub key_required: bool,
    /// OpenCode answers.
    pub agent_ready: bool,
    /// Why it does not, or that the image cannot run it.
    pub agent_message: Option<String>,
    pub unsupported: Option<String>,
    /// Oldest first.
    pub approvals: Vec<Approval>,
    /// Why a turn that begins may not work on the workspace now.
    pub workspace: Option<&'static str>,
}

/// The sentence, at this time.
pub(crate) fn sentence(doing: &Doing, facts: &Facts, now: Timestamp) -> String {
    if !facts.running {
        return resting(doing, facts);
    }
    waiting(facts, Some(now))
        .or_else(|| retrying(doing, Some(now)))
        .unwrap_or_else(|| working(doing, now))
}

/// What the turn waits for, without anything that changes by the second, for those who follow the
/// pod; `None`: it works.
pub(crate) fn waits_for(doing: &Doing, facts: &Facts) -> Option<String> {
    if !facts.running {
        return None;
    }
    waiting(facts, None).or_else(|| retrying(doing, None))
}

fn resting(doing: &Doing, facts: &Facts) -> String {
    let how = match facts.status {
        None | Some(SessionState::Pending | SessionState::Running) => "no turn runs".to_owned(),
        Some(SessionState::Completed) => "the last turn is complete".to_owned(),
        Some(SessionState::Cancelled) => "the last turn was cancelled".to_owned(),
        Some(SessionState::Failed) => match &doing.error {
            Some(error) => format!("the last turn failed: {error}"),
            None => "the last turn failed".to_owned(),
        },
    };
    let key = if facts.key_required {
        " The next turn must bring api_key: the key of this session was lost with a restart."
    } else {
        ""
    };
    format!("Nothing to do: {}.{key}", how.trim_end_matches('.'))
}

fn waiting(facts: &Facts, now: Option<Timestamp>) -> Option<String> {
    if let Some(why) = facts.journal {
        return Some(format!(
            "Waiting for the session's volume: the journal cannot be written, because {why}."
        ));
    }
    if let Some(first) = facts.approvals.first() {
        return Some(approval(first, facts.approvals.len() - 1, now));
    }
    if !facts.delivered
        && let Some(key) = &facts.key_missing
    {
        return Some(format!("Waiting for {key}: it is absent or empty."));
    }
    if facts.agent_ready {
        let held = facts.workspace.filter(|_| !facts.delivered);
        return held.map(|why| format!("Waiting for the workspace: {why}."));
    }
    if let Some(why) = &facts.unsupported {
        let why = quote(why);
        return Some(format!(
            "Waiting for another image: this one cannot run OpenCode: {}.",
            why.trim_end_matches('.')
        ));
    }
    let again = if facts.delivered { " again" } else { "" };
    Some(match &facts.agent_message {
        Some(message) => format!(
            "OpenCode is starting{again}: {}.",
            quote(message).trim_end_matches('.')
        ),
        None => format!("OpenCode is starting{again}."),
    })
}

fn approval(first: &Approval, more: usize, now: Option<Timestamp>) -> String {
    let more = match more {
        0 => String::new(),
        1 => "; one more waits".to_owned(),
        more => format!("; {more} more wait"),
    };
    let Some(now) = now else {
        // Others than those who read the session are told no command.
        let permission = quote(&first.permission);
        return format!("Waiting for an answer to an approval ({permission}){more}.");
    };
    let what = match first.patterns.is_empty() {
        true => quote(&first.permission),
        false => quote(&format!(
            "{}: {}",
            first.permission,
            first.patterns.join(", ")
        )),
    };
    format!(
        "Waiting for an answer to approval {} ({what}) since {}{more}.",
        first.approval_id,
        age(first.since, now)
    )
}

fn retrying(doing: &Doing, now: Option<Timestamp>) -> Option<String> {
    let Step::Retrying(words, at) = &doing.step else {
        return None;
    };
    let words = words.trim_end_matches('.');
    Some(match (now, at) {
        (None, _) | (Some(_), None) => format!("{words}."),
        (Some(now), Some(at)) if *at > now => format!("{words}; next try in {}.", age(now, *at)),
        (Some(_), Some(_)) => format!("{words}; trying now."),
    })
}

fn working(doing: &Doing, now: Timestamp) -> String {
    let oldest = doing.tools.values().min_by_key(|(_, since)| *since);
    if let Some((tool, since)) = oldest {
        let took = age(*since, now);
        return match doing.tools.len() {
            1 => format!("Tool {tool} has run for {took}."),
            count => format!("{count} tools run, {tool} for the longest, {took}."),
        };
    }
    let silent = age(doing.last.or(doing.since).unwrap_or(now), now);
    match &doing.step {
        Step::Speaking => format!("The model is answering; its last words are {silent} old."),
        Step::Thinking => format!("The model has been thinking for {silent}."),
        Step::Compacting => format!(
            "The conversation is being shortened, so that it fits the model again, since {silent}."
        ),
        Step::Model | Step::Retrying(..) => {
            format!("Waiting for the model's answer since {silent}.")
        }
    }
}

/// As people say it: `14 s`, `3 min`, `2 h`.
fn age(from: Timestamp, to: Timestamp) -> String {
    let seconds = to.duration_since(from).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

/// In one line and not too long.
fn quote(text: &str) -> String {
    let end = text.floor_char_boundary(QUOTE_MAX);
    let mut line: String = text[..end]
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if end < text.len() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests;
