//! What can go wrong, one enum per operation.

use std::io;
use std::path::PathBuf;

/// Why [`Journal::open`](crate::Journal::open) refused.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process (or another `Journal` in this one) holds the folder.
    #[error("the journal is in use: another process holds the lock {}", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A segment was written by a newer program; nothing was touched.
    #[error(
        "{} has format version {found}, this program reads up to {}: use the newer program",
        path.display(), crate::frame::VERSION
    )]
    NewerVersion {
        /// The segment.
        path: PathBuf,
        /// Its version.
        found: u16,
    },
    /// Reading or repairing failed.
    #[error("cannot recover the journal at {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Why [`Journal::create`](crate::Journal::create) made no log.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A log of this name exists.
    #[error("a log of this name exists")]
    Exists,
    /// Names are 1 to 128 of `A-Za-z0-9._-`, begin with a letter or digit, without `..`.
    #[error(
        "not a log name: 1 to 128 of A-Z a-z 0-9 . _ -, beginning with a letter or digit, without `..`"
    )]
    InvalidName,
    /// The disk is full.
    #[error("the journal's disk is full")]
    Full,
    /// The journal has failed or is closed; [`health`](crate::Journal::health) says why.
    #[error("the journal accepts nothing any more")]
    Unavailable,
    /// The file system refused.
    #[error("cannot create the log")]
    Io(#[source] io::Error),
}

/// Why an entry was not accepted. Nothing of it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The log's queue is full: the disk is slower than the writer. Try again later.
    #[error("the log's queue is full")]
    Backlogged,
    /// The disk is full: only urgent entries are accepted.
    #[error("the journal's disk is full")]
    Full,
    /// A write or sync failed; nothing is accepted until the process starts anew.
    #[error("the journal has failed")]
    Failed,
    /// The journal is closed.
    #[error("the journal is closed")]
    Closed,
    /// The entry's size is above [`MAX_ENTRY`](crate::MAX_ENTRY): trying again does not help.
    #[error("the entry is larger than {} bytes", crate::MAX_ENTRY)]
    TooLarge,
}

/// Why events could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The events asked for were trimmed away.
    #[error("events before {first} are trimmed")]
    Trimmed {
        /// The first one that is kept.
        first: u64,
    },
    /// What is on disk is not what was written.
    #[error("{} is damaged at byte {offset}", path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        offset: u64,
    },
    /// The file system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// The segment.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Why a trim stopped; what was dropped before stays dropped.
#[derive(Debug, thiserror::Error)]
pub enum TrimError {
    /// The file system refused.
    #[error("cannot remove {}", path.display())]
    Io {
        /// The segment.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Accepted entries that did not become durable before the journal closed.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// The disk is full.
    #[error("the journal closed with accepted entries unwritten: the disk is full")]
    Full,
    /// A write or sync failed.
    #[error("the journal closed after a failure: {0}")]
    Failed(String),
}

/// Whether the journal accepts entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// All is well.
    Ok,
    /// The disk is full: only urgent entries are accepted. Goes back to `Ok` by itself.
    Full,
    /// A write or sync failed, with what and where. Final: start the process anew.
    Failed(String),
}

/// A fault of a write, sorted by what follows from it.
#[derive(Debug)]
pub(crate) enum Fault {
    /// No space: may be tried again.
    Full,
    /// Anything else: the state of the file is unknown, so fail-stop.
    Broken(String),
}

impl Fault {
    /// Sorts an error of an operation that leaves a known state behind when space is out.
    pub(crate) fn of(what: &str, path: &std::path::Path, error: &io::Error) -> Self {
        if is_full(error) {
            Self::Full
        } else {
            Self::broken(what, path, error)
        }
    }

    pub(crate) fn broken(what: &str, path: &std::path::Path, error: &io::Error) -> Self {
        Self::Broken(format!("cannot {what} {}: {error}", path.display()))
    }
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
