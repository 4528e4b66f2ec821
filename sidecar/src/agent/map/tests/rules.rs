//! Rules, one by one, where a capture cannot show them.

use super::super::{Mapped, TurnMap};
use super::capture::read;
use crate::agent::text::MAX_SEEN;
use crate::agent::wire::{Message, OcEvent};
use contract::event::{Event, EventBody, StatusKind, TurnError};
use serde_json::{Value, json};

pub(super) fn map() -> TurnMap {
    TurnMap::new("ses_root".into(), "msg_5".into(), "/workspace".into())
}

pub(super) fn on(map: &mut TurnMap, kind: &str, properties: Value) -> Vec<Mapped> {
    let json = json!({ "id": "evt_1", "type": kind, "properties": properties });
    map.on_event(&OcEvent::parse(json.to_string().as_bytes()).unwrap())
}

pub(super) fn answer(map: &mut TurnMap, id: &str, info: Value) -> Vec<Mapped> {
    let mut all = json!({
        "id": id, "role": "assistant", "sessionID": "ses_root", "parentID": "msg_5",
        "time": { "created": 10 },
    });
    merge(&mut all, info);
    let session = all["sessionID"].clone();
    on(
        map,
        "message.updated",
        json!({ "sessionID": session, "info": all }),
    )
}

pub(super) fn part(map: &mut TurnMap, message: &str, id: &str, part: Value) -> Vec<Mapped> {
    let mut all = json!({ "id": id, "messageID": message, "sessionID": "ses_root" });
    merge(&mut all, part);
    let session = all["sessionID"].clone();
    on(
        map,
        "message.part.updated",
        json!({ "sessionID": session, "part": all }),
    )
}

pub(super) fn delta(map: &mut TurnMap, message: &str, id: &str, text: &str) -> Vec<Mapped> {
    let properties = json!({
        "sessionID": "ses_root", "messageID": message, "partID": id, "field": "text", "delta": text,
    });
    on(map, "message.part.delta", properties)
}

pub(super) fn error(map: &mut TurnMap, error: Value) -> Vec<Mapped> {
    on(
        map,
        "session.error",
        json!({ "sessionID": "ses_root", "error": error }),
    )
}

fn merge(into: &mut Value, from: Value) {
    let (Value::Object(into), Value::Object(from)) = (into, from) else {
        panic!("two objects")
    };
    into.extend(from);
}

pub(super) fn messages(list: Value) -> Vec<Message> {
    Message::parse_list(list.to_string().as_bytes()).unwrap()
}

pub(super) fn texts(said: &[Mapped]) -> Vec<&str> {
    let text = |mapped| match mapped {
        &Mapped {
            body: EventBody::Output(ref output),
            ..
        } => Some(output.text.as_str()),
        _ => None,
    };
    said.iter().filter_map(text).collect()
}

pub(super) fn kinds(said: &[Mapped]) -> Vec<StatusKind> {
    let kind = |mapped: &Mapped| match &mapped.body {
        EventBody::Status(status) => Some(status.status),
        _ => None,
    };
    said.iter().filter_map(kind).collect()
}

