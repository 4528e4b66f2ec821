//! The credential proxy on loopback: model calls of OpenCode (untrusted, holds a dummy key) become
//! calls of the real provider with the real key, model and limits.
//!
//! What comes in is checked strictly and built anew; what comes back passes byte for byte, with one
//! exception: bytes equal to the key are starred, so that no echo brings it to the agent.

pub(crate) mod alias;
pub(crate) mod bindings;
mod endpoint;
pub(crate) mod target;

pub(crate) use bindings::Bindings;
pub(crate) use target::{Api, KeySource, Target};
