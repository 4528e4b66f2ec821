//! Pod, sidecar and agent die in mid-turn. Needs to run on the node.

use contract::{
    EventBody, SessionId,
    event::{OutputSource, StatusKind, TurnError},
};
use futures::StreamExt;
use serde_json::json;
use std::time::Instant;
use tests::{
    Recorder, Session, eventually, node, opencode, run,
    session::{READY, TURN},
};

/// Prints for a while, and remembers.
const WORK: &str = "REMEMBER:umber-kettle SCENARIO:bash <<<i=0; while [ $i -lt 600 ]; do i=$((i+1)); echo \"beat $i\"; sleep 0.1; done>>>";

fn beats(reader: &Recorder) -> usize {
    reader
        .texts(OutputSource::Tool)
        .values()
        .map(|text| text.lines().count())
        .sum()
}

fn text_len(reader: &Recorder) -> usize {
    reader
        .texts(OutputSource::Assistant)
        .values()
        .map(String::len)
        .sum()
}

/// Each turn has exactly one last event; the first one's is this.
fn ended_once(history: &Recorder, turns: usize) -> TurnError {
    history.check();
    let ends = history.ends();
    assert_eq!(ends.len(), turns, "{ends:#?}");
    match &ends[0].body {
        EventBody::Error(error) => error.code,
        other => panic!("the first turn ended with {other:?}"),
    }
}

/// A reader that stays, another that is cut twenty times; both see one and the same history.
#[test]
fn a_pod_deleted_in_mid_turn_has_a_successor_that_remembers() {
    run("poddies", |ns| async move {
        let (session, _model) = Session::apply(&ns, "lapwing", Some(WORK), json!({})).await;
        let id = session.prompt_id();
        let mut before = Recorder::default();
        tokio::time::timeout(TURN, before.read_until(&session, &id, |r| beats(r) >= 10))
            .await
            .expect("bash prints");
        let (pod, _) = session.restarts().await;
        let claim = ns
            .kubectl(
                &[
                    "get",
                    "pvc",
                    "lapwing-workspace",
                    "-o",
                    "jsonpath={.metadata.uid}",
                ],
                "",
            )
            .await;

        let mut follower = Recorder::default();
        let mut chaotic = Recorder::default();
        let deleted = std::sync::OnceLock::new();
        let follow = async {
            while !follower.ended() {
                let mut stream = follower
                    .connect(&session, &id, true)
                    .await
                    .expect("a follower is never sent away");
                while let Some(Ok(event)) = stream.next().await {
                    follower.take(&event);
                    if follower.ended() {
                        break;
                    }
                }
            }
            Instant::now()
        };
        let chaos = async {
            let mut wanted = 0_usize;
            while !(chaotic.ended() && chaotic.connections > 20) {
                if chaotic.connections == 8 {
                    ns.kubectl(&["delete", "pod", "lapwing", "--wait=false"], "")
                        .await;
                    deleted.get_or_init(Instant::now);
                }
                if chaotic.ended() {
                    // The turn was over before twenty cuts: once more from the beginning.
                    let connections = chaotic.connections;
                    chaotic = Recorder::default();
                    chaotic.connections = connections;
                }
                let Some(mut stream) = chaotic.open(&session, &id).await else {
                    continue;
                };
                let mut got = 0;
                wanted = wanted % 3 + 1;
                while let Some(Ok(event)) = stream.next().await {
                    chaotic.take(&event);
                    got += 1;
                    if got >= wanted && chaotic.connections <= 20 {
                        break;
                    }
                }
            }
        };
        let (ended_at, ()) = tokio::time::timeout(2 * TURN, async { tokio::join!(follow, chaos) })
            .await
            .expect("both readers see the end");
        let deleted = *deleted.get().expect("the pod was deleted");
        eprintln!(
            "FIGURE pod deleted -> a follower has the turn's end: {:?}",
            ended_at.duration_since(deleted)
        );
        eprintln!(
            "FIGURE connections: follower {}, chaotic {}",
            follower.connections, chaotic.connections
        );
        let now = eventually("another pod", READY, || async {
            let uid = session.pod_uid().await;
            if uid == pod {
                Err("the same pod".into())
            } else {
                Ok(uid)
            }
        })
        .await;
        session.ready().await;
        eprintln!(
            "FIGURE pod deleted -> successor Ready: {:?}",
            deleted.elapsed()
        );
        let same = ns
            .kubectl(
                &[
                    "get",
                    "pvc",
                    "lapwing-workspace",
                    "-o",
                    "jsonpath={.metadata.uid}",
                ],
                "",
            )
            .await;
        assert_eq!(same, claim, "the same claim");

        let history = session.read(&id).await;
        for (who, reader) in [
            ("first", &before),
            ("follower", &follower),
            ("chaotic", &chaotic),
        ] {
            assert!(
                reader.gaps.is_empty(),
                "{who} was told of a gap: {:?}",
                reader.gaps
            );
            history.continues(reader);
        }
        assert_eq!(history.events.len(), follower.events.len());
        let code = ended_once(&history, 1);
        eprintln!("FIGURE pod deleted in mid-turn: {code:?}");
        assert!(
            matches!(
                code,
                TurnError::AgentDied | TurnError::Interrupted | TurnError::ShuttingDown
            ),
            "{code:?}"
        );

        session.turn(&id, "SCENARIO:recall").await;
        let second = session.read(&id).await;
        second.continues(&history);
        ended_once(&second, 2);
        assert!(
            second.completed().final_message.contains("umber-kettle"),
            "{:?}",
            second.completed()
        );
        assert_eq!(session.pod_uid().await, now, "one successor");
    });
}

