//! The sidecar with the real runner and the real OpenCode; only the language model is a double.
//!
//! Needs OPENCODE_BIN (OpenCode's binary) and the runner's binary beside the sidecar's, or at
//! RUNNER_BIN. Everything listens on loopback.

#![expect(clippy::unwrap_used, reason = "a test tells by its panic")]

use contract::{
    Cursor, EventBody, SessionId,
    approval::{Answer, Decision},
    client::SidecarClient,
    event::TurnError,
    runner::{Phase, Reply, Request, State},
    session::{CreateSession, CreateTurn, SessionState},
};
use scripted_model::{Options, ScriptedModel};
use serde_json::json;
use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    process::{Child, Command},
    time::{Instant, timeout},
};

/// A cold start of OpenCode on a slow, shared machine.
const LONG: Duration = Duration::from_secs(90);

/// Sidecar, runner, OpenCode and model of one test. Dropping it kills them.
struct World {
    dir: tempfile::TempDir,
    model: ScriptedModel,
    ports: [u16; 4],
    port: u16,
    runner: Child,
    sidecar: Child,
    client: SidecarClient,
    http: reqwest::Client,
}

fn opencode() -> PathBuf {
    let path = std::env::var_os("OPENCODE_BIN")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            panic!("set OPENCODE_BIN to OpenCode's binary: this test runs the real one")
        });
    assert!(path.is_file(), "OPENCODE_BIN={} is no file", path.display());
    path
}

