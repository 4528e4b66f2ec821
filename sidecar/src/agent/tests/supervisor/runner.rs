//! The runner's double.

use super::world::until;
use contract::runner::{Failure, Launch, Phase, Probe, Reply, Request, State};
use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::watch,
};
use tokio_util::task::AbortOnDropHandle;

/// A runner's double: one life of the agent's container.
pub(super) struct RunnerDouble {
    pub(super) state: watch::Sender<State>,
    pub(super) shared: Arc<RunnerShared>,
    pub(super) task: AbortOnDropHandle<()>,
}

#[derive(Default)]
pub(super) struct RunnerShared {
    pub(super) asked: Mutex<Vec<Request>>,
    pub(super) launch: Mutex<Option<Launch>>,
    pub(super) unsupported: Mutex<Option<String>>,
    /// How many starts fail.
    pub(super) failing: AtomicU32,
    /// How many starts are neither carried out nor answered.
    pub(super) lost: AtomicU32,
    /// Whether it is of a time when no start replaced a process.
    pub(super) old: AtomicBool,
    /// Whether watches are closed at once.
    pub(super) closes_watches: AtomicBool,
}

impl RunnerDouble {
    pub(super) fn start(path: &Path, runner_id: &str) -> Self {
        Self::with(path, runner_id, RunnerShared::default())
    }

    pub(super) fn with(path: &Path, runner_id: &str, shared: RunnerShared) -> Self {
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

    pub(super) fn exit(&self, stderr: &str) {
        let phase = Phase::Exited {
            code: Some(1),
            signal: None,
            stderr: stderr.into(),
        };
        self.state.send_modify(|state| state.phase = phase);
    }

    pub(super) fn starts(&self) -> usize {
        let asked = self.shared.asked.lock().unwrap();
        asked
            .iter()
            .filter(|request| matches!(request, Request::Start { .. }))
            .count()
    }

    /// Whether the last start was to replace the process before.
    pub(super) fn asked_anew(&self) -> bool {
        let asked = self.shared.asked.lock().unwrap();
        let mut starts = asked.iter().rev();
        starts.find_map(|request| match request {
            Request::Start { anew, .. } => Some(*anew),
            _ => None,
        }) == Some(true)
    }

    pub(super) fn stops(&self) -> usize {
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
        Request::Start { launch, anew } => {
            let fails = |n: u32| n.checked_sub(1);
            let (set, get) = (Ordering::SeqCst, Ordering::SeqCst);
            if shared.lost.fetch_update(set, get, fails).is_ok() {
                return;
            }
            if anew && shared.old.load(get) {
                let refused = Reply::Failed {
                    code: Failure::BadRequest,
                    message: "unknown field `anew`".into(),
                };
                let _ = write(&mut stream, &refused).await;
                return;
            }
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
                    let again = anew || !same || !matches!(state.phase, Phase::Running { .. });
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
