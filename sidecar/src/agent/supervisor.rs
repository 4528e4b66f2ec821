//! Keeps OpenCode alive and listened to: runner → process → health → event stream → ready.
//!
//! One task does it all in order; whoever holds an [`Agent`] only reads its state or asks for a
//! restart. Dropping out (shutdown) leaves OpenCode as it is: the runner stops it with its container,
//! and a sidecar that comes back finds the same process and goes on with it.

use super::{
    opencode::{Bounds, OpenCode},
    router::Router,
    runner::{Runner, RunnerError, Watch, WorkspaceError},
    stream::{EventStream, StreamError, StreamItem},
    timings::Timings,
};
use crate::settings::Settings;
use contract::runner::{Cgroup, Launch, Phase, Probe, State};
use secrecy::SecretString;
use std::{path::PathBuf, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// Longest text that the untrusted side adds to a message, in bytes.
const WORDS_MAX: usize = 1024;

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
}

impl AgentOptions {
    pub(crate) fn new(
        settings: &Settings,
        password: String,
        launch: watch::Receiver<Launch>,
    ) -> Self {
        Self {
            socket: settings.runner_socket.clone(),
            port: settings.opencode_port,
            password: password.into(),
            launch,
            workspace: settings.workspace_dir.clone(),
            timings: Timings::default(),
            bounds: Bounds::default(),
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

/// One process of OpenCode.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    runner_id: String,
    generation: u64,
}

/// Why a process is no longer served.
#[derive(Debug)]
enum Ended {
    /// It ended, or another one is there.
    Process(String),
    /// The runner is gone, or another one is there.
    Runner(String),
    /// It is to be stopped.
    Stop(String, Option<oneshot::Sender<()>>),
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
            opencode: OpenCode::with_bounds(
                options.port,
                &options.password,
                &options.workspace,
                options.bounds,
            ),
            router: Router::default(),
        };
        let supervisor = Supervisor {
            runner: agent.runner.clone(),
            opencode: agent.opencode.clone(),
            router: agent.router.clone(),
            launch: options.launch,
            timings: options.timings,
            told: Told(state),
            commands,
            process: None,
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

    pub(crate) fn runner(&self) -> &Runner {
        &self.runner
    }

    /// Kills the processes that tools left behind. All sessions share them: only for when no turn runs.
    pub(crate) async fn reap(&self) {
        match self.runner.reap().await {
            Ok(0) => {}
            Ok(killed) => tracing::info!(killed, "killed what tools left behind"),
            Err(error) => tracing::warn!(%error, "what tools left behind could not be killed"),
        }
    }

    /// Stops OpenCode, which is then started anew. Returns when it is stopped, or at once if the
    /// process that was there at the call is gone already. All runs of all sessions end.
    pub(crate) async fn restart(&self, why: &str) {
        let (done, stopped) = oneshot::channel();
        let restart = Restart {
            why: why.to_owned(),
            generation: self.state.borrow().generation,
            done,
        };
        if self.restarts.send(restart).await.is_ok() {
            // Both outcomes mean that there is nothing left to wait for.
            let _ = stopped.await;
        }
    }

    /// Whether the workspace can be written.
    pub(crate) async fn check_workspace(&self) -> Result<(), WorkspaceError> {
        self.runner.check_workspace().await
    }

    /// What the agent's container uses.
    pub(crate) async fn cgroup(&self) -> Result<Cgroup, RunnerError> {
        self.runner.cgroup().await
    }
}

struct Supervisor {
    runner: Runner,
    opencode: OpenCode,
    router: Router,
    launch: watch::Receiver<Launch>,
    timings: Timings,
    told: Told,
    commands: mpsc::Receiver<Restart>,
    /// The last process seen.
    process: Option<Process>,
    /// Starts by former runners.
    starts_before: u64,
    /// Ends of OpenCode, or starts that failed, since it last was well for long.
    failures: u32,
}

impl Supervisor {
    async fn run(mut self) {
        loop {
            let (mut watch, state) = self.connect().await;
            let why = self.with_runner(&mut watch, state).await;
            tracing::warn!(reason = why, "lost the runner");
            self.told
                .not_ready(format!("the agent's container does not answer: {why}"));
        }
    }

    /// Waits for a runner. Its container starts after ours, and again whenever it fails.
    async fn connect(&mut self) -> (Watch, State) {
        let mut pause = self.timings.connect_first;
        loop {
            let error = match self.meanwhile(follow(self.runner.clone())).await {
                Ok((watch, state, probe)) => {
                    self.told.change(|s| {
                        s.runner_id = clip(&state.runner_id, 64);
                        s.unsupported = probe.as_ref().and_then(|p| p.unsupported.clone());
                        s.probe = probe;
                    });
                    return (watch, state);
                }
                Err(error) => error,
            };
            tracing::debug!(%error, "no runner yet");
            self.told
                .not_ready(format!("waits for the agent's container: {error}"));
            self.meanwhile(sleep(pause)).await;
            pause = (pause * 2).min(self.timings.connect_most);
        }
    }

    /// Keeps OpenCode running until the runner is gone; returns why.
    async fn with_runner(&mut self, watch: &mut Watch, mut state: State) -> String {
        loop {
            let unsupported = match &state.phase {
                Phase::Unsupported { message } => Some(clip(message, WORDS_MAX)),
                _ => self.told.now().unsupported.clone(),
            };
            if let Some(message) = unsupported {
                tracing::error!(reason = message, "the image cannot run OpenCode");
                self.told.change(|s| s.unsupported = Some(message.clone()));
                self.told.not_ready(message);
                // Another image comes with another runner.
                return self.meanwhile(until_closed(watch)).await;
            }
            let pause = self.timings.pause_before(self.failures);
            self.meanwhile(sleep(pause)).await;
            let launch = self.launch.borrow_and_update().clone();
            let runner = self.runner.clone();
            match self
                .meanwhile(async move { runner.start(launch).await })
                .await
            {
                Ok(now) => state = now,
                Err(error @ RunnerError::Failed { .. }) => {
                    self.failures += 1;
                    tracing::error!(%error, "OpenCode could not be started");
                    self.told
                        .not_ready(format!("OpenCode could not be started: {error}"));
                    continue;
                }
                Err(error) => return error.to_string(),
            }
            if !matches!(state.phase, Phase::Running { .. }) {
                self.failures += 1;
                self.told.not_ready(format!(
                    "OpenCode did not start: {}",
                    describe(&state.phase)
                ));
                continue;
            }
            let process = self.adopt(&state);
            let began = Instant::now();
            let ended = self.serve(watch, &process).await;
            if began.elapsed() >= self.timings.calm {
                self.failures = 0;
            }
            self.failures += 1;
            match ended {
                Ended::Process(why) => self.down(&why),
                Ended::Runner(why) => {
                    self.down(&format!("the agent's container ended: {why}"));
                    return why;
                }
                Ended::Stop(why, done) => {
                    self.down(&why);
                    let (runner, grace) = (self.runner.clone(), self.timings.stop_grace);
                    if let Err(error) = self
                        .meanwhile(async move { runner.stop(grace).await })
                        .await
                    {
                        tracing::warn!(%error, "OpenCode could not be stopped");
                    }
                    drop(done);
                }
            }
        }
    }

    /// Takes a process as the one to serve.
    fn adopt(&mut self, state: &State) -> Process {
        let process = Process {
            runner_id: state.runner_id.clone(),
            generation: state.generation,
        };
        let new = self.process.as_ref() != Some(&process);
        tracing::info!(new, generation = state.generation, "OpenCode runs");
        if let Some(last) = self.process.replace(process.clone())
            && last.runner_id != process.runner_id
        {
            self.starts_before = self.starts_before.saturating_add(last.generation);
        }
        let starts = self.starts_before.saturating_add(state.generation);
        self.told.change(|s| {
            s.generation += u64::from(new);
            s.starts = u32::try_from(starts).unwrap_or(u32::MAX);
            s.message = Some("OpenCode starts".to_owned());
        });
        process
    }

    /// Listens to a process until it ends or is to be ended.
    async fn serve(&mut self, watch: &mut Watch, process: &Process) -> Ended {
        let mut within = self.timings.start_within;
        let mut cuts = 0;
        loop {
            let opening = open(self.opencode.clone(), self.timings, cuts);
            let (version, stream) = tokio::select! {
                opened = timeout(within, opening) => match opened {
                    Ok(opened) => opened,
                    Err(_) => return Ended::Stop(format!("it did not answer for {within:?}"), None),
                },
                ended = self.interrupted(watch, process) => return ended,
            };
            // Before the first event of this stream, after the last of the one before.
            self.router.resync();
            tracing::info!(version, "listens to OpenCode's events");
            self.told.change(|s| {
                s.ready = true;
                s.version = Some(version);
                s.message = None;
            });
            let opened = Instant::now();
            let pump = AbortOnDropHandle::new(tokio::spawn(pump(self.router.clone(), stream)));
            let why = tokio::select! {
                error = pump => error.map_or_else(|error| error.to_string(), |error| error.to_string()),
                why = unwell(self.opencode.clone(), self.timings) => return Ended::Stop(why, None),
                ended = self.interrupted(watch, process) => return ended,
            };
            tracing::warn!(reason = why, "the event stream was cut");
            self.told
                .not_ready(format!("the event stream was cut: {why}"));
            within = self.timings.unwell_for;
            cuts = if opened.elapsed() >= self.timings.calm {
                1
            } else {
                cuts + 1
            };
        }
    }

    /// Waits for what ends the serving of a process from outside. Cancel safe.
    async fn interrupted(&mut self, watch: &mut Watch, process: &Process) -> Ended {
        loop {
            tokio::select! {
                state = watch.next() => {
                    let state = match state {
                        Ok(state) => state,
                        Err(error) => match self.rewatch(watch).await {
                            Some(state) => state,
                            None => return Ended::Runner(error.to_string()),
                        },
                    };
                    if let Some(ended) = compare(process, &state) {
                        return ended;
                    }
                }
                Some(restart) = self.commands.recv() => {
                    if restart.generation == self.told.now().generation {
                        return Ended::Stop(restart.why, Some(restart.done));
                    }
                }
                () = renewed(&self.launch, &self.router, &self.told, &self.timings) => return Ended::Stop("its configuration changed".to_owned(), None),
            }
        }
    }

    /// Another watch for one that broke: the connection may break though nothing else does.
    async fn rewatch(&self, watch: &mut Watch) -> Option<State> {
        let again = async {
            loop {
                if let Ok((next, state, _)) = follow(self.runner.clone()).await {
                    *watch = next;
                    return state;
                }
                sleep(self.timings.connect_most).await;
            }
        };
        timeout(self.timings.runner_lost, again).await.ok()
    }

    /// Works while requests for a restart are let go: there is nothing to restart.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                Some(_) = self.commands.recv() => {}
            }
        }
    }

    fn down(&self, why: &str) {
        tracing::warn!(reason = why, "OpenCode ended");
        self.told.not_ready(format!("OpenCode ended: {why}"));
        self.router.agent_down(why);
    }
}

