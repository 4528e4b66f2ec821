//! A hostile OpenCode on OpenCode's port. What it does to a session follows from the prompt.

use crate::stack::{Setup, Stack};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, patch, post},
};
use http::StatusCode;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, sync::broadcast};

/// The program that the runner starts in OpenCode's place; the port is served by this process.
const PROGRAM: &str = "#!/bin/sh\nexec sleep 1000000\n";

/// What a session of the double is doing.
#[derive(Clone, Debug, Default)]
struct Run {
    busy: bool,
    /// What `GET /session/{id}/message` answers.
    messages: Vec<Value>,
    /// An abort ends it.
    obeys: bool,
    /// The first abort comes before the run, which begins after it as this says.
    begins: Option<Begins>,
    /// It is about to, unless it is aborted once more.
    comes: bool,
    /// It answers this instead, without end.
    endless: bool,
}

/// How a run begins that was aborted too early.
#[derive(Clone, Copy, Debug)]
enum Begins {
    /// After the looks that follow an abort.
    Late,
    /// At once, which is told before it is to be asked for.
    AtOnce,
    /// Late, and the event of it is lost.
    Unsaid,
}

#[derive(Clone)]
struct Double {
    events: broadcast::Sender<Bytes>,
    runs: Arc<Mutex<BTreeMap<String, Run>>>,
    /// Its models cannot be read; whoever hears that is to start it anew, which heals it.
    spoilt: Arc<AtomicBool>,
}

/// A stack whose OpenCode is the double.
pub(crate) async fn stack(setup: Setup) -> Stack {
    Stack::start_with(
        Setup {
            program: Some(PROGRAM),
            ..setup
        },
        |port| async move {
            let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
            let (events, _) = broadcast::channel(4096);
            let double = Double {
                events,
                runs: Arc::default(),
                spoilt: Arc::default(),
            };
            tokio::spawn(async move { axum::serve(listener, router(double)).await });
        },
    )
    .await
}

fn router(double: Double) -> Router {
    let empty = || async { Json(json!([])) };
    Router::new()
        .route(
            "/global/health",
            get(|| async { Json(json!({"healthy": true, "version": "1.18.33"})) }),
        )
        .route("/event", get(events))
        .route("/config/providers", get(models))
        .route("/api/session", post(create))
        .route("/session/status", get(status))
        .route("/session/{id}", patch(|| async { Json(json!({})) }))
        .route("/session/{id}/abort", post(abort))
        .route("/session/{id}/children", get(empty))
        .route("/session/{id}/message", get(messages))
        .route(
            "/session/{id}/message/{message}",
            get(|| async { StatusCode::NOT_FOUND }),
        )
        .route("/session/{id}/prompt_async", post(prompt))
        .route("/permission", get(empty))
        .route("/question", get(empty))
        .with_state(double)
}

async fn events(State(double): State<Double>) -> Response {
    let receiver = double.events.subscribe();
    let first = event("server.connected", json!({}));
    let stream = futures::stream::unfold((Some(first), receiver), |(first, mut receiver)| async {
        if let Some(first) = first {
            return Some((Ok::<_, Infallible>(first), (None, receiver)));
        }
        loop {
            match receiver.recv().await {
                Ok(bytes) => return Some((Ok(bytes), (None, receiver))),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    });
    (
        [("content-type", "text/event-stream")],
        Body::from_stream(stream),
    )
        .into_response()
}

fn event(kind: &str, properties: Value) -> Bytes {
    let event = json!({"id": "evt_1", "type": kind, "properties": properties});
    Bytes::from(format!("data: {event}\n\n"))
}

async fn create(State(double): State<Double>, Json(body): Json<Value>) -> Json<Value> {
    let id = body["id"].as_str().unwrap().to_owned();
    double.runs.lock().unwrap().entry(id.clone()).or_default();
    Json(json!({"data": {"id": id}}))
}

async fn models(State(double): State<Double>) -> Response {
    if double.spoilt.swap(false, Ordering::SeqCst) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    Json(json!({"providers": [], "default": {}})).into_response()
}

async fn status(State(double): State<Double>) -> Json<Value> {
    let runs = double.runs.lock().unwrap();
    let busy = runs.iter().filter(|(_, run)| run.busy);
    Json(
        busy.map(|(id, _)| (id.clone(), json!({"type": "busy"})))
            .collect::<Value>(),
    )
}

async fn abort(State(double): State<Double>, Path(id): Path<String>) -> Json<bool> {
    let mut begins = None;
    double.run(&id, |run| {
        run.busy &= !run.obeys;
        begins = run.begins.take();
        run.comes = begins.is_some();
    });
    if let Some(begins) = begins {
        let busy = json!({"sessionID": id, "status": {"type": "busy"}});
        let busy = event("session.status", busy);
        if matches!(begins, Begins::AtOnce) {
            double.say(busy.clone());
        }
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let mut comes = false;
            double.run(&id, |run| {
                comes = run.comes;
                run.busy |= comes;
                run.obeys = true;
            });
            if comes && matches!(begins, Begins::Late) {
                double.say(busy);
            }
        });
    }
    Json(true)
}

