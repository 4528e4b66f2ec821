//! For people: what is in the files of a journal, whole or damaged, in use or copied elsewhere.
//!
//! Nothing is written, repaired or locked. On a journal in use the end may be under way: what is
//! shown last may not be durable yet.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::frame::{BadHeader, HEADER, Header};
use crate::fs::{Fs, FsFile, Mode, RealFs};
use crate::journal::is_name;
use crate::log::Frame;
use crate::recover::follows;
use crate::scan::{Frames, Step, later_batch};
use crate::segment::parse_name;

/// What was found in a log's folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogReport {
    /// Name of the folder.
    pub name: String,
    /// Oldest first.
    pub segments: Vec<SegmentReport>,
    /// Files that an earlier start set aside as damaged.
    pub aside: Vec<PathBuf>,
}

/// What was found in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentReport {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its position in the log, from its name.
    pub sequence: u32,
    /// Number of its first event, from its name.
    pub first: u64,
    /// From its header, if that is whole.
    pub epoch: Option<u64>,
    /// Whole events.
    pub events: u64,
    /// Whole notes.
    pub notes: u64,
    /// Bytes at the end of the last segment that are no whole frame and that nobody was told of:
    /// a write that a crash cut, or one under way.
    pub torn: u64,
    /// What is wrong, and the byte where it begins. The next start sets the file aside.
    pub damage: Option<(u64, String)>,
    /// A salvage that was cut short: a later segment stands in for this one.
    pub replaced: bool,
}

impl LogReport {
    /// Whether the next start would set files aside.
    pub fn is_damaged(&self) -> bool {
        self.segments.iter().any(|s| s.damage.is_some())
    }

    /// Epoch of the last whole header.
    pub fn epoch(&self) -> Option<u64> {
        self.segments.iter().rev().find_map(|s| s.epoch)
    }

    /// Number of the first event, of what is kept or will come.
    pub fn first(&self) -> u64 {
        self.segments.first().map_or(1, |s| s.first)
    }

    /// Number of the last whole event; `first - 1` if there is none.
    pub fn last(&self) -> u64 {
        let last = self.segments.iter().rev().find(|s| !s.replaced);
        last.map_or(0, |s| s.first + s.events - 1)
    }
}