#[test]
fn errors_have_a_reason_and_say_what_to_do() {
    let api = |status: u16, message: &str| {
        json!({ "name": "APIError", "data": { "message": message, "statusCode": status,
            "isRetryable": false, "responseHeaders": { "set-cookie": "hidden-header" },
            "responseBody": "hidden-body", "metadata": { "url": "hidden-url" } } })
    };
    let other = |name: &str, message: &str| json!({ "name": name, "data": { "message": message } });
    let table = [
        (api(401, "bad key"), TurnError::ProviderAuth),
        (api(403, "no"), TurnError::ProviderAuth),
        (api(429, "slow down"), TurnError::ProviderRateLimit),
        (api(402, "pay"), TurnError::ProviderRateLimit),
        (
            api(400, "You exceeded your current quota"),
            TurnError::ProviderRateLimit,
        ),
        (
            api(404, "The model `x` does not exist"),
            TurnError::ModelNotFound,
        ),
        (api(404, "no such path"), TurnError::ProviderError),
        (api(400, "bad"), TurnError::ProviderError),
        (api(500, "boom"), TurnError::ProviderError),
        (api(502, "Bad gateway"), TurnError::ProviderError),
        (
            api(502, "the model provider cannot be reached"),
            TurnError::ProviderUnreachable,
        ),
        (
            api(
                504,
                "the model provider did not begin to answer within 60 s",
            ),
            TurnError::ProviderUnreachable,
        ),
        (
            other("APIError", "Cannot connect to API"),
            TurnError::ProviderUnreachable,
        ),
        (
            other("UnknownError", "The operation timed out."),
            TurnError::ProviderUnreachable,
        ),
        (other("ProviderAuthError", ""), TurnError::ProviderAuth),
        (
            other("ProviderModelNotFoundError", ""),
            TurnError::ModelNotFound,
        ),
        (
            other("UnknownError", "Model not found: a/b. Did you mean: c?"),
            TurnError::ModelNotFound,
        ),
        (
            other("ContextOverflowError", "too long"),
            TurnError::ContextOverflow,
        ),
        (
            other("ContentFilterError", "blocked"),
            TurnError::ContentFilter,
        ),
        (
            other("UnknownError", "Failed to execute statement"),
            TurnError::DiskFull,
        ),
        (
            other("UnknownError", "Agent not found: \"x\""),
            TurnError::AgentError,
        ),
        (
            other("MessageOutputLengthError", ""),
            TurnError::ProviderError,
        ),
        (json!("nonsense"), TurnError::AgentError),
        (json!(null), TurnError::AgentError),
    ];
    for (given, code) in table {
        let mut map = map();
        assert_eq!(error(&mut map, given.clone()), []);
        let event = map.outcome().error.unwrap();
        assert_eq!(event.code, code, "{given}");
        assert!(event.fatal);
        assert!(!event.error.contains("hidden"), "{}", event.error);
        assert!(event.error.matches(". ").count() >= 1 && event.error.ends_with('.'));
    }
}

#[test]
fn errors_are_short_and_hold_neither_key_nor_stack() {
    let mut map = map();
    let message = format!(
        "Incorrect API key provided: sk-proj-abc123. Also A1{}, of gpt-4.1-mini-2025-04-14 {}\n    at stack",
        "b2".repeat(20),
        "é".repeat(5_000),
    );
    let given = json!({ "name": "APIError", "data": { "message": message, "statusCode": 401 } });
    error(&mut map, given);
    error(
        &mut map,
        json!({ "name": "UnknownError", "data": { "message": "second copy" } }),
    );
    let said = map.outcome().error.unwrap().error;
    assert!(said.len() <= 2048, "{}", said.len());
    assert!(
        said.contains("Incorrect API key provided: [removed]"),
        "{said}"
    );
    assert!(!said.contains("b2b2") && !said.contains("stack") && !said.contains("second"));
    assert!(said.contains("gpt-4.1-mini-2025-04-14") && said.contains("Check the key"));
}

#[test]
fn an_abort_is_no_error() {
    let mut map = map();
    error(
        &mut map,
        json!({ "name": "MessageAbortedError", "data": { "message": "Aborted" } }),
    );
    let outcome = map.outcome();
    assert!(outcome.aborted);
    assert_eq!(outcome.error, None);
}

#[test]
fn an_error_is_forgotten_when_the_run_recovers() {
    let mut map = map();
    answer(&mut map, "msg_6", json!({}));
    error(
        &mut map,
        json!({ "name": "ContextOverflowError", "data": { "message": "too long" } }),
    );
    answer(
        &mut map,
        "msg_6",
        json!({ "time": { "created": 10, "completed": 11 } }),
    );
    assert!(map.outcome().error.is_some());
    let done = json!({ "time": { "created": 12, "completed": 13 }, "finish": "stop" });
    answer(&mut map, "msg_7", done.clone());
    assert_eq!(map.outcome().error, None);
    assert!(map.outcome().completed);
    // An error after that is one.
    error(
        &mut map,
        json!({ "name": "UnknownError", "data": { "message": "late" } }),
    );
    answer(&mut map, "msg_7", done);
    assert!(map.outcome().error.is_some());
}

