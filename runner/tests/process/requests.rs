//! What comes over the socket, wanted and hostile.

use crate::harness::{Runner, eventually, marker, program, tool, tool_answer};
use contract::runner::{Failure, LINE_MAX, Phase, Reply, Request};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::fs;
use std::io::{IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

fn code(answer: &str) -> Failure {
    match serde_json::from_str(answer).unwrap() {
        Reply::Failed { code, .. } => code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_socket_is_for_the_group_and_nobody_else() {
    let runner = Runner::start();
    let mode = fs::metadata(runner.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o660);
}

#[test]
fn garbage_is_answered_and_survived() {
    let runner = Runner::start();
    for bytes in [
        &b"\n"[..],
        b"{}\n",
        b"[]\n",
        b"null\n",
        b"\xff\xfe\n",
        b"{\"op\":\"nothing\"}\n",
        b"{\"op\":\"stop\"}\n",
        b"{\"op\":\"stop\",\"grace_ms\":-1}\n",
        b"{\"op\":\"stop\",\"grace_ms\":1,\"more\":1}\n",
        b"{\"op\":\"start\",\"launch\":{}}\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        assert_eq!(code(&runner.raw(bytes)), Failure::BadRequest, "{bytes:?}");
    }
    let deep = format!("{}\n", "[".repeat(100_000));
    assert_eq!(code(&runner.raw(deep.as_bytes())), Failure::BadRequest);
    // Gone before it said anything.
    for _ in 0..200 {
        drop(runner.connect());
    }
    assert!(matches!(runner.ask(&Request::Probe), Reply::Probe(_)));
}

#[test]
fn a_line_without_end_is_cut_off() {
    let runner = Runner::start();
    let answer = runner.raw(&vec![b'x'; LINE_MAX + 100_000]);
    assert_eq!(code(&answer), Failure::BadRequest);
    // A long one within the bound is fine.
    let mut launch = program("/bin/sleep", &[&marker()]);
    launch
        .home_files
        .insert("big".to_owned(), "y".repeat(LINE_MAX - 1000));
    runner.launch(&launch);
    assert_eq!(
        fs::metadata(runner.path("h/big")).unwrap().len(),
        (LINE_MAX - 1000) as u64
    );
}

#[test]
fn slow_requests_end_and_do_not_hold_up_others() {
    let runner = Runner::start();
    let begun = Instant::now();
    let mut slow: Vec<UnixStream> = (0..40).map(|_| runner.connect()).collect();
    for stream in &mut slow {
        stream.write_all(b"{\"op\":").unwrap();
    }
    assert!(matches!(runner.ask(&Request::Probe), Reply::Probe(_)));
    assert!(begun.elapsed() < Duration::from_secs(5));
    let mut answer = String::new();
    slow[0].read_to_string(&mut answer).unwrap();
    assert_eq!(code(&answer), Failure::BadRequest);
}

#[test]
fn a_hundred_connections_are_all_answered() {
    let runner = Runner::start();
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..100)
            .map(|_| scope.spawn(|| runner.ask(&Request::Probe)))
            .collect();
        for answer in asked {
            assert!(matches!(answer.join().unwrap(), Reply::Probe(_)));
        }
    });
}

#[test]
fn watches_are_bounded_and_their_places_come_back() {
    let runner = Runner::start();
    let mut watches: Vec<_> = (0..16).map(|_| runner.watch()).collect();
    for watch in &mut watches {
        watch.next().unwrap();
    }
    assert_eq!(code(&runner.raw(b"{\"op\":\"watch\"}\n")), Failure::Io);
    drop(watches);
    eventually("a free place", || {
        let mut stream = runner.connect();
        stream.write_all(b"{\"op\":\"watch\"}\n").unwrap();
        let mut start = [0; 16];
        stream.read_exact(&mut start).unwrap();
        start.starts_with(b"{\"reply\":\"state\"")
    });
}

#[test]
fn every_change_reaches_a_watcher() {
    let runner = Runner::start();
    let mut watch = runner.watch();
    watch.next();
    // Nobody reads meanwhile.
    for n in 0..10 {
        runner.launch(&program("/bin/sleep", &[&format!("36{n}")]));
    }
    let mut seen = Vec::new();
    while seen.last() != Some(&(10, true, true)) {
        let state = watch.next().unwrap();
        seen.push((
            state.generation,
            matches!(state.phase, Phase::Running { .. }),
            state.isolation.is_some(),
        ));
    }
    // Isolation is tried once, beside the first process.
    let mut wanted = vec![(1, true, false), (1, true, true)];
    wanted.extend((1..10).flat_map(|n| [(n, false, true), (n + 1, true, true)]));
    assert_eq!(seen, wanted);
}

