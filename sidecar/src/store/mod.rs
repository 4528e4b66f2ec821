//! All sessions of the pod, kept in the journal.

pub(crate) mod book;
pub(crate) mod derived;
mod pod;
pub(crate) mod reader;
pub(crate) mod record;
mod recover;
pub(crate) mod session;
mod tail;
#[cfg(test)]
mod tests;

use contract::{
    Event, EventBody, SessionId, Usage,
    event::{ErrorEvent, MAIN_AGENT, Status, StatusKind, TurnError},
};
use derived::{Bell, Scribe};
use journal::{
    Health, Journal, Log,
    fs::{Fs, RealFs},
};
use record::{Created, Note, Record, TurnNote};
pub(crate) use recover::Unfinished;
use session::{JournalError, Running, Session, State, now};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
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
    dir: PathBuf,
    journal: Arc<Journal<Record>>,
    sessions: Arc<Mutex<Sessions>>,
    /// News whenever a session was made, or was not.
    made: watch::Sender<()>,
    /// Cancelled when the journal failed for good: no wait for a sync can end any more.
    failed: CancellationToken,
    health: watch::Receiver<Health>,
    bell: Bell,
    pod: pod::Pod,
    /// Let go after the journal, whose last entries it still writes down.
    _scribe: Option<Scribe>,
}

#[derive(Default)]
struct Sessions {
    known: BTreeMap<SessionId, Arc<Session>>,
    /// Whose journals are being made: they count as running turns.
    making: BTreeSet<SessionId>,
    /// Journals without a first note, of sessions that nobody was told of. Their ids are free.
    unborn: HashMap<SessionId, Arc<Log<Record>>>,
}

impl Sessions {
    /// Turns under way.
    fn running(&self) -> u32 {
        let running = self
            .known
            .values()
            .filter(|session| session.state().running.is_some())
            .count();
        u32::try_from(running + self.making.len()).unwrap_or(u32::MAX)
    }
}

/// Keeps an id and a turn's place while the journal of a session is made, which waits for the disk.
struct Place<'a> {
    sessions: &'a Mutex<Sessions>,
    made: &'a watch::Sender<()>,
    id: &'a SessionId,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        locked(self.sessions).making.remove(self.id);
        self.made.send_replace(());
    }
}

