//! What is refused to OpenCode and to its tools. Each attempt is made in the domain, where it must fail,
//! and outside of it, where it must succeed: so a refusal is the domain's doing.

mod attempts;

use crate::harness::{PATIENCE, Runner, eventually, program, shell};
use contract::pod::EgressMode;
use contract::runner::{Confinement, Isolation, Launch, Measure, Missing, Phase, Request};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Variables that make [`attempts::be_the_agent`] act.
const OUT: &str = "ISOLATION_OUT";
const ROOM: &str = "ISOLATION_ROOM";

/// What the agent meets outside: listeners at the sidecar's ports, a folder, an abstract socket.
struct Room {
    ports: Confinement,
    /// All served, by no more than accepting.
    _listeners: Vec<TcpListener>,
    /// A port of nobody in particular, served.
    other: u16,
    _abstract: UnixListener,
    abstract_name: String,
    outside: tempfile::TempDir,
}

impl Room {
    fn new(egress: EgressMode) -> Self {
        let listeners: Vec<TcpListener> = (0..5)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
            .collect();
        let port = |n: usize| listeners[n].local_addr().unwrap().port();
        let outside = tempfile::tempdir().unwrap();
        let abstract_name = outside.path().display().to_string();
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        Self {
            ports: Confinement {
                api_port: port(0),
                proxy_port: port(1),
                egress_port: port(2),
                opencode_port: port(3),
                egress,
            },
            other: port(4),
            _abstract: UnixListener::bind_addr(&address).unwrap(),
            abstract_name,
            outside,
            _listeners: listeners,
        }
    }

    /// As the words of [`ROOM`].
    fn words(&self, runner: &Runner) -> String {
        let p = &self.ports;
        let numbers = [
            p.api_port,
            p.proxy_port,
            p.egress_port,
            p.opencode_port,
            self.other,
        ];
        let numbers = numbers.map(|n| n.to_string()).join(" ");
        format!(
            "{numbers} {} {} {}",
            runner.child.id(),
            self.abstract_name,
            self.outside.path().display()
        )
    }
}

/// Attempts and whether each worked.
type Found = BTreeMap<String, bool>;

fn runs_landlock() -> bool {
    let abi = runner::sys::landlock_abi();
    if abi < 6 {
        eprintln!("Landlock ABI {abi}: only the report of what is missing is tested here");
    }
    abi >= 6
}

/// What works for a program that OpenCode's place is given to, and for its tools.
fn found(runner: &Runner, room: &Room) -> (Found, Found) {
    let own = std::env::current_exe().unwrap();
    let own = own.to_str().unwrap();
    let args = [
        "--exact",
        "isolation::attempts::be_the_agent",
        "--nocapture",
    ];
    let mut launch = program(own, &args);
    for (name, value) in [
        (ROOM, room.words(runner)),
        (OUT, "agent".to_owned()),
        ("OPENCODE_SERVER_PASSWORD", "hush".to_owned()),
    ] {
        launch.env.insert(name.to_owned(), value);
    }
    launch.confinement = room.ports.clone();
    runner.launch(&launch);
    let read = |name: &str| fs::read_to_string(runner.path("w").join(name)).unwrap_or_default();
    eventually("the agent's attempts", || {
        ["agent", "tool"]
            .iter()
            .all(|name| read(name).ends_with("end\n"))
    });
    (parse(&read("agent")), parse(&read("tool")))
}

fn parse(text: &str) -> Found {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(what, ok)| (what.to_owned(), ok == "true"))
        .collect()
}

const PORTS: [&str; 5] = ["api", "proxy", "egress", "opencode", "other"];
const WAYS: [&str; 3] = ["connect", "fast open", "multipath"];

fn is(found: &Found, what: &str) -> bool {
    *found
        .get(what)
        .unwrap_or_else(|| panic!("{what} was not tried: {found:#?}"))
}

