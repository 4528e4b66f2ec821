//! The journal as it is measured.

use crate::table::Failure;
use journal::{AppendError, Entry, Journal, Log, Options};
use std::{
    path::Path,
    sync::{Arc, Condvar, Mutex},
};

/// An event of so many bytes; its payload is made when it is encoded, as an event's JSON is.
#[derive(Clone, Copy)]
pub(crate) struct Event {
    pub(crate) number: u64,
    pub(crate) bytes: u32,
}

impl Entry for Event {
    fn is_event(&self) -> bool {
        true
    }

    fn merge(&mut self, next: Self) -> Result<(), Self> {
        Err(next)
    }

    fn size(&self) -> usize {
        self.bytes as usize
    }

    fn encode(&self, out: &mut Vec<u8>) {
        payload(self.number, self.bytes as usize, out);
    }
}

/// The payload of an event, for all peers alike.
pub(crate) fn payload(number: u64, bytes: usize, out: &mut Vec<u8>) {
    let end = out.len() + bytes;
    out.extend_from_slice(&number.to_le_bytes());
    out.resize(end, b'x');
}

/// What writers wait on: the last ticket that is durable. All peers use it alike.
#[derive(Default)]
pub(crate) struct Acks {
    durable: Mutex<u64>,
    news: Condvar,
}

impl Acks {
    pub(crate) fn set(&self, ticket: u64) {
        *self.durable.lock().expect("no writer panics") = ticket;
        self.news.notify_all();
    }

    pub(crate) fn wait(&self, ticket: u64) {
        let durable = self.durable.lock().expect("no writer panics");
        drop(
            self.news
                .wait_while(durable, |durable| *durable < ticket)
                .expect("no writer panics"),
        );
    }
}

pub(crate) struct Ours {
    journal: Journal<Event>,
    pub(crate) log: Arc<Log<Event>>,
    pub(crate) acks: Arc<Acks>,
}

impl Ours {
    pub(crate) fn open(dir: &Path, options: Options) -> Result<Self, Failure> {
        let journal = Journal::open(dir, options)?;
        let log = journal.create("events")?;
        let acks = Arc::new(Acks::default());
        let sink = Arc::clone(&acks);
        log.on_durable(Box::new(move |position| sink.set(position.ticket)));
        Ok(Self { journal, log, acks })
    }

    /// Appends; waits while the queue is full.
    pub(crate) fn append(&self, event: Event) -> Result<u64, AppendError> {
        loop {
            match self.log.append(event) {
                Err(AppendError::Backlogged) => self.acks.wait(self.log.position().ticket + 1),
                other => return other,
            }
        }
    }

    pub(crate) fn close(self) -> Result<(), Failure> {
        Ok(self.journal.close()?)
    }
}