#[test]
fn only_answers_to_the_turns_message_are_heard() {
    let mut map = map();
    answer(&mut map, "msg_6", json!({ "parentID": "msg_4" }));
    let late = json!({ "type": "text", "text": "late", "time": { "end": 1 } });
    assert_eq!(part(&mut map, "msg_6", "prt_1", late.clone()), []);
    answer(&mut map, "msg_7", json!({ "parentID": null }));
    assert_eq!(part(&mut map, "msg_7", "prt_2", late.clone()), []);
    assert_eq!(part(&mut map, "msg_8", "prt_3", late.clone()), []);
    assert!(!map.outcome().has_assistant);
    answer(&mut map, "msg_9", json!({}));
    assert_eq!(
        texts(&part(&mut map, "msg_9", "prt_4", late.clone())),
        ["late"]
    );
    assert_eq!(part(&mut map, "msg_9", "prt_4", late), []);
}

#[test]
fn sessions_of_others_are_not_heard() {
    let mut map = map();
    let foreign = json!({ "sessionID": "ses_other" });
    answer(&mut map, "msg_6", foreign.clone());
    let text =
        json!({ "type": "text", "text": "x", "time": { "end": 1 }, "sessionID": "ses_other" });
    assert_eq!(part(&mut map, "msg_6", "prt_1", text), []);
    let child = json!({ "info": { "id": "ses_c", "parentID": "ses_other" } });
    assert_eq!(on(&mut map, "session.created", child), []);
    assert!(!map.owns("ses_c"));
    assert_eq!(map.on_messages("ses_other", &[]), []);
}

#[test]
fn what_follows_another_users_message_is_another_turns() {
    let mut map = map();
    let user = |id: &str| json!({ "id": id, "role": "user", "sessionID": "ses_root" });
    let compaction = json!({ "type": "compaction", "auto": true });
    on(
        &mut map,
        "message.updated",
        json!({ "sessionID": "ses_root", "info": user("msg_6") }),
    );
    assert_eq!(
        kinds(&part(&mut map, "msg_6", "prt_1", compaction.clone())),
        [StatusKind::Compacting]
    );
    assert_eq!(part(&mut map, "msg_6", "prt_1", compaction.clone()), []);
    answer(
        &mut map,
        "msg_7",
        json!({ "parentID": "msg_6", "finish": "stop" }),
    );
    assert!(map.outcome().has_assistant);

    let text = json!({ "type": "text", "text": "the next prompt" });
    on(
        &mut map,
        "message.updated",
        json!({ "sessionID": "ses_root", "info": user("msg_8") }),
    );
    assert_eq!(part(&mut map, "msg_8", "prt_2", text), []);
    on(
        &mut map,
        "message.updated",
        json!({ "sessionID": "ses_root", "info": user("msg_9") }),
    );
    assert_eq!(part(&mut map, "msg_9", "prt_3", compaction), []);
    answer(
        &mut map,
        "msg_a",
        json!({ "parentID": "msg_9", "finish": "length",
        "time": { "created": 99 } }),
    );
    assert_eq!(map.outcome().finish.as_deref(), Some("stop"));
}

#[test]
fn a_text_in_the_making_waits_for_its_end_after_a_gap() {
    let mut map = map();
    answer(&mut map, "msg_6", json!({}));
    part(
        &mut map,
        "msg_6",
        "prt_1",
        json!({ "type": "text", "text": "" }),
    );
    assert_eq!(texts(&delta(&mut map, "msg_6", "prt_1", "one ")), ["one "]);
    let stored = json!([{
        "info": { "id": "msg_6", "role": "assistant", "parentID": "msg_5", "sessionID": "ses_root" },
        "parts": [{ "id": "prt_1", "messageID": "msg_6", "sessionID": "ses_root", "type": "text", "text": "" }],
    }]);
    assert_eq!(map.on_messages("ses_root", &messages(stored)), []);
    assert_eq!(delta(&mut map, "msg_6", "prt_1", "three "), []);
    let end = json!({ "type": "text", "text": "one two three ", "time": { "end": 1 } });
    assert_eq!(
        texts(&part(&mut map, "msg_6", "prt_1", end)),
        ["two three "]
    );
}

