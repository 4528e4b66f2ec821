//! A log beside a plain list: the same calls, the same answers.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::memfs::MemFs;
use super::support::Item;
use crate::{Journal, Options, ReadError};

#[derive(Clone, Debug)]
enum Call {
    Append(Item),
    Step,
    Idle,
    Read { after: u64, max: usize },
    Trim(u64),
    Reopen,
    Kill,
}

fn call() -> impl Strategy<Value = Call> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..40);
    let item = (bytes, 0..3).prop_map(|(bytes, kind)| match kind {
        0 => Item::event(&bytes),
        1 => Item::note(&bytes),
        _ => Item::text(&bytes),
    });
    prop_oneof![
        10 => item.prop_map(Call::Append),
        4 => Just(Call::Step),
        2 => Just(Call::Idle),
        4 => (0..60u64, 0..300usize).prop_map(|(after, max)| Call::Read { after, max }),
        1 => (0..60u64).prop_map(Call::Trim),
        1 => Just(Call::Reopen),
        1 => Just(Call::Kill),
    ]
}

/// What a log is, said without a disk.
#[derive(Default)]
struct Plain {
    durable: Vec<Item>,
    waiting: Vec<Item>,
}

impl Plain {
    fn append(&mut self, item: Item) {
        use crate::Entry;
        let back = match self.waiting.last_mut() {
            Some(tail) => tail.merge(item).err(),
            None => Some(item),
        };
        self.waiting.extend(back);
    }

    fn events(&self) -> Vec<(u64, &[u8])> {
        use crate::Entry;
        let events = self.durable.iter().filter(|item| item.is_event());
        (1..)
            .zip(events)
            .map(|(n, item)| (n, &item.bytes[..]))
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_log_is_a_list(
        calls in proptest::collection::vec(call(), 1..120),
        segment_bytes in prop_oneof![Just(0u64), Just(120), Just(1000), Just(1 << 20)],
    ) {
        let fs = MemFs::new(1);
        let open = || {
            let options = Options { segment_bytes, ..Options::default() };
            Journal::<Item>::open_parts(Arc::new(fs.clone()), Path::new("/j"), options).unwrap()
        };
        let (mut journal, mut committer) = open();
        let mut log = journal.create("a").unwrap();
        let epoch = log.epoch();
        let mut plain = Plain::default();
        let mut first = 1;
        for call in calls {
            match call {
                Call::Append(item) => {
                    log.append(item.clone()).unwrap();
                    plain.append(item);
                }
                Call::Step => {
                    committer.step();
                    plain.durable.append(&mut plain.waiting);
                }
                Call::Idle => committer.idle(),
                Call::Read { after, max } => {
                    let events = plain.events();
                    let last = events.len() as u64;
                    match log.read(after, max) {
                        Ok(batch) => {
                            prop_assert!(after + 1 >= first || after >= last);
                            let begin = (after as usize).min(events.len());
                            let got: Vec<_> = batch.iter().collect();
                            prop_assert_eq!(&got[..], &events[begin..begin + got.len()]);
                            prop_assert_eq!(got.is_empty(), after >= last);
                            let on_disk: usize = got.iter().map(|(_, p)| p.len() + 9).sum();
                            prop_assert!(got.len() <= 1 || on_disk <= max);
                        }
                        Err(ReadError::Trimmed { first: said }) => {
                            prop_assert_eq!(said, first);
                            prop_assert!(after + 1 < first);
                        }
                        Err(error) => prop_assert!(false, "{}", error),
                    }
                }
                Call::Trim(before) => {
                    log.trim(before).unwrap();
                    let now = log.position().first;
                    prop_assert!(now >= first && now <= before.max(first));
                    first = now;
                }
                Call::Reopen | Call::Kill => {
                    if matches!(call, Call::Reopen) {
                        committer.finish().unwrap();
                        plain.durable.append(&mut plain.waiting);
                    } else {
                        drop(committer);
                        plain.waiting.clear();
                    }
                    drop(journal);
                    (journal, committer) = open();
                    log = journal.logs().pop().unwrap();
                    prop_assert_eq!(log.epoch(), epoch);
                    prop_assert_eq!(log.position().first, first);
                }
            }
            prop_assert_eq!(log.position().last, plain.events().len() as u64);
        }
        let mut frames = Vec::new();
        log.scan(&mut |frame| frames.push((frame.event, frame.payload.to_vec()))).unwrap();
        let mut number = 0;
        let all: Vec<_> = plain.durable.iter().map(|item| {
            use crate::Entry;
            number += u64::from(item.is_event());
            (item.is_event().then_some(number), item.bytes.clone())
        }).collect();
        prop_assert!(all.ends_with(&frames));
        prop_assert!(first > 1 || frames.len() == all.len());
    }
}
