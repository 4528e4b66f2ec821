//! The supervisor beside doubles of the runner and of OpenCode.

mod runner;
mod starting;
mod world;

use super::idle;
use crate::{
    agent::{router::FromAgent, supervisor::AgentState, timings::Timings},
    watchdog::Patience,
};
use contract::event::TurnError;
use runner::{RunnerDouble, RunnerShared};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time::timeout;
use world::{LONG, Oc, launch, next, socket, timings, until, world, world_with};

#[tokio::test]
async fn comes_up_in_any_order_and_tells_events() {
    let (_dir, path) = socket();
    let oc = Arc::new(Oc::default());
    let server = oc.serve(None).await;
    let mut world = world(&path, server.port);
    let waiting = world.when("waiting", |s| s.message.is_some()).await;
    assert!(!waiting.ready && waiting.generation == 0);
    let mut events = world.agent.router().subscribe("ses_1");
    let runner = RunnerDouble::start(&path, "r1");
    let state = world.ready().await;
    assert_eq!(
        (state.generation, state.starts, state.runner_id.as_str()),
        (1, 1, "r1")
    );
    assert_eq!(
        (state.version.as_deref(), state.message),
        (Some("1.18.33"), None)
    );
    assert_eq!(state.probe.unwrap().landlock_abi, 7);
    assert_eq!(next(&mut events).await, FromAgent::Resync);
    oc.last_stream().send(idle("ses_1")).await.unwrap();
    assert!(matches!(next(&mut events).await, FromAgent::Event(_)));
    world.agent.reap().await;
    world.agent.check_workspace().await.unwrap();
    assert_eq!(runner.starts(), 1);
}

#[tokio::test]
async fn is_ready_only_once_the_stream_is_open() {
    let (_dir, path) = socket();
    let _runner = RunnerDouble::start(&path, "r1");
    let oc = Arc::new(Oc::default());
    oc.refuses_streams.store(true, Ordering::SeqCst);
    let server = oc.serve(None).await;
    let mut world = world(&path, server.port);
    timeout(
        LONG,
        until(|| server.got().iter().any(|g| g.path.starts_with("/event"))),
    )
    .await
    .unwrap();
    assert!(!world.state.borrow().ready);
    oc.refuses_streams.store(false, Ordering::SeqCst);
    world.ready().await;
}

#[tokio::test]
async fn one_that_cannot_make_what_turns_need_is_started_anew() {
    for spoilt in [499, 500, 503] {
        let (_dir, path) = socket();
        let runner = RunnerDouble::start(&path, "r1");
        let oc = Arc::new(Oc::default());
        oc.mcp.store(spoilt, Ordering::SeqCst);
        let server = oc.serve(None).await;
        let mut world = world(&path, server.port);
        timeout(LONG, until(|| runner.starts() >= 2)).await.unwrap();
        let state = world.state.borrow().clone();
        assert!(!state.ready, "{spoilt}: {state:?}");
        oc.mcp.store(200, Ordering::SeqCst);
        world.ready().await;
        for path in ["/config/providers", "/experimental/tool/ids", "/mcp"] {
            let path = format!("{path}?directory=%2Fw");
            assert!(server.got().iter().any(|got| got.path == path), "{path}");
        }
    }
}

/// A version that does not know what is asked is used all the same, and so is one that does not answer.
#[tokio::test]
async fn one_that_does_not_say_whether_it_made_what_turns_need_is_used() {
    for says in [404, 0] {
        let (_dir, path) = socket();
        let runner = RunnerDouble::start(&path, "r1");
        let oc = Arc::new(Oc::default());
        oc.mcp.store(says, Ordering::SeqCst);
        let server = oc.serve(None).await;
        let mut world = world(&path, server.port);
        let waits = |s: &AgentState| s.message.as_deref().is_some_and(|m| m.contains("MCP"));
        if says == 0 {
            world.when("told why it waits", waits).await;
        }
        world.ready().await;
        assert_eq!(runner.starts(), 1);
        // Once per process, and what is not answered goes on: given up it could spoil.
        oc.cut();
        let streams = || {
            server
                .got()
                .iter()
                .filter(|got| got.path.starts_with("/event"))
                .count()
        };
        timeout(LONG, until(|| streams() >= 2)).await.unwrap();
        world.ready().await;
        let asked = server
            .got()
            .iter()
            .filter(|got| got.path.starts_with("/mcp"))
            .count();
        assert_eq!(asked, 1, "{says}");
    }
}