#[test]
fn attempts_work_and_lists_are_said_once() {
    let mut map = map();
    let status = |status: Value| json!({ "sessionID": "ses_root", "status": status });
    let retry = |attempt: u32, next: u64| {
        status(
            json!({ "type": "retry", "attempt": attempt, "message": "Rate limit", "next": next }),
        )
    };
    let busy = status(json!({ "type": "busy" }));
    assert_eq!(
        kinds(&on(&mut map, "session.status", busy.clone())),
        [StatusKind::Running]
    );
    assert_eq!(on(&mut map, "session.status", busy.clone()), []);
    let said = on(&mut map, "session.status", retry(1, 1_795_226_273_516));
    let EventBody::Status(first) = &said[0].body else {
        panic!("{said:?}")
    };
    assert_eq!(first.status, StatusKind::Retrying);
    assert_eq!(first.retry_at.unwrap().as_millisecond(), 1_795_226_273_516);
    assert!(first.progress.as_ref().unwrap().contains("Rate limit"));
    assert_eq!(
        on(&mut map, "session.status", retry(1, 1_795_226_273_999)),
        []
    );
    assert_eq!(on(&mut map, "session.status", busy), []);
    assert_eq!(
        kinds(&on(&mut map, "session.status", retry(2, u64::MAX))),
        [StatusKind::Retrying]
    );
    // The next call of the model counts from 1 again.
    answer(&mut map, "msg_6", json!({}));
    assert_eq!(
        kinds(&on(&mut map, "session.status", retry(1, 0))),
        [StatusKind::Retrying]
    );

    let todo =
        json!({ "sessionID": "ses_root", "todos": [{ "content": "a", "status": "completed" }] });
    assert_eq!(
        kinds(&on(&mut map, "todo.updated", todo.clone())),
        [StatusKind::Todo]
    );
    assert_eq!(on(&mut map, "todo.updated", todo), []);
}

#[test]
fn a_sub_agent_of_a_former_turn_stays_silent() {
    let mut map = map();
    let prompt = json!([{ "info": { "id": "msg_5", "role": "user", "sessionID": "ses_root",
        "time": { "created": 100 } }, "parts": [] }]);
    assert_eq!(map.adopt_child("ses_c", "ses_root", Some("old work")), []);
    map.on_messages("ses_root", &messages(prompt));
    let message = |id: &str, created: u64| {
        json!({ "info": { "id": id, "role": "assistant", "sessionID": "ses_c",
            "time": { "created": created, "completed": created }, "finish": "stop" },
            "parts": [{ "id": format!("prt_{id}"), "messageID": id, "sessionID": "ses_c",
                "type": "text", "text": id, "time": { "end": 1 } }] })
    };
    let old = message("msg_2", 50);
    assert_eq!(
        map.on_messages("ses_c", &messages(json!([old.clone()]))),
        []
    );
    // A task of this turn goes on with it.
    let said = map.on_messages("ses_c", &messages(json!([old, message("msg_7", 150)])));
    assert_eq!(kinds(&said), [StatusKind::SubAgent]);
    assert_eq!(texts(&said), ["msg_7"]);
    assert!(said.iter().all(|mapped| mapped.agent == "main/1"));
    assert_eq!(map.agent_of("ses_c"), "main/1");
    assert_eq!(
        map.outcome().final_message,
        "",
        "a sub-agent's text is not the last message"
    );
}

#[test]
fn a_sub_agent_may_compact_too() {
    let mut map = map();
    on(
        &mut map,
        "session.created",
        json!({ "info": { "id": "ses_c", "parentID": "ses_root" } }),
    );
    let info = json!({ "id": "msg_8", "role": "user", "sessionID": "ses_c" });
    on(
        &mut map,
        "message.updated",
        json!({ "sessionID": "ses_c", "info": info }),
    );
    let said = part(
        &mut map,
        "msg_8",
        "prt_1",
        json!({ "type": "compaction", "sessionID": "ses_c" }),
    );
    assert_eq!(kinds(&said), [StatusKind::Compacting]);
    assert_eq!(said[0].agent, "main/1");
}

