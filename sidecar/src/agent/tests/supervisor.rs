use super::{Act, Double, bounds, connected, idle, say};
use crate::agent::{
    router::{FromAgent, Subscription},
    supervisor::{Agent, AgentOptions, AgentState},
    timings::Timings,
};
use crate::{metrics::WatchMetrics, watchdog::Patience};
use contract::event::TurnError;
use contract::runner::{Failure, Launch, Phase, Probe, Reply, Request, State};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, UnixListener, UnixStream},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

const LONG: Duration = Duration::from_secs(20);

/// A runner's double: one life of the agent's container.
struct RunnerDouble {
    state: watch::Sender<State>,
    shared: Arc<RunnerShared>,
    task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct RunnerShared {
    asked: Mutex<Vec<Request>>,
    launch: Mutex<Option<Launch>>,
    unsupported: Mutex<Option<String>>,
    /// How many starts fail.
    failing: AtomicU32,
    /// Whether watches are closed at once.
    closes_watches: AtomicBool,
}

impl RunnerDouble {
    fn start(path: &Path, runner_id: &str) -> Self {
        Self::with(path, runner_id, RunnerShared::default())
    }

    fn with(path: &Path, runner_id: &str, shared: RunnerShared) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let first = State {
            generation: 0,
            runner_id: runner_id.into(),
            phase: Phase::Stopped,
            isolation: None,
        };
        let (state, shared) = (watch::Sender::new(first), Arc::new(shared));
        let (for_task, shared_for_task) = (state.clone(), Arc::clone(&shared));
        let task = tokio::spawn(async move {
            // Dropped with the task: all connections end, as when a container dies.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(answer(
                    stream,
                    for_task.clone(),
                    Arc::clone(&shared_for_task),
                ));
            }
        });
        Self {
            state,
            shared,
            task: AbortOnDropHandle::new(task),
        }
    }

    fn exit(&self, stderr: &str) {
        let phase = Phase::Exited {
            code: Some(1),
            signal: None,
            stderr: stderr.into(),
        };
        self.state.send_modify(|state| state.phase = phase);
    }

    fn starts(&self) -> usize {
        let asked = self.shared.asked.lock().unwrap();
        asked
            .iter()
            .filter(|request| matches!(request, Request::Start { .. }))
            .count()
    }

    fn stops(&self) -> usize {
        let asked = self.shared.asked.lock().unwrap();
        asked
            .iter()
            .filter(|request| matches!(request, Request::Stop { .. }))
            .count()
    }
}

async fn answer(stream: UnixStream, state: watch::Sender<State>, shared: Arc<RunnerShared>) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    let request: Request = serde_json::from_str(&line).unwrap();
    shared.asked.lock().unwrap().push(request.clone());
    let reply = match request {
        Request::Watch => {
            let mut changes = state.subscribe();
            loop {
                let now = changes.borrow_and_update().clone();
                if write(&mut stream, &Reply::State(now)).await.is_err()
                    || shared.closes_watches.load(Ordering::SeqCst)
                {
                    return;
                }
                let mut rest = String::new();
                tokio::select! {
                    changed = changes.changed() => changed.unwrap(),
                    _ = stream.read_line(&mut rest) => return,
                    () = until(|| shared.closes_watches.load(Ordering::SeqCst)) => return,
                }
            }
        }
        Request::Probe => Reply::Probe(Probe {
            unsupported: shared.unsupported.lock().unwrap().clone(),
            landlock_abi: 7,
            ..Probe::default()
        }),
        Request::Start { launch } => {
            let fails = |n: u32| n.checked_sub(1);
            if shared
                .failing
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails)
                .is_ok()
            {
                Reply::Failed {
                    code: Failure::DiskFull,
                    message: "HOME is full".into(),
                }
            } else {
                let same = shared.launch.lock().unwrap().replace(launch.clone()) == Some(launch);
                state.send_if_modified(|state| {
                    let again = !same || !matches!(state.phase, Phase::Running { .. });
                    if again {
                        state.generation += 1;
                        state.phase = Phase::Running { pid: 7 };
                    }
                    again
                });
                Reply::State(state.borrow().clone())
            }
        }
        Request::Stop { .. } => {
            state.send_modify(|state| state.phase = Phase::Stopped);
            Reply::State(state.borrow().clone())
        }
        Request::Reap => Reply::Reaped { killed: 2 },
        _ => Reply::Done,
    };
    let _ = write(&mut stream, &reply).await;
}

