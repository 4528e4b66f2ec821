//! Many events at once; the clock stops when the last one is durable.

use crate::{
    ours::{Event, Ours},
    sqlite,
    table::{Aim, Failure, RUNS, Series, Table, rate},
};
use journal::Options;
use std::{path::Path, time::Instant};

const EVENTS: u64 = 500_000;
const BYTES: usize = 100;
const AIM: f64 = 1_000_000.0;

pub(crate) fn run(dir: &Path, table: &mut Table) -> Result<(), Failure> {
    let (mut ours, mut normal, mut full, mut raw) = (
        Series::default(),
        Series::default(),
        Series::default(),
        Series::default(),
    );
    for i in 0..RUNS {
        let at = |name: &str| dir.join(format!("{name}{i}"));
        raw.push(file(&at("raw"))?);
        ours.push(journal(&at("journal"))?);
        normal.push(sqlite(&at("normal"), "NORMAL")?);
        full.push(sqlite(&at("full"), "FULL")?);
    }
    let bound = format!(
        "a plain file of the same bytes, written in pieces of 1 MiB and synced once, makes {:.0} here",
        raw.median()
    );
    table.row(
        "batch of 500,000 events of 100 bytes: journal",
        "events/s",
        &ours,
        &Aim::Of("1,000,000 events/s", ours.median() >= AIM, &bound),
    );
    table.row(
        "— SQLite, one transaction, NORMAL",
        "events/s",
        &normal,
        &Aim::None,
    );
    table.row(
        "— SQLite, one transaction, FULL",
        "events/s",
        &full,
        &Aim::None,
    );
    table.row(
        "— a plain file of the same bytes, one sync",
        "events/s",
        &raw,
        &Aim::None,
    );
    Ok(())
}

fn journal(dir: &Path) -> Result<f64, Failure> {
    let ours = Ours::open(dir, Options::default())?;
    let began = Instant::now();
    let mut last = 0;
    for number in 0..EVENTS {
        last = ours.append(Event {
            number,
            bytes: BYTES as u32,
        })?;
    }
    ours.acks.wait(last);
    let time = began.elapsed();
    ours.close()?;
    std::fs::remove_dir_all(dir)?;
    Ok(rate(EVENTS, time))
}

fn sqlite(path: &Path, synchronous: &str) -> Result<f64, Failure> {
    let mut db = sqlite::open(path, synchronous)?;
    let began = Instant::now();
    sqlite::fill(&mut db, EVENTS, BYTES)?;
    if synchronous == "NORMAL" {
        // Only a checkpoint makes it durable there.
        db.query_row("PRAGMA wal_checkpoint(FULL)", [], |_| Ok(()))?;
    }
    let time = began.elapsed();
    drop(db);
    std::fs::remove_file(path)?;
    Ok(rate(EVENTS, time))
}

fn file(path: &Path) -> Result<f64, Failure> {
    use std::io::Write as _;
    let bytes = EVENTS as usize * (BYTES + 9);
    let piece = vec![b'x'; 1 << 20];
    let began = Instant::now();
    let mut file = std::fs::File::create(path)?;
    let mut left = bytes;
    while left > 0 {
        let n = left.min(piece.len());
        file.write_all(&piece[..n])?;
        left -= n;
    }
    file.sync_data()?;
    let time = began.elapsed();
    std::fs::remove_file(path)?;
    Ok(rate(EVENTS, time))
}
