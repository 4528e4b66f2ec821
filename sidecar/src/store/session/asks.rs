//! What waits for somebody's consent in a session, and how it was answered.
//!
//! An answer is one event. Whoever appends it first under the session's lock has decided; the agent is
//! told only once the event is durable. So a crash in between leaves either a call that still waits or
//! an answer that the next process finds and passes on, with its words.

use super::{JournalError, Session, now};
use crate::store::record::{Always, Note};
use contract::{
    Event, EventBody, SessionId,
    approval::{Approval, Decision},
    event::{ApprovalEvent, ApprovalState, DecidedBy},
};
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};

/// Answers of one turn that are remembered. OpenCode asks one thing after the other; what is older is
/// settled.
const ANSWERED_MAX: usize = 10_000;

/// The asks of the turn under way, and the session's standing consents.
#[derive(Debug, Default)]
pub(crate) struct Asks {
    pub pending: BTreeMap<String, Ask>,
    /// Answers, for asks that OpenCode still holds after a restart.
    pub answered: HashMap<String, Answered>,
    pub always: Vec<Always>,
}

/// What waits.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// As it was asked.
    event: ApprovalEvent,
    agent: String,
    since: Timestamp,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    /// `Once` or `Reject`.
    pub decision: Decision,
    /// For the agent.
    pub message: Option<String>,
}

/// How an ask is to be settled.
#[derive(Clone, Debug)]
pub(crate) struct Settle {
    pub decision: Decision,
    pub decided: DecidedBy,
    /// Who or which rule.
    pub by: String,
    /// For the agent; with a refusal it lets the agent go on another way.
    pub message: Option<String>,
}

impl Settle {
    /// What the agent is told: never `always`, which it would keep for every session.
    pub(crate) fn answered(&self) -> Answered {
        Answered {
            decision: match self.decision {
                Decision::Once | Decision::Always => Decision::Once,
                Decision::Reject => Decision::Reject,
            },
            message: self.message.clone(),
        }
    }
}

impl Asks {
    pub(in crate::store) fn clear(&mut self) {
        self.pending.clear();
        self.answered.clear();
    }

    /// Whether a standing consent covers all of it.
    pub(crate) fn consents(&self, permission: &str, patterns: &[String]) -> bool {
        self.always.iter().any(|always| {
            always.permission == permission
                && patterns
                    .iter()
                    .all(|pattern| always.patterns.contains(pattern))
        })
    }

    /// When the first one that waits is no longer waited for.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.pending
            .values()
            .filter_map(|ask| ask.event.until)
            .min()
    }

    /// Those that nobody answered in time.
    pub(crate) fn overdue(&self, now: Timestamp) -> Vec<String> {
        let overdue = |ask: &Ask| ask.event.until.is_some_and(|until| until <= now);
        let all = self.pending.iter().filter(|(_, ask)| overdue(ask));
        all.map(|(id, _)| id.clone()).collect()
    }

    /// Whether something was refused in this turn without a word, upon which OpenCode ends the run.
    pub(crate) fn was_rejected(&self) -> bool {
        let mut answers = self.answered.values();
        answers.any(|answer| answer.decision == Decision::Reject && answer.message.is_none())
    }

    /// All that waits, oldest first.
    pub(crate) fn list(&self, session: &SessionId) -> Vec<Approval> {
        let mut list: Vec<Approval> = self
            .pending
            .values()
            .map(
                |Ask {
                     event,
                     agent,
                     since,
                 }| Approval {
                    approval_id: event.approval_id.clone(),
                    session_id: session.clone(),
                    agent: agent.clone(),
                    tool: event.tool.clone(),
                    permission: event.permission.clone(),
                    patterns: event.patterns.clone(),
                    call_id: event.call_id.clone(),
                    since: *since,
                    until: event.until,
                },
            )
            .collect();
        list.sort_by_key(|approval| approval.since);
        list
    }

    pub(super) fn apply(&mut self, event: &Event, approval: &ApprovalEvent) {
        let id = approval.approval_id.clone();
        let decision = match approval.state {
            ApprovalState::Pending => {
                let ask = Ask {
                    event: approval.clone(),
                    agent: event.agent.clone(),
                    since: event.ts,
                };
                self.pending.insert(id, ask);
                return;
            }
            ApprovalState::Approved => Decision::Once,
            ApprovalState::Rejected => Decision::Reject,
        };
        self.pending.remove(&id);
        // What the agent's side settled it need not be told.
        if self.answered.len() < ANSWERED_MAX && approval.decided != Some(DecidedBy::Agent) {
            let message = approval.message.clone();
            self.answered.insert(id, Answered { decision, message });
        }
    }
}

impl Session {
    /// Settles an ask that waits: of several at once the first one counts. `None`: nothing waits under
    /// this id. Returns the event's ticket; tell the agent once that is durable.
    pub(crate) fn settle(&self, id: &str, settle: &Settle) -> Result<Option<u64>, JournalError> {
        let mut state = self.state();
        let Some(ask) = state.asks.pending.get(id).cloned() else {
            return Ok(None);
        };
        let event = Event {
            turn: state.turn,
            ts: now(),
            agent: ask.agent,
            body: EventBody::Approval(settled(ask.event.clone(), settle)),
        };
        let ticket = self.append_locked(&mut state, event)?;
        if settle.decision == Decision::Always {
            // After the answer: a crash in between asks once more, and never allows what nobody answered.
            let always = Always {
                permission: ask.event.permission,
                patterns: ask.event.patterns,
                decision: Decision::Once,
            };
            let ticket = self.note(Note::Always(always.clone()))?;
            state.asks.always.push(always);
            return Ok(Some(ticket));
        }
        Ok(Some(ticket))
    }
}

/// The event of an ask with its answer.
pub(crate) fn settled(ask: ApprovalEvent, settle: &Settle) -> ApprovalEvent {
    ApprovalEvent {
        state: match settle.decision {
            Decision::Once | Decision::Always => ApprovalState::Approved,
            Decision::Reject => ApprovalState::Rejected,
        },
        until: None,
        decided: Some(settle.decided),
        by: Some(settle.by.clone()),
        message: settle.message.clone(),
        ..ask
    }
}
