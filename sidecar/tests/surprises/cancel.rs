//! DELETE at every moment of a turn.

use crate::{
    double, process,
    reader::{End, Reader, calls},
    stack::{LONG, Setup, Stack, TOKEN, run, shared},
};
use contract::{SessionId, event::StatusKind};
use rustix::process::Signal;
use serde_json::json;
use std::time::{Duration, Instant};

/// Cancels and checks that it did not take longer than promised.
async fn cancel(stack: &Stack, id: &SessionId) {
    let began = Instant::now();
    stack.client.cancel(id).await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(12),
        "{:?}\n{}",
        began.elapsed(),
        stack.logs()
    );
}

async fn is_cancelled(stack: &Stack, reader: &mut Reader, id: &SessionId) {
    stack.read(reader, id, |reader| reader.ends() > 0).await;
    assert!(
        matches!(reader.end(), End::Cancelled),
        "{:#?}",
        reader.events
    );
    let oc = stack
        .client
        .session(id)
        .await
        .unwrap()
        .opencode_session_id
        .unwrap();
    let path = format!(
        "/session/status?directory={}",
        stack.dir.join("workspace").display()
    );
    assert_eq!(
        stack.ask_opencode(&path).await.get(&oc),
        None,
        "OpenCode still works at it"
    );
}

#[test]
fn deleting_in_a_command_ends_its_children() {
    run(async {
        let stack = Stack::start(Setup::default()).await;
        let prompt = "SCENARIO:bash <<<sleep 98771 & setsid -f sleep 98772; nohup sleep 98773 >/dev/null & trap '' TERM INT HUP; sleep 98774; sleep 98775>>>";
        let id = stack.begin(prompt).await;
        let mut reader = Reader::default();
        stack.read(&mut reader, &id, calls).await;
        let deadline = Instant::now() + Duration::from_secs(30);
        while process::with_words("sleep 98774").len() < 2 {
            assert!(Instant::now() < deadline, "{:#?}", reader.events);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        cancel(&stack, &id).await;
        assert_eq!(
            process::with_words("sleep 9877"),
            [] as [u32; 0],
            "{}",
            stack.logs()
        );
        is_cancelled(&stack, &mut reader, &id).await;
        stack.play_on(&id, &mut reader, "SCENARIO:hello").await;
        reader.complete();
        // Twice, and with nothing to cancel.
        cancel(&stack, &id).await;
    });
}

#[test]
fn deleting_before_the_agent_is_there_runs_nothing() {
    run(async {
        let stack = Stack::start(Setup::default()).await;
        process::kill(stack.opencode().await);
        let id = stack.begin("SCENARIO:bash <<<touch never>>>").await;
        cancel(&stack, &id).await;
        stack.ready().await;
        let mut reader = Reader::default();
        is_cancelled(&stack, &mut reader, &id).await;
        stack.still_works().await;
        assert_eq!(stack.model_calls(&id).await, 0);
        assert!(!stack.dir.join("workspace/never").exists());
    });
}

#[test]
fn deleting_between_two_tries_stops_trying() {
    run(async {
        let stack = shared().await;
        let id = stack.begin("SCENARIO:err429long").await;
        let mut reader = Reader::default();
        stack
            .read(&mut reader, &id, |reader| {
                !reader.statuses(StatusKind::Retrying).is_empty()
            })
            .await;
        let retrying = reader.statuses(StatusKind::Retrying)[0];
        let wait = retrying
            .retry_at
            .unwrap()
            .duration_since(jiff::Timestamp::now());
        assert!(
            wait.as_secs() <= 61,
            "the provider's hour is obeyed: {retrying:?}"
        );
        cancel(stack, &id).await;
        is_cancelled(stack, &mut reader, &id).await;
        stack.play_on(&id, &mut reader, "SCENARIO:hello").await;
        reader.complete();
        // The call of that turn, and no other.
        assert_eq!(stack.model_calls(&id).await, 2);
    });
}

#[test]
fn deleting_at_any_instant_leaves_nothing_running() {
    run(async {
        let stack = shared().await;
        stack.still_works().await;
        for delay in [0, 2, 5, 10, 20, 40, 80, 160] {
            let id = stack.begin("SCENARIO:slow 2000 20").await;
            tokio::time::sleep(Duration::from_millis(delay)).await;
            cancel(stack, &id).await;
            let mut reader = Reader::default();
            is_cancelled(stack, &mut reader, &id).await;
            stack.play_on(&id, &mut reader, "SCENARIO:hello").await;
            assert_eq!(
                reader.complete().final_message,
                "Hello from the scripted model."
            );
        }
    });
}

/// A sub-agent that begins while its parent is stopped is stopped as well, at whatever instant.
#[test]
fn deleting_as_a_sub_agent_begins_stops_it_too() {
    run(async {
        let stack = Stack::start(Setup::default()).await;
        let status = format!(
            "/session/status?directory={}",
            stack.dir.join("workspace").display()
        );
        for after in [0, 10, 20, 40, 80] {
            let before = stack.model.requests().len();
            let prompt = "SCENARIO:sub-agent <<<SCENARIO:slow 3000 20>>>";
            let id = stack.begin(prompt).await;
            stack.model.wait_until(|calls| calls.len() > before).await;
            // The moment itself is what is tried: there is no condition to wait for.
            tokio::time::sleep(Duration::from_millis(after)).await;
            cancel(&stack, &id).await;
            // Long enough for one that was forgotten to begin.
            tokio::time::sleep(Duration::from_millis(500)).await;
            is_cancelled(&stack, &mut Reader::default(), &id).await;
            assert_eq!(stack.ask_opencode(&status).await, json!({}), "{after} ms");
        }
    });
}

/// An OpenCode that is stopped answers nothing: it is killed, and the next one works.
#[test]
fn an_opencode_that_hangs_is_cancelled_and_replaced() {
    run(async {
        let stack = Stack::start(Setup::default()).await;
        let id = stack.begin("SCENARIO:bash-sleep 98764").await;
        let mut reader = Reader::default();
        stack.read(&mut reader, &id, calls).await;
        let hanging = stack.opencode().await;
        process::signal(hanging, Signal::STOP);
        let began = Instant::now();
        stack.client.cancel(&id).await.unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(25),
            "{:?}",
            began.elapsed()
        );
        assert!(!process::lives(hanging));
        assert_eq!(process::with_words("sleep 98764"), [] as [u32; 0]);
        stack.read_turn(&mut reader, &id).await;
        assert!(matches!(reader.end(), End::Cancelled));
        stack.play_on(&id, &mut reader, "SCENARIO:hello").await;
        reader.complete();
    });
}

