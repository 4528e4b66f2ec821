//! Nothing that OpenCode sends stops the map, and no reader is left with holes.

use super::super::{Mapped, TurnMap};
use super::capture::{Capture, read};
use crate::agent::wire::{Message, OcEvent};
use contract::event::{Event, EventBody};
use proptest::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::LazyLock;

static CAPTURES: LazyLock<Vec<Capture>> = LazyLock::new(|| {
    let names = [
        "twotasks",
        "compact",
        "unicode",
        "cancelslow",
        "overflow",
        "badtool",
        "steer",
    ];
    names.into_iter().map(read).collect()
});

/// Any JSON, with the words of OpenCode in it.
fn json() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        Just("type"),
        Just("id"),
        Just("sessionID"),
        Just("messageID"),
        Just("partID"),
        Just("info"),
        Just("part"),
        Just("state"),
        Just("status"),
        Just("input"),
        Just("metadata"),
        Just("output"),
        Just("time"),
        Just("end"),
        Just("text"),
        Just("tool"),
        Just("callID"),
        Just("parentID"),
        Just("role"),
        Just("error"),
        Just("data"),
        Just("tokens"),
        Just("todos"),
        Just("files"),
        Just("delta"),
        Just("field"),
        Just("properties"),
        Just("finish"),
        Just("attempt"),
    ]
    .prop_map(str::to_owned);
    let value = prop_oneof![
        Just("ses_root"),
        Just("ses_c"),
        Just("msg_5"),
        Just("msg_6"),
        Just("prt_1"),
        Just("tool"),
        Just("text"),
        Just("running"),
        Just("completed"),
        Just("error"),
        Just("retry"),
        Just("assistant"),
        Just("user"),
        Just("compaction"),
        Just("patch"),
        Just("step-finish"),
        Just("invalid"),
        Just("...\n\n"),
        Just(""),
        Just("é\u{1F389}"),
    ]
    .prop_map(|text| Value::from(text.to_owned()));
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
        value,
    ];
    leaf.prop_recursive(5, 48, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((word.clone(), inner), 0..8)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Properties that name what the map knows and hold anything besides.
fn aimed() -> impl Strategy<Value = Value> {
    let session = prop_oneof![Just("ses_root"), Just("ses_c")];
    (session, json(), json(), json(), json()).prop_map(|(session, part, state, info, text)| {
        let mut part = part;
        if let Value::Object(part) = &mut part {
            part.insert("id".into(), "prt_1".into());
            part.insert("messageID".into(), "msg_6".into());
            part.insert("state".into(), state);
        }
        serde_json::json!({ "sessionID": session, "part": part, "info": info, "status": info,
            "error": info, "todos": [info], "messageID": "msg_6", "partID": "prt_1", "field": "text",
            "delta": text })
    })
}

fn event() -> impl Strategy<Value = Value> {
    let kind = prop_oneof![
        Just("message.updated"),
        Just("message.part.updated"),
        Just("message.part.delta"),
        Just("session.created"),
        Just("session.updated"),
        Just("session.status"),
        Just("session.error"),
        Just("todo.updated"),
        Just("permission.asked"),
        Just("permission.replied"),
        Just("question.asked"),
        Just("session.idle"),
        Just("other"),
    ];
    (kind, aimed()).prop_map(
        |(kind, properties)| serde_json::json!({ "type": kind, "properties": properties }),
    )
}

/// One field of a value, anywhere in it, replaced by something else.
fn spoil(value: &mut Value, at: &mut usize, by: &Value) {
    if *at == 0 {
        *value = by.clone();
    }
    *at = at.wrapping_sub(1);
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|inner| spoil(inner, at, by)),
        Value::Array(list) => list.iter_mut().for_each(|inner| spoil(inner, at, by)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A reader puts texts together by offset: whatever happens, there is no hole.
fn no_holes(said: &[Mapped]) {
    let mut lengths = BTreeMap::new();
    for mapped in said {
        if let EventBody::Output(output) = &mapped.body {
            let length = lengths
                .entry((&output.part_id, output.source as u8))
                .or_insert(0);
            if output.replace {
                *length = 0;
            }
            assert_eq!(output.offset, *length);
            *length += output.text.len() as u64;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = OcEvent::parse(&bytes);
        let _ = Message::parse_list(&bytes);
    }

    #[test]
    fn any_json_is_survived(events in prop::collection::vec(event(), 1..20), list in json()) {
        let mut map = TurnMap::new("ses_root".into(), "msg_5".into(), "/workspace".into());
        let known = serde_json::json!({ "type": "message.updated", "properties": {
            "sessionID": "ses_root", "info": { "id": "msg_6", "role": "assistant", "parentID": "msg_5" } } });
        let child = serde_json::json!({ "type": "session.created", "properties": {
            "info": { "id": "ses_c", "parentID": "ses_root" } } });
        let mut said = Vec::new();
        for event in [known, child].into_iter().chain(events) {
            let event = OcEvent::parse(event.to_string().as_bytes()).unwrap();
            said.extend(map.on_event(&event));
        }
        let list = Message::parse_list(serde_json::json!([list]).to_string().as_bytes()).unwrap();
        for session in ["ses_root", "ses_c"] {
            said.extend(map.on_messages(session, &list));
        }
        no_holes(&said);
        map.outcome();
    }

    /// Messages lost, doubled and out of order, restarts at any time: at the end a reader has every
    /// text as OpenCode stored it.
    #[test]
    fn any_shuffle_ends_with_the_truth(
        which in 0..CAPTURES.len(),
        picks in prop::collection::vec((any::<prop::sample::Index>(), 1..12_usize, 0..24_u8), 0..40),
    ) {
        let capture = &CAPTURES[which];
        let mut map = capture.map(0);
        let mut said = Vec::new();
        for (from, count, then) in picks {
            let from = from.index(capture.events.len());
            for event in capture.events.iter().skip(from).take(count) {
                said.extend(map.on_event(event));
            }
            match then {
                0 => {
                    map = capture.map(0);
                    said.iter().for_each(|mapped| map.restore(&Event::from(mapped)));
                }
                1 => said.extend(capture.settle(&mut map)),
                _ => {}
            }
        }
        said.extend(capture.settle(&mut map));
        no_holes(&said);
        capture.truth(0).check(&said, &capture.name);
        prop_assert_eq!(capture.settle(&mut map), []);
    }

    /// The captures with a field turned into something else.
    #[test]
    fn spoiled_captures_are_survived(
        which in 0..CAPTURES.len(),
        spoiled in prop::collection::vec((any::<prop::sample::Index>(), 0..60_usize, json()), 1..12),
    ) {
        let capture = &CAPTURES[which];
        let mut map = capture.map(0);
        let mut said = Vec::new();
        for (session, _, raw) in &capture.stored {
            let mut raw = raw.clone();
            for (at, field, by) in &spoiled {
                let list = raw.as_array_mut().unwrap();
                let at = at.index(list.len());
                spoil(&mut list[at], &mut field.clone(), by);
            }
            let list = Message::parse_list(raw.to_string().as_bytes()).unwrap();
            said.extend(map.on_messages(session, &list));
        }
        for event in &capture.events {
            said.extend(map.on_event(event));
        }
        said.extend(capture.settle(&mut map));
        no_holes(&said);
    }
}
