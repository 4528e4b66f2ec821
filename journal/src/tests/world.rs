//! A journal on a model disk beside a plain model of what it promises.
//!
//! Each entry carries ids, 1, 2, 3 … per log, so that whatever merges and however frames are cut,
//! a log is right if and only if its ids follow each other.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::memfs::MemFs;
use super::support::{Item, Rng};
use crate::committer::Committer;
use crate::{AppendError, Health, Journal, Log, OpenError, Options, Position};

pub(super) struct World {
    pub(super) fs: MemFs,
    pub(super) options: Options,
    /// Bytes per write.
    pub(super) chunk_bytes: usize,
    pub(super) running: Option<(Journal<Item>, Committer<Item>)>,
    pub(super) logs: BTreeMap<String, Model>,
    /// Creations that ended in an error that leaves it open whether they happened.
    pub(super) doubtful: Vec<String>,
}

pub(super) struct Model {
    pub(super) log: Arc<Log<Item>>,
    pub(super) epoch: u64,
    /// Last id that was accepted.
    pub(super) appended: u32,
    ticket: u64,
    /// Last id seen durable.
    acked: u32,
    /// Each event seen durable.
    events: BTreeMap<u64, Vec<u8>>,
    position: Position,
    /// Raised by trims that said they were done.
    first: u64,
}

pub(super) const DIR: &str = "/j";

impl World {
    pub(super) fn new(fs: MemFs, options: Options) -> Self {
        let mut world = Self {
            fs,
            options,
            chunk_bytes: 1 << 20,
            running: None,
            logs: BTreeMap::new(),
            doubtful: Vec::new(),
        };
        world.open().expect("a new disk opens");
        world
    }

    pub(super) fn open(&mut self) -> Result<(), OpenError> {
        let fs = Arc::new(self.fs.clone());
        let (journal, mut committer) =
            Journal::open_parts(fs, Path::new(DIR), self.options.clone())?;
        committer.chunk_bytes = self.chunk_bytes;
        self.fs.pause(true);
        assert_eq!(journal.repairs(), [], "no damage was done");
        let found: BTreeMap<_, _> = journal
            .logs()
            .into_iter()
            .map(|log| (log.name().to_owned(), log))
            .collect();
        for name in self.logs.keys() {
            assert!(found.contains_key(name), "log {name} is lost");
        }
        for (name, log) in found {
            if let Some(model) = self.logs.get_mut(&name) {
                model.reopened(log);
            } else {
                assert!(self.doubtful.contains(&name), "log {name} was never made");
                assert_eq!(
                    log.position(),
                    Position {
                        first: 1,
                        last: 0,
                        ticket: 0
                    }
                );
                self.logs.insert(name, Model::new(log));
            }
        }
        self.doubtful.clear();
        self.running = Some((journal, committer));
        self.fs.pause(false);
        Ok(())
    }

    pub(super) fn health(&self) -> Health {
        self.running.as_ref().unwrap().0.health()
    }

    pub(super) fn create(&mut self, name: &str) -> bool {
        let made = self.running.as_ref().unwrap().0.create(name);
        match made {
            Ok(log) => {
                self.logs.insert(name.to_owned(), Model::new(log));
                true
            }
            Err(_) => {
                self.doubtful.push(name.to_owned());
                false
            }
        }
    }

    pub(super) fn step(&mut self) {
        self.running.as_mut().unwrap().1.step();
        self.check();
    }

    pub(super) fn idle(&mut self) {
        self.running.as_mut().unwrap().1.idle();
        self.check();
    }

    pub(super) fn close(&mut self) {
        let (journal, committer) = self.running.take().unwrap();
        let closed = committer.finish();
        self.check();
        if closed.is_ok() {
            for (name, model) in &self.logs {
                assert_eq!(
                    model.acked, model.appended,
                    "log {name}: closed but not durable"
                );
            }
        }
        drop(journal);
    }

    /// The process is gone; its memory with it.
    pub(super) fn crash(&mut self, power: bool) {
        self.running = None;
        if power {
            self.fs.power_loss();
        } else {
            self.fs.kill();
        }
    }

    pub(super) fn check(&mut self) {
        self.fs.pause(true);
        for model in self.logs.values_mut() {
            model.check();
        }
        self.fs.pause(false);
    }
}

impl Model {
    fn new(log: Arc<Log<Item>>) -> Self {
        let (epoch, position) = (log.epoch(), log.position());
        Self {
            log,
            epoch,
            appended: 0,
            ticket: 0,
            acked: 0,
            events: BTreeMap::new(),
            position,
            first: 1,
        }
    }

