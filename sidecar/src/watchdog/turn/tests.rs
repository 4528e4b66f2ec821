use super::*;
use contract::event::{Output, Status, ToolCall};
use serde_json::json;

fn call(id: &str, tool: &str, command: &str) -> EventBody {
    EventBody::ToolCall(ToolCall {
        call_id: id.into(),
        tool: tool.into(),
        input: json!({"command": command}),
    })
}

fn result(id: &str, output: &str) -> EventBody {
    EventBody::ToolResult(ToolResult {
        call_id: id.into(),
        tool: "x".into(),
        ok: true,
        output: output.into(),
        title: None,
        exit_code: None,
        truncated: false,
        duration_ms: None,
    })
}

fn tree(pid: u32, command: &str, cpu_ms: u64, io_bytes: u64) -> ToolTree {
    ToolTree {
        pid,
        start: 7,
        command: command.into(),
        processes: 1,
        cpu_ms,
        io_bytes,
    }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn cause(watch: &TurnWatch, bounds: &Watchdog, now: Instant) -> Option<Cause> {
    watch.hangs(bounds, now).map(|finding| finding.cause)
}

#[test]
fn silence_counts_only_while_no_tool_runs_and_nobody_is_asked() {
    let (begin, bounds) = (Instant::now(), Watchdog::default());
    let mut watch = TurnWatch::new(begin);
    assert_eq!(cause(&watch, &bounds, begin + seconds(599)), None);
    assert_eq!(
        cause(&watch, &bounds, begin + seconds(600)),
        Some(Cause::Silent)
    );
    watch.heard(false, begin + seconds(500));
    assert_eq!(cause(&watch, &bounds, begin + seconds(1000)), None);
    watch.excused(begin + seconds(1000));
    assert_eq!(cause(&watch, &bounds, begin + seconds(1599)), None);
    watch.note("main", &call("c", "bash", "sleep 5"), begin + seconds(1599));
    assert_eq!(
        cause(&watch, &bounds, begin + seconds(9999)),
        None,
        "no figures, no finding"
    );
    // A sub-agent's call has no process; its own events are heard.
    let mut watch = TurnWatch::new(begin);
    watch.note("main", &call("t", "task", ""), begin);
    assert!(!watch.wants_tools(&bounds, begin + seconds(9999)));
    assert_eq!(
        cause(&watch, &bounds, begin + seconds(600)),
        Some(Cause::Silent)
    );
    let off = Watchdog {
        silence_seconds: 0,
        ..bounds
    };
    assert_eq!(cause(&watch, &off, begin + seconds(99_999)), None);
}

#[test]
fn a_tool_is_idle_when_it_neither_prints_nor_computes() {
    let bounds = Watchdog {
        tool_idle_seconds: 100,
        ..Watchdog::default()
    };
    let begin = Instant::now();
    let at = |n| begin + seconds(n);
    let mut watch = TurnWatch::new(begin);
    watch.note("main", &call("c", "bash", "cat fifo"), begin);
    assert!(!watch.wants_tools(&bounds, at(24)) && watch.wants_tools(&bounds, at(25)));
    let mine = |cpu, io| {
        [
            tree(5, "bash -c cat fifo", cpu, io),
            tree(6, "bash -c make", 0, 0),
        ]
    };
    watch.tools_used(Some(&mine(10, 1)), at(30));
    watch.tools_used(Some(&mine(20, 1)), at(100));
    assert_eq!(cause(&watch, &bounds, at(129)), None);
    // Another call's processes do not matter, 50 ms of CPU time do not either.
    watch.tools_used(
        Some(&[
            tree(5, "bash -c cat fifo", 60, 1),
            tree(6, "bash -c make", 9000, 9),
        ]),
        at(130),
    );
    assert_eq!(cause(&watch, &bounds, at(130)), Some(Cause::ToolStalled));
    // Figures that are not to be had are no proof.
    watch.tools_used(None, at(131));
    assert_eq!(cause(&watch, &bounds, at(500)), None);

    // Each sign of life begins anew: CPU time, bytes, other processes, output, an ask.
    let signs: [&dyn Fn(&mut TurnWatch); 5] = [
        &|watch| watch.tools_used(Some(&mine(1000, 1)), at(50)),
        &|watch| watch.tools_used(Some(&mine(10, 5000)), at(50)),
        &|watch| watch.tools_used(Some(&[tree(9, "cat fifo", 10, 1)]), at(50)),
        &|watch| {
            let output = Output {
                text: "x".into(),
                part_id: "c".into(),
                offset: 0,
                source: OutputSource::Tool,
                replace: false,
            };
            watch.note("main", &EventBody::Output(output), at(50));
        },
        &|watch| {
            watch.asks("c", at(50));
            watch.tools_used(Some(&mine(10, 1)), at(50));
        },
    ];
    for (n, sign) in signs.into_iter().enumerate() {
        let mut watch = TurnWatch::new(begin);
        watch.note("main", &call("c", "bash", "cat fifo"), begin);
        watch.tools_used(Some(&mine(10, 1)), begin);
        sign(&mut watch);
        assert_eq!(cause(&watch, &bounds, at(149)), None, "{n}");
        assert_eq!(
            cause(&watch, &bounds, at(150)),
            Some(Cause::ToolStalled),
            "{n}"
        );
    }
    watch.note("main", &result("c", ""), at(600));
    watch.heard(false, at(600));
    assert_eq!(cause(&watch, &bounds, at(601)), None);
}

#[test]
fn processes_of_nobody_in_particular_excuse_a_call() {
    let bounds = Watchdog {
        tool_idle_seconds: 10,
        ..Watchdog::default()
    };
    let begin = Instant::now();
    let mut watch = TurnWatch::new(begin);
    watch.note("main", &call("c", "grep", ""), begin);
    for n in 1..20 {
        let trees = [tree(4, "rg", 1000 * n, 0)];
        watch.tools_used(Some(&trees), begin + seconds(n));
    }
    assert_eq!(cause(&watch, &bounds, begin + seconds(20)), None);
    watch.tools_used(Some(&[]), begin + seconds(20));
    watch.tools_used(Some(&[]), begin + seconds(30));
    assert_eq!(
        cause(&watch, &bounds, begin + seconds(30)),
        Some(Cause::ToolStalled)
    );
}

#[test]
fn an_error_without_an_end_is_found_and_a_recovery_forgives() {
    let (begin, bounds) = (Instant::now(), Watchdog::default());
    let mut watch = TurnWatch::new(begin);
    watch.heard(true, begin);
    watch.heard(true, begin + seconds(50));
    assert_eq!(
        cause(&watch, &bounds, begin + seconds(60)),
        Some(Cause::NoEnd)
    );
    watch.heard(false, begin + seconds(61));
    assert_eq!(cause(&watch, &bounds, begin + seconds(600)), None);
}

#[test]
fn loops_are_steps_and_equal_calls_with_equal_results_in_a_row() {
    let bounds = Watchdog {
        max_steps: 3,
        same_call: 3,
        ..Watchdog::default()
    };
    let now = Instant::now();
    let mut watch = TurnWatch::new(now);
    let mut play = |id: &str, agent: &str, command: &str, output: &str| {
        watch.note(agent, &call(id, "bash", command), now);
        watch.note(agent, &result(id, output), now);
        watch.loops(&bounds).map(|finding| finding.cause)
    };
    assert_eq!(play("1", "main", "ls", "a"), None);
    assert_eq!(play("2", "main", "ls", "a"), None);
    assert_eq!(play("3", "main", "ls", "b"), None, "progress");
    assert_eq!(play("4", "main", "ls", "a"), None);
    assert_eq!(play("5", "main/1", "ls", "a"), None, "another agent");
    assert_eq!(play("6", "main", "ls", "a"), None);
    assert_eq!(play("7", "main", "ls", "a"), Some(Cause::SameCall));
    let mut watch = TurnWatch::new(now);
    for step in 1..=4 {
        assert_eq!(watch.loops(&bounds), None, "{step}");
        watch.note(
            "main",
            &EventBody::Status(Status::new(StatusKind::Step, "")),
            now,
        );
    }
    assert_eq!(watch.loops(&bounds).unwrap().cause, Cause::Steps);
    let off = Watchdog {
        max_steps: 0,
        same_call: 0,
        ..bounds
    };
    assert_eq!(watch.loops(&off), None);
}
