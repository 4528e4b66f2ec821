//! Gives OpenCode's events to those who wait for them, by session.
//!
//! A subscriber's queue holds at most [`EVENTS_MAX`] events and about [`BYTES_MAX`] bytes. While it is
//! full the stream waits for it, for [`PATIENCE`]; then the subscriber's events are dropped until it has
//! read a [`FromAgent::Resync`], so that no turn can hold up the others. [`FromAgent::Resync`] and
//! [`FromAgent::AgentDown`] always find room and keep their place between events.
//!
//! At most one Resync is unread: whoever reads it looks at what OpenCode has stored by then, so it makes
//! up for all that was lost since it was queued, too.

use super::wire::{OcEvent, OcKind, SessionStatus};
use crate::proxy::Bindings;
use crate::watchdog::Finding;
use contract::event::TurnError;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

/// Events that wait for one subscriber.
pub(crate) const EVENTS_MAX: usize = 256;
/// Bytes of the lines of these events; one larger than this waits alone.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// How long the stream waits for a subscriber whose queue is full.
const PATIENCE: Duration = Duration::from_secs(2);
/// Unread ends of OpenCode after which a subscriber counts as gone.
const DOWNS_MAX: usize = 64;
/// Sub-agents' sessions known at once.
const CHILDREN_MAX: usize = 10_000;

/// What a subscriber gets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum FromAgent {
    /// Something happened in the session or one below it.
    Event(Box<OcEvent>),
    /// Events may be missing before this: read what OpenCode stored.
    Resync,
    /// The watchdog saw something that concerns all turns.
    Notice(Finding),
    /// OpenCode ended, and all runs with it.
    AgentDown {
        /// For people.
        reason: String,
        /// How turns end with it.
        code: TurnError,
    },
}

/// The table of subscribers; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Router {
    table: Arc<Mutex<Table>>,
    bindings: Arc<OnceLock<Bindings>>,
    /// Turns that nobody listens to any more and that are not over yet.
    ending: Arc<AtomicUsize>,
}

/// A turn that ends, until it is dropped.
#[derive(Debug)]
pub(crate) struct Ending(Arc<AtomicUsize>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Debug, Default)]
struct Table {
    /// By the id of the subscription.
    subscribers: HashMap<u64, Subscriber>,
    /// Sub-agents' sessions and the session at their root.
    children: HashMap<String, String>,
    /// Whether the expected run of a session has begun.
    runs: HashMap<String, watch::Sender<bool>>,
    last: u64,
}

/// Tells whether OpenCode took up the work at a session, however it went, since this was made.
#[derive(Debug)]
pub(crate) struct ExpectedRun(watch::Receiver<bool>);

impl ExpectedRun {
    pub(crate) fn has_begun(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once it has begun. Cancel safe.
    pub(crate) async fn begins(&mut self) {
        if self.0.wait_for(|begun| *begun).await.is_err() {
            // Another run of the session is expected: this one is not told of any more.
            std::future::pending::<()>().await;
        }
    }
}

#[derive(Clone, Debug)]
struct Subscriber {
    root: String,
    sender: mpsc::UnboundedSender<Queued>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    events: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// Unread AgentDown and Notice.
    downs: AtomicUsize,
    /// A Resync is unread.
    resync: AtomicBool,
    /// Events are dropped until that Resync is read. Set before `resync` is looked at, cleared after.
    lagging: AtomicBool,
}

#[derive(Debug)]
struct Queued {
    message: FromAgent,
    /// Given back when the message is read.
    _room: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

/// Receives what concerns one session and those below it, until dropped.
#[derive(Debug)]
pub(crate) struct Subscription {
    id: u64,
    root: String,
    receiver: mpsc::UnboundedReceiver<Queued>,
    shared: Arc<Shared>,
    router: Router,
}

impl Router {
    /// From now on, events of the session and those below it. Subscribe before the first prompt; what
    /// happened earlier does not come.
    pub(crate) fn subscribe(&self, root_session: &str) -> Subscription {
        let shared = Arc::new(Shared {
            events: Arc::new(Semaphore::new(EVENTS_MAX)),
            bytes: Arc::new(Semaphore::new(BYTES_MAX)),
            downs: AtomicUsize::new(0),
            resync: AtomicBool::new(false),
            lagging: AtomicBool::new(false),
        });
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut table = self.table();
        table.last += 1;
        let id = table.last;
        let subscriber = Subscriber {
            root: root_session.to_owned(),
            sender,
            shared: Arc::clone(&shared),
        };
        table.subscribers.insert(id, subscriber);
        Subscription {
            id,
            root: root_session.to_owned(),
            receiver,
            shared,
            router: self.clone(),
        }
    }