async fn write(stream: &mut BufReader<UnixStream>, reply: &Reply) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(reply).unwrap();
    line.push(b'\n');
    stream.write_all(&line).await
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// OpenCode's double: well or not, with the open streams in hand.
#[derive(Default)]
struct Oc {
    unwell: AtomicBool,
    refuses_streams: AtomicBool,
    streams: Mutex<Vec<mpsc::Sender<Vec<u8>>>>,
}

impl Oc {
    async fn serve(self: &Arc<Self>, port: Option<u16>) -> Double {
        let listener = TcpListener::bind(("127.0.0.1", port.unwrap_or(0)))
            .await
            .unwrap();
        let oc = Arc::clone(self);
        Double::on(listener, move |got| {
            match got.path.split('?').next().unwrap() {
                "/global/health" if oc.unwell.load(Ordering::SeqCst) => Act::Hang,
                "/global/health" => say(r#"{"healthy":true,"version":"1.18.33"}"#),
                "/event" if oc.refuses_streams.load(Ordering::SeqCst) => Act::Say(500, "no".into()),
                "/event" => {
                    let (sender, receiver) = mpsc::channel(64);
                    sender.try_send(connected()).unwrap();
                    oc.streams.lock().unwrap().push(sender);
                    Act::Stream(receiver)
                }
                _ => say("{}"),
            }
        })
    }

    fn last_stream(&self) -> mpsc::Sender<Vec<u8>> {
        self.streams.lock().unwrap().last().unwrap().clone()
    }

    fn cut(&self) {
        self.streams.lock().unwrap().clear();
    }
}

struct World {
    agent: Agent,
    state: watch::Receiver<AgentState>,
    launch: watch::Sender<Launch>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

fn timings() -> Timings {
    let millis = Duration::from_millis;
    Timings {
        connect_most: millis(20),
        runner_lost: millis(300),
        first_health: millis(100),
        most_health: millis(200),
        start_within: millis(1500),
        health_every: millis(30),
        health_within: millis(60),
        restart_most: millis(50),
        stream_most: millis(50),
        renew_every: millis(20),
        renew_pause: millis(60),
        ..Timings::default()
    }
}

fn launch(name: &str) -> Launch {
    Launch {
        program: name.into(),
        args: Vec::new(),
        env: Default::default(),
        home_files: Default::default(),
        git_init: true,
        confinement: contract::runner::Confinement::default(),
    }
}

fn world(socket: &Path, port: u16) -> World {
    world_with(socket, port, timings())
}

fn world_with(socket: &Path, port: u16, timings: Timings) -> World {
    let (sender, receiver) = watch::channel(launch("one"));
    let patience = watch::channel(Patience {
        unwell_for: Some(Duration::from_millis(300)),
        recycle_after: None,
        memory_percent: None,
    });
    let options = AgentOptions {
        socket: socket.to_owned(),
        port,
        password: "pw".into(),
        launch: receiver,
        workspace: "/w".into(),
        timings,
        bounds: bounds(),
        patience: patience.1,
        metrics: WatchMetrics::default(),
    };
    let options = AgentOptions {
        bounds: crate::agent::opencode::Bounds {
            silence: LONG,
            ..options.bounds
        },
        ..options
    };
    let shutdown = CancellationToken::new();
    let (agent, task) = Agent::spawn(options, shutdown.clone());
    World {
        state: agent.state(),
        agent,
        launch: sender,
        shutdown,
        task,
    }
}

impl World {
    async fn when(&mut self, what: &str, condition: impl Fn(&AgentState) -> bool) -> AgentState {
        let result = timeout(LONG, self.state.wait_for(|state| condition(state))).await;
        let found = result.map(|state| state.unwrap().clone());
        found.unwrap_or_else(|_| panic!("never {what}: {:?}", self.agent.state().borrow()))
    }

    async fn ready(&mut self) -> AgentState {
        self.when("ready", |state| state.ready).await
    }
}

fn socket() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.sock");
    (dir, path)
}

async fn next(subscription: &mut Subscription) -> FromAgent {
    timeout(LONG, subscription.recv()).await.unwrap().unwrap()
}

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
    timeout(LONG, world.agent.restart("x")).await.unwrap();
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
        world.agent.restart("stuck"),
        world.agent.restart("stuck"),
        world.agent.restart("stuck"),
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
