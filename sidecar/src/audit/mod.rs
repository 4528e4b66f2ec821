//! The log of model calls: who called which model, what it used and how it went.
//!
//! JSON lines in files `calls-NNNNNN.jsonl`, each chained to the one before by its hash, so that an
//! edit, a cut or another order is found by [`verify`]. The end of the log is anchored by
//! [`Audit::head`], which goes into the pod's summary and from there into the object's status.
//!
//! Content of requests and answers is no part of it unless the configuration asks for that.

mod cli;
mod files;
mod record;
mod recover;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

pub use cli::main;
use record::Body;
pub(crate) use record::{Counted, Ended, Started, Totals, Who};
use recover::Recovered;

use contract::spend::AuditHead;
use std::{
    io,
    path::Path,
    sync::{Mutex, PoisonError, mpsc},
    thread::JoinHandle,
};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use writer::{Command, Writer};

/// Bounds of the log: `files` of at most `bytes` each (and one record more) are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

impl Default for Bounds {
    /// 32 MiB, some 40,000 calls.
    fn default() -> Self {
        Self {
            bytes: 4 * 1024 * 1024,
            files: 8,
        }
    }
}

/// The log cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuditError {
    /// Now; the next call tries again.
    #[error("the audit log of model calls cannot be written: its volume is full")]
    Full,
    /// For good: what is on the disk is no longer known.
    #[error("the audit log of model calls failed to reach the disk")]
    Failed,
}

/// The log, open for writing. Dropping it without [`Audit::close`] loses nothing that was awaited.
#[derive(Debug)]
pub(crate) struct Audit {
    commands: Mutex<Option<mpsc::Sender<Command>>>,
    head: watch::Receiver<Option<AuditHead>>,
    failed: CancellationToken,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Audit {
    /// Opens the log of this folder, or begins one; also returns what its calls used so far. Calls that
    /// were under way when the last process ended are ended in it by their estimate.
    pub(crate) fn open(dir: &Path, bounds: Bounds) -> io::Result<(Self, Totals)> {
        let recovered = recover::recover(dir)?;
        if let Some(damage) = &recovered.damage {
            tracing::error!(
                damage,
                "the audit log of model calls is damaged: a new file is begun; run `audit verify`"
            );
        }
        let Recovered { open, .. } = &recovered;
        let left: Vec<_> = open.values().map(Started::interrupted).collect();
        let mut writer = Writer::new(dir, bounds, recovered)?;
        for ended in left {
            writer.append_now(Body::End(Box::new(ended)))?;
        }
        let totals = writer.totals().clone();
        let failed = CancellationToken::new();
        let (head_tx, head) = watch::channel(writer.head());
        let (commands, receiver) = mpsc::channel();
        let cancel = failed.clone();
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || writer.run(&receiver, &head_tx, &cancel))?;
        Ok((
            Self {
                commands: Mutex::new(Some(commands)),
                head,
                failed,
                thread: Mutex::new(Some(thread)),
            },
            totals,
        ))
    }

    /// Appends the beginning of a call. Returns once it is written, so that it outlives this process;
    /// a loss of power may still take the beginnings of calls that had not ended.
    pub(crate) async fn start(&self, started: Started) -> Result<(), AuditError> {
        let written = self.send(Body::Start(Box::new(started)));
        written.await.unwrap_or(Err(AuditError::Failed))
    }

    /// Appends the end of a call. What is returned resolves once that is durable; dropping it is fine.
    pub(crate) fn end(&self, ended: Ended) -> oneshot::Receiver<Result<(), AuditError>> {
        self.send(Body::End(Box::new(ended)))
    }

    fn send(&self, body: Body) -> oneshot::Receiver<Result<(), AuditError>> {
        let (done, receiver) = oneshot::channel();
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(commands) = commands.as_ref() {
            // An error drops `done`, which says enough.
            let _ = commands.send(Command { body, done });
        }
        receiver
    }

    /// Where the durable log ends, with news.
    pub(crate) fn head(&self) -> watch::Receiver<Option<AuditHead>> {
        self.head.clone()
    }

    /// Returns when the log failed for good.
    pub(crate) async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// As if a sync had failed.
    #[cfg(test)]
    pub(crate) fn fail(&self) {
        self.failed.cancel();
    }

    /// Writes what waits and closes the log. Blocks.
    pub(crate) fn close(&self) {
        drop(
            self.commands
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the writer of the audit log panicked");
        }
    }
}