/// An abort that comes before OpenCode takes up the prompt stops nothing. A double: the real one is that
/// slow only on a busy machine.
#[test]
fn a_turn_that_begins_after_its_cancelling_is_stopped_too() {
    run(async {
        let stack = double::stack(Setup::default()).await;
        for prompt in ["begins late", "begins at once", "begins unsaid"] {
            let id = stack.begin(prompt).await;
            let mut reader = Reader::default();
            let delivered = |reader: &Reader| !reader.statuses(StatusKind::Running).is_empty();
            stack.read(&mut reader, &id, delivered).await;
            cancel(&stack, &id).await;
            // Whoever did not wait for its begin would find it idle here, and busy for ever soon after.
            tokio::time::sleep(Duration::from_millis(500)).await;
            is_cancelled(&stack, &mut reader, &id).await;
            let told = reader.statuses(StatusKind::AgentRestarted);
            assert!(told.is_empty(), "{prompt}: {told:?}");
            stack.play_on(&id, &mut reader, "hello").await;
            reader.complete();
        }
    });
}

/// OpenCode keeps for life what its first turn made ready, also a failure to: a turn that was stopped in
/// that instant made all later ones fail. Tries several moments just after OpenCode got the first prompt,
/// each with a fresh OpenCode (without what the sidecar asks for before, about half of them fail).
#[test]
fn a_turn_that_is_cancelled_as_it_begins_spoils_no_other() {
    run(async {
        for after in [0, 8, 16, 24] {
            let stack = Stack::start(Setup::default()).await;
            let id = stack.begin("SCENARIO:bash-sleep").await;
            let mut reader = Reader::default();
            let delivered = |reader: &Reader| !reader.statuses(StatusKind::Running).is_empty();
            stack.read(&mut reader, &id, delivered).await;
            // The moment itself is what is tried: there is no condition to wait for.
            tokio::time::sleep(Duration::from_millis(after)).await;
            cancel(&stack, &id).await;
            is_cancelled(&stack, &mut reader, &id).await;
            let (_, reader) = stack.play("SCENARIO:hello").await;
            reader.complete();
            assert_eq!(stack.process().await.0, 1, "healed by a restart");
        }
    });
}

/// The same with an MCP server that does not answer, which OpenCode waits for in its first turn: for a minute.
#[test]
fn a_turn_that_is_cancelled_while_opencode_waits_for_an_mcp_server_spoils_no_other() {
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let setup = Setup {
            unready: true,
            ..Setup::default().config(json!({"mcpServers": [{"name": "docs", "url": url}]}))
        };
        let stack = Stack::start(setup).await;
        let asked = tokio::time::timeout(LONG, listener.accept()).await.unwrap();
        let id = stack.begin("SCENARIO:hello").await;
        let status = stack.url(&format!("/sessions/{id}/status"));
        let status = stack
            .http
            .get(status)
            .bearer_auth(TOKEN)
            .send()
            .await
            .unwrap();
        let why = status.text().await.unwrap();
        assert!(why.contains("MCP"), "{why}");
        cancel(&stack, &id).await;
        let mut reader = Reader::default();
        stack
            .read(&mut reader, &id, |reader| reader.ends() > 0)
            .await;
        assert!(matches!(reader.end(), End::Cancelled));
        // The server is gone for good, and OpenCode need not wait for it any longer.
        drop((asked, listener));
        let (_, reader) = stack.play("SCENARIO:hello").await;
        reader.complete();
        assert!(reader.statuses(StatusKind::AgentRestarted).is_empty());
        assert_eq!(stack.process().await.0, 1);
    });
}
