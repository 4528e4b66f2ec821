//! Each surprise of OpenCode, of its provider, of the machine and of callers, played to real processes:
//! sidecar, runner and OpenCode; only the language model is a double.
//!
//! Needs OPENCODE_BIN (OpenCode's binary) and the runner's binary at RUNNER_BIN or beside the sidecar's.
//! Everything listens on loopback and ends with the test process, however that ends.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod approvals;
mod between;
mod budget;
mod callers;
mod cancel;
mod checkpoints;
mod crashes;
mod dialects;
mod disk;
mod double;
mod egress;
mod hostile;
mod isolation;
mod launch;
mod observed;
mod packages;
mod policy;
mod process;
mod prompt;
mod providers;
mod reader;
mod readers;
mod repeats;
mod stack;
mod tls;
mod tools;
mod traces;
mod watchdog;