/// What readers got is what OpenCode stored: each text part whole, no part more and none less.
async fn same_as_stored(session: &Session, id: &SessionId, history: &Recorder) {
    let stored = opencode::stored(session, id).await;
    let told = history
        .texts(OutputSource::Assistant)
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .collect();
    assert_eq!(
        stored.texts, told,
        "left: stored by OpenCode, right: told to readers"
    );
    let results: Vec<_> = history
        .events
        .iter()
        .filter_map(|seen| match &seen.event.body {
            EventBody::ToolResult(result) if result.ok => Some((&result.call_id, &result.output)),
            _ => None,
        })
        .collect();
    for (call, output) in &results {
        assert_eq!(stored.outputs.get(*call), Some(*output), "result of {call}");
    }
    if matches!(
        history.events.last().map(|e| &e.event.body),
        Some(EventBody::Complete(_))
    ) {
        assert_eq!(
            results.len(),
            stored.outputs.len(),
            "{:?}",
            stored.outputs.keys()
        );
    }
}

struct Moment {
    name: &'static str,
    prompt: &'static str,
    is_now: fn(&Recorder) -> bool,
}

const MOMENTS: [Moment; 3] = [
    Moment {
        name: "in the first words",
        prompt: "SCENARIO:slow 250 20",
        is_now: |r| text_len(r) > 0,
    },
    Moment {
        name: "in the middle of the text",
        prompt: "SCENARIO:slow 250 20",
        is_now: |r| text_len(r) > 700,
    },
    Moment {
        name: "while a tool prints",
        prompt: "SCENARIO:bash-chatty",
        is_now: |r| beats(r) > 60,
    },
];

