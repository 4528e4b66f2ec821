//! Whether OpenCode is well, and what it tells.

use super::due::Due;
use crate::agent::{
    opencode::{OpenCode, OpenCodeError},
    router::Router,
    stream::{EventStream, StreamError, StreamItem},
    timings::Timings,
};
use crate::watchdog::{Cause, Finding};
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

/// Waits until OpenCode is well, and begins to listen to it.
pub(super) async fn open(opencode: OpenCode, timings: Timings, cuts: u32) -> (String, EventStream) {
    sleep(timings.pause_before_stream(cuts)).await;
    let mut answered = false;
    loop {
        let version = well(&opencode, timings).await;
        if !std::mem::replace(&mut answered, true) {
            tracing::info!(version, "OpenCode answers");
        }
        match EventStream::open(&opencode).await {
            Ok(stream) => return (version, stream),
            Err(error) => tracing::debug!(%error, "no event stream yet"),
        }
        sleep(timings.health_step).await;
    }
}

/// Begins to have OpenCode make what its turns need, which goes on for as long as what is returned lives:
/// given up it could leave OpenCode spoilt.
pub(super) fn prepare(opencode: OpenCode) -> AbortOnDropHandle<Result<(), OpenCodeError>> {
    AbortOnDropHandle::new(tokio::spawn(async move { opencode.prepare().await }))
}

/// Waits for that, for as long as a turn would wait for it at most; the error says why no turn would work.
pub(super) async fn prepared(
    preparing: &mut AbortOnDropHandle<Result<(), OpenCodeError>>,
    timings: Timings,
) -> Result<(), String> {
    let began = Instant::now();
    match timeout(timings.prepare_within, preparing).await {
        Ok(Ok(Err(error))) if error.is_spoilt() => Err(format!("it can run no turn: {error}")),
        Ok(Ok(Err(error))) => {
            tracing::warn!(%error, "whether OpenCode has made what turns need is not known");
            Ok(())
        }
        Ok(Err(error)) => {
            tracing::error!(%error, "the task that has OpenCode make what turns need ended");
            Ok(())
        }
        Ok(Ok(Ok(()))) => {
            tracing::info!(after = ?began.elapsed(), "OpenCode has made what turns need");
            Ok(())
        }
        Err(_) => {
            tracing::warn!("OpenCode still makes what turns need: an MCP server may not answer");
            Ok(())
        }
    }
}

/// Waits until OpenCode is well; its version. What is asked after its port opened and before it serves
/// (measured: 0.3 to 0.5 s) stays without an answer, so it is asked again and again without waiting
/// for the answers before, which a slow machine may still give.
async fn well(opencode: &OpenCode, timings: Timings) -> String {
    let mut asks = FuturesUnordered::new();
    let mut again = interval(timings.health_step);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(answer) = asks.next() => match answer {
                Ok(version) => return version,
                Err(error) => tracing::trace!(%error, "not well yet"),
            },
            _ = again.tick() => asks.push(opencode.health(timings.start_health_within)),
        }
    }
}

/// Waits until OpenCode was not well for long; returns why. Turns are told when it begins.
pub(super) async fn unwell(opencode: OpenCode, due: Due) -> String {
    let mut since = None;
    loop {
        let Some(most) = due.unwell_for() else {
            sleep(due.timings.health_every).await;
            continue;
        };
        sleep(due.timings.health_every.min(most / 3)).await;
        let asked = Instant::now();
        let Err(error) = opencode.health(due.timings.health_within.min(most)).await else {
            since = None;
            continue;
        };
        let begins = since.is_none();
        let since = *since.get_or_insert(asked);
        tracing::warn!(%error, for_ = ?since.elapsed(), "OpenCode is not well");
        if since.elapsed() >= most {
            return format!("it was not well for {most:?}: {error}");
        }
        if begins {
            let text = format!(
                "OpenCode has not answered for {} s; it is restarted when that lasts for {} s \
                 (limits.watchdog.unresponsive)",
                since.elapsed().as_secs(),
                most.as_secs()
            );
            due.router.notice(&Finding::new(Cause::Unresponsive, text));
        }
    }
}

/// Tells the router what the stream brings, until that is over; returns why.
pub(super) async fn pump(router: Router, mut stream: EventStream) -> StreamError {
    let mut warned = false;
    loop {
        match stream.next().await {
            Ok(StreamItem::Event(event, bytes)) => router.dispatch(event, bytes).await,
            Ok(StreamItem::Skipped) => {
                if !std::mem::replace(&mut warned, true) {
                    tracing::warn!("an event of OpenCode was too long or made no sense");
                }
                router.resync();
            }
            Err(error) => return error,
        }
    }
}
