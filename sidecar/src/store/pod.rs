//! The pod's own journal, for what belongs to no session: checkpoints.

use super::{
    BEGIN_BOUND, Store,
    book::{Book, Entry},
    record::{Note, Record},
    session::JournalError,
};
use journal::{CreateError, Journal, Log, ReadError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OnceCell, watch};

/// Its name among the journals of sessions; no session may have it.
pub(super) const NAME: &str = "opencode-operator.pod";

/// The pod's journal and what is known from it.
#[derive(Default)]
pub(super) struct Pod {
    /// Made with the first entry.
    log: OnceCell<Written>,
    book: Mutex<Book>,
}

struct Written {
    log: Arc<Log<Record>>,
    /// Of the last durable entry.
    ticket: watch::Sender<u64>,
}

impl Written {
    fn new(log: Arc<Log<Record>>) -> Self {
        let ticket = watch::Sender::new(0);
        let sender = ticket.clone();
        log.on_durable(Box::new(move |position| {
            sender.send_replace(position.ticket);
        }));
        Self { log, ticket }
    }
}

impl Pod {
    /// Reads the journal that there is.
    pub(super) fn recover(&mut self, log: Arc<Log<Record>>) -> Result<(), ReadError> {
        let book = self.book.get_mut().unwrap_or_else(PoisonError::into_inner);
        log.scan(&mut |frame| match serde_json::from_slice(frame.payload) {
            Ok(Note::Checkpoints(entry)) => book.apply(&entry),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "a note of the pod is not understood"),
        })?;
        self.log = OnceCell::new_with(Some(Written::new(log)));
        Ok(())
    }
}

impl Store {
    /// All checkpoints.
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        // A panic while holding it leaves plain data: still the best that is known.
        self.pod.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records what became of checkpoints; durable, and part of [`Self::book`], when it returns. After an
    /// error it may still be found after a restart.
    pub(crate) async fn record(&self, entry: Entry) -> Result<(), JournalError> {
        let written = self.pod.log.get_or_try_init(|| self.make_pod_log()).await?;
        let note = Record::Note(Note::Checkpoints(entry.clone()));
        let ticket = written.log.append(note).map_err(|error| {
            tracing::error!(%error, "the pod's journal refused an entry");
            JournalError
        })?;
        let mut durable = written.ticket.subscribe();
        let waited = async {
            tokio::select! {
                reached = durable.wait_for(|done| *done >= ticket) => reached.map(drop).map_err(|_| JournalError),
                () = self.failed.cancelled() => Err(JournalError),
            }
        };
        tokio::time::timeout(BEGIN_BOUND, waited)
            .await
            .map_err(|_| JournalError)??;
        if written.log.refused(ticket) {
            return Err(JournalError);
        }
        self.book().apply(&entry);
        Ok(())
    }

    async fn make_pod_log(&self) -> Result<Written, JournalError> {
        let journal: Arc<Journal<Record>> = Arc::clone(&self.journal);
        // It waits for the disk.
        let made = tokio::task::spawn_blocking(move || match journal.create(NAME) {
            // From a try whose caller was gone.
            Err(CreateError::Exists) => journal
                .logs()
                .into_iter()
                .find(|log| log.name() == NAME)
                .ok_or(CreateError::Exists),
            made => made,
        });
        match made.await {
            Ok(Ok(log)) => Ok(Written::new(log)),
            Ok(Err(error)) => {
                tracing::error!(%error, "the pod's journal cannot be made");
                Err(JournalError)
            }
            Err(error) => {
                tracing::error!(%error, "making the pod's journal panicked");
                Err(JournalError)
            }
        }
    }
}
