//! All sessions of the pod, kept in the journal.

pub(crate) mod reader;
pub(crate) mod record;
mod recover;
pub(crate) mod session;

use contract::{
    Event, EventBody, SessionId, Usage,
    event::{ErrorEvent, MAIN_AGENT, Status, StatusKind, TurnError},
};
use journal::{Health, Journal};
use record::{Created, Note, Record, TurnNote};
pub(crate) use recover::Unfinished;
use session::{JournalError, Running, Session, State, now};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::proxy::Target;

/// How long a caller waits for its turn to be recorded. A full disk holds entries back.
const BEGIN_BOUND: Duration = Duration::from_secs(20);

/// All sessions.
pub(crate) struct Store {
    journal: Journal<Record>,
    sessions: Mutex<BTreeMap<SessionId, Arc<Session>>>,
    /// Cancelled when the journal failed for good: no wait for a sync can end any more.
    failed: CancellationToken,
    health: watch::Receiver<Health>,
}

/// Why a session or turn was not begun.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BeginError {
    #[error("a session with this id exists or existed")]
    Exists,
    #[error("a turn of this session runs")]
    TurnRunning,
    #[error("as many turns run as are allowed")]
    TooMany,
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// The journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("the journal cannot be opened")]
    Open(#[source] journal::OpenError),
    #[error("the journal of session {session} cannot be read")]
    Read {
        session: String,
        source: journal::ReadError,
    },
}

/// What a new turn needs.
pub(crate) struct NewTurn {
    pub note: TurnNote,
    pub target: Arc<Target>,
    /// Turns allowed at once.
    pub limit: u32,
}

