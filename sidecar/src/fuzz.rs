//! Bodies of fuzz targets: plain functions that panic when a promise is broken. `make test` runs them on
//! the seeds in `fuzz/` and on mutations of these, `make fuzz` under cargo-fuzz. Not for programs.

#[cfg(test)]
mod tests;

use crate::{
    agent::{
        map::{Mapped, TurnMap},
        opencode, stream,
        wire::{Message, OcEvent},
    },
    proxy::{Target, edit::Fields},
    store::{
        derived::{digest::Digest, state},
        record::event_json,
    },
};
use contract::{
    Cursor, Event, EventBody, event::MAIN_AGENT, pod::PodConfig, runner::Reply,
    session::ModelConfig,
};
use serde_json::{Value, value::RawValue};
use std::{collections::BTreeMap, sync::LazyLock};

/// A body.
pub type Body = fn(&[u8]);

/// Every target by its name, which is also that of its folder of seeds.
pub const TARGETS: [(&str, Body); 11] = [
    ("frames", journal::fuzz::frames),
    ("index", journal::fuzz::index),
    ("cursor", cursor),
    ("state_json", state_json),
    ("records", records),
    ("opencode_event", opencode_event),
    ("opencode_messages", opencode_messages),
    ("opencode_answers", opencode::fuzz_answers),
    ("opencode_stream", stream::fuzz_lines),
    ("model_request", model_request),
    ("runner_reply", runner_reply),
];

/// The body of a name.
#[must_use]
pub fn target(name: &str) -> Option<Body> {
    TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, body)| *body)
}

/// What is a cursor is written back the same.
fn cursor(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string(), text);
    }
}

/// What is read from `state.json` is written back the same, also behind a checksum that somebody
/// mended.
fn state_json(data: &[u8]) {
    let _ = state::parse(data);
    if let Ok(digest) = serde_json::from_slice::<Digest>(data) {
        let written = state::encode(&digest);
        let read = state::parse(&written).expect("what was written can be read");
        assert_eq!(read, digest);
    }
}

/// Payloads of a journal, one after each NUL: whatever they are, what people read of them has whole
/// lines.
fn records(data: &[u8]) {
    let mut digest = Digest::default();
    for (n, payload) in (1..).zip(data.split(|byte| *byte == 0)) {
        let _ = event_json(payload);
        let event = (!payload.starts_with(b"{")).then_some(n);
        let mut lines = 0;
        digest.take(journal::Frame { event, payload }, &mut |line| {
            lines += 1;
            assert!(line.ends_with('\n') && line.matches('\n').count() == 1);
        });
        assert!(lines <= 1);
    }
    assert_eq!(state::parse(&state::encode(&digest)).ok(), Some(digest));
}

/// A reader puts texts together by offset: whatever happens, there is no hole.
fn no_holes(said: &[Mapped]) {
    let mut lengths = BTreeMap::new();
    for mapped in said {
        if let EventBody::Output(output) = &mapped.body {
            let key = (&output.part_id, output.source as u8);
            let length = lengths.entry(key).or_insert(0);
            if output.replace {
                *length = 0;
            }
            assert_eq!(output.offset, *length);
            *length += output.text.len() as u64;
        }
    }
}

fn turn() -> TurnMap {
    TurnMap::new("ses_root".into(), "msg_5".into(), "/workspace".into())
}

/// A turn that hears one event per line, and is taken up again in its middle.
fn opencode_event(data: &[u8]) {
    let mut map = turn();
    let mut said = Vec::new();
    let events: Vec<_> = data
        .split(|byte| *byte == b'\n')
        .filter_map(|l| OcEvent::parse(l).ok())
        .collect();
    let mut restored = turn();
    for (i, event) in events.iter().enumerate() {
        if i == events.len() / 2 {
            for mapped in &said {
                let Mapped { agent, body } = mapped;
                restored.restore(&Event {
                    turn: 1,
                    ts: jiff::Timestamp::UNIX_EPOCH,
                    agent: agent.clone(),
                    body: body.clone(),
                });
            }
        }
        said.extend(map.on_event(event));
        if i >= events.len() / 2 {
            restored.on_event(event);
        }
    }
    no_holes(&said);
    assert!(
        said.iter()
            .all(|m| m.agent == MAIN_AGENT || m.agent.starts_with("main/"))
    );
    // Every event of ours can be recorded and read.
    for mapped in said {
        let json = serde_json::to_vec(&mapped.body).expect("plain data has a JSON form");
        let read: EventBody = serde_json::from_slice(&json).expect("what was written can be read");
        assert_eq!(read.name(), mapped.body.name());
    }
    map.outcome();
    restored.outcome();
}

/// Stored messages laid over nothing and over themselves: the second time nothing is missing.
fn opencode_messages(data: &[u8]) {
    let Ok(messages) = Message::parse_list(data) else {
        return;
    };
    let mut map = turn();
    let mut said = map.on_messages("ses_root", &messages);
    said.extend(map.on_messages("ses_root", &messages));
    no_holes(&said);
    map.outcome();
}

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let model: ModelConfig = serde_json::from_value(serde_json::json!({
        "provider": "local", "model": "burrow-1", "api_key": "sk-hole", "temperature": 0.5, "max_tokens": 9,
        "api_endpoint": "http://127.0.0.1:9/v1",
    }))
    .expect("it has the fields of a model");
    Target::resolve(&PodConfig::default(), Some(&model)).expect("it brings everything along")
});

/// What OpenCode asks a model: nothing but model, temperature and limit changes.
fn model_request(data: &[u8]) {
    type Object<'a> = BTreeMap<String, &'a RawValue>;
    let Ok(fields) = Fields::read(data) else {
        return;
    };
    // Without a model it is refused before it is edited.
    if fields.model().is_err() {
        return;
    }
    let written = fields.write(&TARGET);
    let before: Object<'_> = serde_json::from_slice(data).expect("it was read before");
    let after: Object<'_> = serde_json::from_slice(&written).expect("what is sent is an object");
    let ours = [
        "model",
        "temperature",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
    ];
    assert_eq!(after["model"].get(), "\"burrow-1\"");
    let theirs = |o: &Object<'_>| -> Vec<(String, String)> {
        let theirs = o.iter().filter(|(name, _)| !ours.contains(&name.as_str()));
        theirs
            .map(|(name, value)| (name.clone(), value.get().to_owned()))
            .collect()
    };
    assert_eq!(theirs(&before), theirs(&after));
}

/// A line of the runner.
fn runner_reply(data: &[u8]) {
    if let Ok(reply) = serde_json::from_slice::<Reply>(data) {
        let value = serde_json::to_value(&reply).expect("plain data has a JSON form");
        let read: Reply = serde_json::from_value::<Value>(value)
            .and_then(serde_json::from_value)
            .expect("what was written can be read");
        assert_eq!(read, reply);
    }
}
