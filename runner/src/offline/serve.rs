//! The host's own process.

use super::wire::{self, GO, Lent, READY, Verdict};
use super::{NOT_CONFINED, Spec, TALK};
use crate::confine::rehearse;
use crate::procfs::Process;
use rustix::process::{
    DumpableBehavior, Pid, Signal, kill_process, kill_process_group, set_dumpable_behavior,
};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixListener as StdListener;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Programs at once; who finds no place takes the slow way.
const AT_ONCE: usize = 32;
/// After an accept that failed, as for want of files: not in a circle.
const PAUSE: Duration = Duration::from_millis(100);
/// What an asker may pass on.
const PASSED_ON: [Signal; 4] = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT];

/// Answers at the socket that is its stdin, until it is killed. Returns only if it cannot, or must not.
#[must_use]
pub fn serve(spec: &str) -> ExitCode {
    let Ok(spec) = serde_json::from_str::<Spec>(spec) else {
        return ExitCode::from(2);
    };
    if !rehearse::is_confined(&spec.ports, &spec.folder) {
        return ExitCode::from(NOT_CONFINED);
    }
    // What it runs shares its domain; it shall not be led by one for all others.
    let hidden = set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(io::Error::from);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match hidden.and(runtime).and_then(|runtime| {
        let listener = io::stdin().as_fd().try_clone_to_owned()?;
        runtime.block_on(answer(StdListener::from(listener), Arc::new(spec)))
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

async fn answer(listener: StdListener, spec: Arc<Spec>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // Dropped: the asker sees that nothing will come.
        if !is_child(&stream, spec.agent) {
            continue;
        }
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let spec = Arc::clone(&spec);
            tokio::spawn(async move {
                // An asker that is gone, or says what is none of this, is not answered.
                let _ = converse(stream, &spec).await;
                drop(place);
            });
        }
    }
}

/// Whether OpenCode itself started who asks.
fn is_child(stream: &UnixStream, agent: i32) -> bool {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    pid.and_then(Process::read)
        .is_some_and(|process| process.parent == agent)
}

async fn converse(mut stream: UnixStream, spec: &Spec) -> io::Result<()> {
    let lent = timeout(TALK, wire::receive(&mut stream)).await??;
    stream.write_all(&[READY]).await?;
    // Who was killed meanwhile never says it.
    if timeout(TALK, stream.read_u8()).await?? != GO {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let verdict = match spawn(spec, lent) {
        Ok(child) => follow(child, &mut stream).await?,
        Err(_) => Verdict::Refused,
    };
    timeout(TALK, stream.write_all(&verdict.bytes())).await?
}

fn spawn(spec: &Spec, lent: Lent) -> io::Result<Child> {
    let Lent {
        job,
        stdin,
        stdout,
        stderr,
        folder,
    } = lent;
    let program = spec.programs.get(&job.name);
    let program = program.ok_or(io::ErrorKind::NotFound)?;
    Command::new(program)
        .args(&job.args)
        .env_clear()
        .envs(job.env)
        // As a path, which the child opens by the file that it inherits.
        .current_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout))
        .stderr(Stdio::from(stderr))
        .process_group(0)
        .spawn()
}

/// Waits for the program's end; passes on what its asker is told, and ends it with its asker.
async fn follow(mut child: Child, stream: &mut UnixStream) -> io::Result<Verdict> {
    let mut told = [0; 16];
    loop {
        tokio::select! {
            biased;
            ended = child.wait() => return ended.map(Verdict::from),
            count = stream.read(&mut told) => {
                // Not collected yet, so the number is still its own.
                let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
                let Some(pid) = pid else { continue };
                match count {
                    Ok(0) | Err(_) => {
                        let _ = kill_process_group(pid, Signal::KILL);
                        return child.wait().await.map(Verdict::from);
                    }
                    Ok(count) => {
                        let named = |byte| PASSED_ON.into_iter().find(|s| s.as_raw() == i32::from(byte));
                        for signal in told[..count].iter().copied().filter_map(named) {
                            let _ = kill_process(pid, signal);
                        }
                    }
                }
            }
        }
    }
}
