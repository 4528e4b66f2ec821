//! The host's own process.
//!
//! A fixed number of threads, each of which accepts, serves and closes: closing what somebody lent may take as
//! long as that one likes, and making a thread may fail when a tool has used up the container's processes.

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
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

/// Askers at once. Others wait, as long as they like, and take the slow way.
const AT_ONCE: usize = 16;
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
    let host = Host { spec, domain };
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            let thread = std::thread::Builder::new().stack_size(STACK);
            thread.spawn_scoped(scope, || host.work(&listener))?;
        }
        Ok(())
    })
}

impl Host {
    fn work(&self, listener: &UnixListener) {
        loop {
            match listener.accept() {
                // One that is gone, or says what is none of this, is not answered.
                Ok((stream, _)) if is_child(&stream, self.spec.agent) => {
                    let _ = converse(&stream, self);
                }
                // It sees that nothing will come.
                Ok(_) => {}
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }
}

/// Whether OpenCode itself started who asks.
fn is_child(stream: &UnixStream, agent: i32) -> bool {
    sys::peer_pid(stream)
        .and_then(Process::read)
        .is_some_and(|process| process.parent == agent)
}

fn converse(mut stream: &UnixStream, host: &Host) -> io::Result<()> {
    stream.set_read_timeout(Some(TALK))?;
    stream.set_write_timeout(Some(TALK))?;
    sys::take_files(stream)?;
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
fn follow(mut child: Child, stream: &UnixStream) -> Verdict {
    // Until it is waited for, the number is its own.
    let pid = Pid::from_child(&child);
    // For want of files it is only waited for.
    if let Ok(end) = pidfd_open(pid, PidfdFlags::empty())
        && await_end(pid, &end, stream).is_err()
    {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    match child.wait() {
        Ok(status) => status.into(),
        Err(_) => Verdict::KILLED,
    }
}

/// Returns when it ended; an error: its asker is gone.
fn await_end(pid: Pid, end: &OwnedFd, mut stream: &UnixStream) -> io::Result<()> {
    let mut told = [0; 16];
    loop {
        let (ended, asked) = {
            let mut files = [
                PollFd::new(end, PollFlags::IN),
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
