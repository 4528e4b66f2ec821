//! Reads packs. They lie where the agent can write, so nothing in them is believed: every number is
//! checked, and every object is hashed before it is used.

use crate::{
    error::{Context as _, Error},
    oid::{Algo, Hasher, Kind, Oid},
};
use flate2::{Decompress, FlushDecompress, Status};
use std::{fs::File, os::unix::fs::FileExt as _};

const PIECE: usize = 64 * 1024;
const FANOUT: u64 = 8;
const NAMES: u64 = FANOUT + 1024;
const WIDTH: u64 = 32;

/// One pack of the store.
pub(crate) struct Pack {
    pub(crate) name: String,
    index: File,
    index_len: u64,
    pub(crate) data: File,
    pub(crate) data_len: u64,
    fanout: Vec<u32>,
}

/// An object's entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    /// Where the deflated content begins.
    content: u64,
}

impl Pack {
    /// Opens a pack by its two files.
    pub(crate) fn open(name: String, index: File, data: File) -> Result<Self, Error> {
        let index_len = index.metadata().context("open a pack")?.len();
        let data_len = data.metadata().context("open a pack")?.len();
        let mut head = [0; 1032];
        index
            .read_exact_at(&mut head, 0)
            .map_err(|_| Error::corrupt(format!("the index of {name} is cut")))?;
        let fanout: Vec<u32> = head[8..].chunks_exact(4).map(number).collect();
        let count = u64::from(fanout[255]);
        let sorted = fanout.windows(2).all(|pair| pair[0] <= pair[1]);
        if &head[..8] != b"\xfftOc\0\0\0\x02" || !sorted || index_len < NAMES + count * (WIDTH + 8)
        {
            return Err(Error::corrupt(format!("the index of {name} is none")));
        }
        Ok(Self {
            name,
            index,
            index_len,
            data,
            data_len,
            fanout,
        })
    }

    pub(crate) fn count(&self) -> u32 {
        self.fanout[255]
    }

    /// Bytes of both files.
    pub(crate) fn bytes(&self) -> u64 {
        self.data_len + self.index_len
    }

    /// Where an object's entry begins, if it is here.
    pub(crate) fn find(&self, oid: &Oid) -> Result<Option<u64>, Error> {
        let first = usize::from(oid.0[0]);
        let mut low = if first == 0 {
            0
        } else {
            self.fanout[first - 1]
        };
        let mut high = self.fanout[first];
        while low < high {
            let middle = low + (high - low) / 2;
            match self.oid(middle)?.cmp(oid) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return self.offset(middle).map(Some),
            }
        }
        Ok(None)
    }

    /// The name at a position.
    pub(crate) fn oid(&self, at: u32) -> Result<Oid, Error> {
        let mut oid = [0; 32];
        self.read_index(NAMES + u64::from(at) * WIDTH, &mut oid)?;
        Ok(Oid(oid))
    }

    /// Where the entry at a position begins.
    pub(crate) fn offset(&self, at: u32) -> Result<u64, Error> {
        let count = u64::from(self.count());
        let mut field = [0; 4];
        let table = NAMES + count * (WIDTH + 4);
        self.read_index(table + u64::from(at) * 4, &mut field)?;
        let field = u32::from_be_bytes(field);
        if field < 1 << 31 {
            return Ok(u64::from(field));
        }
        let mut long = [0; 8];
        let at = u64::from(field & !(1 << 31));
        self.read_index(table + count * 4 + at * 8, &mut long)?;
        Ok(u64::from_be_bytes(long))
    }

    fn read_index(&self, at: u64, into: &mut [u8]) -> Result<(), Error> {
        self.index
            .read_exact_at(into, at)
            .map_err(|_| Error::corrupt(format!("the index of {} cannot be read", self.name)))
    }

    /// What is at an offset.
    pub(crate) fn header(&self, offset: u64) -> Result<Header, Error> {
        let mut bytes = [0; 16];
        let got = self
            .data
            .read_at(&mut bytes, offset)
            .context("read a pack")?;
        let bad = || Error::corrupt(format!("an entry of {} makes no sense", self.name));
        let mut bytes = bytes[..got].iter();
        let mut byte = *bytes.next().ok_or_else(bad)?;
        let kind = match (byte >> 4) & 7 {
            1 => Kind::Commit,
            2 => Kind::Tree,
            3 => Kind::Blob,
            _ => return Err(bad()),
        };
        let mut size = u64::from(byte & 15);
        let mut shift = 4;
        let mut length = 1;
        while byte & 0x80 != 0 {
            byte = *bytes.next().ok_or_else(bad)?;
            if shift > 57 {
                return Err(bad());
            }
            size |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            length += 1;
        }
        Ok(Header {
            kind,
            size,
            content: offset + length,
        })
    }

    /// Inflates an entry into `sink` and returns the hash of what it was. Never gives more than the
    /// size that the entry says.
    pub(crate) fn inflate(
        &self,
        header: &Header,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<Oid, Error> {
        let bad = || Error::corrupt(format!("an entry of {} cannot be inflated", self.name));
        let mut hasher: Hasher = Algo::Sha256.object(header.kind, header.size);
        let mut inflate = Decompress::new(true);
        let mut input = vec![0; PIECE];
        let mut output = vec![0; PIECE];
        let (mut start, mut end, mut at) = (0, 0, header.content);
        let mut left = header.size;
        loop {
            if start == end {
                start = 0;
                end = self.data.read_at(&mut input, at).context("read a pack")?;
                at += end as u64;
            }
            let before = (inflate.total_in(), inflate.total_out());
            let status = inflate
                .decompress(&input[start..end], &mut output, FlushDecompress::None)
                .map_err(|_| bad())?;
            let taken = usize::try_from(inflate.total_in() - before.0).unwrap_or(0);
            let given = usize::try_from(inflate.total_out() - before.1).unwrap_or(0);
            start += taken;
            left = left.checked_sub(given as u64).ok_or_else(bad)?;
            hasher.update(&output[..given]);
            sink(&output[..given])?;
            match status {
                Status::StreamEnd if left == 0 => return Ok(hasher.finish()),
                Status::StreamEnd => return Err(bad()),
                _ if taken == 0 && given == 0 && (end == 0 || start < end) => return Err(bad()),
                _ => {}
            }
        }
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |sum, byte| (sum << 8) | u32::from(*byte))
}

