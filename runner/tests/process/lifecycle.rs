//! Start, stop, watch, exits, what cannot run.

use crate::harness::{
    PATIENCE, Runner, eventually, is_alive, kill, marker, program, shell, sleepers,
};
use contract::runner::{Failure, Phase, Reply, Request};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn a_process_starts_runs_and_stops() {
    let runner = Runner::start();
    let mut watch = runner.watch();
    let first = watch.next().unwrap();
    assert_eq!((first.generation, first.phase), (0, Phase::Stopped));
    let pid = runner.launch(&program("/bin/sleep", &[&marker()]));
    let running = watch.next().unwrap();
    assert_eq!(
        (running.generation, running.phase),
        (1, Phase::Running { pid: pid as u32 })
    );
    assert_eq!(running.runner_id, first.runner_id);
    let tried = watch.next().unwrap();
    assert_eq!(tried.phase, Phase::Running { pid: pid as u32 });
    assert!(running.isolation.is_none() && tried.isolation.is_some());
    assert_eq!(runner.stop(5000).phase, Phase::Stopped);
    assert_eq!(watch.next().unwrap().phase, Phase::Stopped);
    assert!(!is_alive(pid));
    runner.no_zombies();
}

#[test]
fn an_exit_is_told_with_its_code_and_the_end_of_stderr() {
    let runner = Runner::start();
    let mut watch = runner.watch();
    watch.next();
    let script = "i=0; while [ $i -lt 2000 ]; do echo line $i >&2; i=$((i+1)); done; exit 7";
    runner.launch(&shell(script));
    assert!(matches!(watch.next().unwrap().phase, Phase::Running { .. }));
    let Phase::Exited {
        code,
        signal,
        stderr,
    } = watch.next().unwrap().phase
    else {
        panic!()
    };
    assert_eq!((code, signal), (Some(7), None));
    assert!(stderr.ends_with("line 1999\n"), "{stderr}");
    assert_eq!(stderr.len(), 4096);
    // The state stays for who asks later, until somebody stops it.
    assert!(matches!(
        runner.watch().next().unwrap().phase,
        Phase::Exited { code: Some(7), .. }
    ));
    assert_eq!(runner.stop(0).phase, Phase::Stopped);
}

#[test]
fn a_kill_is_told_at_once_although_a_child_holds_the_pipes() {
    let runner = Runner::start();
    let mut watch = runner.watch();
    watch.next();
    let mark = marker();
    let pid = runner.launch(&shell(&format!(
        "setsid sleep {mark} & echo up >&2; exec sleep {mark}"
    )));
    watch.next();
    eventually("the children", || sleepers(&mark) == 2);
    let killed = Instant::now();
    kill(pid, Signal::KILL);
    let Phase::Exited {
        code,
        signal,
        stderr,
    } = watch.next().unwrap().phase
    else {
        panic!()
    };
    assert!(killed.elapsed() < Duration::from_secs(2));
    assert_eq!((code, signal, stderr.as_str()), (None, Some(9), "up\n"));
    eventually("the end of what was left", || sleepers(&mark) == 0);
    runner.no_zombies();
    // Nothing restarts it.
    let state = runner.watch().next().unwrap();
    assert!(matches!(state.phase, Phase::Exited { .. }));
    assert_eq!(state.generation, 1);
}

#[test]
fn equal_launches_are_one_process_and_another_replaces_it() {
    let runner = Runner::start();
    let (one, two) = (marker(), marker());
    let launch = program("/bin/sleep", &[&one]);
    let pid = runner.launch(&launch);
    assert_eq!(runner.launch(&launch), pid);
    assert_eq!(runner.watch().next().unwrap().generation, 1);
    let other = runner.launch(&program("/bin/sleep", &[&two]));
    assert_ne!(other, pid);
    assert_eq!((sleepers(&one), sleepers(&two)), (0, 1));
    assert_eq!(runner.watch().next().unwrap().generation, 2);
    // An equal launch after an end is a new start.
    kill(other, Signal::KILL);
    let mut watch = runner.watch();
    while !matches!(watch.next().unwrap().phase, Phase::Exited { .. }) {}
    assert_ne!(runner.launch(&program("/bin/sleep", &[&two])), other);
    assert_eq!(watch.next().unwrap().generation, 3);
}

