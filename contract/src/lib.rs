//! What the processes of opencode-operator say to each other.
//!
//! Bodies of the sidecar's HTTP API ([`session`], [`approval`], [`checkpoint`]), events of its streams
//! ([`event`]), positions in them ([`cursor`]), error codes ([`error`]), the summary that the
//! operator follows ([`summary`]), what the operator tells the sidecar ([`pod`]), the protocol
//! between sidecar and runner ([`runner`]) and short-lived tokens ([`token`]).
//!
//! This crate knows no process and no Kubernetes. With the feature `client` it also holds the
//! HTTP client of the sidecar.

pub mod approval;
pub mod checkpoint;
#[cfg(feature = "client")]
pub mod client;
pub mod cursor;
pub mod egress;
pub mod error;
pub mod event;
pub mod id;
pub mod pod;
pub mod runner;
pub mod session;
pub mod spend;
pub mod summary;
pub mod token;
pub mod usage;

pub use cursor::{Cursor, Epoch};
pub use error::{ErrorBody, ErrorCode, FieldError};
pub use event::{Event, EventBody};
pub use id::SessionId;
pub use usage::Usage;
