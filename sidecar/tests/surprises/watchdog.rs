//! What hangs, loops or grows: each watch with its own bound, against the real OpenCode.

use crate::{
    double, process,
    reader::{End, Reader, calls, speaks},
    stack::{LONG, Setup, Stack, run},
};
use contract::{
    EventBody,
    event::{OutputSource, StatusKind, TurnError},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{fs, time::Duration};
use tokio::time::Instant;

/// A pod with these bounds of the watchdog; the others are far away.
fn config(watchdog: Value) -> Value {
    json!({"limits": {"maxConcurrentSessions": 10, "turnTimeoutSeconds": 600, "watchdog": watchdog}})
}

async fn stack(watchdog: Value) -> Stack {
    Stack::start(Setup::default().config(config(watchdog))).await
}

/// What the watchdog told readers: cause and step.
fn seen(reader: &Reader) -> Vec<(String, String)> {
    let told = reader.statuses(StatusKind::Watchdog);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    told.iter()
        .map(|status| {
            let detail = status.detail.as_ref().unwrap();
            (text(&detail["cause"]), text(&detail["step"]))
        })
        .collect()
}

async fn counted(stack: &Stack, metric: &str) -> f64 {
    let metrics = stack.metrics().await;
    metrics
        .get(&format!("opencode_sidecar_{metric}"))
        .copied()
        .unwrap_or_default()
}

/// Findings with this cause since the sidecar began.
async fn found(stack: &Stack, cause: &str) -> f64 {
    counted(
        stack,
        &format!("watchdog_findings_total{{cause=\"{cause}\"}}"),
    )
    .await
}

/// Plays a prompt that must end with this code because of this cause, counted; then the session goes on.
async fn stopped(stack: &Stack, prompt: &str, cause: &str, code: TurnError) -> Reader {
    let before = found(stack, cause).await;
    let (id, mut reader) = stack.play(prompt).await;
    reader.failed(code);
    assert_eq!(
        seen(&reader),
        [(cause.to_owned(), "abort".to_owned())],
        "{prompt}"
    );
    assert_eq!(found(stack, cause).await, before + 1.0, "{cause}");
    stack.play_on(&id, &mut reader, "SCENARIO:hello").await;
    reader.complete();
    reader
}

#[test]
fn a_tool_that_waits_for_ever_is_stopped_and_one_that_works_is_not() {
    run(async {
        let stack = stack(json!({"toolIdleSeconds": 4})).await;
        let pid = stack.opencode().await;
        stopped(
            &stack,
            "SCENARIO:bash <<<mkfifo f; cat f # 98781>>>",
            "tool_stalled",
            TurnError::ToolStalled,
        )
        .await;
        assert_eq!(process::with_words("98781"), [] as [u32; 0]);
        assert_eq!(stack.opencode().await, pid, "an abort is enough");
        // Silent, and at work three times as long.
        let work = "end=$(( $(date +%s) + 12 )); while [ $(date +%s) -lt $end ]; do :; done";
        let (_, reader) = stack.play(&format!("SCENARIO:bash <<<{work}>>>")).await;
        reader.complete();
        assert_eq!(seen(&reader), []);
        // It sleeps, but says something from time to time.
        let (_, reader) = stack.play("SCENARIO:bash-long 8").await;
        reader.complete();
        assert_eq!(seen(&reader), []);
    });
}

#[test]
fn silence_of_a_working_opencode_is_bounded() {
    run(async {
        let setup = Setup::default()
            .config(config(json!({"silenceSeconds": 4})))
            .env("MODEL_HEADER_TIMEOUT", 300)
            .env("MODEL_CHUNK_TIMEOUT", 300);
        let stack = Stack::start(setup).await;
        stopped(&stack, "SCENARIO:hang", "silent", TurnError::AgentSilent).await;
        stopped(&stack, "SCENARIO:hangmid", "silent", TurnError::AgentSilent).await;
        // Waiting to ask the provider again is no silence.
        let id = stack.begin("SCENARIO:err429long").await;
        let mut reader = Reader::default();
        stack
            .read(&mut reader, &id, |reader| {
                !reader.statuses(StatusKind::Retrying).is_empty()
            })
            .await;
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert_eq!(reader.ends(), 0);
        assert!(stack.client.session(&id).await.unwrap().status.is_active());
        stack.client.cancel(&id).await.unwrap();
    });
}

#[test]
fn loops_are_stopped() {
    run(async {
        let stack = stack(json!({"maxSteps": 6, "sameCall": 4})).await;
        let reader = stopped(&stack, "SCENARIO:doom", "same_call", TurnError::Loop).await;
        let called = reader
            .bodies()
            .filter(|body| matches!(body, EventBody::ToolCall(_)));
        assert!((4..8).contains(&called.count()));
        stopped(&stack, "SCENARIO:loop 200", "steps", TurnError::Loop).await;
        // OpenCode asks again after an answer that does not say why it stops.
        let no_reason =
            "SCENARIO:script <<<- {repeat: 90, finish: none, parts: [{say: No reason}]}>>>";
        let garbled = TurnError::ProviderGarbled;
        stopped(&stack, no_reason, "garbled", garbled).await;
    });
}

#[test]
fn an_opencode_that_does_not_answer_is_restarted_and_remembers() {
    run(async {
        let stack = stack(json!({"unresponsiveSeconds": 6})).await;
        let id = stack.begin("REMEMBER:narwhal SCENARIO:slow 2000 20").await;
        let other = stack.begin("SCENARIO:bash-sleep 98782").await;
        let (mut reader, mut of_other) = (Reader::default(), Reader::default());
        stack.read(&mut reader, &id, speaks).await;
        stack.read(&mut of_other, &other, calls).await;
        let stalled = stack.opencode().await;
        process::signal(stalled, Signal::STOP);
        for (id, reader) in [(&id, &mut reader), (&other, &mut of_other)] {
            stack.read_turn(reader, id).await;
            reader.failed(TurnError::AgentUnresponsive);
            let watched = ("unresponsive".to_owned(), "watch".to_owned());
            assert_eq!(seen(reader), [watched]);
        }
        // One hanging process is one finding, however many turns it hangs up.
        assert_eq!(found(&stack, "unresponsive").await, 1.0);
        assert!(!process::lives(stalled));
        assert_eq!(process::with_words("sleep 98782"), [] as [u32; 0]);
        stack.play_on(&id, &mut reader, "SCENARIO:recall").await;
        assert!(reader.complete().final_message.contains("narwhal"));
        assert!(counted(&stack, "watchdog_restarts_total").await >= 1.0);
    });
}

/// The known weakness of old: with another turn under way nobody dared to restart it.
#[test]
fn cancelling_a_turn_of_a_hanging_opencode_ends_it_though_another_turn_runs() {
    run(async {
        let stack = stack(json!({"unresponsiveSeconds": 0})).await;
        let id = stack.begin("SCENARIO:bash-sleep 98783").await;
        let other = stack.begin("SCENARIO:slow 2000 20").await;
        let (mut reader, mut of_other) = (Reader::default(), Reader::default());
        stack.read(&mut reader, &id, calls).await;
        stack.read(&mut of_other, &other, speaks).await;
        let hanging = stack.opencode().await;
        process::signal(hanging, Signal::STOP);
        let began = Instant::now();
        stack.client.cancel(&id).await.unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(40),
            "{:?}",
            began.elapsed()
        );
        assert!(!process::lives(hanging));
        assert_eq!(process::with_words("sleep 98783"), [] as [u32; 0]);
        stack.read_turn(&mut reader, &id).await;
        assert!(matches!(reader.end(), End::Cancelled));
        assert_eq!(reader.statuses(StatusKind::AgentRestarted).len(), 1);
        stack.read_turn(&mut of_other, &other).await;
        let error = of_other.failed(TurnError::AgentDied);
        assert!(error.error.contains("did not come to rest"), "{error:?}");
        stack.play_on(&other, &mut of_other, "SCENARIO:hello").await;
        of_other.complete();
    });
}

