//! What users declare: the custom resources of opencode-operator, their rules and their YAML.
//!
//! Every rule that the API server can check stands in the schema (as bounds or CEL), so that a wrong
//! object is refused when it is applied. What remains is checked by the operator and reported in
//! the object's status.

pub mod quantity;
pub mod schema;
pub mod session;

pub use session::{OpenCodeSession, OpenCodeSessionSpec, status::OpenCodeSessionStatus};

/// API group of all resources.
pub const GROUP: &str = "opencode-operator.dev";
