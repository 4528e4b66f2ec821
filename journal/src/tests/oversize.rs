//! An entry that comes out larger than a frame may be fails alone.

use std::sync::Arc;

use super::memfs::MemFs;
use crate::committer::Committer;
use crate::{Entry, Health, Journal, MAX_PAYLOAD, Options};

/// A payload of so many bytes, whatever its size says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Blown {
    bytes: usize,
    stand_in: Option<usize>,
}

impl Entry for Blown {
    fn is_event(&self) -> bool {
        true
    }

    fn merge(&mut self, next: Self) -> Result<(), Self> {
        Err(next)
    }

    fn size(&self) -> usize {
        10
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.resize(out.len() + self.bytes, b'x');
    }

    fn stand_in(&self, len: usize) -> Option<Self> {
        assert_eq!(len, self.bytes);
        self.stand_in.map(|bytes| Self {
            bytes,
            stand_in: None,
        })
    }
}

fn blown(bytes: usize, stand_in: Option<usize>) -> Blown {
    Blown { bytes, stand_in }
}

fn open(fs: &MemFs) -> (Journal<Blown>, Committer<Blown>) {
    let options = Options {
        reserve_bytes: 0,
        ..Options::default()
    };
    Journal::open_parts(Arc::new(fs.clone()), "/j".as_ref(), options).unwrap()
}

const HUGE: usize = MAX_PAYLOAD + 1;

#[test]
fn what_is_around_it_becomes_durable_and_it_is_told() {
    for order in [[HUGE, 3, 4], [3, HUGE, 4], [3, 4, HUGE]] {
        let fs = MemFs::new(1);
        let (journal, mut committer) = open(&fs);
        let (log, other) = (journal.create("a").unwrap(), journal.create("b").unwrap());
        let tickets = order.map(|bytes| log.append(blown(bytes, None)).unwrap());
        other.append(blown(5, None)).unwrap();
        committer.step();
        assert_eq!(journal.health(), Health::Ok);
        assert_eq!((log.position().last, log.position().ticket), (2, 3));
        assert_eq!(other.position().last, 1);
        let refused = tickets.map(|ticket| log.refused(ticket));
        assert_eq!(refused, order.map(|bytes| bytes == HUGE));
        committer.idle();
        // What follows is written as ever, and a start finds no damage.
        log.append(blown(6, None)).unwrap();
        committer.step();
        drop((journal, committer));
        fs.power_loss();
        let (journal, _committer) = open(&fs);
        assert_eq!(journal.repairs(), []);
        let log = &journal.logs()[0];
        let batch = log.read(0, usize::MAX).unwrap();
        let lengths: Vec<_> = batch.iter().map(|(_, p)| p.len()).collect();
        assert_eq!(lengths, [3, 4, 6]);
    }
}

#[test]
fn a_stand_in_takes_its_place_unless_it_is_too_large_too() {
    let fs = MemFs::new(1);
    let (journal, mut committer) = open(&fs);
    let log = journal.create("a").unwrap();
    let stood_in = log.append(blown(HUGE, Some(7))).unwrap();
    let neither = log.append(blown(HUGE, Some(HUGE))).unwrap();
    committer.step();
    assert_eq!(journal.health(), Health::Ok);
    assert!(!log.refused(stood_in) && log.refused(neither));
    let batch = log.read(0, usize::MAX).unwrap();
    assert_eq!(batch.iter().map(|(_, p)| p.len()).collect::<Vec<_>>(), [7]);
}

#[test]
fn a_batch_of_nothing_else_leaves_nothing() {
    let fs = MemFs::new(1);
    let (journal, mut committer) = open(&fs);
    let log = journal.create("a").unwrap();
    let ticket = log.append(blown(HUGE, None)).unwrap();
    committer.step();
    committer.idle();
    assert_eq!((log.position().last, log.position().ticket), (0, ticket));
    assert_eq!(log.queued_bytes(), 0);
    assert!(log.refused(ticket));
}
