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

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
#[derive(Clone, Debug)]
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}
