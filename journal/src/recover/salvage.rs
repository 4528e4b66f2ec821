//! Setting damage aside, so that each step can be cut by a crash.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::{CHUNK, Candidate, Recovered, Recovery, Repair, SALVAGE, Walk, at, epoch};
use crate::error::OpenError;
use crate::frame::{self, HEADER, Header, MARK, START};
use crate::fs::{FsFile, Mode, write_all};
use crate::scan::{Frames, Step};
use crate::segment::{self, Index, Segment, file_name};

impl Recovery<'_> {
    /// Puts a new segment with a new epoch behind `good`, with the whole frames of the first of
    /// `damaged` if there was a walk, and those aside. Each step can be cut by a crash.
    pub(super) fn salvage(
        self,
        mut good: Vec<Arc<Segment>>,
        damaged: Vec<Candidate>,
        walk: Option<Walk>,
        first: u64,
        highest: u32,
        damage: String,
    ) -> Result<Recovered, OpenError> {
        let header = Header {
            seq: highest.saturating_add(1),
            epoch: epoch(self.fs()).map_err(at(&self.dir))?,
            first,
            follows: good.last().map_or(0, |s| s.header.seq),
        };
        let staged = self.dir.join(SALVAGE);
        let path = self.dir.join(file_name(&header));
        let file = self.fs().open(&staged, Mode::Create).map_err(at(&staged))?;
        write_all(&*file, &header.encode(), 0).map_err(at(&staged))?;
        let index = match (damaged.first(), walk) {
            (Some(candidate), Some(walk)) => {
                copy(candidate, &walk, &header, &*file).map_err(at(&staged))?
            }
            _ => segment::empty(),
        };
        file.sync().map_err(at(&staged))?;
        self.fs().rename(&staged, &path).map_err(at(&path))?;
        self.fs().sync_dir(&self.dir).map_err(at(&self.dir))?;
        let aside = self.set_aside(damaged.iter())?;
        let last = first + index.offsets.len() as u64 - 1;
        let repair = Repair {
            log: self.name.clone(),
            damage,
            last,
            aside,
        };
        good.push(Arc::new(Segment::new(
            path,
            header,
            file,
            index,
            &self.shared.pool,
        )));
        let writer = self.writer(good, false);
        Ok(Recovered {
            name: self.name,
            writer,
            repair: Some(repair),
        })
    }

    pub(super) fn set_aside<'c>(
        &self,
        damaged: impl Iterator<Item = &'c Candidate>,
    ) -> Result<Vec<PathBuf>, OpenError> {
        let mut aside = Vec::new();
        for candidate in damaged {
            let to = candidate.path.with_extension("bad");
            self.fs()
                .rename(&candidate.path, &to)
                .map_err(at(&candidate.path))?;
            aside.push(to);
        }
        self.fs().sync_dir(&self.dir).map_err(at(&self.dir))?;
        Ok(aside)
    }
}

/// Copies whole frames into the segment of `header`: their checksums depend on the place.
fn copy(from: &Candidate, walk: &Walk, header: &Header, to: &dyn FsFile) -> io::Result<Index> {
    let seed = from.header.map_or(0, |h| h.seed());
    let mut frames = Frames::new(&*from.file, seed, u64::from(walk.index.end));
    let mut index = segment::empty();
    let mut chunk = Vec::new();
    while let Step::Frame { head, payload, .. } = frames.next()? {
        let offset = index.end + chunk.len() as u32;
        if head.is_event() {
            index.offsets.push(offset);
        }
        let first = if offset == HEADER as u32 { START } else { 0 };
        let kind = head.kind & !START | first;
        frame::encode(&mut chunk, header.seed(), offset, kind, |out| {
            out.extend_from_slice(payload);
        });
        if chunk.len() >= CHUNK {
            write_all(to, &chunk, u64::from(index.end))?;
            index.end += chunk.len() as u32;
            chunk.clear();
        }
    }
    write_all(to, &chunk, u64::from(index.end))?;
    index.end += chunk.len() as u32;
    // A mark, so that damage of the copy is not taken for a torn end.
    chunk.clear();
    frame::encode(&mut chunk, header.seed(), index.end, MARK | START, |_| {});
    write_all(to, &chunk, u64::from(index.end))?;
    Ok(index)
}