/// The state that everybody sees.
struct Told(watch::Sender<AgentState>);

impl Told {
    fn not_ready(&self, message: String) {
        self.change(|s| {
            s.ready = false;
            s.message = Some(message);
        });
    }

    fn change(&self, change: impl FnOnce(&mut AgentState)) {
        self.0.send_if_modified(|state| {
            let before = state.clone();
            change(state);
            *state != before
        });
    }

    fn now(&self) -> watch::Ref<'_, AgentState> {
        self.0.borrow()
    }
}

/// Waits until there is another launch and nobody would be disturbed by it.
async fn renewed(
    launch: &watch::Receiver<Launch>,
    router: &Router,
    told: &Told,
    timings: &Timings,
) {
    loop {
        sleep(timings.renew_every).await;
        let renewed = || launch.has_changed().unwrap_or(false) && router.is_idle();
        if !renewed() || !told.now().ready {
            continue;
        }
        // Whoever began a turn in this instant saw `ready` and subscribes now.
        told.not_ready("its configuration changed: it starts anew".to_owned());
        sleep(timings.renew_pause).await;
        if renewed() {
            return;
        }
        told.change(|s| {
            s.ready = true;
            s.message = None;
        });
    }
}

/// A connection that tells the process's states, the state now, and what the image offers.
async fn follow(runner: Runner) -> Result<(Watch, State, Option<Probe>), RunnerError> {
    const BOUND: Duration = Duration::from_secs(10);
    let mut watch = runner.watch().await?;
    let state = timeout(BOUND, watch.next())
        .await
        .unwrap_or(Err(RunnerError::Timeout(BOUND)))?;
    let probe = match runner.probe().await {
        Ok(probe) => Some(Probe {
            unsupported: probe.unsupported.map(|text| clip(&text, WORDS_MAX)),
            ..probe
        }),
        Err(error) => {
            tracing::warn!(%error, "the runner does not tell what the image offers");
            None
        }
    };
    Ok((watch, state, probe))
}

