//! Readers near the end of a session, who read for one another.

use super::{super::reader::Reader, Disk, created, end, turn, world};
use crate::store::{
    Store,
    session::{Session, now},
};
use contract::{
    Cursor, Event, EventBody,
    event::{MAIN_AGENT, Output, OutputSource},
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::task::JoinSet;

const LONG: Duration = Duration::from_secs(20);

/// A text that joins no other.
pub(super) fn text(n: u64, length: usize) -> Event {
    Event {
        turn: 1,
        ts: now(),
        agent: MAIN_AGENT.into(),
        body: EventBody::Output(Output {
            text: "x".repeat(length),
            part_id: format!("prt_{n}"),
            offset: 0,
            source: OutputSource::Assistant,
            replace: false,
        }),
    }
}

pub(super) async fn add(store: &Store, session: &Session, event: Event) {
    let ticket = session.append(event).unwrap();
    store.durable(session, ticket).await.unwrap();
}

pub(super) fn reader(session: &Arc<Session>, n: u64) -> Reader {
    let epoch = session.epoch();
    let (reader, gap) = Reader::open(Arc::clone(session), Some(Cursor { epoch, n })).unwrap();
    assert!(gap.is_none());
    reader
}

/// Reads up to event `last`, as bytes that were sent.
pub(super) async fn upto(reader: &mut Reader, last: u64) -> Vec<u8> {
    let mut view = reader.session().view();
    let mut sent = Vec::new();
    let read = async {
        while reader.after() < last {
            view.borrow_and_update();
            match reader.next_sse(None).await.unwrap() {
                Some(piece) => sent.extend_from_slice(&piece.bytes),
                None => view.changed().await.unwrap(),
            }
        }
    };
    tokio::time::timeout(LONG, read)
        .await
        .expect("it comes to the end");
    sent
}

fn reads(disk: &Disk) -> usize {
    disk.0.reads.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_readers_at_the_end_read_the_journal_about_once() {
    const READERS: usize = 100;
    const ROUNDS: u64 = 20;
    let (_dir, disk, store) = world();
    let (session, _running) = store.create(created("oak"), None, turn(1)).await.unwrap();
    let begin = session.view().borrow().position.last;
    let mut readers: Vec<_> = (0..READERS).map(|_| reader(&session, begin)).collect();
    let before = reads(&disk);
    for round in 1..=ROUNDS {
        let last = begin + round;
        let mut reading = JoinSet::new();
        for mut reader in readers.drain(..) {
            reading.spawn(async move { (upto(&mut reader, last).await, reader) });
        }
        add(&store, &session, text(last, 100)).await;
        let mut sent = Vec::new();
        for (bytes, reader) in reading.join_all().await {
            readers.push(reader);
            sent.push(bytes);
        }
        assert!(sent.iter().all(|bytes| *bytes == sent[0]));
        assert!(
            sent[0]
                .starts_with(format!("id: {}-{last}\nevent: output\n", session.epoch()).as_bytes())
        );
    }
    let read = reads(&disk) - before;
    // Others read now and then for what people read; without sharing it would be 2,000.
    assert!((ROUNDS as usize..200).contains(&read), "{read} reads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_leaves_while_it_reads_for_all_holds_nobody_up() {
    let (_dir, disk, store) = world();
    let (session, _running) = store.create(created("ash"), None, turn(1)).await.unwrap();
    let begin = session.view().borrow().position.last;
    add(&store, &session, text(1, 100)).await;
    let (mut leaves, mut stays) = (reader(&session, begin), reader(&session, begin));
    disk.stall_reads(true);
    let stays = {
        let reading = leaves.next_sse(None);
        tokio::pin!(reading);
        let hangs = tokio::time::timeout(Duration::from_millis(200), &mut reading).await;
        assert!(hangs.is_err(), "it hangs at the disk");
        let mut stays = tokio::spawn(async move { upto(&mut stays, begin + 1).await });
        let waits = tokio::time::timeout(Duration::from_millis(200), &mut stays).await;
        assert!(waits.is_err(), "the other one waits for it");
        stays
    };
    disk.stall_reads(false);
    assert!(!stays.await.unwrap().is_empty());
    assert_eq!(leaves.after(), begin, "who leaves has nothing");
    assert!(!upto(&mut leaves, begin + 1).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_reader_gets_the_same_bytes_however_fast_it_is() {
    const EVENTS: u64 = 3000;
    let (_dir, _disk, store) = world();
    let (session, _running) = store.create(created("elm"), None, turn(1)).await.unwrap();
    let begin = session.view().borrow().position.last;
    let last = begin + EVENTS;
    let mut readers = JoinSet::new();
    for seed in 1..=24_u64 {
        let session = Arc::clone(&session);
        readers.spawn(async move {
            let mut seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut random = move |below: u64| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                seed % below
            };
            let mut sent = Vec::new();
            let mut at = begin;
            // Leaves after some events and comes back with its cursor, now and then late.
            while at < last {
                let mut reader = reader(&session, at);
                let target = last.min(at + 1 + random(1500));
                sent.extend(upto(&mut reader, target).await);
                at = reader.after();
                for _ in 0..random(200) {
                    tokio::task::yield_now().await;
                }
            }
            sent
        });
    }
    for n in 1..=EVENTS {
        // Small ones, some larger than a shared read, one larger than all that is kept.
        let length = match n {
            700 => 300_000,
            n if n.is_multiple_of(97) => 70_000,
            n => 10 + (n % 50) as usize,
        };
        let ticket = session.append(text(n, length)).unwrap();
        if n.is_multiple_of(7) {
            store.durable(&session, ticket).await.unwrap();
        }
    }
    let sent = readers.join_all().await;
    let mut whole = Vec::new();
    let mut pages = reader(&session, begin);
    while pages.after() < last {
        for (n, json) in pages.page(500).await.unwrap() {
            let head = format!("id: {}-{n}\nevent: output\ndata: ", session.epoch());
            whole.extend_from_slice(head.as_bytes());
            whole.extend_from_slice(&json);
            whole.extend_from_slice(b"\n\n");
        }
    }
    for (n, sent) in sent.iter().enumerate() {
        assert!(*sent == whole, "reader {n} got other bytes");
    }
    assert_eq!(session.tail().events(), None, "kept for nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_holds_one_piece_at_most() {
    let (_dir, _disk, store) = world();
    let (session, _running) = store.create(created("yew"), None, turn(1)).await.unwrap();
    let begin = session.view().borrow().position.last;
    for n in 1..=2 {
        add(&store, &session, text(n, 20_000)).await;
    }
    let mut reader = reader(&session, begin);
    let first = reader.next_sse(None).await.unwrap().unwrap();
    assert_eq!(reader.after(), begin + 1, "one that is larger than a piece");
    let waits = tokio::time::timeout(Duration::from_millis(200), reader.next_sse(None)).await;
    assert!(waits.is_err(), "the first one is still there");
    drop(first);
    let second = tokio::time::timeout(LONG, reader.next_sse(None)).await;
    assert!(second.unwrap().unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_stop_at_a_large_event_hold_it_once() {
    let (_dir, disk, store) = world();
    let (session, _running) = store.create(created("fir"), None, turn(1)).await.unwrap();
    let begin = session.view().borrow().position.last;
    add(&store, &session, text(0, 1 << 20)).await;
    // Far enough for nobody to share by being near.
    for n in 1..=1100 {
        session.append(text(n, 10)).unwrap();
    }
    add(&store, &session, text(1101, 10)).await;
    let before = reads(&disk);
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut reader = reader(&session, begin);
        let piece = reader.next_sse(None).await.unwrap().unwrap();
        held.push((piece.bytes.as_ptr(), piece, reader));
    }
    assert!(held.iter().all(|(at, ..)| *at == held[0].0), "copies");
    let read = reads(&disk) - before;
    assert!(read < 10, "{read} reads");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_ends_with_the_turn_that_the_reader_came_for() {
    let (_dir, _disk, store) = world();
    let (session, running) = store.create(created("elder"), None, turn(1)).await.unwrap();
    let begin = session.view().borrow().position.last;
    end(&store, &session, &running).await;
    let first = session.view().borrow().position.last;
    let running = store.begin_turn(&session, turn(2)).await.unwrap();
    session
        .append(Event {
            turn: 2,
            ..text(1, 10)
        })
        .unwrap();
    end(&store, &session, &running).await;
    let second = session.view().borrow().position.last;
    assert!(second > first + 1);
    // One run holds both ends.
    for (until, last, ends) in [
        (Some(1), first, true),
        (Some(2), second, true),
        (Some(3), second, false),
        (None, second, false),
    ] {
        let mut reader = reader(&session, begin);
        let piece = reader.next_sse(until).await.unwrap().unwrap();
        assert_eq!((piece.last, piece.ends), (last, ends), "until {until:?}");
    }
}
