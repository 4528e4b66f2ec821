//! What is remembered of what was said, in the map and over restarts.

use super::super::{Mapped, TurnMap};
use super::rules::{answer, delta, kinds, map, messages, on, part, texts};
use contract::event::{Event, EventBody, StatusKind};
use serde_json::{Value, json};

fn restarted(said: &[Mapped]) -> TurnMap {
    let mut map = map();
    said.iter()
        .for_each(|mapped| map.restore(&Event::from(mapped)));
    map
}

fn running(printed: &str) -> Value {
    json!({ "type": "tool", "tool": "bash", "callID": "call_1", "state": { "status": "running",
        "input": {}, "metadata": { "output": printed } } })
}

#[test]
fn a_session_does_not_repeat_itself_after_a_restart() {
    let busy = json!({ "sessionID": "ses_root", "status": { "type": "busy" } });
    let retry = json!({ "sessionID": "ses_root", "status": { "type": "retry", "attempt": 3,
        "message": "no", "next": 1 } });
    let todo = json!({ "sessionID": "ses_root", "todos": [{ "content": "a" }] });
    let child = json!({ "info": { "id": "ses_c", "parentID": "ses_root", "title": "work" } });
    let failed = json!({ "sessionID": "ses_c", "error": { "name": "UnknownError" } });
    let events = [
        ("session.status", busy),
        ("session.created", child),
        ("session.error", failed),
        ("todo.updated", todo),
        ("session.status", retry),
    ];
    let mut map = map();
    let mut said = Vec::new();
    for (kind, properties) in &events {
        let now = on(&mut map, kind, properties.clone());
        assert_eq!(now.len(), 1, "{kind}");
        said.extend(now);
    }
    let mut map = restarted(&said);
    for (kind, properties) in &events {
        assert_eq!(on(&mut map, kind, properties.clone()), [], "{kind}");
    }
    // The next sub-agent has the next number.
    let next = json!({ "info": { "id": "ses_d", "parentID": "ses_c" } });
    assert_eq!(on(&mut map, "session.created", next)[0].agent, "main/2");
}

#[test]
fn a_running_tool_goes_on_where_it_was_after_a_restart() {
    let mut map = map();
    answer(&mut map, "msg_6", json!({}));
    let mut said = part(&mut map, "msg_6", "prt_1", running("one\n"));
    said.extend(part(&mut map, "msg_6", "prt_1", running("one\ntwo\n")));
    let mut map = restarted(&said);
    answer(&mut map, "msg_6", json!({}));
    let more = part(&mut map, "msg_6", "prt_1", running("...\n\ntwo\nthree\n"));
    let [
        Mapped {
            body: EventBody::Output(output),
            ..
        },
    ] = more.as_slice()
    else {
        panic!("{more:?}")
    };
    assert_eq!(
        (output.text.as_str(), output.offset, output.replace),
        ("three\n", 8, false)
    );
}

#[test]
fn more_running_tools_than_are_followed_stay_readable() {
    let mut map = map();
    answer(&mut map, "msg_6", json!({}));
    let ids: Vec<String> = (0..80).map(|number| format!("prt_{number:02}")).collect();
    let mut said = Vec::new();
    for round in ["a", "ab", "abc"] {
        for id in &ids {
            said.extend(part(&mut map, "msg_6", id, running(round)));
        }
    }
    for id in &ids {
        let mut text = String::new();
        for mapped in &said {
            if let EventBody::Output(output) = &mapped.body
                && output.part_id == *id
            {
                if output.replace {
                    text.clear();
                }
                assert_eq!(output.offset, text.len() as u64);
                text.push_str(&output.text);
            }
        }
        assert_eq!(text, "abc", "{id}");
    }
    // The same, with a restart between.
    let mut map = restarted(&said);
    answer(&mut map, "msg_6", json!({}));
    for id in &ids {
        for mapped in part(&mut map, "msg_6", id, running("abcd")) {
            let EventBody::Output(output) = mapped.body else {
                panic!("{mapped:?}")
            };
            // Either joins what was said, or replaces it.
            let says = (output.text.as_str(), output.offset, output.replace);
            assert!(
                [("d", 3, false), ("abcd", 0, true)].contains(&says),
                "{id} {says:?}"
            );
        }
    }
}

