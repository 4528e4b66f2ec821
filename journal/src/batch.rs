//! What a read returns.

use crate::frame::{FRAME, Head};

/// Consecutive events in one buffer; their checksums were verified.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Whole frames, notes among them.
    pub(crate) bytes: Vec<u8>,
    first: u64,
    pub(crate) last: u64,
}

impl Batch {
    pub(crate) fn new(first: u64) -> Self {
        Self {
            bytes: Vec::new(),
            first,
            last: first - 1,
        }
    }

    /// Whether there is no event.
    pub fn is_empty(&self) -> bool {
        self.last < self.first
    }

    /// Number of the last event; if there is none, that of the event the read began after.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Bytes that its events have on disk.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Number and payload of each event.
    pub fn iter(&self) -> Events<'_> {
        Events {
            bytes: &self.bytes,
            next: self.first,
        }
    }
}

impl<'a> IntoIterator for &'a Batch {
    type Item = (u64, &'a [u8]);
    type IntoIter = Events<'a>;

    fn into_iter(self) -> Events<'a> {
        self.iter()
    }
}

/// Iterator over a [`Batch`].
#[derive(Clone, Debug)]
pub struct Events<'a> {
    bytes: &'a [u8],
    next: u64,
}

impl<'a> Iterator for Events<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let head = Head::decode(self.bytes)?;
            let (payload, rest) = self.bytes.get(FRAME..)?.split_at_checked(head.len)?;
            self.bytes = rest;
            if head.is_event() {
                let number = self.next;
                self.next += 1;
                return Some((number, payload));
            }
        }
    }
}
