//! Several writers and readers of several logs on a real disk.
#![expect(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use journal::{AppendError, Entry, Journal, Log, Options, ReadError};

/// `count` numbers of one writer, in a row.
struct Words {
    writer: u8,
    first: u32,
    count: u32,
}

impl Entry for Words {
    fn is_event(&self) -> bool {
        true
    }

    fn merge(&mut self, next: Self) -> Result<(), Self> {
        if self.writer != next.writer || self.count >= 16 {
            return Err(next);
        }
        assert_eq!(self.first + self.count, next.first);
        self.count += next.count;
        Ok(())
    }

    fn size(&self) -> usize {
        100 * self.count as usize
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.writer);
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.resize(out.len() + self.count as usize, b'.');
    }
}

const WRITERS: u8 = 4;
const EACH: u32 = 3000;

/// Woken by what the committer says.
#[derive(Default)]
struct Bell {
    last: Mutex<u64>,
    rung: Condvar,
}

/// Follows a log from its beginning; returns what it has read of each writer.
fn follow(log: &Log<Words>, bell: &Bell, max_bytes: usize) -> u64 {
    let mut seen = [0; WRITERS as usize];
    let mut last = 0;
    while seen != [EACH; WRITERS as usize] {
        let batch = log.read(last, max_bytes).unwrap();
        for (n, payload) in &batch {
            assert_eq!(n, last + 1);
            last = n;
            let number = |at: usize| u32::from_le_bytes(payload[at..at + 4].try_into().unwrap());
            let (writer, first, count) = (usize::from(payload[0]), number(1), number(5));
            assert_eq!(first, seen[writer], "writer {writer} in order");
            assert_eq!(payload.len(), 9 + count as usize);
            seen[writer] += count;
        }
        assert!(
            last <= log.position().last,
            "nothing is seen before it is durable"
        );
        if batch.is_empty() {
            let mut told = bell.last.lock().unwrap();
            while *told <= last {
                told = bell.rung.wait(told).unwrap();
            }
        }
    }
    last
}

#[test]
fn readers_see_a_durable_prefix_without_holes() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        segment_bytes: 20_000,
        queue_bytes: 100_000,
        ..Options::default()
    };
    let journal = Journal::open(dir.path(), options).unwrap();
    let logs: Vec<_> = ["a", "b"]
        .iter()
        .map(|name| journal.create(name).unwrap())
        .collect();
    let bells: Vec<_> = logs
        .iter()
        .map(|log| {
            let bell = Arc::new(Bell::default());
            let rung = Arc::clone(&bell);
            log.on_durable(Box::new(move |position| {
                let mut last = rung.last.lock().unwrap();
                assert!(position.last >= *last, "never goes back");
                *last = position.last;
                rung.rung.notify_all();
            }));
            bell
        })
        .collect();
    let merged = AtomicU64::new(0);
    thread::scope(|scope| {
        for log in &logs {
            for writer in 0..WRITERS {
                scope.spawn(move || {
                    let mut first = 0;
                    while first < EACH {
                        match log.append(Words {
                            writer,
                            first,
                            count: 1,
                        }) {
                            Ok(_) => first += 1,
                            Err(AppendError::Backlogged) => thread::yield_now(),
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
        }
        for (log, bell) in logs.iter().zip(&bells) {
            for max_bytes in [0, 500, usize::MAX] {
                let merged = &merged;
                scope.spawn(move || {
                    let events = follow(log, bell, max_bytes);
                    merged.fetch_max(
                        u64::from(EACH) * u64::from(WRITERS) - events,
                        Ordering::Relaxed,
                    );
                });
            }
        }
    });
    assert!(merged.into_inner() > 0, "what waits behind a sync merges");
    journal.close().unwrap();
}

#[test]
fn trimming_under_readers_is_said_and_never_skips() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        segment_bytes: 2000,
        ..Options::default()
    };
    let journal = Journal::open(dir.path(), options).unwrap();
    let log = journal.create("a").unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for first in 0..20_000 {
                // Of another writer each time, so that nothing merges.
                let entry = Words {
                    writer: (first % 2) as u8,
                    first,
                    count: 1,
                };
                while log.append(Words { ..entry }) == Err(AppendError::Backlogged) {
                    thread::yield_now();
                }
                if first % 500 == 0 {
                    log.trim(log.position().last.saturating_sub(50)).unwrap();
                }
            }
            done.store(true, Ordering::Release);
        });
        for start in [0, u64::MAX] {
            let (log, done) = (&log, &done);
            scope.spawn(move || {
                let mut last = 0;
                let finished = || done.load(Ordering::Acquire) && log.position().last == 20_000;
                loop {
                    // One reader follows, the other always asks for the oldest.
                    let after = if start == 0 {
                        last
                    } else {
                        log.position().first - 1
                    };
                    match log.read(after, 300) {
                        Ok(batch) => {
                            for (k, (n, payload)) in batch.iter().enumerate() {
                                assert_eq!(n, after + 1 + k as u64);
                                let first = u32::from_le_bytes(payload[1..5].try_into().unwrap());
                                assert_eq!(u64::from(first) + 1, n);
                                last = n;
                            }
                            if batch.is_empty() && finished() {
                                return;
                            }
                            if start != 0 && finished() {
                                return;
                            }
                        }
                        Err(ReadError::Trimmed { first }) => {
                            assert!(first > after + 1);
                            last = first - 1;
                        }
                        Err(error) => panic!("{error:?}"),
                    }
                }
            });
        }
    });
}
