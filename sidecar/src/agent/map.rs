//! OpenCode's events and messages → the events of one turn.
//!
//! Pure: no clock, no IO. What was said is remembered, so that the stored messages can be laid over
//! the stream at any time and add exactly what is missing.

use super::wire::{Message, OcEvent};
use contract::event::ErrorEvent;
use contract::{Event, EventBody, Usage};
use std::path::PathBuf;

/// An event of a turn, still without time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mapped {
    /// Who did it: `main`, `main/1`, …
    pub(crate) agent: String,
    pub(crate) body: EventBody,
}

/// What is known of how a turn ends.
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
    /// How many messages in a row, up to the last one, ended for no known reason and called no tool.
    pub(crate) unknown_finishes: u32,
    /// Model calls that began, sub-agents not included.
    pub(crate) steps: u32,
}

/// One turn.
#[derive(Debug)]
pub(crate) struct TurnMap {
    root: String,
    message_id: String,
    workspace: PathBuf,
}

impl TurnMap {
    /// A turn of `root_session` that begins with the user's message `message_id`.
    pub(crate) fn new(root_session: String, message_id: String, workspace: PathBuf) -> Self {
        Self {
            root: root_session,
            message_id,
            workspace,
        }
    }

    /// Takes note of a journaled event of this turn; call it for all of them in order, before
    /// anything else.
    pub(crate) fn restore(&mut self, event: &Event) {
        let _ = event;
    }

    /// What follows from one event of OpenCode.
    pub(crate) fn on_event(&mut self, event: &OcEvent) -> Vec<Mapped> {
        let _ = event;
        Vec::new()
    }

    /// Lays the stored messages of the root or of a child session over what was said: adds what is
    /// missing. Texts that are still being typed wait for their end from here on.
    pub(crate) fn on_messages(&mut self, session: &str, messages: &[Message]) -> Vec<Mapped> {
        let _ = (session, messages);
        Vec::new()
    }

    /// Whether `session` is the root or a sub-agent of this turn.
    pub(crate) fn owns(&self, session: &str) -> bool {
        session == self.root
    }

    /// Sessions of the sub-agents.
    pub(crate) fn children(&self) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }

    /// A sub-agent that was found by asking (`GET /session/{id}/children`). Only those that were
    /// created in this turn belong here.
    pub(crate) fn adopt_child(
        &mut self,
        session: &str,
        parent: &str,
        title: Option<&str>,
    ) -> Vec<Mapped> {
        let _ = (session, parent, title);
        Vec::new()
    }

    /// What is known now.
    pub(crate) fn outcome(&self) -> Outcome {
        let _ = (&self.message_id, &self.workspace);
        Outcome::default()
    }

    /// Our `call_id` of OpenCode's call (the latest one with that id).
    pub(crate) fn call_of(&self, opencode_call_id: &str) -> Option<String> {
        let _ = opencode_call_id;
        None
    }
}
