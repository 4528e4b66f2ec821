//! Connections: one request each, bounded in number, size and time.
//!
//! Requests come from the sidecar, another container. A process below the runner (a tool of the agent)
//! is refused: it could stop OpenCode by a plain signal, so this protects no secret, but it must not be
//! able to hold all connections or to speak in the sidecar's place.

use crate::checkpoints::Keeper;
use crate::procfs::Snapshot;
use crate::socket::Socket;
use crate::supervisor::Supervisor;
use crate::{cgroup, log, probe, sys, tools, workspace};
use contract::runner::{Failure, LINE_MAX, Phase, Reply, Request};
use rustix::process::getpid;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, broadcast};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at once; more wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 64;
/// Of them, streams of changes: they stay, so they must not take every place.
pub const WATCHES_MAX: usize = 16;
/// Answers about files at once: each may take some megabytes.
const FILE_WORK_MAX: usize = 4;
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
const WRITE_LIMIT: Duration = Duration::from_secs(10);
const FILE_WORK_LIMIT: Duration = Duration::from_secs(20);
/// How long a request for a checkpoint waits for those before it.
const CHECKPOINT_WAIT: Duration = Duration::from_secs(60);
const REPAIR_EVERY: Duration = Duration::from_secs(5);

struct Server {
    supervisor: Arc<Supervisor>,
    keeper: Arc<Keeper>,
    watches: Semaphore,
    file_work: Semaphore,
    closing: CancellationToken,
}

/// Serves until dropped; `closing` ends the streams that are open then.
pub async fn serve(
    mut socket: Socket,
    supervisor: Arc<Supervisor>,
    keeper: Arc<Keeper>,
    tasks: TaskTracker,
    closing: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let server = Arc::new(Server {
        supervisor,
        keeper,
        watches: Semaphore::new(WATCHES_MAX),
        file_work: Semaphore::new(FILE_WORK_MAX),
        closing,
    });
    let mut repair = interval(REPAIR_EVERY);
    repair.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let accepted = loop {
            tokio::select! {
                accepted = socket.accept() => break accepted,
                _ = repair.tick() => socket.repair(),
            }
        };
        match accepted {
            Ok(stream) => {
                let server = Arc::clone(&server);
                tasks.spawn(async move {
                    if let Err(error) = server.connection(stream).await {
                        log::debug("connection broke", &[("error", error.to_string().into())]);
                    }
                    drop(place);
                });
            }
            Err(error) => {
                log::error("cannot accept", &[("error", error.to_string().into())]);
                // Out of files or memory; at once it would fail again.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Server {
    /// Whether the peer is not of the user that the sidecar runs as. The kernel wrote it down when the
    /// connection was made: a connection handed on keeps it.
    fn is_stranger(&self, stream: &UnixStream) -> bool {
        let wanted = self.supervisor.config().peer_uid;
        wanted.is_some_and(|uid| stream.peer_cred().map_or(true, |peer| peer.uid() != uid))
    }

    async fn connection(&self, mut stream: UnixStream) -> io::Result<()> {
        let denied = is_descendant(&stream) || self.is_stranger(&stream);
        if denied && !cfg!(feature = "weakened") {
            return write(
                &mut stream,
                &failed(Failure::Denied, "not for processes of the agent"),
            )
            .await;
        }
        let request = match timeout(REQUEST_LIMIT, read(&mut stream)).await {
            Ok(read) => read?,
            Err(_) => Err(failed(Failure::BadRequest, "the request took too long")),
        };
        match request {
            Err(reply) => write(&mut stream, &reply).await,
            Ok(Request::Watch) => self.watch(stream).await,
            Ok(request) => self.answer(stream, request).await,
        }
    }

    async fn answer(&self, mut stream: UnixStream, request: Request) -> io::Result<()> {
        let supervisor = &self.supervisor;
        let root = supervisor.config().workspace.clone();
        let reply = match request {
            Request::Start { launch, anew } => supervisor.start(launch, anew).await,
            Request::Stop { grace_ms } => supervisor.stop(Duration::from_millis(grace_ms)).await,
            Request::Reap => supervisor.reap().await,
            Request::Watch => failed(Failure::BadRequest, "watch has an answer of its own"),
            Request::Probe => {
                let config = supervisor.config().clone();
                let phase = supervisor.status().get().phase;
                return self
                    .file_work(&mut stream, move || probe::probe(&config, &phase))
                    .await;
            }
            Request::Cgroup => {
                let root = supervisor.config().cgroup.clone();
                return self
                    .file_work(&mut stream, move || Reply::Cgroup(cgroup::read(&root)))
                    .await;
            }
            Request::Tools => {
                let agent = match supervisor.status().get().phase {
                    Phase::Running { pid } => i32::try_from(pid).ok(),
                    _ => None,
                };
                let own = getpid().as_raw_nonzero().get();
                let host = supervisor.host().map(|pid| pid.as_raw_nonzero().get());
                let roots = tools::Roots { own, agent, host };
                let work = move || match tools::trees(roots) {
                    Ok(trees) => Reply::Tools { trees },
                    Err(error) => failed(Failure::Io, &format!("cannot read /proc: {error}")),
                };
                return self.file_work(&mut stream, work).await;
            }
            Request::CheckWorkspace => {
                return self
                    .file_work(&mut stream, move || workspace::check(&root))
                    .await;
            }
            Request::List { path } => {
                return self
                    .file_work(&mut stream, move || workspace::list(&root, &path))
                    .await;
            }
            Request::Read {
                path,
                offset,
                length,
            } => {
                let work = move || workspace::read(&root, &path, offset, length);
                return self.file_work(&mut stream, work).await;
            }
            request @ (Request::CheckpointTake { .. }
            | Request::CheckpointRestore { .. }
            | Request::CheckpointDiff { .. }
            | Request::CheckpointPatch { .. }
            | Request::CheckpointBranch { .. }
            | Request::CheckpointPrune { .. }) => return self.checkpoint(stream, request).await,
        };
        write(&mut stream, &reply).await
    }

    /// Runs `work` on a thread and writes its reply; the place is held until that is written, so that
    /// replies nobody takes do not pile up.
    async fn file_work(
        &self,
        stream: &mut UnixStream,
        work: impl FnOnce() -> Reply + Send + 'static,
    ) -> io::Result<()> {
        let waited = timeout(FILE_WORK_LIMIT, self.file_work.acquire()).await;
        let Ok(Ok(place)) = waited else {
            return write(
                stream,
                &failed(Failure::Io, "too much file work is under way"),
            )
            .await;
        };
        let reply = match timeout(FILE_WORK_LIMIT, tokio::task::spawn_blocking(work)).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) => failed(Failure::Io, "the work broke off"),
            Err(_) => failed(Failure::Io, "the file system does not answer"),
        };
        let written = write(stream, &reply).await;
        drop(place);
        written
    }

    /// Replies as they come. If the connection breaks, what only reads ends; what writes goes on.
    async fn checkpoint(&self, mut stream: UnixStream, request: Request) -> io::Result<()> {
        match self.keeper.begin(request, CHECKPOINT_WAIT).await {
            Err(reply) => write(&mut stream, &reply).await,
            Ok(mut replies) => {
                while let Some(reply) = replies.recv().await {
                    write(&mut stream, &reply).await?;
                }
                Ok(())
            }
        }
    }

    async fn watch(&self, mut stream: UnixStream) -> io::Result<()> {
        let Ok(place) = self.watches.try_acquire() else {
            return write(&mut stream, &failed(Failure::Io, "too many watches")).await;
        };
        let (mut state, mut changes) = self.supervisor.status().watch();
        let mut ignored = [0_u8; 256];
        'open: loop {
            write(&mut stream, &Reply::State(state)).await?;
            state = loop {
                tokio::select! {
                    // Before the end, so that the last change is told.
                    biased;
                    change = changes.recv() => match change {
                        Ok(state) => break state,
                        Err(broadcast::error::RecvError::Lagged(_)) => {
                            let fresh = self.supervisor.status().watch();
                            changes = fresh.1;
                            break fresh.0;
                        }
                        Err(broadcast::error::RecvError::Closed) => break 'open,
                    },
                    read = stream.read(&mut ignored) => if read? == 0 {
                        break 'open;
                    },
                    () = self.closing.cancelled() => break 'open,
                }
            };
        }
        drop(place);
        Ok(())
    }
}