#[test]
fn a_start_anew_replaces_an_equal_one_once_all_is_ready() {
    let runner = Runner::start();
    let mark = marker();
    let launch = shell(&format!("setsid sleep {mark} & exec sleep {mark}"));
    let pid = runner.launch(&launch);
    eventually("the children", || sleepers(&mark) == 2);
    let anew = |launch| runner.ask(&Request::Start { launch, anew: true });
    // A file of HOME that cannot be written: nothing is stopped for a start that cannot be.
    fs::create_dir_all(runner.path("h")).unwrap();
    fs::write(runner.path("h/file"), "").unwrap();
    let mut hindered = launch.clone();
    hindered
        .home_files
        .insert("file/x".to_owned(), String::new());
    assert!(matches!(anew(hindered), Reply::Failed { .. }));
    assert_eq!((runner.launch(&launch), sleepers(&mark)), (pid, 2));
    let Reply::State(state) = anew(launch.clone()) else {
        panic!("not started\n{}", runner.log())
    };
    let Phase::Running { pid: next } = state.phase else {
        panic!("{state:?}")
    };
    assert_eq!((state.generation, is_alive(pid)), (2, false));
    assert_ne!(next.cast_signed(), pid);
    eventually("only the children of the next", || sleepers(&mark) == 2);
    assert_eq!(runner.launch(&launch), next.cast_signed());
    // Without one that runs it is a start as any.
    runner.stop(0);
    assert!(matches!(anew(launch), Reply::State(state) if state.generation == 3));
}

#[test]
fn nothing_is_started_anew_once_the_runner_is_to_stop() {
    let mut runner = Runner::start_with(&[("RUNNER_GRACE_MS", "600000")]);
    let launch = shell("trap 'touch asked' TERM; touch up; while :; do sleep 0.1; done");
    runner.launch(&launch);
    eventually("the trap", || runner.path("w/up").exists());
    let start = Request::Start { launch, anew: true };
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| runner.ask(&start));
        // The one before does not go; meanwhile the runner is told to.
        eventually("the stop", || runner.path("w/asked").exists());
        runner.signal(Signal::TERM);
        eventually("the end", || runner.log().contains("\"stopping\""));
        runner.signal(Signal::TERM);
        let answer = asked.join().unwrap();
        assert!(matches!(answer, Reply::Failed { .. }), "{answer:?}");
    });
    assert_eq!(runner.log().matches("\"OpenCode started\"").count(), 1);
    assert!(runner.end(PATIENCE).is_some());
}

#[test]
fn starts_at_once_make_one_process() {
    let runner = Runner::start();
    let mark = marker();
    let launch = program("/bin/sleep", &[&mark]);
    std::thread::scope(|scope| {
        let starts: Vec<_> = (0..16)
            .map(|_| scope.spawn(|| runner.launch(&launch)))
            .collect();
        let pids: Vec<_> = starts
            .into_iter()
            .map(|start| start.join().unwrap())
            .collect();
        assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    });
    assert_eq!(sleepers(&mark), 1);
}

#[test]
fn who_ignores_term_is_killed_after_the_grace_and_a_second_stop_hurries() {
    let runner = Runner::start();
    let mark = marker();
    let stubborn = shell(&format!(
        "trap '' TERM; echo ready > ready; while :; do sleep {mark}; done"
    ));
    let ready = runner.path("w/ready");
    let pid = runner.launch(&stubborn);
    eventually("the trap", || ready.exists());
    let begun = Instant::now();
    assert_eq!(runner.stop(700).phase, Phase::Stopped);
    assert!(begun.elapsed() >= Duration::from_millis(700) && begun.elapsed() < PATIENCE / 2);
    assert!(!is_alive(pid) && sleepers(&mark) == 0);

    fs::remove_file(&ready).unwrap();
    runner.launch(&stubborn);
    eventually("the trap", || ready.exists());
    std::thread::scope(|scope| {
        let patient = scope.spawn(|| runner.stop(u64::MAX));
        // Either order ends both: the later one only brings the kill nearer.
        assert_eq!(runner.stop(10).phase, Phase::Stopped);
        assert_eq!(patient.join().unwrap().phase, Phase::Stopped);
    });

    // A hurry is for one stop.
    runner.stop(0);
    fs::remove_file(&ready).unwrap();
    runner.launch(&shell(
        "trap 'sleep 0.2; echo late > late; exit' TERM; echo ready > ready; while :; do sleep 0.01; done",
    ));
    eventually("the trap", || ready.exists());
    assert_eq!(runner.stop(60_000).phase, Phase::Stopped);
    assert!(runner.path("w/late").exists(), "it had its time");
    runner.no_zombies();
}

