//! The command line: `run` (default), `install`, `version`.
//!
//! Parsed by hand: an argument parser would be a tenth of the binary for three words.

use crate::config::Config;
use crate::confine::{rehearse, tools};
use crate::{VERSION, install, log, offline};
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "\
usage: opencode-runner [run]
       opencode-runner install [--self] [--from FILE...] --to DIR
       opencode-runner version

install copies this program (--self, or when no --from is given) and the given
files into DIR with mode 0755, each replaced atomically.
";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Be the runner.
    Run,
    /// Copy files.
    Install {
        /// Copy this program too.
        own: bool,
        /// Files to copy.
        from: Vec<PathBuf>,
        /// Folder to copy to.
        to: PathBuf,
    },
    /// Try what is to be refused; the runner starts itself so, see [`rehearse`].
    Rehearse {
        /// As a tool of OpenCode, not as OpenCode.
        tool: bool,
        /// What to try.
        attempts: String,
    },
    /// Run programs beside OpenCode; the runner starts itself so, see [`offline`].
    Offline {
        /// Which, and for whom.
        spec: String,
    },
    /// Print the version.
    Version,
    /// Print the usage.
    Help,
}

/// Parses the arguments after the program's name; the error is for people.
///
/// # Errors
/// Unknown words, `install` without `--to`.
pub fn parse(args: &[OsString]) -> Result<Command, String> {
    let Some((first, rest)) = args.split_first() else {
        return Ok(Command::Run);
    };
    let command = match first.to_str() {
        Some("install") => return parse_install(rest),
        Some(word @ (rehearse::OUTER | rehearse::INNER)) => {
            let [attempts] = rest else {
                return Err("what to try is missing".to_owned());
            };
            return Ok(Command::Rehearse {
                tool: word == rehearse::INNER,
                attempts: attempts.to_string_lossy().into_owned(),
            });
        }
        Some(offline::COMMAND) => {
            let [spec] = rest else {
                return Err("what may run is missing".to_owned());
            };
            return Ok(Command::Offline {
                spec: spec.to_string_lossy().into_owned(),
            });
        }
        Some("run") => Command::Run,
        Some("version" | "--version" | "-V") => Command::Version,
        Some("help" | "--help" | "-h") => Command::Help,
        _ => return Err(format!("unknown command {}", first.display())),
    };
    match rest.first() {
        None => Ok(command),
        Some(more) => Err(format!("unexpected argument {}", more.display())),
    }
}

fn parse_install(args: &[OsString]) -> Result<Command, String> {
    let (mut own, mut from, mut to) = (false, Vec::new(), None);
    let mut args = args.iter().peekable();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--self") => own = true,
            Some("--to") => to = Some(PathBuf::from(args.next().ok_or("--to needs a folder")?)),
            Some("--from") => {
                let before = from.len();
                while let Some(file) = args.next_if(|a| !a.as_encoded_bytes().starts_with(b"--")) {
                    from.push(PathBuf::from(file));
                }
                if from.len() == before {
                    return Err("--from needs a file".to_owned());
                }
            }
            _ => return Err(format!("unexpected argument {}", arg.display())),
        }
    }
    let to = to.ok_or("install needs --to DIR")?;
    own |= from.is_empty();
    Ok(Command::Install { own, from, to })
}

/// Does what the arguments say and returns the exit code: 2 for a wrong command line, 1 for a fault.
#[must_use]
pub fn main(args: Vec<OsString>) -> ExitCode {
    if let Some(link) = tools::invoked() {
        return tools::become_program(&link, &args);
    }
    match parse(&args) {
        Ok(Command::Run) => run(),
        Ok(Command::Rehearse { tool, attempts }) => {
            if tool {
                rehearse::inner(&attempts)
            } else {
                rehearse::outer(&attempts)
            }
        }
        Ok(Command::Offline { spec }) => offline::serve(&spec),
        Ok(Command::Version) => say(&format!("opencode-runner {VERSION}\n")),
        Ok(Command::Help) => say(USAGE),
        Ok(Command::Install { own, from, to }) => match install::install(own, &from, &to) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&error.to_string(), 1),
        },
        Err(message) => complain(&format!("{message}\n{USAGE}"), 2),
    }
}

fn run() -> ExitCode {
    log::init();
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(6)
        // A thread that is there need not be made when the agent has used up the container's pids.
        .thread_keep_alive(Duration::from_secs(10 * 365 * 24 * 3600))
        .build()
        .and_then(|runtime| {
            let outcome = runtime.block_on(crate::run(Config::from_env(std::env::vars_os())));
            // File work that hangs on a dead mount must not hold the exit.
            runtime.shutdown_background();
            outcome
        });
    if let Err(error) = &outcome {
        log::error("cannot run", &[("error", error.to_string().into())]);
    }
    log::flush(Duration::from_millis(500));
    if outcome.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn say(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn complain(text: &str, code: u8) -> ExitCode {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(std::io::stderr(), "opencode-runner: {}", text.trim_end());
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Command, String> {
        parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn commands_are_told_apart() {
        assert_eq!(parsed(&[]), Ok(Command::Run));
        assert_eq!(parsed(&["run"]), Ok(Command::Run));
        assert_eq!(parsed(&["version"]), Ok(Command::Version));
        assert!(parsed(&["run", "x"]).is_err());
        assert!(parsed(&["rum"]).is_err());
    }

    #[test]
    fn install_takes_files_and_a_folder() {
        let install = |own, from: &[&str]| Command::Install {
            own,
            from: from.iter().map(PathBuf::from).collect(),
            to: "/d".into(),
        };
        assert_eq!(parsed(&["install", "--to", "/d"]), Ok(install(true, &[])));
        assert_eq!(
            parsed(&["install", "--from", "a", "b", "--to", "/d"]),
            Ok(install(false, &["a", "b"]))
        );
        assert_eq!(
            parsed(&["install", "--to", "/d", "--self", "--from", "a"]),
            Ok(install(true, &["a"]))
        );
        for wrong in [
            &["install"][..],
            &["install", "--from", "--to", "/d"],
            &["install", "--to"],
        ] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
    }
}
