//! What a journal says, in short. A pure function of its frames.

use super::words;
use crate::store::{
    record::{Note, event_json},
    session::{status_of, turn_reason},
};
use contract::{
    Epoch, Event, EventBody, Usage,
    event::{ApprovalState, StatusKind},
    session::SessionState,
};
use jiff::Timestamp;
use journal::Frame;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Open approvals that are named.
const OPEN_MAX: usize = 1000;

/// The content of `state.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Digest {
    pub session_id: String,
    pub created_at: Option<Timestamp>,
    /// As in cursors.
    pub epoch: String,
    /// Number of the first kept event.
    pub first_event: u64,
    /// Number of the last durable event.
    pub last_event: u64,
    /// When the last event but text and tools was recorded.
    pub updated_at: Option<Timestamp>,
    /// Number of the last turn; 0: none.
    pub turn: u32,
    pub turn_began_at: Option<Timestamp>,
    pub status: Option<SessionState>,
    /// One sentence.
    pub reason: String,
    pub usage: Usage,
    pub turns_complete: u32,
    pub turns_failed: u32,
    pub turns_cancelled: u32,
    /// Starts of OpenCode or of the sidecar within a turn.
    pub restarts: u32,
    /// Id of an approval that waits → what it asks for.
    pub open_approvals: BTreeMap<String, String>,
}

impl Digest {
    pub(super) fn new(session: &str, epoch: u64) -> Self {
        Self {
            session_id: session.into(),
            epoch: Epoch(epoch).to_string(),
            ..Self::default()
        }
    }

    /// Takes the next frame in; `say` gets lines for `decisions.md`.
    pub(crate) fn take(&mut self, frame: Frame<'_>, say: &mut dyn FnMut(&str)) {
        let Some(number) = frame.event else {
            if let Ok(note) = serde_json::from_slice::<Note>(frame.payload) {
                self.note(&note, say);
            }
            return;
        };
        self.last_event = number;
        // Most events are these, and they decide nothing.
        if frame.payload.starts_with(b"event: output\n")
            || frame.payload.starts_with(b"event: tool_")
        {
            return;
        }
        if let Some(Ok(event)) = event_json(frame.payload).map(serde_json::from_slice::<Event>) {
            self.event(&event, say);
        }
    }

    fn note(&mut self, note: &Note, say: &mut dyn FnMut(&str)) {
        match note {
            Note::Created(created) => self.created_at = Some(created.at),
            Note::Turn(turn) => {
                self.turn = turn.turn;
                self.turn_began_at = Some(turn.at);
                self.status = Some(SessionState::Pending);
                self.open_approvals.clear();
            }
            Note::TakenUp { .. } => self.restarts += 1,
            Note::Delivered { .. } | Note::Always(_) | Note::Checkpoints(_) => {}
        }
        if let Some(line) = words::of_note(note) {
            say(&line);
        }
    }

    fn event(&mut self, event: &Event, say: &mut dyn FnMut(&str)) {
        self.updated_at = Some(event.ts);
        if let Some(status) = status_of(&event.body) {
            self.status = Some(status);
        }
        if let Some(reason) = turn_reason(&event.body) {
            self.reason = words::plain(&reason, words::LONG);
        }
        match &event.body {
            EventBody::Status(status) => {
                if let Some(usage) = status.usage {
                    self.usage += usage;
                }
                match status.status {
                    StatusKind::Cancelled => self.turns_cancelled += 1,
                    StatusKind::AgentRestarted => self.restarts += 1,
                    _ => {}
                }
            }
            EventBody::Error(error) => self.turns_failed += u32::from(error.fatal),
            EventBody::Complete(_) => self.turns_complete += 1,
            EventBody::Approval(approval) => {
                let id = words::plain(&approval.approval_id, words::SHORT);
                if approval.state != ApprovalState::Pending {
                    self.open_approvals.remove(&id);
                } else if self.open_approvals.len() < OPEN_MAX {
                    let what = words::plain(&approval.permission, words::SHORT);
                    self.open_approvals.insert(id, what);
                }
            }
            EventBody::Output(_)
            | EventBody::ToolCall(_)
            | EventBody::ToolResult(_)
            | EventBody::Gap(_) => {}
        }
        if let Some(line) = words::of_event(event, self.turn_began_at) {
            say(&line);
        }
        if event.body.ends_turn() {
            self.open_approvals.clear();
        }
    }
}
