//! Sidecar, runner, OpenCode and model of a test, or shared by those that break nothing.

use crate::{
    process::{self, Guard},
    reader::Reader,
};
use contract::{
    SessionId,
    client::{ClientError, SidecarClient},
    runner::{Phase, Reply, Request, State},
    session::{CreateSession, CreateTurn, Session},
};
use scripted_model::{Options, ScriptedModel};
use serde_json::{Value, json};
use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    runtime::Runtime,
    sync::{OnceCell, Semaphore},
    time::{Instant, timeout},
};

/// Longer than anything takes on a slow, shared machine.
pub const LONG: Duration = Duration::from_secs(120);
/// The token of every stack.
pub const TOKEN: &str = "test-token";

/// One runtime for all: connections and the model outlive a single test.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
});
/// Stacks that start at once: each costs a core for seconds.
static PLACES: Semaphore = Semaphore::const_new(2);
static SHARED: OnceCell<Stack> = OnceCell::const_new();
static NAMES: AtomicU32 = AtomicU32::new(0);

/// Runs a test.
pub fn run(test: impl Future<Output = ()>) {
    RUNTIME.block_on(test);
}

/// How a stack differs from the usual one.
pub struct Setup {
    /// Environment of the sidecar.
    pub env: Vec<(&'static str, String)>,
    /// Fields of the pod's configuration.
    pub config: Value,
    /// Another program than OpenCode.
    pub program: Option<&'static str>,
    /// Folders on a small volume of their own: name and size.
    pub volumes: Vec<(&'static str, &'static str)>,
}

impl Default for Setup {
    fn default() -> Self {
        let seconds = |name, value: &str| (name, value.to_owned());
        Self {
            env: vec![
                seconds("MODEL_HEADER_TIMEOUT", "2"),
                seconds("MODEL_CHUNK_TIMEOUT", "2"),
            ],
            config: json!({
                "limits": {"maxConcurrentSessions": 40, "turnTimeoutSeconds": 600},
                "tools": [{"name": "edit", "action": "ask"}],
            }),
            program: None,
            volumes: Vec::new(),
        }
    }
}

impl Setup {
    pub fn env(mut self, name: &'static str, value: impl ToString) -> Self {
        self.env.push((name, value.to_string()));
        self
    }

    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }
}

/// The processes. Dropping it ends them and removes their folder.
pub struct Stack {
    pub dir: PathBuf,
    pub model: ScriptedModel,
    pub port: u16,
    pub proxy_port: u16,
    pub opencode_port: u16,
    pub client: SidecarClient,
    pub http: reqwest::Client,
    runner: Mutex<Child>,
    sidecar: Mutex<Child>,
    setup: Setup,
    guard: Option<Guard>,
}

/// The stack that tests share which leave it as it was.
pub async fn shared() -> &'static Stack {
    SHARED.get_or_init(|| Stack::start(Setup::default())).await
}

impl Stack {
    pub async fn start(setup: Setup) -> Self {
        Self::start_with(setup, |_| async {}).await
    }