impl Store {
    /// Opens the journal and rebuilds every session from it; also returns the turns that were under
    /// way when the last process ended.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Vec<Unfinished>), StoreError> {
        let journal = Journal::open(dir, journal::Options::default()).map_err(StoreError::Open)?;
        for repair in journal.repairs() {
            tracing::error!(
                ?repair,
                "a damaged journal was set aside; its session goes on under a new epoch"
            );
        }
        let failed = CancellationToken::new();
        let (health_tx, health) = watch::channel(journal.health());
        let cancel = failed.clone();
        journal.on_health(Box::new(move |health| {
            tracing::warn!(?health, "the journal's health changed");
            if matches!(health, Health::Failed(_)) {
                cancel.cancel();
            }
            health_tx.send_replace(health);
        }));
        let mut sessions = BTreeMap::new();
        let mut unfinished = Vec::new();
        for log in journal.logs() {
            let name = log.name().to_owned();
            let recovered = recover::recover(&log).map_err(|source| StoreError::Read {
                session: name.clone(),
                source,
            })?;
            let Some(recovered) = recovered else {
                tracing::warn!(
                    session_id = name,
                    "a journal without its first note is left alone"
                );
                continue;
            };
            let session = Session::new(recovered.created, log, recovered.state);
            if let Some(turn) = recovered.unfinished {
                unfinished.push(Unfinished {
                    session: Arc::clone(&session),
                    turn,
                });
            }
            sessions.insert(session.id().clone(), session);
        }
        Ok((
            Self {
                journal,
                sessions: Mutex::new(sessions),
                failed,
                health,
            },
            unfinished,
        ))
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<SessionId, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, id: &SessionId) -> Option<Arc<Session>> {
        self.sessions().get(id).cloned()
    }

    /// All sessions, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        let mut all: Vec<_> = self.sessions().values().cloned().collect();
        all.sort_by_key(|session| session.created.at);
        all
    }

    /// Turns under way.
    pub(crate) fn running(&self) -> u32 {
        count(self.sessions().values())
    }

    /// What all sessions used.
    pub(crate) fn usage(&self) -> Usage {
        let mut sum = Usage::default();
        for session in self.sessions().values() {
            sum += session.state().usage;
        }
        sum
    }

    /// The journal's health, with news.
    pub(crate) fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Returns when the journal failed for good.
    pub(crate) async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Waits until a turn that begins is durable; one that cannot be is taken back.
    async fn begun(
        &self,
        session: &Session,
        running: &Running,
        ticket: u64,
    ) -> Result<(), BeginError> {
        let durable =
            tokio::time::timeout(BEGIN_BOUND, session.durable(ticket, &self.failed)).await;
        if matches!(durable, Ok(Ok(()))) {
            return Ok(());
        }
        session.take_back(running);
        Err(BeginError::Journal(JournalError))
    }

    /// Records a new session and its first turn. Durable when it returns.
    pub(crate) async fn create(
        &self,
        created: Created,
        request_key: Option<secrecy::SecretString>,
        turn: NewTurn,
    ) -> Result<(Arc<Session>, Running), BeginError> {
        let (session, running, ticket) = {
            let mut sessions = self.sessions();
            if sessions.contains_key(&created.session_id) {
                return Err(BeginError::Exists);
            }
            if count(sessions.values()) >= turn.limit {
                return Err(BeginError::TooMany);
            }
            let log = self.journal.create(created.session_id.as_str()).map_err(|error| {
                tracing::error!(session_id = %created.session_id, %error, "no journal for a new session");
                match error {
                    journal::CreateError::Exists => BeginError::Exists,
                    _ => BeginError::Journal(JournalError),
                }
            })?;
            let session = Session::new(
                created.clone(),
                log,
                State {
                    request_key,
                    ..State::default()
                },
            );
            session.note(Note::Created(created))?;
            let (running, ticket) = begin(&session, &turn)?;
            // Not before: a session whose beginning was refused is none.
            sessions.insert(session.id().clone(), Arc::clone(&session));
            (session, running, ticket)
        };
        self.begun(&session, &running, ticket).await?;
        Ok((session, running))
    }

    /// Records a further turn. Durable when it returns.
    pub(crate) async fn begin_turn(
        &self,
        session: &Arc<Session>,
        turn: NewTurn,
    ) -> Result<Running, BeginError> {
        let (running, ticket) = {
            let sessions = self.sessions();
            if session.state().running.is_some() {
                return Err(BeginError::TurnRunning);
            }
            if count(sessions.values()) >= turn.limit {
                return Err(BeginError::TooMany);
            }
            begin(session, &turn)?
        };
        self.begun(session, &running, ticket).await?;
        Ok(running)
    }

    /// Waits until `ticket` of `session` is durable.
    pub(crate) async fn durable(&self, session: &Session, ticket: u64) -> Result<(), JournalError> {
        session.durable(ticket, &self.failed).await
    }
}

fn count<'a>(sessions: impl Iterator<Item = &'a Arc<Session>>) -> u32 {
    let running = sessions
        .filter(|session| session.state().running.is_some())
        .count();
    u32::try_from(running).unwrap_or(u32::MAX)
}

fn begin(session: &Arc<Session>, turn: &NewTurn) -> Result<(Running, u64), JournalError> {
    session.note(Note::Turn(turn.note.clone()))?;
    let running = Running::default();
    session.begin(&turn.note, Arc::clone(&turn.target), running.clone());
    let queued = Event {
        turn: turn.note.turn,
        ts: now(),
        agent: MAIN_AGENT.into(),
        body: EventBody::Status(Status::new(StatusKind::Queued, "recorded, not yet started")),
    };
    match session.append(queued) {
        Ok(ticket) => {
            session.state().begun = ticket;
            Ok((running, ticket))
        }
        Err(error) => {
            // Its note may be on disk: it must not be taken up after a restart.
            let refused = EventBody::Error(ErrorEvent {
                error: format!("{error}. The turn was not begun"),
                fatal: true,
                code: TurnError::DiskFull,
            });
            let _ = session.end(Event {
                turn: turn.note.turn,
                ts: now(),
                agent: MAIN_AGENT.into(),
                body: refused,
            });
            if let Some(idempotency) = &turn.note.idempotency {
                session.state().idempotency.remove(&idempotency.key);
            }
            session.ended(&running);
            Err(error)
        }
    }
}
