//! What people are told of a journal agrees with what a start would do, and nothing is touched.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::damage::{Disk, Events, disk, names, open};
use super::memfs::MemFs;
use super::support::Item;
use crate::fs::Fs;
use crate::inspect::{LogReport, dump, dump_on, logs, verify};
use crate::{AppendError, Journal, Options};

/// Everything that a dump shows, and its report.
fn look(fs: &MemFs) -> (Events, LogReport) {
    let before = names(fs);
    let mut events = Vec::new();
    let report = dump_on(fs, Path::new("/j/a"), 0, &mut |frame| {
        events.extend(frame.event.map(|n| (n, frame.payload.to_vec())));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(names(fs), before, "nothing is touched");
    (events, report)
}

/// What a start makes of it: the events that are left, and whether files were set aside.
fn start(fs: &MemFs, segment_bytes: u64) -> (usize, bool) {
    let (journal, _committer) = open(fs, segment_bytes);
    let log = journal.logs().pop().unwrap();
    (log.position().last as usize, !journal.repairs().is_empty())
}

fn agrees(disk: &Disk, fs: &MemFs, segment_bytes: u64, what: &str) -> LogReport {
    let (events, report) = look(fs);
    let (left, aside) = start(&fs.fork(1), segment_bytes);
    assert_eq!(report.is_damaged(), aside, "{what}: {report:?}");
    for (n, payload) in &events {
        assert_eq!(payload, &disk.events[*n as usize - 1].1, "{what}");
    }
    // Behind the damage there may be more to see than a start keeps.
    assert!(events.len() >= left, "{what}");
    if !aside {
        assert_eq!((events.len(), report.last()), (left, left as u64), "{what}");
    }
    report
}

#[test]
fn a_flip_of_any_bit_is_told_as_a_start_takes_it() {
    for segment_bytes in [1 << 20, 150] {
        for tidy in [false, true] {
            let disk = disk(segment_bytes, tidy);
            let report = agrees(&disk, &disk.fs, segment_bytes, "whole");
            assert_eq!((report.first(), report.last()), (1, 24));
            assert!(report.segments.iter().all(|s| s.torn == 0));
            for path in &disk.segments {
                let content = disk.fs.contents(path);
                for at in 0..content.len() * 8 {
                    let fs = disk.fs.fork(1);
                    let mut rotten = content.clone();
                    rotten[at / 8] ^= 1 << (at % 8);
                    fs.rot(path, rotten);
                    agrees(
                        &disk,
                        &fs,
                        segment_bytes,
                        &format!("bit {at}, tidy: {tidy}"),
                    );
                }
            }
        }
    }
}

#[test]
fn torn_ends_strangers_and_lost_segments_are_told() {
    for segment_bytes in [1 << 20, 150] {
        for tidy in [false, true] {
            let disk = disk(segment_bytes, tidy);
            let path = disk.segments.last().unwrap();
            let content = disk.fs.contents(path);
            for cut in 0..content.len() + 40 {
                let fs = disk.fs.fork(1);
                let mut torn = content.clone();
                torn.resize(cut, 7);
                fs.rot(path, torn);
                agrees(
                    &disk,
                    &fs,
                    segment_bytes,
                    &format!("cut at {cut}, tidy: {tidy}"),
                );
            }
        }
    }
    let disk = disk(150, true);
    for path in &disk.segments[1..disk.segments.len() - 1] {
        let fs = disk.fs.fork(1);
        fs.remove(path).unwrap();
        agrees(&disk, &fs, 150, "a lost segment");
    }
    // Set aside once, it is whole again and the old file is named.
    let fs = disk.fs.fork(1);
    let mut rotten = disk.fs.contents(&disk.segments[1]);
    rotten[60] ^= 1;
    fs.rot(&disk.segments[1], rotten);
    assert!(agrees(&disk, &fs, 150, "before").is_damaged());
    let (left, aside) = start(&fs, 150);
    assert!(aside);
    let (events, report) = look(&fs);
    assert_eq!((events.len(), report.is_damaged()), (left, false));
    assert!(!report.aside.is_empty());
}

#[test]
fn a_dump_begins_and_ends_where_it_is_told() {
    let disk = disk(150, true);
    let mut seen = Vec::new();
    dump_on(&disk.fs, Path::new("/j/a"), 5, &mut |frame| {
        seen.extend(frame.event);
        if seen.len() == 3 {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(seen, [6, 7, 8]);
}

#[test]
fn a_journal_in_use_is_never_called_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        segment_bytes: 300_000,
        ..Options::default()
    };
    let journal = Journal::<Item>::open(dir.path(), options).unwrap();
    let log = journal.create("a").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (log, stop) = (Arc::clone(&log), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                match log.append(Item::event(&vec![n as u8; (n % 900) as usize])) {
                    Ok(_) => n += 1,
                    Err(AppendError::Backlogged) => std::thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
                // Idle moments put marks that are overwritten.
                if n.is_multiple_of(50) {
                    std::thread::sleep(Duration::from_micros(300));
                }
            }
        })
    };
    assert_eq!(logs(dir.path()).unwrap(), [dir.path().join("a")]);
    assert_eq!(logs(&dir.path().join("a")).unwrap(), [dir.path().join("a")]);
    // Rounds over an empty journal show nothing, and on a busy machine the writer begins late.
    let deadline = Instant::now() + Duration::from_secs(60);
    while log.position().last == 0 {
        assert!(Instant::now() < deadline, "nothing was written");
        std::thread::yield_now();
    }
    let mut last = 0;
    for round in 0..200 {
        let durable = log.position().last;
        let mut next = 1;
        let report = dump(&dir.path().join("a"), 0, &mut |frame| {
            assert_eq!(frame.event, Some(next));
            next += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert!(!report.is_damaged(), "round {round}: {report:?}");
        assert!(next > durable, "round {round}: what is durable is shown");
        last = next - 1;
        if last > 20_000 {
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    assert!(last > 0);
    journal.close().unwrap();
    let report = verify(&dir.path().join("a")).unwrap();
    assert_eq!(report.last(), log.position().last);
    assert_eq!(report.epoch(), Some(log.epoch()));
}
