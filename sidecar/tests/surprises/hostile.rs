//! An OpenCode that lies, floods and never ends; see `double.rs`.

use crate::{
    double, process,
    reader::{End, Reader},
    stack::{Setup, Stack, run},
};
use contract::event::TurnError;
use serde_json::json;
use std::time::{Duration, Instant};

async fn ends(stack: &Stack, prompt: &str, within: u64) -> Reader {
    let began = Instant::now();
    let (_, reader) = stack.play(prompt).await;
    assert!(
        began.elapsed() < Duration::from_secs(within),
        "{prompt}: {:?}",
        began.elapsed()
    );
    let (_, peak) = process::memory(stack.sidecar_pid());
    assert!(peak < 200, "{prompt}: {peak} MiB");
    reader
}

async fn answers(stack: &Stack, prompt: &str, text: &str) -> Reader {
    let reader = ends(stack, prompt, 60).await;
    assert_eq!(reader.complete().final_message, text, "{prompt}");
    reader
}

#[test]
fn an_opencode_that_lies_ends_turns_and_harms_nobody() {
    run(async {
        let setup = Setup::default().config(json!({
            "limits": {"maxConcurrentSessions": 5, "turnTimeoutSeconds": 30},
        }));
        let stack = double::stack(setup).await;
        answers(&stack, "hello", "hello").await;

        let reader = ends(&stack, "error, never idle", 20).await;
        let error = reader.failed(TurnError::AgentError);
        assert!(error.error.contains("Agent not found"), "{error:?}");
        ends(&stack, "silence", 30)
            .await
            .failed(TurnError::AgentError);

        let reader = answers(&stack, "lies", "after the lies").await;
        let all = format!("{:?}", reader.events);
        assert!(!all.contains("STOLEN"), "{all}");
        assert!(all.len() < 200_000, "{} bytes of lies", all.len());
        answers(&stack, "flood", "after the flood").await;
        // One that says that it is idle while it floods may be given up, or not.
        ends(&stack, "flood, idle", 60).await.end();
        answers(&stack, "endless line", "after the endless line").await;
        answers(&stack, "hello again", "hello again").await;

        // Idle, and its messages are never to be had: given up at the turn's own limit at the latest.
        let reader = ends(&stack, "endless messages", 90).await;
        assert!(matches!(reader.end(), End::Failed(_)), "{:?}", reader.end());
        answers(&stack, "still here", "still here").await;

        let reader = ends(&stack, "error, busy for ever", 90).await;
        assert!(matches!(reader.end(), End::Failed(_)), "{:?}", reader.end());
        stack.ready().await;
        answers(&stack, "and here", "and here").await;
    });
}
