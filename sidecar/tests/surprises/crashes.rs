//! Processes that are killed at the worst moments.

use crate::{
    process,
    reader::{End, Reader, calls, speaks},
    stack::{Setup, Stack, run},
};
use contract::{
    EventBody,
    event::{OutputSource, TurnError},
    session::SessionState,
};
use rustix::process::Signal;
use std::time::Duration;

/// Outputs of the assistant so far.
fn words(reader: &Reader) -> usize {
    reader
        .bodies()
        .filter(|body| matches!(body, EventBody::Output(_)))
        .count()
}

/// Kills the sidecar while a turn is where `when` says, with a reader attached, and starts it again.
/// Whatever becomes of the turn, its reader has to get what OpenCode has stored.
async fn killed(stack: &Stack, prompt: &str, when: impl Fn(&Reader) -> bool) {
    let id = stack.begin(prompt).await;
    let (mut reader, mut watcher) = (Reader::default(), Reader::default());
    let crash = async {
        stack.read(&mut watcher, &id, when).await;
        stack.kill_sidecar();
        stack.start_sidecar();
    };
    tokio::join!(stack.read_turn(&mut reader, &id), crash);
    assert_eq!(
        reader.events[..watcher.events.len()],
        watcher.events,
        "two readers, two histories"
    );
    reader.check_calls();
    match reader.end() {
        End::Complete(_) => {}
        End::Failed(error) => assert!(!error.error.is_empty(), "{error:?}"),
        End::Cancelled => panic!("nobody cancelled it"),
    }
    let mut stored = stack.stored_texts(&id).await;
    stored.retain(|_, text| !text.is_empty());
    // A text that OpenCode gave up is empty in both.
    let mut said = reader.texts(OutputSource::Assistant);
    said.retain(|_, text| !text.is_empty());
    assert_eq!(said, stored, "{prompt}: {}", stack.logs());
    stack.play_on(&id, &mut reader, "SCENARIO:hello").await;
    assert_eq!(
        reader.complete().final_message,
        "Hello from the scripted model."
    );
}

#[test]
fn a_killed_sidecar_goes_on_where_it_was() {
    run(async {
        let stack = Stack::start(Setup::default()).await;
        let opencode = stack.opencode().await;
        // Before OpenCode has the prompt, or just after.
        killed(&stack, "SCENARIO:slow 30 20", |reader| {
            !reader.events.is_empty()
        })
        .await;
        killed(&stack, "SCENARIO:slow 100 20", speaks).await;
        killed(&stack, "SCENARIO:slow 200 20", |reader| words(reader) > 20).await;
        killed(&stack, "SCENARIO:bash-long 4", calls).await;
        let prompt = "SCENARIO:slow-tools 3";
        let in_second_call = |reader: &Reader| {
            reader
                .bodies()
                .filter(|body| matches!(body, EventBody::ToolCall(_)))
                .count()
                == 2
        };
        killed(&stack, prompt, in_second_call).await;
        stack.still_works().await;
        assert_eq!(stack.opencode().await, opencode, "never started anew");
    });
}

#[test]
fn a_sidecar_killed_right_after_its_answer_runs_the_prompt_once() {
    run(async {
        let stack = Stack::start(Setup::default()).await;
        let mut sessions = Vec::new();
        for delay in [0, 3, 10, 30] {
            let id = stack.begin("SCENARIO:say <<<only once>>>").await;
            tokio::time::sleep(Duration::from_millis(delay)).await;
            stack.kill_sidecar();
            stack.start_sidecar();
            stack.ready().await;
            sessions.push(id);
        }
        for id in sessions {
            let mut reader = Reader::default();
            stack.read_turn(&mut reader, &id).await;
            let oc = stack
                .client
                .session(&id)
                .await
                .unwrap()
                .opencode_session_id
                .unwrap();
            let messages = stack.ask_opencode(&format!("/session/{oc}/message")).await;
            let prompts = messages
                .as_array()
                .unwrap()
                .iter()
                .filter(|m| m["info"]["role"] == "user")
                .count();
            assert_eq!(prompts, 1, "{messages:#}");
            // Its model call may have been cut by the crash, never its prompt lost.
            assert!(
                matches!(reader.end(), End::Complete(_)),
                "{:#?}\n{}",
                reader.events,
                stack.logs()
            );
        }
        stack.still_works().await;
    });
}

