//! Rebuilds a session from its journal.

use super::{
    record::{Created, Note, Record, TurnNote, event_json},
    session::{Running, Session, State},
};
use contract::Event;
use journal::{Log, ReadError};
use std::sync::Arc;

/// A turn that was under way when the last process ended.
pub(crate) struct Unfinished {
    pub session: Arc<Session>,
    pub turn: UnfinishedTurn,
}

/// What is known of it.
pub(crate) struct UnfinishedTurn {
    pub note: TurnNote,
    /// OpenCode has the prompt.
    pub delivered: bool,
    /// Its events so far.
    pub events: Vec<Event>,
}

pub(super) struct Recovered {
    pub created: Created,
    pub state: State,
    pub unfinished: Option<UnfinishedTurn>,
}

/// Reads a whole journal. `None` where it has no first note: its creation was never acknowledged.
pub(super) fn recover(log: &Log<Record>) -> Result<Option<Recovered>, ReadError> {
    let mut created = None;
    let mut state = State::default();
    let mut open: Option<UnfinishedTurn> = None;
    log.scan(&mut |frame| {
        if frame.event.is_none() {
            match serde_json::from_slice(frame.payload) {
                Ok(Note::Created(note)) => created = Some(note),
                Ok(Note::Turn(note)) => {
                    state.begin(&note);
                    open = Some(UnfinishedTurn {
                        note,
                        delivered: false,
                        events: Vec::new(),
                    });
                }
                Ok(Note::Delivered { turn }) => {
                    if let Some(open) = open.as_mut().filter(|open| open.note.turn == turn) {
                        open.delivered = true;
                        state.delivered = true;
                    }
                }
                Ok(Note::TakenUp { .. } | Note::Checkpoints(_)) => {}
                Ok(Note::Always(always)) => state.asks.always.push(always),
                Err(error) => {
                    tracing::warn!(session_id = log.name(), %error, "a note is not understood");
                }
            }
            return;
        }
        let event = event_json(frame.payload).map(serde_json::from_slice::<Event>);
        match event {
            Some(Ok(event)) => {
                state.apply(&event);
                if event.body.ends_turn() {
                    open = None;
                } else if let Some(open) = &mut open {
                    open.events.push(event);
                }
            }
            Some(Err(error)) => {
                tracing::warn!(session_id = log.name(), %error, "an event is not understood");
            }
            None => tracing::warn!(session_id = log.name(), "an event is not framed as one"),
        }
    })?;
    if open.is_some() {
        state.running = Some(Running::default());
    } else {
        state.asks.clear();
    }
    Ok(created.map(|created| Recovered {
        created,
        state,
        unfinished: open,
    }))
}
