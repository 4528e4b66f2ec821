//! 100,000 stored events through the real sidecar: its own process on one core, its reader, its HTTP, a
//! plain socket that reads as fast as it can.

use crate::table::{Aim, Failure, RUNS, Series, Table};
use contract::{
    Event, EventBody,
    event::{Complete, MAIN_AGENT, Output, OutputSource},
};
use journal::{AppendError, Entry, Journal, Options};
use serde_json::json;
use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const EVENTS: u64 = 100_000;
const TOKEN: &str = "bench";
/// Text of an event, in bytes: words as they come, and text that gathered behind a slow sync.
const TEXTS: [usize; 2] = [100, 1000];
const START: Duration = Duration::from_secs(30);

/// Bytes as the sidecar stores them.
struct Stored(bool, Vec<u8>);

impl Entry for Stored {
    fn is_event(&self) -> bool {
        self.0
    }

    fn merge(&mut self, next: Self) -> Result<(), Self> {
        Err(next)
    }

    fn size(&self) -> usize {
        self.1.len()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.1);
    }
}

pub(crate) fn run(dir: &Path, table: &mut Table) -> Result<(), Failure> {
    let sidecar = std::env::var_os("OPENCODE_SIDECAR").ok_or("OPENCODE_SIDECAR is not set")?;
    for text in TEXTS {
        let home = dir.join(text.to_string());
        store(&home, text)?;
        let port = free_port()?;
        // One core, away from the one that reads.
        let mut child = Running(
            Command::new("taskset")
                .args(["-c", "0"])
                .arg(&sidecar)
                .env_clear()
                .env("HOST", "127.0.0.1")
                .env("PORT", port.to_string())
                .env("PROXY_PORT", free_port()?.to_string())
                .env("CONFIG_DIR", home.join("config"))
                .env("JOURNAL_DIR", home.join("journal"))
                .env("RUNNER_SOCKET", home.join("runner.sock"))
                .env("OPENCODE_SHARED_SECRET", TOKEN)
                .env("LOG_LEVEL", "error")
                .stdin(Stdio::null())
                .stdout(File::create(home.join("log"))?)
                .stderr(Stdio::null())
                .spawn()?,
        );
        wait_for(port, &mut child)?;
        let (mut first, mut wall, mut cpu) =
            (Series::default(), Series::default(), Series::default());
        for _ in 0..RUNS {
            let before = child.cpu()?;
            let seen = replay(port)?;
            let used = child.cpu()? - before;
            first.push(seen.first.as_secs_f64() * 1000.0);
            wall.push(seen.bytes as f64 / 1e6 / seen.all.as_secs_f64());
            cpu.push(seen.bytes as f64 / 1e6 / used.max(0.01));
        }
        let what = format!("replay of {EVENTS} events of {text} bytes of text over SSE");
        table.row(
            &format!("{what}: request → first event"),
            "ms",
            &first,
            &Aim::Of(
                "5 ms",
                first.median() <= 5.0,
                "other jobs on this machine wait for the same core",
            ),
        );
        let fast = wall.median() >= 500.0;
        let why = format!(
            "the core is shared: {:.0} MB per second of the sidecar's own CPU time",
            cpu.median()
        );
        table.row(
            &format!("{what}: throughput"),
            "MB/s",
            &wall,
            &Aim::Of("500 MB/s on one core", fast, &why),
        );
        table.row(
            "— bytes per second of the sidecar's CPU time (in 10 ms steps)",
            "MB/s",
            &cpu,
            &Aim::None,
        );
    }
    Ok(())
}

