//! Tries what is to be refused, in both domains, beside OpenCode's start: it is in them whatever comes out.
//!
//! The runner starts itself as `rehearse` in the outer domain. That tries, then starts the shell as
//! OpenCode would, which starts `rehearse-tools`. Each prints what was refused to it. What is reported is
//! thereby what this kernel, this container and this image do, not what they should.

use super::{Plan, tools};
use crate::config::Config;
use crate::reaper::Reaper;
use crate::{status, sys};
use contract::pod::EgressMode;
use contract::runner::{Confinement, Isolation, Measure, Missing};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, bind, ipproto, sendto, socket_with, sockopt,
};
use rustix::process::{Pid, Signal, getppid, test_kill_process, test_kill_process_group};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::time::{sleep, timeout};

/// The command of the outer part.
pub const OUTER: &str = "rehearse";
/// The command of the inner part.
pub const INNER: &str = "rehearse-tools";
/// A slow, shared machine needs a second.
const LIMIT: Duration = Duration::from_secs(20);
const OUTPUT_MAX: u64 = 16 * 1024;
/// Nobody serves it; any other port but the sidecar's would do.
const DISCARD: u16 = 9;

/// What to try, and against what.
#[derive(Debug, Serialize, Deserialize)]
struct Attempts {
    ports: Confinement,
    /// A folder of the runner that nobody else may write to.
    folder: PathBuf,
    /// Name of an abstract socket that listens.
    socket: String,
    /// This program.
    own: PathBuf,
    /// The process in the outer domain; 0: not known yet.
    outer: u32,
}

/// Tries, and tells what is refused. Dropped before its end it tells nothing; its process is killed then too.
///
/// # Errors
/// It could not be tried, so nothing is known.
pub async fn rehearse(
    config: &Config,
    ports: &Confinement,
    plan: &Plan,
    variables: &[(String, OsString)],
    reaper: &Reaper,
) -> io::Result<Isolation> {
    let refused = attempt(config, ports, plan, variables, reaper).await?;
    Ok(judge(&refused, ports.egress, sys::landlock_abi()))
}

/// Nothing is refused, for one reason.
#[must_use]
pub fn nothing(reason: &str) -> Isolation {
    let missing = |measure| Missing {
        measure,
        reason: reason.to_owned(),
    };
    Isolation {
        enforced: Vec::new(),
        missing: wanted(EgressMode::Open).map(missing).collect(),
    }
}

async fn attempt(
    config: &Config,
    ports: &Confinement,
    plan: &Plan,
    variables: &[(String, OsString)],
    reaper: &Reaper,
) -> io::Result<Vec<Measure>> {
    let name = format!("opencode-operator-{}", status::random_hex());
    // Listens until the end, so that a connection is refused by nothing but the domain.
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    let attempts = Attempts {
        ports: ports.clone(),
        folder: tools::folder(config),
        socket: name,
        own: std::env::current_exe()?,
        outer: 0,
    };
    let mut command = Command::new(&attempts.own);
    command
        .arg(OUTER)
        .arg(serde_json::to_string(&attempts)?)
        .env_clear()
        .envs(&config.child_env)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .env("OPENCODE_SERVER_PASSWORD", "x")
        .current_dir(&config.workspace)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    sys::detach(&mut command);
    plan.apply(&mut command)?;
    let (mut child, pid, exit) = reaper.spawn(&mut command)?;
    let process = KillOnDrop { reaper, pid };
    let output = child.stdout.take().map(std::os::fd::OwnedFd::from);
    let read = async {
        let mut text = String::new();
        if let Some(output) = output {
            let output = Receiver::from_owned_fd(output)?;
            output.take(OUTPUT_MAX).read_to_string(&mut text).await?;
        }
        Ok::<_, io::Error>(text)
    };
    let text = timeout(LIMIT, read).await;
    drop(process);
    let _ = timeout(LIMIT, exit).await;
    let _ = timeout(LIMIT, gone(pid)).await;
    let text = text.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(serde_json::from_str(&text)?)
}

/// Returns when nobody of this group is left, not even dead: the inner part outlives the outer one for an
/// instant, and whoever sweeps then would count it as a tool.
async fn gone(group: Pid) {
    while test_kill_process_group(group).is_ok() {
        sleep(Duration::from_millis(1)).await;
    }
}

