//! One file of a log, as its readers see it.
//!
//! What is open (a file and the offsets of its events) is held by a pool of bounded size and made
//! anew when it is needed again, so that a thousand idle logs cost neither files nor memory.

use std::collections::VecDeque;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};

use crate::error::ReadError;
use crate::frame::{FRAME, HEADER, Head, Header};
use crate::fs::{Fs, FsFile, Mode};
use crate::scan::{Frames, Step};
use crate::sync::{lock, read, write};

/// Files kept open beside those in use.
const POOL_FILES: usize = 64;
/// Memory for offsets beside that of segments in use, in bytes.
const POOL_INDEX: usize = 16 << 20;

/// `<first event, 16 hex digits>-<sequence, 8 hex digits>.seg`
pub(crate) fn file_name(header: &Header) -> String {
    format!("{:016x}-{:08x}.seg", header.first, header.seq)
}

/// First event and sequence of a segment's name with this extension.
pub(crate) fn parse_name(name: &str, extension: &str) -> Option<(u64, u32)> {
    let (first, seq) = name.strip_suffix(extension)?.split_once('-')?;
    let hex = |s: &str, len| {
        s.len() == len
            && s.bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    if !hex(first, 16) || !hex(seq, 8) {
        return None;
    }
    Some((
        u64::from_str_radix(first, 16).ok()?,
        u32::from_str_radix(seq, 16).ok()?,
    ))
}

/// A segment whose header was checked.
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    pub(crate) header: Header,
    seed: u32,
    /// Locked while the file is opened, so that there is one `Opened` at a time.
    state: Mutex<State>,
}

struct State {
    /// Durable events.
    count: u32,
    /// Offset behind the last durable frame.
    end: u32,
    opened: Weak<Opened>,
}

/// The file and where its events are.
pub(crate) struct Opened {
    pub(crate) file: Box<dyn FsFile>,
    index: RwLock<Index>,
    used: AtomicBool,
}

/// Durable events only.
pub(crate) struct Index {
    /// Offset of each event's frame.
    pub(crate) offsets: Vec<u32>,
    /// Offset behind the last frame.
    pub(crate) end: u32,
}

impl Segment {
    pub(crate) fn new(
        path: PathBuf,
        header: Header,
        file: Box<dyn FsFile>,
        index: Index,
        pool: &Pool,
    ) -> Self {
        let state = State {
            count: index.offsets.len() as u32,
            end: index.end,
            opened: Weak::new(),
        };
        let seed = header.seed();
        let segment = Self {
            path,
            header,
            seed,
            state: Mutex::new(state),
        };
        let opened = Arc::new(Opened {
            file,
            index: RwLock::new(index),
            used: AtomicBool::new(false),
        });
        lock(&segment.state).opened = Arc::downgrade(&opened);
        pool.keep(opened);
        segment
    }

    pub(crate) fn seed(&self) -> u32 {
        self.seed
    }

    /// Offset behind the last durable frame.
    pub(crate) fn end(&self) -> u32 {
        lock(&self.state).end
    }

    /// Number of the event after the last durable one.
    pub(crate) fn next_event(&self) -> u64 {
        self.header.first + u64::from(lock(&self.state).count)
    }

    pub(crate) fn open(&self, fs: &dyn Fs, pool: &Pool) -> Result<Arc<Opened>, ReadError> {
        let mut state = lock(&self.state);
        if let Some(opened) = state.opened.upgrade() {
            opened.used.store(true, Ordering::Relaxed);
            return Ok(opened);
        }
        let file = fs.open(&self.path, Mode::Write).map_err(|e| self.io(e))?;
        let mut offsets = Vec::with_capacity(state.count as usize);
        let mut frames = Frames::new(&*file, self.seed, u64::from(state.end));
        loop {
            match frames.next().map_err(|e| self.io(e))? {
                Step::Frame { offset, head, .. } => {
                    if head.is_event() {
                        offsets.push(offset);
                    }
                }
                Step::End if offsets.len() == state.count as usize => break,
                Step::End | Step::Bad => return Err(self.damaged(frames.at())),
            }
        }
        let index = RwLock::new(Index {
            offsets,
            end: state.end,
        });
        let opened = Arc::new(Opened {
            file,
            index,
            used: AtomicBool::new(false),
        });
        state.opened = Arc::downgrade(&opened);
        drop(state);
        pool.keep(Arc::clone(&opened));
        Ok(opened)
    }