/// Reads on until the connection is over; returns why it is.
async fn until_closed(watch: &mut Watch) -> String {
    loop {
        if let Err(error) = watch.next().await {
            return error.to_string();
        }
    }
}

/// Waits until OpenCode is well, and begins to listen to it.
async fn open(opencode: OpenCode, timings: Timings, cuts: u32) -> (String, EventStream) {
    sleep(timings.pause_before_stream(cuts)).await;
    let mut within = timings.first_health;
    loop {
        match opencode.health(within).await {
            Ok(version) => match EventStream::open(&opencode).await {
                Ok(stream) => return (version, stream),
                Err(error) => tracing::debug!(%error, "no event stream yet"),
            },
            Err(error) => tracing::trace!(%error, "not well yet"),
        }
        within = (within * 2).min(timings.most_health);
        sleep(timings.health_step).await;
    }
}

/// Waits until OpenCode was not well for long; returns why.
async fn unwell(opencode: OpenCode, timings: Timings) -> String {
    let mut since = None;
    loop {
        sleep(timings.health_every).await;
        let asked = Instant::now();
        let Err(error) = opencode.health(timings.health_within).await else {
            since = None;
            continue;
        };
        let since = *since.get_or_insert(asked);
        tracing::warn!(%error, for_ = ?since.elapsed(), "OpenCode is not well");
        if since.elapsed() >= timings.unwell_for {
            return format!("it was not well for {:?}: {error}", timings.unwell_for);
        }
    }
}

