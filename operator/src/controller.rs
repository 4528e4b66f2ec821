//! The loop around [`reconcile`]: what wakes it, how many rounds run at once, and what a failure costs.

mod backoff;
mod watch;

use crate::{
    apply::ApplyError,
    session::reconcile::{Context, reconcile},
};
use backoff::Backoff;
use crds::OpenCodeSession;
use futures::StreamExt;
use jiff::Timestamp;
use kube::{
    Client, ResourceExt,
    runtime::{
        applier,
        controller::{Action, Config},
        reflector::{ObjectRef, Store},
    },
};
use std::{sync::Arc, time::Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use watch::{Caches, Trigger};

/// Rounds at once; the API server is the bottleneck, not this process.
const CONCURRENCY: u16 = 32;

struct Shared {
    context: Arc<Context>,
    backoff: Backoff,
}

/// Runs rounds until `stop`, then lets those under way finish.
pub async fn run(
    context: Arc<Context>,
    sessions: Store<OpenCodeSession>,
    triggers: impl futures::Stream<Item = Trigger> + Send + 'static,
    stop: CancellationToken,
) {
    let shared = Arc::new(Shared {
        context,
        backoff: Backoff::default(),
    });
    let drops = Arc::clone(&shared);
    let queue = triggers
        .filter_map(move |trigger| {
            let object = match trigger {
                Trigger::Look(object) => Some(object),
                Trigger::Gone { object, uid } => {
                    drops.backoff.forget(&object);
                    drops.context.metrics.phase(&uid, None);
                    None
                }
            };
            async move { object.map(Ok::<_, std::convert::Infallible>) }
        })
        .take_until(stop.cancelled_owned());
    let rounds = applier(
        |session, shared: Arc<Shared>| Box::pin(round(session, shared)),
        |session: Arc<OpenCodeSession>, error: &ApplyError, shared: Arc<Shared>| {
            shared.context.metrics.error(error.reason());
            let pause = shared.backoff.next(&ObjectRef::from_obj(&*session));
            tracing::warn!(
                session = session.name_any(),
                namespace = session.namespace(),
                error = error as &dyn std::error::Error,
                reason = error.reason().as_str(),
                again_in_seconds = pause.as_secs_f32(),
                "round failed"
            );
            Action::requeue(pause)
        },
        shared,
        sessions,
        Box::pin(queue),
        Config::default().concurrency(CONCURRENCY),
    );
    rounds.for_each(|_| std::future::ready(())).await;
}

async fn round(session: Arc<OpenCodeSession>, shared: Arc<Shared>) -> Result<Action, ApplyError> {
    let began = Instant::now();
    let object = ObjectRef::from_obj(&*session);
    let requeue = Box::pin(reconcile(&shared.context, session, Timestamp::now())).await?;
    shared.backoff.forget(&object);
    shared.context.metrics.round(began.elapsed());
    Ok(requeue.map_or_else(Action::await_change, Action::requeue))
}

/// The summaries' wishes as triggers.
pub fn summary_triggers(
    mut woken: mpsc::UnboundedReceiver<ObjectRef<OpenCodeSession>>,
) -> impl futures::Stream<Item = Trigger> + Send + 'static {
    futures::stream::poll_fn(move |cx| woken.poll_recv(cx)).map(Trigger::Look)
}

/// Starts the watches.
#[must_use]
pub fn watch(
    client: &Client,
    namespace: Option<&str>,
    metrics: &crate::metrics::Metrics,
) -> Caches {
    watch::start(client, namespace, metrics)
}

/// Holds triggers back until `filled`, while the watches are polled all the same: they fill the caches.
pub fn hold_until(
    filled: impl Future<Output = ()> + Send + 'static,
    ready: crate::server::Ready,
    triggers: impl futures::Stream<Item = Trigger> + Send + 'static,
) -> impl futures::Stream<Item = Trigger> + Send + 'static {
    let mut filled = Box::pin(filled);
    let mut open = false;
    let mut held = std::collections::VecDeque::new();
    let mut triggers = Box::pin(triggers);
    futures::stream::poll_fn(move |cx| {
        use std::task::Poll;
        loop {
            if !open && filled.as_mut().poll(cx).is_ready() {
                open = true;
                ready.set();
            }
            if open && let Some(trigger) = held.pop_front() {
                return Poll::Ready(Some(trigger));
            }
            match triggers.as_mut().poll_next(cx) {
                Poll::Ready(Some(trigger)) if open => return Poll::Ready(Some(trigger)),
                Poll::Ready(Some(trigger)) => held.push_back(trigger),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending if !open => {
                    // The last event may have filled the caches.
                    if filled.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    open = true;
                    ready.set();
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    })
}
