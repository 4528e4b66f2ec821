//! A supervisor with OpenCode's double and settings in which tests take no time.

use super::super::{Act, Double, bounds, connected, say};
use crate::agent::{
    router::{FromAgent, Subscription},
    supervisor::{Agent, AgentOptions, AgentState},
    timings::Timings,
};
use crate::{metrics::WatchMetrics, watchdog::Patience};
use contract::runner::Launch;
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

pub(super) const LONG: Duration = Duration::from_secs(20);

pub(super) async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// OpenCode's double: well or not, with the open streams in hand.
pub(super) struct Oc {
    pub(super) unwell: AtomicBool,
    pub(super) slow_health: AtomicBool,
    pub(super) refuses_streams: AtomicBool,
    /// What it says of its MCP servers; 0: nothing, ever.
    pub(super) mcp: AtomicU16,
    pub(super) streams: Mutex<Vec<mpsc::Sender<Vec<u8>>>>,
}

impl Default for Oc {
    fn default() -> Self {
        Self {
            unwell: AtomicBool::default(),
            slow_health: AtomicBool::default(),
            refuses_streams: AtomicBool::default(),
            mcp: AtomicU16::new(200),
            streams: Mutex::default(),
        }
    }
}

impl Oc {
    pub(super) async fn serve(self: &Arc<Self>, port: Option<u16>) -> Double {
        let listener = TcpListener::bind(("127.0.0.1", port.unwrap_or(0)))
            .await
            .unwrap();
        let oc = Arc::clone(self);
        Double::on(listener, move |got| {
            match got.path.split('?').next().unwrap() {
                "/global/health" if oc.unwell.load(Ordering::SeqCst) => Act::Hang,
                "/global/health" if oc.slow_health.load(Ordering::SeqCst) => {
                    let text = r#"{"healthy":true,"version":"1.18.33"}"#;
                    let head = format!(
                        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}",
                        text.len()
                    );
                    Act::Late(head.into_bytes(), Duration::from_millis(50))
                }
                "/global/health" => say(r#"{"healthy":true,"version":"1.18.33"}"#),
                "/event" if oc.refuses_streams.load(Ordering::SeqCst) => Act::Say(500, "no".into()),
                "/event" => {
                    let (sender, receiver) = mpsc::channel(64);
                    sender.try_send(connected()).unwrap();
                    oc.streams.lock().unwrap().push(sender);
                    Act::Stream(receiver)
                }
                "/mcp" => match oc.mcp.load(Ordering::SeqCst) {
                    0 => Act::Hang,
                    code => Act::Say(code, "{}".into()),
                },
                _ => say("{}"),
            }
        })
    }

    pub(super) fn last_stream(&self) -> mpsc::Sender<Vec<u8>> {
        self.streams.lock().unwrap().last().unwrap().clone()
    }

    pub(super) fn cut(&self) {
        self.streams.lock().unwrap().clear();
    }
}

pub(super) struct World {
    pub(super) agent: Agent,
    pub(super) state: watch::Receiver<AgentState>,
    pub(super) launch: watch::Sender<Launch>,
    pub(super) patience: watch::Sender<Patience>,
    pub(super) shutdown: CancellationToken,
    pub(super) task: JoinHandle<()>,
}

pub(super) fn timings() -> Timings {
    let millis = Duration::from_millis;
    Timings {
        connect_most: millis(20),
        runner_lost: millis(300),
        start_health_within: millis(200),
        start_within: millis(1500),
        prepare_within: millis(500),
        health_every: millis(30),
        health_within: millis(60),
        restart_most: millis(50),
        stream_most: millis(50),
        renew_every: millis(20),
        renew_pause: millis(60),
        ..Timings::default()
    }
}

pub(super) fn launch(name: &str) -> Launch {
    Launch {
        program: name.into(),
        args: Vec::new(),
        env: Default::default(),
        home_files: Default::default(),
        git_init: true,
        confinement: contract::runner::Confinement::default(),
    }
}

pub(super) fn world(socket: &Path, port: u16) -> World {
    world_with(socket, port, timings())
}

pub(super) fn world_with(socket: &Path, port: u16, timings: Timings) -> World {
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
        patience: patience.0,
        shutdown,
        task,
    }
}

impl World {
    pub(super) async fn when(
        &mut self,
        what: &str,
        condition: impl Fn(&AgentState) -> bool,
    ) -> AgentState {
        let result = timeout(LONG, self.state.wait_for(|state| condition(state))).await;
        let found = result.map(|state| state.unwrap().clone());
        found.unwrap_or_else(|_| panic!("never {what}: {:?}", self.agent.state().borrow()))
    }

    pub(super) async fn ready(&mut self) -> AgentState {
        self.when("ready", |state| state.ready).await
    }
}

pub(super) fn socket() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.sock");
    (dir, path)
}

pub(super) async fn next(subscription: &mut Subscription) -> FromAgent {
    timeout(LONG, subscription.recv()).await.unwrap().unwrap()
}
