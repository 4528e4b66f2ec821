//! Reads of what is there, from memory on either side: one event, and a hundred in a row.

use crate::{
    ours::{Event, Ours},
    sqlite,
    table::{Aim, Failure, RUNS, Rng, Series, Table, rate},
};
use journal::Options;
use rusqlite::Connection;
use std::{hint::black_box, path::Path, time::Instant};

const EVENTS: u64 = 100_000;
const BYTES: usize = 250;
/// Bytes of a frame without its payload.
const FRAME: usize = 9;
const POINTS: u64 = 100_000;
const RANGES: u64 = 10_000;
const RANGE: u64 = 100;

pub(crate) fn run(dir: &Path, table: &mut Table) -> Result<(), Failure> {
    let ours = Ours::open(&dir.join("journal"), Options::default())?;
    let mut last = 0;
    for number in 1..=EVENTS {
        last = ours.append(Event {
            number,
            bytes: BYTES as u32,
        })?;
    }
    ours.acks.wait(last);
    let mut db = sqlite::open(&dir.join("sqlite"), "NORMAL")?;
    sqlite::fill(&mut db, EVENTS, BYTES)?;
    // As it comes, and as good as it gets.
    let plain = &db;
    let tuned = &Connection::open(dir.join("sqlite"))?;
    sqlite::tune(tuned)?;
    let mut all = [(); 6].map(|()| Series::default());
    for i in 0..RUNS {
        let values = [
            points(|n| {
                let batch = ours.log.read(n - 1, 0)?;
                let (number, payload) = batch.iter().next().ok_or("the event is not there")?;
                Ok(number ^ n ^ u64::from(payload[0]))
            })?,
            points(|n| point(plain, n))?,
            points(|n| point(tuned, n))?,
            ranges(|after| {
                let batch = ours.log.read(after, RANGE as usize * (BYTES + FRAME))?;
                Ok(batch
                    .iter()
                    .map(|(_, payload)| u64::from(payload[0]) | 1 << 32)
                    .sum())
            })?,
            ranges(|after| range(plain, after))?,
            ranges(|after| range(tuned, after))?,
        ];
        // The first one warms caches up; it counts like the others.
        crate::table::progress(&format!("run {}", i + 1));
        for (series, value) in all.iter_mut().zip(values) {
            series.push(value);
        }
    }
    ours.close()?;
    for (three, what) in all.chunks_exact(3).zip(["one event", "100 in a row"]) {
        let [ours, plain, tuned] = three else {
            continue;
        };
        let times = ours.median() / plain.median();
        let aim = format!("4 times SQLite ({times:.1})");
        let why = "a system call, a copy and a checksum per read bound it";
        table.row(
            &format!("read {what}: journal"),
            "reads/s",
            ours,
            &Aim::Of(&aim, times >= 4.0, why),
        );
        table.row(
            &format!("— read {what}: SQLite, its own defaults"),
            "reads/s",
            plain,
            &Aim::None,
        );
        table.row(
            &format!("— read {what}: SQLite, all in its cache and mapped"),
            "reads/s",
            tuned,
            &Aim::None,
        );
    }
    Ok(())
}

fn point(db: &Connection, n: u64) -> Result<u64, Failure> {
    let mut point = db.prepare_cached(sqlite::POINT)?;
    let first = point.query_row([n as i64], |row| Ok(row.get_ref(0)?.as_blob()?[0]))?;
    Ok(u64::from(first))
}

fn range(db: &Connection, after: u64) -> Result<u64, Failure> {
    let mut range = db.prepare_cached(sqlite::RANGE)?;
    let mut rows = range.query((after as i64, RANGE as i64))?;
    let mut sum = 0;
    while let Some(row) = rows.next()? {
        sum += u64::from(row.get_ref(1)?.as_blob()?[0]) | 1 << 32;
    }
    Ok(sum)
}

fn points(read: impl Fn(u64) -> Result<u64, Failure>) -> Result<f64, Failure> {
    let mut rng = Rng(7);
    let began = Instant::now();
    for _ in 0..POINTS {
        black_box(read(1 + rng.below(EVENTS))?);
    }
    Ok(rate(POINTS, began.elapsed()))
}

fn ranges(read: impl Fn(u64) -> Result<u64, Failure>) -> Result<f64, Failure> {
    let mut rng = Rng(7);
    let began = Instant::now();
    for _ in 0..RANGES {
        let sum = read(rng.below(EVENTS - RANGE))?;
        if sum >> 32 != RANGE {
            return Err(format!("{} events instead of {RANGE}", sum >> 32).into());
        }
    }
    Ok(rate(RANGES, began.elapsed()))
}
