//! Reads the captures of `testdata`, see its README, and says what a reader must have been told.

use super::super::{Mapped, TurnMap};
use crate::agent::wire::{Message, OcEvent};
use contract::event::{Event, EventBody, Output, OutputSource};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub(super) struct Capture {
    pub(super) name: String,
    /// Root session and user message of each turn.
    pub(super) turns: Vec<(String, String)>,
    pub(super) events: Vec<OcEvent>,
    /// What `GET /session/{id}/message` answered in the end, parsed and raw.
    pub(super) stored: Vec<(String, Vec<Message>, Value)>,
}

#[derive(Deserialize)]
struct Line<'a> {
    turn: Option<Turn>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(borrow)]
    messages: Option<Stored<'a>>,
}

#[derive(Deserialize)]
struct Turn {
    session: String,
    message: String,
}

#[derive(Deserialize)]
struct Stored<'a> {
    session: String,
    #[serde(borrow)]
    list: &'a RawValue,
}

pub(super) fn folder() -> PathBuf {
    // Not `env!`: the files are read where the tests run.
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("testdata")
}

pub(super) fn all() -> Vec<Capture> {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| Some(name.strip_suffix(".jsonl")?.to_owned()))
        .collect();
    names.sort();
    assert!(names.len() > 20, "captures are missing: {names:?}");
    names.iter().map(|name| read(name)).collect()
}

pub(super) fn read(name: &str) -> Capture {
    let text = std::fs::read_to_string(folder().join(format!("{name}.jsonl"))).unwrap();
    let mut capture = Capture {
        name: name.to_owned(),
        turns: Vec::new(),
        events: Vec::new(),
        stored: Vec::new(),
    };
    for line in text.lines() {
        let line: Line<'_> = serde_json::from_str(line).unwrap();
        if let Some(turn) = line.turn {
            capture.turns.push((turn.session, turn.message));
        }
        if let Some(event) = line.event {
            let event = OcEvent::parse(event.get().as_bytes()).unwrap();
            capture.events.push(event);
        }
        if let Some(stored) = line.messages {
            let json = stored.list.get();
            let messages = Message::parse_list(json.as_bytes()).unwrap();
            let raw = serde_json::from_str(json).unwrap();
            capture.stored.push((stored.session, messages, raw));
        }
    }
    assert!(!capture.turns.is_empty() && !capture.stored.is_empty());
    capture
}

impl Capture {
    pub(super) fn map(&self, turn: usize) -> TurnMap {
        let (session, message) = self.turns[turn].clone();
        TurnMap::new(session, message, "/workspace".into())
    }

    /// Lays all stored messages over the map, as the turn's driver does after a gap and at the end.
    pub(super) fn settle(&self, map: &mut TurnMap) -> Vec<Mapped> {
        let mut said = Vec::new();
        let mut done = BTreeSet::new();
        while let Some((session, messages, _)) = self
            .stored
            .iter()
            .find(|(session, ..)| map.owns(session) && !done.contains(session))
        {
            said.extend(map.on_messages(session, messages));
            done.insert(session);
        }
        said
    }

    /// What the stored messages say that a reader of a turn must have been told. Written apart from
    /// the map and in another way.
    pub(super) fn truth(&self, turn: usize) -> Truth {
        let (root, message) = &self.turns[turn];
        let mut truth = Truth::default();
        for (session, _, list) in &self.stored {
            let mut asked: BTreeSet<&str> = BTreeSet::from([message.as_str()]);
            for entry in list.as_array().unwrap() {
                let info = &entry["info"];
                let parts = entry["parts"].as_array().unwrap();
                if info["role"] == "user" {
                    let by_opencode = |part: &Value| {
                        part["type"] == "compaction" || part["synthetic"] == Value::Bool(true)
                    };
                    let after = asked.contains(info["id"].as_str().unwrap())
                        || list_index(list, message)
                            < list_index(list, info["id"].as_str().unwrap());
                    if after && parts.iter().all(by_opencode) {
                        asked.insert(info["id"].as_str().unwrap());
                    }
                    continue;
                }
                let ours = session != root || asked.contains(info["parentID"].as_str().unwrap());
                if ours {
                    truth.answer(info, parts);
                }
            }
            if session != root {
                truth.children.insert(session.clone());
            }
        }
        truth
    }
}

fn list_index(list: &Value, id: &str) -> Option<usize> {
    let list = list.as_array().unwrap();
    list.iter().position(|entry| entry["info"]["id"] == id)
}

impl From<&Mapped> for Event {
    fn from(mapped: &Mapped) -> Self {
        Self {
            turn: 1,
            ts: jiff::Timestamp::UNIX_EPOCH,
            agent: mapped.agent.clone(),
            body: mapped.body.clone(),
        }
    }
}

/// What a reader of a turn must have been told.
#[derive(Default)]
pub(super) struct Truth {
    texts: BTreeMap<String, String>,
    /// Call → what its result says, and what it printed.
    calls: BTreeMap<String, (String, Option<String>)>,
    steps: BTreeSet<String>,
    thoughts: BTreeSet<String>,
    children: BTreeSet<String>,
}

