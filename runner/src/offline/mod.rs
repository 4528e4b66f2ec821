//! Runs what OpenCode runs on its own and what needs no network (`git`, `rg`) beside OpenCode's domain.
//!
//! Within OpenCode's domain a further one would do, but the kernel copies all rules of the outer one into
//! it, one for each of 65,535 ports: some 30 ms and 4 MiB for each `git`. So there is a process beside
//! OpenCode, the host, in a domain of few rules that all its children share. The link that stands in the
//! place of such a program ([`crate::confine::tools`]) asks it, lends it its files, and ends as the program
//! ended. Whatever fails before the program runs means: the slow way, within OpenCode's domain.
//!
//! The host is trusted with nothing: it has the rights of what it runs, which are less than a tool's (no
//! TCP at all, no signal to OpenCode), and it dies in every sweep with all that it began. Each program is in
//! a domain of its own below the host's, so that none can hold up, end or lead the host or another one.
//! Only OpenCode's children are answered: git and tools' shells, so that what a tool runs stays below it.

mod call;
mod host;
mod serve;
mod wire;

pub use call::{call, end_as};
pub use host::Host;
pub use serve::serve;
pub use wire::{Job, Verdict};

use crate::confine::Plan;
use contract::runner::Confinement;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The command of the host.
pub const COMMAND: &str = "offline";
/// Name of its socket, beside the runner's own.
pub const SOCKET: &str = "offline.sock";
/// Exit code of a host that could do what it must not be able to do: it serves nobody.
const NOT_CONFINED: u8 = 3;
/// How long who asks waits for a sign that somebody is there.
const HELLO_LIMIT: Duration = Duration::from_millis(500);
/// How long each side waits for the other's next step before the program runs.
const TALK: Duration = Duration::from_secs(2);

/// What may run, and how.
#[derive(Debug)]
pub struct Offline {
    /// The host's domain.
    pub plan: Plan,
    /// Program by name.
    pub programs: BTreeMap<String, PathBuf>,
    /// Ports that it must not reach or take.
    pub ports: Confinement,
    /// A folder of the runner that nobody else may write to.
    pub folder: PathBuf,
}

/// What the host is told when it starts.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// OpenCode: only its children are answered.
    agent: i32,
    programs: BTreeMap<String, PathBuf>,
    ports: Confinement,
    folder: PathBuf,
}
