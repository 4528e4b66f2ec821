//! An OpenCode that begins to serve late after it began to listen.

use super::{
    RunnerDouble,
    world::{LONG, Oc, socket, timings, until, world_with},
};
use crate::agent::timings::Timings;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::timeout;

#[tokio::test]
async fn what_is_asked_too_early_holds_nothing_up() {
    let (_dir, path) = socket();
    let _runner = RunnerDouble::start(&path, "r1");
    let oc = Arc::new(Oc::default());
    oc.unwell.store(true, Ordering::SeqCst);
    let server = oc.serve(None).await;
    // Whoever waits for an answer that never comes is not ready in the time of this test.
    let timings = Timings {
        start_health_within: LONG * 4,
        start_within: LONG * 8,
        health_step: Duration::from_millis(5),
        ..timings()
    };
    let mut world = world_with(&path, server.port, timings);
    timeout(LONG, until(|| server.got().len() >= 3))
        .await
        .unwrap();
    oc.unwell.store(false, Ordering::SeqCst);
    world.ready().await;
}

#[tokio::test]
async fn answers_slower_than_the_next_ask_are_answers() {
    let (_dir, path) = socket();
    let _runner = RunnerDouble::start(&path, "r1");
    let oc = Arc::new(Oc::default());
    let server = oc.serve(None).await;
    oc.slow_health.store(true, Ordering::SeqCst);
    let timings = Timings {
        health_step: Duration::from_millis(1),
        start_health_within: LONG,
        start_within: LONG * 2,
        ..timings()
    };
    // Whoever gave up an ask for the next one would never be.
    world_with(&path, server.port, timings).ready().await;
}
