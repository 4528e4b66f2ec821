//! Turns every `OpenCodeSession` into a pod with a workspace and keeps it so.
//!
//! One round for one object reads *observe, validate, decide, build, apply, status*, a file each in
//! [`session`]. Only [`apply`] (and the lease library) writes to the API server.

pub mod apply;
pub mod config;
pub mod controller;
pub mod leader;
pub mod metrics;
pub mod reason;
pub mod run;
pub mod server;
pub mod session;
pub mod summaries;
