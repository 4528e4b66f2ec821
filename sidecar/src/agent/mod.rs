//! The untrusted half, as the sidecar sees it: everything that comes from here is bounded, parsed
//! and never obeyed.

pub(crate) mod map;
pub(crate) mod text;
pub(crate) mod wire;
