//! The credential proxy on loopback: model calls of OpenCode (untrusted, holds a dummy key) become
//! calls of the real provider with the real key, model and limits.
//!
//! What comes in is checked strictly and built anew; what comes back passes byte for byte, with one
//! exception: bytes equal to the key are starred, so that no echo brings it to the agent.

pub(crate) mod alias;
mod answer;
pub(crate) mod bindings;
mod breaker;
mod call;
mod code;
mod content;
pub(crate) mod edit;
mod endpoint;
mod guard;
mod inbound;
pub(crate) mod ledger;
mod mask;
mod meter;
mod observe;
mod refusal;
mod serve;
mod server;
mod sniff;
pub(crate) mod target;
mod upstream;

#[cfg(test)]
mod tests;

pub(crate) use bindings::{Bindings, TurnLink};
pub(crate) use ledger::Ledger;
pub(crate) use observe::{Ended, Observation, Observer, What};
pub(crate) use refusal::{SILENT, UNREACHABLE};
pub(crate) use serve::serve;
pub(crate) use server::Proxy;
pub(crate) use target::{Api, Target};
pub(crate) use upstream::ProxyError;

/// Largest body of a request, in bytes.
pub(crate) const BODY_MAX: usize = 32 * 1024 * 1024;
