//! The way out for the agent where its container may connect to nothing else: an HTTP proxy on
//! loopback with an allow list of hosts.
//!
//! Tools speak to it as to any proxy (`CONNECT host:port`, or an absolute `http://` URL). It resolves
//! the name itself, looks at every address that came back, and connects to exactly one of those: a
//! name that resolves to loopback, to the metadata service or, unless the rule says so, to a private
//! network leads nowhere. What goes through is not looked into. Every decision is logged.
//!
//! The list is enforced by the sidecar; that there is no other way out is enforced by the runner's
//! Landlock domain (`network.egress.mode: proxy-only`).

mod address;
mod head;
mod policy;
mod refused;
mod serve;
#[cfg(test)]
mod tests;

pub(crate) use refused::Refused;
pub(crate) use serve::{Metrics, serve};

use crate::config::Config;
use std::sync::Arc;

/// What a connection needs to know.
#[derive(Clone)]
pub(crate) struct Egress {
    pub config: Config,
    pub refused: Arc<Refused>,
    pub metrics: Metrics,
    resolver: serve::Resolver,
}

impl Egress {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            refused: Arc::default(),
            metrics: Metrics::default(),
            resolver: serve::system_resolver(),
        }
    }
}