#[test]
fn a_sidecar_killed_in_mid_delta_loses_and_doubles_nothing() {
    run("sidecardies", |ns| async move {
        let (session, _model) = Session::apply(&ns, "oystercatcher", None, json!({})).await;
        session.ready().await;
        let (pod, _) = session.restarts().await;
        for (round, moment) in MOMENTS.iter().enumerate() {
            let id = session
                .create(&format!("moment-{round}"), moment.prompt)
                .await;
            let mut reader = Recorder::default();
            let (mut killed, mut back, mut at_kill) = (None, None, 0);
            let reading = async {
                while !reader.ended() {
                    let Some(mut stream) = reader.open(&session, &id).await else {
                        panic!("204 in mid-turn: {reader:#?}")
                    };
                    while let Some(Ok(event)) = stream.next().await {
                        reader.take(&event);
                        if killed.is_some() {
                            back.get_or_insert_with(Instant::now);
                        } else if (moment.is_now)(&reader) {
                            node::kill(node::process(&pod, "sidecar"));
                            killed = Some(Instant::now());
                            at_kill = reader.events.len();
                        }
                    }
                }
            };
            tokio::time::timeout(2 * TURN, reading)
                .await
                .unwrap_or_else(|_| panic!("{}: no end; {reader:#?}", moment.name));
            let killed = killed.expect("killed");
            eprintln!(
                "FIGURE sidecar killed {}: reader goes on after {:?}, turn ends after {:?} with {}, {} of {} events before",
                moment.name,
                back.map(|at| at.duration_since(killed)),
                killed.elapsed(),
                serde_json::to_string(&reader.events.last().map(|e| &e.event))
                    .expect("JSON")
                    .chars()
                    .take(160)
                    .collect::<String>(),
                at_kill,
                reader.events.len(),
            );
            reader.check();
            assert_eq!(reader.ends().len(), 1);
            assert!(reader.gaps.is_empty(), "{:?}", reader.gaps);
            // A late reader sees the same bytes as the one who was there.
            let late = session.read(&id).await;
            late.continues(&reader);
            assert_eq!(late.events.len(), reader.events.len());
            same_as_stored(&session, &id, &reader).await;
            // The conversation goes on.
            session.turn(&id, "SCENARIO:count").await;
            let next = session.read(&id).await;
            next.continues(&reader);
            assert_eq!(next.completed().final_message.trim(), "2");
            same_as_stored(&session, &id, &next).await;
        }
        let (same, restarts) = session.restarts().await;
        assert_eq!(
            (same, restarts["agent"], restarts["sidecar"]),
            (pod, 0, 3),
            "the pod and its agent are the same"
        );
    });
}

#[test]
fn an_opencode_killed_in_mid_turn_ends_it_and_the_next_one_remembers() {
    run("agentdies", |ns| async move {
        let (session, _model) = Session::apply(&ns, "greenshank", Some(WORK), json!({})).await;
        let id = session.prompt_id();
        let mut reader = Recorder::default();
        tokio::time::timeout(TURN, reader.read_until(&session, &id, |r| beats(r) >= 5))
            .await
            .expect("bash prints");
        let before = session.restarts().await;
        let killed = Instant::now();
        node::kill(node::process(&before.0, "opencode"));
        tokio::time::timeout(TURN, reader.read_to_end(&session, &id))
            .await
            .expect("the turn ends");
        eprintln!(
            "FIGURE OpenCode killed -> turn ended: {:?}",
            killed.elapsed()
        );
        assert_eq!(ended_once(&reader, 1), TurnError::AgentDied);

        session.turn(&id, "SCENARIO:recall").await;
        let second = session.read(&id).await;
        eprintln!(
            "FIGURE OpenCode killed -> next turn complete: {:?}",
            killed.elapsed()
        );
        second.continues(&reader);
        ended_once(&second, 2);
        assert!(
            second.completed().final_message.contains("umber-kettle"),
            "{:?}",
            second.completed()
        );
        assert!(second.events.iter().any(|e| e.event.turn == 2
            && matches!(&e.event.body, EventBody::Status(s) if s.status == StatusKind::Running)));
        assert_eq!(
            session.restarts().await,
            before,
            "the runner starts it again; no container does"
        );
        // What the dead one had started is gone too.
        let said = session
            .exec(
                "agent",
                &["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"],
            )
            .await;
        assert!(said.ok && !said.out.contains("beat"), "{}", said.out);
        same_as_stored(&session, &id, &second).await;
    });
}
