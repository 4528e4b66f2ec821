//! The inner domain: the runner's own binary in the place of what OpenCode starts.
//!
//! OpenCode finds its shell by `SHELL` and a few programs by `PATH`. Both lead to a folder of links to this
//! binary, which only the runner can write. Run by such a link it drops OpenCode's variables, enters the
//! inner domain and becomes the program that was meant: no process more, same arguments, same files.
//! What needs no network it lets another process run instead, see [`crate::offline`].

use super::{Error, landlock};
use crate::config::Config;
use crate::home;
use crate::offline::{self, Job};
use crate::spawn::{find, variable};
use contract::runner::{Confinement, Launch};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Folder of the links, beside the runner's socket.
pub const FOLDER: &str = "tools";
const SPEC: &str = "spec.json";
const SPEC_MAX: u64 = 64 * 1024;
/// Prefix of variables that are OpenCode's own: password and configuration are among them.
const OPENCODES: &[u8] = b"OPENCODE_";
/// OpenCode asks a shell by its name how it wants to be called; another one is called like `sh`.
const SHELLS: [&str; 6] = ["bash", "sh", "dash", "ash", "ksh", "zsh"];
/// What OpenCode runs in the workspace on its own: needs no network, and what the workspace's git
/// configuration makes it run needs none either.
const OFFLINE: [&str; 2] = ["git", "rg"];

/// A script that Bun, which OpenCode is built on, runs in the process before all else.
const GUARD: &str = "guard.js";
const GUARD_TEXT: &str = include_str!("guard.js");
/// The variable that names it to Bun.
const PRELOAD: &str = "BUN_INSPECT_PRELOAD";
/// Folder of OpenCode's own configuration, out of the reach of its tools.
const CONFIG: &str = "config";
/// What OpenCode takes for HOME where it looks for its own files; all else has the real one.
const OPENCODE_HOME: &str = "OPENCODE_TEST_HOME";
const XDG_CONFIG_HOME: &str = "XDG_CONFIG_HOME";
/// Where a launch believes its configuration to be, below HOME.
const HOME_CONFIG: &str = ".config";

/// What a link's program has to know.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Spec {
    /// Ports.
    ports: Confinement,
    /// Program by the link's name.
    programs: BTreeMap<String, PathBuf>,
    /// Where tools have their configuration; absent: where the XDG says.
    config_home: Option<String>,
}

/// What was installed.
#[derive(Debug, Default)]
pub struct Installed {
    /// Variables that lead OpenCode to the links.
    pub variables: Vec<(String, OsString)>,
    /// What needs no network, by name.
    pub offline: BTreeMap<String, PathBuf>,
}

/// Makes the links.
///
/// # Errors
/// The folder cannot be written.
pub fn install(config: &Config, launch: &Launch) -> Result<Installed, Error> {
    let folder = folder(config);
    let path = &variable(config, launch, "PATH");
    let mut programs = BTreeMap::new();
    let mut variables = Vec::new();
    if let Some(shell) = shell(config, path) {
        let name = shell.file_name().and_then(OsStr::to_str);
        let name = name.filter(|name| SHELLS.contains(name)).unwrap_or("sh");
        variables.push(("SHELL".to_owned(), folder.join(name).into_os_string()));
        programs.insert(name.to_owned(), shell);
    }
    let found = |name: &str| find(name, path).map(|program| (name.to_owned(), program));
    let offline: BTreeMap<String, PathBuf> = OFFLINE.into_iter().filter_map(found).collect();
    programs.extend(offline.clone());
    let all = std::iter::once(folder.clone()).chain(std::env::split_paths(path));
    if let Ok(path) = std::env::join_paths(all) {
        variables.push(("PATH".to_owned(), path));
    }
    let home = variable(config, launch, "HOME");
    let own = Path::new(&home).join(HOME_CONFIG);
    for (name, value) in &launch.env {
        if let Ok(rest) = Path::new(value).strip_prefix(&own) {
            let moved = folder.join(CONFIG).join(rest);
            variables.push((name.clone(), moved.into_os_string()));
        }
    }
    // Or a `.opencode` in HOME counts as configuration, and OpenCode installs a package there, slowly.
    let config_home = folder.join(CONFIG).into_os_string();
    variables.push((OPENCODE_HOME.to_owned(), config_home));
    let guard = folder.join(GUARD).into_os_string();
    variables.push((PRELOAD.to_owned(), guard));
    let spec = Spec {
        ports: launch.confinement.clone(),
        programs,
        config_home: launch.env.get(XDG_CONFIG_HOME).cloned(),
    };
    write(&folder, &spec, launch).map_err(|source| Error::File {
        path: folder,
        source,
    })?;
    Ok(Installed { variables, offline })
}

/// Folder of the links.
#[must_use]
pub fn folder(config: &Config) -> PathBuf {
    let beside = config.socket.parent().unwrap_or(Path::new("/"));
    beside.join(FOLDER)
}

/// The container's own choice, else bash, else sh: as OpenCode chooses.
fn shell(config: &Config, path: &OsString) -> Option<PathBuf> {
    let own = PathBuf::from(config.var("SHELL"));
    if own.is_absolute() && own.is_file() {
        return Some(own);
    }
    find("bash", path).or_else(|| find("sh", path))
}

fn write(folder: &Path, spec: &Spec, launch: &Launch) -> io::Result<()> {
    // Made anew each time: nothing of before stays, whoever made it.
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir_all(folder)?;
    let own = std::env::current_exe()?;
    for name in spec.programs.keys() {
        symlink(&own, folder.join(name))?;
    }
    fs::write(folder.join(GUARD), GUARD_TEXT)?;
    let config = folder.join(CONFIG);
    fs::create_dir(&config)?;
    for (path, content) in &launch.home_files {
        if let Some(path) = path
            .strip_prefix(HOME_CONFIG)
            .and_then(|p| p.strip_prefix('/'))
        {
            home::write(&config, path, content)?;
        }
    }
    // Last: it makes the links work.
    fs::write(folder.join(SPEC), serde_json::to_vec(spec)?)
}

