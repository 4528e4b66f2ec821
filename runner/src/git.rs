//! Makes the workspace a git repository.

use crate::config::Config;
use crate::reaper::Reaper;
use crate::spawn::find;
use crate::{log, sys};
use rustix::process::Signal;
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

/// `git init` unless the workspace has a `.git` of any kind. A failure is logged and no reason not to
/// start: OpenCode works without, only not knowing what changed.
pub async fn init(config: &Config, reaper: &Reaper) {
    if config.workspace.join(".git").symlink_metadata().is_ok() {
        return;
    }
    let Some(program) = find("git", &config.var("PATH")) else {
        log::warn("no git in PATH: changed files will not be told", &[]);
        return;
    };
    let mut command = Command::new(program);
    // No templates, hence no hooks, and no configuration of a HOME that the agent writes.
    command
        .args(["init", "--quiet", "--template="])
        .env_clear()
        .env("PATH", config.var("PATH"))
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .current_dir(&config.workspace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    sys::detach(&mut command);
    let problem = match reaper.spawn(&mut command) {
        Ok((_, pid, exit)) => match tokio::time::timeout(LIMIT, exit).await {
            Ok(Ok(exit)) if exit.code == Some(0) => return,
            Ok(exit) => format!("{exit:?}"),
            Err(_) => {
                reaper.signal(pid, Signal::KILL, true);
                "too slow".to_owned()
            }
        },
        Err(error) => error.to_string(),
    };
    log::warn("git init failed", &[("error", problem.into())]);
}
