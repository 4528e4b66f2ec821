//! OpenCode's stdout and stderr to the runner's log: bounded per line and in rate, never a reason for
//! OpenCode to wait, and the end of stderr kept to say why it died.

use crate::log;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// Longest line that is relayed; the rest of it is cut.
pub const LINE_MAX: usize = 8 * 1024;
/// End of stderr that is kept.
pub const TAIL_MAX: usize = 4 * 1024;
/// Lines per second of both streams together.
pub const RATE: u32 = 200;
/// What is read after the end: a pipe holds 64 KiB, and a leftover may go on writing.
const DRAIN_MAX: usize = 256 * 1024;

/// The relays of one process.
#[derive(Debug)]
pub struct Relay {
    drain: CancellationToken,
    stdout: Option<JoinHandle<Tail>>,
    stderr: Option<JoinHandle<Tail>>,
}

impl Relay {
    /// Starts relaying what `child` writes.
    ///
    /// # Errors
    /// A pipe cannot be registered with the runtime.
    pub fn start(child: &mut Child) -> io::Result<Self> {
        let drain = CancellationToken::new();
        let gate = Arc::new(Mutex::new(Gate::new(Instant::now())));
        let start = |stream, fd: Option<OwnedFd>| -> io::Result<_> {
            let Some(fd) = fd else { return Ok(None) };
            let lines = Lines::new(stream, Arc::clone(&gate));
            let task = pump(Receiver::from_owned_fd(fd)?, lines, drain.clone());
            Ok(Some(tokio::spawn(task)))
        };
        let stdout = start("stdout", child.stdout.take().map(OwnedFd::from))?;
        let stderr = start("stderr", child.stderr.take().map(OwnedFd::from))?;
        Ok(Self {
            drain,
            stdout,
            stderr,
        })
    }

    /// Takes what is in the pipes now, closes them and returns the end of stderr, at most
    /// [`TAIL_MAX`] bytes. Does not wait for leftovers that hold the pipes open.
    pub async fn finish(self) -> String {
        self.drain.cancel();
        let mut tail = Tail::default();
        if let Some(task) = self.stdout {
            let _ = task.await;
        }
        if let Some(task) = self.stderr {
            tail = task.await.unwrap_or_default();
        }
        tail.text()
    }
}

async fn pump(pipe: Receiver, mut lines: Lines, drain: CancellationToken) -> Tail {
    let mut buffer = [0_u8; 8 * 1024];
    loop {
        let read = tokio::select! {
            biased;
            () = drain.cancelled() => break,
            ready = pipe.readable() => ready.and_then(|()| pipe.try_read(&mut buffer)),
            () = sleep_until(lines.window_end()) => {
                lines.tick();
                continue;
            }
        };
        match read {
            Ok(0) => break,
            Ok(n) => lines.push(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        // A flood must not starve the requests: try_read does not count against tokio's budget.
        tokio::task::yield_now().await;
    }
    let mut left = DRAIN_MAX;
    // Past the runtime's cached readiness, which may be older than the exit.
    while let Ok(n) = rustix::io::read(&pipe, &mut buffer) {
        lines.push(&buffer[..n]);
        left = left.saturating_sub(n);
        if n == 0 || left == 0 {
            break;
        }
    }
    lines.end()
}

/// Last bytes of a stream.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(TAIL_MAX)..];
        let excess = (self.0.len() + bytes.len()).saturating_sub(TAIL_MAX);
        self.0.drain(..excess);
        self.0.extend_from_slice(bytes);
    }

    fn text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.0).into_owned();
        // A replaced byte grows to three.
        let excess = text.len().saturating_sub(TAIL_MAX);
        let cut = (excess..=text.len())
            .find(|i| text.is_char_boundary(*i))
            .unwrap_or(text.len());
        text.drain(..cut);
        text
    }
}

