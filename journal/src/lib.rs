//! The append-only event log: durable before visible, numbered without holes.
//!
//! A [`Journal`] is a folder with a [`Log`] per session. Appending never waits for the disk: one
//! committer thread writes and syncs whatever has gathered, and only then do readers see it.
//! There is no async and no HTTP in here; a reader is a position and a read.
//!
//! What a crash leaves behind is sorted out by [`Journal::open`]; see `recover.rs`. The bytes on
//! disk are described in `frame.rs`.

mod batch;
mod committer;
mod entry;
mod error;
mod frame;
pub mod fs;
#[doc(hidden)]
pub mod fuzz;
pub mod inspect;
mod journal;
mod log;
mod recover;
mod registry;
mod reserve;
mod scan;
mod segment;
mod shared;
mod sync;
#[cfg(test)]
mod tests;
mod writer;

pub use batch::{Batch, Events};
pub use entry::Entry;
pub use error::{AppendError, CloseError, CreateError, Health, OpenError, ReadError, TrimError};
pub use frame::MAX_PAYLOAD;
pub use journal::Journal;
pub use log::{Frame, Log, MAX_ENTRY, Mark, Position};
pub use recover::Repair;
pub use shared::Options;
