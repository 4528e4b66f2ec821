//! OpenCode's events and messages → the events of one turn.
//!
//! Pure: no clock, no IO. What was said is remembered, so that the stored messages can be laid over
//! the stream at any time and add exactly what is missing. Work per event is linear in its size.

mod error;
mod outcome;
mod part;
mod restore;
mod session;
#[cfg(test)]
mod tests;

pub(crate) use error::without_keys;

use super::text::{Seen, TextLedger, ToolTails};
use super::wire::{Message, MessageInfo, OcError, OcEvent, OcKind, Part, PartKind};
use contract::event::{ErrorEvent, MAIN_AGENT, Status, StatusKind};
use contract::{EventBody, Usage};
use outcome::Answers;
use session::Session;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Most sub-agents of one turn; later ones are not followed.
const MAX_CHILDREN: usize = 1_000;

/// An event of a turn, still without time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mapped {
    /// Who did it: `main`, `main/1`, …
    pub(crate) agent: String,
    pub(crate) body: EventBody,
}

/// One turn.
#[derive(Debug)]
pub(crate) struct TurnMap {
    root: String,
    /// The user's message that began the turn.
    message_id: String,
    /// When OpenCode stored it, in milliseconds since 1970.
    began: Option<i64>,
    workspace: PathBuf,
    /// The root and its sub-agents.
    sessions: BTreeMap<String, Session>,
    messages: Seen<Heard>,
    /// Parts whose kind is known, and what was said of them.
    parts: Seen<Mark>,
    texts: TextLedger,
    calls: Seen<Call>,
    tails: ToolTails,
    /// OpenCode's id of a call → ours.
    call_ids: BTreeMap<String, String>,
    answers: Answers,
    files: BTreeSet<String>,
    usage: Usage,
    /// The first error, until the run recovers from it.
    error: Option<ErrorEvent>,
    aborted: bool,
    /// A user's message that is not of this turn came after the turn's own: what OpenCode adds from
    /// there on belongs to another turn.
    superseded: bool,
}

/// A message that was heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// An assistant's, of this turn.
    Answer,
    /// The summary that a compaction makes: not for the reader.
    Summary,
    /// A user's message that OpenCode wrote itself in this turn, to compact and to go on after it.
    Own,
    /// A user's message of which nothing more is known yet.
    User,
    /// Of another turn.
    Foreign,
}

/// What was said of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Text,
    /// All that there is to say was said.
    Done,
}

/// How far a tool call is.
#[derive(Debug, Default)]
struct Call {
    /// As OpenCode names it.
    tool: String,
    called: bool,
    /// Some of its output was said.
    spoke: bool,
    done: bool,
}

impl TurnMap {
    /// A turn of `root_session` that begins with the user's message `message_id`.
    pub(crate) fn new(root_session: String, message_id: String, workspace: PathBuf) -> Self {
        let root = Session::named(MAIN_AGENT.to_owned());
        Self {
            sessions: BTreeMap::from([(root_session.clone(), root)]),
            root: root_session,
            message_id,
            began: None,
            workspace,
            messages: Seen::default(),
            parts: Seen::default(),
            texts: TextLedger::default(),
            calls: Seen::default(),
            tails: ToolTails::default(),
            call_ids: BTreeMap::new(),
            answers: Answers::default(),
            files: BTreeSet::new(),
            usage: Usage::default(),
            error: None,
            aborted: false,
            superseded: false,
        }
    }

    /// What follows from one event of OpenCode.
    pub(crate) fn on_event(&mut self, event: &OcEvent) -> Vec<Mapped> {
        let mut out = Vec::new();
        if let OcKind::SessionCreated {
            id,
            parent_id: Some(parent),
            title,
            ..
        } = &event.kind
        {
            if self.adopt(id, parent, title.as_deref()) {
                self.announce(id, &mut out);
            }
            return out;
        }
        let Some(session) = event.session.as_deref().filter(|id| self.owns(id)) else {
            return out;
        };
        match &event.kind {
            OcKind::MessageUpdated(info) => self.message(session, info, &mut out),
            OcKind::PartUpdated(part) => self.part(session, part, false, &mut out),
            OcKind::PartDelta {
                message_id,
                part_id,
                field,
                delta,
            } if field == "text" => self.delta(session, message_id, part_id, delta, &mut out),
            OcKind::SessionStatus(status) => self.session_status(session, status, &mut out),
            OcKind::SessionError(error) => self.session_error(session, error, &mut out),
            OcKind::TodoUpdated(todos) => self.todos(session, todos, &mut out),
            // Messages carry the usage, `turn` knows about idle, consent and questions.
            OcKind::PartDelta { .. }
            | OcKind::SessionCreated { .. }
            | OcKind::SessionUsage(_)
            | OcKind::SessionIdle
            | OcKind::SessionCompacted
            | OcKind::PermissionAsked(_)
            | OcKind::PermissionReplied { .. }
            | OcKind::QuestionAsked { .. }
            | OcKind::Connected
            | OcKind::Heartbeat
            | OcKind::Other(_) => {}
        }
        out
    }

