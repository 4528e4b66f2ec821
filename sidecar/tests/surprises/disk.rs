//! Volumes that are full: a small one is mounted for each test, which needs root.

use crate::{
    reader::{End, Reader, speaks},
    stack::{Setup, Stack, run},
};
use contract::{ErrorCode, client::ClientError, event::TurnError};
use serde_json::json;
use std::{fs, time::Duration};
use tokio::time::{Instant, timeout};

fn on(name: &'static str, size: &'static str) -> Setup {
    Setup {
        volumes: vec![(name, size)],
        ..Setup::default()
    }
}

/// Repeats until a session is taken again.
async fn recovers(stack: &Stack) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let id = stack.id();
        match stack.create(&id, "SCENARIO:hello").await {
            Ok(_) => {
                let mut reader = Reader::default();
                stack.read_turn(&mut reader, &id).await;
                if matches!(reader.end(), End::Complete(_)) {
                    return;
                }
            }
            Err(ClientError::Api { status: 503, .. }) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(
            Instant::now() < deadline,
            "it does not recover\n{}",
            stack.logs()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[test]
fn a_full_journal_ends_turns_and_recovers_with_space() {
    run(async {
        let setup = on("journal", "16m").config(json!({
            "limits": {"maxConcurrentSessions": 10, "turnTimeoutSeconds": 600},
            "checkpoints": {},
        }));
        let stack = Stack::start(setup).await;
        let file = stack.dir.join("workspace/a.txt");
        let now = || fs::read_to_string(&file).unwrap();
        stack.play("SCENARIO:write a.txt <<<one\n>>>").await;
        stack.play("SCENARIO:write a.txt <<<two\n>>>").await;
        let id = stack.begin("SCENARIO:slow 4000 20").await;
        let mut reader = Reader::default();
        stack.read(&mut reader, &id, speaks).await;
        stack.fill_volume("journal");
        stack.read_turn(&mut reader, &id).await;
        reader.failed(TurnError::DiskFull);
        // Nothing new is taken, nothing is half taken, and nothing waits for ever.
        for _ in 0..3 {
            let refused = stack.create(&stack.id(), "SCENARIO:hello").await;
            match refused {
                Err(ClientError::Api { status: 503, body }) => {
                    assert_eq!(body.details.code, ErrorCode::JournalUnavailable, "{body:?}");
                }
                other => panic!("{other:?}"),
            }
        }
        // No restore without a checkpoint of what is there now.
        match stack.client.restore("c1").await {
            Err(ClientError::Api { body, .. }) => {
                assert_eq!(body.details.code, ErrorCode::JournalUnavailable, "{body:?}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(now(), "two\n");
        let ready = stack.http.get(stack.url("/ready")).send().await.unwrap();
        assert_eq!(ready.status(), 503);
        assert!(ready.text().await.unwrap().contains("journal"));
        let cancelled = timeout(Duration::from_secs(15), stack.client.cancel(&id)).await;
        assert!(cancelled.is_ok_and(|answer| answer.is_ok()));

        stack.free_volume("journal");
        recovers(&stack).await;
        assert_eq!(now(), "two\n");
        stack.client.restore("c1").await.unwrap();
        assert_eq!(now(), "one\n");
        stack.play_on(&id, &mut reader, "SCENARIO:hello").await;
        reader.complete();
        // Nobody runs a turn now, so all places are free.
        let running = stack.client.sessions().await.unwrap().sessions;
        let running: Vec<_> = running
            .iter()
            .filter(|session| session.status.is_active())
            .collect();
        assert!(running.is_empty(), "{running:?}");
        stack.kill_sidecar();
        stack.start_sidecar();
        stack.ready().await;
        stack.play_on(&id, &mut reader, "SCENARIO:hello").await;
        reader.complete();
    });
}

#[test]
fn a_full_home_ends_turns_and_recovers_with_space() {
    run(async {
        let stack = Stack::start(on("home", "64m")).await;
        stack.still_works().await;
        stack.fill_volume("home");
        let began = Instant::now();
        let (id, mut reader) = stack.play("SCENARIO:hello").await;
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{:?}",
            began.elapsed()
        );
        match reader.end() {
            End::Failed(error) => {
                let codes = [
                    TurnError::DiskFull,
                    TurnError::AgentError,
                    TurnError::AgentDied,
                ];
                assert!(codes.contains(&error.code), "{error:?}");
            }
            other => panic!("{other:?}"),
        }
        stack.free_volume("home");
        recovers(&stack).await;
        stack.play_on(&id, &mut reader, "SCENARIO:hello").await;
        reader.complete();
    });
}

#[test]
fn a_home_that_fills_in_mid_command_does_not_hang_the_turn() {
    run(async {
        let setup = on("home", "64m").env("SESSION_TIMEOUT", "60");
        let stack = Stack::start(setup.config(serde_json::json!({
            "limits": {"maxConcurrentSessions": 5, "turnTimeoutSeconds": 40},
        })))
        .await;
        stack.still_works().await;
        let id = stack.begin("SCENARIO:bash-chatty").await;
        let mut reader = Reader::default();
        stack.read(&mut reader, &id, crate::reader::calls).await;
        stack.fill_volume("home");
        // Some way or other it ends; here after its own limit at the latest.
        stack.read_turn(&mut reader, &id).await;
        stack.free_volume("home");
        recovers(&stack).await;
    });
}

#[test]
fn a_full_workspace_is_the_tools_trouble() {
    run(async {
        let stack = Stack::start(on("workspace", "8m").config(serde_json::json!({}))).await;
        stack.still_works().await;
        stack.fill_volume("workspace");
        let (id, mut reader) = stack.play("SCENARIO:write new.txt <<<some text>>>").await;
        reader.complete();
        reader.check_calls();
        stack.free_volume("workspace");
        stack
            .play_on(&id, &mut reader, "SCENARIO:write new.txt <<<some text>>>")
            .await;
        reader.complete();
        let text = std::fs::read_to_string(stack.dir.join("workspace/new.txt")).unwrap();
        assert_eq!(text, "some text");
    });
}
