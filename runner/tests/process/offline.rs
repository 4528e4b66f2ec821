//! `git` as OpenCode runs it: by the host beside OpenCode, in a domain of few rules.

mod hostile;

use crate::harness::{Runner, eventually, is_alive, kill, marker, processes, shell, sleepers};
use crate::isolation::unprivileged;
use contract::runner::{Phase, Reply, Request};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A `git` whose alias runs a script: what a workspace's configuration could make it run.
fn git(script: &str) -> String {
    format!("git -c alias.x='!{script}' x")
}

/// Who is the parent of the `git` that runs this: the second word of its command line, `-c` for a shell.
const PARENT: &str = "while read name pid; do case $name in PPid:) tr \"\\0\" \"\\n\" < /proc/$pid/cmdline | sed -n 2p; esac; done < /proc/$PPID/status";
const HOST: &str = "offline\n";
/// Writes that of the script itself to a file.
const PARENT_OF_SCRIPT: &str =
    "tr '\\0' '\\n' < /proc/$PPID/cmdline | sed -n 2p > parent.part; mv parent.part parent";

/// Pid of the host, which is a child of the runner and not OpenCode.
fn host(runner: &Runner) -> Option<i32> {
    let own = runner.child.id().cast_signed();
    let is_host = |pid: i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).nth(1) == Some(b"offline")
    };
    let mut all = processes().into_iter();
    all.find(|p| p.parent == own && p.state != 'Z' && is_host(p.pid))
        .map(|p| p.pid)
}

/// What a script prints in the place of OpenCode. No shell is between them: only OpenCode's own children
/// are answered.
fn says(runner: &Runner, script: &str) -> String {
    says_with(runner, script, &[])
}

fn says_with(runner: &Runner, script: &str, env: &[(&str, &str)]) -> String {
    let part = runner.path("w/said.part");
    let mut launch = shell(&format!(
        "{{ {script}\n}} > {part} 2>&1; echo done >> {part}; exec sleep 3600",
        part = part.display()
    ));
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    launch.env = env.iter().map(own).collect();
    let _ = fs::remove_file(&part);
    runner.launch(&launch);
    let text = || fs::read_to_string(&part).unwrap_or_default();
    let ended = std::panic::catch_unwind(|| {
        eventually("the script's end", || text().ends_with("done\n"));
    });
    assert!(ended.is_ok(), "so far it said: {}", text());
    let text = text();
    text.strip_suffix("done\n").unwrap_or(&text).to_owned()
}

/// The same; the script waits until there is a host.
fn hosted(runner: &Runner, script: &str) -> String {
    let wait = format!("until {} | grep -qx offline; do :; done", git(PARENT));
    says(runner, &format!("{wait}\n{script}"))
}

#[test]
fn it_behaves_as_if_it_were_run_directly() {
    let runner = Runner::start();
    for (script, wanted) in [
        (git("exit 42") + "; echo $?", "42\n".to_owned()),
        (
            // Killed, not ended with a number: the shell says so.
            git("kill -KILL $PPID; sleep 60") + "; echo $?",
            "Killed\n137\n".to_owned(),
        ),
        (
            "mkdir 'a b' && cd 'a b' && echo in | X=out ".to_owned() + &git("cat; echo $X >&2"),
            "in\nout\n".to_owned(),
        ),
        (
            "cd 'a b' && ".to_owned() + &git("pwd -P | grep -o '/w/.*'") + "; cd ..",
            "/w/a b\n".to_owned(),
        ),
        (
            "OPENCODE_SERVER_PASSWORD=hush ".to_owned()
                + &git("echo ${OPENCODE_SERVER_PASSWORD-none}"),
            "none\n".to_owned(),
        ),
        (
            // More than a socket takes at once, and odd words.
            "git -c alias.x='!f() { echo $# \"$1\" ${#2} ${#3}; }; f' x '*' $(printf %0100000d 0) $(printf %0100000d 0)"
                .to_owned(),
            "3 * 100000 100000\n".to_owned(),
        ),
        (
            // More than a request may be: the slow way.
            "git -c alias.x='!f() { echo ${#1} ${#2} ${#3}; }; f' x $(printf %0100000d 0) $(printf %0100000d 0) $(printf %0100000d 0)"
                .to_owned(),
            "100000 100000 100000\n".to_owned(),
        ),
        (
            "git rev-parse --git-dir 2>/dev/null; echo $?".to_owned(),
            "128\n".to_owned(),
        ),
        (
            git("yes") + " | head -n 1",
            "y\n".to_owned(),
        ),
    ] {
        assert_eq!(hosted(&runner, &script), wanted, "{script}");
    }
}

