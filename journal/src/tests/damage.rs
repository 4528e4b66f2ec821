//! Bit rot: every byte of every segment, every length of a torn tail.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::memfs::MemFs;
use super::support::Item;
use crate::committer::Committer;
use crate::fs::Fs;
use crate::{Journal, OpenError, Options, ReadError};

pub(super) type Events = Vec<(u64, Vec<u8>)>;

pub(super) struct Disk {
    pub(super) fs: MemFs,
    epoch: u64,
    /// What readers have seen.
    pub(super) events: Events,
    pub(super) segments: Vec<PathBuf>,
}

fn options(segment_bytes: u64) -> Options {
    Options {
        segment_bytes,
        reserve_bytes: 0,
        ..Options::default()
    }
}

pub(super) fn open(fs: &MemFs, segment_bytes: u64) -> (Journal<Item>, Committer<Item>) {
    Journal::open_parts(
        Arc::new(fs.clone()),
        Path::new("/j"),
        options(segment_bytes),
    )
    .unwrap()
}

/// A log of batches of one to three entries; `tidy`: with the mark of an idle moment at its end.
pub(super) fn disk(segment_bytes: u64, tidy: bool) -> Disk {
    let fs = MemFs::new(5);
    let (journal, mut committer) = open(&fs, segment_bytes);
    let log = journal.create("a").unwrap();
    for i in 0..12u8 {
        for k in 0..=i % 3 {
            log.append(Item::event(&[i + 1, k, 0x81, 1, 0, 0, 0]))
                .unwrap();
        }
        log.append(Item::note(&[i])).unwrap();
        committer.step();
    }
    if tidy {
        committer.idle();
    }
    let events = events(&log);
    let epoch = log.epoch();
    let dir = Path::new("/j/a");
    let mut segments: Vec<_> = fs
        .list(dir)
        .unwrap()
        .into_iter()
        .map(|e| dir.join(e.name))
        .collect();
    segments.sort();
    Disk {
        fs,
        epoch,
        events,
        segments,
    }
}

fn events(log: &crate::Log<Item>) -> Events {
    let batch = log.read(log.position().first - 1, usize::MAX).unwrap();
    batch.iter().map(|(n, p)| (n, p.to_vec())).collect()
}

pub(super) fn names(fs: &MemFs) -> BTreeMap<String, Vec<u8>> {
    let dir = Path::new("/j/a");
    let list = fs.list(dir).unwrap();
    list.into_iter()
        .map(|e| (e.name.clone(), fs.contents(&dir.join(e.name))))
        .collect()
}

/// Opens a damaged disk twice, checks what holds for any damage, and returns how many events are
/// left and whether there is a new epoch.
fn recover(disk: &Disk, fs: &MemFs, segment_bytes: u64, what: &str) -> (usize, bool) {
    let before = names(fs);
    let (journal, mut committer) = open(fs, segment_bytes);
    let log = journal.logs().pop().expect("the log is there");
    let left = events(&log);
    assert_eq!(left, disk.events[..left.len()], "{what}: a true prefix");
    assert_eq!(log.position().last, left.len() as u64, "{what}");
    let renewed = log.epoch() != disk.epoch;
    assert_eq!(journal.repairs().len(), usize::from(renewed), "{what}");
    let after = names(fs);
    if renewed {
        // The damaged files are aside, byte by byte.
        let aside = &journal.repairs()[0].aside;
        assert!(!aside.is_empty(), "{what}");
        for path in aside {
            let bad = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(after[bad], before[&bad.replace(".bad", ".seg")], "{what}");
        }
    } else {
        assert!(after.keys().all(|name| name.ends_with(".seg")), "{what}");
    }
    // It goes on, and what is appended now stays.
    log.append(Item::event(b"after")).unwrap();
    committer.step();
    // And more, so that a segment ends with it where segments are small.
    for _ in 0..20 {
        log.append(Item::event(b"more")).unwrap();
        committer.step();
    }
    let mut expected = left.clone();
    let last = left.len() as u64;
    expected.push((last + 1, b"after".to_vec()));
    expected.extend((2..22).map(|n| (last + n, b"more".to_vec())));
    assert_eq!(events(&log), expected, "{what}");
    let epoch = log.epoch();
    drop((journal, committer, log));
    fs.power_loss();
    let (journal, _committer) = open(fs, segment_bytes);
    assert!(journal.repairs().is_empty(), "{what}: repaired once");
    let log = journal.logs().pop().unwrap();
    assert_eq!((events(&log), log.epoch()), (expected, epoch), "{what}");
    (left.len(), renewed)
}