/// The logs in a folder, sorted: those below it, or the folder itself if it is one. `Err` where
/// the folder cannot be read.
pub fn logs(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let fs = &RealFs;
    let entries = fs.list(dir)?;
    let of_a_log = |e: &crate::fs::DirEntry| {
        !e.is_dir
            && (parse_name(&e.name, ".seg").is_some() || parse_name(&e.name, ".bad").is_some())
    };
    if entries.iter().any(of_a_log) {
        return Ok(vec![dir.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in entries.into_iter().filter(|e| e.is_dir && is_name(&e.name)) {
        let dir = dir.join(entry.name);
        if fs.list(&dir)?.iter().any(of_a_log) {
            found.push(dir);
        }
    }
    found.sort();
    Ok(found)
}

/// Reads every byte of a log's folder and says what is there.
pub fn verify(dir: &Path) -> io::Result<LogReport> {
    dump(dir, 0, &mut |_| ControlFlow::Continue(()))
}

/// Shows the whole frames of a log's folder in order, but for events up to number `after`, until
/// `f` breaks. Behind damage it goes on with the next segment. The report tells of what was read.
pub fn dump(
    dir: &Path,
    after: u64,
    f: &mut dyn FnMut(Frame<'_>) -> ControlFlow<()>,
) -> io::Result<LogReport> {
    dump_on(&RealFs, dir, after, f)
}

pub(crate) fn dump_on(
    fs: &dyn Fs,
    dir: &Path,
    after: u64,
    f: &mut dyn FnMut(Frame<'_>) -> ControlFlow<()>,
) -> io::Result<LogReport> {
    let mut report = LogReport {
        name: dir.file_name().unwrap_or_default().display().to_string(),
        ..LogReport::default()
    };
    let mut names = Vec::new();
    for entry in fs.list(dir)?.into_iter().filter(|e| !e.is_dir) {
        names.extend(
            parse_name(&entry.name, ".seg").map(|(first, seq)| (seq, first, entry.name.clone())),
        );
        if parse_name(&entry.name, ".bad").is_some() {
            report.aside.push(dir.join(entry.name));
        }
    }
    report.aside.sort();
    names.sort_unstable();
    let mut opened = Vec::new();
    for (seq, first, name) in names {
        let path = dir.join(name);
        match Found::open(fs, path, seq, first) {
            Ok(found) => opened.push(found),
            // The oldest may go at any time: a trim.
            Err(error) if error.kind() == io::ErrorKind::NotFound && opened.is_empty() => {}
            Err(error) => return Err(error),
        }
    }
    let newest = opened.last().and_then(|f| f.header.ok());
    let mut walk = Walk {
        after,
        f,
        before: None,
        next: opened.first().map_or(1, |f| f.report.first),
        stopped: false,
    };
    let count = opened.len();
    for (i, mut found) in opened.into_iter().enumerate() {
        let seq = found.report.sequence;
        found.report.replaced =
            newest.is_some_and(|newest| newest.follows < seq && seq < newest.seq);
        if !found.report.replaced && !walk.stopped {
            walk.segment(&mut found, i + 1 == count, count > 1)?;
        }
        report.segments.push(found.report);
    }
    Ok(report)
}

/// A segment file, opened.
struct Found {
    report: SegmentReport,
    header: Result<Header, BadHeader>,
    file: Box<dyn FsFile>,
}

impl Found {
    fn open(fs: &dyn Fs, path: PathBuf, seq: u32, first: u64) -> io::Result<Self> {
        let file = fs.open(&path, Mode::Read)?;
        let mut bytes = Vec::new();
        file.read_at(&mut bytes, 0, HEADER)?;
        let header = match Header::decode(&bytes) {
            Ok(header) if (header.seq, header.first) != (seq, first) => Err(BadHeader::Damaged),
            other => other,
        };
        let report = SegmentReport {
            path,
            bytes: file.size()?,
            sequence: seq,
            first,
            epoch: header.ok().map(|h| h.epoch),
            events: 0,
            notes: 0,
            torn: 0,
            damage: None,
            replaced: false,
        };
        Ok(Self {
            report,
            header,
            file,
        })
    }
}

struct Walk<'a> {
    after: u64,
    f: &'a mut dyn FnMut(Frame<'_>) -> ControlFlow<()>,
    /// The segment before, if it was whole.
    before: Option<Header>,
    /// Number of the next event, unless damage hides it.
    next: u64,
    stopped: bool,
}

impl Walk<'_> {
    fn segment(&mut self, found: &mut Found, is_last: bool, has_others: bool) -> io::Result<()> {
        let report = &mut found.report;
        let header = match found.header {
            Ok(header) => header,
            Err(BadHeader::Newer(version)) => {
                let what = format!("written by a newer program (format {version})");
                report.damage = Some((0, what));
                self.before = None;
                return Ok(());
            }
            // One that is being begun has nothing behind a torn header.
            Err(BadHeader::Damaged) if is_last && has_others && report.bytes <= HEADER as u64 => {
                report.torn = report.bytes;
                return Ok(());
            }
            Err(BadHeader::Damaged) => {
                report.damage = Some((0, "the header is damaged".to_owned()));
                self.before = None;
                return Ok(());
            }
        };
        if self.before.is_some() && !follows(self.before, self.next, &header) {
            let what = "it does not follow the segment before it: segments are missing";
            report.damage = Some((0, what.to_owned()));
        }
        self.before = None;
        let mut number = header.first;
        let mut at = HEADER as u64;
        let mut doubted = None;
        let broken = loop {
            // What another process writes just now may look broken: damage is what stays.
            report.bytes = found.file.size()?;
            let broken = self.frames(report, &*found.file, &header, &mut number, &mut at)?;
            if self.stopped || broken.is_none() || broken == doubted {
                break broken;
            }
            doubted = broken;
        };
        if self.stopped {
            return Ok(());
        }
        if let Some(at) = broken {
            let later = || later_batch(&*found.file, header.seed(), at, report.bytes);
            if !is_last || later()? {
                let what = "no whole frame stands here".to_owned();
                report.damage.get_or_insert((at, what));
                return Ok(());
            }
            report.torn = report.bytes - at;
        }
        self.before = Some(header);
        self.next = number;
        Ok(())
    }

    /// Shows whole frames from `at` on, which moves to behind the last one; where something else
    /// stands, if it does.
    fn frames(
        &mut self,
        report: &mut SegmentReport,
        file: &dyn FsFile,
        header: &Header,
        number: &mut u64,
        at: &mut u64,
    ) -> io::Result<Option<u64>> {
        let mut frames = Frames::from(file, header.seed(), *at, report.bytes);
        loop {
            let (head, payload) = match frames.next()? {
                // The next batch is written in its place, so `at` stays before it.
                Step::Frame { head, .. } if head.is_mark() => {
                    let behind = frames.at();
                    return Ok((behind < report.bytes).then_some(behind));
                }
                Step::Frame { head, payload, .. } => (head, payload),
                Step::End => return Ok(None),
                Step::Bad => return Ok(Some(*at)),
            };
            let event = head.is_event().then_some(*number);
            if event.is_none_or(|n| n > self.after) && (self.f)(Frame { event, payload }).is_break()
            {
                self.stopped = true;
                return Ok(None);
            }
            if head.is_event() {
                *number += 1;
                report.events += 1;
            } else {
                report.notes += 1;
            }
            *at = frames.at();
        }
    }
}
