//! Names that travel in paths.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest session id, in bytes.
pub const SESSION_ID_MAX: usize = 128;

/// The name of a session, unique in its pod for ever.
///
/// 1 to 128 characters of `A-Z a-z 0-9 . _ -`, the first one a letter or digit, no `..`: it is a
/// path segment and a folder name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionId(String);

/// Why a text is no session id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "must be 1 to {SESSION_ID_MAX} characters of A-Z a-z 0-9 . _ -, begin with a letter or digit and not contain \"..\""
)]
pub struct InvalidSessionId;

impl SessionId {
    /// Checks the rule above.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidSessionId> {
        let text = text.into();
        let first_ok = text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
        let rest_ok = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if first_ok && rest_ok && text.len() <= SESSION_ID_MAX && !text.contains("..") {
            Ok(Self(text))
        } else {
            Err(InvalidSessionId)
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SessionId {
    type Error = InvalidSessionId;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(text)
    }
}

impl From<SessionId> for String {
    fn from(id: SessionId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_names_and_uuids() {
        for ok in ["a", "demo", "3f2a-b_c.d", &"x".repeat(SESSION_ID_MAX)] {
            assert!(SessionId::new(ok).is_ok(), "{ok}");
        }
    }

    #[test]
    fn refuses_paths_and_the_rest() {
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a..b",
            "-a",
            "_a",
            "a b",
            "ä",
            "a\n",
            &"x".repeat(129),
        ] {
            assert!(SessionId::new(bad).is_err(), "{bad:?}");
        }
    }
}
