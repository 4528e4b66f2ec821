//! Landlock's part of both domains.
//!
//! Asked for is what ABI 7 (Linux 6.15) knows; an older kernel enforces the part of it that it knows.
//! Facts: landlock(7) and `Documentation/userspace-api/landlock.rst` of Linux.

use super::Scope;
use contract::pod::EgressMode;
use contract::runner::Confinement;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, NetPort, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, Scope as Scoped,
};
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

/// What was tested.
const TESTED: ABI = ABI::V7;

/// The domain of OpenCode: reads and executes everything, writes in few places, reaches and takes the
/// ports that it may, signals only what is in it, and no abstract socket of outside.
///
/// # Errors
/// The kernel refuses; never because it is old.
pub fn outer(scope: &Scope) -> Result<RulesetCreated, RulesetError> {
    let ports = &scope.ports;
    with_ports(
        alone(scope)?,
        |port| match ports.egress {
            EgressMode::Open => port != ports.api_port,
            EgressMode::ProxyOnly => {
                [ports.proxy_port, ports.egress_port, ports.opencode_port].contains(&port)
            }
        },
        |port| !sidecars(ports).contains(&port),
    )
}

/// The domain of what runs beside OpenCode on its behalf: as [`outer`] without any TCP, and so of few
/// rules.
///
/// # Errors
/// As [`outer`].
pub fn alone(scope: &Scope) -> Result<RulesetCreated, RulesetError> {
    let all = AccessFs::from_all(TESTED);
    let read = AccessFs::from_read(TESTED);
    // A device's own files: no new ones, but control calls, which terminals need.
    let device = AccessFs::from_file(TESTED);
    let mut ruleset = Ruleset::default()
        .handle_access(all)?
        .handle_access(AccessNet::from_all(TESTED))?
        .scope(Scoped::from_all(TESTED))?
        .create()?;
    ruleset = grant(ruleset, Path::new("/"), read)?;
    for folder in scope.writable.iter().map(PathBuf::as_path) {
        ruleset = grant(ruleset, folder, all)?;
    }
    ruleset = grant(ruleset, Path::new("/dev/shm"), all)?;
    ruleset = grant(ruleset, Path::new("/dev/pts"), device | AccessFs::ReadDir)?;
    for file in devices() {
        ruleset = grant(ruleset, &file, device)?;
    }
    Ok(ruleset)
}

/// The domain of tools, within that of OpenCode: fewer ports. That it is another domain also keeps them
/// from OpenCode's memory.
///
/// # Errors
/// As [`outer`]; or more than 16 domains are nested.
pub fn inner(ports: &Confinement) -> Result<RulesetCreated, RulesetError> {
    let own = ports.opencode_port;
    with_ports(
        network()?,
        |port| match ports.egress {
            EgressMode::Open => {
                ![ports.api_port, ports.proxy_port, ports.opencode_port].contains(&port)
            }
            EgressMode::ProxyOnly => port == ports.egress_port,
        },
        |port| port != own && !sidecars(ports).contains(&port),
    )
}

/// The domain of programs that OpenCode runs on its own and that need no network: no TCP at all.
///
/// # Errors
/// As [`inner`].
pub fn offline() -> Result<RulesetCreated, RulesetError> {
    network()
}

/// A domain of no rules: nothing in it signals, or looks into, what is outside.
///
/// # Errors
/// As [`inner`].
pub fn apart() -> Result<RulesetCreated, RulesetError> {
    let scoped = Scoped::from_all(TESTED);
    Ruleset::default().scope(scoped)?.create()
}

fn network() -> Result<RulesetCreated, RulesetError> {
    let net = AccessNet::from_all(TESTED);
    Ruleset::default().handle_access(net)?.create()
}

/// Ports that only the sidecar may take, so that nobody takes its place while it is down.
fn sidecars(ports: &Confinement) -> [u16; 3] {
    [ports.api_port, ports.proxy_port, ports.egress_port]
}

/// One rule per port: the kernel knows no ranges and no "all but".
fn with_ports(
    mut ruleset: RulesetCreated,
    connect: impl Fn(u16) -> bool,
    bind: impl Fn(u16) -> bool,
) -> Result<RulesetCreated, RulesetError> {
    for port in 0..=u16::MAX {
        let mut access = BitFlags::EMPTY;
        if connect(port) {
            access |= AccessNet::ConnectTcp;
        }
        if bind(port) {
            access |= AccessNet::BindTcp;
        }
        if !access.is_empty() {
            ruleset = ruleset.add_rule(NetPort::new(port, access))?;
        }
    }
    Ok(ruleset)
}

/// What is not there cannot be opened either.
fn grant(
    ruleset: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(fd) => ruleset.add_rule(PathBeneath::new(fd, access)),
        Err(_) => Ok(ruleset),
    }
}

/// Character devices directly in `/dev` and one folder below: terminals, randomness, graphics cards;
/// which ones there are was decided by whoever made the container.
fn devices() -> Vec<PathBuf> {
    let entries = |folder: &Path| {
        let read = fs::read_dir(folder).into_iter().flatten().flatten();
        read.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let is_device =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|meta| meta.file_type().is_char_device());
    let top = entries(Path::new("/dev"));
    let below = top
        .iter()
        .filter(|path| !path.is_symlink() && path.is_dir() && !path.ends_with("pts"))
        .flat_map(|folder| entries(folder));
    top.iter().cloned().chain(below).filter(is_device).collect()
}
