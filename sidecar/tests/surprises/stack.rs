//! Sidecar, runner, OpenCode and model of a test, or shared by those that break nothing.

use crate::{
    launch::{configure, free_ports, mount, start_runner, start_sidecar},
    process::{self, Guard},
    reader::Reader,
};
use contract::{
    SessionId,
    client::{ClientError, SidecarClient},
    runner::{Phase, Reply, Request, State},
    session::{CreateSession, CreateTurn, Session},
};
use rustix::process::Signal;
use scripted_model::{Options, ScriptedModel};
use serde_json::{Value, json};
use std::{
    fs,
    path::PathBuf,
    process::Child,
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
    sync::{OnceCell, RwLock, Semaphore},
    time::{Instant, timeout},
};

/// Longer than anything takes on a slow, shared machine.
pub(crate) const LONG: Duration = Duration::from_secs(120);
/// The token of every stack.
pub(crate) const TOKEN: &str = "test-token";

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
/// Held for writing by a test that measures.
static ALONE: RwLock<()> = RwLock::const_new(());
static SHARED: OnceCell<Stack> = OnceCell::const_new();
static NAMES: AtomicU32 = AtomicU32::new(0);

/// Runs a test beside others: most of them wait most of their time.
pub(crate) fn run(test: impl Future<Output = ()>) {
    RUNTIME.block_on(async {
        let _beside = ALONE.read().await;
        test.await;
    });
}

/// Runs a test that measures: no other test of this suite works meanwhile.
pub(crate) fn run_alone(test: impl Future<Output = ()>) {
    RUNTIME.block_on(async {
        let _alone = ALONE.write().await;
        test.await;
    });
}

/// How a stack differs from the usual one.
pub(crate) struct Setup {
    /// Environment of the sidecar.
    pub(crate) env: Vec<(&'static str, String)>,
    /// Environment of the runner.
    pub(crate) runner_env: Vec<(&'static str, &'static str)>,
    /// Fields of the pod's configuration.
    pub(crate) config: Value,
    /// Another program than OpenCode.
    pub(crate) program: Option<&'static str>,
    /// Folders on a small volume of their own: name and size.
    pub(crate) volumes: Vec<(&'static str, &'static str)>,
    /// Not to be waited for.
    pub(crate) unready: bool,
}

impl Default for Setup {
    fn default() -> Self {
        let seconds = |name, value: &str| (name, value.to_owned());
        Self {
            env: vec![
                seconds("MODEL_HEADER_TIMEOUT", "2"),
                seconds("MODEL_CHUNK_TIMEOUT", "2"),
            ],
            runner_env: Vec::new(),
            config: json!({
                "limits": {"maxConcurrentSessions": 40, "turnTimeoutSeconds": 600},
                "tools": [{"name": "edit", "action": "ask"}],
            }),
            program: None,
            volumes: Vec::new(),
            unready: false,
        }
    }
}

impl Setup {
    pub(crate) fn env(mut self, name: &'static str, value: impl ToString) -> Self {
        self.env.push((name, value.to_string()));
        self
    }

    pub(crate) fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }
}

/// The processes. Dropping it ends them and removes their folder.
pub(crate) struct Stack {
    pub(crate) dir: PathBuf,
    pub(crate) model: ScriptedModel,
    pub(crate) port: u16,
    pub(crate) proxy_port: u16,
    pub(crate) opencode_port: u16,
    /// All of the sidecar: the same again after a restart, or OpenCode's launch would differ.
    ports: [u16; 4],
    pub(crate) client: SidecarClient,
    pub(crate) http: reqwest::Client,
    runner: Mutex<Child>,
    sidecar: Mutex<Child>,
    setup: Setup,
    guard: Option<Guard>,
}

/// The stack that tests share which leave it as it was.
pub(crate) async fn shared() -> &'static Stack {
    SHARED.get_or_init(|| Stack::start(Setup::default())).await
}

impl Stack {
    pub(crate) async fn start(setup: Setup) -> Self {
        Self::start_with(setup, |_| async {}).await
    }