/// A double: the real one does this when its disk is full, not at will.
#[test]
fn an_error_without_an_end_is_ended_with_that_error() {
    run(async {
        let bounds = config(json!({"afterErrorSeconds": 3}));
        let stack = double::stack(Setup::default().config(bounds)).await;
        let (_, reader) = stack.play("error, busy for ever").await;
        let End::Failed(error) = reader.end() else {
            panic!("{:?}", reader.events)
        };
        assert!(
            error.error.contains("Failed to execute statement"),
            "{error:?}"
        );
        assert!(error.error.contains("afterError"), "{error:?}");
        assert_eq!(seen(&reader), [("no_end".to_owned(), "abort".to_owned())]);
        assert_eq!(found(&stack, "no_end").await, 1.0);
        // It did not obey the abort either.
        assert_eq!(reader.statuses(StatusKind::AgentRestarted).len(), 1);
        stack.ready().await;
    });
}

/// A double: the real one is kept from it (`cancel::a_turn_that_is_cancelled_as_it_begins_…`).
#[test]
fn an_opencode_that_can_run_no_turn_any_more_is_restarted() {
    run(async {
        let stack = double::stack(Setup::default()).await;
        let (first, _) = stack.process().await;
        let (_, reader) = stack.play("error, spoilt").await;
        let error = reader.failed(TurnError::AgentError);
        assert!(error.error.contains("fibers"), "{error:?}");
        let told = reader.statuses(StatusKind::AgentRestarted);
        let told = told[0].progress.as_deref().unwrap();
        assert!(told.contains("can run no turn any more"), "{told}");
        stack.ready().await;
        assert_eq!(stack.process().await.0, first + 1);
        let (_, reader) = stack.play("hello").await;
        assert_eq!(reader.complete().final_message, "hello");
    });
}

