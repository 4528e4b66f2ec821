//! Nothing hides from the sweep, and nothing dead stays.

use crate::harness::{
    Runner, eventually, is_alive, kill, marker, processes, program, shell, sleepers, tool,
    tool_answer,
};
use contract::runner::{Failure, Reply, Request};
use rustix::process::Signal;
use std::io::{Read as _, Write as _};
use std::process::Command;

#[test]
fn reap_spares_opencode_and_finds_other_sessions_and_double_forks() {
    let runner = Runner::start();
    let mark = marker();
    let script = format!(
        "sleep {mark} & setsid sleep {mark} & (setsid sh -c '(sleep {mark} &) ; sleep {mark}' &); \
         (trap '' TERM INT HUP; sleep {mark}) & while :; do read x || sleep 0.01; done"
    );
    let pid = runner.launch(&shell(&script));
    eventually("the children", || sleepers(&mark) == 5);
    assert!(runner.reap() >= 5);
    assert_eq!(sleepers(&mark), 0);
    assert!(is_alive(pid));
    assert_eq!(runner.watch().next().unwrap().generation, 1);
    runner.no_zombies();
}

#[test]
fn orphans_that_end_by_themselves_are_collected() {
    let runner = Runner::start();
    let pid = runner.launch(&shell(
        "i=0; while [ $i -lt 200 ]; do (true &) ; i=$((i+1)); done; touch done; exec sleep 3600",
    ));
    eventually("the storm", || runner.path("w/done").exists());
    runner.alone_with(pid);
    assert!(is_alive(pid));
    assert_eq!(runner.reap(), 0);
}

#[test]
fn a_sweep_that_lacks_files_goes_on_once_it_has_them() {
    let runner = Runner::start();
    let marker = marker();
    runner.launch(&shell(&format!("setsid sleep {marker} & exec sleep 3600")));
    eventually("the tool", || sleepers(&marker) == 1);
    let pid = runner.child.id().to_string();
    let limit = |files: &str| {
        let limit = format!("--nofile={files}:");
        let done = Command::new("prlimit")
            .args(["--pid", &pid, &limit])
            .status();
        assert!(done.unwrap().success());
    };
    let mut stream = runner.connect();
    // Accepted, as an answer to what came before shows.
    stream.write_all(b"{\"op\":").unwrap();
    runner.ask(&Request::Probe);
    limit("3");
    stream.write_all(b"\"reap\"}\n").unwrap();
    eventually("the sweep", || {
        runner.log().contains("a sweep waits for files")
    });
    assert_eq!(sleepers(&marker), 1);
    limit("1024");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(
        serde_json::from_str::<Reply>(&answer).unwrap(),
        Reply::Reaped { killed: 1 }
    );
    assert_eq!(sleepers(&marker), 0);
}

#[test]
fn stop_kills_every_session() {
    let runner = Runner::start();
    let mark = marker();
    let script = format!("setsid sleep {mark} & (setsid setsid sleep {mark} &); exec sleep {mark}");
    runner.launch(&shell(&script));
    eventually("the children", || sleepers(&mark) == 3);
    runner.stop(1000);
    assert_eq!(sleepers(&mark), 0);
    runner.no_zombies();
}

#[test]
fn a_stopped_process_is_stopped_too() {
    let runner = Runner::start();
    let mark = marker();
    let pid = runner.launch(&shell(&format!("sleep {mark} & exec sleep {mark}")));
    eventually("the children", || sleepers(&mark) == 2);
    let child = processes().iter().find(|p| p.parent == pid).unwrap().pid;
    kill(child, Signal::STOP);
    kill(pid, Signal::STOP);
    runner.stop(200);
    assert_eq!(sleepers(&mark), 0);
}

