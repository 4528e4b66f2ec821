//! A [`Launch`] as a process.

use crate::config::Config;
use crate::{elf, sys};
use contract::runner::{Launch, Phase};
use rustix::io::Errno;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A loader complains at once; what dies later died of something else.
const EARLY: Duration = Duration::from_secs(15);

/// Refuses what no exec could take.
///
/// # Errors
/// For people: what is wrong with which field.
pub fn check(launch: &Launch) -> Result<(), String> {
    let texts = launch
        .args
        .iter()
        .chain(launch.env.values())
        .chain([&launch.program]);
    if launch.program.is_empty() {
        return Err("program is empty".to_owned());
    }
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err("program, args and env must not hold a zero byte".to_owned());
    }
    match launch
        .env
        .keys()
        .find(|name| name.is_empty() || name.contains(['=', '\0']))
    {
        Some(name) => Err(format!("{name:?} is no name of a variable")),
        None => Ok(()),
    }
}

/// A variable as the process will see it.
#[must_use]
pub fn variable(config: &Config, launch: &Launch, name: &str) -> OsString {
    launch
        .env
        .get(name)
        .map_or_else(|| config.var(name), OsString::from)
}

/// The command, with both outputs piped. `variables` come last.
#[must_use]
pub fn command(config: &Config, launch: &Launch, variables: Vec<(String, OsString)>) -> Command {
    let mut command =
        Command::new(locate(config, launch).unwrap_or_else(|| launch.program.clone().into()));
    command
        .args(&launch.args)
        .env_clear()
        .envs(&config.child_env)
        .envs(&launch.env)
        .envs(variables)
        .current_dir(&config.workspace)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    sys::detach(&mut command);
    command
}

/// Where the program is: as given if it is a path, else in PATH.
fn locate(config: &Config, launch: &Launch) -> Option<PathBuf> {
    if launch.program.contains('/') {
        return Some(config.workspace.join(&launch.program));
    }
    find(&launch.program, &variable(config, launch, "PATH"))
}

/// The first executable file of that name in a search path.
#[must_use]
pub fn find(name: &str, path: &OsString) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.is_file()
        && rustix::fs::access(file.as_os_str().as_bytes(), rustix::fs::Access::EXEC_OK).is_ok()
}

/// Whether the program can be seen not to run here.
#[must_use]
pub fn obstacle(config: &Config, launch: &Launch) -> Option<Phase> {
    let why = elf::obstacle(&locate(config, launch)?)?;
    Some(Phase::Unsupported {
        message: format!("cannot start OpenCode: {why}"),
    })
}

/// What a failed exec means.
#[must_use]
pub fn failed(launch: &Launch, error: &io::Error) -> Phase {
    let message = format!("cannot start {}: {error}", launch.program);
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        // The image or the volume with the program is wrong; trying again does not help.
        Some(
            Errno::NOENT
            | Errno::NOTDIR
            | Errno::NOEXEC
            | Errno::ACCESS
            | Errno::PERM
            | Errno::LIBBAD
            | Errno::LOOP
            | Errno::ISDIR,
        ) => Phase::Unsupported { message },
        // Out of memory, processes or files: may pass.
        _ => Phase::Exited {
            code: None,
            signal: None,
            stderr: message,
        },
    }
}

/// What an exit means that nobody asked for.
#[must_use]
pub fn ended(exit: crate::reaper::Exit, stderr: String, after: Duration) -> Phase {
    let early = after < EARLY && exit.code.is_some_and(|code| code != 0);
    if early && elf::is_loader_complaint(&stderr) {
        let message = format!("{}. {}", elf::GLIBC_HINT, stderr.trim());
        return Phase::Unsupported { message };
    }
    Phase::Exited {
        code: exit.code,
        signal: exit.signal,
        stderr,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reaper::Exit;

    fn launch() -> Launch {
        Launch {
            program: "/bin/true".to_owned(),
            args: vec!["a".to_owned()],
            env: [("K".to_owned(), "v".to_owned())].into(),
            home_files: [].into(),
            git_init: false,
            confinement: contract::runner::Confinement::default(),
        }
    }

    #[test]
    fn what_exec_cannot_take_is_refused_before() {
        assert_eq!(check(&launch()), Ok(()));
        let wrong: [fn(&mut Launch); 5] = [
            |l| l.program.clear(),
            |l| l.program.push('\0'),
            |l| l.args.push("a\0b".to_owned()),
            |l| drop(l.env.insert("A=B".to_owned(), String::new())),
            |l| drop(l.env.insert(String::new(), String::new())),
        ];
        for spoil in wrong {
            let mut launch = launch();
            spoil(&mut launch);
            assert!(check(&launch).is_err(), "{launch:?}");
        }
    }

    #[test]
    fn a_loader_that_complains_early_is_unsupported_and_else_an_exit() {
        let glibc =
            "opencode: /lib/libc.so.6: version `GLIBC_2.17' not found (required by opencode)";
        let musl = "Error relocating opencode: gnu_get_libc_version: symbol not found";
        let failed = Exit {
            code: Some(127),
            signal: None,
        };
        for text in [glibc, musl] {
            let phase = ended(failed, text.to_owned(), Duration::from_millis(20));
            let Phase::Unsupported { message } = phase else {
                panic!("{phase:?}")
            };
            assert!(message.contains("2.17") && message.contains(text));
        }
        let exited = |exit, text: &str, after| {
            matches!(ended(exit, text.to_owned(), after), Phase::Exited { .. })
        };
        assert!(exited(failed, glibc, EARLY));
        assert!(exited(
            Exit {
                code: Some(0),
                signal: None
            },
            glibc,
            Duration::ZERO
        ));
        assert!(exited(
            Exit {
                code: None,
                signal: Some(9)
            },
            glibc,
            Duration::ZERO
        ));
        assert!(exited(failed, "ServeError", Duration::ZERO));
    }
}