fn runner() -> PathBuf {
    let beside =
        Path::new(env!("CARGO_BIN_EXE_opencode-sidecar")).with_file_name("opencode-runner");
    let path = std::env::var_os("RUNNER_BIN").map_or(beside, PathBuf::from);
    assert!(
        path.is_file(),
        "{} is missing: cargo build -p runner",
        path.display()
    );
    path
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl World {
    async fn start() -> Self {
        Self::with_tools(json!([])).await
    }

    async fn with_tools(tools: serde_json::Value) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in [
            "workspace",
            "home",
            "tmp",
            "config",
            "keys/scripted",
            "journal",
            "run",
        ] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        let options = Options {
            keys: vec!["sk-real".into()],
            ..Options::default()
        };
        let model = ScriptedModel::start(options).await.unwrap();
        std::fs::write(at("keys/scripted/key"), "sk-real").unwrap();
        let config = json!({
            "name": "zebra", "namespace": "dune", "uid": "u-77",
            "providers": [{"name": "scripted", "kind": "compatible", "endpoint": model.base_url()}],
            "model": {"provider": "scripted", "name": "scripted-1"},
            "tools": tools,
        });
        std::fs::write(at("config/config.json"), config.to_string()).unwrap();
        let runner = Command::new(runner())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", at("home"))
            .env("TMPDIR", at("tmp"))
            .env("WORKSPACE_DIR", at("workspace"))
            .env("RUNNER_SOCKET", at("run/runner.sock"))
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(at("runner.log")).unwrap())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        // All are part of how OpenCode is started, so they stay when the sidecar starts again.
        let ports = [(); 4].map(|()| free_port());
        let [port, ..] = ports;
        let sidecar = sidecar(dir.path(), ports);
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let base = format!("http://127.0.0.1:{port}");
        let client = SidecarClient::new(http.clone(), base, "test-token".into());
        let world = Self {
            dir,
            model,
            ports,
            port,
            runner,
            sidecar,
            client,
            http,
        };
        world.ready().await;
        world
    }

    /// Waits until `/ready` says yes; tells the logs if it never does.
    async fn ready(&self) {
        let url = format!("http://127.0.0.1:{}/ready", self.port);
        let deadline = Instant::now() + LONG;
        loop {
            let answer = self
                .http
                .get(&url)
                .timeout(Duration::from_secs(5))
                .send()
                .await;
            let said = match answer {
                Ok(answer) if answer.status().is_success() => return,
                Ok(answer) => answer.text().await.unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            if Instant::now() > deadline {
                panic!("never ready: {said}\n{}", self.logs());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn logs(&self) -> String {
        ["sidecar.log", "runner.log"]
            .map(|name| {
                let text = std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
                let lines: Vec<&str> = text.lines().rev().take(40).collect();
                format!(
                    "--- {name}\n{}\n",
                    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
                )
            })
            .concat()
    }

    async fn ask_runner(&self, request: &Request) -> Reply {
        let socket = self.dir.path().join("run/runner.sock");
        let mut stream = BufReader::new(UnixStream::connect(socket).await.unwrap());
        let mut line = serde_json::to_vec(request).unwrap();
        line.push(b'\n');
        stream.write_all(&line).await.unwrap();
        let mut reply = String::new();
        timeout(LONG, stream.read_line(&mut reply))
            .await
            .unwrap()
            .unwrap();
        serde_json::from_str(&reply).unwrap()
    }

    async fn opencode_process(&self) -> (u64, u32) {
        match self.ask_runner(&Request::Watch).await {
            Reply::State(State {
                generation,
                phase: Phase::Running { pid },
                ..
            }) => (generation, pid),
            other => panic!("OpenCode does not run: {other:?}\n{}", self.logs()),
        }
    }

    async fn begin(&self, id: &str, prompt: &str) -> SessionId {
        let session_id = SessionId::new(id).unwrap();
        let body = CreateSession {
            session_id: session_id.clone(),
            prompt: prompt.into(),
            model_config: None,
            system_prompt: Some("Be brief.".into()),
        };
        self.client.create_session(&body).await.unwrap();
        session_id
    }

    /// All events of the session once `done` holds for the last of them.
    async fn events(&self, id: &SessionId, done: impl Fn(&[EventBody]) -> bool) -> Vec<EventBody> {
        let deadline = Instant::now() + LONG;
        loop {
            let mut all = Vec::new();
            let mut after: Option<Cursor> = None;
            loop {
                let page = self.client.events(id, after, 1000).await.unwrap();
                let bodies = page.events.into_iter().map(|numbered| {
                    serde_json::from_value::<contract::Event>(numbered.event)
                        .unwrap()
                        .body
                });
                all.extend(bodies);
                after = Some(page.next.parse().unwrap());
                if !page.more {
                    break;
                }
            }
            if done(&all) {
                return all;
            }
            if Instant::now() > deadline {
                panic!("not what was waited for: {all:#?}\n{}", self.logs());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn end(&self, id: &SessionId) -> Vec<EventBody> {
        self.events(id, |all| all.last().is_some_and(EventBody::ends_turn))
            .await
    }
}

fn sidecar(dir: &Path, [port, proxy_port, egress_port, opencode_port]: [u16; 4]) -> Child {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("sidecar.log"))
        .unwrap();
    Command::new(env!("CARGO_BIN_EXE_opencode-sidecar"))
        .env_clear()
        .env("HOST", "127.0.0.1")
        .env("PORT", port.to_string())
        .env("PROXY_PORT", proxy_port.to_string())
        .env("EGRESS_PORT", egress_port.to_string())
        .env("OPENCODE_PORT", opencode_port.to_string())
        .env("WORKSPACE_DIR", dir.join("workspace"))
        .env("AGENT_HOME", dir.join("home"))
        .env("CONFIG_DIR", dir.join("config"))
        .env("PROVIDER_KEYS_DIR", dir.join("keys"))
        .env("JOURNAL_DIR", dir.join("journal"))
        .env("RUNNER_SOCKET", dir.join("run/runner.sock"))
        .env("OPENCODE_PROGRAM", opencode())
        .env("OPENCODE_SHARED_SECRET", "test-token")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn complete(events: &[EventBody]) -> &contract::event::Complete {
    match events.last() {
        Some(EventBody::Complete(complete)) => complete,
        other => panic!("not complete: {other:#?}"),
    }
}

#[tokio::test]
async fn a_prompt_runs_to_its_end_and_its_changes_are_told() {
    let world = World::start().await;
    let id = world.begin("first", "SCENARIO:write-file please").await;
    let events = world.end(&id).await;
    let complete = complete(&events);
    assert_eq!(
        complete.final_message,
        "hello.txt is written.",
        "{}",
        world.logs()
    );
    assert_eq!(complete.files_modified, ["hello.txt"]);
    let written = std::fs::read_to_string(world.dir.path().join("workspace/hello.txt")).unwrap();
    assert_eq!(written, "hello\n");
    assert!(
        events
            .iter()
            .any(|event| matches!(event, EventBody::ToolCall(_)))
    );
    assert!(world.model.requests().len() >= 2);

    // OpenCode computes a run's difference a moment after its end.
    let url = format!("http://127.0.0.1:{}/sessions/first/diff", world.port);
    let deadline = Instant::now() + LONG;
    let diff = loop {
        let answer = world
            .http
            .get(&url)
            .bearer_auth("test-token")
            .send()
            .await
            .unwrap();
        let diff: contract::session::Diff = answer.json().await.unwrap();
        if !diff.files.is_empty() || Instant::now() > deadline {
            break diff;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(diff.files.len(), 1, "{diff:?}");
    assert_eq!(
        (diff.files[0].path.as_str(), diff.files[0].status.as_str()),
        ("hello.txt", "added")
    );
    assert!(diff.files[0].patch.contains("+hello"), "{diff:?}");
}

#[tokio::test]
async fn opencode_is_killed_in_mid_turn_and_comes_back() {
    let world = World::start().await;
    let id = world.begin("killed", "SCENARIO:slow 2000 20").await;
    world
        .events(&id, |all| {
            all.iter()
                .filter(|e| matches!(e, EventBody::Output(_)))
                .count()
                > 3
        })
        .await;
    let (generation, pid) = world.opencode_process().await;
    kill(pid);
    let events = world.end(&id).await;
    let Some(EventBody::Error(error)) = events.last() else {
        panic!("no error: {:#?}", events.last());
    };
    assert_eq!(
        (error.code, error.fatal),
        (TurnError::AgentDied, true),
        "{error:?}"
    );
    world.ready().await;
    let (after, other) = world.opencode_process().await;
    assert!(after > generation && other != pid);

    // The session lives on in OpenCode's database.
    let body = CreateTurn {
        prompt: "SCENARIO:hello again".into(),
        api_key: None,
    };
    world.client.create_turn(&id, &body).await.unwrap();
    let is_second = |all: &[EventBody]| all.iter().filter(|event| event.ends_turn()).count() == 2;
    let events = world.events(&id, is_second).await;
    assert!(!complete(&events).final_message.is_empty());
    assert_eq!(
        world.client.session(&id).await.unwrap().status,
        SessionState::Completed
    );
}

#[tokio::test]
async fn a_cancelled_turn_leaves_nothing_running() {
    let world = World::start().await;
    let id = world.begin("cancelled", "SCENARIO:bash-sleep 301").await;
    world
        .events(&id, |all| {
            all.iter().any(|e| matches!(e, EventBody::ToolCall(_)))
        })
        .await;
    world.client.cancel(&id).await.unwrap();
    let events = world.end(&id).await;
    assert!(
        matches!(events.last(), Some(EventBody::Status(_))),
        "{:#?}",
        events.last()
    );
    // The command has a child that OpenCode does not know.
    assert_eq!(
        world.ask_runner(&Request::Reap).await,
        Reply::Reaped { killed: 0 }
    );
    let body = CreateTurn {
        prompt: "SCENARIO:hello again".into(),
        api_key: None,
    };
    world.client.create_turn(&id, &body).await.unwrap();
    let events = world
        .events(&id, |all| {
            matches!(all.last(), Some(EventBody::Complete(_)))
        })
        .await;
    complete(&events);
}

#[tokio::test]
async fn a_tool_that_needs_consent_waits_for_it() {
    let world = World::with_tools(json!([{"name": "bash", "action": "ask"}])).await;
    let id = world
        .begin("asked", "SCENARIO:bash <<<echo asked > asked.txt>>>")
        .await;
    let is_pending = |all: &[EventBody]| all.iter().any(|e| matches!(e, EventBody::Approval(_)));
    world.events(&id, is_pending).await;
    let file = world.dir.path().join("workspace/asked.txt");
    assert!(!file.exists());
    let approvals = world.client.approvals(&id).await.unwrap().approvals;
    assert_eq!(
        (approvals.len(), approvals[0].permission.as_str()),
        (1, "bash")
    );
    let answer = Answer {
        decision: Decision::Once,
        message: None,
    };
    world
        .client
        .answer(&id, &approvals[0].approval_id, &answer)
        .await
        .unwrap();
    complete(&world.end(&id).await);
    assert!(file.exists());
}

#[tokio::test]
async fn a_killed_sidecar_finds_the_same_opencode_again() {
    let mut world = World::start().await;
    let id = world.begin("kept", "SCENARIO:hello").await;
    complete(&world.end(&id).await);
    let before = world.opencode_process().await;
    world.sidecar.kill().await.unwrap();
    world.sidecar = sidecar(world.dir.path(), world.ports);
    world.ready().await;
    assert_eq!(world.opencode_process().await, before);
    let body = CreateTurn {
        prompt: "SCENARIO:hello again".into(),
        api_key: None,
    };
    world.client.create_turn(&id, &body).await.unwrap();
    let is_second = |all: &[EventBody]| all.iter().filter(|event| event.ends_turn()).count() == 2;
    complete(&world.events(&id, is_second).await);
    assert!(world.runner.try_wait().unwrap().is_none());
}