async fn pump(router: Router, mut stream: EventStream) -> StreamError {
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

/// Whether a state means that the process is not to be served any longer.
fn compare(process: &Process, state: &State) -> Option<Ended> {
    if state.runner_id != process.runner_id {
        return Some(Ended::Runner("it was started anew".to_owned()));
    }
    // States of the process before are still on their way when a new one starts.
    if state.generation < process.generation {
        return None;
    }
    match &state.phase {
        Phase::Running { .. } if state.generation == process.generation => None,
        phase => Some(Ended::Process(describe(phase))),
    }
}

/// A phase for people.
fn describe(phase: &Phase) -> String {
    match phase {
        Phase::Stopped => "it was stopped".to_owned(),
        Phase::Running { .. } => "another process took its place".to_owned(),
        Phase::Unsupported { message } => clip(message, WORDS_MAX),
        Phase::Exited {
            code,
            signal,
            stderr,
        } => {
            let how = match (code, signal) {
                (_, Some(9)) => "it was killed (often because memory ran out)".to_owned(),
                (_, Some(signal)) => format!("it was ended by signal {signal}"),
                (Some(code), None) => format!("it exited with code {code}"),
                (None, None) => "it exited".to_owned(),
            };
            match stderr.trim().lines().next_back() {
                Some(last) => format!("{how}; its last words: {}", clip(last, WORDS_MAX)),
                None => how,
            }
        }
    }
}

fn clip(text: &str, most: usize) -> String {
    super::text::clip(text, most).into_owned()
}
