//! What goes over the wire, line for line, with fixed identifiers and time.

use std::sync::LazyLock;
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;

use crate::conversation::{Conversation, Dialect};
use crate::encode::Envelope;
use crate::library::Library;
use crate::plan::{Answer, Counters, Ids, Plan, Planner};
use crate::play;
use crate::record::Outcome;

/// Read once: parsing takes a while without optimization.
static LIBRARY: LazyLock<Library> = LazyLock::new(|| Library::builtin().unwrap());

fn plan(dialect: Dialect, prompt: &str) -> Plan {
    let list = if dialect == Dialect::Responses {
        "input"
    } else {
        "messages"
    };
    let body = json!({"model": "m-1", "stream": true, list: [{"role": "user", "content": prompt}]});
    let planner = Planner {
        library: &LIBRARY,
        counters: &Counters::default(),
        ids: &Ids::new("test"),
        word_delay: Duration::ZERO,
    };
    let talk = Conversation::read(dialect, &body).unwrap();
    planner.plan(dialect, &talk, Some("ses_1"), 400)
}

fn envelope() -> Envelope {
    Envelope {
        id: "id-1".into(),
        created: 1_700_000_000,
        model: "m-1".into(),
        stream_usage: true,
    }
}

async fn wire(dialect: Dialect, prompt: &str) -> String {
    let Answer::Reply(reply) = plan(dialect, prompt).answer else {
        panic!("no reply")
    };
    let (tx, mut rx) = mpsc::channel(1);
    let player = tokio::spawn(play::stream(dialect, envelope(), reply, tx));
    let mut out = Vec::new();
    while let Some(bytes) = rx.recv().await {
        out.extend_from_slice(&bytes.unwrap());
    }
    assert_eq!(player.await.unwrap(), Some(Outcome::Complete));
    let out = String::from_utf8(out).unwrap();
    assert!(out.ends_with("\n\n"));
    out.lines().map(sorted).collect::<Vec<_>>().join("\n")
}

/// The order of keys depends on serde_json's features, which other crates of a build
/// may turn on.
fn sorted(line: &str) -> String {
    let value = line
        .strip_prefix("data: ")
        .map(serde_json::from_str::<serde_json::Value>);
    let Some(Ok(mut value)) = value else {
        return line.to_owned();
    };
    value.sort_all_objects();
    format!("data: {value}")
}

const PROMPT: &str = "SCENARIO:script <<<
- parts:
    - think: Hm, a file.
    - say: Here you are.
    - tool: {name: write, args: {filePath: a.txt, content: 'forty characters are more than one delta'}}
    - tool: {name: bash, raw: 'not json'}
>>>";

#[tokio::test]
async fn chat() {
    insta::assert_snapshot!(wire(Dialect::Chat, PROMPT).await);
}

#[tokio::test]
async fn responses() {
    insta::assert_snapshot!(wire(Dialect::Responses, PROMPT).await);
}

#[tokio::test]
async fn messages() {
    insta::assert_snapshot!(wire(Dialect::Messages, PROMPT).await);
}

#[test]
fn every_built_in_scenario_can_be_played_in_every_dialect() {
    for (name, _) in LIBRARY.iter() {
        for dialect in [Dialect::Chat, Dialect::Responses, Dialect::Messages] {
            // 418 serves as a status, a count, a file's name and a command.
            let plan = plan(dialect, &format!("SCENARIO:{name} 418 7"));
            assert_eq!(plan.scenario.as_deref(), Some(name));
            if let Answer::Error { error, .. } = plan.answer {
                assert_ne!(
                    error.code.as_deref(),
                    Some("scripted_model"),
                    "{name}: {error:?}"
                );
            }
        }
    }
}

#[test]
fn repeated_steps_count_and_the_default_follows_the_last() {
    let ids = Ids::new("test");
    let at = |turns: usize| {
        let mut messages = vec![json!({"role": "user", "content": "SCENARIO:slow-tools 3"})];
        messages.resize(turns + 1, json!({"role": "assistant", "content": "x"}));
        let body = json!({"model": "m", "messages": messages});
        let talk = Conversation::read(Dialect::Chat, &body).unwrap();
        let planner = Planner {
            library: &LIBRARY,
            counters: &Counters::default(),
            ids: &ids,
            word_delay: Duration::ZERO,
        };
        match planner.plan(Dialect::Chat, &talk, None, 1).answer {
            Answer::Reply(reply) => format!("{:?}", reply.pieces[0]),
            other => panic!("{other:?}"),
        }
    };
    assert!(at(0).contains("Step 1 of many"));
    assert!(at(2).contains("Step 3 of many"));
    assert!(at(3).contains("All steps are done"));
    assert!(at(4).contains("1 user message(s)"));
}
