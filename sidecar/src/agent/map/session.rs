//! What is said of a session as a whole.

use super::{Mapped, TurnMap};
use crate::agent::text::clip;
use crate::agent::wire::{SessionStatus, Todo};
use contract::EventBody;
use contract::event::{MAIN_AGENT, Status, StatusKind};
use jiff::Timestamp;
use serde_json::{Value, json};

/// Longest sentence of a status, in bytes.
const MAX_PROGRESS: usize = 512;
/// Longest description of one thing to do, in bytes.
const MAX_TODO: usize = 512;
/// Most things to do that are listed.
const MAX_TODOS: usize = 200;

/// The root or a sub-agent.
#[derive(Debug)]
pub(super) struct Session {
    /// `main`, `main/1`, …; a sub-agent gets its name when it is announced.
    pub(super) agent: Option<String>,
    /// What it is to do, as its parent said.
    title: Option<String>,
    /// Number of its model calls so far.
    pub(super) steps: u32,
    pub(super) running: bool,
    /// The attempt that was said last, since the last sign of progress.
    pub(super) retry: Option<u64>,
    pub(super) todos: Option<Value>,
    /// Its error was said.
    pub(super) failed: bool,
}

impl Session {
    pub(super) fn named(agent: String) -> Self {
        Self {
            agent: Some(agent),
            title: None,
            steps: 0,
            running: false,
            retry: None,
            todos: None,
            failed: false,
        }
    }

    pub(super) fn unnamed(title: Option<&str>) -> Self {
        Self {
            agent: None,
            title: title.map(|title| clip(title, MAX_PROGRESS / 2).into_owned()),
            ..Self::named(String::new())
        }
    }
}

impl TurnMap {
    /// Gives a sub-agent its name and says so, once.
    pub(super) fn announce(&mut self, session: &str, out: &mut Vec<Mapped>) {
        let agent = match self.sessions.get(session) {
            Some(Session { agent: None, .. }) => self.next_agent(),
            Some(_) | None => return,
        };
        let Some(state) = self.sessions.get_mut(session) else {
            return;
        };
        state.agent = Some(agent.clone());
        let progress = match &state.title {
            Some(title) => format!("A sub-agent began: {title}"),
            None => "A sub-agent began.".to_owned(),
        };
        let mut status = Status::new(StatusKind::SubAgent, progress);
        status.detail = Some(json!({ "session": session, "title": state.title }));
        out.push(Mapped {
            agent,
            body: EventBody::Status(status),
        });
    }

    /// `main/N` for the next sub-agent, whatever numbers were restored.
    fn next_agent(&self) -> String {
        let numbers = self.sessions.values().filter_map(|session| {
            let agent = session.agent.as_deref()?;
            let number = agent.strip_prefix(MAIN_AGENT)?.strip_prefix('/')?;
            number.parse::<u32>().ok()
        });
        let next = numbers.max().unwrap_or(0).saturating_add(1);
        format!("{MAIN_AGENT}/{next}")
    }

    pub(super) fn session_status(
        &mut self,
        session: &str,
        status: &SessionStatus,
        out: &mut Vec<Mapped>,
    ) {
        let root = session == self.root;
        let Some(state) = self.sessions.get_mut(session) else {
            return;
        };
        let said = match status {
            SessionStatus::Busy if root && !state.running => {
                state.running = true;
                Status::new(StatusKind::Running, "The agent works.")
            }
            SessionStatus::Busy | SessionStatus::Idle => return,
            SessionStatus::Retry { attempt, .. } if state.retry == Some(*attempt) => return,
            SessionStatus::Retry {
                attempt,
                message,
                next_ms,
            } => {
                state.retry = Some(*attempt);
                let message = super::error::without_keys(message);
                let mut status = Status::new(
                    StatusKind::Retrying,
                    format!(
                        "The model's provider refused or failed (attempt {attempt}: {}); \
                         OpenCode tries again by itself.",
                        clip(message.trim_end_matches('.'), MAX_PROGRESS / 2)
                    ),
                );
                status.retry_at = next_ms.and_then(|at| Timestamp::from_millisecond(at).ok());
                status.detail = Some(json!({ "attempt": attempt }));
                status
            }
        };
        self.say(session, EventBody::Status(said), out);
    }

    pub(super) fn todos(&mut self, session: &str, todos: &[Todo], out: &mut Vec<Mapped>) {
        let Some(state) = self.sessions.get_mut(session) else {
            return;
        };
        let list: Vec<Value> = todos
            .iter()
            .take(MAX_TODOS)
            .map(|todo| {
                json!({
                    "content": clip(&todo.content, MAX_TODO),
                    "status": todo.status,
                    "priority": todo.priority,
                })
            })
            .collect();
        let detail = json!({ "todos": list });
        if state.todos.as_ref() == Some(&detail) {
            return;
        }
        let done = todos.iter().filter(|todo| todo.status == "completed");
        let mut status = Status::new(
            StatusKind::Todo,
            format!("{} of {} things are done.", done.count(), todos.len()),
        );
        status.detail = Some(detail.clone());
        state.todos = Some(detail);
        self.say(session, EventBody::Status(status), out);
    }
}
