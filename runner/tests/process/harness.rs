//! A real runner with its own folder, spoken to as the sidecar does.

use contract::runner::{Launch, Phase, Reply, Request, State};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A runner and its folder.
pub(crate) struct Runner {
    pub(crate) child: Child,
    pub(crate) dir: tempfile::TempDir,
}

impl Runner {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(env: &[(&str, &str)]) -> Self {
        Self::start_as(Command::new(env!("CARGO_BIN_EXE_opencode-runner")), env)
    }

    /// `command` ends in the runner's binary, perhaps behind a wrapper.
    pub(crate) fn start_as(mut command: Command, env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        command
            .env("RUNNER_SOCKET", dir.path().join("s/runner.sock"))
            .env("WORKSPACE_DIR", dir.path().join("w"))
            .env("HOME", dir.path().join("h"))
            .env("TMPDIR", dir.path().join("t"))
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let runner = Self {
            child: command.spawn().unwrap(),
            dir,
        };
        eventually("the socket", || {
            UnixStream::connect(runner.socket()).is_ok()
        });
        runner
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("s/runner.sock")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes and reads all that comes until the runner closes.
    pub(crate) fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // The runner may close before it took everything.
        let _ = stream.write_all(bytes);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    pub(crate) fn ask(&self, request: &Request) -> Reply {
        let mut line = serde_json::to_vec(request).unwrap();
        line.push(b'\n');
        let answer = self.raw(&line);
        assert_eq!(answer.matches('\n').count(), 1, "{answer:?}");
        serde_json::from_str(&answer).unwrap()
    }

    pub(crate) fn state(&self, request: &Request) -> State {
        match self.ask(request) {
            Reply::State(state) => state,
            other => panic!("{other:?}"),
        }
    }

    /// Starts and returns the pid.
    pub(crate) fn launch(&self, launch: &Launch) -> i32 {
        let state = self.state(&Request::start(launch.clone()));
        match state.phase {
            Phase::Running { pid } => pid.cast_signed(),
            other => panic!("{other:?}\n{}", self.log()),
        }
    }

    pub(crate) fn stop(&self, grace_ms: u64) -> State {
        self.state(&Request::Stop { grace_ms })
    }

    pub(crate) fn reap(&self) -> u32 {
        match self.ask(&Request::Reap) {
            Reply::Reaped { killed } => killed,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn watch(&self) -> Watch {
        let mut stream = self.connect();
        stream.write_all(b"{\"op\":\"watch\"}\n").unwrap();
        Watch(BufReader::new(stream))
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        kill(self.child.id().cast_signed(), signal);
    }

    /// Waits for the runner's end, at most `limit`.
    pub(crate) fn end(&mut self, limit: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    /// Waits until nothing dead is left. It is not so at once: the runner's own trials end beside all else.
    pub(crate) fn no_zombies(&self) {
        let own = self.child.id().cast_signed();
        let zombie = |p: &Process| p.parent == own && p.state == 'Z';
        eventually("the end of all zombies", || !processes().iter().any(zombie));
    }

    /// Waits until OpenCode and what runs `git` for it are the only children, dead ones included.
    pub(crate) fn alone_with(&self, opencode: i32) {
        let own = self.child.id().cast_signed();
        let host = |pid: i32| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.split(|b| *b == 0).nth(1) == Some(b"offline"))
        };
        let other = |p: &Process| p.parent == own && p.pid != opencode && !host(p.pid);
        eventually("the end of all others", || !processes().iter().any(other));
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the runner\n{}", self.log());
        }
        self.signal(rustix::process::Signal::TERM);
        if self.end(Duration::from_secs(15)).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A stream of states.
pub(crate) struct Watch(BufReader<UnixStream>);

impl Watch {
    /// The next state; `None`: the runner closed.
    pub(crate) fn next(&mut self) -> Option<State> {
        let mut line = String::new();
        if self.0.read_line(&mut line).unwrap() == 0 {
            return None;
        }
        match serde_json::from_str(&line).unwrap() {
            Reply::State(state) => Some(state),
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn shell(script: &str) -> Launch {
    program("/bin/sh", &["-c", script])
}

pub(crate) fn program(program: &str, args: &[&str]) -> Launch {
    Launch {
        program: program.to_owned(),
        args: args.iter().map(|a| (*a).to_owned()).collect(),
        env: BTreeMap::new(),
        home_files: BTreeMap::new(),
        git_init: false,
        confinement: contract::runner::Confinement::default(),
    }
}

/// Seconds for `sleep` that no other test uses, to find its processes by.
pub(crate) fn marker() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("3600.{:07}{n:03}", std::process::id())
}

/// Living processes `sleep <marker>`.
pub(crate) fn sleepers(marker: &str) -> usize {
    let wanted = [b"sleep\0", marker.as_bytes(), b"\0"].concat();
    processes()
        .iter()
        .filter(|p| {
            fs::read(format!("/proc/{}/cmdline", p.pid)).is_ok_and(|c| c.ends_with(&wanted))
        })
        .count()
}

pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) state: char,
}

/// All processes; written apart from the runner's own reading of `/proc`.
pub(crate) fn processes() -> Vec<Process> {
    let stat = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = text.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let state = fields.next()?.chars().next()?;
        Some(Process {
            pid,
            parent: fields.next()?.parse().ok()?,
            state,
        })
    };
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| stat(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .collect()
}

pub(crate) fn is_alive(pid: i32) -> bool {
    processes().iter().any(|p| p.pid == pid && p.state != 'Z')
}

pub(crate) fn kill(pid: i32, signal: rustix::process::Signal) {
    let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal);
}

/// Waits for a condition.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A launch of this test binary as a tool of the agent: [`be_a_tool`].
pub(crate) fn tool(runner: &Runner) -> Launch {
    let own = std::env::current_exe().unwrap();
    let mut launch = program(own.to_str().unwrap(), &["--exact", "harness::be_a_tool"]);
    launch.env.insert(
        "TOOL_SOCKET".to_owned(),
        runner.socket().to_str().unwrap().to_owned(),
    );
    launch
}

/// What the tool was answered.
pub(crate) fn tool_answer(runner: &Runner) -> Option<contract::runner::Failure> {
    let answer = fs::read_to_string(runner.path("w/answer")).unwrap_or_default();
    match serde_json::from_str(answer.strip_suffix('\n')?).unwrap() {
        Reply::Failed { code, .. } => Some(code),
        other => panic!("{other:?}"),
    }
}

/// Not a test of its own: what [`tool`] runs.
#[test]
fn be_a_tool() {
    let Some(socket) = std::env::var_os("TOOL_SOCKET") else {
        return;
    };
    let mut stream = UnixStream::connect(socket).unwrap();
    // It may be refused before it said anything.
    let _ = stream.write_all(b"{\"op\":\"stop\",\"grace_ms\":0}\n");
    let mut answer = String::new();
    // A reset follows if it closed before it read what was said.
    let _ = stream.read_to_string(&mut answer);
    fs::write("answer", answer).unwrap();
}
