//! Client of the runner's socket: one request per connection. The runner is untrusted: every line and
//! every wait is bounded, and a reply of the wrong kind is an error.

mod checkpoints;

pub(crate) use checkpoints::{DiffBounds, RestoredWorkspace};

use contract::runner::{
    Cgroup, Failure, LINE_MAX, Launch, Probe, Reply, Request, State, TOOL_TREES_MAX, ToolTree,
};
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

/// For what only looks.
const QUICK: Duration = Duration::from_secs(10);
/// For what touches the file system, which may be slow or hang.
const SLOW: Duration = Duration::from_secs(45);
/// What stopping may take beyond its grace.
const STOP_MARGIN: Duration = Duration::from_secs(15);

/// Why a request was not fulfilled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunnerError {
    /// Whether it was done is not known.
    #[error("the runner did not answer within {0:?}")]
    Timeout(Duration),
    #[error("no connection to the runner")]
    Unreachable(#[source] io::Error),
    #[error("the runner closed the connection")]
    Closed,
    #[error("the runner's answer is longer than {LINE_MAX} bytes")]
    TooLarge,
    #[error("the runner's answer makes no sense")]
    Garbage(#[source] serde_json::Error),
    #[error("the runner answered something else")]
    Unexpected,
    #[error("{message}")]
    Failed { code: Failure, message: String },
}

/// Why the workspace cannot be written, or why that is not known.
pub(crate) type WorkspaceError = RunnerError;

/// The runner behind a socket. Connects anew for every request.
#[derive(Clone, Debug)]
pub(crate) struct Runner {
    socket: PathBuf,
}

/// The states of OpenCode's process, from a connection of its own.
#[derive(Debug)]
pub(crate) struct Watch {
    lines: Lines,
}

#[derive(Debug)]
struct Lines {
    reader: BufReader<UnixStream>,
    held: Vec<u8>,
}

impl Runner {
    pub(crate) fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Starts OpenCode; nothing happens if it runs with an equal launch.
    pub(crate) async fn start(&self, launch: Launch) -> Result<State, RunnerError> {
        self.state(Request::start(launch), SLOW).await
    }

    /// Starts OpenCode in the place of the one that runs.
    pub(crate) async fn start_anew(&self, launch: Launch) -> Result<State, RunnerError> {
        let anew = true;
        self.state(Request::Start { launch, anew }, SLOW).await
    }

    /// Stops OpenCode and everything below it.
    pub(crate) async fn stop(&self, grace: Duration) -> Result<State, RunnerError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.state(
            Request::Stop { grace_ms },
            grace.saturating_add(STOP_MARGIN),
        )
        .await
    }

    /// Kills what tools left behind; the number of processes.
    pub(crate) async fn reap(&self) -> Result<u32, RunnerError> {
        match self.call(&Request::Reap, SLOW).await? {
            Reply::Reaped { killed } => Ok(killed),
            _ => Err(RunnerError::Unexpected),
        }
    }

    /// What the image and the kernel offer.
    pub(crate) async fn probe(&self) -> Result<Probe, RunnerError> {
        match self.call(&Request::Probe, SLOW).await? {
            Reply::Probe(probe) => Ok(probe),
            _ => Err(RunnerError::Unexpected),
        }
    }

    /// Whether the workspace can be written.
    pub(crate) async fn check_workspace(&self) -> Result<(), RunnerError> {
        match self.call(&Request::CheckWorkspace, QUICK).await? {
            Reply::Done => Ok(()),
            _ => Err(RunnerError::Unexpected),
        }
    }

    /// What the container uses.
    pub(crate) async fn cgroup(&self) -> Result<Cgroup, RunnerError> {
        match self.call(&Request::Cgroup, QUICK).await? {
            Reply::Cgroup(cgroup) => Ok(cgroup),
            _ => Err(RunnerError::Unexpected),
        }
    }

    /// What the processes of tools use.
    pub(crate) async fn tools(&self) -> Result<Vec<ToolTree>, RunnerError> {
        match self.call(&Request::Tools, QUICK).await? {
            Reply::Tools { mut trees } => {
                trees.truncate(TOOL_TREES_MAX);
                Ok(trees)
            }
            _ => Err(RunnerError::Unexpected),
        }
    }

    /// Begins to follow OpenCode's process.
    pub(crate) async fn watch(&self) -> Result<Watch, RunnerError> {
        let lines = within(QUICK, self.ask(&Request::Watch)).await?;
        Ok(Watch { lines })
    }

    async fn state(&self, request: Request, bound: Duration) -> Result<State, RunnerError> {
        match self.call(&request, bound).await? {
            Reply::State(state) => Ok(state),
            _ => Err(RunnerError::Unexpected),
        }
    }

    async fn call(&self, request: &Request, bound: Duration) -> Result<Reply, RunnerError> {
        let reply = async { self.ask(request).await?.next().await };
        match within(bound, reply).await? {
            Reply::Failed { code, message } => Err(RunnerError::Failed { code, message }),
            reply => Ok(reply),
        }
    }

    async fn ask(&self, request: &Request) -> Result<Lines, RunnerError> {
        let mut line = serde_json::to_vec(request).map_err(RunnerError::Garbage)?;
        line.push(b'\n');
        let mut stream = UnixStream::connect(&self.socket)
            .await
            .map_err(RunnerError::Unreachable)?;
        stream
            .write_all(&line)
            .await
            .map_err(RunnerError::Unreachable)?;
        Ok(Lines {
            reader: BufReader::new(stream),
            held: Vec::new(),
        })
    }
}

impl Watch {
    /// The state now, then every change. Cancel safe. There is no bound: a process may live for weeks.
    ///
    /// # Errors
    /// The connection is over.
    pub(crate) async fn next(&mut self) -> Result<State, RunnerError> {
        match self.lines.next().await? {
            Reply::State(state) => Ok(state),
            Reply::Failed { code, message } => Err(RunnerError::Failed { code, message }),
            _ => Err(RunnerError::Unexpected),
        }
    }
}

impl Lines {
    /// Cancel safe: what was read of a line is kept.
    async fn next(&mut self) -> Result<Reply, RunnerError> {
        let room = (LINE_MAX + 1).saturating_sub(self.held.len());
        let mut bounded = (&mut self.reader).take(room as u64);
        bounded
            .read_until(b'\n', &mut self.held)
            .await
            .map_err(RunnerError::Unreachable)?;
        if self.held.pop_if(|byte| *byte == b'\n').is_none() {
            return Err(if self.held.len() > LINE_MAX {
                RunnerError::TooLarge
            } else {
                RunnerError::Closed
            });
        }
        let line = std::mem::take(&mut self.held);
        serde_json::from_slice(&line).map_err(RunnerError::Garbage)
    }
}

async fn within<T>(
    bound: Duration,
    work: impl Future<Output = Result<T, RunnerError>>,
) -> Result<T, RunnerError> {
    tokio::time::timeout(bound, work)
        .await
        .unwrap_or(Err(RunnerError::Timeout(bound)))
}
