//! The format on disk: pure functions over bytes.
//!
//! A segment is a header of 48 bytes and then frames. All numbers are little-endian.
//!
//! | header | bytes |        | frame | bytes |
//! |---|---|---|---|---|
//! | magic | 8 | | length of the payload | 4 |
//! | format version | 2 | | checksum | 4 |
//! | zero | 2 | | kind | 1 |
//! | sequence of the segment in its log | 4 | | payload | length |
//! | epoch | 8 |
//! | number of the first event | 8 |
//! | sequence of the segment that it follows | 4 |
//! | zero | 8 |
//! | checksum | 4 |
//!
//! Checksums are CRC-32C. A frame's covers the segment's epoch and sequence, the frame's offset,
//! its length, kind and payload: a frame of another place or another life of the file never
//! passes. Numbers of events are not stored: they are counted.
//!
//! [`START`] is set in the kind of the first frame of a batch. A batch is written only after the
//! one before it is synced, so a frame with this bit says: all before me was durable. That is how
//! recovery tells a torn tail (nothing acknowledged in it) from corruption.

/// Newest format version that this program writes and reads.
pub(crate) const VERSION: u16 = 1;
/// Largest payload in bytes: 64 MiB.
pub const MAX_PAYLOAD: usize = 64 << 20;
/// Bytes of a segment's header.
pub(crate) const HEADER: usize = 48;
/// Bytes of a frame without its payload.
pub(crate) const FRAME: usize = 9;

const MAGIC: [u8; 8] = *b"ocojrnl\n";

/// A numbered event.
pub(crate) const EVENT: u8 = 1;
/// An unnumbered note.
pub(crate) const NOTE: u8 = 2;
/// Written behind the last synced frame when there is nothing else to do, itself not synced and
/// overwritten by the next batch: makes damage of the last batch visible as such.
pub(crate) const MARK: u8 = 3;
/// Flag of [`EVENT`], [`NOTE`] and [`MARK`]: the first frame of a batch.
pub(crate) const START: u8 = 0x80;

/// What a segment says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Position of the segment in its log, from 1 without holes.
    pub(crate) seq: u32,
    /// Of the log when the segment was made.
    pub(crate) epoch: u64,
    /// Number of its first event, present or future.
    pub(crate) first: u64,
    /// The segment before it; the ones between that and `seq` are replaced by this one. 0: none.
    pub(crate) follows: u32,
}

/// Why a header is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadHeader {
    /// Whole, but of a later format.
    Newer(u16),
    /// Too short, no magic or a wrong checksum.
    Damaged,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.seq.to_le_bytes());
        out[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        out[24..32].copy_from_slice(&self.first.to_le_bytes());
        out[32..36].copy_from_slice(&self.follows.to_le_bytes());
        let crc = crc32c::crc32c(&out[..HEADER - 4]);
        out[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The checksum comes before the version: a flipped bit must not pass for a newer program.
    /// Later formats keep magic, version, length and checksum of the header where they are.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        let bytes: &[u8; HEADER] = bytes
            .get(..HEADER)
            .and_then(|b| b.try_into().ok())
            .ok_or(BadHeader::Damaged)?;
        let crc = crc32c::crc32c(&bytes[..HEADER - 4]);
        if bytes[..8] != MAGIC || crc != u32_at(bytes, HEADER - 4) {
            return Err(BadHeader::Damaged);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version > VERSION {
            return Err(BadHeader::Newer(version));
        }
        let header = Self {
            seq: u32_at(bytes, 12),
            epoch: u64_at(bytes, 16),
            first: u64_at(bytes, 24),
            follows: u32_at(bytes, 32),
        };
        // No program writes these, so they are no header even if the checksum agrees.
        if version == 0 || header.first == 0 || header.follows >= header.seq {
            return Err(BadHeader::Damaged);
        }
        Ok(header)
    }

    /// What the checksums of this segment's frames begin with.
    pub(crate) fn seed(&self) -> u32 {
        seed(self.epoch, self.seq)
    }
}

pub(crate) fn seed(epoch: u64, seq: u32) -> u32 {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&epoch.to_le_bytes());
    bytes[8..].copy_from_slice(&seq.to_le_bytes());
    crc32c::crc32c(&bytes)
}

/// Appends a frame whose payload `fill` appends; returns the payload's length. `offset` is where
/// in the segment the frame will be.
pub(crate) fn encode(
    out: &mut Vec<u8>,
    seed: u32,
    offset: u32,
    kind: u8,
    fill: impl FnOnce(&mut Vec<u8>),
) -> usize {
    let begin = out.len();
    out.extend_from_slice(&[0; FRAME]);
    fill(out);
    let payload = begin + FRAME;
    let len = out.len() - payload;
    // A longer one is refused by the caller before it is written.
    let len32 = u32::try_from(len).unwrap_or(u32::MAX);
    let crc = checksum(seed, offset, len32, kind, &out[payload..]);
    out[begin..begin + 4].copy_from_slice(&len32.to_le_bytes());
    out[begin + 4..begin + 8].copy_from_slice(&crc.to_le_bytes());
    out[begin + 8] = kind;
    len
}