    /// Lays the stored messages of the root or of a child session over what was said: adds what is
    /// missing. Texts that are still being typed wait for their end from here on, because pieces of
    /// them may have been missed.
    ///
    /// A run of a sub-agent may be discovered here: ask for the messages of [`TurnMap::children`]
    /// after those of the root, until there are no new ones.
    pub(crate) fn on_messages(&mut self, session: &str, messages: &[Message]) -> Vec<Mapped> {
        let mut out = Vec::new();
        if !self.owns(session) {
            return out;
        }
        for message in messages {
            let final_texts = message.info.completed.is_some() || message.info.error.is_some();
            if message.info.role == "user" {
                // Its parts say whose it is, and must do so before its answers are looked at.
                self.user_message(session, &message.info);
                for part in &message.parts {
                    self.part(session, part, true, &mut out);
                }
                continue;
            }
            self.message(session, &message.info, &mut out);
            for part in &message.parts {
                self.part(session, part, final_texts, &mut out);
                if let PartKind::Text { ended: false, .. } = part.kind
                    && !final_texts
                    && self.parts.get(&part.id) == Some(&Mark::Text)
                {
                    self.texts.hold(&part.id);
                }
            }
        }
        out
    }

    /// Whether `session` is the root or a sub-agent of this turn.
    pub(crate) fn owns(&self, session: &str) -> bool {
        self.sessions.contains_key(session)
    }

    /// Sessions of the sub-agents, in no particular order.
    #[cfg(test)]
    pub(crate) fn children(&self) -> impl Iterator<Item = &str> {
        self.sessions
            .keys()
            .map(String::as_str)
            .filter(|session| *session != self.root)
    }

    /// A session that may be a sub-agent of this turn, found by asking (`GET /session/{id}/children`).
    /// Sub-agents of former turns are among those: so it is announced by its first sign of life in
    /// this turn, and nothing is said here of one that has none.
    pub(crate) fn adopt_child(
        &mut self,
        session: &str,
        parent: &str,
        title: Option<&str>,
    ) -> Vec<Mapped> {
        self.adopt(session, parent, title);
        Vec::new()
    }

    /// Our `call_id` of OpenCode's call (the latest one with that id).
    pub(crate) fn call_of(&self, opencode_call_id: &str) -> Option<String> {
        self.call_ids.get(opencode_call_id).cloned()
    }

    /// Whether an error stands that the run has not recovered from.
    pub(crate) fn has_error(&self) -> bool {
        self.error.is_some()
    }

    /// The tool of one of our calls.
    pub(crate) fn tool_of(&self, call: &str) -> Option<&str> {
        let call = self.calls.get(call)?;
        Some(call.tool.as_str()).filter(|tool| !tool.is_empty())
    }

    /// The agent of a session; the main one where the session is none of this turn.
    pub(crate) fn agent_of(&self, session: &str) -> &str {
        self.sessions
            .get(session)
            .and_then(|session| session.agent.as_deref())
            .unwrap_or(MAIN_AGENT)
    }

    fn adopt(&mut self, child: &str, parent: &str, title: Option<&str>) -> bool {
        if child.is_empty()
            || self.owns(child)
            || !self.owns(parent)
            || self.sessions.len() > MAX_CHILDREN
        {
            return false;
        }
        self.sessions
            .insert(child.to_owned(), Session::unnamed(title));
        true
    }

