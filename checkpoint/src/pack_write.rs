//! Writes packs, git's files of many objects, without deltas.
//!
//! Format: `Documentation/gitformat-pack.txt` of git, version 2. One checkpoint writes one pack, so a
//! first checkpoint of many files does not make as many files again.

use crate::{
    error::{Context as _, Error},
    oid::{Algo, Hasher, Kind, Oid},
};
use flate2::{Compress, Compression, FlushCompress, Status};
use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Write as _},
    os::unix::fs::FileExt as _,
};

/// Bytes held back before they are written.
const BUFFER: usize = 256 * 1024;
/// Bytes taken from a stream at once.
const PIECE: usize = 64 * 1024;
const HEADER: u64 = 12;

/// Where an object lies in the pack.
#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    crc: u32,
}

/// What became of a stream.
pub(crate) enum Streamed {
    /// It is in the pack, or was before.
    Done(Oid),
    /// It ended too early; nothing was kept of it.
    Short,
}

/// A pack in the making, in a file that has no name yet or a temporary one.
pub(crate) struct PackWriter {
    algo: Algo,
    file: File,
    /// Bytes of the pack that are in the file.
    flushed: u64,
    buffer: Vec<u8>,
    places: HashMap<Oid, Place>,
    compress: Compress,
    /// Most bytes that the pack may have.
    limit: u64,
}

impl PackWriter {
    /// `file` is empty and writable.
    pub(crate) fn new(file: File, algo: Algo, limit: u64) -> Self {
        let mut buffer = Vec::with_capacity(BUFFER + PIECE);
        // The number of objects comes at the end.
        buffer.extend_from_slice(b"PACK\0\0\0\x02\0\0\0\0");
        Self {
            algo,
            file,
            flushed: 0,
            buffer,
            places: HashMap::new(),
            // Level 1: a checkpoint waits for it, and most of what changes is text.
            compress: Compress::new(Compression::fast(), true),
            limit,
        }
    }

