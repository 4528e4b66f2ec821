//! A position in a session's events.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Names one history of a session: random, made once, new only when acknowledged events were lost
/// or history was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// "I have everything up to and including event `n` of this epoch"; `n` is 0 before the first.
///
/// Its text, `<epoch: 16 hex digits>-<n>`, is the `id:` of an SSE event and the value of
/// `Last-Event-ID` and `?after=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cursor {
    /// Which history.
    pub epoch: Epoch,
    /// Number of the last event that the holder has.
    pub n: u64,
}

/// The text is no cursor.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("is not a cursor: expected <16 hex digits>-<number>, as in the id of an event")]
pub struct InvalidCursor;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.n)
    }
}

impl FromStr for Cursor {
    type Err = InvalidCursor;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (epoch, n) = text.split_once('-').ok_or(InvalidCursor)?;
        let hex = epoch.len() == 16
            && epoch
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let digits = !n.is_empty()
            && n.len() <= 20
            && n.bytes().all(|b| b.is_ascii_digit())
            && (n == "0" || !n.starts_with('0'));
        if !hex || !digits {
            return Err(InvalidCursor);
        }
        Ok(Self {
            epoch: Epoch(u64::from_str_radix(epoch, 16).map_err(|_| InvalidCursor)?),
            n: n.parse().map_err(|_| InvalidCursor)?,
        })
    }
}

impl TryFrom<String> for Cursor {
    type Error = InvalidCursor;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Cursor> for String {
    fn from(cursor: Cursor) -> Self {
        cursor.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_round_trips(epoch: u64, n: u64) {
            let cursor = Cursor { epoch: Epoch(epoch), n };
            prop_assert_eq!(cursor.to_string().parse::<Cursor>(), Ok(cursor));
        }

        #[test]
        fn whatever_parses_prints_back_the_same(text in "\\PC{0,40}") {
            if let Ok(cursor) = text.parse::<Cursor>() {
                prop_assert_eq!(cursor.to_string(), text);
            }
        }
    }

    #[test]
    fn garbage_is_refused() {
        for bad in [
            "",
            "-",
            "5",
            "00000000000000aa",
            "00000000000000aa-",
            "00000000000000AA-1",
            "00000000000000aa--1",
            "00000000000000aa-+1",
            "00000000000000aa-01",
            "aa-1",
            "00000000000000aa-18446744073709551616",
            "00000000000000aa-1 ",
        ] {
            assert_eq!(bad.parse::<Cursor>(), Err(InvalidCursor), "{bad:?}");
        }
    }
}
