//! The workspace becomes what it was. That it was begun is in the journal before the runner hears of it:
//! a sidecar that dies in between asks for the same again, before any turn works.

use super::{Cause, Failure, find, gate::Holding, take, tidy};
use crate::{
    agent::runner::RestoredWorkspace,
    app::App,
    store::{
        book::{Begun, Entry},
        session::now,
    },
};
use contract::{
    ErrorCode,
    checkpoint::{Checkpoint, Restored},
    runner::TakePolicy,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedMutexGuard, oneshot};

/// How long until the runner is asked again.
const AGAIN: Duration = Duration::from_secs(2);
/// How often a restore is tried that stops in the middle.
const UNFINISHED_MAX: u32 = 30;

/// Makes the workspace what it was at a checkpoint, after one of what it is now. Refused while a turn
/// runs; turns that begin meanwhile wait.
pub(crate) async fn restore(app: &Arc<App>, id: &str) -> Result<Restored, Failure> {
    let target = find(app, id)?;
    if app.store.running() > 0 {
        return Err(Failure::turn_running());
    }
    let order = app.checkpoints.order().await?;
    let restored = match app.checkpoints.gate.restore() {
        None => return Err(Failure::turn_running()),
        Some(holding) => begin(app, &target, holding, order).await,
    };
    app.changed();
    restored
}

async fn begin(
    app: &Arc<App>,
    target: &Checkpoint,
    holding: Holding,
    order: OwnedMutexGuard<()>,
) -> Result<Restored, Failure> {
    // It may have been forgotten while this waited.
    find(app, &target.checkpoint_id)?;
    let root = target.root.clone();
    let before = take(app, Cause::BeforeRestore { root }, &holding).await?;
    let begun = Begun {
        checkpoint_id: target.checkpoint_id.clone(),
        root: target.root.clone(),
    };
    let entry = Entry::Restoring {
        checkpoint_id: begun.checkpoint_id.clone(),
        root: begun.root.clone(),
        at: now(),
    };
    if let Err(error) = app.store.record(entry).await {
        // It may become durable all the same, and a later process would restore: never without its end,
        // and no turn before that.
        let app = Arc::clone(app);
        tokio::spawn(async move {
            record(&app, &begun, false).await;
            drop((holding, order));
            app.changed();
        });
        return Err(error.into());
    }
    let (told, first) = oneshot::channel();
    let task = finish(Arc::clone(app), begun, holding, order, Some(told));
    tokio::spawn(task);
    let broke_off = Failure::new(
        ErrorCode::Internal,
        "the restore broke off; the log has more",
    );
    let RestoredWorkspace {
        written,
        removed,
        exact,
    } = first.await.map_err(|_| broke_off)??;
    Ok(Restored {
        before,
        written,
        removed,
        exact,
    })
}

/// Takes up a restore that the last process began. Call it before any turn begins.
pub(crate) fn recover(app: &Arc<App>) {
    app.show_checkpoints();
    let Some(begun) = app.store.book().restoring().cloned() else {
        return;
    };
    let order = Arc::clone(&app.checkpoints.order).try_lock_owned();
    if let (Ok(order), Some(holding)) = (order, app.checkpoints.gate.restore()) {
        tracing::warn!(
            checkpoint_id = begun.checkpoint_id,
            "taking up a restore that was cut"
        );
        tokio::spawn(finish(Arc::clone(app), begun, holding, order, None));
    }
}

/// Asks the runner until its answer is known, and records it. `told` gets the first answer.
async fn finish(
    app: Arc<App>,
    begun: Begun,
    holding: Holding,
    order: OwnedMutexGuard<()>,
    mut told: Option<oneshot::Sender<Result<RestoredWorkspace, Failure>>>,
) {
    let mut unfinished = 0;
    let done = loop {
        let policy = app.config.pod().checkpoints.clone();
        let policy = TakePolicy {
            include_ignored: policy.include_ignored,
            max_bytes: policy.max_bytes,
        };
        let runner = app.agent.runner();
        let answer = runner.restore_checkpoint(begun.root.clone(), policy).await;
        let answer = answer.map_err(Failure::from);
        app.checkpoints.metrics.restored(answer.as_ref().map(drop));
        let failure = answer.as_ref().err().cloned();
        let (done, known) = match &failure {
            None => (true, true),
            Some(failure) => (false, !failure.unknown),
        };
        if let Some(failure) = failure {
            tracing::warn!(checkpoint_id = begun.checkpoint_id, error = %failure, again = !known, "not restored");
            app.checkpoints.seen().last_error = Some(format!(
                "{} was not restored: {failure}",
                begun.checkpoint_id
            ));
            unfinished += u32::from(failure.code == ErrorCode::CheckpointFailed);
        }
        let gives_up = unfinished >= UNFINISHED_MAX;
        if known || gives_up {
            record(&app, &begun, done).await;
        }
        if let Some(told) = told.take() {
            // Whoever asked may have gone.
            let _ = told.send(answer);
        }
        if known {
            break done;
        }
        if gives_up {
            // Turns go on with what there is; the list says why.
            tracing::error!(
                checkpoint_id = begun.checkpoint_id,
                "a restore cannot be finished"
            );
            break false;
        }
        tokio::time::sleep(AGAIN).await;
    };
    if done {
        tracing::info!(checkpoint_id = begun.checkpoint_id, "workspace restored");
    }
    drop(holding);
    app.changed();
    tidy::tidy(app, order).await;
}

async fn record(app: &App, begun: &Begun, done: bool) {
    let entry = Entry::Restored {
        checkpoint_id: begun.checkpoint_id.clone(),
        at: now(),
        done,
    };
    // Before turns work again: a process that found no end would restore once more, over their work. A
    // journal that takes nothing takes no turn either.
    while let Err(error) = app.store.record(entry.clone()).await {
        tracing::error!(checkpoint_id = begun.checkpoint_id, %error, "the end of a restore could not be recorded");
        tokio::time::sleep(AGAIN).await;
    }
}
