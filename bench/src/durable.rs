//! Writers that each wait until their own event is durable before they send the next.

use crate::{
    ours::{Acks, Event, Ours, payload},
    sqlite,
    table::{Aim, Failure, RUNS, Series, Table, rate},
};
use journal::Options;
use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

const BYTES: usize = 200;
/// A run of a peer is so many slices of this, in turns with the others': disks have moods.
const SLICE: Duration = Duration::from_millis(250);
const SLICES: usize = 6;

pub(crate) fn run(dir: &Path, table: &mut Table) -> Result<(), Failure> {
    for writers in [5, 64, 256] {
        let mut all = [(); 4].map(|()| Series::default());
        for i in 0..RUNS {
            let mut sums = [0.0; 4];
            for slice in 0..SLICES {
                let at = |name: &str| dir.join(format!("{name}-{writers}-{i}-{slice}"));
                let mut order: [usize; 4] = [0, 1, 2, 3];
                order.rotate_left(slice % 4);
                for peer in order {
                    sums[peer] += match peer {
                        0 => journal(&at("journal"), writers)?,
                        1 => group(&at("group"), writers)?,
                        2 => each(&at("each"), writers)?,
                        _ => sqlite_full(&at("sqlite"), writers)?,
                    };
                }
            }
            for (series, sum) in all.iter_mut().zip(sums) {
                series.push(sum / SLICES as f64);
            }
        }
        let [ours, group, each, sqlite] = &all;
        let share = ours.median() / group.median();
        let verdict = format!(
            "it has {:.0} % of it; threads that wake and the disk's own spread decide",
            share * 100.0
        );
        table.row(
            &format!("durable append, {writers} writers: journal"),
            "events/s",
            ours,
            &Aim::Of("within 10 % of the bare loop", share >= 0.9, &verdict),
        );
        table.row(
            "— bare group commit, no format",
            "events/s",
            group,
            &Aim::None,
        );
        let times = ours.median() / each.median();
        let aim = format!("the journal has {times:.1} times this (aim at 256: 8)");
        let aim = Aim::Of(
            &aim,
            writers < 256 || times >= 8.0,
            "waking 256 threads on these cores costs as much as the sync",
        );
        table.row("— a write and a sync per event", "events/s", each, &aim);
        table.row(
            "— SQLite FULL, a transaction per event",
            "events/s",
            sqlite,
            &Aim::None,
        );
    }
    Ok(())
}

/// Runs `append` in as many threads until the time is over; events per second.
fn drive(
    writers: u64,
    append: &(dyn Fn(u64) -> Result<(), Failure> + Sync),
) -> Result<f64, Failure> {
    let stop = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    let began = Instant::now();
    let results: Vec<Result<(), Failure>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..writers)
            .map(|writer| {
                let (stop, done) = (&stop, &done);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        append(writer)?;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        std::thread::sleep(SLICE);
        stop.store(true, Ordering::Relaxed);
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| Err("a writer panicked".into())))
            .collect()
    });
    results.into_iter().collect::<Result<(), _>>()?;
    Ok(rate(done.into_inner(), began.elapsed()))
}

fn journal(dir: &Path, writers: u64) -> Result<f64, Failure> {
    let ours = Ours::open(dir, Options::default())?;
    let value = drive(writers, &|number| {
        let ticket = ours.append(Event {
            number,
            bytes: BYTES as u32,
        })?;
        ours.acks.wait(ticket);
        Ok(())
    })?;
    ours.close()?;
    std::fs::remove_dir_all(dir)?;
    Ok(value)
}

/// The least that group commit can be: bytes gather while one thread writes and syncs.
fn group(path: &Path, writers: u64) -> Result<f64, Failure> {
    struct Queue {
        bytes: Vec<u8>,
        ticket: u64,
        closing: bool,
    }
    let queue = Mutex::new(Queue {
        bytes: Vec::new(),
        ticket: 0,
        closing: false,
    });
    let wake = Condvar::new();
    let acks = Arc::new(Acks::default());
    let file = File::create(path)?;
    let value = std::thread::scope(|scope| {
        let committer = scope.spawn(|| -> Result<(), Failure> {
            let (mut taken, mut at) = (Vec::new(), 0);
            loop {
                let ticket = {
                    let held = queue.lock().expect("no writer panics");
                    let mut held = wake
                        .wait_while(held, |q| q.bytes.is_empty() && !q.closing)
                        .expect("no writer panics");
                    if held.bytes.is_empty() {
                        return Ok(());
                    }
                    std::mem::swap(&mut taken, &mut held.bytes);
                    held.ticket
                };
                file.write_all_at(&taken, at)?;
                at += taken.len() as u64;
                taken.clear();
                file.sync_data()?;
                acks.set(ticket);
            }
        });
        let value = drive(writers, &|number| {
            let ticket = {
                let mut held = queue.lock().expect("no writer panics");
                payload(number, BYTES, &mut held.bytes);
                held.ticket += 1;
                held.ticket
            };
            wake.notify_one();
            acks.wait(ticket);
            Ok(())
        });
        queue.lock().expect("no writer panics").closing = true;
        wake.notify_one();
        let ended = committer
            .join()
            .unwrap_or_else(|_| Err("the committer panicked".into()));
        ended.and(value)
    })?;
    std::fs::remove_file(path)?;
    Ok(value)
}

fn each(path: &Path, writers: u64) -> Result<f64, Failure> {
    let file = Mutex::new((File::create(path)?, 0));
    let value = drive(writers, &|number| {
        let mut out = Vec::new();
        payload(number, BYTES, &mut out);
        let (file, at) = &mut *file.lock().expect("no writer panics");
        file.write_all_at(&out, *at)?;
        *at += out.len() as u64;
        file.sync_data()?;
        Ok(())
    })?;
    std::fs::remove_file(path)?;
    Ok(value)
}

fn sqlite_full(path: &Path, writers: u64) -> Result<f64, Failure> {
    let db = Mutex::new((sqlite::open(path, "FULL")?, 0_i64));
    let value = drive(writers, &|number| {
        let mut out = Vec::new();
        payload(number, BYTES, &mut out);
        let (db, n) = &mut *db.lock().expect("no writer panics");
        *n += 1;
        db.prepare_cached(sqlite::INSERT)?.execute((*n, &out))?;
        Ok(())
    })?;
    drop(db);
    std::fs::remove_file(path)?;
    Ok(value)
}
