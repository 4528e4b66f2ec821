//! OpenCode's life: one process at most, started and stopped by request only.
//!
//! Start, Stop and Reap run one after the other under one lock. An exit is reported without it, at
//! once; what the dead process left behind is killed under it. A start kills leftovers of the one before
//! first, so none of them meets the new process.

use crate::config::Config;
use crate::confine::{Confined, Confiner};
use crate::offline::Host;
use crate::patience::Patience;
use crate::reaper::{Exit, Reaper};
use crate::relay::Relay;
use crate::status::Status;
use crate::{git, home, log, spawn, sweep};
use contract::runner::{Failure, Launch, Phase, Reply};
use rustix::process::{Pid, Signal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a process that got SIGKILL may take; longer only in an uninterruptible system call.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long writing to HOME may take, which may be on a network.
const PREPARE_LIMIT: Duration = Duration::from_secs(60);

/// Starts and stops OpenCode.
#[derive(Debug)]
pub struct Supervisor {
    config: Config,
    reaper: Arc<Reaper>,
    status: Status,
    slot: Arc<Mutex<Option<Process>>>,
    confiner: Confiner,
    /// Runs programs on behalf of the process of the last start.
    host: Host,
    patience: Patience,
    closing: CancellationToken,
    tasks: TaskTracker,
}

/// The process of the last start.
#[derive(Debug)]
struct Process {
    launch: Launch,
    pid: Pid,
    generation: u64,
    /// Its end was asked for.
    stopping: Arc<AtomicBool>,
    /// It ended, and its phase says so.
    ended: CancellationToken,
}

impl Supervisor {
    /// A supervisor without a process; its tasks are joined through `tasks`.
    #[must_use]
    pub fn new(config: Config, reaper: Arc<Reaper>, tasks: TaskTracker) -> Arc<Self> {
        let closing = CancellationToken::new();
        Arc::new(Self {
            host: Host::new(&config.socket, &reaper, &tasks, &closing),
            config,
            reaper,
            status: Status::new(),
            slot: Arc::default(),
            confiner: Confiner::default(),
            patience: Patience::new(),
            closing,
            tasks,
        })
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The state and its changes.
    #[must_use]
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// [`contract::runner::Request::Start`]. Not cancel safe: run it to its end.
    pub async fn start(self: &Arc<Self>, launch: Launch, anew: bool) -> Reply {
        let checked = spawn::check(&launch).and_then(|()| {
            launch
                .home_files
                .keys()
                .try_for_each(|path| home::names(path).map(drop))
        });
        if let Err(message) = checked {
            return Reply::Failed {
                code: Failure::BadRequest,
                message,
            };
        }
        let mut slot = Arc::clone(&self.slot).lock_owned().await;
        if self.closing.is_cancelled() {
            return io_failure("the runner is stopping");
        }
        let before = slot.as_ref().filter(|process| process.is_alive());
        match before {
            Some(process) if process.launch == launch && !anew => {
                return Reply::State(self.status.get());
            }
            Some(_) => {}
            None => drop(self.sweep(None).await),
        }
        let before = before.is_some();
        // While the one before still runs: it is away for the shorter.
        if let Err(failed) = self.prepare(&launch).await {
            return failed;
        }
        let confined = tokio::select! {
            (confined, ()) = async { tokio::join!(self.confiner.confine(&self.config, &launch), self.git(&launch)) } => confined,
            () = self.closing.cancelled() => return io_failure("the runner is stopping"),
        };
        let confined = match confined {
            Ok(confined) => confined,
            // Never without: what holds it back is told instead.
            Err(message) => return io_failure(&format!("OpenCode cannot be isolated: {message}")),
        };
        if before {
            let _stop = self.patience.stop(self.config.grace);
            self.stop_process(slot.as_ref()).await;
            if slot.as_ref().is_some_and(Process::is_alive) {
                return io_failure("the process before does not end");
            }
        }
        // Who shuts down waits for the slot, and only then stops what it finds.
        if self.closing.is_cancelled() {
            return io_failure("the runner is stopping");
        }
        let generation = self.spawn(&mut slot, launch, &confined);
        if confined.isolation.is_none() {
            let this = Arc::clone(self);
            self.tasks.spawn(this.rehearse(slot, generation, confined));
        }
        Reply::State(self.status.get())
    }

    /// [`contract::runner::Request::Stop`]. Not cancel safe.
    pub async fn stop(&self, grace: Duration) -> Reply {
        let _stop = self.patience.stop(grace);
        let slot = self.slot.lock().await;
        self.stop_process(slot.as_ref()).await;
        Reply::State(self.status.get())
    }

    /// [`contract::runner::Request::Reap`]. Not cancel safe.
    pub async fn reap(&self) -> Reply {
        let slot = self.slot.lock().await;
        let keep = slot
            .as_ref()
            .filter(|process| process.is_alive())
            .map(|process| process.pid);
        let killed = self.sweep(keep).await;
        drop(slot);
        Reply::Reaped { killed }
    }

    /// Kills all descendants but OpenCode, if that is to live; how many. Under the slot's lock.
    async fn sweep(&self, opencode: Option<Pid>) -> u32 {
        let hosted = self.host.pause();
        let killed = sweep::sweep(&self.reaper, opencode).await;
        if let Some(pid) = hosted {
            // Without /proc a sweep finds nobody, and it is stopped.
            self.reaper.signal(pid, Signal::KILL, false);
        }
        match opencode {
            Some(_) => self.host.resume(),
            None => self.host.end(),
        }
        killed.saturating_sub(u32::from(hosted.is_some()))
    }

    /// What runs programs on OpenCode's behalf, if anything does.
    #[must_use]
    pub fn host(&self) -> Option<Pid> {
        self.host.pid()
    }

    /// Refuses further starts and stops OpenCode. Not cancel safe.
    pub async fn shut_down(&self, grace: Duration) {
        self.closing.cancel();
        self.stop(grace).await;
    }

    /// Shortens the grace of every stop that was asked for.
    pub fn hurry(&self, grace: Duration) {
        self.patience.hurry(grace);
    }

    /// Folders and files that the launch needs.
    async fn prepare(&self, launch: &Launch) -> Result<(), Reply> {
        let home = spawn::variable(&self.config, launch, "HOME");
        let folders = [
            self.config.workspace.clone().into_os_string(),
            home.clone(),
            spawn::variable(&self.config, launch, "TMPDIR"),
        ];
        let files = launch.home_files.clone();
        let work = tokio::task::spawn_blocking(move || {
            for folder in folders {
                std::fs::create_dir_all(&folder).map_err(|e| (folder.display().to_string(), e))?;
            }
            for (path, content) in files {
                home::write(home.as_ref(), &path, &content).map_err(|e| (path, e))?;
            }
            Ok(())
        });
        match timeout(PREPARE_LIMIT, work).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err((path, error)))) => {
                let message = format!("cannot prepare {path}: {error}");
                log::error("cannot start", &[("error", message.as_str().into())]);
                Err(Reply::Failed {
                    code: home::failure(&error),
                    message,
                })
            }
            Ok(Err(_)) | Err(_) => Err(io_failure("writing to HOME does not end")),
        }
    }

    async fn git(&self, launch: &Launch) {
        if launch.git_init {
            git::init(&self.config, &self.reaper).await;
        }
    }

    /// Tries what is refused to a process, while it starts. Holds the slot, so that nothing sweeps the
    /// trial away; a stop ends it, and the next start tries again.
    async fn rehearse(
        self: Arc<Self>,
        slot: OwnedMutexGuard<Option<Process>>,
        generation: u64,
        confined: Confined,
    ) {
        tokio::select! {
            found = self.confiner.rehearse(&self.config, confined, &self.reaper) => {
                self.status.isolated(generation, found);
            }
            () = self.patience.asked() => {}
        }
        drop(slot);
    }

    /// Starts the process; its generation, also if that failed.
    fn spawn(
        self: &Arc<Self>,
        slot: &mut Option<Process>,
        launch: Launch,
        confined: &Confined,
    ) -> u64 {
        let isolation = confined.isolation.clone();
        *slot = None;
        let spawned = match spawn::obstacle(&self.config, &launch) {
            Some(phase) => Err(phase),
            None => {
                let variables = confined.variables.clone();
                let mut command = spawn::command(&self.config, &launch, variables);
                confined
                    .plan
                    .apply(&mut command)
                    .and_then(|()| self.reaper.spawn(&mut command))
                    .map_err(|error| spawn::failed(&launch, &error))
            }
        };
        let (mut child, pid, exit) = match spawned {
            Ok(spawned) => spawned,
            Err(phase) => {
                log::error(
                    "OpenCode did not start",
                    &[("phase", format!("{phase:?}").into())],
                );
                return self.status.begin(phase, isolation);
            }
        };
        let relay = Relay::start(&mut child).inspect_err(|error| {
            log::warn(
                "OpenCode's output is not read",
                &[("error", error.to_string().into())],
            );
        });
        let number = pid.as_raw_nonzero().get();
        let phase = Phase::Running {
            pid: number.unsigned_abs(),
        };
        let generation = self.status.begin(phase, isolation);
        log::info(
            "OpenCode started",
            &[("pid", number.into()), ("generation", generation.into())],
        );
        if let Some(offline) = &confined.offline {
            self.host.begin(pid, offline);
        }
        let process = Process {
            launch,
            pid,
            generation,
            stopping: Arc::default(),
            ended: CancellationToken::new(),
        };
        let this = Arc::clone(self);
        let (stopping, ended) = (Arc::clone(&process.stopping), process.ended.clone());
        self.tasks
            .spawn(this.follow(generation, exit, relay.ok(), stopping, ended));
        *slot = Some(process);
        generation
    }

    /// Waits for the end of a process, tells it and kills what it left.
    async fn follow(
        self: Arc<Self>,
        generation: u64,
        exit: oneshot::Receiver<Exit>,
        relay: Option<Relay>,
        stopping: Arc<AtomicBool>,
        ended: CancellationToken,
    ) {
        let began = Instant::now();
        let exit = exit.await.unwrap_or(Exit {
            code: None,
            signal: None,
        });
        let stderr = match relay {
            Some(relay) => relay.finish().await,
            None => String::new(),
        };
        let asked = stopping.load(Ordering::Relaxed);
        let phase = if asked {
            Phase::Stopped
        } else {
            spawn::ended(exit, stderr, began.elapsed())
        };
        let fields = [
            ("generation", generation.into()),
            ("code", exit.code.into()),
            ("signal", exit.signal.into()),
            ("asked", asked.into()),
        ];
        log::info("OpenCode ended", &fields);
        self.status.set(generation, phase);
        ended.cancel();
        if asked {
            return;
        }
        let slot = self.slot.lock().await;
        if slot
            .as_ref()
            .is_some_and(|process| process.generation == generation)
        {
            let killed = self.sweep(None).await;
            log::info("killed what OpenCode left", &[("processes", killed.into())]);
        }
    }

    /// `process`: that of the slot, which the caller has locked. Waits as long as [`Patience`] says.
    async fn stop_process(&self, process: Option<&Process>) {
        if let Some(process) = process.filter(|process| process.is_alive()) {
            process.stopping.store(true, Ordering::Relaxed);
            self.reaper.signal(process.pid, Signal::TERM, false);
            self.patience.begin();
            tokio::select! {
                () = process.ended.cancelled() => {}
                () = self.patience.over() => log::warn("OpenCode does not stop: killing it", &[]),
            }
            // Its group too, although the sweep would find them: this works without /proc.
            self.reaper.signal(process.pid, Signal::KILL, true);
            if timeout(KILL_LIMIT, process.ended.cancelled())
                .await
                .is_err()
            {
                log::error("OpenCode cannot be killed", &[]);
                return;
            }
        }
        self.sweep(None).await;
        self.status
            .set(self.status.get().generation, Phase::Stopped);
    }
}

impl Process {
    fn is_alive(&self) -> bool {
        !self.ended.is_cancelled()
    }
}

fn io_failure(message: &str) -> Reply {
    Reply::Failed {
        code: Failure::Io,
        message: message.to_owned(),
    }
}
