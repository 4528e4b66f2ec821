//! Bodies of fuzz targets: plain functions that panic when a promise is broken. Not for programs.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::frame::{self, EVENT, FRAME, HEADER, Head, Header, MARK, NOTE, START};
use crate::fs::FsFile;
use crate::scan::{Frames, Step, later_batch};
use crate::segment::{self, Index, Pool, Segment, file_name, parse_name};

/// A file that is only read.
struct Bytes(Vec<u8>);

impl FsFile for Bytes {
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn read_at(&self, out: &mut Vec<u8>, offset: u64, len: usize) -> io::Result<()> {
        let from = usize::try_from(offset).map_or(self.0.len(), |at| at.min(self.0.len()));
        let to = from.saturating_add(len).min(self.0.len());
        out.extend_from_slice(&self.0[from..to]);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn truncate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

const PLAIN: Header = Header {
    seq: 3,
    epoch: 0x0123_4567_89ab_cdef,
    first: 9,
    follows: 2,
};

/// Any bytes as a segment and as a file's name: read or refused, never believed beyond their end.
pub fn frames(data: &[u8]) {
    let _ = Header::decode(data);
    let mut header = PLAIN;
    if let Some(bytes) = data.get(..HEADER) {
        // The checksum is no secret: what stands behind it has to be read with care as well.
        let mut bytes = bytes.to_vec();
        bytes[..8].copy_from_slice(&header.encode()[..8]);
        let crc = crc32c::crc32c(&bytes[..HEADER - 4]).to_le_bytes();
        bytes[HEADER - 4..].copy_from_slice(&crc);
        if let Ok(read) = Header::decode(&bytes) {
            assert_eq!(Header::decode(&read.encode()), Ok(read));
            header = read;
        }
    }
    if let Ok(name) = std::str::from_utf8(data)
        && let Some((first, seq)) = parse_name(name, ".seg")
    {
        let header = Header {
            seq,
            first,
            ..PLAIN
        };
        assert_eq!(file_name(&header), name);
    }
    let file = Bytes(data.to_vec());
    let limit = data.len() as u64;
    let mut frames = Frames::new(&file, header.seed(), limit);
    let mut before = HEADER as u64;
    while let Ok(Step::Frame {
        offset, payload, ..
    }) = frames.next()
    {
        assert_eq!(u64::from(offset), before);
        let end = before + (FRAME + payload.len()) as u64;
        before = end;
    }
    assert!(frames.at() <= limit.max(HEADER as u64));
    let _ = later_batch(&file, header.seed(), frames.at(), limit);
}

/// What was written, by number and in order of the file.
struct Written {
    file: Vec<u8>,
    events: Vec<Vec<u8>>,
    index: Index,
}

/// Frames as `data` says: each byte pair is a kind and a length.
fn write(data: &[u8]) -> Written {
    let mut file = PLAIN.encode().to_vec();
    let mut written = Written {
        file: Vec::new(),
        events: Vec::new(),
        index: segment::empty(),
    };
    for (i, op) in data.chunks_exact(2).take(500).enumerate() {
        let kind = if op[0] & 1 == 0 { EVENT } else { NOTE };
        let flag = if op[0] & 2 == 0 { START } else { 0 };
        let payload = vec![i as u8; usize::from(op[1]) * if op[0] & 4 == 0 { 1 } else { 40 }];
        let offset = file.len() as u32;
        frame::encode(&mut file, PLAIN.seed(), offset, kind | flag, |out| {
            out.extend_from_slice(&payload);
        });
        if kind == EVENT {
            written.index.offsets.push(offset);
            written.events.push(payload);
        }
    }
    written.index.end = file.len() as u32;
    let mark = file.len() as u32;
    frame::encode(&mut file, PLAIN.seed(), mark, MARK | START, |_| {});
    written.file = file;
    written
}

/// A segment of frames that `data` describes: the walk finds them, its index leads to each, reads of
/// any range give what was written, and after one flipped bit never anything else.
pub fn index(data: &[u8]) {
    let Some((choice, ops)) = data.split_first_chunk::<8>() else {
        return;
    };
    let choice = u64::from_le_bytes(*choice);
    let Written {
        file,
        events,
        index,
    } = write(ops);
    let bytes = Bytes(file.clone());
    let mut frames = Frames::new(&bytes, PLAIN.seed(), file.len() as u64);
    let mut found = Vec::new();
    let mut marks = 0;
    while let Ok(Step::Frame { offset, head, .. }) = frames.next() {
        if head.is_event() {
            found.push(offset);
        }
        marks += u32::from(head.is_mark());
    }
    assert_eq!((frames.at(), marks), (file.len() as u64, 1));
    assert_eq!(found, index.offsets);
    let pool = Pool::default();
    let open = |bytes: Vec<u8>, index: Index| {
        let segment = Segment::new(
            PathBuf::from("x"),
            PLAIN,
            Box::new(Bytes(bytes)),
            index,
            &pool,
        );
        Arc::new(segment)
    };
    let copy = Index {
        offsets: index.offsets.clone(),
        end: index.end,
    };
    let mut rotten = file.clone();
    let bit = choice as usize % (file.len() * 8);
    rotten[bit / 8] ^= 1 << (bit % 8);
    for (segment, whole) in [(open(file, index), true), (open(rotten, copy), false)] {
        let opened = segment
            .open(&crate::fs::RealFs, &pool)
            .expect("it is held open");
        let last = PLAIN.first + events.len() as u64;
        assert_eq!(segment.next_event(), last);
        if events.is_empty() {
            continue;
        }
        let from = PLAIN.first + (choice >> 16) % events.len() as u64;
        for max in [0, 100, (choice >> 32) as usize % 5000, usize::MAX] {
            let mut out = Vec::new();
            match segment.read(&opened, &mut out, from..=last - 1, max, true) {
                Ok(Some(upto)) => {
                    assert!(upto >= from && upto < last);
                    let mut next = from;
                    let mut rest = &out[..];
                    while let Some(head) = Head::decode(rest) {
                        let (payload, behind) = rest[FRAME..].split_at(head.len);
                        if head.is_event() {
                            assert_eq!(payload, events[(next - PLAIN.first) as usize]);
                            next += 1;
                        }
                        rest = behind;
                    }
                    assert_eq!((next, rest.len()), (upto + 1, 0));
                    assert!(out.len() <= max || upto == from);
                }
                Ok(None) => panic!("at least one event is read"),
                Err(_) => assert!(!whole, "what was written can be read"),
            }
        }
    }
}
