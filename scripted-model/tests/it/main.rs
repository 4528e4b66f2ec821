//! The server as its clients see it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod client;
mod dialects;
mod faults;
mod program;
mod service;
