//! Why something about checkpoints was not done.

use crate::{agent::runner::RunnerError, store::session::JournalError};
use contract::{ErrorCode, runner::Failure as Told};

/// Longest quotation of what the runner says, in bytes: it is not trusted to be modest.
const QUOTE_MAX: usize = 300;

/// A stable code and a sentence.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub code: ErrorCode,
    pub message: String,
    /// Whether it was done is not known.
    pub unknown: bool,
}

impl Failure {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            unknown: false,
        }
    }

    pub(crate) fn not_found(id: &str) -> Self {
        let id: String = id.chars().take(32).collect();
        Self::new(
            ErrorCode::CheckpointNotFound,
            format!(
                "there is no checkpoint {id:?}: GET /checkpoints lists all; old ones are forgotten (spec.checkpoints)"
            ),
        )
    }

    pub(crate) fn turn_running() -> Self {
        Self::new(
            ErrorCode::TurnRunning,
            "a turn runs in this pod, and all sessions share its workspace: wait for its last event, or DELETE \
             /sessions/{session_id} to cancel it",
        )
    }
}

impl From<RunnerError> for Failure {
    fn from(error: RunnerError) -> Self {
        let unknown = !matches!(
            error,
            RunnerError::Failed { code, .. } if code != Told::Unfinished
        );
        let (code, advice) = match &error {
            RunnerError::Failed { code, .. } => match code {
                Told::DiskFull => (
                    ErrorCode::VolumeFull,
                    "free space, or raise workspace.storage",
                ),
                Told::TooLarge => (
                    ErrorCode::CheckpointTooLarge,
                    "raise spec.checkpoints.maxSize, or let .gitignore name what need not be kept",
                ),
                Told::Damaged => (
                    ErrorCode::CheckpointDamaged,
                    "the agent can write where the store lies; use another checkpoint",
                ),
                Told::Blocked => (ErrorCode::CheckpointBlocked, "nothing was changed"),
                Told::BadRequest => (ErrorCode::InvalidRequest, "nothing was changed"),
                Told::Unfinished => (
                    ErrorCode::CheckpointFailed,
                    "it is taken up again by itself",
                ),
                Told::NotFound | Told::Denied | Told::Io | Told::TooSlow => {
                    (ErrorCode::CheckpointFailed, "try again")
                }
            },
            RunnerError::Timeout(_)
            | RunnerError::Unreachable(_)
            | RunnerError::Closed
            | RunnerError::TooLarge
            | RunnerError::Garbage(_)
            | RunnerError::Unexpected => (ErrorCode::AgentUnavailable, "try again"),
        };
        let message = format!("{}; {advice}", quote(&error.to_string()));
        Self {
            code,
            message,
            unknown,
        }
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        Self::new(
            ErrorCode::JournalUnavailable,
            format!("{error}; free space on the session's volume"),
        )
    }
}

/// One line of bounded length.
fn quote(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut line: String = text.chars().take(QUOTE_MAX).map(clean).collect();
    line.truncate(line.floor_char_boundary(QUOTE_MAX));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_runner_says_stays_one_short_line() {
        let failure = Failure::from(RunnerError::Failed {
            code: Told::Blocked,
            message: "ü\n\u{1b}[2J".repeat(1000),
        });
        assert_eq!(failure.code, ErrorCode::CheckpointBlocked);
        assert!(failure.message.len() < QUOTE_MAX + 40);
        assert!(!failure.message.chars().any(char::is_control));
        assert!(!failure.unknown);
    }

    #[test]
    fn what_may_have_happened_is_told_apart() {
        assert!(Failure::from(RunnerError::Closed).unknown);
        let unfinished = RunnerError::Failed {
            code: Told::Unfinished,
            message: String::new(),
        };
        assert!(Failure::from(unfinished).unknown);
    }
}
