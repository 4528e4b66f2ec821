//! Walks through the frames of a segment with a window of bounded size.

use std::io;

use crate::frame::{EVENT, FRAME, HEADER, Head, MARK, NOTE, START};
use crate::fs::FsFile;

/// Bytes read at a time.
const WINDOW: usize = 256 << 10;
/// Bytes of payload that the search for a later batch may checksum; see [`later_batch`].
const SEARCH: u64 = 1 << 30;

/// Walks from the header on to `limit`.
pub(crate) struct Frames<'a> {
    file: &'a dyn FsFile,
    seed: u32,
    limit: u64,
    /// Offset of the next frame.
    at: u64,
    window: Vec<u8>,
    /// Offset of the window.
    base: u64,
}

/// One step of the walk.
pub(crate) enum Step<'a> {
    /// A whole frame.
    Frame {
        offset: u32,
        head: Head,
        payload: &'a [u8],
    },
    /// The limit is reached.
    End,
    /// What follows is no frame.
    Bad,
}

impl<'a> Frames<'a> {
    /// `limit` is at most the size of the file.
    pub(crate) fn new(file: &'a dyn FsFile, seed: u32, limit: u64) -> Self {
        Self::from(file, seed, HEADER as u64, limit)
    }

    /// As [`new`](Self::new), from a frame's offset on.
    pub(crate) fn from(file: &'a dyn FsFile, seed: u32, at: u64, limit: u64) -> Self {
        Self {
            file,
            seed,
            limit: limit.max(at),
            at,
            window: Vec::new(),
            base: at,
        }
    }

    /// Offset behind the last whole frame.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    pub(crate) fn next(&mut self) -> io::Result<Step<'_>> {
        if self.at >= self.limit {
            return Ok(Step::End);
        }
        let Some(head) = self.bytes(FRAME)?.and_then(Head::decode) else {
            return Ok(Step::Bad);
        };
        let (at, seed) = (self.at, self.seed);
        let Ok(offset) = u32::try_from(at) else {
            return Ok(Step::Bad);
        };
        let whole = match self.bytes(FRAME + head.len)? {
            Some(frame) => head.matches(seed, offset, &frame[FRAME..]),
            None => false,
        };
        if !whole {
            return Ok(Step::Bad);
        }
        self.at += (FRAME + head.len) as u64;
        let begin = (at - self.base) as usize + FRAME;
        Ok(Step::Frame {
            offset,
            head,
            payload: &self.window[begin..begin + head.len],
        })
    }

    /// `len` bytes from the current offset on, or `None` if they pass the limit.
    fn bytes(&mut self, len: usize) -> io::Result<Option<&[u8]>> {
        if self.limit - self.at < len as u64 {
            return Ok(None);
        }
        let mut begin = (self.at - self.base) as usize;
        if self.window.len() < begin + len {
            self.window.drain(..begin);
            self.base = self.at;
            begin = 0;
            let read = self.base + self.window.len() as u64;
            let want = (len.max(WINDOW) - self.window.len()) as u64;
            let want = want.min(self.limit - read) as usize;
            self.file.read_at(&mut self.window, read, want)?;
        }
        Ok(self.window.get(begin..begin + len))
    }
}

/// Whether a batch begins between `from` and `limit`: then all before it was durable, and what is
/// broken before it is corruption, not a torn tail.
///
/// The work is bounded, because what is searched may be hostile: past the bound the answer is yes,
/// which hides nothing.
pub(crate) fn later_batch(file: &dyn FsFile, seed: u32, from: u64, limit: u64) -> io::Result<bool> {
    let mut budget = SEARCH;
    let mut window = Vec::new();
    let mut payload = Vec::new();
    let mut base = from;
    while base + FRAME as u64 <= limit {
        window.clear();
        let want = ((limit - base) as usize).min(WINDOW);
        file.read_at(&mut window, base, want)?;
        if window.len() < FRAME {
            return Ok(false);
        }
        for (i, bytes) in window.windows(FRAME).enumerate() {
            if !matches!(bytes[FRAME - 1] ^ START, EVENT | NOTE | MARK) {
                continue;
            }
            let Some(head) = Head::decode(bytes) else {
                continue;
            };
            let at = base + i as u64;
            let (Ok(offset), true) = (
                u32::try_from(at),
                head.len as u64 <= limit - at - FRAME as u64,
            ) else {
                continue;
            };
            let Some(left) = budget.checked_sub(head.len as u64) else {
                return Ok(true);
            };
            budget = left;
            let begin = i + FRAME;
            let found = if let Some(inside) = window.get(begin..begin + head.len) {
                head.matches(seed, offset, inside)
            } else {
                payload.clear();
                file.read_at(&mut payload, at + FRAME as u64, head.len)?;
                head.matches(seed, offset, &payload)
            };
            if found {
                return Ok(true);
            }
        }
        base += (window.len() - FRAME + 1) as u64;
    }
    Ok(false)
}