#[test]
fn a_killed_opencode_ends_its_turn_and_remembers() {
    run(async {
        let stack = Stack::start(Setup::default()).await;
        let id = stack.begin("REMEMBER:walrus SCENARIO:slow 2000 20").await;
        let mut reader = Reader::default();
        stack
            .read(&mut reader, &id, |reader| words(reader) > 3)
            .await;
        let (before, first) = stack.process().await;
        process::kill(first);
        stack.read_turn(&mut reader, &id).await;
        let error = reader.failed(TurnError::AgentDied);
        assert!(error.fatal && error.error.contains("killed"), "{error:?}");
        stack.play_on(&id, &mut reader, "SCENARIO:recall").await;
        assert!(
            reader.complete().final_message.contains("walrus"),
            "{:?}",
            reader.complete()
        );
        let told = stack.client.session(&id).await.unwrap();
        assert_eq!(told.status, SessionState::Completed);
        let (after, second) = stack.process().await;
        assert!(after > before && second != first);

        // In a tool: what the tool started goes with it.
        let id = stack
            .begin("SCENARIO:bash <<<sleep 98761 & sleep 98762; echo never>>>")
            .await;
        let mut reader = Reader::default();
        stack
            .read(&mut reader, &id, |_| {
                !process::with_words("sleep 98762").is_empty()
            })
            .await;
        process::kill(stack.opencode().await);
        stack.read_turn(&mut reader, &id).await;
        reader.failed(TurnError::AgentDied);
        assert_eq!(process::with_words("sleep 9876"), [] as [u32; 0]);
        stack.play_on(&id, &mut reader, "SCENARIO:hello").await;
        reader.complete();
    });
}

#[test]
fn a_killed_runner_ends_its_turn_and_comes_back() {
    run(async {
        let stack = Stack::start(Setup::default()).await;
        let id = stack.begin("SCENARIO:slow 2000 20").await;
        let mut reader = Reader::default();
        stack.read(&mut reader, &id, speaks).await;
        let opencode = stack.opencode().await;
        stack.kill_runner();
        // As the end of a container's first process does.
        if process::lives(opencode) {
            process::kill(opencode);
        }
        stack.start_runner();
        stack.read_turn(&mut reader, &id).await;
        reader.failed(TurnError::AgentDied);
        stack.ready().await;
        stack.play_on(&id, &mut reader, "SCENARIO:hello").await;
        reader.complete();
    });
}

#[test]
fn sigterm_ends_turns_with_their_reason() {
    run(async {
        let stack = Stack::start(Setup::default()).await;
        let text = stack.begin("SCENARIO:slow 2000 20").await;
        let tool = stack.begin("SCENARIO:bash-sleep 98763").await;
        let (mut of_text, mut of_tool) = (Reader::default(), Reader::default());
        stack.read(&mut of_text, &text, speaks).await;
        stack.read(&mut of_tool, &tool, calls).await;
        process::signal(stack.sidecar_pid(), Signal::TERM);
        let status = stack.sidecar_ended(Duration::from_secs(20)).await;
        assert_eq!(status.code(), Some(0), "{}", stack.logs());
        assert_eq!(process::with_words("sleep 98763"), [] as [u32; 0]);
        stack.start_sidecar();
        stack.read_turn(&mut of_text, &text).await;
        of_text.failed(TurnError::ShuttingDown);
        stack.read_turn(&mut of_tool, &tool).await;
        of_tool.failed(TurnError::ShuttingDown);
        stack.play_on(&text, &mut of_text, "SCENARIO:hello").await;
        of_text.complete();
    });
}

/// As the kubelet ends a pod: first the agent's container, then the sidecar, who has nobody to abort any more.
#[test]
fn a_pod_that_stops_in_mid_turn_tells_its_readers_at_once() {
    run(async {
        let stack = Stack::start(Setup::default()).await;
        let id = stack.begin("SCENARIO:slow 2000 20").await;
        let mut reader = Reader::default();
        stack.read(&mut reader, &id, speaks).await;
        stack.end_runner();
        process::signal(stack.sidecar_pid(), Signal::TERM);
        // Less than an abort may take that nobody answers.
        let status = stack.sidecar_ended(Duration::from_secs(6)).await;
        assert_eq!(status.code(), Some(0), "{}", stack.logs());
        stack.start_runner();
        stack.start_sidecar();
        stack.read_turn(&mut reader, &id).await;
        reader.failed(TurnError::ShuttingDown);
        stack.play_on(&id, &mut reader, "SCENARIO:hello").await;
        reader.complete();
    });
}

/// Hangs in mid-turn while the pod is told to stop: the turn's end is recorded all the same.
#[test]
fn sigterm_does_not_wait_for_an_opencode_that_hangs() {
    run(async {
        let stack = Stack::start(Setup::default()).await;
        let id = stack.begin("SCENARIO:slow 2000 20").await;
        let mut reader = Reader::default();
        stack.read(&mut reader, &id, speaks).await;
        let hanging = stack.opencode().await;
        process::signal(hanging, Signal::STOP);
        process::signal(stack.sidecar_pid(), Signal::TERM);
        let status = stack.sidecar_ended(Duration::from_secs(25)).await;
        assert_eq!(status.code(), Some(0), "{}", stack.logs());
        if process::lives(hanging) {
            process::kill(hanging);
        }
        stack.start_sidecar();
        stack.read_turn(&mut reader, &id).await;
        reader.failed(TurnError::ShuttingDown);
        stack.play_on(&id, &mut reader, "SCENARIO:hello").await;
        reader.complete();
    });
}
