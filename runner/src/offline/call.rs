//! The asking side: a link that OpenCode ran as `git` or `rg`.

use super::wire::{self, GO, READY, VERDICT, Verdict};
use super::{Job, TALK};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::time::timeout;

/// What a shell adds to the number of a signal.
const SIGNALLED: u8 = 128;

/// Lets the host run it with this process's files and folder, and waits for its end. `None`: nothing was
/// run. A signal to end goes on to the program; should this process be killed, the program is too.
#[must_use]
pub fn call(socket: &Path, job: &Job) -> Option<Verdict> {
    let bytes = job.bytes()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    runtime.block_on(async {
        let mut told = Told::listen().ok()?;
        let mut stream = tokio::select! {
            biased;
            number = told.next() => return Some(Verdict::Killed(number)),
            ready = timeout(TALK, prepare(socket, &bytes)) => ready.ok()?.ok()?,
        };
        stream.write_all(&[GO]).await.ok()?;
        match follow(&mut stream, &mut told).await {
            Ok(Verdict::Refused) => None,
            Ok(verdict) => Some(verdict),
            // The host was killed, and with it what it ran: never twice.
            Err(_) => Some(Verdict::Killed(number_of(Signal::KILL))),
        }
    })
}

/// Ends this process as the program ended.
#[must_use]
pub fn end_as(verdict: Verdict) -> ExitCode {
    match verdict {
        Verdict::Exited(code) => ExitCode::from(code),
        Verdict::Killed(number) => {
            crate::sys::die_of(i32::from(number));
            ExitCode::from(SIGNALLED.saturating_add(number))
        }
        Verdict::Refused => ExitCode::FAILURE,
    }
}

/// Until the host has everything and runs nothing yet.
async fn prepare(socket: &Path, job: &[u8]) -> io::Result<UnixStream> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(".", flags, Mode::empty())?;
    let mut stream = UnixStream::connect(socket).await?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let files = [
        stdin.as_fd(),
        stdout.as_fd(),
        stderr.as_fd(),
        folder.as_fd(),
    ];
    wire::send(&mut stream, job, files).await?;
    match stream.read_u8().await? {
        READY => Ok(stream),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

async fn follow(stream: &mut UnixStream, told: &mut Told) -> io::Result<Verdict> {
    let mut verdict = [0; VERDICT];
    let mut count = 0;
    while count < VERDICT {
        tokio::select! {
            biased;
            number = told.next() => stream.write_all(&[number]).await?,
            more = stream.read(&mut verdict[count..]) => match more? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => count += more,
            },
        }
    }
    Verdict::read(verdict).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Signals to end that came to this process.
struct Told {
    terminate: Signals,
    interrupt: Signals,
    hangup: Signals,
    quit: Signals,
}

impl Told {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// The number of the next one. Cancel safe.
    async fn next(&mut self) -> u8 {
        let signal = tokio::select! {
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.hangup.recv() => Signal::HUP,
            _ = self.quit.recv() => Signal::QUIT,
        };
        number_of(signal)
    }
}

fn number_of(signal: Signal) -> u8 {
    u8::try_from(signal.as_raw()).unwrap_or(0)
}
