//! What the agent and its tool attempt.

use super::{OUT, ROOM};
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with,
};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::Command;
use std::time::Duration;

/// Not a test of its own: what the agent does, and its tool.
#[test]
fn be_the_agent() {
    let (Ok(out), Ok(room)) = (std::env::var(OUT), std::env::var(ROOM)) else {
        return;
    };
    let words: Vec<&str> = room.split(' ').collect();
    let [
        api,
        proxy,
        egress,
        opencode,
        other,
        runner,
        name,
        outside,
        ..,
    ] = words[..]
    else {
        panic!("{room}")
    };
    let port = |text: &str| text.parse::<u16>().unwrap();
    let mut lines = Vec::new();
    let mut tell = |what: &str, ok: bool| lines.push(format!("{what}={ok}\n"));
    for (what, at) in [
        ("api", api),
        ("proxy", proxy),
        ("egress", egress),
        ("opencode", opencode),
        ("other", other),
    ] {
        tell(&format!("connect {what}"), connects(port(at)));
        // Somebody listens there: `in use` says that the domain lets it be tried.
        tell(&format!("bind {what}"), may_bind(port(at)));
        tell(&format!("fast open {what}"), sends(port(at)));
        tell(&format!("multipath {what}"), multipath(port(at)));
    }
    tell("bind any", TcpListener::bind("127.0.0.1:0").is_ok());
    tell("udp", std::net::UdpSocket::bind("127.0.0.1:0").is_ok());
    tell(
        "packet",
        made(AddressFamily::PACKET, SocketType::DGRAM, None),
    );
    tell(
        "vsock",
        made(AddressFamily::VSOCK, SocketType::STREAM, None),
    );
    tell(
        "raw",
        made(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)),
    );
    tell(
        "unshare",
        Command::new("unshare")
            .args(["-U", "true"])
            .status()
            .is_ok_and(|s| s.success()),
    );
    tell(
        "outside",
        fs::write(format!("{outside}/{out}"), "x").is_ok(),
    );
    tell("workspace", fs::write(format!("{out}.mine"), "x").is_ok());
    tell("home", writes(&std::env::var("HOME").unwrap()));
    tell("tmp", writes(&std::env::var("TMPDIR").unwrap()));
    tell("shm", writes("/dev/shm"));
    tell("null", fs::write("/dev/null", "x").is_ok());
    tell("read", fs::read("/etc/passwd").is_ok());
    let runner = rustix::process::Pid::from_raw(runner.parse().unwrap()).unwrap();
    tell(
        "signal runner",
        rustix::process::test_kill_process(runner).is_ok(),
    );
    let number = runner.as_raw_nonzero().to_string();
    for (what, command) in [
        ("limit", &["prlimit", "--core=0:0", "--pid"][..]),
        ("nice", &["renice", "-n", "1", "-p"]),
        ("schedule", &["chrt", "--other", "-p", "0"]),
        ("pin", &["taskset", "-p", "ffffffff"]),
        ("io class", &["ionice", "-c", "2", "-n", "7", "-p"]),
    ] {
        let done = Command::new(command[0])
            .args(&command[1..])
            .arg(&number)
            .output();
        tell(&format!("{what} runner"), done.unwrap().status.success());
    }
    let own = Command::new("sh")
        .args(["-c", "ulimit -n 64 && nice -n 1 taskset ffffffff true"])
        .status();
    tell("own limits", own.is_ok_and(|s| s.success()));
    let address = SocketAddr::from_abstract_name(name).unwrap();
    tell("abstract", UnixStream::connect_addr(&address).is_ok());
    tell(
        "password",
        std::env::var_os("OPENCODE_SERVER_PASSWORD").is_some(),
    );
    if let Ok(parent) = std::env::var("ISOLATION_PARENT") {
        for file in ["environ", "mem", "maps", "fd", "cwd"] {
            let path = format!("/proc/{parent}/{file}");
            // Opening some of them proves nothing: the look is refused when it is read.
            let ok = match file {
                "fd" => fs::read_link(format!("{path}/1")).is_ok(),
                "cwd" => fs::read_link(&path).is_ok(),
                "mem" => fs::File::open(&path).is_ok(),
                _ => fs::read(&path).is_ok_and(|bytes| !bytes.is_empty()),
            };
            tell(&format!("proc {file}"), ok);
        }
    } else {
        // As OpenCode starts its tools.
        let own = std::env::current_exe().unwrap();
        let status = Command::new(std::env::var_os("SHELL").unwrap())
            .arg("-c")
            .arg(format!(
                "exec {} --exact isolation::attempts::be_the_agent --nocapture",
                own.display()
            ))
            .env(OUT, "tool")
            .env("ISOLATION_PARENT", std::process::id().to_string())
            .status();
        assert!(status.unwrap().success());
    }
    lines.push("end\n".to_owned());
    fs::write(&out, lines.concat()).unwrap();
    if out == "agent" {
        // The runner would report its end otherwise.
        std::thread::sleep(Duration::from_secs(60));
    }
}

fn at(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

fn connects(port: u16) -> bool {
    TcpStream::connect_timeout(&at(port).into(), Duration::from_secs(5)).is_ok()
}

fn may_bind(port: u16) -> bool {
    let bound = TcpListener::bind(at(port));
    matches!(bound, Err(error) if error.kind() == io::ErrorKind::AddrInUse)
}

fn sends(port: u16) -> bool {
    let flags = SendFlags::from_bits_retain(0x2000_0000);
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    );
    socket.is_ok_and(|socket| sendto(socket, b"x", flags, &at(port)).is_ok())
}

fn multipath(port: u16) -> bool {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        Some(ipproto::MPTCP),
    );
    socket.is_ok_and(|socket| rustix::net::connect(socket, &at(port)).is_ok())
}

fn made(family: AddressFamily, kind: SocketType, protocol: Option<rustix::net::Protocol>) -> bool {
    socket_with(family, kind, SocketFlags::CLOEXEC, protocol).is_ok()
}

fn writes(folder: &str) -> bool {
    let file = format!("{folder}/isolation-{}", std::process::id());
    let written = fs::write(&file, "x").is_ok();
    let _ = fs::remove_file(file);
    written
}