    /// Adds events that a sync has made durable. The caller has kept `opened` since before they
    /// were written.
    pub(crate) fn publish(&self, opened: &Opened, offsets: &[u32], end: u32) {
        let mut index = write(&opened.index);
        index.offsets.extend_from_slice(offsets);
        index.end = end;
        let mut state = lock(&self.state);
        state.count = index.offsets.len() as u32;
        state.end = end;
    }

    /// Appends the frames of these events, as many as are here and fit into `max` bytes, to
    /// `out`; returns the number of the last one, `None` if not even one fits. With `force` the
    /// first one always does.
    pub(crate) fn read(
        &self,
        opened: &Opened,
        out: &mut Vec<u8>,
        events: RangeInclusive<u64>,
        max: usize,
        force: bool,
    ) -> Result<Option<u64>, ReadError> {
        let (from, upto) = events.into_inner();
        let begin = (from - self.header.first) as usize;
        let (start, end) = {
            let index = read(&opened.index);
            let offsets = &index.offsets;
            let Some(&start) = offsets.get(begin) else {
                return Err(self.damaged(u64::from(index.end)));
            };
            let last = ((upto - self.header.first) as usize).min(offsets.len() - 1);
            // Where the event after `i` begins; notes in between are read along.
            let behind = |i: usize| offsets.get(i + 1).copied().unwrap_or(index.end);
            let mut end = behind(last);
            if (end - start) as usize > max {
                let limit = u64::from(start) + max as u64;
                let fit = offsets[begin + 1..=last].partition_point(|&o| u64::from(o) <= limit);
                if fit == 0 && !force {
                    return Ok(None);
                }
                end = behind((begin + fit).saturating_sub(1).max(begin));
            }
            (start, end)
        };
        let base = out.len();
        let len = (end - start) as usize;
        opened
            .file
            .read_at(out, u64::from(start), len)
            .map_err(|e| self.io(e))?;
        let mut at = base;
        let mut number = from;
        while at < out.len() {
            let offset = start + (at - base) as u32;
            let head = Head::decode(&out[at..]);
            let whole = head.filter(|h| {
                let frame = out.get_mut(at..at + FRAME + h.len);
                frame.is_some_and(|frame| h.matches_whole(self.seed, offset, frame))
            });
            let Some(head) = whole else {
                out.truncate(base);
                return Err(self.damaged(u64::from(offset)));
            };
            number += u64::from(head.is_event());
            at += FRAME + head.len;
        }
        if at - base != len || number == from {
            out.truncate(base);
            return Err(self.damaged(u64::from(start)));
        }
        Ok(Some(number - 1))
    }

    pub(crate) fn io(&self, source: io::Error) -> ReadError {
        ReadError::Io {
            path: self.path.clone(),
            source,
        }
    }

    pub(crate) fn damaged(&self, offset: u64) -> ReadError {
        ReadError::Damaged {
            path: self.path.clone(),
            offset,
        }
    }
}

/// A new segment, empty and durable but for its entry in the folder.
pub(crate) fn make(fs: &dyn Fs, path: &Path, header: &Header) -> io::Result<Box<dyn FsFile>> {
    let file = fs.open(path, Mode::Create)?;
    crate::fs::write_all(&*file, &header.encode(), 0)?;
    file.sync()?;
    Ok(file)
}

/// The index of a segment without frames.
pub(crate) fn empty() -> Index {
    Index {
        offsets: Vec::new(),
        end: HEADER as u32,
    }
}

/// What is kept open although nobody uses it right now; the oldest unused one goes first.
#[derive(Default)]
pub(crate) struct Pool {
    kept: Mutex<VecDeque<Arc<Opened>>>,
}

impl Pool {
    fn keep(&self, opened: Arc<Opened>) {
        let mut kept = lock(&self.kept);
        kept.push_back(opened);
        let size = |o: &Arc<Opened>| read(&o.index).offsets.capacity() * size_of::<u32>();
        let mut bytes: usize = kept.iter().map(size).sum();
        // Each one used since the last time gets a second chance, once.
        let mut chances = kept.len();
        while kept.len() > 1 && (kept.len() > POOL_FILES || bytes > POOL_INDEX) {
            let Some(oldest) = kept.pop_front() else {
                break;
            };
            if chances > 0 && oldest.used.swap(false, Ordering::Relaxed) {
                chances -= 1;
                kept.push_back(oldest);
            } else {
                bytes -= size(&oldest);
            }
        }
    }
}
