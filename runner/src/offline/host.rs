//! The runner's side: begins the host, ends it with each sweep, and begins it again.

use super::{COMMAND, NOT_CONFINED, Offline, SOCKET, Spec};
use crate::log;
use crate::reaper::{Exit, Reaper};
use crate::sys;
use rustix::process::{Pid, Signal};
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Until a host that died, or did not start, is begun again: twice as long each time.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The host of the OpenCode that runs, if any.
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    socket: PathBuf,
    reaper: Arc<Reaper>,
    tasks: TaskTracker,
    closing: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// On whose behalf, and what.
    wanted: Option<(Pid, Arc<Offline>)>,
    running: Option<Pid>,
    /// Which host `running` is; counts each beginning and each end.
    turn: u64,
    pause: Duration,
    /// When the last one began.
    began: Option<Instant>,
}

impl Host {
    /// None yet. Its socket will lie beside `socket`, the runner's own.
    #[must_use]
    pub fn new(
        socket: &Path,
        reaper: &Arc<Reaper>,
        tasks: &TaskTracker,
        closing: &CancellationToken,
    ) -> Self {
        Self(Arc::new(Inner {
            socket: socket.with_file_name(SOCKET),
            reaper: Arc::clone(reaper),
            tasks: tasks.clone(),
            closing: closing.clone(),
            state: Mutex::default(),
        }))
    }

    /// Begins one for this OpenCode.
    pub fn begin(&self, agent: Pid, offline: &Arc<Offline>) {
        let mut state = self.0.lock();
        state.wanted = Some((agent, Arc::clone(offline)));
        state.pause = PAUSE;
        Inner::spawn(&self.0, &mut state);
    }

    /// Its pid, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        self.0.lock().running
    }

    /// Before a sweep, which kills it: keeps it from beginning anything more. What asks from now on finds
    /// nobody and takes the slow way. Returns its pid, if there was one.
    pub fn pause(&self) -> Option<Pid> {
        let mut state = self.0.lock();
        state.turn += 1;
        let running = state.running.take();
        if let Some(pid) = running {
            self.0.reaper.signal(pid, Signal::STOP, false);
        }
        running
    }

    /// After a sweep that spared OpenCode: another one.
    pub fn resume(&self) {
        let mut state = self.0.lock();
        if state.running.is_none() {
            Inner::spawn(&self.0, &mut state);
        }
    }

    /// After a sweep that spared nobody: none.
    pub fn end(&self) {
        self.0.lock().wanted = None;
        // It lies in a folder that ends with the pod; nobody answers there.
        let _ = fs::remove_file(&self.0.socket);
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a host if one is wanted; where that cannot be, all take the slow way until it can.
    fn spawn(this: &Arc<Self>, state: &mut State) {
        let Some((agent, offline)) = &state.wanted else {
            return;
        };
        let started = this
            .command(*agent, offline)
            .and_then(|mut command| this.reaper.spawn(&mut command));
        state.turn += 1;
        let (host, turn) = (Arc::clone(this), state.turn);
        match started {
            Ok((_, pid, exit)) => {
                state.running = Some(pid);
                state.began = Some(Instant::now());
                this.tasks.spawn(async move {
                    if let Ok(exit) = exit.await {
                        host.ended(turn, exit).await;
                    }
                });
            }
            Err(error) => {
                warn(&error.to_string());
                this.tasks.spawn(host.again(turn));
            }
        }
    }

    /// A socket of its own each time: who waits at an older one is told by its end.
    fn command(&self, agent: Pid, offline: &Offline) -> io::Result<Command> {
        match fs::remove_file(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&self.socket)?;
        fs::set_permissions(&self.socket, Permissions::from_mode(0o600))?;
        // Of whoever is no child of OpenCode.
        sys::refuse_files(&listener)?;
        let spec = Spec {
            agent: agent.as_raw_nonzero().get(),
            programs: offline.programs.clone(),
            ports: offline.ports.clone(),
            folder: offline.folder.clone(),
        };
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg(COMMAND)
            .arg(serde_json::to_string(&spec)?)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        sys::detach(&mut command);
        offline.plan.apply(&mut command)?;
        Ok(command)
    }

    /// One that ended on its own is begun again, unless it found itself not to be confined.
    async fn ended(self: Arc<Self>, turn: u64, exit: Exit) {
        {
            let mut state = self.lock();
            if state.turn != turn {
                return;
            }
            state.running = None;
            if exit.code == Some(i32::from(NOT_CONFINED)) {
                state.wanted = None;
                return warn("this kernel does not confine it as it must be");
            }
        }
        warn(&format!("it ended: {exit:?}"));
        self.again(turn).await;
    }

    /// Begins another one after a while, unless one began meanwhile or none is wanted any more.
    async fn again(self: Arc<Self>, turn: u64) {
        let pause = {
            let mut state = self.lock();
            // One that lived long says nothing about the next one.
            if state.began.is_some_and(|began| began.elapsed() > PAUSE_MAX) {
                state.pause = PAUSE;
            }
            let pause = state.pause;
            state.pause = (pause * 2).min(PAUSE_MAX);
            pause
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.closing.cancelled() => return,
        }
        let mut state = self.lock();
        if state.turn == turn {
            Self::spawn(&self, &mut state);
        }
    }
}

fn warn(why: &str) {
    log::warn(
        "git and rg start more slowly: nobody runs them beside OpenCode",
        &[("reason", why.into())],
    );
}
