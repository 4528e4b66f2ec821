use std::sync::mpsc;

use super::support::Item;
use crate::{AppendError, Batch, CreateError, Health, Journal, OpenError, Options, ReadError};

fn payloads(batch: &Batch) -> Vec<(u64, Vec<u8>)> {
    batch.iter().map(|(n, p)| (n, p.to_vec())).collect()
}

fn wait(log: &crate::Log<Item>, ticket: u64) {
    let (tx, rx) = mpsc::channel();
    log.on_durable(Box::new(move |p| {
        let _ = tx.send(p.ticket);
    }));
    while log.position().ticket < ticket {
        rx.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
    }
}

#[test]
fn what_is_appended_is_read_also_after_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), Options::default()).unwrap();
    let log = journal.create("a").unwrap();
    let epoch = log.epoch();
    log.append(Item::note(b"n")).unwrap();
    for i in 0..10u8 {
        log.append(Item::event(&[i])).unwrap();
    }
    let ticket = log.append_urgent(Item::note(b"end")).unwrap();
    wait(&log, ticket);
    assert_eq!(log.position().last, 10);
    assert_eq!(log.queued_bytes(), 0);
    let expected: Vec<_> = (4..=10u64).map(|n| (n, vec![n as u8 - 1])).collect();
    assert_eq!(payloads(&log.read(3, usize::MAX).unwrap()), expected);
    assert_eq!(payloads(&log.read(3, 0).unwrap()), expected[..1]);
    assert!(log.read(10, 100).unwrap().is_empty());
    journal.close().unwrap();
    assert_eq!(log.append(Item::event(b"x")), Err(AppendError::Closed));
    assert_eq!(log.read(0, usize::MAX).unwrap().last(), 10);

    let journal = Journal::<Item>::open(dir.path(), Options::default()).unwrap();
    assert!(journal.repairs().is_empty());
    let logs = journal.logs();
    assert_eq!(
        (logs.len(), logs[0].name(), logs[0].epoch()),
        (1, "a", epoch)
    );
    assert_eq!(payloads(&logs[0].read(3, usize::MAX).unwrap()), expected);
    let mut seen = Vec::new();
    logs[0]
        .scan(&mut |f| seen.push((f.event, f.payload.to_vec())))
        .unwrap();
    assert_eq!(seen.len(), 12);
    assert_eq!(seen[0], (None, b"n".to_vec()));
    assert_eq!(seen[1], (Some(1), vec![0]));
    assert_eq!(seen[11], (None, b"end".to_vec()));
    assert_eq!(journal.health(), Health::Ok);
}

#[test]
fn a_second_opener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let first = Journal::<Item>::open(dir.path(), Options::default()).unwrap();
    let Err(OpenError::Locked { path }) = Journal::<Item>::open(dir.path(), Options::default())
    else {
        panic!("opened twice")
    };
    assert_eq!(path, dir.path().join(".lock"));
    drop(first);
    Journal::<Item>::open(dir.path(), Options::default()).unwrap();
}

#[test]
fn names_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::<Item>::open(dir.path(), Options::default()).unwrap();
    let long = "x".repeat(129);
    for name in [
        "", ".a", "-a", "a/b", "..", "a..b", "a b", "a\0", "ä", "a\n", &long,
    ] {
        assert!(
            matches!(journal.create(name), Err(CreateError::InvalidName)),
            "{name:?}"
        );
    }
    for name in ["a", "A.b_c-9", "0", &long[..128]] {
        journal.create(name).unwrap();
        assert!(
            matches!(journal.create(name), Err(CreateError::Exists)),
            "{name:?}"
        );
    }
}