/// All packs of the store, opened at one time: what is pruned later stays readable.
#[derive(Default)]
pub(crate) struct Packs {
    pub(crate) packs: Vec<Pack>,
}

impl Packs {
    pub(crate) fn find(&self, oid: &Oid) -> Result<Option<(&Pack, u64)>, Error> {
        for pack in self.packs.iter().rev() {
            if let Some(offset) = pack.find(oid)? {
                return Ok(Some((pack, offset)));
            }
        }
        Ok(None)
    }

    pub(crate) fn contains(&self, oid: &Oid) -> Result<bool, Error> {
        self.find(oid).map(|found| found.is_some())
    }

    /// Size of an object.
    pub(crate) fn size(&self, oid: &Oid, kind: Kind) -> Result<u64, Error> {
        let (pack, offset) = self.found(oid)?;
        let header = pack.header(offset)?;
        if header.kind != kind {
            return Err(Error::corrupt(format!("{oid} is no {}", kind.name())));
        }
        Ok(header.size)
    }

    /// Gives an object's content piece by piece; an error at the end means that what was given is not
    /// what the name says.
    pub(crate) fn copy(
        &self,
        oid: &Oid,
        kind: Kind,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let (pack, offset) = self.found(oid)?;
        let header = pack.header(offset)?;
        if header.kind != kind {
            return Err(Error::corrupt(format!("{oid} is no {}", kind.name())));
        }
        if pack.inflate(&header, sink)? != *oid {
            return Err(Error::corrupt(format!("{oid} is not what its name says")));
        }
        Ok(header.size)
    }

    /// An object of at most `most` bytes, checked.
    pub(crate) fn read(&self, oid: &Oid, kind: Kind, most: u64) -> Result<Vec<u8>, Error> {
        let size = self.size(oid, kind)?;
        if size > most {
            return Err(Error::TooLarge(format!(
                "an object of {size} bytes is too large"
            )));
        }
        // The entry's own word for its size is not trusted with memory.
        let mut content = Vec::with_capacity(usize::try_from(size.min(1 << 20)).unwrap_or(0));
        self.copy(oid, kind, &mut |bytes| {
            content.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(content)
    }

    fn found(&self, oid: &Oid) -> Result<(&Pack, u64), Error> {
        self.find(oid)?
            .ok_or_else(|| Error::corrupt(format!("{oid} is missing")))
    }
}
