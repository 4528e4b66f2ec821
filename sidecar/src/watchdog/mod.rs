//! What is seen to hang, to loop or to run too long, and what follows from it.
//!
//! One concept for all of it: a [`Cause`] with its own bound, metric and words. A [`Finding`] about a
//! turn ends it in steps: the readers are told what was seen, OpenCode is told to abort; if it does not
//! come to rest in time it is restarted; the turn ends with the cause's code and is never run again by
//! itself. Findings about OpenCode's process come from its supervisor.

pub(crate) mod turn;

use contract::{
    event::{Status, StatusKind, TurnError},
    pod::Watchdog,
};
use serde_json::json;
use std::time::Duration;

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// A turn ran longer than allowed.
    TurnTimeout,
    /// OpenCode works at a turn and says nothing.
    Silent,
    /// A tool neither prints nor computes.
    ToolStalled,
    /// The provider's answers make no sense.
    Garbled,
    /// A turn makes too many model calls.
    Steps,
    /// The same call again and again, with the same result.
    SameCall,
    /// OpenCode said that it failed and goes on.
    NoEnd,
    /// OpenCode does not answer.
    Unresponsive,
    /// The agent's container uses too much memory.
    Memory,
}

/// What was seen, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) cause: Cause,
    /// One sentence: what, and for how long.
    pub(crate) text: String,
}

impl Cause {
    /// All of them.
    pub(crate) const ALL: [Self; 9] = [
        Self::TurnTimeout,
        Self::Silent,
        Self::ToolStalled,
        Self::Garbled,
        Self::Steps,
        Self::SameCall,
        Self::NoEnd,
        Self::Unresponsive,
        Self::Memory,
    ];

    /// Label of metrics and of `detail.cause`.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::TurnTimeout => "turn_timeout",
            Self::Silent => "silent",
            Self::ToolStalled => "tool_stalled",
            Self::Garbled => "garbled",
            Self::Steps => "steps",
            Self::SameCall => "same_call",
            Self::NoEnd => "no_end",
            Self::Unresponsive => "unresponsive",
            Self::Memory => "memory",
        }
    }

    /// Why a turn that it ends has failed.
    pub(crate) fn code(self) -> TurnError {
        match self {
            Self::TurnTimeout => TurnError::TurnTimeout,
            Self::Silent => TurnError::AgentSilent,
            Self::ToolStalled => TurnError::ToolStalled,
            Self::Garbled => TurnError::ProviderGarbled,
            Self::Steps | Self::SameCall => TurnError::Loop,
            Self::NoEnd => TurnError::AgentError,
            Self::Unresponsive | Self::Memory => TurnError::AgentUnresponsive,
        }
    }
}

impl Finding {
    pub(crate) fn new(cause: Cause, text: impl Into<String>) -> Self {
        Self {
            cause,
            text: text.into(),
        }
    }

    /// What readers are told of it: `step` is what follows.
    pub(crate) fn status(&self, step: &str) -> Status {
        let mut status = Status::new(StatusKind::Watchdog, self.text.clone());
        status.detail = Some(json!({"cause": self.cause.label(), "step": step}));
        status
    }
}

/// How long OpenCode's process may be unwell, and when it is started anew though it is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience {
    pub(crate) unwell_for: Option<Duration>,
    pub(crate) recycle_after: Option<Duration>,
    /// Of the container's limit.
    pub(crate) memory_percent: Option<u32>,
}

impl From<&Watchdog> for Patience {
    fn from(bounds: &Watchdog) -> Self {
        Self {
            unwell_for: bound(bounds.unresponsive_seconds),
            recycle_after: bound(bounds.recycle_after_seconds),
            memory_percent: Some(bounds.memory_percent).filter(|percent| *percent > 0),
        }
    }
}

/// A bound of the configuration: 0 switches it off.
pub(crate) fn bound(seconds: u64) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds))
}
