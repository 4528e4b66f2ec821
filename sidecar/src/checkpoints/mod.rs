//! Checkpoints of the workspace: when they are taken, which ones are kept, and what becomes of them.
//!
//! The runner does the work, as the agent's own user, in a store that the agent can write to. What
//! makes that trustworthy is kept here: the root of every checkpoint, in the pod's journal. All that
//! changes the store or the workspace happens one after the other ([`Keeper::order`]); the [`Gate`]
//! keeps turns out meanwhile. Whatever fails leaves the session as it is and says why.

mod failure;
mod fork;
pub(crate) mod gate;
mod metrics;
mod restore;
mod tidy;

pub(crate) use failure::Failure;
pub(crate) use fork::conversation;
pub(crate) use restore::{recover, restore};

use crate::{
    app::App,
    store::{book::Entry, session::now},
};
use contract::{
    ErrorCode, SessionId,
    checkpoint::{Checkpoint, CheckpointKind},
    pod::CheckpointMode,
    runner::TakePolicy,
};
use gate::{Gate, Holding};
use metrics::CheckpointMetrics;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{Mutex as AsyncMutex, MutexGuard, OwnedMutexGuard, Semaphore, SemaphorePermit},
    task::JoinHandle,
};

/// How long a request waits for work on checkpoints that is under way.
const ORDER_WAIT: Duration = Duration::from_secs(60);

/// What is known of checkpoints beyond the journal.
pub(crate) struct Keeper {
    pub(crate) gate: Gate,
    pub(crate) metrics: CheckpointMetrics,
    /// Held by whoever changes the store, the workspace or the list.
    order: Arc<AsyncMutex<()>>,
    /// Held by a fork: one that is repeated waits for the first, and gets its answer.
    forks: AsyncMutex<()>,
    /// Comparisons and patches: each may take tens of megabytes here.
    reading: Semaphore,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Why the last one that was wanted could not be taken.
    last_error: Option<String>,
    /// Packs of the store when last heard of.
    packs: u64,
    /// Checkpoints forgotten in the list and not yet in the store.
    unpruned: usize,
}

/// What a checkpoint is taken for.
#[derive(Clone, Debug)]
pub(crate) enum Cause {
    /// After the turn of this number, which left when so many had come to the workspace.
    Turn(SessionId, u32, u64),
    Manual,
    /// Of the checkpoint that has this root, whose files are kept even where git ignores them.
    BeforeRestore {
        root: String,
    },
}

impl Keeper {
    pub(crate) fn new() -> Self {
        Self {
            gate: Gate::new(),
            metrics: CheckpointMetrics::new(),
            order: Arc::default(),
            forks: AsyncMutex::default(),
            reading: Semaphore::new(1),
            seen: Mutex::default(),
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the last one that was wanted could not be taken.
    pub(crate) fn last_error(&self) -> Option<String> {
        self.seen().last_error.clone()
    }

    /// A place for a comparison or a patch.
    pub(crate) async fn reading(&self) -> Result<SemaphorePermit<'_>, Failure> {
        let place = tokio::time::timeout(ORDER_WAIT, self.reading.acquire()).await;
        place.ok().and_then(Result::ok).ok_or_else(|| {
            Failure::new(
                ErrorCode::CheckpointFailed,
                "other comparisons take long; try again",
            )
        })
    }

    async fn order(&self) -> Result<OwnedMutexGuard<()>, Failure> {
        in_time(Arc::clone(&self.order).lock_owned()).await
    }

    /// The right to fork, until the guard is dropped.
    pub(crate) async fn fork(&self) -> Result<MutexGuard<'_, ()>, Failure> {
        in_time(self.forks.lock()).await
    }
}

/// Waits for others that work on checkpoints.
async fn in_time<T>(turn: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::time::timeout(ORDER_WAIT, turn).await.map_err(|_| {
        Failure::new(
            ErrorCode::CheckpointFailed,
            "other work on checkpoints takes long; try again",
        )
    })
}

/// The checkpoint of this id.
pub(crate) fn find(app: &App, id: &str) -> Result<Checkpoint, Failure> {
    let found = app.store.book().get(id).cloned();
    found.ok_or_else(|| Failure::not_found(id))
}