/// The link by which this process was started, if it was.
#[must_use]
pub fn invoked() -> Option<PathBuf> {
    // What exec was called with: unlike the first argument nobody but the kernel writes it.
    let path = Path::new(OsStr::from_bytes(rustix::param::linux_execfn().to_bytes()));
    let folder = path.parent()?;
    let is_link = folder.ends_with(FOLDER) && folder.join(SPEC).is_file();
    is_link.then(|| path.to_owned())
}

/// Becomes the program that `link` stands for. Returns only if that fails: 126, or 127 if there is none.
#[must_use]
pub fn become_program(link: &Path, args: &[OsString]) -> ExitCode {
    let name = link.file_name().unwrap_or_default().to_string_lossy();
    let folder = link.parent().unwrap_or(Path::new("/"));
    let Some(spec) = read(&folder.join(SPEC)) else {
        return complain(&name, "the runner's file about tools cannot be read", 126);
    };
    let Some(program) = spec.programs.get(&*name) else {
        return complain(&name, "not found", 127);
    };
    let env = environment(std::env::vars_os(), folder, program, &spec);
    let is_offline = OFFLINE.contains(&&*name);
    if is_offline {
        let job = Job {
            name: name.clone().into_owned(),
            args: args.to_vec(),
            env: env.clone(),
        };
        let socket = folder.with_file_name(offline::SOCKET);
        if let Some(verdict) = offline::call(&socket, &job) {
            return offline::end_as(verdict);
        }
    }
    if let Err(error) = enter(&spec.ports, is_offline) {
        return complain(&name, &format!("cannot be isolated: {error}"), 126);
    }
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(env);
    if SHELLS.contains(&&*name) && is_login() {
        command.arg0(format!("-{name}"));
    }
    let error = command.exec();
    let code = if error.kind() == io::ErrorKind::NotFound {
        127
    } else {
        126
    };
    complain(&program.to_string_lossy(), &error.to_string(), code)
}

/// Enters the inner domain for good. Does nothing where the kernel has no Landlock: that is reported.
///
/// # Errors
/// The kernel has Landlock and refuses.
pub fn enter(ports: &Confinement, offline: bool) -> Result<(), Error> {
    let ruleset = if offline {
        landlock::offline()?
    } else {
        landlock::inner(ports)?
    };
    ruleset.restrict_self()?;
    Ok(())
}

/// What a tool's program gets of the variables that OpenCode gave it.
fn environment(
    all: impl Iterator<Item = (OsString, OsString)>,
    folder: &Path,
    program: &Path,
    spec: &Spec,
) -> Vec<(OsString, OsString)> {
    let own = |name: &OsString| {
        let is_moved = name == XDG_CONFIG_HOME && spec.config_home.is_none();
        name.as_encoded_bytes().starts_with(OPENCODES) || name == PRELOAD || is_moved
    };
    let real = |name: OsString, value: OsString| {
        // Below, everything is in the domain already: the real ones, for others to behave as ever.
        if name == "PATH" {
            let rest = std::env::split_paths(&value).filter(|entry| entry != folder);
            let path = std::env::join_paths(rest).unwrap_or_default();
            (name, path)
        } else if name == "SHELL" && Path::new(&value).starts_with(folder) {
            (name, program.into())
        } else if name == XDG_CONFIG_HOME {
            (name, spec.config_home.clone().unwrap_or_default().into())
        } else {
            (name, value)
        }
    };
    all.filter(|(name, _)| !own(name))
        .map(|(name, value)| real(name, value))
        .collect()
}

fn is_login() -> bool {
    std::env::args_os()
        .next()
        .is_some_and(|first| first.as_encoded_bytes().starts_with(b"-"))
}

fn read(path: &Path) -> Option<Spec> {
    let mut text = Vec::new();
    let file = fs::File::open(path).ok()?;
    file.take(SPEC_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn complain(name: &str, message: &str, code: u8) -> ExitCode {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(io::stderr(), "{name}: {message}");
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_get_nothing_of_opencodes_and_the_real_path_and_shell() {
        let given = [
            ("OPENCODE_SERVER_PASSWORD", "pw"),
            ("OPENCODE_CONFIG_CONTENT", "{}"),
            ("OPENCODE", "1"),
            ("PATH", "/bin:/run/x/tools:/usr/bin"),
            ("SHELL", "/run/x/tools/bash"),
            ("HOME", "/h"),
            ("BUN_INSPECT_PRELOAD", "/run/x/tools/guard.js"),
            ("XDG_CONFIG_HOME", "/run/x/tools/config"),
        ];
        let spec = Spec {
            config_home: Some("/h/.config".to_owned()),
            ..Spec::default()
        };
        let got = environment(
            given.iter().map(|(k, v)| (k.into(), v.into())),
            Path::new("/run/x/tools"),
            Path::new("/bin/bash"),
            &spec,
        );
        let got: Vec<(&str, &str)> = got
            .iter()
            .map(|(k, v)| (k.to_str().unwrap(), v.to_str().unwrap()))
            .collect();
        let wanted = [
            ("OPENCODE", "1"),
            ("PATH", "/bin:/usr/bin"),
            ("SHELL", "/bin/bash"),
            ("HOME", "/h"),
            ("XDG_CONFIG_HOME", "/h/.config"),
        ];
        assert_eq!(got, wanted);
    }
}