#[test]
fn signals_to_end_reach_it() {
    // Whoever runs the tests in the background may have let them ignore some, and ignored ones stay so.
    let mut command = Command::new("env");
    command.args(["--default-signal", env!("CARGO_BIN_EXE_opencode-runner")]);
    let runner = Runner::start_as(command, &[]);
    let bin = runner.path("bin");
    fs::create_dir(&bin).unwrap();
    // It says who runs it, and answers signals.
    let script = format!(
        "#!/bin/sh\ntrap 'echo INT; exit 2' INT\ntrap 'echo HUP; exit 1' HUP\ntrap 'echo QUIT; exit 3' QUIT\n{PARENT_OF_SCRIPT}\nwhile :; do sleep 0.05; done\n"
    );
    fs::write(bin.join("git"), script).unwrap();
    fs::set_permissions(bin.join("git"), Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", bin.display());
    // In the foreground: a shell lets what it puts in the background ignore INT and QUIT.
    let wait = "until grep -qx offline parent; do rm -f parent; git & until [ -e parent ]; do sleep 0.02; done; kill -TERM $!; wait $!; echo $?; done";
    let killer = |name| {
        format!(
            "rm parent; (until [ -s parent ]; do sleep 0.02; done; pkill -{name} -P $$ git) & git; echo $?"
        )
    };
    let script = format!(
        "touch parent; {wait}\n{}\n{}\n{}",
        killer("INT"),
        killer("HUP"),
        killer("QUIT")
    );
    let said = says_with(&runner, &script, &[("PATH", &path)]);
    let lines: Vec<_> = said.lines().collect();
    assert!(lines.contains(&"143"), "{said}");
    assert!(said.ends_with("INT\n2\nHUP\n1\nQUIT\n3\n"), "{said}");
}

#[test]
fn it_may_do_less_than_a_tool() {
    let runner = unprivileged();
    let pid = runner.child.id();
    let folder = runner.path("s").display().to_string();
    let outside = tempfile::tempdir().unwrap();
    for attempt in [
        &format!("echo x > {}/x", outside.path().display()),
        &format!("echo x > {folder}/x"),
        &format!("kill -0 {pid}"),
        "kill -0 $AGENT",
        "cat /proc/$AGENT/environ",
        &format!("cat /proc/{pid}/environ"),
        "bash -c \"exec 3<>/dev/tcp/127.0.0.1/9\" 2>&1 | grep -q refused",
    ] {
        let script = format!(
            "export AGENT=$$; {}",
            git(&format!(
                "( {attempt} ) >/dev/null 2>&1 && echo through || echo stopped"
            ))
        );
        assert_eq!(hosted(&runner, &script), "stopped\n", "{attempt}");
        // Outside of the domain it goes through.
        let control = Command::new("sh")
            .args(["-c", attempt])
            .env("AGENT", pid.to_string())
            .stdout(Stdio::null())
            .status();
        assert!(control.unwrap().success(), "{attempt}");
    }
    // The host is not theirs to lead, end or hold up, and each git has a domain of its own.
    let host = "HOST=$(cut -d \" \" -f 4 /proc/$PPID/stat)";
    let script = git(&format!("{host}; echo $HOST"));
    let said = hosted(&runner, &script);
    assert_eq!(said.trim().parse().ok(), self::host(&runner));
    for attempt in [
        "cat /proc/$HOST/environ",
        "kill -0 $HOST",
        "prlimit --core=0:0 --pid $HOST",
    ] {
        let script = git(&format!(
            "( {host}; {attempt} ) >/dev/null 2>&1 && echo through || echo stopped"
        ));
        assert_eq!(hosted(&runner, &script), "stopped\n", "{attempt}");
    }
    let other = format!(
        "rm -f one; {} & until [ -s one ]; do sleep 0.02; done; {}",
        git("echo $$ > one; exec sleep 3600"),
        git("( kill -0 $(cat one) ) 2>/dev/null && echo through || echo stopped")
    );
    assert_eq!(hosted(&runner, &other), "stopped\n");
    // What it is for still works.
    let works = "git init -q r && cd r && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x && git log --format=%s";
    assert_eq!(hosted(&runner, works), "x\n");
}

#[test]
fn only_children_of_opencode_are_answered() {
    let runner = Runner::start();
    let parent = git(PARENT);
    let said = hosted(
        &runner,
        &format!("{parent}; sh -c \"$(cat <<'X'\n{parent}; :\nX\n)\""),
    );
    let (own, below) = said.split_once('\n').unwrap();
    assert_eq!((own, below), ("offline", "-c\n"));
}

#[test]
fn who_is_killed_takes_it_along() {
    let runner = Runner::start();
    let marker = marker();
    let wait = git(&format!(": > began; exec sleep {marker}"));
    let script =
        format!("{wait} & until [ -e began ]; do sleep 0.02; done; kill -9 $!; wait; echo killed");
    assert_eq!(hosted(&runner, &script), "killed\n");
    eventually("the end of what it had begun", || sleepers(&marker) == 0);
}

#[test]
fn a_sweep_ends_it_though_opencode_goes_on_asking() {
    let runner = Runner::start();
    let marker = marker();
    let wait = git(&format!(": > began; exec sleep {marker}"));
    let script = format!(
        "until {} | grep -qx offline; do :; done; {wait}; while :; do {}; done",
        git(PARENT),
        git("echo again >> again")
    );
    let opencode = runner.launch(&shell(&script));
    eventually("the first", || runner.path("w/began").exists());
    let before = host(&runner);
    let began = Instant::now();
    assert!(runner.reap() > 0);
    assert!(began.elapsed() < Duration::from_secs(5), "its limit is 10");
    assert_eq!(sleepers(&marker), 0);
    assert!(is_alive(opencode));
    let _ = fs::remove_file(runner.path("w/again"));
    eventually("the next", || runner.path("w/again").exists());
    eventually("another", || {
        host(&runner).is_some_and(|pid| Some(pid) != before)
    });
    // It is no tool that was killed.
    runner.launch(&shell("exec sleep 3600"));
    eventually("a host", || host(&runner).is_some());
    assert_eq!(runner.reap(), 0);
    eventually("a host", || host(&runner).is_some());
    runner.stop(0);
    assert_eq!(host(&runner), None);
    assert!(!runner.path("s/offline.sock").exists());
}

#[test]
fn a_host_that_dies_is_begun_again() {
    let runner = Runner::start();
    assert_eq!(hosted(&runner, &git(PARENT)), HOST);
    let first = host(&runner).unwrap();
    kill(first, rustix::process::Signal::KILL);
    eventually("another", || host(&runner).is_some_and(|pid| pid != first));
    assert!(runner.log().contains("nobody runs them beside OpenCode"));
}

#[test]
fn a_host_that_does_not_answer_costs_half_a_second_and_nothing_else() {
    let runner = Runner::start();
    assert_eq!(hosted(&runner, &git(PARENT)), HOST);
    // Nothing of it lies in a queue: whoever waits for the end of its output has that.
    let ready = "while [ ! -e go ]; do sleep 0.02; done";
    let part = runner.path("w/said.part");
    let _ = fs::remove_file(&part);
    runner.launch(&shell(&format!(
        "{ready}; echo $(git --version | wc -l) > said.part; exec sleep 3600"
    )));
    eventually("a host", || host(&runner).is_some());
    kill(host(&runner).unwrap(), rustix::process::Signal::STOP);
    let began = Instant::now();
    fs::write(runner.path("w/go"), "").unwrap();
    eventually("the output's end", || {
        fs::read_to_string(&part).is_ok_and(|text| text == "1\n")
    });
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    // A sweep ends it, stopped as it is.
    let before = host(&runner);
    runner.reap();
    eventually("another", || {
        host(&runner).is_some_and(|pid| Some(pid) != before)
    });
}

#[test]
fn a_signal_ends_it_also_on_the_slow_way() {
    let runner = Runner::start();
    let slow = git("exec sleep 3600");
    // Not OpenCode's own child, so nobody runs it beside.
    let script = format!(
        "sh -c \"$(cat <<'X'\nfor wait in 00 01 02 04 06 08 10 15 20 30 40 60; do {slow} & sleep 0.0$wait; kill -TERM $!; wait $!; echo $?; done\nX\n)\" 2>/dev/null"
    );
    let said = hosted(&runner, &script);
    assert_eq!(said, "143\n".repeat(12), "{said}");
}

#[test]
fn it_is_no_tool_and_what_it_runs_is() {
    let runner = Runner::start();
    let script = git(": > began; exec sleep 600");
    runner.launch(&shell(&format!(
        "until {} | grep -qx offline; do :; done; {script}",
        git(PARENT)
    )));
    eventually("the sleep", || runner.path("w/began").exists());
    let Reply::Tools { trees } = runner.ask(&Request::Tools) else {
        panic!()
    };
    let mut commands: Vec<_> = trees.iter().map(|tree| tree.command.as_str()).collect();
    // The trial of the isolation may be under way.
    commands.retain(|command| !command.contains(" rehearse"));
    assert!(
        commands.iter().all(|c| !c.contains(" offline ")),
        "{commands:?}"
    );
    assert_eq!(
        commands.len(),
        2,
        "who waits, and what it waits for: {commands:?}"
    );
}

#[test]
fn more_than_there_are_places_for_run_all_the_same() {
    let runner = Runner::start();
    let one = git("sleep 0.5; echo ok >> said.all");
    let script = format!(
        "n=0; while [ $n -lt 40 ]; do {one} & n=$((n + 1)); done; wait; sort said.all | uniq -c | tr -s ' '"
    );
    assert_eq!(hosted(&runner, &script), " 40 ok\n");
}

#[test]
fn without_isolation_there_is_none() {
    let runner = Runner::start_with(&[("RUNNER_ISOLATION", "off")]);
    let said = says(&runner, &git(PARENT));
    assert_ne!(said, HOST);
    assert!(matches!(
        runner.state(&Request::Stop { grace_ms: 0 }).phase,
        Phase::Stopped
    ));
}
