//! The supervisor's task.

use super::{
    Restart,
    due::Due,
    listen::{open, prepare, prepared, pump, unwell},
    process::{Ended, Process, WORDS_MAX, bounded, clip, compare, describe},
    told::Told,
};
use crate::agent::{
    opencode::OpenCode,
    router::Router,
    runner::{Runner, RunnerError, Watch},
    timings::Timings,
};
use crate::watchdog::Cause;
use contract::{
    event::TurnError,
    runner::{Failure, Phase, Probe, State},
};
use std::time::Duration;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

/// Keeps OpenCode running; its state goes to whoever holds an [`super::Agent`].
pub(super) struct Supervisor {
    pub(super) runner: Runner,
    pub(super) opencode: OpenCode,
    pub(super) router: Router,
    pub(super) timings: Timings,
    /// Launch, patience and all that makes a restart due.
    pub(super) due: Due,
    /// Since when the sidecar keeps it stopped.
    pub(super) stopped: Option<Instant>,
    pub(super) told: Told,
    pub(super) commands: mpsc::Receiver<Restart>,
    /// The last process seen.
    pub(super) process: Option<Process>,
    /// That one is to make place for another, whatever else happens to the runner meanwhile.
    pub(super) anew: bool,
    /// Starts by former runners.
    pub(super) starts_before: u64,
    /// Ends of OpenCode, or starts that failed, since it last was well for long.
    pub(super) failures: u32,
}

impl Supervisor {
    /// Never ends by itself.
    pub(super) async fn run(mut self) {
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
            let launch = self.due.launch.borrow_and_update().clone();
            let runner = self.runner.clone();
            let anew = self.anew;
            let start = async move {
                match anew {
                    true => runner.start_anew(launch).await,
                    false => runner.start(launch).await,
                }
            };
            match self.meanwhile(start).await {
                Ok(now) => state = now,
                // A runner of before this request knew it: in two steps then.
                Err(RunnerError::Failed {
                    code: Failure::BadRequest,
                    ..
                }) if anew => {
                    self.anew = false;
                    let (runner, grace) = (self.runner.clone(), self.timings.stop_grace);
                    let stopped = self.meanwhile(async move { runner.stop(grace).await });
                    if let Err(error) = stopped.await {
                        tracing::warn!(%error, "OpenCode could not be stopped");
                    }
                    continue;
                }
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
            // What is planned is no failure.
            self.failures += u32::from(!matches!(ended, Ended::Due(_)));
            match ended {
                Ended::Process(why) => {
                    self.told.change(|s| s.ended = true);
                    self.down(&why, TurnError::AgentDied);
                }
                Ended::Runner(why) => {
                    let text = format!("the agent's container ended: {why}");
                    self.down(&text, TurnError::AgentDied);
                    return why;
                }
                Ended::Asked(why, done) => {
                    self.stop(&why, TurnError::AgentDied).await;
                    drop(done);
                }
                Ended::Unwell(why) => {
                    self.due.metrics.found(Cause::Unresponsive);
                    self.due.metrics.restarted();
                    self.stop(&why, TurnError::AgentUnresponsive).await;
                }
                Ended::Due(why) => {
                    self.due.metrics.recycled(why);
                    self.stopped = Some(Instant::now());
                    self.down(why.text(), TurnError::AgentDied);
                    self.anew = true;
                }
            }
        }
    }

    async fn stop(&mut self, why: &str, code: TurnError) {
        self.stopped = Some(Instant::now());
        self.down(why, code);
        let (runner, grace) = (self.runner.clone(), self.timings.stop_grace);
        match self
            .meanwhile(async move { runner.stop(grace).await })
            .await
        {
            Ok(_) => self.told.change(|s| s.ended = true),
            Err(error) => tracing::warn!(%error, "OpenCode could not be stopped"),
        }
    }

