//! What tools and models say, however they say it.

use crate::{
    approvals::{answer, approvals, ask},
    reader::Reader,
    stack::{LONG, Setup, Stack, TOKEN, run, shared},
};
use contract::{
    EventBody,
    approval::Decision,
    event::{OutputSource, ToolResult},
    session::Diff,
};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

fn results(reader: &Reader) -> Vec<&ToolResult> {
    reader
        .bodies()
        .filter_map(|body| match body {
            EventBody::ToolResult(result) => Some(result),
            _ => None,
        })
        .collect()
}

#[test]
fn a_commands_output_comes_while_it_runs_and_is_whole() {
    run(async {
        let stack = shared().await;
        let (_, reader) = stack.play("SCENARIO:bash-chatty").await;
        reader.complete();
        reader.check_calls();
        let pieces = reader
            .bodies()
            .filter(|body| matches!(body, EventBody::Output(o) if o.source == OutputSource::Tool));
        assert!(pieces.count() > 5, "not while it runs");
        let texts = reader.texts(OutputSource::Tool);
        let said: String = texts.values().cloned().collect();
        let wanted: String = (1..=400)
            .map(|n| format!("line {n} {:0100}\n", 0))
            .collect();
        assert_eq!(said, wanted);
    });
}

#[test]
fn what_breaks_naive_readers_comes_through_unchanged() {
    run(async {
        let stack = shared().await;
        let (id, reader) = stack.play("SCENARIO:unicode").await;
        reader.complete();
        let texts = reader.texts(OutputSource::Assistant);
        assert_eq!(texts, stack.stored_texts(&id).await);
        let text: String = texts.into_values().collect();
        for piece in [
            "👩‍👩‍👧‍👦",
            "עברית",
            "CR\u{85}NEL\u{2028}LS",
            "\u{1b}[31m",
            "\nevent: end",
        ] {
            assert!(text.contains(piece), "{piece:?} in {text:?}");
        }
    });
}

#[test]
fn what_a_turn_changed_is_told_as_names_and_as_a_patch() {
    run(async {
        // Nobody else changes this workspace. A tool of the container's own list asks, too.
        let config = json!({
            "limits": {"maxConcurrentSessions": 1, "turnTimeoutSeconds": 600},
            "tools": [{"name": "bash", "action": "ask"}],
        });
        let stack = Stack::start(Setup::default().config(config)).await;
        let id = stack
            .begin("SCENARIO:bash <<<echo walrus >changed.txt>>>")
            .await;
        let mut reader = Reader::default();
        let asked = ask(&stack, &mut reader, &id).await;
        assert!(!stack.dir.join("workspace/changed.txt").exists());
        assert_eq!(approvals(&reader)[0].permission, "bash");
        answer(&stack, &id, &asked, Decision::Once, None).await;
        stack.read_turn(&mut reader, &id).await;
        assert_eq!(reader.complete().files_modified, ["changed.txt"]);
        // OpenCode computes the difference a moment after the turn's end.
        let url = stack.url(&format!("/sessions/{id}/diff"));
        let deadline = Instant::now() + LONG;
        let file = loop {
            let answer = stack.http.get(&url).bearer_auth(TOKEN).send().await;
            let diff: Diff = answer.unwrap().json().await.unwrap();
            assert!(diff.files.len() <= 1, "{diff:?}");
            if let [file] = diff.files.as_slice() {
                break file.clone();
            }
            assert!(Instant::now() < deadline, "{diff:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!((&*file.path, &*file.status), ("changed.txt", "added"));
        assert!(file.patch.contains("+walrus"), "{file:?}");
    });
}

#[test]
fn a_sub_agents_work_is_told_as_its_own() {
    run(async {
        let stack = shared().await;
        let (_, reader) = stack.play("SCENARIO:sub-agent").await;
        assert_eq!(
            reader.complete().final_message,
            "The sub-agent has finished."
        );
        assert_eq!(reader.complete().files_modified, ["sub.txt"]);
        let of = |name: &str, agent: &str| {
            reader
                .events
                .iter()
                .any(|event| event.body.name() == name && event.agent == agent)
        };
        for name in ["tool_call", "tool_result", "output"] {
            assert!(of(name, "main/1"), "{name}: {:#?}", reader.events);
        }
        assert!(
            reader
                .events
                .iter()
                .all(|event| ["main", "main/1"].contains(&event.agent.as_str()))
        );
        reader.check_calls();
    });
}

#[test]
fn calls_that_make_no_sense_are_results_and_the_turn_goes_on() {
    run(async {
        let stack = shared().await;
        for scenario in ["unknown-tool", "bad-args", "wrong-args"] {
            let (_, reader) = stack.play(&format!("SCENARIO:{scenario}")).await;
            assert!(
                reader.complete().final_message.starts_with("I recovered"),
                "{scenario}"
            );
            assert_eq!(
                results(&reader).iter().filter(|result| !result.ok).count(),
                1,
                "{scenario}: {:#?}",
                reader.events
            );
            reader.check_calls();
        }
        let (_, reader) = stack.play("SCENARIO:bash-fail").await;
        assert_eq!(results(&reader)[0].exit_code, Some(3));
    });
}

#[test]
fn much_text_comes_whole() {
    run(async {
        let stack = shared().await;
        for prompt in [
            "SCENARIO:flood 20000",
            "SCENARIO:long-line 200000",
            "SCENARIO:long 20000",
        ] {
            let (id, reader) = stack.play(prompt).await;
            reader.complete();
            assert_eq!(
                reader.texts(OutputSource::Assistant),
                stack.stored_texts(&id).await,
                "{prompt}"
            );
        }
    });
}
