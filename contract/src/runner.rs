//! Between sidecar and runner: a Unix socket, one request per connection.
//!
//! The sidecar connects, writes one [`Request`] as a line of JSON and reads [`Reply`] lines until the
//! runner closes: one line for most requests, one per change for [`Request::Watch`]. Closing the
//! connection ends the request. The runner is untrusted: the sidecar bounds every line
//! ([`LINE_MAX`]) and every wait, and never acts on a reply beyond what it asked for.

use crate::pod::{API_PORT, EGRESS_PORT, EgressMode, OPENCODE_PORT, PROXY_PORT};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest line either side accepts, in bytes.
pub const LINE_MAX: usize = 4 * 1024 * 1024;

/// What the sidecar asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Start OpenCode with this launch, or do nothing if it runs with an equal one. Another launch:
    /// stop first. Reply: [`Reply::State`] once the process exists or could not be made.
    Start {
        /// How.
        launch: Launch,
    },
    /// Stop OpenCode: SIGTERM, after `grace_ms` SIGKILL, then every descendant. Reply: state.
    Stop {
        /// Milliseconds between SIGTERM and SIGKILL.
        grace_ms: u64,
    },
    /// Kill every process of the container but runner and OpenCode. Reply: [`Reply::Reaped`].
    Reap,
    /// State now and after every change, until the connection closes.
    Watch,
    /// What the image and the kernel offer. Reply: [`Reply::Probe`].
    Probe,
    /// Whether the workspace can be written: creates and removes a file. Reply: [`Reply::Done`].
    CheckWorkspace,
    /// Memory and CPU of the container's cgroup. Reply: [`Reply::Cgroup`].
    Cgroup,
    /// Entries of a folder of the workspace, sorted, at most 10,000. Reply: [`Reply::Entries`].
    List {
        /// Relative to the workspace; empty: the workspace.
        path: String,
    },
    /// Bytes of a file of the workspace. Reply: [`Reply::Content`].
    Read {
        /// Relative to the workspace.
        path: String,
        /// First byte.
        offset: u64,
        /// At most this many, and at most 1 MiB.
        length: u64,
    },
}

/// How to start OpenCode. Everything in it may be seen by the agent's tools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The binary; in a pod `/opt/opencode-operator/opencode/opencode`.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Added to the container's own PATH, HOME, TMPDIR and user-given variables.
    pub env: BTreeMap<String, String>,
    /// Files to have before the start, path relative to HOME and content; parents are made.
    pub home_files: BTreeMap<String, String>,
    /// Make the workspace a git repository if it is none: OpenCode needs one to tell what changed.
    pub git_init: bool,
    /// What it and its tools may reach.
    #[serde(default)]
    pub confinement: Confinement,
}

/// What OpenCode and its tools may reach over TCP. The kernel tells ports apart, not addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Confinement {
    /// The sidecar's API: out of reach for all in the container.
    pub api_port: u16,
    /// The credential proxy: for OpenCode, not for its tools.
    pub proxy_port: u16,
    /// The egress proxy: for all.
    pub egress_port: u16,
    /// OpenCode's own: its tools neither reach nor bind it.
    pub opencode_port: u16,
    /// All other ports.
    pub egress: EgressMode,
}

impl Default for Confinement {
    fn default() -> Self {
        Self {
            api_port: API_PORT,
            proxy_port: PROXY_PORT,
            egress_port: EGRESS_PORT,
            opencode_port: OPENCODE_PORT,
            egress: EgressMode::Open,
        }
    }
}

/// What the runner found to be refused to OpenCode and to its tools, by trying it before the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Isolation {
    /// Refused as it should be.
    pub enforced: Vec<Measure>,
    /// Not refused, and why: each at most once.
    pub missing: Vec<Missing>,
}

/// A measure that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Which.
    pub measure: Measure,
    /// For people, in a few words.
    pub reason: String,
}

/// What may be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Writing files outside of workspace, HOME and TMPDIR.
    Files,
    /// Taking the sidecar's ports, and connecting to its API.
    SidecarPorts,
    /// Connecting past the proxies; counts only in [`EgressMode::ProxyOnly`].
    Egress,
    /// Signals to the runner.
    Signals,
    /// Abstract Unix sockets of the sidecar.
    AbstractSockets,
    /// System calls and kinds of sockets that would lead around the other measures.
    SystemCalls,
    /// Tools: connecting to OpenCode and to the credential proxy, and taking OpenCode's port.
    ToolPorts,
    /// Tools: reading the memory and the environment of OpenCode.
    ToolProcesses,
    /// Tools: OpenCode's password in their own environment.
    ToolEnvironment,
    /// A measure of a newer runner.
    #[serde(other)]
    Unknown,
}

/// What the runner answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// OpenCode's process.
    State(State),
    /// It was done.
    Done,
    /// How many processes were killed.
    Reaped {
        /// Processes.
        killed: u32,
    },
    /// What image and kernel offer.
    Probe(Probe),
    /// Use of the container.
    Cgroup(Cgroup),
    /// A folder.
    Entries {
        /// Sorted by name.
        entries: Vec<Entry>,
        /// Whether there were more.
        truncated: bool,
    },
    /// A piece of a file.
    Content {
        /// Base64.
        data: String,
        /// Size of the whole file in bytes.
        size: u64,
    },
    /// It could not be done.
    Failed {
        /// Stable reason.
        code: Failure,
        /// For people.
        message: String,
    },
}

/// OpenCode's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Grows by one with every start in the life of this runner; 0 before the first.
    pub generation: u64,
    /// Which runner this is: random per runner process, so that a new one is noticed.
    pub runner_id: String,
    /// What the process does.
    pub phase: Phase,
    /// What is refused to the process of this generation; absent before the first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
}

/// What OpenCode's process does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// Not started yet, or stopped by request.
    Stopped,
    /// Alive.
    Running {
        /// Process id in the agent container.
        pid: u32,
    },
    /// Ended by itself.
    Exited {
        /// Exit code, if it exited.
        code: Option<i32>,
        /// Signal, if one killed it.
        signal: Option<i32>,
        /// Last lines that it wrote to stderr, at most 4 KiB.
        stderr: String,
    },
    /// This image cannot run it.
    Unsupported {
        /// What is missing and what to add.
        message: String,
    },
}

/// What image and kernel offer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Why OpenCode cannot run here; absent: it can.
    pub unsupported: Option<String>,
    /// Programs that are absent and what does not work without them.
    pub missing: Vec<String>,
    /// Landlock ABI of the kernel; 0: none.
    pub landlock_abi: u32,
    /// User id of the runner.
    pub uid: u32,
    /// Version of the runner.
    pub version: String,
}

/// Use of the container, from its cgroup; 0 or absent where the kernel does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Bytes in use.
    pub memory_bytes: u64,
    /// Limit in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// CPU time used since the container began, in microseconds.
    pub cpu_usec: u64,
    /// CPU limit in thousandths of a core.
    pub cpu_limit_millis: Option<u64>,
    /// Times that the kernel killed for memory.
    pub oom_kills: u64,
}

/// An entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Name; bytes that are no UTF-8 are replaced.
    pub name: String,
    /// `file`, `dir`, `symlink` or `other`.
    pub kind: String,
    /// Size in bytes.
    pub size: u64,
}

/// Why something could not be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The request does not parse or breaks a bound.
    BadRequest,
    /// No such file or folder, or it lies outside of the workspace.
    NotFound,
    /// The volume is full.
    DiskFull,
    /// Not allowed by the file system.
    Denied,
    /// Any other fault of the system.
    Io,
}