#[test]
fn the_environment_and_folders_are_those_promised() {
    let runner = Runner::start_with(&[
        ("GIVEN", "by the user"),
        ("RUNNER_GRACE_MS", "100"),
        ("E", ""),
    ]);
    let mut launch =
        shell("env > env; pwd > pwd; cat \"$HOME/.config/a/b\" > file; exec sleep 3600");
    launch
        .env
        .insert("ADDED".to_owned(), "by the launch".to_owned());
    launch
        .home_files
        .insert(".config/a/b".to_owned(), "content".to_owned());
    runner.launch(&launch);
    let file = |name: &str| fs::read_to_string(runner.path("w").join(name)).unwrap_or_default();
    eventually("the file", || file("file") == "content");
    let env = file("env");
    for line in ["GIVEN=by the user", "ADDED=by the launch", "E="] {
        assert!(env.lines().any(|l| l == line), "{line} in {env}");
    }
    assert!(!env.contains("RUNNER_"), "{env}");
    assert!(runner.path("t").is_dir(), "TMPDIR is made");
    assert_eq!(file("pwd").trim(), runner.path("w").to_str().unwrap());
    let limits = fs::read_to_string(format!("/proc/{}/limits", runner.child.id())).unwrap();
    let core = limits
        .lines()
        .find(|l| l.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"));
}

#[test]
fn the_workspace_becomes_a_repository_once() {
    let runner = Runner::start();
    let mut launch = program("/bin/sleep", &[&marker()]);
    launch.git_init = true;
    runner.launch(&launch);
    let git = runner.path("w/.git");
    assert!(git.join("HEAD").is_file());
    assert!(!git.join("hooks").exists(), "no templates");
    // One that is there stays as it is, even a broken one.
    runner.stop(1000);
    fs::remove_dir_all(&git).unwrap();
    fs::write(&git, "gitdir: /nowhere").unwrap();
    runner.launch(&launch);
    assert_eq!(fs::read_to_string(&git).unwrap(), "gitdir: /nowhere");
}

#[test]
fn without_git_it_starts_all_the_same() {
    let runner = Runner::start_with(&[("PATH", "/nowhere")]);
    let mut launch = program("/bin/sleep", &[&marker()]);
    launch.git_init = true;
    runner.launch(&launch);
    assert!(runner.log().contains("no git in PATH"));
}

#[test]
fn home_files_never_leave_home() {
    let runner = Runner::start();
    for path in ["../x", "/etc/x", "a/../../x", "", "a//b"] {
        let mut launch = shell("exec sleep 3600");
        launch.home_files.insert(path.to_owned(), "x".to_owned());
        let Reply::Failed { code, .. } = runner.ask(&Request::start(launch)) else {
            panic!("{path}")
        };
        assert_eq!(code, Failure::BadRequest, "{path}");
    }
    fs::create_dir_all(runner.path("h")).unwrap();
    std::os::unix::fs::symlink(runner.dir.path(), runner.path("h/link")).unwrap();
    let mut launch = shell("exec sleep 3600");
    launch
        .home_files
        .insert("link/planted".to_owned(), "x".to_owned());
    assert!(matches!(
        runner.ask(&Request::start(launch)),
        Reply::Failed { .. }
    ));
    assert!(!runner.path("planted").exists());
    assert_eq!(runner.watch().next().unwrap().generation, 0);
}

#[test]
fn what_the_image_cannot_run_is_unsupported_and_the_runner_stays() {
    let runner = Runner::start();
    let file = |name: &str, bytes: &[u8]| {
        let path = runner.path(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    // A real dynamic program whose loader has another name.
    let mut elf = fs::read("/bin/sleep").unwrap();
    let loader = b"/lib64/ld-linux-x86-64.so.2";
    let at = elf
        .windows(loader.len())
        .position(|w| w == loader)
        .expect("x86-64 with glibc");
    elf[at + 7..at + 9].copy_from_slice(b"XX");
    let cases = [
        (
            file("script", b"#!/no/such/interpreter\n"),
            "/no/such/interpreter",
        ),
        (file("elf", &elf), "glibc 2.17"),
        (file("nonsense", b"\x00\x01\x02"), "no program"),
        (runner.path("absent"), "No such file"),
    ];
    for (generation, (path, hint)) in (1..).zip(&cases) {
        let state = runner.state(&Request::start(program(path.to_str().unwrap(), &[])));
        assert_eq!(state.generation, generation);
        let Phase::Unsupported { message } = &state.phase else {
            panic!("{state:?}")
        };
        assert!(message.contains(hint), "{message}");
        let Reply::Probe(probe) = runner.ask(&Request::Probe) else {
            panic!()
        };
        assert_eq!(probe.unsupported.as_ref(), Some(message));
    }
    // A loader that is there but does not link.
    let complaint = "Error relocating x: __res_init: symbol not found";
    let mut watch = runner.watch();
    watch.next();
    runner.launch(&shell(&format!("echo '{complaint}' >&2; exit 127")));
    watch.next();
    let Phase::Unsupported { message } = watch.next().unwrap().phase else {
        panic!()
    };
    assert!(message.contains(complaint) && message.contains("glibc"));
    // And afterwards the right one.
    runner.launch(&program("/bin/sleep", &[&marker()]));
    runner.no_zombies();
}

#[test]
fn a_launch_that_exec_cannot_take_is_refused() {
    let runner = Runner::start();
    let launch = program("", &[]);
    assert!(matches!(
        runner.ask(&Request::start(launch)),
        Reply::Failed {
            code: Failure::BadRequest,
            ..
        }
    ));
    // Longer than one argument may be: exec fails, nothing else does.
    let launch = program("/bin/true", &[&"x".repeat(200 * 1024)]);
    let Phase::Exited {
        code: None,
        signal: None,
        stderr,
    } = runner.state(&Request::start(launch)).phase
    else {
        panic!()
    };
    assert!(stderr.contains("cannot start"), "{stderr}");
    runner.no_zombies();
}

#[test]
fn term_ends_all_in_time() {
    for stubborn in [false, true] {
        let mut runner = Runner::start_with(&[("RUNNER_GRACE_MS", "3000")]);
        let mark = marker();
        let trap = if stubborn { "trap '' TERM;" } else { "" };
        let script =
            format!("{trap} (setsid sleep {mark} &) ; touch up; while :; do sleep {mark}; done");
        runner.launch(&shell(&script));
        eventually("the start", || {
            runner.path("w/up").exists() && sleepers(&mark) == 2
        });
        let mut watch = runner.watch();
        watch.next();
        let begun = Instant::now();
        runner.signal(Signal::TERM);
        assert_eq!(watch.next().unwrap().phase, Phase::Stopped);
        assert_eq!(watch.next(), None);
        let status = runner
            .end(Duration::from_secs(15))
            .expect("the runner ends");
        assert_eq!(status.code(), Some(0));
        assert_eq!(begun.elapsed() >= Duration::from_secs(3), stubborn);
        assert_eq!(sleepers(&mark), 0);
        assert!(!runner.socket().exists());
    }
}

#[test]
fn a_second_signal_does_not_wait_for_the_grace() {
    let mut runner = Runner::start_with(&[("RUNNER_GRACE_MS", "600000")]);
    runner.launch(&shell(
        "trap '' TERM; touch up; while :; do sleep 3600; done",
    ));
    eventually("the trap", || runner.path("w/up").exists());
    runner.signal(Signal::TERM);
    eventually("the stop", || runner.log().contains("\"stopping\""));
    runner.signal(Signal::INT);
    assert_eq!(
        runner
            .end(Duration::from_secs(10))
            .expect("the runner ends")
            .code(),
        Some(0)
    );
}

#[test]
fn the_child_dies_with_a_runner_that_was_killed() {
    let mut runner = Runner::start();
    let pid = runner.launch(&program("/bin/sleep", &[&marker()]));
    runner.signal(Signal::KILL);
    runner.end(PATIENCE).unwrap();
    eventually("the death of the child", || !is_alive(pid));
    assert!(
        Path::new(&runner.socket()).exists(),
        "nobody could clean up"
    );
}
