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
    /// Start OpenCode with this launch, or do nothing if it runs with an equal one. Another launch, or
    /// `anew`: the one that runs is stopped first, once all is ready for the next. Reply:
    /// [`Reply::State`] once the process exists or could not be made.
    Start {
        /// How.
        launch: Launch,
        /// Also if it runs with an equal one.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        anew: bool,
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
    /// What the processes of tools use. Reply: [`Reply::Tools`].
    Tools,
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
    /// Take a checkpoint of the workspace. Reply: [`Reply::Taken`].
    CheckpointTake {
        /// How.
        policy: TakePolicy,
        /// Root of a checkpoint whose files are kept even where they are ignored.
        guide: Option<String>,
    },
    /// Make the workspace what it was, all of it or nothing. Asking twice is the same as once. Reply:
    /// [`Reply::Restored`].
    CheckpointRestore {
        /// Root of the checkpoint.
        root: String,
        /// For the checkpoint of what is there before.
        policy: TakePolicy,
    },
    /// What differs between two checkpoints; absent: nothing at all. Reply: [`Reply::Difference`] for
    /// each file, then [`Reply::End`].
    CheckpointDiff {
        /// Root before.
        from: Option<String>,
        /// Root after.
        to: Option<String>,
        /// Most files.
        files: u64,
        /// Most bytes of hunks.
        bytes: u64,
    },
    /// The same as a patch for `git apply`. Reply: [`Reply::Chunk`], as many as there are, then
    /// [`Reply::End`].
    CheckpointPatch {
        /// Root before.
        from: Option<String>,
        /// Root after.
        to: Option<String>,
        /// Most bytes; more is [`Failure::TooLarge`].
        bytes: u64,
    },
    /// Write a checkpoint as a branch into the workspace's repository. Reply: [`Reply::Branch`].
    CheckpointBranch {
        /// Root of the checkpoint.
        root: String,
        /// Name below `refs/heads/`.
        name: String,
        /// Message of the commit.
        message: String,
        /// Seconds since 1970.
        time: i64,
    },
    /// Forget all checkpoints but these. Reply: [`Reply::Pruned`].
    CheckpointPrune {
        /// Roots.
        keep: Vec<String>,
    },
}

impl Request {
    /// Starts OpenCode unless it runs with an equal launch.
    #[must_use]
    pub fn start(launch: Launch) -> Self {
        Self::Start {
            launch,
            anew: false,
        }
    }
}

/// How a checkpoint is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakePolicy {
    /// Keep what git ignores, too.
    pub include_ignored: bool,
    /// Most bytes that one may add to the store.
    pub max_bytes: u64,
}

/// A checkpoint that the runner took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenCheckpoint {
    /// SHA-256 of all that it holds.
    pub root: String,
    /// Files in it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that it added to the store.
    pub stored_bytes: u64,
    /// Bytes of the whole store.
    pub store_bytes: u64,
    /// Packs in the store; many are joined by [`Request::CheckpointPrune`].
    pub packs: u64,
    /// Files that changed each time they were read.
    pub changing: u64,
    /// What was left out, at most 20.
    pub skipped: Vec<crate::checkpoint::Skipped>,
    /// How many were left out.
    pub skipped_count: u64,
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
    /// Processes of tools, at most [`TOOL_TREES_MAX`], oldest first.
    Tools {
        /// A tree each.
        trees: Vec<ToolTree>,
    },
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
    /// A checkpoint.
    Taken(TakenCheckpoint),
    /// The workspace is what it was.
    Restored {
        /// The checkpoint of what was there before.
        before: TakenCheckpoint,
        /// Files, links and whole folders written.
        written: u64,
        /// Files, links and whole folders removed.
        removed: u64,
        /// Whether the workspace is now just what the checkpoint holds.
        exact: bool,
    },
    /// A file that differs.
    Difference(crate::checkpoint::Difference),
    /// A piece of a patch.
    Chunk {
        /// Base64.
        data: String,
    },
    /// The last of several replies.
    End {
        /// Whether there would be more.
        truncated: bool,
    },
    /// A branch was made.
    Branch {
        /// Its commit.
        commit: String,
        /// The commit's parent.
        parent: Option<String>,
    },
    /// Checkpoints were forgotten.
    Pruned {
        /// Bytes of the store.
        store_bytes: u64,
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
    /// What is refused to the process of this generation; absent until it was tried, which goes on beside the first start.
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

/// Most trees in a [`Reply::Tools`].
pub const TOOL_TREES_MAX: usize = 256;
/// Longest [`ToolTree::command`], in bytes.
pub const TOOL_COMMAND_MAX: usize = 4096;

/// A process that OpenCode or a tool started, with all below it. Sums only grow while it lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolTree {
    /// Process id in the agent container.
    pub pid: u32,
    /// When it began, in clock ticks since boot: tells it from a later one of this number.
    pub start: u64,
    /// Its command line, words joined by spaces, cut to [`TOOL_COMMAND_MAX`].
    pub command: String,
    /// Processes in the tree.
    pub processes: u32,
    /// CPU time that it used, in milliseconds.
    pub cpu_ms: u64,
    /// Bytes that it read and wrote, files or not; 0 where the kernel does not tell.
    pub io_bytes: u64,
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
    /// The store of checkpoints lacks something, or it was tampered with.
    Damaged,
    /// Something in the workspace is in the way.
    Blocked,
    /// More than a bound allows: files, bytes, the quota.
    TooLarge,
    /// It took too long.
    TooSlow,
    /// A restore stopped in the middle and will be taken up again.
    Unfinished,
}