#[test]
fn trimming_drops_whole_segments_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        segment_bytes: 200,
        ..Options::default()
    };
    let journal = Journal::open(dir.path(), options.clone()).unwrap();
    let log = journal.create("t").unwrap();
    for i in 0..100u8 {
        log.append(Item::event(&[i; 20])).unwrap();
    }
    let ticket = log.append(Item::note(b"")).unwrap();
    wait(&log, ticket);
    let all = log.read(0, usize::MAX).unwrap();
    assert_eq!(all.iter().count(), 100);
    log.trim(50).unwrap();
    let first = log.position().first;
    assert!((40..=50).contains(&first), "{first}");
    assert!(matches!(log.read(0, 1), Err(ReadError::Trimmed { first: f }) if f == first));
    assert!(matches!(
        log.read(first - 2, 1),
        Err(ReadError::Trimmed { .. })
    ));
    assert_eq!(log.read(first - 1, 1).unwrap().last(), first);
    log.trim(10).unwrap();
    assert_eq!(log.position().first, first);
    log.trim(u64::MAX).unwrap();
    assert_eq!(log.position().last, 100);
    let position = log.position();
    journal.close().unwrap();
    let journal = Journal::<Item>::open(dir.path(), options).unwrap();
    let reopened = journal.logs()[0].position();
    assert_eq!(
        (reopened.first, reopened.last),
        (position.first, position.last)
    );
}

#[test]
fn entries_that_wait_merge_and_the_queue_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        queue_bytes: 100,
        reserve_bytes: 50,
        ..Options::default()
    };
    let fs = std::sync::Arc::new(crate::fs::RealFs);
    let (journal, mut committer) = Journal::open_parts(fs, dir.path(), options).unwrap();
    let log = journal.create("m").unwrap();
    for i in 0..10u8 {
        assert_eq!(log.append(Item::text(&[i])).unwrap(), u64::from(i) + 1);
    }
    log.append(Item::event(&[9; 80])).unwrap();
    assert_eq!(log.queued_bytes(), 90);
    assert_eq!(
        log.append(Item::event(&[9; 11])),
        Err(AppendError::Backlogged)
    );
    log.append_urgent(Item::event(&[7; 11])).unwrap();
    assert_eq!(
        log.append_urgent(Item::event(&[9; 50])),
        Err(AppendError::Backlogged)
    );
    assert_eq!(log.position().last, 0);
    committer.step();
    assert_eq!(log.queued_bytes(), 0);
    assert_eq!((log.position().last, log.position().ticket), (3, 12));
    let batch = log.read(0, usize::MAX).unwrap();
    assert_eq!(
        batch.iter().next(),
        Some((1, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9][..]))
    );
    let huge = Item::event(&vec![0; crate::MAX_ENTRY + 1]);
    assert_eq!(log.append(huge), Err(AppendError::TooLarge));
    let large = Item::event(&vec![0; crate::MAX_ENTRY]);
    log.append(large).unwrap();
}

#[test]
fn a_scan_goes_on_where_the_last_one_ended() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        segment_bytes: 200,
        ..Options::default()
    };
    let fs = std::sync::Arc::new(crate::fs::RealFs);
    let (journal, mut committer) = Journal::open_parts(fs, dir.path(), options).unwrap();
    let log = journal.create("s").unwrap();
    let (mut mark, mut seen, mut all) = (crate::Mark::default(), Vec::new(), Vec::new());
    for i in 0..60u8 {
        if i % 3 > 0 {
            log.append(Item::event(&[i; 20])).unwrap();
        } else {
            log.append(Item::note(&[i])).unwrap();
        }
        if i % 7 == 0 {
            committer.step();
            committer.idle();
        }
        if i % 5 == 0 {
            log.scan_on(&mut mark, &mut |f| seen.push((f.event, f.payload.to_vec())))
                .unwrap();
        }
        if i == 30 {
            // What was seen may go; the mark is still good.
            log.trim(10).unwrap();
        }
    }
    committer.step();
    log.scan_on(&mut mark, &mut |f| seen.push((f.event, f.payload.to_vec())))
        .unwrap();
    log.scan(&mut |f| all.push((f.event, f.payload.to_vec())))
        .unwrap();
    assert_eq!(seen.len(), 60);
    assert!(all.len() < 60);
    assert_eq!(seen[60 - all.len()..], all);
    // A mark in what was trimmed away says so.
    let mut old = crate::Mark::default();
    let count = std::cell::Cell::new(0);
    log.scan_on(&mut old, &mut |_| count.set(count.get() + 1))
        .unwrap();
    assert_eq!(count.get(), all.len());
}