#[test]
fn a_text_that_was_cut_off_by_an_abort_is_final_as_stored() {
    let mut map = map();
    answer(&mut map, "msg_6", json!({}));
    part(
        &mut map,
        "msg_6",
        "prt_1",
        json!({ "type": "text", "text": "" }),
    );
    delta(&mut map, "msg_6", "prt_1", "one");
    let stored = json!([{
        "info": { "id": "msg_6", "role": "assistant", "parentID": "msg_5", "sessionID": "ses_root",
            "time": { "created": 10 }, "error": { "name": "MessageAbortedError" } },
        "parts": [{ "id": "prt_1", "messageID": "msg_6", "sessionID": "ses_root", "type": "text",
            "text": "one two" }],
    }]);
    assert_eq!(
        texts(&map.on_messages("ses_root", &messages(stored))),
        [" two"]
    );
    assert_eq!(map.outcome().final_message, "one two");
    assert!(map.outcome().aborted);
}

#[test]
fn a_stored_call_tells_of_its_sub_agent() {
    let mut map = map();
    answer(&mut map, "msg_6", json!({}));
    let task = json!({ "type": "tool", "tool": "task", "state": { "status": "running",
        "input": { "description": "sub work" }, "metadata": { "sessionId": "ses_c" } } });
    let said = part(&mut map, "msg_6", "prt_1", task.clone());
    assert_eq!(kinds(&said), [StatusKind::SubAgent]);
    assert!(map.owns("ses_c"));
    assert_eq!(part(&mut map, "msg_6", "prt_1", task), []);
    let child = json!({ "info": { "id": "ses_c", "parentID": "ses_root" } });
    assert_eq!(on(&mut map, "session.created", child), []);
}

#[test]
fn the_last_text_is_the_last_in_time() {
    let mut map = map();
    let end = |text: &str| json!({ "type": "text", "text": text, "time": { "end": 1 } });
    answer(
        &mut map,
        "msg_7",
        json!({ "time": { "created": 20 }, "finish": "stop" }),
    );
    part(&mut map, "msg_7", "prt_8", end("second"));
    part(&mut map, "msg_7", "prt_7", end("first"));
    // Its event was missed; it comes from the stored messages.
    answer(
        &mut map,
        "msg_6",
        json!({ "time": { "created": 10 }, "finish": "tool-calls" }),
    );
    part(&mut map, "msg_6", "prt_9", end("early"));
    assert_eq!(map.outcome().final_message, "second");
    assert_eq!(map.outcome().finish.as_deref(), Some("stop"));
}

#[test]
fn answers_without_a_reason_are_counted_up_to_the_last_that_ended() {
    let mut map = map();
    let unknown =
        |at: u32| json!({ "time": { "created": at, "completed": at }, "finish": "unknown" });
    let called = json!({ "type": "tool", "tool": "bash", "state": { "status": "pending" } });
    answer(&mut map, "msg_6", unknown(10));
    answer(&mut map, "msg_7", unknown(20));
    part(&mut map, "msg_7", "prt_7", called);
    assert_eq!(map.unknown_finishes(), 0);
    answer(&mut map, "msg_8", unknown(30));
    answer(&mut map, "msg_9", unknown(40));
    answer(&mut map, "msg_a", json!({ "time": { "created": 50 } }));
    assert_eq!(map.unknown_finishes(), 2);
    assert!(!map.outcome().completed);
    answer(
        &mut map,
        "msg_a",
        json!({ "time": { "created": 50, "completed": 60 }, "finish": "stop" }),
    );
    assert_eq!(map.unknown_finishes(), 0);
    assert!(map.outcome().completed);
}