fn locked(sessions: &Mutex<Sessions>) -> MutexGuard<'_, Sessions> {
    // A panic while holding it leaves plain data: still the best that is known.
    sessions.lock().unwrap_or_else(PoisonError::into_inner)
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
        Self::open_on(Arc::new(RealFs), dir)
    }

    fn open_on(fs: Arc<dyn Fs>, dir: &Path) -> Result<(Self, Vec<Unfinished>), StoreError> {
        let options = journal::Options::default();
        let journal = Journal::open_on(fs, dir, options).map_err(StoreError::Open)?;
        for repair in journal.repairs() {
            tracing::error!(
                ?repair,
                "a damaged journal was set aside; its session goes on under a new epoch"
            );
        }
        let failed = CancellationToken::new();
        let (health_tx, health) = watch::channel(journal.health());
        let cancel = failed.clone();
        let bell = Bell::default();
        let has_room = bell.clone();
        journal.on_health(Box::new(move |health| {
            tracing::warn!(?health, "the journal's health changed");
            if matches!(health, Health::Failed(_)) {
                cancel.cancel();
            }
            let ok = health == Health::Ok;
            health_tx.send_replace(health);
            if ok {
                has_room.again();
            }
        }));
        let mut sessions = Sessions::default();
        let mut unfinished = Vec::new();
        let mut pod = pod::Pod::default();
        for log in journal.logs() {
            let name = log.name().to_owned();
            let recovered = recover::recover(&log).map_err(|source| StoreError::Read {
                session: name.clone(),
                source,
            })?;
            let Some(recovered) = recovered else {
                if name == pod::NAME {
                    let read = pod.recover(log);
                    read.map_err(|source| StoreError::Read {
                        session: name,
                        source,
                    })?;
                    continue;
                }
                match SessionId::new(name.clone()) {
                    Ok(id) => {
                        tracing::info!(session_id = name, "a session that was never begun");
                        sessions.unborn.insert(id, log);
                    }
                    Err(error) => {
                        tracing::warn!(name, %error, "a journal that is not of a session is left alone");
                    }
                }
                continue;
            };
            let session = Session::new(recovered.created, log, recovered.state, bell.clone());
            if let Some(turn) = recovered.unfinished {
                unfinished.push(Unfinished {
                    session: Arc::clone(&session),
                    turn,
                });
            }
            sessions.known.insert(session.id().clone(), session);
        }
        let logs = sessions
            .known
            .values()
            .map(|session| Arc::clone(session.log()));
        // Nothing depends on it, so without a thread there are only no such files.
        let scribe = Scribe::spawn(dir, bell.clone(), health.clone(), logs)
            .inspect_err(|error| tracing::error!(%error, "no state.json and decisions.md"))
            .ok();
        Ok((
            Self {
                dir: dir.to_owned(),
                journal: Arc::new(journal),
                sessions: Arc::new(Mutex::new(sessions)),
                made: watch::Sender::new(()),
                failed,
                health,
                bell,
                pod,
                _scribe: scribe,
            },
            unfinished,
        ))
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        locked(&self.sessions)
    }

    pub(crate) fn get(&self, id: &SessionId) -> Option<Arc<Session>> {
        self.sessions().known.get(id).cloned()
    }

    /// All sessions, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        let mut all: Vec<_> = self.sessions().known.values().cloned().collect();
        all.sort_by_key(|session| session.created.at);
        all
    }

    /// Turns under way.
    pub(crate) fn running(&self) -> u32 {
        self.sessions().running()
    }

    /// What all sessions used.
    pub(crate) fn usage(&self) -> Usage {
        let mut sum = Usage::default();
        for session in self.sessions().known.values() {
            sum += session.state().usage;
        }
        sum
    }

    /// The journal's folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Calls `f` with the duration of each sync; it must be quick.
    pub(crate) fn on_sync(&self, f: Box<dyn Fn(Duration) + Send + Sync>) {
        self.journal.on_sync(f);
    }

    /// The journal's health, with news.
    pub(crate) fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Returns when the journal failed for good.
    pub(crate) async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// As if the journal had failed.
    #[cfg(test)]
    pub(crate) fn fail(&self) {
        self.failed.cancel();
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

    fn reserve<'a>(&'a self, id: &'a SessionId, limit: u32) -> Result<Place<'a>, BeginError> {
        let mut sessions = self.sessions();
        if sessions.known.contains_key(id)
            || sessions.making.contains(id)
            || id.as_str() == pod::NAME
        {
            return Err(BeginError::Exists);
        }
        if sessions.running() >= limit {
            return Err(BeginError::TooMany);
        }
        sessions.making.insert(id.clone());
        Ok(Place {
            sessions: &self.sessions,
            made: &self.made,
            id,
        })
    }

    /// Returns when this session is not being made any more: it is there then, or it failed.
    pub(crate) async fn made(&self, id: &SessionId) {
        let mut news = self.made.subscribe();
        while self.sessions().making.contains(id) {
            // The sender lives as long as `self`.
            let _ = news.changed().await;
        }
    }

    /// Makes the journal of a session, unless one was left over. It waits for the disk and so does not
    /// run on the event loop, nor while others wait for the list of sessions. Cancel safe: what is
    /// made after all is kept for the next who asks for the id.
    async fn make_log(&self, id: &SessionId) -> Result<(), BeginError> {
        if self.sessions().unborn.contains_key(id) {
            return Ok(());
        }
        let (journal, sessions) = (Arc::clone(&self.journal), Arc::clone(&self.sessions));
        let name = id.clone();
        let made = tokio::task::spawn_blocking(move || {
            let log = journal.create(name.as_str())?;
            locked(&sessions).unborn.insert(name, log);
            Ok(())
        });
        match made.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(journal::CreateError::Exists)) => Err(BeginError::Exists),
            Ok(Err(error)) => {
                tracing::error!(session_id = %id, %error, "no journal for a new session");
                Err(BeginError::Journal(JournalError))
            }
            Err(error) => {
                tracing::error!(session_id = %id, %error, "making a journal panicked");
                Err(BeginError::Journal(JournalError))
            }
        }
    }

    /// Records a new session and its first turn. Durable when it returns.
    pub(crate) async fn create(
        &self,
        created: Created,
        request_key: Option<secrecy::SecretString>,
        turn: NewTurn,
    ) -> Result<(Arc<Session>, Running), BeginError> {
        let id = created.session_id.clone();
        let place = self.reserve(&id, turn.limit)?;
        self.make_log(&id).await?;
        let (session, begun) = {
            let mut sessions = self.sessions();
            let Some(log) = sessions.unborn.get(&id).cloned() else {
                return Err(BeginError::Exists);
            };
            let state = State {
                request_key,
                ..State::default()
            };
            let session = Session::new(created.clone(), log, state, self.bell.clone());
            session.note(Note::Created(created))?;
            let begun = begin(&session, &turn);
            // From its first note on it exists, also if its first turn was refused.
            sessions.unborn.remove(&id);
            sessions.known.insert(id.clone(), Arc::clone(&session));
            (session, begun)
        };
        drop(place);
        let (running, ticket) = begun?;
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
            if sessions.running() >= turn.limit {
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
