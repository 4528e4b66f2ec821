//! The untrusted half, as the sidecar sees it: everything that comes from here is bounded, parsed
//! and never obeyed.

mod http;
pub(crate) mod ids;
pub(crate) mod launch;
pub(crate) mod map;
pub(crate) mod opencode;
pub(crate) mod router;
pub(crate) mod rules;
pub(crate) mod runner;
pub(crate) mod stream;
pub(crate) mod supervisor;
pub(crate) mod text;
mod timings;
mod wildcard;
pub(crate) mod wire;

#[cfg(test)]
mod tests;
