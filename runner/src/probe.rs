//! What the image and the kernel offer.

use crate::config::Config;
use crate::{VERSION, elf, spawn, sys};
use contract::pod;
use contract::runner::{Phase, Probe, Reply};
use std::path::Path;

/// Looks at the image.
///
/// The program itself is not run, that would take a second: the file of the pod is inspected, and what
/// an earlier start found out counts.
#[must_use]
pub fn probe(config: &Config, phase: &Phase) -> Reply {
    let unsupported = match phase {
        Phase::Unsupported { message } => Some(message.clone()),
        Phase::Running { .. } => None,
        Phase::Stopped | Phase::Exited { .. } => {
            let program = Path::new(pod::OPENCODE_DIR).join("opencode");
            // Absent outside of pods; there a launch names another.
            program.exists().then(|| elf::obstacle(&program)).flatten()
        }
    };
    let has = |name: &str| spawn::find(name, &config.var("PATH")).is_some();
    Reply::Probe(Probe {
        unsupported,
        missing: missing(has),
        landlock_abi: sys::landlock_abi(),
        uid: rustix::process::getuid().as_raw(),
        version: VERSION.to_owned(),
    })
}

fn missing(has: impl Fn(&str) -> bool) -> Vec<String> {
    let mut missing = Vec::new();
    if !has("git") {
        missing.push("git: no diffs and no list of changed files");
    }
    if !has("rg") {
        missing.push("rg: the tools grep and glob fail");
    }
    if !has("bash") && !has("sh") {
        missing.push("bash or sh: the tool bash fails");
    }
    missing.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_program_says_what_fails() {
        assert!(missing(|_| true).is_empty());
        assert!(missing(|name| name != "bash").is_empty());
        let all = missing(|_| false);
        assert_eq!(all.len(), 3);
        assert!(all[0].starts_with("git: ") && all[1].starts_with("rg: "));
    }

    #[test]
    fn an_earlier_start_that_failed_counts() {
        let config = Config::from_env(std::iter::empty());
        let phase = Phase::Unsupported {
            message: "no loader".to_owned(),
        };
        let Reply::Probe(probe) = probe(&config, &phase) else {
            panic!()
        };
        assert_eq!(probe.unsupported.as_deref(), Some("no loader"));
        assert_eq!(probe.version, VERSION);
    }
}