/// The process of a rehearsal and all of its group.
struct KillOnDrop<'a> {
    reaper: &'a Reaper,
    pid: Pid,
}

impl Drop for KillOnDrop<'_> {
    fn drop(&mut self) {
        self.reaper.signal(self.pid, Signal::KILL, true);
    }
}

fn wanted(egress: EgressMode) -> impl Iterator<Item = Measure> {
    use Measure as M;
    let all = [
        M::Files,
        M::SidecarPorts,
        M::Egress,
        M::Signals,
        M::AbstractSockets,
        M::SystemCalls,
        M::ToolPorts,
        M::ToolProcesses,
        M::ToolEnvironment,
    ];
    all.into_iter()
        .filter(move |measure| *measure != M::Egress || egress == EgressMode::ProxyOnly)
}

fn judge(refused: &[Measure], egress: EgressMode, abi: u32) -> Isolation {
    let mut isolation = Isolation::default();
    for measure in wanted(egress) {
        // The trial runs beside the agent, who could forge what it says where nothing is refused.
        if refused.contains(&measure) && abi >= needed(measure) {
            isolation.enforced.push(measure);
        } else {
            isolation.missing.push(Missing {
                measure,
                reason: why(measure, abi),
            });
        }
    }
    isolation
}

/// Why a measure does not hold, as far as the kernel's version tells.
fn why(measure: Measure, abi: u32) -> String {
    let needs = needed(measure);
    if abi >= needs {
        "tried, and it was not refused".to_owned()
    } else if abi == 0 {
        "the kernel has no Landlock".to_owned()
    } else {
        format!("needs Landlock ABI {needs}, the kernel has {abi}")
    }
}

/// Version of Landlock's ABI that a measure needs.
fn needed(measure: Measure) -> u32 {
    match measure {
        Measure::Files | Measure::ToolProcesses => 1,
        Measure::SidecarPorts | Measure::Egress | Measure::ToolPorts => 4,
        Measure::Signals | Measure::AbstractSockets => 6,
        Measure::SystemCalls | Measure::ToolEnvironment | Measure::Unknown => 0,
    }
}

/// Whether this process is refused what a program without network must not do: no port of the pod, no file
/// of the runner, no signal to it.
#[must_use]
pub fn is_confined(ports: &Confinement, folder: &Path) -> bool {
    let shut = [
        ports.api_port,
        ports.proxy_port,
        ports.egress_port,
        ports.opencode_port,
    ];
    sys::landlock_abi() >= needed(Measure::Signals)
        && is_denied(&fs::write(folder.join(status::random_hex()), ""))
        && shut
            .into_iter()
            .all(|port| cannot_connect(port) && cannot_bind(port))
        && matches!(getppid().map(test_kill_process), Some(Err(Errno::PERM)))
}

/// What the outer part of the rehearsal does; prints what was refused.
#[must_use]
pub fn outer(attempts: &str) -> ExitCode {
    let Ok(mut attempts) = serde_json::from_str::<Attempts>(attempts) else {
        return ExitCode::from(2);
    };
    let ports = &attempts.ports;
    let mut refused = Vec::new();
    let mut check = |measure, is_refused: bool| {
        if is_refused {
            refused.push(measure);
        }
    };
    let file = attempts.folder.join(status::random_hex());
    check(Measure::Files, is_denied(&fs::write(&file, "")));
    let _ = fs::remove_file(file);
    let sidecars = [ports.api_port, ports.proxy_port, ports.egress_port];
    check(
        Measure::SidecarPorts,
        cannot_connect(ports.api_port) && sidecars.into_iter().all(cannot_bind),
    );
    check(
        Measure::Egress,
        cannot_connect(DISCARD) && is_shut(SocketType::DGRAM, ipproto::UDP),
    );
    let parent = getppid().map(test_kill_process);
    check(Measure::Signals, matches!(parent, Some(Err(Errno::PERM))));
    let socket = SocketAddr::from_abstract_name(&attempts.socket);
    let connected = socket.and_then(|address| UnixStream::connect_addr(&address));
    check(Measure::AbstractSockets, is_denied(&connected));
    check(
        Measure::SystemCalls,
        is_shut(SocketType::STREAM, ipproto::MPTCP)
            && is_shut(SocketType::RAW, ipproto::ICMP)
            && cannot_connect_by_sending(ports.api_port),
    );
    attempts.outer = std::process::id();
    refused.extend(of_tools(&attempts).unwrap_or_default());
    print(&refused)
}

