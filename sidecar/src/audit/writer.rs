//! The thread that writes: one batch of records, one sync.

use super::{
    AuditError, Bounds, files,
    record::{Body, Record, Totals, seal},
    recover::Recovered,
};
use contract::spend::AuditHead;
use rustix::io::Errno;
use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::mpsc,
};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Most records of one batch.
const BATCH_MAX: usize = 256;
/// Space that is kept so that calls under way can still be ended on a full volume, in bytes.
const RESERVE: usize = 64 * 1024;
const RESERVE_NAME: &str = "reserve";

/// A record to write and who waits for it: a beginning until it is written, an end until it is durable.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) body: Body,
    pub(super) done: oneshot::Sender<Result<(), AuditError>>,
}

/// The end of the log.
#[derive(Debug)]
pub(super) struct Writer {
    dir: PathBuf,
    bounds: Bounds,
    file: File,
    number: u64,
    lowest: u64,
    size: u64,
    n: u64,
    hash: String,
    totals: Totals,
}

impl Writer {
    /// Goes on with a log.
    pub(super) fn new(dir: &Path, bounds: Bounds, from: Recovered) -> io::Result<Self> {
        let Recovered {
            totals,
            open: _,
            n,
            hash,
            last,
            highest,
            lowest,
            damage: _,
        } = from;
        let number = last.map_or(highest + 1, |(number, _)| number);
        let mut writer = Self {
            dir: dir.to_owned(),
            bounds,
            file: open_append(&files::path(dir, number))?,
            number,
            lowest,
            size: last.map_or(0, |(_, size)| size),
            n,
            hash,
            totals,
        };
        if writer.size == 0 {
            let begin = writer.totals.begin(number, writer.oldest(number));
            writer.append_now(begin)?;
            sync_dir(dir)?;
        }
        Ok(writer)
    }

    pub(super) fn totals(&self) -> &Totals {
        &self.totals
    }

    pub(super) fn head(&self) -> Option<AuditHead> {
        (self.n > 0).then(|| AuditHead {
            count: self.n,
            hash: self.hash.clone(),
        })
    }

    /// Writes one record durably.
    pub(super) fn append_now(&mut self, body: Body) -> io::Result<()> {
        self.write(vec![body])?;
        self.file.sync_data()
    }

    /// Writes what comes until nobody can send any more.
    pub(super) fn run(
        mut self,
        commands: &mpsc::Receiver<Command>,
        head: &watch::Sender<Option<AuditHead>>,
        failed: &CancellationToken,
    ) {
        while let Ok(first) = commands.recv() {
            let mut batch = vec![first];
            batch.extend(commands.try_iter().take(BATCH_MAX - 1));
            if failed.is_cancelled() {
                answer(batch, Err(AuditError::Failed));
                continue;
            }
            let (starts, ends): (Vec<_>, Vec<_>) = batch
                .into_iter()
                .partition(|command| matches!(command.body, Body::Start(_)));
            // Ends first: they need less than what a beginning announces.
            if !ends.is_empty() {
                let result = self.ends(&ends);
                match &result {
                    Ok(()) => {
                        head.send_replace(self.head());
                    }
                    Err(AuditError::Failed) => failed.cancel(),
                    Err(AuditError::Full) => {}
                }
                answer(ends, result);
            }
            if !starts.is_empty() {
                let result = self.starts(&starts);
                answer(starts, result);
            }
        }
        if self.file.sync_data().is_ok() {
            head.send_replace(self.head());
        }
    }

    fn starts(&mut self, starts: &[Command]) -> Result<(), AuditError> {
        let reserve = self.dir.join(RESERVE_NAME);
        if !reserve.exists() && make_reserve(&reserve).is_err() {
            // Half a reserve is none.
            let _ = fs::remove_file(&reserve);
            return Err(AuditError::Full);
        }
        self.rotate().map_err(full)?;
        self.write(bodies(starts)).map_err(full)
    }

    fn ends(&mut self, ends: &[Command]) -> Result<(), AuditError> {
        if let Err(error) = self.rotate() {
            tracing::warn!(%error, "the audit log goes on in its old file");
        }
        if let Err(error) = self.write(bodies(ends)) {
            tracing::warn!(%error, "the audit log's volume is full: using the reserve");
            let _ = fs::remove_file(self.dir.join(RESERVE_NAME));
            self.write(bodies(ends)).map_err(full)?;
        }
        // What a failed sync leaves behind is not known, and the next one would not tell.
        self.file.sync_data().map_err(|error| {
            tracing::error!(%error, "the audit log cannot be synced");
            AuditError::Failed
        })
    }

    /// Begins a new file when this one is full, and removes the oldest.
    fn rotate(&mut self) -> io::Result<()> {
        if self.size < self.bounds.bytes {
            return Ok(());
        }
        self.file.sync_data()?;
        let number = self.number + 1;
        let path = files::path(&self.dir, number);
        let before = (self.n, self.hash.clone());
        let oldest = self.oldest(number);
        let begun = open_append(&path).and_then(|file| {
            let old = (
                std::mem::replace(&mut self.file, file),
                self.number,
                self.size,
            );
            (self.number, self.size) = (number, 0);
            let begin = self.totals.begin(number, oldest);
            self.append_now(begin).inspect_err(|_| {
                (self.file, self.number, self.size) = old;
            })
        });
        if let Err(error) = begun {
            (self.n, self.hash) = before;
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        sync_dir(&self.dir)?;
        while self.lowest < oldest {
            match fs::remove_file(files::path(&self.dir, self.lowest)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => self.lowest += 1,
            }
        }
        Ok(())
    }

    /// Number of the oldest file to keep beside this one.
    fn oldest(&self, number: u64) -> u64 {
        (number + 1)
            .saturating_sub(self.bounds.files)
            .max(self.lowest)
    }

    /// Writes records; all or none.
    fn write(&mut self, bodies: Vec<Body>) -> io::Result<()> {
        let at = jiff::Timestamp::from_millisecond(jiff::Timestamp::now().as_millisecond())
            .unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        let (mut n, mut prev) = (self.n, self.hash.clone());
        let mut bytes = Vec::new();
        let mut records = Vec::with_capacity(bodies.len());
        for body in bodies {
            n += 1;
            let record = Record { n, prev, at, body };
            let (line, hash) = seal(&record);
            bytes.extend_from_slice(&line);
            records.push(record);
            prev = hash;
        }
        if let Err(error) = self.file.write_all(&bytes) {
            // A torn line in the middle would be found as damage for ever.
            self.file.set_len(self.size)?;
            return Err(error);
        }
        self.size += bytes.len() as u64;
        (self.n, self.hash) = (n, prev);
        for record in records {
            self.totals.apply(record.n, &record.body);
        }
        Ok(())
    }
}

fn bodies(commands: &[Command]) -> Vec<Body> {
    commands
        .iter()
        .map(|command| command.body.clone())
        .collect()
}

fn answer(commands: Vec<Command>, result: Result<(), AuditError>) {
    for command in commands {
        // Nobody may wait.
        let _ = command.done.send(result);
    }
}

fn full(error: io::Error) -> AuditError {
    let space = [Errno::NOSPC, Errno::DQUOT].map(|errno| Some(errno.raw_os_error()));
    if !space.contains(&error.raw_os_error()) {
        tracing::error!(%error, "the audit log cannot be written");
    }
    AuditError::Full
}

fn open_append(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

fn make_reserve(path: &Path) -> io::Result<()> {
    let mut file = open_append(path)?;
    // Really written: a hole would reserve nothing.
    file.write_all(&[b'.'; RESERVE])?;
    file.sync_data()
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
