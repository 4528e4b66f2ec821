//! Pid 1 of the agent container: starts, stops and reaps OpenCode, and works on the workspace as the
//! agent's own user, at the request of the sidecar ([`contract::runner`]).
//!
//! One thread serves everything; up to six more do file work, and one writes
//! the log, so that a reader of the log that stalls cannot stall the runner. The runner holds no
//! secret. It refuses requests from its own descendants (see [`serve`]): an agent may break its own
//! tools, but not take the sidecar's place.

pub mod args;
pub mod cgroup;
pub mod checkpoints;
pub mod config;
pub mod confine;
pub mod elf;
pub mod git;
pub mod home;
pub mod install;
pub mod log;
pub mod offline;
pub mod patience;
pub mod probe;
pub mod procfs;
pub mod reaper;
pub mod relay;
pub mod serve;
pub mod socket;
pub mod spawn;
pub mod status;
pub mod supervisor;
pub mod sweep;
pub mod sys;
pub mod tools;
pub mod workspace;

use config::Config;
use std::sync::Arc;
use std::time::Duration;
use supervisor::Supervisor;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How long ending a restore that the last runner did not may hold up the start.
const RECOVER_LIMIT: Duration = Duration::from_secs(60);

/// Stands in every binary built for the leak suite, in which tools may do what the agent's user may, and in no
/// other: `deploy/images.sh` looks for it.
#[cfg(feature = "weakened")]
const WEAKENED: &str = "opencode-operator: runner WEAKENED for the leak suite";

/// What stopping may take beyond the grace of OpenCode; then the runner exits whatever is left.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// Runs until SIGTERM, SIGINT or SIGHUP; by then OpenCode and all its descendants are gone.
///
/// # Errors
/// The socket cannot be bound or signals cannot be handled: nothing was started.
pub async fn run(config: Config) -> std::io::Result<()> {
    // First, because the kernel ignores a signal to pid 1 that has no handler.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    sys::harden()?;
    // The first thread for file work, while the container is still empty: tokio panics if it needs one
    // and has none, and then queues on those it has.
    tokio::task::spawn_blocking(|| ())
        .await
        .map_err(std::io::Error::other)?;

    #[cfg(feature = "weakened")]
    log::warn(WEAKENED, &[]);
    let closing = CancellationToken::new();
    let tasks = TaskTracker::new();
    let reaper = reaper::Reaper::start(&tasks, closing.clone())?;
    let grace = config.grace;
    let keeper = Arc::new(checkpoints::Keeper::new(&config));
    let recovering = Arc::clone(&keeper);
    let recovered = tokio::task::spawn_blocking(move || recovering.recover());
    if tokio::time::timeout(RECOVER_LIMIT, recovered)
        .await
        .is_err()
    {
        log::error("ending a cut restore takes long; going on meanwhile", &[]);
    }
    let supervisor = Supervisor::new(config, reaper, tasks.clone());
    let listener = socket::Socket::bind(&supervisor.config().socket)?;
    log::info(
        "listening",
        &[
            ("version", VERSION.into()),
            ("runner_id", supervisor.status().get().runner_id.into()),
            (
                "socket",
                supervisor.config().socket.display().to_string().into(),
            ),
        ],
    );

    let mut why = tokio::select! {
        () = serve::serve(listener, Arc::clone(&supervisor), keeper, tasks.clone(), closing.clone()) => "serving ended",
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        _ = hangup.recv() => "SIGHUP",
    };
    log::info("stopping", &[("reason", why.into())]);
    let stop = tokio::time::timeout(grace + STOP_MARGIN, supervisor.shut_down(grace));
    tokio::pin!(stop);
    let in_time = loop {
        tokio::select! {
            done = &mut stop => break done.is_ok(),
            // A second one means: now.
            _ = terminate.recv() => why = "second SIGTERM",
            _ = interrupt.recv() => why = "second SIGINT",
        }
        supervisor.hurry(Duration::ZERO);
    };
    // Ends the streams, after the last state was written to them.
    closing.cancel();
    tasks.close();
    let joined = tokio::time::timeout(Duration::from_millis(500), tasks.wait())
        .await
        .is_ok();
    socket::remove(&supervisor.config().socket);
    log::info(
        "stopped",
        &[
            ("reason", why.into()),
            ("in_time", in_time.into()),
            ("all_joined", joined.into()),
        ],
    );
    Ok(())
}
