//! What cannot be kept is said by a gap, and the rest follows.

use super::{
    super::reader::Reader,
    created, id,
    readers::{add, reader, text, upto},
    turn, world,
};
use crate::store::Store;
use contract::{Cursor, event::GapReason};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Files below a folder whose name ends so.
fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, end));
        } else if path.to_string_lossy().ends_with(end) {
            found.push(path);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_inside_is_kept_aside_and_told_to_whoever_comes_with_an_old_cursor() {
    let (dir, _disk, store) = world();
    let (session, _running) = store.create(created("oak"), None, turn(1)).await.unwrap();
    for n in 1..=20 {
        add(&store, &session, text(n, 500)).await;
    }
    let last = session.view().borrow().position.last;
    let old = Cursor {
        epoch: session.epoch(),
        n: last,
    };
    drop((session, store));

    let segments = files(&dir.path().join("oak"), ".seg");
    let [segment] = segments.as_slice() else {
        panic!("{segments:?}")
    };
    let mut bytes = fs::read(segment).unwrap();
    // In the text of an event about half-way: many acknowledged ones are behind it.
    let at = bytes.len() / 2;
    bytes[at] ^= 0x20;
    fs::write(segment, bytes).unwrap();

    let (store, _) = Store::open(dir.path()).unwrap();
    assert_eq!(files(dir.path(), ".bad").len(), 1, "kept for people");
    let session = store.get(&id("oak")).unwrap();
    let left = session.view().borrow().position.last;
    let (mut reader, gap) = Reader::open(Arc::clone(&session), Some(old)).unwrap();
    let gap = gap.expect("events are missing");
    assert_eq!((gap.reason, gap.from), (GapReason::EpochChanged, 1));
    assert!((1..last).contains(&left), "{left} of {last} are left");
    assert_ne!(session.epoch(), old.epoch);
    // What is left comes under its new name, from the first one on.
    let sent = String::from_utf8(upto(&mut reader, left).await).unwrap();
    let ids = sent.lines().filter_map(|line| line.strip_prefix("id: "));
    let wanted = (gap.to + 1..=left).map(|n| format!("{}-{n}", session.epoch()));
    assert!(ids.eq(wanted), "{sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_trimmed_is_one_gap_and_then_the_rest() {
    let (_dir, _disk, store) = world();
    let (session, _running) = store.create(created("ash"), None, turn(1)).await.unwrap();
    // More than a segment of 64 MiB.
    for n in 1..=70 {
        add(&store, &session, text(n, 1 << 20)).await;
    }
    let last = session.view().borrow().position.last;
    session.log().trim(last).unwrap();
    let first = session.log().position().first;
    assert!((2..=last).contains(&first), "{first}");

    let behind = Cursor {
        epoch: session.epoch(),
        n: 1,
    };
    for (cursor, from) in [(None, 1), (Some(behind), 2)] {
        let (mut reader, gap) = Reader::open(Arc::clone(&session), cursor).unwrap();
        let gap = gap.expect("events are missing");
        let wanted = (GapReason::Trimmed, from, first - 1);
        assert_eq!((gap.reason, gap.from, gap.to), wanted);
        let sent = upto(&mut reader, last).await;
        let head = format!("id: {}-{first}\n", session.epoch());
        assert!(sent.starts_with(head.as_bytes()));
    }
    // At the border nothing is missing.
    assert_eq!(reader(&session, first - 1).after(), first - 1);
}