    /// From now on it is kept whether OpenCode takes up the work at this session. For one turn at a time.
    pub(crate) fn expect_run(&self, root_session: &str) -> ExpectedRun {
        let (sender, receiver) = watch::channel(false);
        let runs = &mut self.table().runs;
        runs.retain(|_, run| !run.is_closed());
        runs.insert(root_session.to_owned(), sender);
        ExpectedRun(receiver)
    }

    /// From now on sub-agents call what their parents call, from the moment their beginning is read:
    /// before any turn has taken it from its queue. Once only.
    pub(crate) fn bind_children(&self, bindings: Bindings) {
        // A second time would be a mistake without consequences.
        let _ = self.bindings.set(bindings);
    }

    /// Events of `child` go to whoever subscribed to `root` (or to the root of `root`). Without a
    /// subscriber nothing is kept.
    pub(crate) fn add_child(&self, child: &str, root: &str) {
        self.table().add_child(child, root);
    }

    /// Hands an event over whose line had this many bytes. Waits while a queue is full.
    ///
    /// Cancel safe for the connection's end: a subscriber that missed the event gets Resync with the
    /// next connection.
    pub(super) async fn dispatch(&self, event: Box<OcEvent>, bytes: usize) {
        let to = self.receivers(&event);
        let Some((last, others)) = to.split_last() else {
            return;
        };
        for subscriber in others {
            subscriber.event(event.clone(), bytes).await;
        }
        last.event(event, bytes).await;
    }

    /// Events may have been lost.
    pub(super) fn resync(&self) {
        self.tell_all(&FromAgent::Resync);
    }

    /// OpenCode ended.
    pub(super) fn agent_down(&self, reason: &str, code: TurnError) {
        let reason = reason.to_owned();
        self.tell_all(&FromAgent::AgentDown { reason, code });
    }

    /// Something is to be told to all turns.
    pub(super) fn notice(&self, finding: &Finding) {
        self.tell_all(&FromAgent::Notice(finding.clone()));
    }

    /// A turn ends: what OpenCode stored of it is still to be read.
    pub(crate) fn ending(&self) -> Ending {
        self.ending.fetch_add(1, Ordering::AcqRel);
        Ending(Arc::clone(&self.ending))
    }

    /// Whether nobody listens and nobody reads what was stored, so that no turn is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.table().subscribers.is_empty() && self.ending.load(Ordering::Acquire) == 0
    }

    fn tell_all(&self, message: &FromAgent) {
        let mut table = self.table();
        table.subscribers.retain(|_, subscriber| {
            let kept = subscriber.tell(message.clone());
            if !kept {
                tracing::warn!(session = %subscriber.root, "nobody reads a session's events");
            }
            kept
        });
    }

