//! Whether OpenCode is well, and what it tells.

use super::due::Due;
use crate::agent::{
    opencode::OpenCode,
    router::Router,
    stream::{EventStream, StreamError, StreamItem},
    timings::Timings,
};
use crate::watchdog::{Cause, Finding};
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

/// Waits until OpenCode is well, and begins to listen to it. The error says why it never will be.
pub(super) async fn open(
    opencode: OpenCode,
    timings: Timings,
    cuts: u32,
) -> Result<(String, EventStream), String> {
    sleep(timings.pause_before_stream(cuts)).await;
    let mut answered = false;
    loop {
        let version = well(&opencode, timings).await;
        if !std::mem::replace(&mut answered, true) {
            tracing::info!(version, "OpenCode answers");
        }
        match EventStream::open(&opencode).await {
            Ok(stream) => match opencode.read_models().await {
                Ok(()) => return Ok((version, stream)),
                Err(error) if error.is_of_server() => {
                    return Err(format!("it cannot read its models: {error}"));
                }
                Err(error) if error.is_transient() => {
                    tracing::debug!(%error, "models are not read yet");
                }
                Err(error) => {
                    tracing::warn!(%error, "whether it has read its models is not known");
                    return Ok((version, stream));
                }
            },
            Err(error) => tracing::debug!(%error, "no event stream yet"),
        }
        sleep(timings.health_step).await;
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
