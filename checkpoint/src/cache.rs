//! What files were when they were hashed, so that an unchanged one is not read again.
//!
//! One block per folder, children before parents, in the order in which a folder is walked: old and
//! new lie side by side and neither is ever whole in memory. The file is only a hint: whatever does
//! not parse means that all is hashed again.

use crate::oid::Oid;
use rustix::fs::Stat;
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
};

/// A file whose times are not older than this at the walk's begin may change again without a change
/// of its times, and is read again the next time (git's racy-clean rule, with room for coarse clocks).
pub(crate) const RACY_NANOS: i64 = 100_000_000;
const PATH_MAX: usize = 1 << 20;
const ENTRIES_MAX: u32 = 16_000_000;

/// What tells that a file is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    pub(crate) ctime: i64,
    pub(crate) inode: u64,
    pub(crate) mode: u32,
}

impl Mark {
    pub(crate) fn of(stat: &Stat) -> Self {
        let nanos = |seconds: i64, nanos: i64| seconds.wrapping_mul(1_000_000_000) + nanos;
        #[expect(
            clippy::cast_possible_wrap,
            reason = "nanoseconds within a second; unsigned on some targets"
        )]
        Self {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: nanos(stat.st_mtime, stat.st_mtime_nsec as i64),
            ctime: nanos(stat.st_ctime, stat.st_ctime_nsec as i64),
            inode: stat.st_ino,
            mode: stat.st_mode,
        }
    }

    /// Whether it could change and look the same.
    pub(crate) fn is_racy(&self, now: i64) -> bool {
        let whole_seconds = self.ctime % 1_000_000_000 == 0;
        let margin = if whole_seconds {
            2_000_000_000
        } else {
            RACY_NANOS
        };
        self.ctime.max(self.mtime) >= now - margin
    }
}

/// A file of a folder.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) name: Vec<u8>,
    pub(crate) mark: Mark,
    pub(crate) oid: Oid,
}

/// A folder.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) path: Vec<u8>,
    pub(crate) tree: Oid,
    /// Sorted by name.
    pub(crate) files: Vec<Known>,
}

/// What a cache belongs to: useless once objects are gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Name of the file with the blocks.
    pub(crate) file: String,
    /// The checkpoint that it was made with.
    pub(crate) root: String,
    /// Name and bytes of every pack.
    pub(crate) packs: Vec<(String, u64)>,
}

/// Orders folders by their end: descendants before the folder, siblings by name.
pub(crate) fn by_end(a: &[u8], b: &[u8]) -> std::cmp::Ordering {
    let split = |path: &[u8]| {
        path.split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec)
            .collect::<Vec<_>>()
    };
    let (a, b) = (split(a), split(b));
    for (a, b) in a.iter().zip(&b) {
        if a != b {
            return a.cmp(b);
        }
    }
    // The longer one is below the other.
    b.len().cmp(&a.len())
}

/// Reads blocks in order.
pub(crate) struct Reader {
    from: Option<BufReader<File>>,
    next: Option<Block>,
}

impl Reader {
    /// A cache without anything in it.
    pub(crate) fn none() -> Self {
        Self {
            from: None,
            next: None,
        }
    }

    /// Reads a file of blocks.
    pub(crate) fn open(file: File) -> Self {
        let mut reader = Self {
            from: Some(BufReader::with_capacity(1 << 17, file)),
            next: None,
        };
        reader.advance();
        reader
    }

    /// The block of this folder; those before it are passed over. Ask in [`by_end`] order.
    pub(crate) fn take(&mut self, path: &[u8]) -> Option<Block> {
        loop {
            let next = self.next.as_ref()?;
            match by_end(&next.path, path) {
                std::cmp::Ordering::Less => self.advance(),
                std::cmp::Ordering::Equal => {
                    let block = self.next.take();
                    self.advance();
                    return block;
                }
                std::cmp::Ordering::Greater => return None,
            }
        }
    }

    fn advance(&mut self) {
        self.next = self.from.as_mut().and_then(|from| block(from).ok());
        if self.next.is_none() {
            self.from = None;
        }
    }
}

/// Writes blocks in order.
pub(crate) struct Writer {
    to: BufWriter<File>,
}

impl Writer {
    /// Writes to a new file.
    pub(crate) fn new(file: File) -> Self {
        Self {
            to: BufWriter::with_capacity(1 << 17, file),
        }
    }

    pub(crate) fn block(&mut self, block: &Block) -> io::Result<()> {
        let to = &mut self.to;
        bytes(to, &block.path)?;
        to.write_all(&block.tree.0)?;
        let count = u32::try_from(block.files.len()).unwrap_or(u32::MAX);
        to.write_all(&count.to_le_bytes())?;
        for file in &block.files {
            bytes(to, &file.name)?;
            let mark = &file.mark;
            to.write_all(&mark.size.to_le_bytes())?;
            to.write_all(&mark.mtime.to_le_bytes())?;
            to.write_all(&mark.ctime.to_le_bytes())?;
            to.write_all(&mark.inode.to_le_bytes())?;
            to.write_all(&mark.mode.to_le_bytes())?;
            to.write_all(&file.oid.0)?;
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> io::Result<File> {
        self.to.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

fn bytes(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    to.write_all(&length.to_le_bytes())?;
    to.write_all(bytes)
}

fn array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn text(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let length = u32::from_le_bytes(array(from)?) as usize;
    if length > PATH_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn block(from: &mut impl Read) -> io::Result<Block> {
    let path = text(from)?;
    let tree = Oid(array(from)?);
    let count = u32::from_le_bytes(array(from)?);
    if count > ENTRIES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut files = Vec::new();
    for _ in 0..count {
        files.push(Known {
            name: text(from)?,
            mark: Mark {
                size: u64::from_le_bytes(array(from)?),
                mtime: i64::from_le_bytes(array(from)?),
                ctime: i64::from_le_bytes(array(from)?),
                inode: u64::from_le_bytes(array(from)?),
                mode: u32::from_le_bytes(array(from)?),
            },
            oid: Oid(array(from)?),
        });
    }
    Ok(Block { path, tree, files })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Ordering;

    #[test]
    fn folders_are_ordered_by_their_end() {
        assert_eq!(by_end(b"a/b", b"a"), Ordering::Less);
        assert_eq!(by_end(b"a", b""), Ordering::Less);
        assert_eq!(by_end(b"a", b"b/c"), Ordering::Less);
        // Names are compared one by one: "a" comes before "a-b", whatever '-' and '/' are.
        assert_eq!(by_end(b"a/x", b"a-b"), Ordering::Less);
        assert_eq!(by_end(b"a", b"a"), Ordering::Equal);
    }

    #[test]
    fn what_changed_just_now_is_not_trusted() {
        let mark = |ctime| Mark {
            size: 1,
            mtime: 0,
            ctime,
            inode: 1,
            mode: 0,
        };
        let now = 10_000_000_000_001;
        assert!(mark(now).is_racy(now));
        assert!(mark(now - RACY_NANOS + 1).is_racy(now));
        assert!(!mark(now - 2 * RACY_NANOS).is_racy(now));
        assert!(
            mark(9_999_000_000_000).is_racy(now),
            "a clock of whole seconds"
        );
    }
}