/// Takes a checkpoint, in a task of its own: whoever asked may go away.
pub(crate) fn begin(app: &Arc<App>, cause: Cause) -> JoinHandle<Result<Checkpoint, Failure>> {
    let app = Arc::clone(app);
    tokio::spawn(async move {
        if app.config.pod().checkpoints.mode == CheckpointMode::Off {
            return Err(Failure::new(
                ErrorCode::CheckpointsOff,
                "checkpoints are switched off: set spec.checkpoints.mode",
            ));
        }
        let order = app.checkpoints.order().await;
        let order = order.inspect_err(|failure| app.failed(failure))?;
        let taken = {
            let holding = app.checkpoints.gate.take();
            take(&app, cause, &holding).await
        };
        app.changed();
        if taken.is_ok() {
            tokio::spawn(tidy::tidy(app, order));
        }
        taken
    })
}

/// Takes one while the gate is held, and records it.
async fn take(app: &App, cause: Cause, holding: &Holding) -> Result<Checkpoint, Failure> {
    let taken = try_take(app, cause, holding).await;
    match &taken {
        Ok(checkpoint) => {
            app.checkpoints.seen().last_error = None;
            tracing::info!(
                checkpoint_id = checkpoint.checkpoint_id,
                root = checkpoint.root,
                mixed = checkpoint.mixed,
                files = checkpoint.files,
                stored_bytes = checkpoint.stored_bytes,
                "checkpoint taken"
            );
        }
        Err(failure) => app.failed(failure),
    }
    taken
}

async fn try_take(app: &App, cause: Cause, holding: &Holding) -> Result<Checkpoint, Failure> {
    let policy = app.config.pod().checkpoints.clone();
    let began = Instant::now();
    let created_at = now();
    let guide = match &cause {
        Cause::BeforeRestore { root } => Some(root.clone()),
        Cause::Turn(..) | Cause::Manual => None,
    };
    let take_policy = TakePolicy {
        include_ignored: policy.include_ignored,
        max_bytes: policy.max_bytes,
    };
    let taken = app
        .agent
        .runner()
        .take_checkpoint(take_policy, guide)
        .await?;
    // Others may have come and gone while this one waited for its order.
    let late =
        matches!(cause, Cause::Turn(_, _, entered) if entered != app.checkpoints.gate.entered());
    let mixed = holding.mixed() || late;
    let (kind, session_id, turn) = match cause {
        Cause::Turn(session, turn, _) => (CheckpointKind::Turn, Some(session), Some(turn)),
        Cause::Manual => (CheckpointKind::Manual, None, None),
        Cause::BeforeRestore { .. } => (CheckpointKind::BeforeRestore, None, None),
    };
    app.checkpoints.seen().packs = taken.packs;
    let checkpoint = Checkpoint {
        checkpoint_id: app.store.book().next_id(),
        created_at,
        kind,
        session_id,
        turn,
        mixed,
        root: taken.root,
        files: taken.files,
        bytes: taken.bytes,
        stored_bytes: taken.stored_bytes,
        changing: taken.changing,
        include_ignored: policy.include_ignored,
        skipped: taken.skipped,
        skipped_count: taken.skipped_count,
    };
    let entry = Entry::Taken {
        checkpoint: Box::new(checkpoint.clone()),
        store_bytes: taken.store_bytes,
    };
    app.store.record(entry).await?;
    app.checkpoints.metrics.taken(mixed, began.elapsed());
    app.show_checkpoints();
    Ok(checkpoint)
}

impl App {
    fn failed(&self, failure: &Failure) {
        tracing::warn!(code = failure.code.as_str(), error = %failure, "no checkpoint");
        self.checkpoints.metrics.failed(failure);
        self.checkpoints.seen().last_error = Some(failure.to_string());
    }

    fn show_checkpoints(&self) {
        let book = self.store.book();
        let figure = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let metrics = &self.checkpoints.metrics;
        metrics.kept.set(figure(book.kept().len() as u64));
        metrics.store_bytes.set(figure(book.store_bytes()));
    }
}
