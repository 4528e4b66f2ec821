//! The writing end of a log: one, owned by the committer.

use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use crate::error::Fault;
use crate::frame::{self, FRAME, HEADER, Header, MARK, START};
use crate::fs::{Fs, write_all};
use crate::segment::{self, Opened, Pool, Segment};
use crate::sync::{read, write};

/// The segments of a log, oldest first, never empty; shared by writer and readers.
pub(crate) type Segments = RwLock<Vec<Arc<Segment>>>;

/// Writes frames to the last segment.
pub(crate) struct Writer {
    pub(crate) fs: Arc<dyn Fs>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) dir: PathBuf,
    pub(crate) segments: Arc<Segments>,
    /// The last segment, kept open while anything of it is not synced.
    pub(crate) active: Option<(Arc<Segment>, Arc<Opened>)>,
    /// Number of the next event.
    pub(crate) next: u64,
    /// Offset behind the last written frame.
    pub(crate) end: u32,
    /// Offset behind the last synced frame.
    pub(crate) synced: u32,
    /// Offsets of the events written since the last sync.
    pub(crate) offsets: Vec<u32>,
    /// Whether a mark stands behind `synced`.
    pub(crate) marked: bool,
}

impl Writer {
    pub(crate) fn new(
        fs: Arc<dyn Fs>,
        pool: Arc<Pool>,
        dir: PathBuf,
        segments: Vec<Arc<Segment>>,
        marked: bool,
    ) -> Self {
        let last = segments.last().expect("a log has a segment");
        let (next, end) = (last.next_event(), last.end());
        let segments = Arc::new(RwLock::new(segments));
        let offsets = Vec::new();
        Self {
            fs,
            pool,
            dir,
            segments,
            active: None,
            next,
            end,
            synced: end,
            offsets,
            marked,
        }
    }

    /// Makes the last segment ready for writing; begins a new one if it has `limit` bytes.
    pub(crate) fn prepare(&mut self, limit: u64) -> Result<&Segment, Fault> {
        if self.active.is_none() {
            self.open()?;
        }
        if u64::from(self.end) >= limit.max(HEADER as u64 + 1) {
            self.roll()?;
        }
        match &self.active {
            Some((segment, _)) => Ok(segment),
            None => Err(Fault::Broken("no segment is open".to_owned())),
        }
    }

    fn open(&mut self) -> Result<(), Fault> {
        let last = read(&self.segments).last().cloned();
        let last = last.ok_or_else(|| Fault::Broken("a log without segments".to_owned()))?;
        let opened =
            last.open(&*self.fs, &self.pool)
                .map_err(|e| match std::error::Error::source(&e) {
                    Some(source) => Fault::Broken(format!("{e}: {source}")),
                    None => Fault::Broken(e.to_string()),
                })?;
        self.active = Some((last, opened));
        Ok(())
    }

    /// The flag of the next frame's kind.
    pub(crate) fn flag(&self) -> u8 {
        if self.end == self.synced { START } else { 0 }
    }

    /// Writes whole frames with `offsets.len()` events. After [`Fault::Full`] nothing of them is
    /// left and they may be written again.
    pub(crate) fn put(&mut self, bytes: &[u8], offsets: &[u32]) -> Result<(), Fault> {
        let Some((segment, opened)) = &self.active else {
            return Err(Fault::Broken("no segment is open".to_owned()));
        };
        self.marked = false;
        self.write(segment, opened, bytes)?;
        self.end += bytes.len() as u32;
        self.next += offsets.len() as u64;
        self.offsets.extend_from_slice(offsets);
        Ok(())
    }

    /// Writes behind the last frame, all or nothing unless the file is broken. Nothing torn stays
    /// on a full disk: in a segment that is followed by another it would pass for damage.
    fn write(&self, segment: &Segment, opened: &Opened, bytes: &[u8]) -> Result<(), Fault> {
        let at = u64::from(self.end);
        let Err(error) = write_all(&*opened.file, bytes, at) else {
            return Ok(());
        };
        let fault = Fault::of("write to", &segment.path, &error);
        if matches!(fault, Fault::Full) {
            let cut = opened.file.truncate(at);
            cut.map_err(|e| Fault::broken("cut the torn end off", &segment.path, &e))?;
        }
        Err(fault)
    }

    /// Makes what was written durable and readable; whether there was anything.
    pub(crate) fn sync(&mut self) -> Result<bool, Fault> {
        if self.end == self.synced {
            return Ok(false);
        }
        let Some((segment, opened)) = &self.active else {
            return Err(Fault::Broken("no segment is open".to_owned()));
        };
        // Never retried: the kernel may have dropped the pages and would then report success.
        opened
            .file
            .sync()
            .map_err(|e| Fault::broken("sync", &segment.path, &e))?;
        segment.publish(opened, &self.offsets, self.end);
        self.offsets.clear();
        if self.offsets.capacity() > 64 << 10 {
            self.offsets = Vec::new();
        }
        self.synced = self.end;
        Ok(true)
    }

    /// Ends the last segment and begins the next.
    ///
    /// The old one must be durable as a whole, its mark included, because recovery takes a torn
    /// end for corruption where another segment follows. The new one's header and name must be
    /// durable before its first frame is written, so that a damaged header is known for what it is.
    fn roll(&mut self) -> Result<(), Fault> {
        let Some((old, opened)) = &self.active else {
            return Err(Fault::Broken("no segment is open".to_owned()));
        };
        let old = Arc::clone(old);
        if self.end == self.synced {
            opened
                .file
                .sync()
                .map_err(|e| Fault::broken("sync", &old.path, &e))?;
        }
        self.sync()?;
        let seq = old.header.seq.checked_add(1);
        let seq = seq.ok_or_else(|| Fault::Broken("segment numbers are used up".to_owned()))?;
        let header = Header {
            seq,
            epoch: old.header.epoch,
            first: self.next,
            follows: old.header.seq,
        };
        let path = self.dir.join(segment::file_name(&header));
        let file = segment::make(&*self.fs, &path, &header).map_err(|error| {
            // A torn header does no harm; it would be removed at the next start.
            let _ = self.fs.remove(&path);
            Fault::of("create", &path, &error)
        })?;
        self.fs
            .sync_dir(&self.dir)
            .map_err(|e| Fault::broken("sync", &self.dir, &e))?;
        let segment = Segment::new(path, header, file, segment::empty(), &self.pool);
        let segment = Arc::new(segment);
        write(&self.segments).push(segment);
        self.end = HEADER as u32;
        self.synced = self.end;
        self.marked = false;
        self.open()
    }

    /// Called when there is nothing to write: puts a mark, without a sync, and lets the file go.
    pub(crate) fn idle(&mut self) -> Result<(), Fault> {
        if self.end != self.synced {
            return Ok(());
        }
        let Some((segment, opened)) = self.active.take() else {
            return Ok(());
        };
        if self.marked || u64::from(self.end) == HEADER as u64 {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(FRAME);
        frame::encode(&mut bytes, segment.seed(), self.end, MARK | START, |_| {});
        self.write(&segment, &opened, &bytes).map_or_else(
            // A log does without a mark on a full disk.
            |fault| {
                if matches!(fault, Fault::Full) {
                    Ok(())
                } else {
                    Err(fault)
                }
            },
            |()| {
                self.marked = true;
                Ok(())
            },
        )
    }
}