#[test]
fn a_flip_of_any_bit_is_found_and_told() {
    for segment_bytes in [1 << 20, 150] {
        for tidy in [false, true] {
            let disk = disk(segment_bytes, tidy);
            assert_eq!(disk.events.len(), 24);
            assert_eq!(disk.segments.len() > 2, segment_bytes == 150);
            let mut quiet = 0;
            for (s, path) in disk.segments.iter().enumerate() {
                let content = disk.fs.contents(path);
                for at in 0..content.len() * 8 {
                    let fs = disk.fs.fork(1);
                    let mut rotten = content.clone();
                    rotten[at / 8] ^= 1 << (at % 8);
                    fs.rot(path, rotten);
                    let what = format!("bit {at} of segment {s}, tidy: {tidy}");
                    let (left, renewed) = recover(&disk, &fs, segment_bytes, &what);
                    if renewed {
                        continue;
                    }
                    // Cut off as a torn tail: only the very last batch can be taken for one, and
                    // after a mark only the mark itself.
                    quiet += 1;
                    assert_eq!(s, disk.segments.len() - 1, "{what}");
                    let kept = if tidy { 24 } else { 21 };
                    assert!(left >= kept, "{what}: {left} left");
                }
            }
            assert!(quiet > 0);
        }
    }
}

#[test]
fn a_tail_torn_anywhere_in_the_last_batch_is_cut_off() {
    for segment_bytes in [1 << 20, 150] {
        let disk = disk(segment_bytes, false);
        let path = disk.segments.last().unwrap();
        let content = disk.fs.contents(path);
        // The last batch is three events of 16 bytes and a note of 10.
        for cut in content.len() - 58..content.len() {
            let fs = disk.fs.fork(1);
            fs.rot(path, content[..cut].to_vec());
            let what = format!("cut at {cut}");
            let (left, renewed) = recover(&disk, &fs, segment_bytes, &what);
            assert!(!renewed, "{what}");
            assert_eq!(left, 21 + (cut - (content.len() - 58)) / 16, "{what}");
        }
    }
}

#[test]
fn the_lost_end_of_an_inner_segment_and_a_lost_segment_are_damage() {
    let disk = disk(150, true);
    let inner = &disk.segments[1];
    let content = disk.fs.contents(inner);
    for cut in 0..content.len() {
        let fs = disk.fs.fork(1);
        fs.rot(inner, content[..cut].to_vec());
        let (_, renewed) = recover(&disk, &fs, 150, &format!("cut at {cut}"));
        // The mark at the very end is not needed where another segment follows.
        assert!(renewed, "cut at {cut}");
    }
    let fs = disk.fs.fork(1);
    fs.remove(inner).unwrap();
    let (left, renewed) = recover(&disk, &fs, 150, "a lost segment");
    assert!(renewed && left > 0);
}

#[test]
fn a_crash_in_the_middle_of_a_repair_is_finished() {
    let disk = disk(150, true);
    let path = &disk.segments[1];
    let mut rotten = disk.fs.contents(path);
    let late = rotten.len() - 20;
    rotten[late] ^= 1;
    let calls = {
        let fs = disk.fs.fork(1);
        fs.rot(path, rotten.clone());
        drop(open(&fs, 150));
        fs.calls()
    };
    // The events of the first segment and those in front of the damage.
    let whole = {
        let fs = disk.fs.fork(1);
        fs.rot(path, rotten.clone());
        recover(&disk, &fs, 150, "uninterrupted").0
    };
    let name = path.file_name().unwrap().to_str().unwrap();
    let (first, _) = crate::segment::parse_name(name, ".seg").unwrap();
    assert!(whole as u64 > first, "more than the segments before");
    for (at, seed) in (0..calls).flat_map(|at| (0..8).map(move |seed| (at, seed))) {
        let fs = disk.fs.fork(100 + seed);
        fs.rot(path, rotten.clone());
        fs.inject(at, super::memfs::Fault::Eio);
        let opened =
            Journal::<Item>::open_parts(Arc::new(fs.clone()), Path::new("/j"), options(150));
        drop(opened);
        fs.disarm();
        if seed == 0 {
            fs.kill();
        } else {
            fs.power_loss();
        }
        let (journal, _committer) = open(&fs, 150);
        let log = journal.logs().pop().unwrap();
        assert_eq!(events(&log), disk.events[..whole], "call {at}, seed {seed}");
        assert_ne!(log.epoch(), disk.epoch, "call {at}");
        assert!(names(&fs).keys().any(|n| n.ends_with(".bad")), "call {at}");
    }
}