#[tokio::test]
async fn a_process_that_ends_is_told_and_started_again() {
    let (_dir, path) = socket();
    let runner = RunnerDouble::start(&path, "r1");
    let oc = Arc::new(Oc::default());
    let server = oc.serve(None).await;
    let mut world = world(&path, server.port);
    world.ready().await;
    let mut events = world.agent.router().subscribe("ses_1");
    for generation in 2..5 {
        runner.exit("noise\nError: out of luck\n");
        oc.cut();
        let down = loop {
            // The cut stream may come first.
            match next(&mut events).await {
                FromAgent::AgentDown { reason, .. } => break reason,
                FromAgent::Resync | FromAgent::Event(_) | FromAgent::Notice(_) => {}
            }
        };
        assert_eq!(
            down,
            "it exited with code 1; its last words: Error: out of luck"
        );
        let state = world
            .when("up again", |s| s.ready && s.generation == generation)
            .await;
        assert_eq!(u64::from(state.starts), generation);
        assert_eq!(next(&mut events).await, FromAgent::Resync);
    }
    assert_eq!(runner.starts(), 4);
}

#[tokio::test]
async fn a_cut_stream_is_opened_again_and_nothing_is_restarted() {
    let (_dir, path) = socket();
    let runner = RunnerDouble::start(&path, "r1");
    let oc = Arc::new(Oc::default());
    let server = oc.serve(None).await;
    let mut world = world(&path, server.port);
    world.ready().await;
    let mut events = world.agent.router().subscribe("ses_1");
    for _ in 0..5 {
        oc.cut();
        assert_eq!(next(&mut events).await, FromAgent::Resync);
        world.ready().await;
        oc.last_stream().send(idle("ses_1")).await.unwrap();
        assert!(matches!(next(&mut events).await, FromAgent::Event(_)));
    }
    assert_eq!(world.ready().await.generation, 1);
    assert_eq!((runner.starts(), runner.stops()), (1, 0));
}

#[tokio::test]
async fn a_skipped_line_makes_subscribers_reconcile() {
    let (_dir, path) = socket();
    let _runner = RunnerDouble::start(&path, "r1");
    let oc = Arc::new(Oc::default());
    let server = oc.serve(None).await;
    let mut world = world(&path, server.port);
    world.ready().await;
    let mut events = world.agent.router().subscribe("ses_1");
    oc.last_stream()
        .send(b"data: {broken\n\n".to_vec())
        .await
        .unwrap();
    assert_eq!(next(&mut events).await, FromAgent::Resync);
    assert!(world.ready().await.ready);
}

#[tokio::test]
async fn a_sidecar_that_comes_back_finds_its_opencode() {
    let (_dir, path) = socket();
    let runner = RunnerDouble::start(&path, "r1");
    let oc = Arc::new(Oc::default());
    let server = oc.serve(None).await;
    let mut first = world(&path, server.port);
    first.ready().await;
    first.shutdown.cancel();
    timeout(LONG, first.task).await.unwrap().unwrap();
    assert_eq!(runner.stops(), 0);
    let mut second = world(&path, server.port);
    let state = second.ready().await;
    assert_eq!((state.generation, state.starts), (1, 1));
    assert_eq!(runner.state.borrow().generation, 1);
}

#[tokio::test]
async fn another_container_gets_another_start() {
    let (_dir, path) = socket();
    let runner = RunnerDouble::start(&path, "r1");
    let oc = Arc::new(Oc::default());
    let server = oc.serve(None).await;
    let mut world = world(&path, server.port);
    world.ready().await;
    let mut events = world.agent.router().subscribe("ses_1");
    drop(runner.task);
    oc.cut();
    world.when("down", |s| !s.ready).await;
    let _second = RunnerDouble::start(&path, "r2");
    let state = world
        .when("up again", |s| s.ready && s.runner_id == "r2")
        .await;
    assert_eq!((state.generation, state.starts), (2, 2));
    let mut down = 0;
    while down == 0 {
        down += usize::from(matches!(
            next(&mut events).await,
            FromAgent::AgentDown { .. }
        ));
    }
}

#[tokio::test]
async fn a_lost_watch_alone_changes_nothing() {
    let (_dir, path) = socket();
    let runner = RunnerDouble::start(&path, "r1");
    let oc = Arc::new(Oc::default());
    let server = oc.serve(None).await;
    let mut world = world(&path, server.port);
    world.ready().await;
    let mut events = world.agent.router().subscribe("ses_1");
    runner.shared.closes_watches.store(true, Ordering::SeqCst);
    timeout(
        LONG,
        until(|| runner.shared.asked.lock().unwrap().len() > 6),
    )
    .await
    .unwrap();
    runner.shared.closes_watches.store(false, Ordering::SeqCst);
    oc.last_stream().send(idle("ses_1")).await.unwrap();
    assert!(matches!(next(&mut events).await, FromAgent::Event(_)));
    assert_eq!((runner.starts(), world.ready().await.generation), (1, 1));
    // And it still hears of the end.
    runner.exit("");
    world
        .when("started again", |s| s.ready && s.generation == 2)
        .await;
}

