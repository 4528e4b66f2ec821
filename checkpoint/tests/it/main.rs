//! Checkpoints of real folders, beside the real git where it is a judge.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod basics;
mod crash;
mod git;
mod hostile;
mod property;
mod support;
