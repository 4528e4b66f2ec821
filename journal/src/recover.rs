//! What [`Journal::open`](crate::Journal::open) does with what it finds.
//!
//! - A torn end of the last segment, with nothing acknowledged in it, is cut off.
//! - Anything else that is broken is corruption. The events before it stay; from the damaged
//!   segment on all files are kept aside as `.bad`, never deleted, and the whole frames in front
//!   of the damage are copied into a new segment. The log gets a new epoch: numbers from there on
//!   are given out again, so an old cursor must not pass for a new one. What stood behind the
//!   damage is not kept: how many events are missing is not known, and a history with a hole in
//!   its middle would tell a story that never happened.
//! - A segment of a newer format stops the open with nothing changed in that log.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::OpenError;
use crate::frame::{BadHeader, HEADER, Header, START};
use crate::fs::{Fs, FsFile, Lock, Mode, write_all};
use crate::journal::is_name;
use crate::scan::{Frames, Step, later_batch};
use crate::segment::{self, Index, Segment, file_name, parse_name};
use crate::shared::Shared;
use crate::writer::Writer;

mod salvage;

/// Begins the name of a log that is being made.
pub(crate) const NEW: &str = ".new-";
/// A segment that is being copied.
const SALVAGE: &str = ".salvage";

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;

/// Damage that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// Name of the log.
    pub log: String,
    /// What is wrong, for people.
    pub damage: String,
    /// The last event that is kept; `first - 1` if none is.
    pub last: u64,
    /// The files that were renamed to `.bad`.
    pub aside: Vec<PathBuf>,
}

/// A log as it was found, or made good.
pub(crate) struct Recovered {
    pub(crate) name: String,
    pub(crate) writer: Writer,
    pub(crate) repair: Option<Repair>,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> OpenError + '_ {
    move |source| OpenError::Io {
        path: path.to_owned(),
        source,
    }
}