#[test]
fn what_is_refused_and_that_it_is_the_domain_that_refuses() {
    if !runs_landlock() {
        return;
    }
    let weak = Runner::start_with(&[("RUNNER_ISOLATION", "off"), ("SHELL", "/bin/sh")]);
    let room = Room::new(EgressMode::Open);
    let (agent, tool) = found(&weak, &room);
    let mut works: Vec<String> = [
        "outside",
        "signal runner",
        "abstract",
        "udp",
        "packet",
        "raw",
        "limit runner",
        "nice runner",
        "schedule runner",
        "pin runner",
        "io class runner",
    ]
    .map(str::to_owned)
    .into();
    for port in PORTS {
        works.extend(WAYS.map(|way| format!("{way} {port}")));
        works.push(format!("bind {port}"));
    }
    for what in &works {
        assert!(is(&agent, what), "agent outside: {what}: {agent:#?}");
        assert!(is(&tool, what), "tool outside: {what}: {tool:#?}");
    }
    for file in ["environ", "maps", "fd", "cwd"] {
        assert!(is(&tool, &format!("proc {file}")), "{file}: {tool:#?}");
    }
    assert!(is(&tool, "password"));
    let missing = isolation(&weak).missing;
    assert!(
        missing
            .iter()
            .all(|m| m.reason.contains("RUNNER_ISOLATION"))
    );
    drop(weak);

    let runner = unprivileged();
    let room = Room::new(EgressMode::Open);
    let (agent, tool) = found(&runner, &room);
    for found in [&agent, &tool] {
        for what in [
            "outside",
            "signal runner",
            "abstract",
            "packet",
            "vsock",
            "raw",
            "unshare",
            "limit runner",
            "nice runner",
            "schedule runner",
            "pin runner",
            "io class runner",
        ] {
            assert!(!is(found, what), "{what}: {found:#?}");
        }
        for what in [
            "workspace",
            "home",
            "tmp",
            "shm",
            "null",
            "read",
            "udp",
            "bind any",
            "own limits",
        ] {
            assert!(is(found, what), "{what}: {found:#?}");
        }
        for port in PORTS {
            assert!(!is(found, &format!("fast open {port}")), "{found:#?}");
            assert!(!is(found, &format!("multipath {port}")), "{found:#?}");
        }
    }
    for (found, connect, bind) in [
        (
            &agent,
            &["proxy", "egress", "opencode", "other"][..],
            &["opencode", "other"][..],
        ),
        (&tool, &["egress", "other"], &["other"]),
    ] {
        for port in PORTS {
            assert_eq!(
                is(found, &format!("connect {port}")),
                connect.contains(&port),
                "{port}: {found:#?}"
            );
            assert_eq!(
                is(found, &format!("bind {port}")),
                bind.contains(&port),
                "{port}: {found:#?}"
            );
        }
    }
    assert!(is(&agent, "password") && !is(&tool, "password"));
    for file in ["environ", "mem", "maps", "fd", "cwd"] {
        assert!(!is(&tool, &format!("proc {file}")), "{file}: {tool:#?}");
    }
    let isolation = isolation(&runner);
    assert_eq!(isolation.missing, []);
    assert_eq!(isolation.enforced.len(), 8);
}

#[test]
fn behind_the_proxies_nothing_else_is_reached() {
    if !runs_landlock() {
        return;
    }
    let runner = Runner::start();
    let room = Room::new(EgressMode::ProxyOnly);
    let (agent, tool) = found(&runner, &room);
    for (found, connect) in [
        (&agent, &["proxy", "egress", "opencode"][..]),
        (&tool, &["egress"]),
    ] {
        assert!(!is(found, "udp"), "{found:#?}");
        for port in PORTS {
            for way in WAYS {
                let may = way == "connect" && connect.contains(&port);
                assert_eq!(
                    is(found, &format!("{way} {port}")),
                    may,
                    "{way} {port}: {found:#?}"
                );
            }
        }
    }
    assert!(isolation(&runner).enforced.contains(&Measure::Egress));
}

#[test]
fn what_the_kernel_cannot_is_reported() {
    let runner = Runner::start();
    runner.launch(&program("/bin/sleep", &["3600"]));
    let isolation = isolation(&runner);
    let abi = runner::sys::landlock_abi();
    let missing: Vec<Measure> = isolation.missing.iter().map(|m| m.measure).collect();
    for (measure, needs) in [
        (Measure::Files, 1),
        (Measure::ToolPorts, 4),
        (Measure::Signals, 6),
        (Measure::SystemCalls, 0),
    ] {
        assert_eq!(missing.contains(&measure), abi < needs, "{isolation:?}");
    }
}

/// A runner without capabilities, as in a pod: with CAP_PERFMON the kernel lets root read the environment
/// of every process.
pub(crate) fn unprivileged() -> Runner {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all"]);
    command.arg(env!("CARGO_BIN_EXE_opencode-runner"));
    Runner::start_as(command, &[])
}

/// What the trial found, once it is over.
fn isolation(runner: &Runner) -> Isolation {
    let mut watch = runner.watch();
    std::iter::from_fn(|| watch.next())
        .find_map(|state| state.isolation)
        .expect("the runner lives")
}

#[test]
fn the_trial_holds_up_no_start_and_nothing_sweeps_it_away() {
    let room = tempfile::tempdir().unwrap();
    let shell = shell_that_waits(room.path());
    let runner = Runner::start_with(&[("SHELL", shell.to_str().unwrap())]);
    let start = Request::start(program("/bin/sleep", &["3600"]));
    // Answered, though the trial cannot end yet.
    let state = runner.state(&start);
    assert!(matches!(state.phase, Phase::Running { .. }), "{state:?}");
    assert_eq!(state.isolation, None);
    eventually("the trial to begin", || runner.path("w/trial").exists());
    let mut reaping = runner.connect();
    reaping.write_all(b"{\"op\":\"reap\"}\n").unwrap();
    // It waits: for longer than one takes that does not.
    let short = Duration::from_millis(300);
    reaping.set_read_timeout(Some(short)).unwrap();
    assert!(reaping.read(&mut [0]).is_err(), "it was answered");
    reaping.set_read_timeout(Some(PATIENCE)).unwrap();
    fs::write(runner.path("w/go"), "").unwrap();
    let found = isolation(&runner);
    let tried = |m: &Missing| !m.reason.contains("could not be tried");
    assert!(found.missing.iter().all(tried), "{found:?}");
    assert!(found.enforced.contains(&Measure::ToolEnvironment));
    let mut reaped = String::new();
    reaping.read_to_string(&mut reaped).unwrap();
    assert!(reaped.contains("reaped"), "{reaped}");
    // The next start knows it from before.
    fs::remove_file(runner.path("w/trial")).unwrap();
    runner.stop(0);
    assert_eq!(runner.state(&start).isolation, Some(found));
    assert!(!runner.path("w/trial").exists());
}

