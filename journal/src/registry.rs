//! The logs of a journal, by number and by name.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use crate::log::Log;
use crate::sync::{read, write};

pub(crate) struct Registry<E> {
    logs: RwLock<Logs<E>>,
}

struct Logs<E> {
    all: Vec<Arc<Log<E>>>,
    by_name: BTreeMap<Box<str>, usize>,
    closed: bool,
}

impl<E> Registry<E> {
    pub(crate) fn new() -> Self {
        Self {
            logs: RwLock::new(Logs {
                all: Vec::new(),
                by_name: BTreeMap::new(),
                closed: false,
            }),
        }
    }

    pub(crate) fn get(&self, id: usize) -> Option<Arc<Log<E>>> {
        read(&self.logs).all.get(id).cloned()
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        read(&self.logs).by_name.contains_key(name)
    }

    pub(crate) fn is_closed(&self) -> bool {
        read(&self.logs).closed
    }

    /// Adds the log that `make` makes of its number; `None` after [`close`](Self::close).
    pub(crate) fn add(
        &self,
        name: &str,
        make: impl FnOnce(usize) -> Log<E>,
    ) -> Option<Arc<Log<E>>> {
        let logs = &mut *write(&self.logs);
        if logs.closed {
            return None;
        }
        let id = logs.all.len();
        let log = Arc::new(make(id));
        logs.all.push(Arc::clone(&log));
        logs.by_name.insert(name.into(), id);
        Some(log)
    }

    pub(crate) fn sorted(&self) -> Vec<Arc<Log<E>>> {
        let logs = read(&self.logs);
        logs.by_name
            .values()
            .filter_map(|&id| logs.all.get(id).cloned())
            .collect()
    }

    /// Lets no more in and returns those that are.
    pub(crate) fn close(&self) -> Vec<Arc<Log<E>>> {
        let mut logs = write(&self.logs);
        logs.closed = true;
        logs.all.clone()
    }
}