    fn receivers(&self, event: &OcEvent) -> Vec<Subscriber> {
        let Some(session) = event.session.as_deref() else {
            return Vec::new();
        };
        let mut table = self.table();
        if let OcKind::SessionStatus(SessionStatus::Busy | SessionStatus::Retry { .. })
        | OcKind::SessionError(_) = &event.kind
            && let Some(run) = table.runs.get(session)
        {
            run.send_replace(true);
        }
        if let OcKind::SessionCreated {
            id,
            parent_id: Some(parent),
            ..
        } = &event.kind
        {
            table.add_child(id, parent);
            if let Some(bindings) = self.bindings.get() {
                bindings.bind_child(id.as_str(), parent);
            }
        }
        let root = table.root_of(session);
        let of_root = |subscriber: &&Subscriber| subscriber.root == root;
        table
            .subscribers
            .values()
            .filter(of_root)
            .cloned()
            .collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing between lock and unlock leaves the table half changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn root_of<'a>(&'a self, session: &'a str) -> &'a str {
        self.children.get(session).map_or(session, String::as_str)
    }

    fn add_child(&mut self, child: &str, parent: &str) {
        let root = self.root_of(parent).to_owned();
        // A root stays a root: an untrusted event must not give it to another subscriber.
        let is_root = self.subscribers.values().any(|s| s.root == child);
        let wanted = self.subscribers.values().any(|s| s.root == root);
        if child.is_empty() || is_root || !wanted || self.children.contains_key(child) {
            return;
        }
        if self.children.len() >= CHILDREN_MAX {
            tracing::warn!(session = %root, "too many sub-agents: events of one are not followed");
            return;
        }
        self.children.insert(child.to_owned(), root);
    }
}

impl Subscriber {
    async fn event(&self, event: Box<OcEvent>, bytes: usize) {
        if self.shared.lagging.load(Ordering::Acquire) {
            return;
        }
        let bytes = u32::try_from(bytes.clamp(1, BYTES_MAX)).unwrap_or(u32::MAX);
        let room = async {
            let event = Arc::clone(&self.shared.events).acquire_owned().await;
            let bytes = Arc::clone(&self.shared.bytes)
                .acquire_many_owned(bytes)
                .await;
            event.ok().zip(bytes.ok())
        };
        let room = tokio::select! {
            room = tokio::time::timeout(PATIENCE, room) => room,
            () = self.sender.closed() => return,
        };
        let Ok(room) = room else {
            tracing::warn!(session = %self.root, "a session's events are not read fast enough");
            self.shared.lagging.store(true, Ordering::Release);
            self.tell(FromAgent::Resync);
            return;
        };
        let queued = Queued {
            message: FromAgent::Event(event),
            _room: room,
        };
        // An error means that the receiver is gone.
        let _ = self.sender.send(queued);
    }

    /// Queues what needs no room; false if the subscriber is gone or reads nothing.
    fn tell(&self, message: FromAgent) -> bool {
        let shared = &self.shared;
        if message == FromAgent::Resync {
            if shared.resync.swap(true, Ordering::AcqRel) {
                return !self.sender.is_closed();
            }
        } else if shared.downs.fetch_add(1, Ordering::AcqRel) >= DOWNS_MAX {
            return false;
        }
        let queued = Queued {
            message,
            _room: None,
        };
        self.sender.send(queued).is_ok()
    }
}

impl Subscription {
    /// The next message, in order; `None` once this subscription was given up because its messages
    /// were not read. Cancel safe.
    pub(crate) async fn recv(&mut self) -> Option<FromAgent> {
        let queued = self.receiver.recv().await?;
        match &queued.message {
            FromAgent::Event(_) => {}
            FromAgent::Resync => {
                self.shared.resync.store(false, Ordering::Release);
                self.shared.lagging.store(false, Ordering::Release);
            }
            FromAgent::AgentDown { .. } | FromAgent::Notice(_) => {
                self.shared.downs.fetch_sub(1, Ordering::AcqRel);
            }
        }
        Some(queued.message)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut table = self.router.table();
        table.subscribers.remove(&self.id);
        if !table.subscribers.values().any(|s| s.root == self.root) {
            table.children.retain(|_, root| *root != self.root);
        }
    }
}