    /// Appends an entry of a random kind and size.
    pub(super) fn append(&mut self, rng: &mut Rng) -> Result<(), AppendError> {
        let id = (self.appended + 1).to_le_bytes();
        let urgent = rng.below(10) == 0;
        let mut bytes = id.to_vec();
        let (note, text) = (rng.below(5) == 0, rng.below(2) == 0);
        if !text {
            // What follows the id is the same for the same id, so that copies can be compared.
            let sizes = [0, 3, 20, 200];
            bytes.resize(4 + sizes[rng.below(sizes.len())], id[0]);
        }
        let item = match (note, text) {
            (_, true) => Item::text(&bytes),
            (true, false) => Item::note(&bytes),
            (false, false) => Item::event(&bytes),
        };
        let result = if urgent {
            self.log.append_urgent(item)
        } else {
            self.log.append(item)
        };
        assert!(
            !(urgent && result == Err(AppendError::Full)),
            "urgent entries are never Full"
        );
        self.ticket = result?;
        self.appended += 1;
        Ok(())
    }

    pub(super) fn trim(&mut self, before: u64) {
        let trimmed = self.log.trim(before);
        if trimmed.is_ok() {
            self.first = self.log.position().first;
        }
    }

    fn reopened(&mut self, log: Arc<Log<Item>>) {
        assert_eq!(log.epoch(), self.epoch, "no acknowledged event was lost");
        let position = log.position();
        assert!(position.first >= self.first, "a trim was undone");
        assert!(
            position.last >= self.position.last,
            "an acknowledged event is lost"
        );
        self.position = Position {
            ticket: 0,
            ..position
        };
        self.log = log;
        self.ticket = 0;
        let accepted = self.appended;
        let acked = self.acked;
        self.appended = u32::MAX;
        self.check();
        assert!(acked <= self.acked, "an acknowledged entry is lost");
        assert!(self.acked <= accepted, "an entry came from nowhere");
        self.appended = self.acked;
    }

    /// Everything that the log shows.
    pub(super) fn check(&mut self) {
        let position = self.log.position();
        assert!(position.first >= self.position.first && position.last >= self.position.last);
        assert!(position.ticket >= self.position.ticket && position.ticket <= self.ticket);
        let mut ids = Vec::new();
        let mut scanned = Vec::new();
        self.log
            .scan(&mut |frame| {
                let (id, rest) = frame.payload.split_first_chunk::<4>().unwrap();
                let texts = rest
                    .chunks_exact(4)
                    .map(|c| u32::from_le_bytes(c.try_into().unwrap()));
                let id = u32::from_le_bytes(*id);
                ids.push(id);
                // A merged entry is a row of ids; another one is padding.
                if rest.len() >= 4 && rest.len() % 4 == 0 && rest[..4] == (id + 1).to_le_bytes() {
                    ids.extend(texts);
                }
                scanned.extend(frame.event.map(|n| (n, frame.payload.to_vec())));
            })
            .unwrap();
        assert!(
            ids.windows(2).all(|w| w[0] + 1 == w[1]),
            "not in a row: {ids:?}"
        );
        // Notes in a trimmed segment are gone, so there may be nothing to see.
        if let Some(&last) = ids.last() {
            assert!(last >= self.acked && last <= self.appended);
            self.acked = last;
        }
        if position.ticket == self.ticket && self.ticket > 0 {
            assert_eq!(self.acked, self.appended, "said to be durable");
        }
        let numbers: Vec<_> = scanned.iter().map(|(n, _)| *n).collect();
        assert_eq!(
            numbers,
            (position.first..=position.last).collect::<Vec<_>>()
        );
        for (n, payload) in &scanned {
            let before = self.events.entry(*n).or_insert_with(|| payload.clone());
            assert_eq!(before, payload, "event {n} changed");
        }
        let read = self.log.read(position.first - 1, usize::MAX).unwrap();
        let read: Vec<_> = read.iter().map(|(n, p)| (n, p.to_vec())).collect();
        assert_eq!(read, scanned);
        self.position = position;
    }

    /// Reads from somewhere with some bound.
    pub(super) fn read(&self, rng: &mut Rng) {
        let Position { first, last, .. } = self.position;
        let after = first - 1 + rng.below((last + 1 - first) as usize + 3) as u64;
        let max = [0, 10, 100, 1000][rng.below(4)];
        let batch = self.log.read(after, max).unwrap();
        assert_eq!(batch.is_empty(), after >= last);
        let mut next = after + 1;
        for (n, payload) in &batch {
            assert_eq!(n, next);
            assert_eq!(payload, self.events[&n]);
            next += 1;
        }
        assert_eq!(batch.last(), next - 1);
        let bytes: usize = batch.iter().map(|(_, p)| p.len()).sum();
        assert!(
            bytes <= max || next - 1 == after + 1,
            "{bytes} bytes of {max}"
        );
    }
}
