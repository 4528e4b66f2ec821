//! The runner as a process, with real children.

mod harness;
mod lifecycle;
mod limits;
mod reaping;
mod requests;