#[tokio::test]
async fn what_is_not_well_for_long_is_started_anew() {
    let (_dir, path) = socket();
    let runner = RunnerDouble::start(&path, "r1");
    let oc = Arc::new(Oc::default());
    let server = oc.serve(None).await;
    let mut world = world(&path, server.port);
    world.ready().await;
    let mut events = world.agent.router().subscribe("ses_1");
    oc.unwell.store(true, Ordering::SeqCst);
    // Turns are told before anything happens to them.
    let FromAgent::Notice(finding) = next(&mut events).await else {
        panic!("not told");
    };
    assert_eq!(finding.cause, crate::watchdog::Cause::Unresponsive);
    let FromAgent::AgentDown { reason, code } = next(&mut events).await else {
        panic!("not down");
    };
    assert!(reason.starts_with("it was not well for"), "{reason}");
    assert_eq!(code, TurnError::AgentUnresponsive);
    timeout(LONG, until(|| runner.stops() > 0)).await.unwrap();
    oc.unwell.store(false, Ordering::SeqCst);
    let state = world.ready().await;
    assert!(state.generation > 1);
}

#[tokio::test]
async fn what_never_comes_up_is_started_anew() {
    let (_dir, path) = socket();
    let runner = RunnerDouble::start(&path, "r1");
    let oc = Arc::new(Oc::default());
    oc.unwell.store(true, Ordering::SeqCst);
    let server = oc.serve(None).await;
    let mut world = world(&path, server.port);
    timeout(LONG, until(|| runner.stops() >= 2)).await.unwrap();
    assert!(!world.state.borrow().ready);
    oc.unwell.store(false, Ordering::SeqCst);
    world.ready().await;
}

#[tokio::test]
async fn an_image_that_cannot_is_said_and_another_one_tried() {
    let (_dir, path) = socket();
    let shared = RunnerShared {
        unsupported: Mutex::new(Some("add glibc".into())),
        ..Default::default()
    };
    let runner = RunnerDouble::with(&path, "r1", shared);
    let oc = Arc::new(Oc::default());
    let server = oc.serve(None).await;
    let mut world = world(&path, server.port);
    let state = world.when("unsupported", |s| s.unsupported.is_some()).await;
    assert_eq!(state.unsupported.as_deref(), Some("add glibc"));
    // A restart of what cannot run is nothing to wait for.
    timeout(LONG, world.agent.restart(0, "x")).await.unwrap();
    assert_eq!(runner.starts(), 0);
    drop(runner.task);
    let _second = RunnerDouble::start(&path, "r2");
    assert_eq!(world.ready().await.unsupported, None);
}

#[tokio::test]
async fn starts_that_fail_are_tried_again() {
    let (_dir, path) = socket();
    let shared = RunnerShared {
        failing: AtomicU32::new(3),
        ..Default::default()
    };
    let runner = RunnerDouble::with(&path, "r1", shared);
    let oc = Arc::new(Oc::default());
    let server = oc.serve(None).await;
    let mut world = world(&path, server.port);
    let state = world
        .when("failed", |s| {
            s.message
                .as_deref()
                .is_some_and(|m| m.contains("HOME is full"))
        })
        .await;
    assert!(!state.ready);
    assert_eq!(world.ready().await.generation, 1);
    assert_eq!(runner.starts(), 4);
}

#[tokio::test]
async fn a_restart_stops_the_process_once_for_all_who_ask() {
    let (_dir, path) = socket();
    let runner = RunnerDouble::start(&path, "r1");
    let oc = Arc::new(Oc::default());
    let server = oc.serve(None).await;
    let mut world = world(&path, server.port);
    world.ready().await;
    let mut events = world.agent.router().subscribe("ses_1");
    let all = futures::future::join3(
        world.agent.restart(1, "stuck"),
        world.agent.restart(1, "stuck"),
        world.agent.restart(1, "stuck"),
    );
    timeout(LONG, all).await.unwrap();
    assert_eq!(
        next(&mut events).await,
        FromAgent::AgentDown {
            reason: "stuck".into(),
            code: TurnError::AgentDied,
        }
    );
    assert_eq!(
        world
            .when("up again", |s| s.ready && s.generation == 2)
            .await
            .generation,
        2
    );
    assert_eq!(runner.stops(), 1);
}