#[test]
fn the_workspace_is_read_and_nothing_else() {
    let runner = Runner::start();
    let work = runner.path("w");
    assert!(matches!(
        runner.ask(&Request::CheckWorkspace),
        Reply::Failed { .. }
    ));
    fs::create_dir_all(work.join("dir")).unwrap();
    fs::write(work.join("dir/file"), "content").unwrap();
    symlink("/proc/self/environ", work.join("environ")).unwrap();
    symlink("../log", work.join("log")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        work.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let read = |path: &str| {
        runner.ask(&Request::Read {
            path: path.to_owned(),
            offset: 3,
            length: 2,
        })
    };
    assert_eq!(
        read("dir/file"),
        Reply::Content {
            data: "dGU=".to_owned(),
            size: 7
        }
    );
    for path in ["environ", "log", "fifo", "../log", "/etc/passwd", "dir", ""] {
        let Reply::Failed { code, .. } = read(path) else {
            panic!("{path}")
        };
        assert_eq!(code, Failure::NotFound, "{path}");
    }
    let Reply::Entries {
        entries,
        truncated: false,
    } = runner.ask(&Request::List {
        path: "dir".to_owned(),
    })
    else {
        panic!()
    };
    assert_eq!((entries[0].name.as_str(), entries[0].size), ("file", 7));
    assert_eq!(runner.ask(&Request::CheckWorkspace), Reply::Done);
    assert!(matches!(runner.ask(&Request::Cgroup), Reply::Cgroup(_)));
    let Reply::Probe(probe) = runner.ask(&Request::Probe) else {
        panic!()
    };
    assert_eq!(probe.uid, rustix::process::getuid().as_raw());
}

#[test]
fn what_lies_at_the_socket_path_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("runner.sock");
    fs::create_dir_all(socket.join("planted")).unwrap();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_opencode-runner"))
        .env("RUNNER_SOCKET", &socket)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually("the socket", || UnixStream::connect(&socket).is_ok());
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_socket_that_was_deleted_comes_back() {
    let runner = Runner::start();
    let before = fs::metadata(runner.socket()).unwrap().ino();
    let probe = runner.ask(&Request::Probe);
    fs::remove_file(runner.socket()).unwrap();
    eventually("the socket", || {
        UnixStream::connect(runner.socket()).is_ok()
    });
    assert_eq!(runner.ask(&Request::Probe), probe);
    let _ = before;
}

#[test]
fn tools_of_the_agent_may_not_command_the_runner() {
    let runner = Runner::start();
    let mut launch = tool(&runner);
    let tool = format!("'{}' {}", launch.program, launch.args.join(" "));
    launch.program = "/bin/sh".to_owned();
    launch.args = vec![
        "-c".to_owned(),
        format!("(setsid {tool} &) ; exec sleep 3600"),
    ];
    runner.launch(&launch);
    eventually("the answer", || tool_answer(&runner).is_some());
    assert_eq!(tool_answer(&runner), Some(Failure::Denied));
    assert!(matches!(
        runner.watch().next().unwrap().phase,
        Phase::Running { .. }
    ));
}

#[test]
fn only_the_sidecars_user_may_ask() {
    let own = rustix::process::getuid().as_raw();
    let other = (own + 1).to_string();
    let runner = Runner::start_with(&[("RUNNER_PEER_UID", &other)]);
    let Reply::Failed { code, .. } = runner.ask(&Request::Reap) else {
        panic!("a stranger was served")
    };
    assert_eq!(code, Failure::Denied);
    let runner = Runner::start_with(&[("RUNNER_PEER_UID", &own.to_string())]);
    assert!(matches!(runner.ask(&Request::Reap), Reply::Reaped { .. }));
}

/// Closing a TCP socket may wait for its last data, as long as who made it wished; so it must never be
/// the runner that closes a tool's.
#[test]
fn a_file_that_is_slow_to_close_holds_up_nobody() {
    if kernel() < (6, 16) {
        println!("not on this kernel: docs/security.md says what follows");
        return;
    }
    let runner = Runner::start();
    let wish = Duration::from_secs(15);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut slow = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (_unread, _) = listener.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&slow, Some(wish)).unwrap();
    slow.set_nonblocking(true).unwrap();
    while slow.write(&[0; 65536]).is_ok() {}
    let stream = runner.connect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let file = [slow.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&file)));
    let sent = sendmsg(
        &stream,
        &[IoSlice::new(b"{")],
        &mut control,
        SendFlags::NOSIGNAL,
    );
    // The kernel refuses it, or the runner gets it.
    if sent.is_err() {
        rustix::net::sockopt::set_socket_linger(&slow, None).unwrap();
    }
    drop(slow);
    drop(stream);
    let began = Instant::now();
    runner.stop(0);
    assert!(
        began.elapsed() < wish / 3,
        "{sent:?}: {:?}",
        began.elapsed()
    );
}

pub(crate) fn kernel() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_str().unwrap();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
