//! One session: its journal and what is known of it now.

mod asks;

pub(crate) use asks::{Asks, Settle, settled};

use super::derived::Bell;
use super::record::{Created, Idempotency, Note, Record, TurnNote};
use super::tail::Tail;
use crate::{activity::Doing, proxy::Target};
use contract::{
    Cursor, Epoch, Event, EventBody, SessionId, Usage,
    event::{ApprovalState, Complete, ErrorEvent, MAIN_AGENT, StatusKind, TurnError},
    session::{Session as SessionBody, SessionState},
};
use jiff::Timestamp;
use journal::{AppendError, Log, Position};
use secrecy::SecretString;
use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Bytes of queued entries above which a turn waits for the disk.
const QUEUE_HIGH: usize = 1024 * 1024;

/// One session.
pub(crate) struct Session {
    pub created: Created,
    log: Arc<Log<Record>>,
    view: watch::Sender<View>,
    state: Mutex<State>,
    bell: Bell,
    /// There as long as somebody reads.
    tail: Mutex<Weak<Tail>>,
    /// Ticket of the last entry that people read of and were not told yet; 0: none.
    untold: AtomicU64,
}

/// What readers wait on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub position: Position,
    /// A turn is under way: more will come.
    pub active: bool,
}

/// What is known of a session beyond its journal.
#[derive(Default)]
pub(crate) struct State {
    pub turn: u32,
    pub status: Option<SessionState>,
    pub reason: String,
    pub doing: Doing,
    pub usage: Usage,
    pub updated_at: Option<Timestamp>,
    pub first_turn: FirstTurn,
    /// User message of the last turn, for its diff.
    pub message_id: String,
    pub idempotency: HashMap<String, (Idempotency, u32)>,
    /// Ticket of the first event of the last turn.
    pub begun: u64,
    pub request_key: Option<SecretString>,
    pub target: Option<Arc<Target>>,
    pub running: Option<Running>,
    /// OpenCode has the prompt of the turn under way.
    pub delivered: bool,
    pub asks: Asks,
}

/// The turn under way.
#[derive(Clone, Default)]
pub(crate) struct Running {
    pub cancel: CancellationToken,
    pub ended: CancellationToken,
}

/// How the first turn went, for the object's status.
#[derive(Clone, Debug, Default)]
pub(crate) struct FirstTurn {
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub complete: Option<Complete>,
    pub error: Option<ErrorEvent>,
    pub cancelled: bool,
}

/// The journal does not take more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal cannot be written: its volume is full or broken")]
pub(crate) struct JournalError;

impl Session {
    pub(super) fn new(
        created: Created,
        log: Arc<Log<Record>>,
        state: State,
        bell: Bell,
    ) -> Arc<Self> {
        let active = state.running.is_some();
        let (view, _) = watch::channel(View {
            position: log.position(),
            active,
        });
        let session = Arc::new(Self {
            created,
            log,
            view,
            state: Mutex::new(state),
            bell,
            tail: Mutex::default(),
            untold: AtomicU64::new(0),
        });
        let weak = Arc::downgrade(&session);
        session.log.on_durable(Box::new(move |position| {
            if let Some(session) = weak.upgrade() {
                session.view.send_modify(|view| view.position = position);
                session.tell(position);
            }
        }));
        // A sync between `position()` and `on_durable` would else be missed.
        session
            .view
            .send_modify(|view| view.position = session.log.position());
        session
    }

