//! What the tests append.

use crate::Entry;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) bytes: Vec<u8>,
    event: bool,
    merges: bool,
}

impl Item {
    pub(super) fn event(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.to_vec(),
            event: true,
            merges: false,
        }
    }

    pub(super) fn note(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.to_vec(),
            event: false,
            merges: false,
        }
    }

    /// Merges with its like.
    pub(super) fn text(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.to_vec(),
            event: true,
            merges: true,
        }
    }
}

impl Entry for Item {
    fn is_event(&self) -> bool {
        self.event
    }

    fn merge(&mut self, next: Self) -> Result<(), Self> {
        if self.merges && next.merges {
            self.bytes.extend_from_slice(&next.bytes);
            Ok(())
        } else {
            Err(next)
        }
    }

    fn size(&self) -> usize {
        self.bytes.len()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes);
    }
}
