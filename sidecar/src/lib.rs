//! The trusted half of a pod: a session API over a real OpenCode.
//!
//! `api` answers requests, `store` keeps sessions in the journal, `turn` drives one turn from prompt
//! to its last event, `agent` talks to runner and OpenCode (both untrusted), `proxy` puts keys into
//! model calls, `egress` is the way out where the agent has no other.

mod activity;
pub(crate) mod agent;
mod api;
mod app;
mod audit;
mod auth;
mod checkpoints;
pub(crate) mod config;
mod egress;
#[doc(hidden)]
pub mod fuzz;
mod inspect;
mod isolation;
pub(crate) mod keys;
mod metrics;
pub(crate) mod proxy;
mod run;
mod secret;
mod serve;
mod settings;
mod spans;
mod store;
mod summary;
mod turn;
mod watchdog;
#[cfg(feature = "weakened")]
mod weakened;

pub use api::openapi_json;
pub use audit::main as audit;
pub use inspect::journal_command;
pub use run::{RunError, run};
pub use settings::Settings;

/// JSON Schema of every event, as committed in docs/events.schema.json.
#[must_use]
pub fn event_schema_json() -> String {
    let schema = schemars::schema_for!(contract::Event);
    let mut json = serde_json::to_string_pretty(&schema).expect("the schema is plain data");
    json.push('\n');
    json
}
