//! Who asks the host for something else than a program.

use super::{HOST, PARENT, git, host, hosted};
use crate::harness::{Runner, eventually, kill, program, shell};
use crate::requests::kernel;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn what_is_no_request_is_not_answered_and_harms_nobody() {
    let runner = Runner::start();
    // In the place of OpenCode: this test binary, whose child asks.
    let own = std::env::current_exe().unwrap();
    let mut launch = program(
        "/bin/sh",
        &[
            "-c",
            "n=0; while [ $n -lt 9 ]; do NUMBER=$n \"$OWN\" --exact offline::hostile::be_an_asker; n=$((n + 1)); done; exec sleep 3600",
        ],
    );
    let socket = runner.path("s/offline.sock");
    for (name, value) in [("OWN", own.as_path()), ("ASK", socket.as_path())] {
        let value = value.to_str().unwrap().to_owned();
        launch.env.insert(name.to_owned(), value);
    }
    runner.launch(&launch);
    eventually("the last", || runner.path("w/answer8").exists());
    for n in 0..9 {
        let answer = fs::read(runner.path(&format!("w/answer{n}"))).unwrap();
        assert_eq!(answer, if n == 8 { b"R".as_slice() } else { b"" }, "{n}");
    }
    assert_eq!(hosted(&runner, &git("echo works")), "works\n");
}

/// A script for OpenCode's place: who runs its git, once there is a host and a file `go`.
fn asks_when_told(before: &str) -> String {
    format!(
        "until {parent} | grep -qx offline; do :; done; : > hosted; {before}; until [ -e go ]; do sleep 0.02; done; {parent} > after.part; mv after.part after; exec sleep 3600",
        parent = git(PARENT)
    )
}

/// What [`asks_when_told`] found.
fn told(runner: &Runner) -> String {
    fs::write(runner.path("w/go"), "").unwrap();
    eventually("the next git", || runner.path("w/after").exists());
    fs::read_to_string(runner.path("w/after")).unwrap()
}

#[test]
fn a_file_that_is_slow_to_close_holds_up_no_other() {
    let runner = Runner::start();
    let own = std::env::current_exe().unwrap();
    let mut launch = shell(&asks_when_told(
        "\"$OWN\" --exact offline::hostile::be_an_asker & until [ -e lent ]; do sleep 0.02; done",
    ));
    for (name, value) in [
        ("OWN", own.display().to_string()),
        ("ASK", runner.path("s/offline.sock").display().to_string()),
        ("SLOW", "1".to_owned()),
    ] {
        launch.env.insert(name.to_owned(), value);
    }
    runner.launch(&launch);
    assert_eq!(told(&runner), HOST);
}

#[test]
fn strangers_lend_nothing() {
    if kernel() < (6, 16) {
        println!("not on this kernel: docs/security.md says what follows");
        return;
    }
    let runner = Runner::start();
    runner.launch(&shell(&asks_when_told(":")));
    eventually("a host", || runner.path("w/hosted").exists());
    let host = host(&runner).unwrap();
    // So that all lies there when it looks; more than there are places.
    kill(host, rustix::process::Signal::STOP);
    let mut open = Vec::new();
    for _ in 0..40 {
        let mut stream = UnixStream::connect(runner.path("s/offline.sock")).unwrap();
        let unread = lend_slowly(&mut stream);
        open.push((stream, unread));
    }
    kill(host, rustix::process::Signal::CONT);
    assert_eq!(told(&runner), HOST);
}

/// Lends a file that takes a minute to close, so that the host is the last who has it when it reads what it
/// must refuse. Returns what must stay open until then.
fn lend_slowly(stream: &mut UnixStream) -> TcpStream {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut slow = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (unread, _) = listener.accept().unwrap();
    let minute = Some(Duration::from_secs(60));
    rustix::net::sockopt::set_socket_linger(&slow, minute).unwrap();
    slow.set_nonblocking(true).unwrap();
    while slow.write(&[0; 65536]).is_ok() {}
    if send(stream, &[0xff], &[slow.as_fd(); 4]).is_err() {
        // Nobody took it.
        rustix::net::sockopt::set_socket_linger(&slow, None).unwrap();
    }
    drop(slow);
    let _ = stream.write_all(&[0xff; 3]);
    unread
}

/// Not a test of its own: a child of what stands for OpenCode.
#[test]
fn be_an_asker() {
    if std::env::var_os("SLOW").is_some() {
        let mut stream = UnixStream::connect(std::env::var_os("ASK").unwrap()).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        let _unread = lend_slowly(&mut stream);
        fs::write("lent", "").unwrap();
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let (Some(socket), Ok(number)) = (std::env::var_os("ASK"), std::env::var("NUMBER")) else {
        return;
    };
    let with_length = |text: &[u8]| {
        let length = u32::try_from(text.len()).unwrap().to_le_bytes();
        [&length, text].concat()
    };
    let good = with_length(b"git\x000\x00");
    let bytes = match number.as_str() {
        "0" => vec![],
        "1" => vec![1],
        "2" => u32::MAX.to_le_bytes().to_vec(),
        "3" => vec![0, 0, 0, 0],
        "4" => good.clone(),
        "5" => with_length(b"git\x0099999999999\x00"),
        "6" => [good.clone(), vec![7; 100]].concat(),
        _ => good.clone(),
    };
    let count = match number.as_str() {
        // Fewer, and more than there may be.
        "4" => 3,
        "7" => 5,
        _ => 4,
    };
    let mut stream = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let file = fs::File::open("/dev/null").unwrap();
    let limit = Some(Duration::from_secs(5));
    stream.set_read_timeout(limit).unwrap();
    let mut answer = [0; 1];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"H");
    let sent = send(&stream, &bytes, &vec![file.as_fd(); count]);
    assert_eq!(sent, Ok(bytes.len()));
    if bytes.len() < 5 {
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    }
    let count = stream.read(&mut answer).unwrap_or(0);
    // Anything but "go" runs nothing.
    let _ = stream.write_all(b"x");
    let mut verdict = Vec::new();
    let _ = stream.read_to_end(&mut verdict);
    assert_eq!(verdict, if count == 1 { &[2, 0][..] } else { &[] });
    let file = format!("answer{number}");
    fs::write(format!("{file}.part"), &answer[..count]).unwrap();
    fs::rename(format!("{file}.part"), file).unwrap();
}

fn send(stream: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(files)));
    sendmsg(
        stream,
        &[std::io::IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
}

#[test]
fn without_its_domain_it_serves_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
    let spec = serde_json::json!({
        "agent": std::process::id(),
        "programs": {"git": "/usr/bin/git"},
        "ports": contract::runner::Confinement::default(),
        "folder": dir.path(),
    });
    let mut child = Command::new(env!("CARGO_BIN_EXE_opencode-runner"))
        .arg("offline")
        .arg(spec.to_string())
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
        .spawn()
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
}