#[test]
fn an_error_of_a_sub_agent_does_not_end_the_turn() {
    let mut map = map();
    let child = json!({ "info": { "id": "ses_c", "parentID": "ses_root", "title": "work" } });
    assert_eq!(
        kinds(&on(&mut map, "session.created", child)),
        [StatusKind::SubAgent]
    );
    let failed = json!({ "sessionID": "ses_c", "error": { "name": "APIError",
        "data": { "message": "no", "statusCode": 401 } } });
    let said = on(&mut map, "session.error", failed.clone());
    let EventBody::Error(event) = &said[0].body else {
        panic!("{said:?}")
    };
    assert!(!event.fatal && !said[0].body.ends_turn());
    assert_eq!(on(&mut map, "session.error", failed), []);
    assert_eq!(map.outcome().error, None);
}

#[test]
fn large_things_are_bounded() {
    let mut map = map();
    answer(&mut map, "msg_6", json!({}));
    let text = "€".repeat(100_000);
    let end = json!({ "type": "text", "text": text, "time": { "end": 1 } });
    let said = part(&mut map, "msg_6", "prt_1", end);
    assert_eq!(texts(&said).concat(), text);
    assert!(said.len() >= 5 && texts(&said).iter().all(|text| text.len() <= 64 * 1024));

    let big = json!({ "type": "tool", "tool": "t".repeat(9_999), "callID": "call_1", "state": {
        "status": "error", "input": { "content": "x".repeat(3_000_000) }, "error": "y".repeat(3_000_000) } });
    let said = part(&mut map, "msg_6", "prt_2", big);
    let size: usize = said
        .iter()
        .map(|m| serde_json::to_string(&m.body).unwrap().len())
        .sum();
    assert_eq!(said.len(), 2);
    assert!(size < 400_000, "{size}");
    assert_eq!(map.call_of("call_1").as_deref(), Some("prt_2"));
    assert_eq!(map.call_of("call_2"), None);
}

#[test]
fn files_are_relative_to_the_workspace_where_they_are_inside() {
    let mut map = map();
    answer(&mut map, "msg_6", json!({}));
    let files = json!({ "type": "patch", "files": ["/workspace/src/b.rs", "/workspace/a.rs",
        "/etc/passwd", "/workspace/../etc/shadow", "/workspaces/x", "/workspace", "/workspace/a.rs", 7] });
    assert_eq!(part(&mut map, "msg_6", "prt_1", files), []);
    assert_eq!(
        map.outcome().files_modified,
        [
            "/etc/passwd",
            "/workspace/../etc/shadow",
            "/workspaces/x",
            "a.rs",
            "src/b.rs"
        ]
    );
}

#[test]
fn an_endless_turn_needs_bounded_memory_and_says_nothing_twice() {
    let mut map = map();
    let mut stored = Vec::new();
    for number in 0..MAX_SEEN + 500 {
        let (message, id) = (format!("msg_6{number:06}"), format!("prt_{number:06}"));
        let info = json!({ "id": message, "role": "assistant", "sessionID": "ses_root",
            "parentID": "msg_5", "finish": "unknown",
            "time": { "created": number, "completed": number } });
        let text = json!({ "id": id, "messageID": message, "sessionID": "ses_root", "type": "text",
            "text": "again", "time": { "end": 1 } });
        answer(&mut map, &message, info.clone());
        assert_eq!(
            texts(&part(&mut map, &message, &id, text.clone())),
            ["again"]
        );
        stored.push(json!({ "info": info, "parts": [text] }));
    }
    assert_eq!(map.unknown_finishes(), u32::try_from(MAX_SEEN).unwrap());
    assert_eq!(map.on_messages("ses_root", &messages(json!(stored))), []);
}

#[test]
fn a_restored_turn_knows_what_it_said_of_itself() {
    let capture = read("twotasks");
    let mut map = capture.map(0);
    let said: Vec<Mapped> = capture
        .events
        .iter()
        .flat_map(|event| map.on_event(event))
        .collect();
    let mut restored = capture.map(0);
    for mapped in &said {
        restored.restore(&Event::from(mapped));
    }
    assert_eq!(restored.outcome().usage, map.outcome().usage);
    assert_eq!(restored.outcome().steps, map.outcome().steps);
    let mut children: Vec<_> = map.children().collect();
    let mut again: Vec<_> = restored.children().collect();
    children.sort_unstable();
    again.sort_unstable();
    assert_eq!(children, again);
    for child in children {
        assert_eq!(map.agent_of(child), restored.agent_of(child));
    }
}