pub(crate) fn lock(shared: &Shared) -> Result<Lock, OpenError> {
    let dir = &shared.dir;
    match shared.fs.make_dir(dir) {
        Ok(()) => {
            let parent = dir.parent().filter(|p| !p.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            shared.fs.sync_dir(parent).map_err(at(parent))?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(at(dir)(error)),
    }
    let path = dir.join(".lock");
    match shared.fs.lock(&path).map_err(at(&path))? {
        Some(lock) => Ok(lock),
        None => Err(OpenError::Locked { path }),
    }
}

/// A new epoch; 0 is left to mean none.
pub(crate) fn epoch(fs: &dyn Fs) -> io::Result<u64> {
    Ok(fs.random()?.max(1))
}

/// Removes a folder of files, if it is there.
pub(crate) fn remove_all(fs: &dyn Fs, dir: &Path) -> io::Result<()> {
    match fs.list(dir) {
        Ok(entries) => {
            for entry in entries {
                fs.remove(&dir.join(entry.name))?;
            }
            fs.remove_dir(dir)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

pub(crate) fn all(shared: &Shared) -> Result<Vec<Recovered>, OpenError> {
    let fs = &*shared.fs;
    let mut found = Vec::new();
    for entry in fs.list(&shared.dir).map_err(at(&shared.dir))? {
        let dir = shared.dir.join(&entry.name);
        if !entry.is_dir {
            continue;
        }
        if entry.name.starts_with(NEW) {
            remove_all(fs, &dir).map_err(at(&dir))?;
        } else if is_name(&entry.name) {
            found.extend(
                Recovery {
                    shared,
                    dir,
                    name: entry.name,
                }
                .run()?,
            );
        }
    }
    // A name made just before the process was killed may not be on the disk yet.
    fs.sync_dir(&shared.dir).map_err(at(&shared.dir))?;
    Ok(found)
}

/// A segment file before it is trusted.
struct Candidate {
    path: PathBuf,
    first: u64,
    seq: u32,
    size: u64,
    header: Option<Header>,
    file: Box<dyn FsFile>,
}

/// What is in front of the first break of a segment.
struct Walk {
    index: Index,
    /// Where the last batch begins, or the mark behind it.
    batch: u64,
    /// Behind the last whole frame, a mark included.
    whole: u64,
    marked: bool,
    torn: bool,
    /// Offset of the corruption.
    corrupt: Option<u64>,
}

struct Recovery<'a> {
    shared: &'a Shared,
    dir: PathBuf,
    name: String,
}

impl Recovery<'_> {
    fn fs(&self) -> &dyn Fs {
        &*self.shared.fs
    }

    fn run(self) -> Result<Option<Recovered>, OpenError> {
        let mut names = Vec::new();
        let mut bad = Vec::new();
        let listed = self.fs().list(&self.dir).map_err(at(&self.dir))?;
        for entry in listed.iter().filter(|e| !e.is_dir) {
            names.extend(parse_name(&entry.name, ".seg").map(|(first, seq)| (seq, first)));
            bad.extend(parse_name(&entry.name, ".bad").map(|(first, seq)| (seq, first)));
            if entry.name == SALVAGE {
                let path = self.dir.join(SALVAGE);
                self.fs().remove(&path).map_err(at(&path))?;
            }
        }
        if names.is_empty() && bad.is_empty() {
            // Not a log. Only an empty folder can be one of ours, from a broken file system.
            if listed.is_empty() {
                self.fs().remove_dir(&self.dir).map_err(at(&self.dir))?;
            }
            return Ok(None);
        }
        names.sort_unstable();
        let highest = names
            .iter()
            .chain(&bad)
            .map(|&(seq, _)| seq)
            .max()
            .unwrap_or(0);
        let mut candidates = Vec::new();
        for (seq, first) in names {
            candidates.push(self.candidate(seq, first)?);
        }
        self.finish_salvage(&mut candidates)?;
        self.drop_unborn(&mut candidates)?;
        if candidates.is_empty() {
            let first = bad.iter().map(|&(_, first)| first).max().unwrap_or(1);
            let damage = "its segments are gone, only .bad ones are left".to_owned();
            return self
                .salvage(Vec::new(), candidates, None, first, highest, damage)
                .map(Some);
        }
        self.chain(candidates, highest).map(Some)
    }

    /// Opens a segment file; only a newer format is an error.
    fn candidate(&self, seq: u32, first: u64) -> Result<Candidate, OpenError> {
        let path = self.dir.join(file_name(&Header {
            seq,
            epoch: 0,
            first,
            follows: 0,
        }));
        let file = self.fs().open(&path, Mode::Write).map_err(at(&path))?;
        let size = file.size().map_err(at(&path))?;
        let mut bytes = Vec::new();
        file.read_at(&mut bytes, 0, HEADER).map_err(at(&path))?;
        let header = match Header::decode(&bytes) {
            Ok(header) if header.seq == seq && header.first == first => Some(header),
            Ok(_) | Err(BadHeader::Damaged) => None,
            Err(BadHeader::Newer(found)) => return Err(OpenError::NewerVersion { path, found }),
        };
        Ok(Candidate {
            path,
            first,
            seq,
            size,
            header,
            file,
        })
    }

    /// A salvage that was cut short has its copy in place but not all of the damaged ones aside.
    fn finish_salvage(&self, candidates: &mut Vec<Candidate>) -> Result<(), OpenError> {
        let Some(last) = candidates.last() else {
            return Ok(());
        };
        let Some(header) = last.header else {
            return Ok(());
        };
        let replaced = |c: &Candidate| header.follows < c.seq && c.seq < header.seq;
        if candidates.iter().any(replaced) {
            self.set_aside(candidates.iter().filter(|c| replaced(c)))?;
            candidates.retain(|c| !replaced(c));
        }
        Ok(())
    }

    /// A segment that was being begun has a torn header and nothing behind it.
    fn drop_unborn(&self, candidates: &mut Vec<Candidate>) -> Result<(), OpenError> {
        if candidates.len() > 1
            && let Some(last) = candidates.pop_if(|c| c.header.is_none() && c.size <= HEADER as u64)
        {
            self.fs().remove(&last.path).map_err(at(&last.path))?;
            self.fs().sync_dir(&self.dir).map_err(at(&self.dir))?;
        }
        Ok(())
    }

    /// Checks each segment and that it follows the one before.
    fn chain(self, mut rest: Vec<Candidate>, highest: u32) -> Result<Recovered, OpenError> {
        let mut good: Vec<Arc<Segment>> = Vec::new();
        let mut marked = false;
        let mut next = rest.first().map_or(1, |c| c.first);
        loop {
            if rest.is_empty() {
                if good.first().is_some_and(|s| s.header.follows > 0) {
                    // The trim may have been cut short: what is not there now stays away.
                    self.fs().sync_dir(&self.dir).map_err(at(&self.dir))?;
                }
                let writer = self.writer(good, marked);
                return Ok(Recovered {
                    name: self.name,
                    writer,
                    repair: None,
                });
            }
            let is_last = rest.len() == 1;
            let candidate = &rest[0];
            let before = good.last().map(|s| s.header);
            let Some(header) = candidate.header else {
                let damage = format!("{} has a damaged header", candidate.path.display());
                return self.salvage(good, rest, None, next, highest, damage);
            };
            if !follows(before, next, &header) {
                let damage = format!("segments are missing before {}", candidate.path.display());
                return self.salvage(good, rest, None, next, highest, damage);
            }
            let walk = self.walk(candidate, &header, is_last)?;
            if let Some(offset) = walk.corrupt {
                let damage = format!("{} is damaged at byte {offset}", candidate.path.display());
                return self.salvage(good, rest, Some(walk), next, highest, damage);
            }
            if is_last {
                self.settle(candidate, &walk)?;
            }
            marked = walk.marked;
            next += walk.index.offsets.len() as u64;
            let Candidate { path, file, .. } = rest.remove(0);
            good.push(Arc::new(Segment::new(
                path,
                header,
                file,
                walk.index,
                &self.shared.pool,
            )));
        }
    }

    fn walk(&self, c: &Candidate, header: &Header, is_last: bool) -> Result<Walk, OpenError> {
        let (file, seed) = (&*c.file, header.seed());
        let mut frames = Frames::new(file, seed, c.size);
        let mut index = segment::empty();
        let mut marked = false;
        // Without a frame the header itself may not be durable.
        let mut batch = 0;
        let end = loop {
            match frames.next().map_err(at(&c.path))? {
                // Nothing acknowledged is ever behind a mark: a batch begins in its place.
                Step::Frame { offset, head, .. } if head.is_mark() => {
                    marked = true;
                    batch = u64::from(offset);
                    break frames.at();
                }
                Step::Frame { offset, head, .. } => {
                    if head.is_event() {
                        index.offsets.push(offset);
                    }
                    if head.kind & START != 0 {
                        batch = u64::from(offset);
                    }
                }
                Step::End | Step::Bad => break frames.at(),
            }
            index.end = u32::try_from(frames.at()).unwrap_or(u32::MAX);
        };
        index.offsets.shrink_to_fit();
        let torn = end < c.size;
        let corrupt =
            torn && (!is_last || later_batch(file, seed, end, c.size).map_err(at(&c.path))?);
        Ok(Walk {
            index,
            batch,
            whole: end,
            marked,
            torn,
            corrupt: corrupt.then_some(end),
        })
    }

    /// Makes the end of the last segment what it is taken for: what a killed process wrote may
    /// still be in memory only. The last batch is written once more before it is synced: after a
    /// failed sync the kernel takes it for written, and a sync alone would do nothing.
    fn settle(&self, c: &Candidate, walk: &Walk) -> Result<(), OpenError> {
        rewrite(&*c.file, walk.batch, walk.whole).map_err(at(&c.path))?;
        // A mark says that all before it was synced. It need not be durable itself, but the sync
        // at the end of the segment has to find it to be written.
        if walk.marked && !walk.torn {
            return Ok(());
        }
        if walk.torn {
            c.file.truncate(walk.whole).map_err(at(&c.path))?;
        }
        c.file.sync().map_err(at(&c.path))?;
        if walk.batch == 0 {
            self.fs().sync_dir(&self.dir).map_err(at(&self.dir))?;
        }
        Ok(())
    }

    fn writer(&self, segments: Vec<Arc<Segment>>, marked: bool) -> Writer {
        let (fs, pool) = (Arc::clone(&self.shared.fs), Arc::clone(&self.shared.pool));
        Writer::new(fs, pool, self.dir.clone(), segments, marked)
    }
}

/// Writes the range with what is there.
fn rewrite(file: &dyn FsFile, from: u64, to: u64) -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut at = from;
    while at < to {
        bytes.clear();
        file.read_at(&mut bytes, at, CHUNK.min((to - at) as usize))?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        write_all(file, &bytes, at)?;
        at += bytes.len() as u64;
    }
    Ok(())
}

/// Whether a segment continues the one before it. The first one may follow any: the rest was
/// trimmed.
pub(crate) fn follows(before: Option<Header>, next: u64, header: &Header) -> bool {
    let Some(before) = before else { return true };
    // Only a salvage skips a sequence, and only it has another epoch.
    let salvaged = header.seq - header.follows > 1;
    header.follows == before.seq
        && header.first == next
        && (salvaged || header.epoch == before.epoch)
}
