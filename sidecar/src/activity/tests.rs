//! A sentence per case.

use super::*;
use contract::event::{Complete, ErrorEvent, Output, Status, ToolCall, ToolResult, TurnError};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn event(second: i64, body: EventBody) -> Event {
    Event {
        turn: 1,
        ts: at(second),
        agent: "main".into(),
        body,
    }
}

fn call(id: &str, tool: &str) -> EventBody {
    EventBody::ToolCall(ToolCall {
        call_id: id.into(),
        tool: tool.into(),
        input: serde_json::json!({}),
    })
}

fn result(id: &str) -> EventBody {
    EventBody::ToolResult(ToolResult {
        call_id: id.into(),
        tool: "bash".into(),
        ok: true,
        output: String::new(),
        title: None,
        exit_code: None,
        truncated: false,
        duration_ms: None,
    })
}

fn status(kind: StatusKind, words: &str) -> EventBody {
    EventBody::Status(Status::new(kind, words))
}

/// A turn that was recorded at second 0 and had these events.
fn doing(events: Vec<Event>) -> Doing {
    let mut doing = Doing::default();
    doing.begin(at(0));
    for event in &events {
        doing.apply(event);
    }
    doing
}

/// A turn that works.
fn works() -> Facts {
    Facts {
        running: true,
        status: Some(SessionState::Running),
        delivered: true,
        agent_ready: true,
        ..Facts::default()
    }
}

fn approval_of(permission: &str, patterns: &[&str]) -> Approval {
    serde_json::from_value(serde_json::json!({
        "approval_id": "per_1", "session_id": "quokka", "agent": "main",
        "permission": permission, "patterns": patterns, "since": at(0),
    }))
    .unwrap()
}

#[test]
fn what_the_agent_does() {
    let said = |events, second| sentence(&doing(events), &works(), at(second));
    assert_eq!(said(vec![], 5), "Waiting for the model's answer since 5 s.");
    assert_eq!(
        said(vec![event(3, call("a", "bash"))], 45),
        "Tool bash has run for 42 s."
    );
    assert_eq!(
        said(
            vec![event(3, call("a", "bash")), event(9, call("b", "read"))],
            309
        ),
        "2 tools run, bash for the longest, 5 min."
    );
    assert_eq!(
        said(vec![event(3, call("a", "bash")), event(9, result("a"))], 10),
        "Waiting for the model's answer since 1 s."
    );
    let output = EventBody::Output(Output {
        text: "x".into(),
        part_id: "p".into(),
        offset: 0,
        source: OutputSource::Assistant,
        replace: false,
    });
    assert_eq!(
        said(vec![event(3, output)], 10),
        "The model is answering; its last words are 7 s old."
    );
    assert_eq!(
        said(vec![event(3, status(StatusKind::Thinking, "x"))], 10),
        "The model has been thinking for 7 s."
    );
    assert!(
        said(vec![event(3, status(StatusKind::Compacting, "x"))], 10)
            .starts_with("The conversation is being shortened")
    );
}

#[test]
fn a_provider_that_refuses_is_named_with_the_next_try() {
    let mut retry = Status::new(
        StatusKind::Retrying,
        "The model's provider refused or failed (attempt 2: 429).",
    );
    retry.retry_at = Some(at(20));
    let doing = doing(vec![event(3, EventBody::Status(retry))]);
    assert_eq!(
        sentence(&doing, &works(), at(6)),
        "The model's provider refused or failed (attempt 2: 429); next try in 14 s."
    );
    assert_eq!(
        sentence(&doing, &works(), at(21)),
        "The model's provider refused or failed (attempt 2: 429); trying now."
    );
    assert_eq!(
        waits_for(&doing, &works()).unwrap(),
        "The model's provider refused or failed (attempt 2: 429)."
    );
}

#[test]
fn what_somebody_must_do_comes_first() {
    let doing = doing(vec![event(3, call("a", "bash"))]);
    let mut facts = works();
    facts.approvals = vec![approval_of("bash", &["rm -rf build"])];
    assert_eq!(
        sentence(&doing, &facts, at(185)),
        "Waiting for an answer to approval per_1 (bash: rm -rf build) since 3 min."
    );
    // Who follows the pod is told no command.
    assert_eq!(
        waits_for(&doing, &facts).unwrap(),
        "Waiting for an answer to an approval (bash)."
    );
    facts.approvals.push(approval_of("edit", &[]));
    assert!(sentence(&doing, &facts, at(1)).ends_with("; one more waits."));
    facts.journal = Some("the volume is full");
    assert_eq!(
        sentence(&doing, &facts, at(9)),
        "Waiting for the session's volume: the journal cannot be written, because the volume is full."
    );
}

#[test]
fn what_a_turn_waits_for_before_it_begins() {
    let doing = doing(vec![]);
    let mut facts = Facts {
        running: true,
        status: Some(SessionState::Pending),
        ..Facts::default()
    };
    assert_eq!(sentence(&doing, &facts, at(1)), "OpenCode is starting.");
    facts.agent_message = Some("the runner does not answer.".into());
    assert_eq!(
        sentence(&doing, &facts, at(1)),
        "OpenCode is starting: the runner does not answer."
    );
    facts.delivered = true;
    assert_eq!(
        sentence(&doing, &facts, at(1)),
        "OpenCode is starting again: the runner does not answer."
    );
    facts.delivered = false;
    facts.unsupported = Some("it has no shell".into());
    assert_eq!(
        sentence(&doing, &facts, at(1)),
        "Waiting for another image: this one cannot run OpenCode: it has no shell."
    );
    facts.key_missing = Some("Secret team-keys, key openai".into());
    assert_eq!(
        sentence(&doing, &facts, at(1)),
        "Waiting for Secret team-keys, key openai: it is absent or empty."
    );
}

#[test]
fn how_the_last_turn_ended() {
    let rests = |events, status, key_required| {
        let facts = Facts {
            status: Some(status),
            key_required,
            ..Facts::default()
        };
        assert_eq!(waits_for(&doing(vec![]), &facts), None);
        sentence(&doing(events), &facts, at(99))
    };
    let complete = event(9, EventBody::Complete(Complete::default()));
    assert_eq!(
        rests(vec![complete.clone()], SessionState::Completed, false),
        "Nothing to do: the last turn is complete."
    );
    assert_eq!(
        rests(vec![], SessionState::Cancelled, false),
        "Nothing to do: the last turn was cancelled."
    );
    let error = EventBody::Error(ErrorEvent {
        error: "the provider\nrefused the key.".into(),
        fatal: true,
        code: TurnError::ProviderAuth,
    });
    assert_eq!(
        rests(vec![event(9, error)], SessionState::Failed, false),
        "Nothing to do: the last turn failed: the provider refused the key."
    );
    assert!(rests(vec![complete], SessionState::Completed, true).contains("must bring api_key"));
}

#[test]
fn what_others_say_stays_short_and_a_flood_of_tools_bounded() {
    let mut facts = works();
    facts.approvals = vec![approval_of("bash", &[&"ü\u{1b}".repeat(1000)])];
    let said = sentence(&doing(vec![]), &facts, at(1));
    assert!(said.len() < 400 && !said.contains('\u{1b}'), "{said}");
    let many = (0..1000).map(|n| event(1, call(&n.to_string(), "bash")));
    assert_eq!(doing(many.collect()).tools.len(), TOOLS_MAX);
}
