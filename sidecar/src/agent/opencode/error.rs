//! What may go wrong in a call of OpenCode.

use crate::agent::wire::ParseError;
use std::{io, time::Duration};

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenCodeError {
    /// No answer in time; whether OpenCode acted is not known.
    #[error("OpenCode did not answer `{call}` within {after:?}")]
    Timeout { call: &'static str, after: Duration },
    /// No connection, or it broke; whether OpenCode acted is not known.
    #[error("no connection to OpenCode for `{call}`")]
    Unreachable {
        call: &'static str,
        source: io::Error,
    },
    /// Any status but 2xx, with the beginning of what was said.
    #[error("OpenCode answered `{call}` with {code}: {body}")]
    Status {
        call: &'static str,
        code: u16,
        body: String,
    },
    /// More bytes than we take.
    #[error("OpenCode's answer to `{call}` is larger than {most} bytes")]
    TooLarge { call: &'static str, most: usize },
    /// Not what was expected.
    #[error("OpenCode's answer to `{call}` makes no sense")]
    Garbage {
        call: &'static str,
        source: GarbageError,
    },
}

/// In what way an answer makes no sense.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GarbageError {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Parse(#[from] ParseError),
    #[error("{0}")]
    Unexpected(&'static str),
}

impl OpenCodeError {
    /// Whether the same call may succeed a moment later, by itself.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Unreachable { .. } => true,
            // 500 is OpenCode's answer to what it cannot read: asking again does not change it.
            Self::Status { code, .. } => matches!(code, 408 | 429 | 502..=504),
            Self::TooLarge { .. } | Self::Garbage { .. } => false,
        }
    }

    /// Whether OpenCode says that it failed itself, or (499) that the work was given up.
    pub(crate) fn is_spoilt(&self) -> bool {
        matches!(self, Self::Status { code: 499.., .. })
    }

    /// Whether OpenCode does not know what was named.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { code: 404, .. })
    }
}