    /// Takes a process as the one to serve.
    fn adopt(&mut self, state: &State) -> Process {
        let process = Process {
            runner_id: state.runner_id.clone(),
            generation: state.generation,
        };
        let new = self.process.as_ref() != Some(&process);
        self.anew &= !new;
        tracing::info!(new, generation = state.generation, "OpenCode runs");
        if let Some(last) = self.process.replace(process.clone())
            && last.runner_id != process.runner_id
        {
            self.starts_before = self.starts_before.saturating_add(last.generation);
        }
        let starts = self.starts_before.saturating_add(state.generation);
        self.told.change(|s| {
            s.generation += u64::from(new);
            s.ended = false;
            s.starts = u32::try_from(starts).unwrap_or(u32::MAX);
            s.message = Some("OpenCode starts".to_owned());
        });
        self.isolated(state);
        process
    }

    /// Tells what is refused to the process, as far as the runner knows: it tries while the process starts.
    fn isolated(&self, state: &State) {
        let found = state.isolation.clone().map(bounded);
        self.told.change(|s| s.isolation = found);
    }

    /// Listens to a process until it ends or is to be ended.
    async fn serve(&mut self, watch: &mut Watch, process: &Process) -> Ended {
        let mut within = self.timings.start_within;
        let mut cuts = 0;
        let began = Instant::now();
        let mut preparing = None;
        loop {
            let opening = open(self.opencode.clone(), self.timings, cuts);
            let (version, stream) = tokio::select! {
                opened = timeout(within, opening) => match opened {
                    Ok(opened) => opened,
                    Err(_) => return Ended::Unwell(format!("it did not answer for {within:?}")),
                },
                ended = self.interrupted(watch, process, began) => return ended,
            };
            // Before the first event of this stream, after the last of the one before.
            self.router.resync();
            tracing::info!(version, "listens to OpenCode's events");
            let opened = Instant::now();
            let pump = AbortOnDropHandle::new(tokio::spawn(pump(self.router.clone(), stream)));
            if preparing.is_none() {
                self.told.not_ready(
                    "OpenCode makes its tools ready; it may wait for an MCP server".to_owned(),
                );
                let made = preparing.insert(prepare(self.opencode.clone()));
                tokio::select! {
                    made = prepared(made, self.timings) => if let Err(why) = made {
                        return Ended::Unwell(why);
                    },
                    ended = self.interrupted(watch, process, began) => return ended,
                }
            }
            self.told.change(|s| {
                s.ready = true;
                s.version = Some(version);
                s.message = None;
            });
            if let Some(stopped) = self.stopped.take() {
                tracing::info!(after = ?stopped.elapsed(), "OpenCode is back");
                self.due.metrics.back(stopped.elapsed());
            }
            let why = tokio::select! {
                error = pump => error.map_or_else(|error| error.to_string(), |error| error.to_string()),
                why = unwell(self.opencode.clone(), self.due.clone()) => return Ended::Unwell(why),
                ended = self.interrupted(watch, process, began) => return ended,
            };
            tracing::warn!(reason = why, "the event stream was cut");
            self.told
                .not_ready(format!("the event stream was cut: {why}"));
            within = self.unwell_for().unwrap_or(self.timings.start_within);
            cuts = if opened.elapsed() >= self.timings.calm {
                1
            } else {
                cuts + 1
            };
        }
    }

    /// Waits for what ends the serving of a process from outside. Cancel safe.
    async fn interrupted(&mut self, watch: &mut Watch, process: &Process, began: Instant) -> Ended {
        // One for the whole wait: it takes back its `not ready` only if it is not dropped half-way.
        let due = self.due.clone().wait(began);
        tokio::pin!(due);
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
                    if state.generation == process.generation {
                        self.isolated(&state);
                    }
                }
                Some(restart) = self.commands.recv() => {
                    if restart.generation == self.told.now().generation {
                        return Ended::Asked(restart.why, restart.done);
                    }
                }
                why = &mut due => return Ended::Due(why),
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

    fn down(&self, why: &str, code: TurnError) {
        tracing::warn!(reason = why, "OpenCode ended");
        self.told.not_ready(format!("OpenCode ended: {why}"));
        self.router.agent_down(why, code);
    }

    fn unwell_for(&self) -> Option<Duration> {
        self.due.unwell_for()
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