/// Reads one request; the inner error is what to answer.
async fn read(stream: &mut UnixStream) -> io::Result<Result<Request, Reply>> {
    let mut line = Vec::new();
    let limit = u64::try_from(LINE_MAX).unwrap_or(u64::MAX);
    let mut reader = BufReader::new(stream.take(limit + 1));
    reader.read_until(b'\n', &mut line).await?;
    if line.pop_if(|last| *last == b'\n').is_none() {
        let why = if line.len() > LINE_MAX {
            "the line is too long"
        } else {
            "no line"
        };
        return Ok(Err(failed(Failure::BadRequest, why)));
    }
    Ok(serde_json::from_slice(&line)
        .map_err(|error| failed(Failure::BadRequest, &format!("no request: {error}"))))
}

async fn write(stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    if line.len() >= LINE_MAX {
        line = serde_json::to_vec(&failed(Failure::Io, "the answer is too long"))?;
    }
    line.push(b'\n');
    timeout(WRITE_LIMIT, stream.write_all(&line))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Whether the peer runs below this runner. The sidecar is in another pid namespace, where the kernel
/// has no number for it here: 0.
fn is_descendant(stream: &UnixStream) -> bool {
    match stream.peer_cred().ok().and_then(|peer| peer.pid()) {
        None | Some(0) => false,
        Some(_) if sys::is_init() => true,
        Some(pid) => {
            let own = getpid().as_raw_nonzero().get();
            Snapshot::take().is_ok_and(|all| all.is_descendant(pid, own))
        }
    }
}

fn failed(code: Failure, message: &str) -> Reply {
    Reply::Failed {
        code,
        message: message.to_owned(),
    }
}
