//! The host's own process.
//!
//! One thread accepts; each asker has another one, which alone touches what it lends: closing a lent file
//! may take as long as whoever lent it likes.

use super::wire::{self, GO, HELLO, Lent, READY, Verdict};
use super::{NOT_CONFINED, Spec, TALK};
use crate::confine::{Plan, rehearse};
use crate::procfs::Process;
use crate::sys;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open,
    set_dumpable_behavior,
};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Askers at once; who finds no place takes the slow way.
const AT_ONCE: usize = 32;
/// After an accept that failed, as for want of files: not in a circle.
const PAUSE: Duration = Duration::from_millis(100);
const STACK: usize = 256 * 1024;
/// What an asker may pass on.
const PASSED_ON: [Signal; 4] = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT];

/// What is the same for all askers.
struct Host {
    spec: Spec,
    /// The domain of each program.
    domain: Plan,
}

/// Answers at the socket that is its stdin, until it is killed. Returns only if it cannot, or must not.
#[must_use]
pub fn serve(spec: &str) -> ExitCode {
    let Ok(spec) = serde_json::from_str::<Spec>(spec) else {
        return ExitCode::from(2);
    };
    if !rehearse::is_confined(&spec.ports, &spec.folder) {
        return ExitCode::from(NOT_CONFINED);
    }
    match run(spec) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(spec: Spec) -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let domain = Plan::apart().map_err(io::Error::other)?;
    let listener = StdListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(accept(listener, Arc::new(Host { spec, domain })))
}

async fn accept(listener: StdListener, host: Arc<Host>) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // Whoever is dropped sees that nothing will come.
        let place = Arc::clone(&places).try_acquire_owned();
        if let (true, Ok(place)) = (is_child(&stream, host.spec.agent), place)
            && let Ok(stream) = stream.into_std()
        {
            let host = Arc::clone(&host);
            let asker = std::thread::Builder::new().stack_size(STACK);
            drop(asker.spawn(move || {
                // One that is gone, or says what is none of this, is not answered.
                let _ = converse(&stream, &host);
                drop(place);
            }));
        }
    }
}

/// Whether OpenCode itself started who asks.
fn is_child(stream: &UnixStream, agent: i32) -> bool {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    pid.and_then(Process::read)
        .is_some_and(|process| process.parent == agent)
}

fn converse(mut stream: &StdStream, host: &Host) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TALK))?;
    stream.set_write_timeout(Some(TALK))?;
    stream.write_all(&[HELLO])?;
    let lent = wire::receive(stream)?;
    stream.write_all(&[READY])?;
    let mut answer = [0];
    // Who was killed meanwhile never says it; who is late must not wait for what was not begun.
    let goes = stream.read_exact(&mut answer).is_ok() && answer == [GO];
    let verdict = if goes {
        spawn(host, lent).map_or(Verdict::Refused, |child| follow(child, stream))
    } else {
        Verdict::Refused
    };
    stream.write_all(&verdict.bytes())
}

fn spawn(host: &Host, lent: Lent) -> io::Result<Child> {
    let Lent {
        job,
        stdin,
        stdout,
        stderr,
        folder,
    } = lent;
    let program = host.spec.programs.get(&job.name);
    let mut command = Command::new(program.ok_or(io::ErrorKind::NotFound)?);
    command
        .args(&job.args)
        .env_clear()
        .envs(job.env)
        // As a path, which the child opens by the file that it inherits.
        .current_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout))
        .stderr(Stdio::from(stderr));
    // It dies with this thread, which waits for it.
    sys::detach(&mut command);
    host.domain.apply(&mut command)?;
    command.spawn()
}

/// Waits for the program's end; passes on what its asker is told, and ends it with its asker.
fn follow(mut child: Child, stream: &StdStream) -> Verdict {
    // Until it is waited for, the number is its own.
    let pid = Pid::from_child(&child);
    if await_end(pid, stream).is_err() {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    match child.wait() {
        Ok(status) => status.into(),
        Err(_) => Verdict::KILLED,
    }
}

/// Returns when it ended; an error: its asker is gone, or it cannot be known.
fn await_end(pid: Pid, mut stream: &StdStream) -> io::Result<()> {
    let end = pidfd_open(pid, PidfdFlags::empty())?;
    let mut told = [0; 16];
    loop {
        let (ended, asked) = {
            let mut files = [
                PollFd::new(&end, PollFlags::IN),
                PollFd::new(stream, PollFlags::IN),
            ];
            match poll(&mut files, None) {
                Err(Errno::INTR) => continue,
                polled => polled?,
            };
            let came = |n: usize| !files[n].revents().is_empty();
            (came(0), came(1))
        };
        if ended {
            return Ok(());
        }
        if asked {
            let count = stream.read(&mut told)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let named = |byte: u8| {
                let mut all = PASSED_ON.into_iter();
                all.find(|signal| signal.as_raw() == i32::from(byte))
            };
            for signal in told[..count].iter().copied().filter_map(named) {
                // It may have ended.
                let _ = kill_process(pid, signal);
            }
        }
    }
}