    pub(crate) fn algo(&self) -> Algo {
        self.algo
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    /// Objects so far.
    pub(crate) fn count(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn contains(&self, oid: &Oid) -> bool {
        self.places.contains_key(oid)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Adds an object whose name is known and new.
    pub(crate) fn put(&mut self, oid: Oid, kind: Kind, content: &[u8]) -> Result<(), Error> {
        if self.contains(&oid) {
            return Ok(());
        }
        let mut entry = self.begin(kind, content.len() as u64);
        self.deflate(&mut entry, content, true)?;
        self.places.insert(
            oid,
            Place {
                offset: entry.start,
                crc: entry.crc.finalize(),
            },
        );
        Ok(())
    }

    /// Adds exactly `size` bytes of a stream as a blob; `known` says which objects need not be kept.
    pub(crate) fn put_stream(
        &mut self,
        size: u64,
        from: &mut dyn Read,
        known: &mut dyn FnMut(&Oid) -> Result<bool, Error>,
    ) -> Result<Streamed, Error> {
        let mut blob = self.begin_blob(size);
        let start = blob.entry.start;
        let mut piece = vec![0; PIECE];
        while blob.left > 0 {
            let wanted = piece
                .len()
                .min(usize::try_from(blob.left).unwrap_or(usize::MAX));
            let got = match from.read(&mut piece[..wanted]) {
                Ok(got) => got,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.rewind(start)?;
                    return Err(error).context("read a file");
                }
            };
            if got == 0 {
                self.rewind(start)?;
                return Ok(Streamed::Short);
            }
            self.feed(&mut blob, &piece[..got])?;
        }
        self.end_blob(blob, known).map(Streamed::Done)
    }

    /// Begins a blob of `size` bytes; [`Self::feed`] exactly as many, then [`Self::end_blob`].
    pub(crate) fn begin_blob(&mut self, size: u64) -> Blob {
        Blob {
            entry: self.begin(Kind::Blob, size),
            hasher: self.algo.object(Kind::Blob, size),
            left: size,
        }
    }

    pub(crate) fn feed(&mut self, blob: &mut Blob, bytes: &[u8]) -> Result<(), Error> {
        blob.hasher.update(bytes);
        blob.left = blob
            .left
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| Error::corrupt("an object is longer than it says"))?;
        self.deflate(&mut blob.entry, bytes, false)
    }

    pub(crate) fn end_blob(
        &mut self,
        mut blob: Blob,
        known: &mut dyn FnMut(&Oid) -> Result<bool, Error>,
    ) -> Result<Oid, Error> {
        if blob.left > 0 {
            return Err(Error::corrupt("an object is shorter than it says"));
        }
        self.deflate(&mut blob.entry, b"", true)?;
        let oid = blob.hasher.finish();
        if self.contains(&oid) || known(&oid)? {
            self.rewind(blob.entry.start)?;
        } else {
            let place = Place {
                offset: blob.entry.start,
                crc: blob.entry.crc.finalize(),
            };
            self.places.insert(oid, place);
        }
        Ok(oid)
    }

    /// Adds an entry as another pack has it. `bytes` is all of it, header included.
    pub(crate) fn put_raw(
        &mut self,
        oid: Oid,
        from: &File,
        offset: u64,
        length: u64,
    ) -> Result<(), Error> {
        if self.contains(&oid) {
            return Ok(());
        }
        let start = self.len();
        let mut crc = crc32fast::Hasher::new();
        let mut piece = vec![0; PIECE];
        let mut at = 0;
        while at < length {
            let wanted = piece
                .len()
                .min(usize::try_from(length - at).unwrap_or(usize::MAX));
            from.read_exact_at(&mut piece[..wanted], offset + at)
                .context("read a pack")?;
            crc.update(&piece[..wanted]);
            self.buffer.extend_from_slice(&piece[..wanted]);
            self.flush(BUFFER)?;
            at += wanted as u64;
        }
        self.places.insert(
            oid,
            Place {
                offset: start,
                crc: crc.finalize(),
            },
        );
        Ok(())
    }

    fn begin(&mut self, kind: Kind, size: u64) -> Open {
        self.compress.reset();
        let mut entry = Open {
            start: self.len(),
            crc: crc32fast::Hasher::new(),
        };
        let mut byte = ((kind as u8) << 4) | (size & 15) as u8;
        let mut rest = size >> 4;
        let mut header = Vec::with_capacity(10);
        while rest > 0 {
            header.push(byte | 0x80);
            byte = (rest & 0x7f) as u8;
            rest >>= 7;
        }
        header.push(byte);
        entry.crc.update(&header);
        self.buffer.extend_from_slice(&header);
        entry
    }

    fn deflate(&mut self, entry: &mut Open, mut input: &[u8], last: bool) -> Result<(), Error> {
        let flush = if last {
            FlushCompress::Finish
        } else {
            FlushCompress::None
        };
        loop {
            self.buffer.reserve(PIECE);
            let before = (self.compress.total_in(), self.buffer.len());
            let status = self
                .compress
                .compress_vec(input, &mut self.buffer, flush)
                .map_err(|error| Error::corrupt(error.to_string()))?;
            let taken = usize::try_from(self.compress.total_in() - before.0).unwrap_or(0);
            input = &input[taken..];
            entry.crc.update(&self.buffer[before.1..]);
            self.flush(BUFFER)?;
            let done = if last {
                status == Status::StreamEnd
            } else {
                input.is_empty()
            };
            if done {
                return Ok(());
            }
        }
    }

    /// Writes the buffer out if it has more than `above` bytes.
    fn flush(&mut self, above: usize) -> Result<(), Error> {
        if self.len() > self.limit {
            return Err(Error::Quota(self.limit));
        }
        if self.buffer.len() > above {
            self.file
                .write_all_at(&self.buffer, self.flushed)
                .context("write a pack")?;
            self.flushed += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Forgets what came after `start`.
    fn rewind(&mut self, start: u64) -> Result<(), Error> {
        // A compressor that is reset in mid-stream goes on with bytes of the stream before
        // (flate2 1.1 with zlib-rs 0.6); the test below would tell.
        self.compress = Compress::new(Compression::fast(), true);
        match start.checked_sub(self.flushed) {
            Some(kept) => self.buffer.truncate(usize::try_from(kept).unwrap_or(0)),
            None => {
                self.buffer.clear();
                self.file.set_len(start).context("write a pack")?;
                self.flushed = start;
            }
        }
        Ok(())
    }

    /// Ends the pack: writes it whole, syncs it and makes its index. Returns the pack's name (a hash
    /// of its content) and the bytes of the index.
    pub(crate) fn finish(mut self) -> Result<(Oid, Vec<u8>), Error> {
        self.flush(0)?;
        let count = u32::try_from(self.places.len())
            .map_err(|_| Error::TooLarge("too many objects".into()))?;
        self.file
            .write_all_at(&count.to_be_bytes(), 8)
            .context("write a pack")?;
        let mut hasher = self.algo.hasher();
        let mut piece = vec![0; BUFFER];
        let mut at = 0;
        while at < self.flushed {
            let wanted = piece
                .len()
                .min(usize::try_from(self.flushed - at).unwrap_or(usize::MAX));
            self.file
                .read_exact_at(&mut piece[..wanted], at)
                .context("read a pack")?;
            hasher.update(&piece[..wanted]);
            at += wanted as u64;
        }
        let name = hasher.finish();
        self.file
            .write_all_at(&name.0[..self.algo.len()], self.flushed)
            .context("write a pack")?;
        self.file.sync_all().context("sync a pack")?;
        let index = self.index(&name)?;
        Ok((name, index))
    }

    fn index(&self, pack: &Oid) -> Result<Vec<u8>, Error> {
        let mut sorted: Vec<_> = self.places.iter().collect();
        sorted.sort_unstable_by_key(|(oid, _)| **oid);
        let mut out = Vec::with_capacity(1064 + sorted.len() * (self.algo.len() + 8) + 64);
        out.extend_from_slice(b"\xfftOc\0\0\0\x02");
        let mut fanout = [0_u32; 256];
        for (oid, _) in &sorted {
            fanout[usize::from(oid.0[0])] += 1;
        }
        let mut sum = 0;
        for count in fanout {
            sum += count;
            out.extend_from_slice(&sum.to_be_bytes());
        }
        for (oid, _) in &sorted {
            out.extend_from_slice(&oid.0[..self.algo.len()]);
        }
        for (_, place) in &sorted {
            out.extend_from_slice(&place.crc.to_be_bytes());
        }
        let mut large: Vec<u64> = Vec::new();
        for (_, place) in &sorted {
            let small = u32::try_from(place.offset)
                .ok()
                .filter(|offset| *offset < 1 << 31);
            let field = match small {
                Some(offset) => offset,
                None => {
                    large.push(place.offset);
                    let at = u32::try_from(large.len() - 1)
                        .map_err(|_| Error::TooLarge("too many objects".into()))?;
                    (1 << 31) | at
                }
            };
            out.extend_from_slice(&field.to_be_bytes());
        }
        for offset in large {
            out.extend_from_slice(&offset.to_be_bytes());
        }
        out.extend_from_slice(&pack.0[..self.algo.len()]);
        let mut hasher = self.algo.hasher();
        hasher.update(&out);
        let checksum = hasher.finish();
        out.write_all(&checksum.0[..self.algo.len()])
            .context("make an index")?;
        Ok(out)
    }

    /// Whether nothing was added.
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty() && self.len() == HEADER
    }
}

/// A blob in the making.
pub(crate) struct Blob {
    entry: Open,
    hasher: Hasher,
    left: u64,
}

/// An entry in the making.
struct Open {
    start: u64,
    crc: crc32fast::Hasher,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack_read::Pack;

    /// A stream that breaks off leaves nothing behind, neither in the file nor in the compressor.
    #[test]
    fn what_broke_off_is_forgotten() {
        for (given, size) in [(10, 20), (3 << 20, 4 << 20), (70_000, 70_001)] {
            let mut writer = PackWriter::new(tempfile::tempfile().unwrap(), Algo::Sha256, u64::MAX);
            let put = |writer: &mut PackWriter, text: &[u8]| {
                let oid = Algo::Sha256.name(Kind::Blob, text);
                writer.put(oid, Kind::Blob, text).unwrap();
                oid
            };
            let mut all = vec![(put(&mut writer, b"first"), b"first".to_vec())];
            for round in 0..3_u8 {
                for noise in [false, true] {
                    let mut state = 1_u32;
                    let content: Vec<u8> = (0..given)
                        .map(|_| {
                            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                            if noise { (state >> 24) as u8 } else { b'x' }
                        })
                        .collect();
                    let streamed = writer
                        .put_stream(size, &mut &content[..], &mut |_| Ok(false))
                        .unwrap();
                    assert!(matches!(streamed, Streamed::Short));
                    let text = vec![round; 40 + usize::from(noise)];
                    all.push((put(&mut writer, &text), text));
                }
            }
            let file = writer.file().try_clone().unwrap();
            let (_, index) = writer.finish().unwrap();
            let index_file = tempfile::tempfile().unwrap();
            index_file.write_all_at(&index, 0).unwrap();
            let pack = Pack::open("p".into(), index_file, file).unwrap();
            for (oid, text) in all {
                let offset = pack.find(&oid).unwrap().unwrap();
                let mut content = Vec::new();
                let header = pack.header(offset).unwrap();
                let found = pack.inflate(&header, &mut |bytes| {
                    content.extend_from_slice(bytes);
                    Ok(())
                });
                assert_eq!((found.unwrap(), content), (oid, text), "{given} of {size}");
            }
        }
    }
}