    fn message(&mut self, session: &str, info: &MessageInfo, out: &mut Vec<Mapped>) {
        if info.role == "user" {
            self.user_message(session, info);
            return;
        }
        if info.role != "assistant" || info.id.is_empty() {
            return;
        }
        let heard = self.heard(session, info);
        let known = self.messages.get(&info.id).is_some();
        let Some(entry) = self.messages.entry(&info.id, || heard) else {
            return;
        };
        if *entry == Heard::Foreign {
            // It may turn out to answer a message that OpenCode wrote itself.
            *entry = heard;
        }
        let heard = *entry;
        match heard {
            Heard::Answer | Heard::Summary => {}
            Heard::Own | Heard::User | Heard::Foreign => return,
        }
        if !known && let Some(session) = self.sessions.get_mut(session) {
            session.retry = None;
        }
        if session == self.root {
            let recovered = self.answers.update(info, heard == Heard::Answer);
            if recovered {
                self.error = None;
            }
        }
        if let Some(error) = &info.error {
            self.session_error(session, error, out);
        }
    }

    /// Whose a message of the assistant is.
    fn heard(&self, session: &str, info: &MessageInfo) -> Heard {
        let ours = if session == self.root {
            info.parent_id.as_deref().is_some_and(|parent| {
                parent == self.message_id || self.messages.get(parent) == Some(&Heard::Own)
            })
        } else {
            self.is_recent(info)
        };
        match ours {
            false => Heard::Foreign,
            true if info.summary || info.mode == "compaction" => Heard::Summary,
            true => Heard::Answer,
        }
    }

    /// Whether a sub-agent's message is of this turn: a task may go on with the session of an older one.
    fn is_recent(&self, info: &MessageInfo) -> bool {
        match (info.created, self.began) {
            (Some(created), Some(began)) => created >= began,
            _ => true,
        }
    }

    fn user_message(&mut self, session: &str, info: &MessageInfo) {
        if info.id.is_empty() || (session != self.root && !self.is_recent(info)) {
            return;
        }
        if info.id == self.message_id {
            self.began = self.began.or(info.created);
            // Whatever stood before it in a list of messages was another turn's.
            self.superseded = false;
        }
        self.messages.first(&info.id, Heard::User);
    }

    /// Parts of a user's message are never shown, but tell who wrote it.
    fn user_part(&mut self, session: &str, part: &Part, out: &mut Vec<Mapped>) {
        let own = match part.kind {
            PartKind::Compaction => true,
            PartKind::Text { synthetic, .. } => synthetic,
            _ => return,
        };
        if session == self.root {
            if part.message_id == self.message_id {
                return;
            }
            let Some(heard) = self.messages.entry(&part.message_id, || Heard::User) else {
                return;
            };
            match *heard {
                Heard::User if own && !self.superseded => *heard = Heard::Own,
                Heard::User => {
                    *heard = Heard::Foreign;
                    self.superseded = true;
                }
                Heard::Own if !own => {
                    *heard = Heard::Foreign;
                    self.superseded = true;
                }
                Heard::Own | Heard::Foreign | Heard::Answer | Heard::Summary => {}
            }
            if *heard != Heard::Own {
                return;
            }
        }
        if part.kind == PartKind::Compaction && self.parts.first(&part.id, Mark::Done) {
            let mut status = Status::new(
                StatusKind::Compacting,
                "The conversation is shortened so that it fits the model again.",
            );
            status.detail = Some(serde_json::json!({ "part_id": part.id }));
            self.say(session, EventBody::Status(status), out);
        }
    }

    fn session_error(&mut self, session: &str, error: &OcError, out: &mut Vec<Mapped>) {
        let aborted = error::is_abort(error);
        if session == self.root {
            if aborted {
                self.aborted = true;
            } else if self.error.is_none() {
                self.error = Some(error::explain(error, true));
            }
            return;
        }
        let Some(child) = self.sessions.get_mut(session) else {
            return;
        };
        if !aborted && !child.failed {
            child.failed = true;
            let event = error::explain(error, false);
            self.say(session, EventBody::Error(event), out);
        }
    }

    fn say(&mut self, session: &str, body: EventBody, out: &mut Vec<Mapped>) {
        self.announce(session, out);
        if let Some(agent) = self
            .sessions
            .get(session)
            .and_then(|known| known.agent.clone())
        {
            out.push(Mapped { agent, body });
        }
    }
}