#[test]
fn a_stop_waits_for_no_trial_and_keeps_its_grace() {
    let room = tempfile::tempdir().unwrap();
    let shell = shell_that_waits(room.path());
    let runner = Runner::start_with(&[("SHELL", shell.to_str().unwrap())]);
    let ready = runner.path("w/ready");
    let late = "trap 'sleep 0.2; echo late > late; exit' TERM; echo ready > ready; while :; do sleep 0.01; done";
    runner.launch(&crate::harness::shell(late));
    eventually("the trap and the trial", || {
        ready.exists() && runner.path("w/trial").exists()
    });
    assert_eq!(runner.stop(60_000).phase, Phase::Stopped);
    assert!(runner.path("w/late").exists(), "it had its time");
    // Nothing was found out; the next start tries again.
    fs::write(runner.path("w/go"), "").unwrap();
    runner.launch(&program("/bin/sleep", &["3600"]));
    let found = isolation(&runner);
    assert!(found.enforced.contains(&Measure::ToolEnvironment));
}

/// A shell that says that it was called and goes on when the file `go` is there.
fn shell_that_waits(room: &Path) -> PathBuf {
    let file = room.join("shell");
    let text = ": > trial; until [ -e go ]; do sleep 0.02; done; exec /bin/sh \"$@\"";
    fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

/// What a script prints in the place of OpenCode, by the end of its last line.
fn says(runner: &Runner, script: &str) -> String {
    let launch: Launch = shell(&format!(
        "( {script} ) > said 2>&1; echo done >> said; exec sleep 3600"
    ));
    runner.state(&Request::Stop { grace_ms: 0 });
    let _ = fs::remove_file(runner.path("w/said"));
    runner.launch(&launch);
    let said = || fs::read_to_string(runner.path("w/said")).unwrap_or_default();
    eventually("the end of the script", || said().ends_with("done\n"));
    said().trim_end_matches("done\n").to_owned()
}

#[test]
fn the_shell_behaves_as_the_users_own() {
    let runner = Runner::start_with(&[("SHELL", "/bin/bash")]);
    for (script, wanted) in [
        (
            "\"$SHELL\" -c 'printf \"%s|\" \"$@\"' zero 'a b' '' '*'",
            "a b||*|",
        ),
        ("echo 'echo from stdin' | \"$SHELL\"", "from stdin\n"),
        ("\"$SHELL\" -c 'exit 42'; echo $?", "42\n"),
        (
            "\"$SHELL\" -c 'kill -TERM $$' 2>/dev/null; echo $?",
            "143\n",
        ),
        ("\"$SHELL\" -c 'echo $0'", "/bin/bash\n"),
        (
            "\"$SHELL\" -c 'echo $SHELL; command -v git'",
            "/bin/bash\n/usr/bin/git\n",
        ),
        (
            "\"$SHELL\" -c 'nonsense-command'; echo $?",
            "/bin/bash: line 1: nonsense-command: command not found\n127\n",
        ),
        (
            "\"$SHELL\" -c 'shopt -s expand_aliases; echo ${BASH_VERSION:+bash}'",
            "bash\n",
        ),
        // The same process: no other between it and who started it.
        (
            "sh -c 'echo $$; \"$SHELL\" -c \"echo \\$PPID\"; :' | uniq | wc -l",
            "1\n",
        ),
        (
            "cat \"$(dirname \"$SHELL\")/spec.json\" > /dev/null && ! touch \"$(dirname \"$SHELL\")/x\" 2>/dev/null && echo kept",
            "kept\n",
        ),
        // Git run by OpenCode itself: what its configuration runs has no network and no password.
        (
            "git init -q r && cd r && git config alias.x '!echo ${OPENCODE_SERVER_PASSWORD-none}; bash -c \"exec 3<>/dev/tcp/127.0.0.1/9\"' && OPENCODE_SERVER_PASSWORD=hush git x 2>&1 | grep -o 'none\\|Permission denied' | sort -u",
            "Permission denied\nnone\n",
        ),
    ] {
        assert_eq!(says(&runner, script), wanted, "{script}");
    }
}

#[test]
fn a_shell_that_is_absent_is_no_shell() {
    let runner = Runner::start_with(&[("PATH", "/nowhere"), ("SHELL", "")]);
    runner.launch(&program("/bin/sleep", &["3600"]));
    let isolation = isolation(&runner);
    assert!(
        isolation
            .missing
            .iter()
            .any(|m| m.measure == Measure::ToolPorts),
        "without a shell nothing was tried: {isolation:?}"
    );
}
