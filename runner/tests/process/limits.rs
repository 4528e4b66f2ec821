//! Floods take no memory and stall nobody.

use crate::harness::{Runner, eventually, shell};
use contract::runner::{Reply, Request};
use std::fs;
use std::time::{Duration, Instant};

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_flood_of_output_is_bounded_in_memory_rate_and_log() {
    let runner = Runner::start();
    let before = resident_kib(runner.child.id());
    // 40 MB in short lines on one, 40 MB without any line end on the other stream.
    let script = "(head -c 40000000 /dev/zero >&2) & yes flood | head -c 40000000; wait; touch done; exec sleep 3600";
    runner.launch(&shell(script));
    let asked = Instant::now();
    assert!(matches!(runner.ask(&Request::Probe), Reply::Probe(_)));
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    eventually("the end of the flood", || runner.path("w/done").exists());
    eventually("the count", || runner.log().contains("dropped "));
    let grown = resident_kib(runner.child.id()) - before;
    assert!(grown < 8 * 1024, "grew by {grown} KiB");
    let log = runner.log();
    let seconds = asked.elapsed().as_secs() + 2;
    let relayed = log
        .lines()
        .filter(|line| line.contains("\"flood\""))
        .count() as u64;
    assert!(
        relayed > 0 && relayed <= 200 * seconds,
        "{relayed} lines in {seconds} s"
    );
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line).expect(line);
    }
}

#[test]
fn long_lines_are_cut_and_say_so() {
    let runner = Runner::start();
    runner.launch(&shell(
        "head -c 20000 /dev/zero | tr '\\0' x; echo; echo after; exec sleep 3600",
    ));
    eventually("the line after", || runner.log().contains("\"after\""));
    let log = runner.log();
    let long = log.lines().find(|line| line.contains("xxxx")).unwrap();
    let long: serde_json::Value = serde_json::from_str(long).unwrap();
    assert_eq!(long["message"].as_str().unwrap().len(), 8192);
    assert_eq!(
        (long["truncated"].as_bool(), long["stream"].as_str()),
        (Some(true), Some("stdout"))
    );
    assert_eq!(long["target"], "opencode");
}

/// A log that nobody reads: the runner must not wait for it.
#[test]
fn a_stalled_log_stalls_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("runner.sock");
    let child = std::process::Command::new(env!("CARGO_BIN_EXE_opencode-runner"))
        .env("RUNNER_SOCKET", &socket)
        .env("WORKSPACE_DIR", dir.path().join("w"))
        .env("HOME", dir.path().join("h"))
        .env("TMPDIR", dir.path().join("t"))
        .stderr(writer)
        .spawn()
        .unwrap();
    eventually("the socket", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    let mut runner = Stalled { child, socket };
    let line = "z".repeat(4000);
    let script = format!(
        "i=0; while [ $i -lt 5000 ]; do echo {line}; i=$((i+1)); done; touch done; exec sleep 3600"
    );
    runner.ask(&Request::start(shell(&script)));
    eventually("the flood", || dir.path().join("w/done").exists());
    assert!(matches!(runner.ask(&Request::Probe), Reply::Probe(_)));
    let begun = Instant::now();
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&runner.child),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert!(runner.child.wait().unwrap().success());
    assert!(begun.elapsed() < Duration::from_secs(10));
    drop(reader);
}

struct Stalled {
    child: std::process::Child,
    socket: std::path::PathBuf,
}

impl Stalled {
    fn ask(&self, request: &Request) -> Reply {
        use std::io::{Read as _, Write as _};
        let mut stream = std::os::unix::net::UnixStream::connect(&self.socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        writeln!(stream, "{}", serde_json::to_string(request).unwrap()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }
}
