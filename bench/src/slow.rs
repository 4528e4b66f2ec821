//! A slow disk: each sync takes 20 ms more. Five sessions write as fast as a model talks.

use crate::table::{Aim, Failure, RUNS, Series, Table};
use journal::{
    AppendError, Entry, Journal, Options,
    fs::{DirEntry, Fs, FsFile, Lock, Mode, RealFs},
};
use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const SYNC: Duration = Duration::from_millis(20);
const SESSIONS: usize = 5;
/// Between two deltas of a session: 200 in a second.
const PACE: Duration = Duration::from_millis(5);
const TIME: Duration = Duration::from_secs(4);
const DELTA: usize = 40;
/// As the sidecar merges text.
const MERGED: usize = 4096;

/// Text; joins the text before it that waits behind a sync.
struct Text(usize);

impl Entry for Text {
    fn is_event(&self) -> bool {
        true
    }

    fn merge(&mut self, next: Self) -> Result<(), Self> {
        if self.0 + next.0 > MERGED {
            return Err(next);
        }
        self.0 += next.0;
        Ok(())
    }

    fn size(&self) -> usize {
        256 + self.0
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.resize(out.len() + 100 + self.0, b'x');
    }
}

pub(crate) fn run(dir: &Path, table: &mut Table) -> Result<(), Failure> {
    let (mut lag, mut rest, mut merged) = (Series::default(), Series::default(), Series::default());
    for i in 0..RUNS {
        let seen = sessions(&dir.join(i.to_string()))?;
        lag.push(seen.p99.as_secs_f64() * 1000.0);
        rest.push(seen.growth);
        merged.push(seen.per_event);
    }
    let keeps_up = rest.median() < 1.5;
    let why = "the lag grew during the run";
    table.row(
        "syncs of 20 ms more, 5 sessions, 200 deltas/s each: append → durable, p99",
        "ms",
        &lag,
        &Aim::Of("keeps up", keeps_up, why),
    );
    table.row(
        "— median lag of the last second over that of the first",
        "times",
        &rest,
        &Aim::None,
    );
    table.row("— deltas per event", "", &merged, &Aim::None);
    Ok(())
}

struct Seen {
    p99: Duration,
    growth: f64,
    per_event: f64,
}

type Waiting = Mutex<VecDeque<(u64, Instant)>>;

fn sessions(dir: &Path) -> Result<Seen, Failure> {
    let journal = Journal::<Text>::open_on(Arc::new(Slow), dir, Options::default())?;
    let began = Instant::now();
    // When it was appended, since the beginning, and how long until it was durable.
    let lags: Arc<Mutex<Vec<(Duration, Duration)>>> = Arc::default();
    let mut logs = Vec::new();
    for i in 0..SESSIONS {
        let log = journal.create(&format!("session-{i}"))?;
        let waiting: Arc<Waiting> = Arc::default();
        let (sink, queue) = (Arc::clone(&lags), Arc::clone(&waiting));
        log.on_durable(Box::new(move |position| {
            let mut queue = queue.lock().expect("no writer panics");
            let mut lags = sink.lock().expect("no writer panics");
            while let Some((_, at)) = queue.pop_front_if(|(ticket, _)| *ticket <= position.ticket) {
                lags.push((at - began, at.elapsed()));
            }
        }));
        logs.push((log, waiting));
    }
    let began = Instant::now();
    let results: Vec<Result<u64, AppendError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = logs
            .iter()
            .map(|(log, waiting)| {
                scope.spawn(move || {
                    let mut sent = 0;
                    while began.elapsed() < TIME {
                        {
                            // Held, so that the delta is not durable before it is written down.
                            let mut waiting = waiting.lock().expect("no writer panics");
                            let at = Instant::now();
                            waiting.push_back((log.append(Text(DELTA))?, at));
                        }
                        sent += 1;
                        std::thread::sleep(
                            (began + PACE * sent).saturating_duration_since(Instant::now()),
                        );
                    }
                    Ok(u64::from(sent))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("no writer panics"))
            .collect()
    });
    let mut sent = 0;
    for result in results {
        sent += result?;
    }
    let events: u64 = {
        journal.close()?;
        logs.iter().map(|(log, _)| log.position().last).sum()
    };
    let lags = lags.lock().expect("no writer panics");
    if lags.len() as u64 != sent {
        return Err(format!("{} of {sent} deltas became durable", lags.len()).into());
    }
    let of = |from: Duration, to: Duration| {
        let mut some: Vec<_> = lags
            .iter()
            .filter(|(at, _)| (from..to).contains(at))
            .map(|l| l.1)
            .collect();
        some.sort_unstable();
        some
    };
    let second = Duration::from_secs(1);
    let median = |from, to| {
        let some = of(from, to);
        some.get(some.len() / 2)
            .map_or(f64::NAN, Duration::as_secs_f64)
    };
    let all = of(Duration::ZERO, Duration::MAX);
    Ok(Seen {
        p99: all[all.len() * 99 / 100],
        growth: median(TIME - second, TIME) / median(Duration::ZERO, second),
        per_event: sent as f64 / events as f64,
    })
}

/// The real file system with slower syncs.
struct Slow;

struct SlowFile(Box<dyn FsFile>);

impl FsFile for SlowFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.0.write_at(bytes, offset)
    }

    fn read_at(&self, out: &mut Vec<u8>, offset: u64, len: usize) -> io::Result<()> {
        self.0.read_at(out, offset, len)
    }

    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }

    fn sync(&self) -> io::Result<()> {
        std::thread::sleep(SYNC);
        self.0.sync()
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.allocate(offset, len)
    }
}

impl Fs for Slow {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Box<dyn FsFile>> {
        Ok(Box::new(SlowFile(RealFs.open(path, mode)?)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        RealFs.list(dir)
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        RealFs.make_dir(dir)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        RealFs.remove_dir(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealFs.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFs.rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealFs.sync_dir(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        RealFs.free_bytes(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        RealFs.lock(path)
    }

    fn random(&self) -> io::Result<u64> {
        RealFs.random()
    }
}