#[test]
fn what_stands_behind_a_mark_is_cut_off() {
    for segment_bytes in [1 << 20, 150] {
        let disk = disk(segment_bytes, true);
        let path = disk.segments.last().unwrap();
        for len in 1..200 {
            let fs = disk.fs.fork(1);
            let mut content = disk.fs.contents(path);
            content.resize(content.len() + len, (len % 5) as u8);
            fs.rot(path, content);
            let (left, renewed) = recover(&disk, &fs, segment_bytes, &format!("{len} bytes"));
            assert_eq!((left, renewed), (24, false));
        }
    }
}

#[test]
fn what_a_failed_creation_left_does_not_matter() {
    let disk = disk(150, true);
    let (journal, _committer) = open(&disk.fs, 150);
    disk.fs.make_dir(Path::new("/j/.new-b")).unwrap();
    disk.fs
        .open(Path::new("/j/.new-b/x"), crate::fs::Mode::Create)
        .unwrap();
    journal.create("b").unwrap();
    assert!(
        disk.fs
            .list(Path::new("/j/b"))
            .unwrap()
            .iter()
            .all(|e| e.name != "x")
    );
}

#[test]
fn a_newer_version_is_refused_untouched() {
    let disk = disk(150, true);
    let path = disk.segments.last().unwrap();
    let mut content = disk.fs.contents(path);
    content[8] = 2;
    let crc = crc32c::crc32c(&content[..44]);
    content[44..48].copy_from_slice(&crc.to_le_bytes());
    disk.fs.rot(path, content);
    let before = names(&disk.fs);
    let opened =
        Journal::<Item>::open_parts(Arc::new(disk.fs.clone()), Path::new("/j"), options(150));
    let Err(error @ OpenError::NewerVersion { found: 2, .. }) = opened.map(|_| ()) else {
        panic!("opened")
    };
    assert!(error.to_string().contains("version 2"), "{error}");
    assert_eq!(names(&disk.fs), before);
}

#[test]
fn damage_under_a_running_journal_is_never_read_as_data() {
    let disk = disk(1 << 20, true);
    let path = &disk.segments[0];
    let content = disk.fs.contents(path);
    for at in 48..content.len() - 9 {
        let fs = disk.fs.fork(1);
        let (journal, _committer) = open(&fs, 1 << 20);
        let log = journal.logs().pop().unwrap();
        let mut rotten = content.clone();
        rotten[at] ^= 0x10;
        fs.rot(path, rotten);
        let mut errors = 0;
        for after in 0..24 {
            match log.read(after, 0) {
                Ok(batch) => {
                    let (n, payload) = batch.iter().next().unwrap();
                    assert_eq!(
                        (n, payload),
                        (after + 1, &disk.events[after as usize].1[..])
                    );
                }
                Err(ReadError::Damaged { .. }) => errors += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(errors, 1, "byte {at}: exactly the event it belongs to");
    }
}

#[test]
fn strangers_in_the_folder_are_left_alone() {
    let disk = disk(150, true);
    let fs = disk.fs.fork(1);
    for dir in ["/j/lost+found", "/j/empty", "/j/strange", "/j/.new-half"] {
        fs.make_dir(Path::new(dir)).unwrap();
    }
    for file in [
        "/j/strange/state.json",
        "/j/note.txt",
        "/j/a/decisions.md",
        "/j/.new-half/x",
    ] {
        fs.open(Path::new(file), crate::fs::Mode::Create).unwrap();
    }
    let (journal, _committer) = open(&fs, 150);
    assert_eq!(journal.logs().len(), 1);
    let left: Vec<_> = fs
        .list(Path::new("/j"))
        .unwrap()
        .into_iter()
        .map(|e| e.name)
        .collect();
    assert_eq!(left, ["a", "lost+found", "note.txt", "strange"]);
    // A log of the name of a folder that holds something else is not made.
    assert!(journal.create("strange").is_err());
    journal.create("empty").unwrap();
}
