//! Which checkpoints go: more than are to be kept, or more bytes than their store may have.

use super::Failure;
use crate::{app::App, store::book::Entry};
use std::sync::Arc;
use tokio::sync::OwnedMutexGuard;

/// Forgotten checkpoints that wait in the store: to remove them reads all that are kept.
const UNPRUNED_MAX: usize = 8;
/// Packs above which the store joins some.
const PACKS_MAX: u64 = 40;

/// Holds `order` to its end.
pub(super) async fn tidy(app: Arc<App>, order: OwnedMutexGuard<()>) {
    if let Err(failure) = try_tidy(&app).await {
        // Nothing is lost but space; it is tried again after the next checkpoint.
        tracing::warn!(error = %failure, "the store of checkpoints could not be tidied");
    }
    app.show_checkpoints();
    drop(order);
}

async fn try_tidy(app: &App) -> Result<(), Failure> {
    let policy = app.config.pod().checkpoints.clone();
    let keep = usize::try_from(policy.keep).unwrap_or(usize::MAX);
    let surplus = app.store.book().surplus(keep);
    forget(app, surplus).await?;
    let (unpruned, packs) = {
        let seen = app.checkpoints.seen();
        (seen.unpruned, seen.packs)
    };
    let over = |app: &App| app.store.book().store_bytes() > policy.max_bytes;
    if unpruned >= UNPRUNED_MAX || packs > PACKS_MAX || (unpruned > 0 && over(app)) {
        prune(app).await?;
    }
    while over(app) {
        let left = app.store.book().kept().len();
        // A quarter at a time: how much each one takes is not known.
        let surplus = app.store.book().surplus(left - left.div_ceil(4));
        if surplus.is_empty() {
            break;
        }
        forget(app, surplus).await?;
        prune(app).await?;
    }
    Ok(())
}

async fn forget(app: &App, ids: Vec<String>) -> Result<(), Failure> {
    if ids.is_empty() {
        return Ok(());
    }
    let many = ids.len();
    // Recorded first: what the list names is in the store.
    app.store.record(Entry::Forgotten { ids }).await?;
    app.checkpoints.seen().unpruned += many;
    Ok(())
}

async fn prune(app: &App) -> Result<(), Failure> {
    let roots = app.store.book().roots();
    let bytes = app.agent.runner().prune_checkpoints(roots).await?;
    app.store.book().set_store_bytes(bytes);
    let mut seen = app.checkpoints.seen();
    seen.unpruned = 0;
    // Told again with the next checkpoint.
    seen.packs = 0;
    Ok(())
}