/// Cuts bytes into lines and relays them.
#[derive(Debug)]
struct Lines {
    stream: &'static str,
    gate: Arc<Mutex<Gate>>,
    line: Vec<u8>,
    cut: bool,
    tail: Tail,
}

impl Lines {
    fn new(stream: &'static str, gate: Arc<Mutex<Gate>>) -> Self {
        Self {
            stream,
            gate,
            line: Vec::new(),
            cut: false,
            tail: Tail::default(),
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.tail.push(bytes);
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            let text = part.strip_suffix(b"\n").unwrap_or(part);
            let room = LINE_MAX - self.line.len();
            self.cut |= text.len() > room;
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if text.len() < part.len() {
                self.emit();
            }
        }
    }

    fn emit(&mut self) {
        if !self.line.is_empty() && self.with_gate(|gate| gate.pass(Instant::now())) {
            log::relay(self.stream, &String::from_utf8_lossy(&self.line), self.cut);
        }
        self.line.clear();
        self.cut = false;
    }

    fn end(mut self) -> Tail {
        self.emit();
        self.with_gate(Gate::report);
        self.tail
    }

    fn tick(&self) {
        self.with_gate(|gate| gate.turn(Instant::now()));
    }

    /// When to [`Lines::tick`]; far away while nothing was dropped.
    fn window_end(&self) -> Instant {
        self.with_gate(|gate| {
            if gate.dropped > 0 {
                gate.end
            } else {
                gate.end + Duration::from_secs(3600)
            }
        })
    }

    fn with_gate<T>(&self, f: impl FnOnce(&mut Gate) -> T) -> T {
        f(&mut self.gate.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Lets [`RATE`] lines pass per second and counts the others.
#[derive(Debug)]
struct Gate {
    end: Instant,
    passed: u32,
    dropped: u64,
}

impl Gate {
    fn new(now: Instant) -> Self {
        Self {
            end: now + Duration::from_secs(1),
            passed: 0,
            dropped: 0,
        }
    }

    fn pass(&mut self, now: Instant) -> bool {
        self.turn(now);
        let pass = self.passed < RATE;
        if pass {
            self.passed += 1;
        } else {
            self.dropped += 1;
        }
        pass
    }

    fn turn(&mut self, now: Instant) {
        if now >= self.end {
            self.report();
            *self = Self::new(now);
        }
    }

    fn report(&mut self) {
        if self.dropped > 0 {
            let message = format!("dropped {} lines", self.dropped);
            log::warn(&message, &[("lines", self.dropped.into())]);
            self.dropped = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_bounded_and_text() {
        let mut tail = Tail::default();
        for n in 0..10_000 {
            tail.push(format!("line {n}\n").as_bytes());
        }
        assert_eq!(tail.text().len(), TAIL_MAX);
        assert!(tail.text().ends_with("line 9999\n"));
        tail.push(&[0xff; 9000]);
        assert!(tail.text().len() <= TAIL_MAX);
        assert!(tail.text().starts_with('\u{fffd}'));
    }

    #[test]
    fn the_gate_lets_a_rate_pass_and_counts_the_rest() {
        let start = Instant::now();
        let mut gate = Gate::new(start);
        let passed = (0..1000).filter(|_| gate.pass(start)).count();
        assert_eq!(
            (passed, gate.dropped),
            (RATE as usize, 1000 - u64::from(RATE))
        );
        assert!(gate.pass(start + Duration::from_secs(1)));
        assert_eq!(gate.dropped, 0);
    }

    #[test]
    fn a_line_without_end_takes_no_more_than_its_bound() {
        let mut lines = Lines::new("stdout", Arc::new(Mutex::new(Gate::new(Instant::now()))));
        for _ in 0..1000 {
            lines.push(&[b'x'; 1000]);
        }
        assert_eq!(lines.line.len(), LINE_MAX);
        assert!(lines.cut);
        lines.push(b"\nnext");
        assert_eq!((lines.line.as_slice(), lines.cut), (&b"next"[..], false));
    }
}
