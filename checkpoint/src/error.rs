//! What can go wrong.

use rustix::io::Errno;
use std::io;

/// Why something was not done. Nothing of the folder was changed, except for [`Error::Unfinished`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The volume is full, or nearly.
    #[error("the volume is full: {0}")]
    Full(String),
    /// The store would grow beyond what is allowed.
    #[error("it takes more than the quota of {0} bytes")]
    Quota(u64),
    /// An object is missing or is not what its name says.
    #[error("the store is damaged: {0}")]
    Corrupt(String),
    /// More files, or deeper folders, than are handled.
    #[error("{0}")]
    TooLarge(String),
    /// It took too long.
    #[error("it took longer than allowed")]
    TooSlow,
    /// Something in the folder stands in the way.
    #[error("{0}")]
    Blocked(String),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A restore stopped in the middle and could not be undone; it is taken up again.
    #[error("the restore is not finished: {0}")]
    Unfinished(String),
}

impl Error {
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt(what.into())
    }
}

/// Names what was tried when a call fails.
pub(crate) trait Context<T> {
    fn context(self, what: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: &'static str) -> Result<T, Error> {
        self.map_err(|error| {
            let source: io::Error = error.into();
            match source.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::NOSPC | Errno::DQUOT) => Error::Full(what.to_owned()),
                _ => Error::Io { what, source },
            }
        })
    }
}