/// A bomb whose size is bounded by a counter in the file system, so that a runner that loses does not
/// take the machine along: each process forks two, in new sessions, and ends.
#[test]
fn a_fork_storm_does_not_win() {
    let runner = Runner::start();
    let mark = marker();
    // Renewing: each generation forks the next and ends, so pids change all the time, 8 wide.
    let storm = format!(
        "cat > storm.sh <<'X'\n\
         n=$1\n\
         if [ $n -gt 2000 ]; then exec sleep {mark}; fi\n\
         setsid sh ./storm.sh $((n+1)) &\n\
         X\n\
         for i in 1 2 3 4 5 6 7 8; do setsid sh ./storm.sh 1 & done\n\
         touch up; while :; do sleep {mark}; done"
    );
    let pid = runner.launch(&shell(&storm));
    eventually("the storm", || runner.path("w/up").exists());
    assert!(runner.reap() > 0);
    assert!(is_alive(pid));
    let left = || {
        processes()
            .iter()
            .filter(|p| {
                p.pid != pid
                    && std::fs::read(format!("/proc/{}/cmdline", p.pid))
                        .is_ok_and(|c| c.windows(8).any(|w| w == b"storm.sh"))
                    && std::fs::read_link(format!("/proc/{}/cwd", p.pid))
                        .is_ok_and(|cwd| cwd == runner.path("w"))
            })
            .count()
    };
    assert_eq!(left(), 0);
    runner.stop(100);
    assert_eq!(sleepers(&mark), 0);
    runner.no_zombies();
}

#[test]
fn leftovers_of_one_process_never_meet_the_next() {
    let runner = Runner::start();
    let mark = marker();
    for _ in 0..10 {
        let pid = runner.launch(&shell(&format!("setsid sleep {mark} & exec sleep {mark}")));
        eventually("the children", || sleepers(&mark) == 2);
        kill(pid, Signal::KILL);
        // At once, while the death is being handled.
        let next = runner.launch(&program("/bin/sleep", &["3599"]));
        assert_eq!(sleepers(&mark), 0);
        assert!(is_alive(next));
        assert_eq!(runner.reap(), 0);
    }
}

/// As in the container: pid 1, where exec'd processes of outside have no parent in the namespace.
#[test]
fn as_pid_1_it_reaps_and_ends_on_term() {
    let mut command = Command::new("unshare");
    command.args([
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    if !command_works(&command) {
        assert!(
            std::env::var_os("RUNNER_TEST_NAMESPACES").is_none(),
            "RUNNER_TEST_NAMESPACES is set, but user namespaces do not work"
        );
        eprintln!("not tested: user namespaces do not work here");
        return;
    }
    command.arg(env!("CARGO_BIN_EXE_opencode-runner"));
    let mut runner = Runner::start_as(command, &[("RUNNER_GRACE_MS", "300")]);
    let init = eventually_child(runner.child.id().cast_signed());
    let mark = marker();
    let script =
        format!("setsid sleep {mark} & (setsid sleep {mark} &); while :; do sleep {mark}; done");
    assert_ne!(runner.launch(&shell(&script)), 1);
    eventually("the children", || sleepers(&mark) == 3);
    // The shell may start another in the very tick that the sweep began.
    assert!(runner.reap() >= 3);
    eventually("OpenCode goes on", || sleepers(&mark) == 1);
    // Its own processes may not command it: the agent's tools are refused.
    runner.launch(&tool(&runner));
    eventually("the answer", || tool_answer(&runner).is_some());
    assert_eq!(tool_answer(&runner), Some(Failure::Denied));

    kill(init, Signal::TERM);
    let status = runner
        .end(std::time::Duration::from_secs(10))
        .expect("it ends");
    assert_eq!(status.code(), Some(0));
    assert_eq!(sleepers(&mark), 0);
}

fn command_works(command: &Command) -> bool {
    Command::new(command.get_program())
        .args(command.get_args())
        .arg("true")
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn eventually_child(parent: i32) -> i32 {
    let child = || {
        processes()
            .iter()
            .find(|p| p.parent == parent)
            .map(|p| p.pid)
    };
    eventually("the runner", || child().is_some());
    child().unwrap()
}
