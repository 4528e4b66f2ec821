//! What the egress proxy tells.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// `GET /egress`: what the agent was refused because no rule allows it, since the sidecar's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EgressReport {
    /// Each destination once, at most 256, sorted by host.
    pub refused: Vec<RefusedDestination>,
    /// Requests for destinations that did not fit in there.
    pub forgotten: u64,
    /// YAML of the piece of a spec that would allow all of these; empty where nothing was refused. Read
    /// it before you use it: the agent decided what is in it.
    pub fragment: String,
}

/// A destination that no rule allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RefusedDestination {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// How often it was asked for.
    pub count: u64,
    /// When it was last asked for.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub last: Timestamp,
}