impl Truth {
    fn answer(&mut self, info: &Value, parts: &[Value]) {
        let summary = info["summary"] == Value::Bool(true);
        for part in parts {
            let id = part["id"].as_str().unwrap().to_owned();
            let state = &part["state"];
            match part["type"].as_str().unwrap() {
                "text" if !summary => {
                    let text = part["text"].as_str().unwrap().to_owned();
                    if !text.is_empty() {
                        self.texts.insert(id, text);
                    }
                }
                "tool" => {
                    let said = state["output"].as_str().or(state["error"].as_str());
                    let printed = state["metadata"]["output"].as_str();
                    let said = said
                        .unwrap_or_else(|| panic!("{id} did not end"))
                        .to_owned();
                    self.calls.insert(id, (said, printed.map(str::to_owned)));
                }
                "step-start" | "step-finish" if !summary => {
                    self.steps.insert(id);
                }
                "reasoning" if !summary => {
                    self.thoughts.insert(id);
                }
                _ => {}
            }
        }
    }

    /// Reads the events as a reader does and compares.
    pub(super) fn check(&self, said: &[Mapped], what: &str) {
        let mut texts = BTreeMap::<String, String>::new();
        let mut printed = BTreeMap::<String, String>::new();
        let mut calls = BTreeMap::<String, String>::new();
        let mut results = BTreeMap::<String, String>::new();
        let mut steps = BTreeSet::new();
        let mut thoughts = BTreeSet::new();
        let mut children = BTreeSet::new();
        for mapped in said {
            match &mapped.body {
                EventBody::Output(output) if output.source == OutputSource::Assistant => {
                    lay(
                        texts.entry(output.part_id.clone()).or_default(),
                        output,
                        what,
                    );
                }
                EventBody::Output(output) => {
                    assert!(
                        calls.contains_key(&output.part_id),
                        "{what}: output before its call"
                    );
                    assert!(
                        !results.contains_key(&output.part_id),
                        "{what}: output after its result"
                    );
                    lay(
                        printed.entry(output.part_id.clone()).or_default(),
                        output,
                        what,
                    );
                }
                EventBody::ToolCall(call) => {
                    let before = calls.insert(call.call_id.clone(), call.tool.clone());
                    assert_eq!(before, None, "{what}: called twice");
                }
                EventBody::ToolResult(result) => {
                    assert_eq!(calls.get(&result.call_id), Some(&result.tool), "{what}");
                    let before = results.insert(result.call_id.clone(), result.output.clone());
                    assert_eq!(before, None, "{what}: ended twice");
                }
                EventBody::Status(status) => {
                    use contract::event::StatusKind as Kind;
                    let detail = |key: &str| {
                        status.detail.as_ref().unwrap()[key]
                            .as_str()
                            .unwrap()
                            .to_owned()
                    };
                    match status.status {
                        Kind::Step => {
                            assert!(steps.insert(detail("part_id")), "{what}: step twice");
                        }
                        Kind::Thinking => {
                            assert!(thoughts.insert(detail("part_id")), "{what}: thought twice");
                        }
                        Kind::SubAgent => {
                            assert!(children.insert(detail("session")), "{what}: child twice");
                            assert!(mapped.agent.starts_with("main/"));
                        }
                        _ => {}
                    }
                }
                EventBody::Error(_)
                | EventBody::Complete(_)
                | EventBody::Approval(_)
                | EventBody::Gap(_) => {}
            }
        }
        texts.retain(|_, text| !text.is_empty());
        assert_eq!(texts, self.texts, "{what}");
        assert_eq!(steps, self.steps, "{what}");
        assert_eq!(thoughts, self.thoughts, "{what}");
        assert_eq!(children, self.children, "{what}");
        let told: BTreeMap<_, _> = results.iter().collect();
        let stored: BTreeMap<_, _> = self
            .calls
            .iter()
            .map(|(id, (said, _))| (id, said))
            .collect();
        assert_eq!(told, stored, "{what}");
        assert_eq!(calls.len(), results.len(), "{what}");
        for (id, (_, shown)) in &self.calls {
            let printed = printed.remove(id).unwrap_or_default();
            let shown = shown.as_deref().unwrap_or_default();
            let end = shown.strip_prefix("...\n\n").unwrap_or(shown);
            assert!(
                printed.ends_with(end),
                "{what}: the end of what {id} printed is missing"
            );
            if end.len() == shown.len() {
                assert_eq!(printed, shown, "{what}: {id} printed something else");
            }
        }
        assert!(printed.is_empty(), "{what}: output of no call");
    }
}

fn lay(text: &mut String, output: &Output, what: &str) {
    if output.replace {
        text.clear();
    }
    assert_eq!(
        output.offset,
        text.len() as u64,
        "{what}: hole in {}",
        output.part_id
    );
    text.push_str(&output.text);
}
