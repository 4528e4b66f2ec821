//! The asking side: a link that OpenCode ran as `git` or `rg`.

use super::wire::{self, GO, HELLO, READY, VERDICT, Verdict};
use super::{HELLO_LIMIT, Job, TALK};
use crate::sys::{self, HeldSignals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What a shell adds to the number of a signal.
const SIGNALLED: u8 = 128;

/// Lets the host run it with this process's files and folder, and waits for its end. `None`: nothing was
/// run. A signal to end goes on to the program; should this process be killed, the program is too.
#[must_use]
pub fn call(socket: &Path, job: &Job) -> Option<Verdict> {
    let bytes = job.bytes()?;
    // Let go when this returns: what came too late for the host strikes then.
    let mut signals = HeldSignals::hold().ok()?;
    match prepare(socket, &bytes, &mut signals) {
        Ok(mut stream) => {
            stream.write_all(&[GO]).ok()?;
            follow(&stream, &mut signals)
        }
        Err(Interrupted::Signal(number)) => Some(Verdict::Killed(number)),
        Err(Interrupted::Failed) => None,
    }
}

/// Ends this process as the program ended.
#[must_use]
pub fn end_as(verdict: Verdict) -> ExitCode {
    match verdict {
        Verdict::Exited(code) => ExitCode::from(code),
        Verdict::Killed(number) => {
            sys::die_of(i32::from(number));
            ExitCode::from(SIGNALLED.saturating_add(number))
        }
        Verdict::Refused => ExitCode::FAILURE,
    }
}

/// Why nothing is run.
enum Interrupted {
    Signal(u8),
    Failed,
}

impl<E: Into<io::Error>> From<E> for Interrupted {
    fn from(_: E) -> Self {
        Self::Failed
    }
}

/// Until the host has everything and runs nothing yet.
fn prepare(
    socket: &Path,
    job: &[u8],
    signals: &mut HeldSignals,
) -> Result<UnixStream, Interrupted> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(".", flags, Mode::empty())?;
    // A queue that is full is not waited for.
    let stream = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    connect(&stream, &SocketAddrUnix::new(socket)?)?;
    let stream = UnixStream::from(stream);
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(TALK))?;
    expect(&stream, HELLO, HELLO_LIMIT, signals)?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let files = [
        stdin.as_fd(),
        stdout.as_fd(),
        stderr.as_fd(),
        folder.as_fd(),
    ];
    wire::send(&stream, job, files)?;
    expect(&stream, READY, TALK, signals)?;
    Ok(stream)
}

/// Waits for one byte.
fn expect(
    mut stream: &UnixStream,
    wanted: u8,
    limit: Duration,
    signals: &mut HeldSignals,
) -> Result<(), Interrupted> {
    let deadline = Instant::now() + limit;
    let (told, came) = wait(stream, signals, Some(deadline))?;
    if told && let Some(number) = signals.next()? {
        return Err(Interrupted::Signal(number));
    }
    let mut byte = [0];
    if came && stream.read(&mut byte)? == 1 && byte == [wanted] {
        return Ok(());
    }
    Err(Interrupted::Failed)
}

fn follow(mut stream: &UnixStream, signals: &mut HeldSignals) -> Option<Verdict> {
    let mut verdict = [0; VERDICT];
    let mut count = 0;
    let mut passed_on = None;
    while count < VERDICT {
        let Ok((told, came)) = wait(stream, signals, None) else {
            return Some(Verdict::KILLED);
        };
        if told && let Ok(Some(number)) = signals.next() {
            passed_on = Some(number);
            // The program may have ended; its verdict is still to be read.
            let _ = stream.write_all(&[number]);
        }
        if came {
            match stream.read(&mut verdict[count..]) {
                Ok(more) if more > 0 => count += more,
                // The host was killed, and with it what it ran: never twice.
                _ => return Some(Verdict::KILLED),
            }
        }
    }
    match Verdict::read(verdict) {
        Some(Verdict::Refused) => passed_on.map(Verdict::Killed),
        Some(verdict) => Some(verdict),
        None => Some(Verdict::KILLED),
    }
}

/// Whether a signal and whether bytes (or the end) came; neither: it is too late.
fn wait(
    stream: &UnixStream,
    signals: &HeldSignals,
    deadline: Option<Instant>,
) -> io::Result<(bool, bool)> {
    loop {
        let mut files = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(stream, PollFlags::IN),
        ];
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut files, left.as_ref()) {
            Err(Errno::INTR) => {}
            polled => {
                polled?;
                let came = |n: usize| !files[n].revents().is_empty();
                return Ok((came(0), came(1)));
            }
        }
    }
}
