//! What the runner tells about OpenCode's process.

use super::due::Why;
use contract::runner::{Isolation, Phase, State};
use tokio::sync::oneshot;

/// Longest text that the untrusted side adds to a message, in bytes.
pub(super) const WORDS_MAX: usize = 1024;

/// One process of OpenCode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) runner_id: String,
    pub(super) generation: u64,
}

/// Why a process is no longer served.
#[derive(Debug)]
pub(super) enum Ended {
    /// It ended, or another one is there.
    Process(String),
    /// The runner is gone, or another one is there.
    Runner(String),
    /// It is to be stopped: somebody asked for it, and hears when it is done.
    Asked(String, oneshot::Sender<()>),
    /// It is to be stopped because it does not answer.
    Unwell(String),
    /// It is to be started anew while nothing runs.
    Due(Why),
}

/// Whether a state means that the process is not to be served any longer.
pub(super) fn compare(process: &Process, state: &State) -> Option<Ended> {
    if state.runner_id != process.runner_id {
        return Some(Ended::Runner("it was started anew".to_owned()));
    }
    // States of the process before are still on their way when a new one starts.
    if state.generation < process.generation {
        return None;
    }
    match &state.phase {
        Phase::Running { .. } if state.generation == process.generation => None,
        phase => Some(Ended::Process(describe(phase))),
    }
}

/// A phase for people.
pub(super) fn describe(phase: &Phase) -> String {
    match phase {
        Phase::Stopped => "it was stopped".to_owned(),
        Phase::Running { .. } => "another process took its place".to_owned(),
        Phase::Unsupported { message } => clip(message, WORDS_MAX),
        Phase::Exited {
            code,
            signal,
            stderr,
        } => {
            let how = match (code, signal) {
                (_, Some(9)) => "it was killed (often because memory ran out)".to_owned(),
                (_, Some(signal)) => format!("it was ended by signal {signal}"),
                (Some(code), None) => format!("it exited with code {code}"),
                (None, None) => "it exited".to_owned(),
            };
            match stderr.trim().lines().next_back() {
                Some(last) => format!("{how}; its last words: {}", clip(last, WORDS_MAX)),
                None => how,
            }
        }
    }
}

pub(super) fn clip(text: &str, most: usize) -> String {
    crate::agent::text::clip(text, most).into_owned()
}

/// What the untrusted side tells about isolation, no longer than it can be.
pub(super) fn bounded(told: Isolation) -> Isolation {
    /// More than there are measures.
    const MEASURES_MAX: usize = 16;
    const REASON_MAX: usize = 200;
    let Isolation {
        mut enforced,
        mut missing,
    } = told;
    enforced.truncate(MEASURES_MAX);
    missing.truncate(MEASURES_MAX);
    for one in &mut missing {
        one.reason = clip(&one.reason, REASON_MAX);
    }
    Isolation { enforced, missing }
}
