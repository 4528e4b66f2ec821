//! Keeps OpenCode alive and listened to: runner → process → health → event stream → ready.
//!
//! One task does it all in order; whoever holds an [`Agent`] only reads its state or asks for a
//! restart. Dropping out (shutdown) leaves OpenCode as it is: the runner stops it with its container,
//! and a sidecar that comes back finds the same process and goes on with it.

mod due;
mod keep;
mod listen;
mod process;
mod told;

use super::{
    opencode::{Bounds, OpenCode},
    router::Router,
    runner::{Runner, RunnerError, WorkspaceError},
    timings::Timings,
};
use crate::{metrics::WatchMetrics, settings::Settings, watchdog::Patience};
use contract::runner::{Isolation, Launch, Probe, ToolTree};
use due::Due;
pub(crate) use due::Why;
use keep::Supervisor;
use secrecy::SecretString;
use std::{path::PathBuf, sync::Arc};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use told::Told;

/// What an [`Agent`] needs.
#[derive(Debug)]
pub(crate) struct AgentOptions {
    /// The runner's socket.
    pub(crate) socket: PathBuf,
    /// OpenCode's port.
    pub(crate) port: u16,
    /// OpenCode's password; it must outlive restarts of the sidecar, as OpenCode does.
    pub(crate) password: SecretString,
    /// How OpenCode is started. A new value restarts it when nobody subscribes to events.
    pub(crate) launch: watch::Receiver<Launch>,
    /// The workspace, as the agent sees it.
    pub(crate) workspace: PathBuf,
    pub(crate) timings: Timings,
    pub(crate) bounds: Bounds,
    /// How long OpenCode may be unwell, and when it is started anew.
    pub(crate) patience: watch::Receiver<Patience>,
    pub(crate) metrics: WatchMetrics,
}

impl AgentOptions {
    pub(crate) fn new(
        settings: &Settings,
        password: String,
        launch: watch::Receiver<Launch>,
        patience: watch::Receiver<Patience>,
        metrics: WatchMetrics,
    ) -> Self {
        Self {
            socket: settings.runner_socket.clone(),
            port: settings.opencode_port,
            password: password.into(),
            launch,
            workspace: settings.workspace_dir.clone(),
            timings: Timings::default(),
            bounds: Bounds::default(),
            patience,
            metrics,
        }
    }
}

/// How the agent is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AgentState {
    /// OpenCode answers and its events are listened to.
    pub(crate) ready: bool,
    /// Grows with every process of OpenCode that this sidecar saw.
    pub(crate) generation: u64,
    /// The last of them has ended: the runner said so.
    pub(crate) ended: bool,
    /// The runner's own id; empty before the first contact.
    pub(crate) runner_id: String,
    /// How often OpenCode was started, as far as the runners that this sidecar met tell.
    pub(crate) starts: u32,
    /// OpenCode's version, once it said so.
    pub(crate) version: Option<String>,
    /// Why the image cannot run OpenCode.
    pub(crate) unsupported: Option<String>,
    /// Why it is not ready, for people; absent when it is.
    pub(crate) message: Option<String>,
    /// What image and kernel offer, once the runner said so.
    pub(crate) probe: Option<Probe>,
    /// What is refused to the process, as the runner found when it tried.
    pub(crate) isolation: Option<Isolation>,
}

/// The agent. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    state: watch::Receiver<AgentState>,
    restarts: mpsc::Sender<Restart>,
    runner: Runner,
    opencode: OpenCode,
    router: Router,
}

#[derive(Debug)]
struct Restart {
    why: String,
    /// Of the process that is meant: a younger one is left alone.
    generation: u64,
    /// Dropped when it is done, or not to be done.
    done: oneshot::Sender<()>,
}

impl Agent {
    /// Begins to look after the agent, until `shutdown`. The task ends only then.
    pub(crate) fn spawn(
        options: AgentOptions,
        shutdown: CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let (state, receiver) = watch::channel(AgentState::default());
        let (restarts, commands) = mpsc::channel(8);
        let agent = Self {
            state: receiver,
            restarts,
            runner: Runner::new(&options.socket),
            opencode: OpenCode::new(
                options.port,
                &options.password,
                &options.workspace,
                options.bounds,
            ),
            router: Router::default(),
        };
        let told = Told(state);
        let supervisor = Supervisor {
            runner: agent.runner.clone(),
            opencode: agent.opencode.clone(),
            router: agent.router.clone(),
            timings: options.timings,
            due: Due {
                launch: options.launch,
                patience: options.patience,
                router: agent.router.clone(),
                runner: agent.runner.clone(),
                told: told.clone(),
                timings: options.timings,
                metrics: options.metrics,
                in_vain: Arc::default(),
            },
            stopped: None,
            told,
            commands,
            process: None,
            anew: false,
            starts_before: 0,
            failures: 0,
        };
        let task = tokio::spawn(async move {
            shutdown
                .run_until_cancelled(Box::pin(supervisor.run()))
                .await;
        });
        (agent, task)
    }

    /// How it is, with news.
    pub(crate) fn state(&self) -> watch::Receiver<AgentState> {
        self.state.clone()
    }

    pub(crate) fn opencode(&self) -> &OpenCode {
        &self.opencode
    }

    pub(crate) fn router(&self) -> &Router {
        &self.router
    }

    /// Kills the processes that tools left behind. All sessions share them: only for when no turn runs.
    pub(crate) async fn reap(&self) {
        match self.runner.reap().await {
            Ok(0) => {}
            Ok(killed) => tracing::info!(killed, "killed what tools left behind"),
            Err(error) => tracing::warn!(%error, "what tools left behind could not be killed"),
        }
    }

    /// Stops the process with this generation, after which OpenCode is started anew. Returns when it is
    /// stopped, or at once if it is gone already. All runs of all sessions end.
    pub(crate) async fn restart(&self, generation: u64, why: &str) {
        let (done, stopped) = oneshot::channel();
        let restart = Restart {
            why: why.to_owned(),
            generation,
            done,
        };
        if self.restarts.send(restart).await.is_ok() {
            // Both outcomes mean that there is nothing left to wait for.
            let _ = stopped.await;
        }
    }

    /// For what works on the workspace.
    pub(crate) fn runner(&self) -> &Runner {
        &self.runner
    }

    /// Whether the workspace can be written.
    pub(crate) async fn check_workspace(&self) -> Result<(), WorkspaceError> {
        self.runner.check_workspace().await
    }

    /// What the processes of tools use.
    pub(crate) async fn tools(&self) -> Result<Vec<ToolTree>, RunnerError> {
        self.runner.tools().await
    }
}