/// Starts the inner part as OpenCode starts its shell.
fn of_tools(attempts: &Attempts) -> io::Result<Vec<Measure>> {
    let shell = std::env::var_os("SHELL").ok_or(io::ErrorKind::NotFound)?;
    let output = Command::new(shell)
        .args(["-c", "exec \"$@\"", "sh"])
        .arg(&attempts.own)
        .arg(INNER)
        .arg(serde_json::to_string(attempts)?)
        .output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What the inner part of the rehearsal does; prints what was refused.
#[must_use]
pub fn inner(attempts: &str) -> ExitCode {
    let Ok(attempts) = serde_json::from_str::<Attempts>(attempts) else {
        return ExitCode::from(2);
    };
    let ports = &attempts.ports;
    let mut refused = Vec::new();
    if [ports.api_port, ports.proxy_port, ports.opencode_port]
        .into_iter()
        .all(cannot_connect)
        && cannot_bind(ports.opencode_port)
    {
        refused.push(Measure::ToolPorts);
    }
    let environ = fs::read(format!("/proc/{}/environ", attempts.outer));
    let alive = Pid::from_raw(attempts.outer.cast_signed()).map(test_kill_process);
    if is_denied(&environ) && matches!(alive, Some(Ok(()))) {
        refused.push(Measure::ToolProcesses);
    }
    if std::env::var_os("OPENCODE_SERVER_PASSWORD").is_none() {
        refused.push(Measure::ToolEnvironment);
    }
    print(&refused)
}

fn print(refused: &[Measure]) -> ExitCode {
    let written = serde_json::to_vec(refused)
        .map_err(io::Error::from)
        .and_then(|text| io::stdout().write_all(&text));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// EACCES or EPERM, unlike "nobody listens" or "in use".
fn is_denied<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::PermissionDenied)
}

fn at(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

fn cannot_connect(port: u16) -> bool {
    let limit = Duration::from_secs(1);
    is_denied(&TcpStream::connect_timeout(&at(port).into(), limit))
}

/// Does not listen: where it is not refused, it keeps nobody from the port.
fn cannot_bind(port: u16) -> bool {
    let bound = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .and_then(|socket| {
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &at(port))
    });
    matches!(bound, Err(Errno::ACCESS | Errno::PERM))
}

/// TCP Fast Open connects without `connect`.
fn cannot_connect_by_sending(port: u16) -> bool {
    let flags = SendFlags::from_bits_retain(libc::MSG_FASTOPEN.cast_unsigned());
    let sent = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .and_then(|socket| sendto(socket, b"x", flags, &at(port)));
    sent == Err(Errno::PERM)
}

fn is_shut(kind: SocketType, protocol: rustix::net::Protocol) -> bool {
    let made = socket_with(
        AddressFamily::INET,
        kind,
        SocketFlags::CLOEXEC,
        Some(protocol),
    );
    matches!(made, Err(Errno::PERM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_refused_is_missing_with_its_reason() {
        let isolation = judge(&[Measure::Files], EgressMode::Open, 3);
        assert_eq!(isolation.enforced, [Measure::Files]);
        let reason = |wanted| {
            let missing = isolation.missing.iter().find(|m| m.measure == wanted);
            missing.map(|m| m.reason.as_str())
        };
        assert_eq!(
            reason(Measure::ToolPorts),
            Some("needs Landlock ABI 4, the kernel has 3")
        );
        assert_eq!(
            reason(Measure::SystemCalls),
            Some("tried, and it was not refused")
        );
        // More than this kernel can is not believed.
        let told = judge(&[Measure::ToolPorts], EgressMode::Open, 3);
        assert!(told.enforced.is_empty(), "{told:?}");
        // It is not asked for in this mode.
        assert_eq!(reason(Measure::Egress), None);
        let none = judge(&[], EgressMode::ProxyOnly, 0);
        assert!(none.enforced.is_empty());
        assert_eq!(none.missing.len(), 9);
        assert_eq!(none.missing[0].reason, "the kernel has no Landlock");
    }
}