    /// Starts; `before` gets OpenCode's port and may serve it itself.
    pub async fn start_with<F: Future<Output = ()>>(
        setup: Setup,
        before: impl FnOnce(u16) -> F,
    ) -> Self {
        let _place = PLACES.acquire().await.unwrap();
        let dir = tempfile::Builder::new()
            .prefix("surprises.")
            .tempdir()
            .unwrap()
            .keep();
        let guard = Guard::new(&dir);
        for folder in [
            "workspace",
            "home",
            "tmp",
            "config",
            "keys/scripted",
            "journal",
            "run",
        ] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        for (name, size) in &setup.volumes {
            mount(&dir, name, size);
        }
        let options = Options {
            keys: vec!["sk-real".into(), "sk-own".into()],
            ..Options::default()
        };
        let model = ScriptedModel::start(options).await.unwrap();
        fs::write(dir.join("keys/scripted/key"), "sk-real").unwrap();
        configure(&dir, &model.base_url(), setup.config.clone());
        let [port, proxy_port, opencode_port] = free_ports();
        before(opencode_port).await;
        let runner = start_runner(&dir);
        guard.add(runner.id());
        let sidecar = start_sidecar(&dir, [port, proxy_port, opencode_port], &setup);
        guard.add(sidecar.id());
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let client = SidecarClient::new(
            http.clone(),
            format!("http://127.0.0.1:{port}"),
            TOKEN.into(),
        );
        let stack = Self {
            dir,
            model,
            port,
            proxy_port,
            opencode_port,
            client,
            http,
            runner: Mutex::new(runner),
            sidecar: Mutex::new(sidecar),
            setup,
            guard: Some(guard),
        };
        stack.ready().await;
        stack
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Waits until `/ready` says yes.
    pub async fn ready(&self) {
        let deadline = Instant::now() + LONG;
        loop {
            let answer = self
                .http
                .get(self.url("/ready"))
                .timeout(Duration::from_secs(5))
                .send()
                .await;
            let said = match answer {
                Ok(answer) if answer.status().is_success() => return,
                Ok(answer) => answer.text().await.unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            assert!(
                Instant::now() < deadline,
                "never ready: {said}\n{}",
                self.logs()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn logs(&self) -> String {
        let last = |name| {
            let text = fs::read_to_string(self.dir.join(name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!(
                "--- {name}\n{}\n",
                lines[lines.len().saturating_sub(40)..].join("\n")
            )
        };
        ["sidecar.log", "runner.log"].map(last).concat()
    }

    // --- Sessions ---------------------------------------------------------------------------

    /// An id that no other session has.
    pub fn id(&self) -> SessionId {
        SessionId::new(format!("s{}", NAMES.fetch_add(1, Ordering::Relaxed))).unwrap()
    }

    /// Begins a session.
    pub async fn begin(&self, prompt: &str) -> SessionId {
        let id = self.id();
        self.create(&id, prompt).await.unwrap();
        id
    }

    pub async fn create(&self, id: &SessionId, prompt: &str) -> Result<Session, ClientError> {
        let session_id = id.clone();
        let body = CreateSession {
            session_id,
            prompt: prompt.into(),
            model_config: None,
            system_prompt: None,
        };
        self.client.create_session(&body).await
    }

    pub async fn turn(&self, id: &SessionId, prompt: &str) {
        let body = CreateTurn {
            prompt: prompt.into(),
            api_key: None,
        };
        self.client.create_turn(id, &body).await.unwrap();
    }

    /// Reads on until `done`; tells the logs if that takes too long.
    pub async fn read(&self, reader: &mut Reader, id: &SessionId, done: impl Fn(&Reader) -> bool) {
        if timeout(LONG, reader.until(&self.client, id, done))
            .await
            .is_err()
        {
            panic!(
                "not what was waited for: {:#?}\n{}",
                reader.events,
                self.logs()
            );
        }
    }

    /// Everything up to the end of the session's next turn.
    pub async fn read_turn(&self, reader: &mut Reader, id: &SessionId) {
        let ends = reader.ends();
        self.read(reader, id, |reader| reader.ends() > ends).await;
    }

    /// Begins a session and reads its turn to the end.
    pub async fn play(&self, prompt: &str) -> (SessionId, Reader) {
        let id = self.begin(prompt).await;
        let mut reader = Reader::default();
        self.read_turn(&mut reader, &id).await;
        (id, reader)
    }

    /// A further turn, read to its end.
    pub async fn play_on(&self, id: &SessionId, reader: &mut Reader, prompt: &str) {
        let ends = reader.ends();
        self.turn(id, prompt).await;
        self.read(reader, id, |reader| reader.ends() > ends).await;
    }

    /// A new session works, start to end.
    pub async fn still_works(&self) {
        let (_, reader) = self.play("SCENARIO:hello").await;
        assert_eq!(
            reader.complete().final_message,
            "Hello from the scripted model."
        );
    }

    /// Model calls that OpenCode made for this session, by the proxy's log.
    pub async fn model_calls(&self, id: &SessionId) -> usize {
        let oc = self
            .client
            .session(id)
            .await
            .unwrap()
            .opencode_session_id
            .unwrap();
        let log = fs::read_to_string(self.dir.join("sidecar.log")).unwrap();
        log.lines()
            .filter(|line| line.contains("\"model call\"") && line.contains(&oc))
            .count()
    }

    // --- Processes --------------------------------------------------------------------------

    pub fn sidecar_pid(&self) -> u32 {
        self.sidecar.lock().unwrap().id()
    }

    pub fn sidecar_lives(&self) -> bool {
        self.sidecar.lock().unwrap().try_wait().unwrap().is_none()
    }

    pub fn kill_sidecar(&self) {
        let mut child = self.sidecar.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits for the sidecar's end, which something else brings about.
    pub async fn sidecar_ended(&self, within: Duration) -> std::process::ExitStatus {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.sidecar.lock().unwrap().try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "still there\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts the sidecar again on the same ports and the same journal.
    pub fn start_sidecar(&self) {
        let ports = [self.port, self.proxy_port, self.opencode_port];
        let child = start_sidecar(&self.dir, ports, &self.setup);
        self.guard.as_ref().unwrap().add(child.id());
        *self.sidecar.lock().unwrap() = child;
    }

    pub fn kill_runner(&self) {
        let mut child = self.runner.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn start_runner(&self) {
        let child = start_runner(&self.dir);
        self.guard.as_ref().unwrap().add(child.id());
        *self.runner.lock().unwrap() = child;
    }

    pub async fn ask_runner(&self, request: &Request) -> Reply {
        let mut stream = BufReader::new(
            UnixStream::connect(self.dir.join("run/runner.sock"))
                .await
                .unwrap(),
        );
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

    /// OpenCode's pid.
    pub async fn opencode(&self) -> u32 {
        match self.ask_runner(&Request::Watch).await {
            Reply::State(State {
                phase: Phase::Running { pid },
                ..
            }) => pid,
            other => panic!("OpenCode does not run: {other:?}\n{}", self.logs()),
        }
    }

    /// Asks OpenCode itself.
    pub async fn ask_opencode(&self, path: &str) -> Value {
        let password =
            fs::read_to_string(self.dir.join("journal/private/opencode-password")).unwrap();
        let url = format!("http://127.0.0.1:{}{path}", self.opencode_port);
        let answer = self
            .http
            .get(url)
            .basic_auth("opencode", Some(password))
            .send()
            .await
            .unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
        answer.json().await.unwrap()
    }

    /// Texts of the assistant that OpenCode has stored for a session, by part.
    pub async fn stored_texts(&self, id: &SessionId) -> std::collections::BTreeMap<String, String> {
        let oc = self
            .client
            .session(id)
            .await
            .unwrap()
            .opencode_session_id
            .unwrap();
        let messages = self.ask_opencode(&format!("/session/{oc}/message")).await;
        let mut texts = std::collections::BTreeMap::new();
        for message in messages.as_array().unwrap() {
            if message["info"]["role"] != "assistant" {
                continue;
            }
            for part in message["parts"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|part| part["type"] == "text")
            {
                texts.insert(
                    part["id"].as_str().unwrap().to_owned(),
                    part["text"].as_str().unwrap().to_owned(),
                );
            }
        }
        texts
    }

    /// Fills a small volume to the last byte; [`Self::free_volume`] makes room again.
    pub fn fill_volume(&self, name: &str) {
        use std::io::Write;
        let mut file = fs::File::create(self.volume(name).join("ballast")).unwrap();
        for size in [64 * 1024, 512, 1] {
            while file
                .write(&vec![b'x'; size])
                .is_ok_and(|written| written == size)
            {}
        }
    }

    pub fn free_volume(&self, name: &str) {
        fs::remove_file(self.volume(name).join("ballast")).unwrap();
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.dir.join(format!("full-{name}"))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        process::end(
            &mut self
                .sidecar
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        process::end(
            &mut self
                .runner
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        // Unmounts and removes the folder.
        drop(self.guard.take());
    }
}

/// Writes the pod's configuration, with the provider and model that all stacks have.
fn configure(dir: &Path, endpoint: &str, mut config: Value) {
    let base = json!({
        "name": "zebra", "namespace": "dune", "uid": "u-77",
        "providers": [{"name": "scripted", "kind": "compatible", "endpoint": endpoint}],
        "model": {"provider": "scripted", "name": "scripted-1"},
    });
    for (name, value) in base.as_object().unwrap() {
        config[name] = value.clone();
    }
    fs::write(dir.join("config/config.json"), config.to_string()).unwrap();
}

/// Puts a folder on a small volume: `full-NAME`, with the folder a link into it.
fn mount(dir: &Path, name: &str, size: &str) {
    let volume = dir.join(format!("full-{name}"));
    fs::create_dir_all(volume.join("d")).unwrap();
    let status = Command::new("mount")
        .args([
            "-t",
            "tmpfs",
            "-o",
            &format!("size={size},mode=0700"),
            "surprises",
        ])
        .arg(&volume)
        .status()
        .unwrap();
    assert!(
        status.success(),
        "a small volume cannot be mounted: this test needs root"
    );
    fs::create_dir_all(volume.join("d")).unwrap();
    fs::remove_dir(dir.join(name)).unwrap();
    std::os::unix::fs::symlink(volume.join("d"), dir.join(name)).unwrap();
}

fn free_ports<const N: usize>() -> [u16; N] {
    // All open at once, so that they differ.
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn opencode() -> PathBuf {
    let path = std::env::var_os("OPENCODE_BIN").map(PathBuf::from);
    let path = path.unwrap_or_else(|| {
        panic!("set OPENCODE_BIN to OpenCode's binary: this test runs the real one")
    });
    assert!(path.is_file(), "OPENCODE_BIN={} is no file", path.display());
    path
}

fn start_runner(dir: &Path) -> Child {
    let beside =
        Path::new(env!("CARGO_BIN_EXE_opencode-sidecar")).with_file_name("opencode-runner");
    let path = std::env::var_os("RUNNER_BIN").map_or(beside, PathBuf::from);
    assert!(
        path.is_file(),
        "{} is missing: cargo build -p runner",
        path.display()
    );
    let log = log(dir, "runner.log");
    Command::new(path)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", dir.join("home"))
        .env("TMPDIR", dir.join("tmp"))
        .env("WORKSPACE_DIR", dir.join("workspace"))
        .env("RUNNER_SOCKET", dir.join("run/runner.sock"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn start_sidecar(dir: &Path, [port, proxy_port, opencode_port]: [u16; 3], setup: &Setup) -> Child {
    let log = log(dir, "sidecar.log");
    let program = match setup.program {
        None => opencode(),
        Some(script) => {
            let path = dir.join("program");
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        }
    };
    Command::new(env!("CARGO_BIN_EXE_opencode-sidecar"))
        .env_clear()
        .env("HOST", "127.0.0.1")
        .env("PORT", port.to_string())
        .env("PROXY_PORT", proxy_port.to_string())
        .env("OPENCODE_PORT", opencode_port.to_string())
        .env("WORKSPACE_DIR", dir.join("workspace"))
        .env("AGENT_HOME", dir.join("home"))
        .env("CONFIG_DIR", dir.join("config"))
        .env("PROVIDER_KEYS_DIR", dir.join("keys"))
        .env("JOURNAL_DIR", dir.join("journal"))
        .env("RUNNER_SOCKET", dir.join("run/runner.sock"))
        .env("OPENCODE_PROGRAM", program)
        .env("OPENCODE_SHARED_SECRET", TOKEN)
        .envs(setup.env.iter().map(|(name, value)| (*name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn log(dir: &Path, name: &str) -> fs::File {
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join(name))
        .unwrap()
}