#[tokio::test]
async fn a_new_launch_waits_until_nobody_listens() {
    let (_dir, path) = socket();
    let runner = RunnerDouble::start(&path, "r1");
    let oc = Arc::new(Oc::default());
    let server = oc.serve(None).await;
    let mut world = world(&path, server.port);
    world.ready().await;
    let turn = world.agent.router().subscribe("ses_1");
    world.launch.send_replace(launch("two"));
    tokio::time::sleep(10 * timings().renew_every).await;
    assert!(world.state.borrow().ready);
    assert_eq!(runner.starts(), 1);
    drop(turn);
    world
        .when("renewed", |s| s.ready && s.generation == 2)
        .await;
    let used = runner.shared.launch.lock().unwrap().clone();
    assert_eq!(used, Some(launch("two")));
    // One step, so that the next is made ready while the one before still runs.
    assert_eq!((runner.starts(), runner.stops()), (2, 0));
    assert!(runner.asked_anew());
}

#[tokio::test]
async fn a_process_that_is_to_be_replaced_is_though_the_runner_was_lost_meanwhile() {
    let (_dir, path) = socket();
    let runner = RunnerDouble::start(&path, "r1");
    let oc = Arc::new(Oc::default());
    let server = oc.serve(None).await;
    let mut world = world(&path, server.port);
    world.ready().await;
    runner.shared.lost.store(1, Ordering::SeqCst);
    let age = |age| move |patience: &mut Patience| patience.recycle_after = age;
    world
        .patience
        .send_modify(age(Some(Duration::from_millis(50))));
    timeout(LONG, until(|| runner.starts() > 1)).await.unwrap();
    // It never comes of age again: what was due is remembered.
    world.patience.send_modify(age(None));
    let state = world
        .when("replaced", |s| s.ready && s.generation == 2)
        .await;
    assert_eq!(state.starts, 2);
    assert!(runner.asked_anew());
    assert_eq!(runner.starts(), 3, "once, and once again");
}

#[tokio::test]
async fn a_runner_of_before_is_asked_in_two_steps() {
    let (_dir, path) = socket();
    let runner = RunnerDouble::start(&path, "r1");
    runner.shared.old.store(true, Ordering::SeqCst);
    let oc = Arc::new(Oc::default());
    let server = oc.serve(None).await;
    let mut world = world(&path, server.port);
    world.ready().await;
    world.launch.send_replace(launch("two"));
    world
        .when("renewed", |s| s.ready && s.generation == 2)
        .await;
    assert_eq!((runner.starts(), runner.stops()), (3, 1));
    assert!(!runner.asked_anew());
}

#[tokio::test]
async fn a_renewal_that_news_and_a_turn_come_between_takes_its_word_back() {
    let (_dir, path) = socket();
    let runner = RunnerDouble::start(&path, "r1");
    let oc = Arc::new(Oc::default());
    let server = oc.serve(None).await;
    let mut world = world_with(
        &path,
        server.port,
        Timings {
            // Long enough for a turn to begin in it on a slow machine.
            renew_pause: Duration::from_secs(2),
            ..timings()
        },
    );
    world.ready().await;
    world.launch.send_replace(launch("two"));
    let about = |s: &AgentState| s.message.as_deref().is_some_and(|m| m.contains("anew"));
    world
        .when("about to be renewed", |s| !s.ready && about(s))
        .await;
    let turn = world.agent.router().subscribe("ses_1");
    // News that change nothing.
    runner.state.send_modify(|_| {});
    // Sooner than a stream that stays silent is opened anew.
    let state = timeout(LONG / 2, world.ready()).await.expect("ready again");
    assert_eq!(state.generation, 1, "the turn keeps its process");
    drop(turn);
    world
        .when("renewed", |s| s.ready && s.generation == 2)
        .await;
}

#[tokio::test]
async fn a_subscriber_that_reads_nothing_does_not_stop_the_supervisor() {
    let (_dir, path) = socket();
    let runner = RunnerDouble::start(&path, "r1");
    let oc = Arc::new(Oc::default());
    let server = oc.serve(None).await;
    let mut world = world(&path, server.port);
    world.ready().await;
    let _deaf = world.agent.router().subscribe("ses_1");
    let stream = oc.last_stream();
    let flood =
        tokio::spawn(async move { while stream.send(idle("ses_1").repeat(100)).await.is_ok() {} });
    runner.exit("");
    world
        .when("up again", |s| s.ready && s.generation == 2)
        .await;
    flood.abort();
}