#[test]
fn much_memory_warns_turns_and_recycles_opencode_once_it_is_idle() {
    run(async {
        let bounds = config(json!({"memoryPercent": 80}));
        let stack = Stack::start(Setup::default().config(bounds)).await;
        let cgroup = stack.dir.join("cgroup");
        fs::create_dir(&cgroup).unwrap();
        fs::write(cgroup.join("memory.max"), "1000").unwrap();
        let memory = |bytes: u64| {
            fs::write(cgroup.join("memory.current"), bytes.to_string()).unwrap();
        };
        memory(100);
        let (id, mut reader) = stack.play("REMEMBER:ibex SCENARIO:hello").await;
        reader.complete();
        let first = stack.opencode().await;
        // A turn that runs is told and left alone.
        stack.turn(&id, "SCENARIO:slow 900 20").await;
        memory(900);
        let told = |reader: &Reader| !reader.statuses(StatusKind::Watchdog).is_empty();
        stack.read(&mut reader, &id, told).await;
        assert_eq!(seen(&reader), [("memory".to_owned(), "watch".to_owned())]);
        assert_eq!(found(&stack, "memory").await, 1.0);
        assert_eq!(stack.opencode().await, first);
        stack.read_turn(&mut reader, &id).await;
        reader.complete();
        let metric = "opencode_recycles_total{why=\"memory\"}";
        let deadline = Instant::now() + Duration::from_secs(60);
        while counted(&stack, "opencode_away_seconds_count").await < 1.0 {
            assert!(
                Instant::now() < deadline,
                "never recycled\n{}",
                stack.logs()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(counted(&stack, metric).await, 1.0);
        let away = counted(&stack, "opencode_away_seconds_sum").await;
        println!("away for {away} s");
        assert!(away < 60.0);
        assert!(!process::lives(first));
        stack.play_on(&id, &mut reader, "SCENARIO:recall").await;
        assert!(reader.complete().final_message.contains("ibex"));
        // The fuse: it did not help, so it is not done again.
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert_eq!(counted(&stack, metric).await, 1.0);
    });
}

/// In the cluster the shortest age is a minute; a pod's configuration is not so bounded.
#[test]
fn an_old_opencode_is_recycled_once_it_is_idle_and_remembers() {
    run(async {
        let age = Duration::from_secs(4);
        let bounds = config(json!({"recycleAfterSeconds": age.as_secs()}));
        let stack = Stack::start(Setup::default().config(bounds)).await;
        let metric = "opencode_recycles_total{why=\"age\"}";
        let id = stack.begin("REMEMBER:ibex SCENARIO:hello").await;
        let mut reader = Reader::default();
        stack.read_turn(&mut reader, &id).await;
        reader.complete();

        // A turn that runs is left alone, though OpenCode comes of age meanwhile.
        stack.turn(&id, "SCENARIO:slow 300 20").await;
        let spoke = |reader: &Reader| reader.ends() == 1 && speaks_in(reader, 2);
        stack.read(&mut reader, &id, spoke).await;
        let (old, began) = (stack.process().await, Instant::now());
        let recycled = counted(&stack, metric).await;
        stack.read_turn(&mut reader, &id).await;
        reader.complete();
        assert!(began.elapsed() > age, "{:?}", began.elapsed());

        let deadline = Instant::now() + LONG;
        while counted(&stack, metric).await == recycled {
            assert!(Instant::now() < deadline, "too old\n{}", stack.logs());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Meanwhile: OpenCode is stopped and needs seconds to be back.
        stack.turn(&id, "SCENARIO:recall").await;
        let away = counted(&stack, "opencode_away_seconds_count").await;
        assert_eq!(away, recycled, "it was back before the turn came");
        stack.read_turn(&mut reader, &id).await;
        assert!(reader.complete().final_message.contains("ibex"));
        assert_eq!(seen(&reader), [], "age is no finding");
        assert!(reader.statuses(StatusKind::AgentRestarted).is_empty());
        assert!(!process::lives(old.1));
        let (starts, pid) = stack.process().await;
        assert!(starts > old.0 && pid != old.1, "{starts} starts, {old:?}");
        for other in ["memory", "configuration"] {
            let metric = format!("opencode_recycles_total{{why=\"{other}\"}}");
            assert_eq!(counted(&stack, &metric).await, 0.0, "{metric}");
        }
        assert_eq!(counted(&stack, "watchdog_restarts_total").await, 0.0);
    });
}

/// Whether the assistant said something in this turn.
fn speaks_in(reader: &Reader, turn: u32) -> bool {
    reader.events.iter().any(|event| {
        event.turn == turn && matches!(&event.body, EventBody::Output(output) if output.source == OutputSource::Assistant)
    })
}