    /// Starts; `before` gets OpenCode's port and may serve it itself.
    pub(crate) async fn start_with<F: Future<Output = ()>>(
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
        let ports @ [port, proxy_port, opencode_port, _] = free_ports();
        before(opencode_port).await;
        let runner = start_runner(&dir, &setup);
        guard.add(runner.id());
        let sidecar = start_sidecar(&dir, ports, &setup);
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
            ports,
            client,
            http,
            runner: Mutex::new(runner),
            sidecar: Mutex::new(sidecar),
            setup,
            guard: Some(guard),
        };
        if !stack.setup.unready {
            stack.ready().await;
        }
        stack
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Waits until `/ready` says yes.
    pub(crate) async fn ready(&self) {
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

    pub(crate) fn logs(&self) -> String {
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

    /// How many lines of the sidecar's log hold this.
    pub(crate) fn logged(&self, text: &str) -> usize {
        let log = fs::read_to_string(self.dir.join("sidecar.log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(text)).count()
    }

    // --- Sessions ---------------------------------------------------------------------------

    /// An id that no other session has.
    pub(crate) fn id(&self) -> SessionId {
        SessionId::new(format!("s{}", NAMES.fetch_add(1, Ordering::Relaxed))).unwrap()
    }

    /// Begins a session.
    pub(crate) async fn begin(&self, prompt: &str) -> SessionId {
        let id = self.id();
        self.create(&id, prompt).await.unwrap();
        id
    }

    pub(crate) async fn create(
        &self,
        id: &SessionId,
        prompt: &str,
    ) -> Result<Session, ClientError> {
        let session_id = id.clone();
        let body = CreateSession {
            session_id,
            prompt: prompt.into(),
            model_config: None,
            system_prompt: None,
        };
        self.client.create_session(&body).await
    }

    pub(crate) async fn turn(&self, id: &SessionId, prompt: &str) {
        let body = CreateTurn {
            prompt: prompt.into(),
            api_key: None,
        };
        self.client.create_turn(id, &body).await.unwrap();
    }

    /// Reads on until `done`; tells the logs if that takes too long.
    pub(crate) async fn read(
        &self,
        reader: &mut Reader,
        id: &SessionId,
        done: impl Fn(&Reader) -> bool,
    ) {
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
    pub(crate) async fn read_turn(&self, reader: &mut Reader, id: &SessionId) {
        let ends = reader.ends();
        self.read(reader, id, |reader| reader.ends() > ends).await;
    }

    /// Begins a session and reads its turn to the end.
    pub(crate) async fn play(&self, prompt: &str) -> (SessionId, Reader) {
        let id = self.begin(prompt).await;
        let mut reader = Reader::default();
        self.read_turn(&mut reader, &id).await;
        (id, reader)
    }

    /// A further turn, read to its end.
    pub(crate) async fn play_on(&self, id: &SessionId, reader: &mut Reader, prompt: &str) {
        let ends = reader.ends();
        self.turn(id, prompt).await;
        self.read(reader, id, |reader| reader.ends() > ends).await;
    }

    /// A new session works, start to end.
    pub(crate) async fn still_works(&self) {
        let (_, reader) = self.play("SCENARIO:hello").await;
        assert_eq!(
            reader.complete().final_message,
            "Hello from the scripted model."
        );
    }

    /// Model calls that OpenCode made for this session, by the proxy's log.
    pub(crate) async fn model_calls(&self, id: &SessionId) -> usize {
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

    pub(crate) fn sidecar_pid(&self) -> u32 {
        self.sidecar.lock().unwrap().id()
    }

    pub(crate) fn sidecar_lives(&self) -> bool {
        self.sidecar.lock().unwrap().try_wait().unwrap().is_none()
    }

    pub(crate) fn kill_sidecar(&self) {
        let mut child = self.sidecar.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits for the sidecar's end, which something else brings about.
    pub(crate) async fn sidecar_ended(&self, within: Duration) -> std::process::ExitStatus {
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
    pub(crate) fn start_sidecar(&self) {
        let child = start_sidecar(&self.dir, self.ports, &self.setup);
        self.guard.as_ref().unwrap().add(child.id());
        *self.sidecar.lock().unwrap() = child;
    }

    pub(crate) fn kill_runner(&self) {
        let mut child = self.runner.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Tells the runner to end, as the kubelet does, and waits until it has.
    pub(crate) fn end_runner(&self) {
        let mut child = self.runner.lock().unwrap();
        process::signal(child.id(), Signal::TERM);
        child.wait().unwrap();
    }

    pub(crate) fn start_runner(&self) {
        let child = start_runner(&self.dir, &self.setup);
        self.guard.as_ref().unwrap().add(child.id());
        *self.runner.lock().unwrap() = child;
    }

    pub(crate) async fn ask_runner(&self, request: &Request) -> Reply {
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
    pub(crate) async fn opencode(&self) -> u32 {
        self.process().await.1
    }

    /// How often OpenCode was started, and its pid.
    pub(crate) async fn process(&self) -> (u64, u32) {
        match self.ask_runner(&Request::Watch).await {
            Reply::State(State {
                generation,
                phase: Phase::Running { pid },
                ..
            }) => (generation, pid),
            other => panic!("OpenCode does not run: {other:?}\n{}", self.logs()),
        }
    }

    /// Asks OpenCode itself.
    pub(crate) async fn ask_opencode(&self, path: &str) -> Value {
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

    /// Tells OpenCode something, as a process in the agent's container could.
    pub(crate) async fn post_opencode(&self, path: &str, body: Value) {
        let password =
            fs::read_to_string(self.dir.join("journal/private/opencode-password")).unwrap();
        let directory = self.dir.join("workspace");
        let answer = self
            .http
            .post(format!("http://127.0.0.1:{}{path}", self.opencode_port))
            .query(&[("directory", directory.to_str().unwrap())])
            .basic_auth("opencode", Some(password))
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
            .await
            .unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
    }

    /// The sidecar's metrics, by name with labels.
    pub(crate) async fn metrics(&self) -> std::collections::BTreeMap<String, f64> {
        let answer = self.http.get(self.url("/metrics")).bearer_auth(TOKEN);
        let text = answer.send().await.unwrap().text().await.unwrap();
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect()
    }

    /// Texts of the assistant that OpenCode has stored for a session, by part.
    pub(crate) async fn stored_texts(
        &self,
        id: &SessionId,
    ) -> std::collections::BTreeMap<String, String> {
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
    pub(crate) fn fill_volume(&self, name: &str) {
        use std::io::Write;
        let mut file = fs::File::create(self.volume(name).join("ballast")).unwrap();
        for size in [64 * 1024, 512, 1] {
            while file
                .write(&vec![b'x'; size])
                .is_ok_and(|written| written == size)
            {}
        }
    }

    pub(crate) fn free_volume(&self, name: &str) {
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