async fn messages(State(double): State<Double>, Path(id): Path<String>) -> Response {
    let run = double
        .runs
        .lock()
        .unwrap()
        .get(&id)
        .cloned()
        .unwrap_or_default();
    if run.endless {
        let chunk = Bytes::from(vec![b'['; 1024 * 1024]);
        let stream = futures::stream::repeat_with(move || Ok::<_, Infallible>(chunk.clone()));
        return Body::from_stream(stream).into_response();
    }
    Json(run.messages).into_response()
}

async fn prompt(
    State(double): State<Double>,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> StatusCode {
    let text = body["parts"][0]["text"].as_str().unwrap().to_owned();
    let user = body["messageID"].as_str().unwrap().to_owned();
    tokio::spawn(async move { double.play(&id, &user, &text).await });
    StatusCode::NO_CONTENT
}

impl Double {
    fn say(&self, bytes: impl Into<Bytes>) {
        // Nobody may be listening.
        let _ = self.events.send(bytes.into());
    }

    fn run(&self, id: &str, change: impl FnOnce(&mut Run)) {
        change(self.runs.lock().unwrap().entry(id.to_owned()).or_default());
    }

    async fn play(&self, id: &str, user: &str, prompt: &str) {
        match prompt {
            "silence" => {}
            "begins late" => self.run(id, |run| run.begins = Some(Begins::Late)),
            "begins at once" => self.run(id, |run| run.begins = Some(Begins::AtOnce)),
            "begins unsaid" => self.run(id, |run| run.begins = Some(Begins::Unsaid)),
            "error, never idle" => {
                let error = json!({"name": "UnknownError", "data": {"message": "Agent not found: \"nope\""}});
                self.say(event(
                    "session.error",
                    json!({"sessionID": id, "error": error}),
                ));
            }
            "error, spoilt" => {
                self.spoilt.store(true, Ordering::SeqCst);
                let error = json!({"name": "UnknownError", "data": {"message": "Error: All fibers interrupted without error"}});
                self.say(event(
                    "session.error",
                    json!({"sessionID": id, "error": error}),
                ));
            }
            "error, busy for ever" => {
                self.run(id, |run| run.busy = true);
                let error = json!({"name": "UnknownError", "data": {"message": "Failed to execute statement"}});
                self.say(event(
                    "session.error",
                    json!({"sessionID": id, "error": error}),
                ));
            }
            "endless line" => {
                self.run(id, |run| run.busy = true);
                self.say(&b"data: {\"type\":\"message.updated\",\"properties\":{\"x\":\""[..]);
                let piece = Bytes::from(vec![b'x'; 1024 * 1024]);
                for _ in 0..300 {
                    self.say(piece.clone());
                    tokio::task::yield_now().await;
                }
                self.say(&b"\"}}\n\n"[..]);
                self.answer(id, user, "after the endless line");
            }
            "flood" | "flood, idle" => {
                self.run(id, |run| run.busy = prompt == "flood");
                for n in 0..100_000 {
                    let part = json!({"id": format!("prt_{n}"), "messageID": "msg_other", "sessionID": "ses_other",
                        "type": "text", "text": "flood ".repeat(20)});
                    self.say(event("message.part.updated", json!({"part": part})));
                    self.say(event(&format!("kind.{n}"), json!({"sessionID": id})));
                    if n % 100 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                self.answer(id, user, "after the flood");
            }
            "lies" => {
                for lie in lies(id, user) {
                    self.say(lie);
                }
                self.answer(id, user, "after the lies");
            }
            "endless messages" => {
                self.run(id, |run| run.endless = true);
                self.say(event("session.idle", json!({"sessionID": id})));
            }
            text => self.answer(id, user, text),
        }
    }

    /// A proper answer, to the end.
    fn answer(&self, id: &str, user: &str, text: &str) {
        let part = format!("prt_{user}");
        let message = format!("msg_z{user}");
        let info = json!({"id": message, "sessionID": id, "role": "assistant", "parentID": user, "mode": "build",
            "finish": "stop", "time": {"created": 1_800_000_000_000_i64, "completed": 1_800_000_000_001_i64}});
        let part = json!({"id": part, "messageID": message, "sessionID": id, "type": "text", "text": text,
            "time": {"start": 1, "end": 2}});
        self.run(id, |run| {
            run.messages.push(json!({"info": info, "parts": [part]}));
            run.busy = false;
        });
        self.say(event(
            "message.updated",
            json!({"sessionID": id, "info": info}),
        ));
        self.say(event(
            "message.part.updated",
            json!({"sessionID": id, "part": part}),
        ));
        self.say(event("session.idle", json!({"sessionID": id})));
    }
}

/// Events that make no sense, or are none of this session's business.
fn lies(id: &str, user: &str) -> Vec<Bytes> {
    let huge = "9".repeat(400);
    let deep = format!("data: {}{}\n\n", "[".repeat(100_000), "]".repeat(100_000));
    let many: Vec<Value> = (0..5_000)
        .map(|n| json!({"content": format!("todo {n}"), "status": 7}))
        .collect();
    let mut lies = vec![
        Bytes::from_static(b"data: {\n\n"),
        Bytes::from_static(b"data: null\n\n"),
        Bytes::from_static(b"data: {\"type\":7,\"properties\":[]}\n\n"),
        Bytes::from_static(b"data: \xff\xfe\x00\n\n"),
        Bytes::from_static(b"id: 1\nevent: x\nretry: 999999999999\nnonsense\n\n"),
        Bytes::from(deep),
        Bytes::from(format!(
            "data: {{\"type\":\"session.status\",\"properties\":{{\"sessionID\":\"{id}\",\"status\":{{\"type\":\"retry\",\"attempt\":{huge},\"next\":{huge}}}}}}}\n\n"
        )),
        event(
            "session.status",
            json!({"sessionID": id, "status": {"type": "retry", "attempt": -1, "next": i64::MIN, "message": 7}}),
        ),
        event(
            "session.status",
            json!({"sessionID": id, "status": {"type": "retry", "attempt": 1, "next": i64::MAX, "message": "x".repeat(100_000)}}),
        ),
        event("session.status", json!({"sessionID": id, "status": "idle"})),
        event(
            "session.created",
            json!({"info": {"id": id, "parentID": id}}),
        ),
        event(
            "session.created",
            json!({"info": {"id": "ses_kid", "parentID": id, "title": "\u{0}\u{1b}[31m"}}),
        ),
        event(
            "session.created",
            json!({"info": {"id": id, "parentID": "ses_kid"}}),
        ),
        event("todo.updated", json!({"sessionID": id, "todos": many})),
        event(
            "permission.asked",
            json!({"id": "", "sessionID": "ses_other", "permission": "bash", "patterns": ["x"]}),
        ),
        event(
            "message.updated",
            json!({"sessionID": id, "info": {"id": "msg_l", "role": "assistant", "parentID": user,
            "sessionID": id, "time": {"created": -1}, "tokens": {"input": u64::MAX, "output": -5.5, "cache": {"read": "many"}}, "cost": 1e308}}),
        ),
        event(
            "message.part.updated",
            json!({"part": {"id": "prt_l", "messageID": "msg_l", "sessionID": id, "type": "step-finish",
            "reason": "tool-calls", "tokens": {"input": u64::MAX, "output": u64::MAX, "cache": {"read": u64::MAX, "write": u64::MAX}}}}),
        ),
        event(
            "message.part.updated",
            json!({"part": {"id": "prt_p", "messageID": "msg_l", "sessionID": id, "type": "patch",
            "files": ["/etc/shadow", "../../x", "\u{0}", "", 7, "a".repeat(10_000)]}}),
        ),
    ];
    // Deltas of another session, of an unknown part and of the user's own message.
    for (session, part) in [("ses_other", "prt_1"), (id, "prt_unknown"), ("", "prt_1")] {
        lies.push(event(
            "message.part.delta",
            json!({"sessionID": session, "messageID": user, "partID": part, "field": "text", "delta": "STOLEN"}),
        ));
    }
    lies
}