    pub(crate) fn id(&self) -> &SessionId {
        &self.created.session_id
    }

    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.log.epoch())
    }

    pub(crate) fn log(&self) -> &Arc<Log<Record>> {
        &self.log
    }

    pub(crate) fn view(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// What readers of this session share.
    pub(super) fn tail(&self) -> Arc<Tail> {
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.upgrade().unwrap_or_else(|| {
            let new = Arc::default();
            *tail = Arc::downgrade(&new);
            new
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A panic while holding it leaves plain data: still the best that is known.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends events of a turn, in order. Waits while the disk is far behind. Cancel safe: what was
    /// appended stays appended.
    pub(crate) async fn emit(
        &self,
        turn: u32,
        events: impl IntoIterator<Item = (String, EventBody)>,
    ) -> Result<(), JournalError> {
        self.emit_last(turn, events).await.map(drop)
    }

    /// As [`Self::emit`]; returns the ticket of the last event, 0 without any.
    pub(crate) async fn emit_last(
        &self,
        turn: u32,
        events: impl IntoIterator<Item = (String, EventBody)>,
    ) -> Result<u64, JournalError> {
        let mut ticket = 0;
        for (agent, body) in events {
            let mut view = self.view.subscribe();
            while self.log.queued_bytes() > QUEUE_HIGH {
                view.changed().await.map_err(|_| JournalError)?;
            }
            ticket = self.append(Event {
                turn,
                ts: now(),
                agent,
                body,
            })?;
        }
        Ok(ticket)
    }

    /// Appends one event of the turn under way; fails when its end was appended before: nothing comes
    /// after it. Returns the event's ticket.
    pub(crate) fn append(&self, event: Event) -> Result<u64, JournalError> {
        // Held while appending, so that the end of a turn cannot slip in between.
        self.append_locked(&mut self.state(), event)
    }

    fn append_locked(&self, state: &mut State, event: Event) -> Result<u64, JournalError> {
        if state.running.is_none() || state.turn != event.turn {
            tracing::debug!(session_id = %self.id(), "an event came after the end of its turn");
            return Err(JournalError);
        }
        state.apply(&event);
        let record = Record::Event(event);
        let decision = record.is_decision();
        let ticket = self.log.append(record);
        let ticket = ticket.map_err(|error| self.refused(&error))?;
        if decision {
            self.decided(ticket);
        }
        Ok(ticket)
    }

    /// Appends a note. Returns its ticket.
    pub(crate) fn note(&self, note: Note) -> Result<u64, JournalError> {
        let record = Record::Note(note);
        let decision = record.is_decision();
        let ticket = self.log.append(record);
        let ticket = ticket.map_err(|error| self.refused(&error))?;
        if decision {
            self.decided(ticket);
        }
        Ok(ticket)
    }

    /// What people read of the session is old once `ticket` is durable.
    fn decided(&self, ticket: u64) {
        self.untold.fetch_max(ticket, Ordering::SeqCst);
        // It may have become durable before.
        self.tell(self.log.position());
    }

    fn tell(&self, position: Position) {
        let untold = self.untold.load(Ordering::SeqCst);
        let durable = (1..=position.ticket).contains(&untold);
        let swap = |from| {
            self.untold
                .compare_exchange(from, 0, Ordering::SeqCst, Ordering::SeqCst)
        };
        if durable && swap(untold).is_ok() {
            self.bell.ring(&self.log);
        }
    }

    fn refused(&self, error: &AppendError) -> JournalError {
        tracing::error!(session_id = %self.id(), %error, "the journal refused an entry");
        JournalError
    }

    /// Waits until everything up to `ticket` is durable; fails when that can no longer happen.
    pub(crate) async fn durable(
        &self,
        ticket: u64,
        failed: &CancellationToken,
    ) -> Result<(), JournalError> {
        let mut view = self.view.subscribe();
        tokio::select! {
            reached = view.wait_for(|view| view.position.ticket >= ticket) => {
                reached.map(drop).map_err(|_| JournalError)?;
            }
            () = failed.cancelled() => return Err(JournalError),
        }
        if self.log.refused(ticket) {
            tracing::error!(session_id = %self.id(), "an entry came out too large for the journal");
            return Err(JournalError);
        }
        Ok(())
    }

    /// A turn begins: readers know that more will come.
    pub(crate) fn begin(&self, note: &TurnNote, target: Arc<Target>, running: Running) {
        let mut state = self.state();
        state.begin(note);
        state.target = Some(target);
        state.running = Some(running);
        drop(state);
        self.view
            .send_modify(|view| view.active = self.state().running.is_some());
    }

    /// Appends the last event of the turn under way, also to a full volume. From here on the next
    /// turn may begin: its entries come after this one. Returns the event's ticket.
    pub(crate) fn end(&self, event: Event) -> Result<u64, JournalError> {
        let mut state = self.state();
        state.apply(&event);
        state.asks.clear();
        state.running = None;
        let ticket = self.log.append_urgent(Record::Event(event));
        let ticket = ticket.map_err(|error| self.refused(&error))?;
        self.decided(ticket);
        Ok(ticket)
    }

    /// A turn that could not be recorded is taken back: its end is appended if the journal still takes
    /// one, and nobody waits for it.
    pub(crate) fn take_back(&self, running: &Running) {
        let (turn, error) = (
            self.state().turn,
            "the turn could not be recorded in time: the volume is full or broken".to_owned(),
        );
        let body = EventBody::Error(ErrorEvent {
            error,
            fatal: true,
            code: TurnError::DiskFull,
        });
        let event = Event {
            turn,
            ts: now(),
            agent: MAIN_AGENT.into(),
            body,
        };
        if self.end(event).is_err() {
            tracing::error!(session_id = %self.id(), turn, "a turn that was not recorded could not be ended either");
        }
        self.ended(running);
    }

    /// The last event is durable, or never will be: readers that wait need not wait on.
    pub(crate) fn ended(&self, running: &Running) {
        // Read under the view's own lock: a turn that begins meanwhile is not overlooked.
        self.view
            .send_modify(|view| view.active = self.state().running.is_some());
        running.ended.cancel();
    }

    /// Whether the key that came with the session is needed again.
    pub(crate) fn key_required(&self) -> bool {
        self.created.own_key && self.state().request_key.is_none()
    }

    /// The session as the API tells it.
    pub(crate) fn body(&self) -> SessionBody {
        let position = self.view.borrow().position;
        let state = self.state();
        SessionBody {
            session_id: self.id().clone(),
            status: state.status.unwrap_or(SessionState::Pending),
            created_at: self.created.at,
            updated_at: state.updated_at.unwrap_or(self.created.at),
            turn: state.turn,
            last_event_id: Cursor {
                epoch: self.epoch(),
                n: position.last,
            }
            .to_string(),
            model: state
                .target
                .as_ref()
                .map_or_else(String::new, |target| target.label()),
            reason: state.reason.clone(),
            usage: state.usage,
            spend: contract::spend::Spend::default(),
            budget_left: None,
            key_required: self.created.own_key && state.request_key.is_none(),
            opencode_session_id: Some(self.created.opencode_session.clone()),
        }
    }
}

impl State {
    pub(super) fn begin(&mut self, note: &TurnNote) {
        self.doing.begin(note.at);
        self.turn = note.turn;
        self.delivered = false;
        self.status = Some(SessionState::Pending);
        "recorded, not yet started".clone_into(&mut self.reason);
        self.updated_at = Some(note.at);
        self.message_id.clone_from(&note.message_id);
        self.asks.clear();
        if note.turn == 1 {
            self.first_turn.started_at = Some(note.at);
        }
        if let Some(idempotency) = &note.idempotency {
            self.idempotency
                .insert(idempotency.key.clone(), (idempotency.clone(), note.turn));
        }
    }

    pub(super) fn apply(&mut self, event: &Event) {
        self.updated_at = Some(event.ts);
        self.doing.apply(event);
        let ends = event.body.ends_turn();
        if let Some(status) = status_of(&event.body) {
            self.status = Some(status);
        }
        if let Some(reason) = turn_reason(&event.body) {
            reason.as_ref().clone_into(&mut self.reason);
        }
        match &event.body {
            EventBody::Status(status) => {
                if let Some(usage) = status.usage {
                    self.usage += usage;
                }
            }
            EventBody::Approval(approval) => self.asks.apply(event, approval),
            EventBody::Output(_)
            | EventBody::ToolCall(_)
            | EventBody::ToolResult(_)
            | EventBody::Error(_)
            | EventBody::Complete(_)
            | EventBody::Gap(_) => {}
        }
        if ends && event.turn == 1 {
            self.first_turn.finished_at = Some(event.ts);
            match &event.body {
                EventBody::Complete(complete) => self.first_turn.complete = Some(complete.clone()),
                EventBody::Error(error) => self.first_turn.error = Some(error.clone()),
                _ => self.first_turn.cancelled = true,
            }
        }
    }
}

/// What an event makes of a session's status, if it says anything about it.
pub(super) fn status_of(body: &EventBody) -> Option<SessionState> {
    match body {
        EventBody::Status(status) => Some(match status.status {
            StatusKind::Queued | StatusKind::WaitingForKey => SessionState::Pending,
            StatusKind::Cancelled => SessionState::Cancelled,
            StatusKind::Running
            | StatusKind::Thinking
            | StatusKind::Step
            | StatusKind::Retrying
            | StatusKind::Compacting
            | StatusKind::Todo
            | StatusKind::SubAgent
            | StatusKind::AgentRestarted
            | StatusKind::Checkpoint
            | StatusKind::Watchdog => SessionState::Running,
        }),
        EventBody::Error(error) => error.fatal.then_some(SessionState::Failed),
        EventBody::Complete(_) => Some(SessionState::Completed),
        EventBody::Output(_)
        | EventBody::ToolCall(_)
        | EventBody::ToolResult(_)
        | EventBody::Approval(_)
        | EventBody::Gap(_) => None,
    }
}

/// One sentence on what the session does now, if the event changes that.
pub(super) fn turn_reason(body: &EventBody) -> Option<Cow<'_, str>> {
    match body {
        EventBody::Status(status) => status.progress.as_deref().map(Cow::Borrowed),
        EventBody::ToolCall(call) => Some(format!("runs the tool {}", call.tool).into()),
        EventBody::Output(_) | EventBody::ToolResult(_) => Some("works".into()),
        EventBody::Error(error) => Some(error.error.as_str().into()),
        EventBody::Complete(_) => Some("the last turn is complete".into()),
        EventBody::Approval(approval) => (approval.state == ApprovalState::Pending)
            .then(|| format!("waits for consent to {}", approval.permission).into()),
        EventBody::Gap(_) => None,
    }
}

/// Now, to the millisecond: finer would only cost bytes in every event.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_millisecond(Timestamp::now().as_millisecond()).unwrap_or(Timestamp::UNIX_EPOCH)
}