/// A frame's first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) len: usize,
    crc: u32,
    pub(crate) kind: u8,
}

impl Head {
    /// `None` if no frame begins like this.
    #[inline]
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; FRAME] = bytes.get(..FRAME)?.try_into().ok()?;
        let head = Self {
            len: u32_at(bytes, 0) as usize,
            crc: u32_at(bytes, 4),
            kind: bytes[8],
        };
        let known = matches!(head.kind & !START, EVENT | NOTE) || head.kind == MARK | START;
        (known && head.len <= MAX_PAYLOAD && (head.kind & !START != MARK || head.len == 0))
            .then_some(head)
    }

    #[inline]
    pub(crate) fn is_event(self) -> bool {
        self.kind & !START == EVENT
    }

    pub(crate) fn is_mark(self) -> bool {
        self.kind & !START == MARK
    }

    /// As [`matches`](Self::matches) for a whole frame in a buffer that may be written to: one
    /// checksum over what lies together, which for short payloads takes half the time. The frame
    /// is left as it was.
    #[inline]
    pub(crate) fn matches_whole(self, seed: u32, offset: u32, frame: &mut [u8]) -> bool {
        if frame.len() != FRAME + self.len {
            return false;
        }
        let mut saved = [0; 8];
        saved.copy_from_slice(&frame[..8]);
        // The kind stands where it does in the checksum's order.
        frame[..4].copy_from_slice(&offset.to_le_bytes());
        frame[4..8].copy_from_slice(&saved[..4]);
        let crc = crc32c::crc32c_append(seed, frame);
        frame[..8].copy_from_slice(&saved);
        crc == self.crc
    }

    /// Whether `payload` is the one that was written with this head at `offset`.
    #[inline]
    pub(crate) fn matches(self, seed: u32, offset: u32, payload: &[u8]) -> bool {
        payload.len() == self.len
            && checksum(seed, offset, self.len as u32, self.kind, payload) == self.crc
    }
}

#[inline]
fn checksum(seed: u32, offset: u32, len: u32, kind: u8, payload: &[u8]) -> u32 {
    let mut bytes = [0; 9];
    bytes[..4].copy_from_slice(&offset.to_le_bytes());
    bytes[4..8].copy_from_slice(&len.to_le_bytes());
    bytes[8] = kind;
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &bytes), payload)
}

#[inline]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(seed: u32, offset: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out, seed, offset, kind, |out| {
            out.extend_from_slice(payload);
        });
        out
    }

    /// The format is for ever: these bytes must be read by every later program.
    #[test]
    fn golden() {
        let header = Header {
            seq: 3,
            epoch: 0x0123_4567_89ab_cdef,
            first: 9,
            follows: 2,
        };
        let hex: String = header.encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "6f636f6a726e6c0a0100000003000000efcdab89674523010900000000000000\
             02000000000000000000000069b11341"
        );
        let hex: String = frame(header.seed(), 48, EVENT | START, b"hi")
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(hex, "02000000555ef717816869");
    }

    #[test]
    fn a_frame_of_another_place_or_life_does_not_pass() {
        let header = Header {
            seq: 3,
            epoch: 7,
            first: 9,
            follows: 2,
        };
        let bytes = frame(header.seed(), 48, EVENT, b"hi");
        let head = Head::decode(&bytes).unwrap();
        assert!(head.matches(header.seed(), 48, b"hi"));
        let mut whole = bytes.clone();
        assert!(head.matches_whole(header.seed(), 48, &mut whole));
        assert!(!head.matches_whole(header.seed(), 49, &mut whole));
        assert!(!head.matches_whole(header.seed(), 48, &mut whole[..FRAME + 1]));
        assert_eq!(whole, bytes, "it is left as it was");
        for at in 0..bytes.len() * 8 {
            let mut rotten = bytes.clone();
            rotten[at / 8] ^= 1 << (at % 8);
            let head = Head::decode(&rotten);
            assert!(!head.is_some_and(|h| h.matches_whole(header.seed(), 48, &mut rotten)));
        }
        assert!(!head.matches(header.seed(), 49, b"hi"));
        assert!(!head.matches(header.seed(), 48, b"ho"));
        assert!(!head.matches(header.seed(), 48, b"h"));
        assert!(!head.matches(Header { epoch: 8, ..header }.seed(), 48, b"hi"));
        assert!(!head.matches(Header { seq: 4, ..header }.seed(), 48, b"hi"));
    }

    proptest! {
        #[test]
        fn headers_round_trip(seq in 1u32.., epoch: u64, first in 1u64.., follows: u32) {
            let header = Header { seq, epoch, first, follows: follows % seq };
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Header::decode(&bytes);
            if let Some(head) = Head::decode(&bytes) {
                prop_assert!(head.len <= MAX_PAYLOAD);
                prop_assert!(!head.matches(0, 48, &bytes[FRAME..]) || head.len + FRAME == bytes.len());
            }
        }
    }
}
