//! The trusted half of a pod: a session API over a real OpenCode.
//!
//! `api` answers requests, `store` keeps sessions in the journal, `turn` drives one turn from prompt
//! to its last event, `agent` talks to runner and OpenCode (both untrusted), `proxy` puts keys into
//! model calls.

pub(crate) mod agent;
pub(crate) mod config;
pub(crate) mod keys;
pub(crate) mod proxy;
pub(crate) mod settings;