/// A session of one turn that is complete.
fn store(home: &Path, text: usize) -> Result<(), Failure> {
    let dir = home.join("journal/sessions");
    std::fs::create_dir_all(&dir)?;
    std::fs::create_dir_all(home.join("config"))?;
    let journal = Journal::open(&dir, Options::default())?;
    let log = journal.create("replay")?;
    let ts: jiff::Timestamp = "2026-01-01T00:00:00.123Z".parse()?;
    let append = |event: bool, bytes: Vec<u8>| -> Result<(), Failure> {
        let bytes = Stored(event, bytes);
        let mut entry = Some(bytes);
        while let Some(bytes) = entry.take() {
            let copy = bytes.1.clone();
            match log.append(bytes) {
                Ok(_) => {}
                Err(AppendError::Backlogged) => {
                    std::thread::sleep(Duration::from_millis(1));
                    entry = Some(Stored(event, copy));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    };
    let created = json!({"note": "created", "session_id": "replay", "at": ts, "opencode_session": "ses_x",
        "model_config": null, "own_key": false, "system_prompt": null});
    append(false, created.to_string().into_bytes())?;
    let turn = json!({"note": "turn", "turn": 1, "at": ts, "message_id": "msg_x", "prompt": "x", "author": "x",
        "idempotency": null});
    append(false, turn.to_string().into_bytes())?;
    let event = |body| Event {
        turn: 1,
        ts,
        agent: MAIN_AGENT.into(),
        body,
    };
    for n in 0..EVENTS - 1 {
        append(
            true,
            stored(&event(EventBody::Output(Output {
                text: "word ".repeat(text / 5),
                part_id: "prt_0123456789abcdefghijklmnop".into(),
                offset: n * text as u64,
                source: OutputSource::Assistant,
                replace: false,
            })))?,
        )?;
    }
    append(
        true,
        stored(&event(EventBody::Complete(Complete::default())))?,
    )?;
    Ok(journal.close()?)
}

fn stored(event: &Event) -> Result<Vec<u8>, Failure> {
    Ok(format!(
        "event: {}\ndata: {}\n\n",
        event.body.name(),
        serde_json::to_string(event)?
    )
    .into_bytes())
}

struct Seen {
    first: Duration,
    all: Duration,
    bytes: u64,
}

fn replay(port: u16) -> Result<Seen, Failure> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(START))?;
    let began = Instant::now();
    write!(
        stream,
        "GET /sessions/replay/stream HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n\r\n"
    )?;
    let mut buffer = vec![0; 1 << 20];
    let (mut bytes, mut first, mut tail) = (0, None, Vec::new());
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        bytes += n as u64;
        if first.is_none() && buffer[..n].windows(4).any(|w| w == b"id: ") {
            first = Some(began.elapsed());
        }
        tail.extend_from_slice(&buffer[n.saturating_sub(400)..n]);
        let cut = tail.len().saturating_sub(400);
        tail.drain(..cut);
    }
    let all = began.elapsed();
    let last = format!("-{EVENTS}\nevent: complete");
    if !String::from_utf8_lossy(&tail).contains(&last) {
        return Err(format!("the stream did not end with event {EVENTS}").into());
    }
    let first = first.ok_or("no event came with the first bytes")?;
    Ok(Seen { first, all, bytes })
}

fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

fn wait_for(port: u16, child: &mut Running) -> Result<(), Failure> {
    let deadline = Instant::now() + START;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if let Some(status) = child.0.try_wait()? {
            return Err(format!("the sidecar ended: {status}").into());
        }
        if Instant::now() > deadline {
            return Err("the sidecar does not listen".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // What it derives from the journal at its start must not run beside the first figure.
    std::thread::sleep(Duration::from_secs(1));
    Ok(())
}

/// Killed at the end.
struct Running(Child);

impl Running {
    /// CPU time used so far, in seconds.
    fn cpu(&self) -> Result<f64, Failure> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        // Fields 14 and 15, counted behind the name, which may hold anything.
        let rest = stat.rsplit_once(')').ok_or("no stat")?.1;
        let ticks = rest
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(str::parse::<u64>);
        let mut sum = 0;
        for tick in ticks {
            sum += tick?;
        }
        Ok(sum as f64 / rustix::param::clock_ticks_per_second() as f64)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
