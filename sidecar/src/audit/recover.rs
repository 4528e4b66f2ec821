//! What the log holds when a process begins: sums, the end of the chain, and calls that never ended.

use super::{
    files,
    record::{self, Body, NO_HASH, Started, Totals},
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader},
    path::Path,
};

/// What is known of a log.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) totals: Totals,
    pub(crate) open: BTreeMap<u64, Started>,
    /// Number of the last record and its hash.
    pub(crate) n: u64,
    pub(crate) hash: String,
    /// Number and size of the file to go on with; absent: a new one is needed.
    pub(crate) last: Option<(u64, u64)>,
    /// Highest number of a file that is there.
    pub(crate) highest: u64,
    /// Lowest number of a file that is there.
    pub(crate) lowest: u64,
    /// What is wrong with the log.
    pub(crate) damage: Option<String>,
}

/// Reads a log. An incomplete last line, which nobody was told of, is removed; other damage is left for
/// [`super::verify`] to be found, and what can be read counts.
pub(crate) fn recover(dir: &Path) -> io::Result<Recovered> {
    let numbers = files::numbers(dir)?;
    let mut state = Recovered {
        totals: Totals::default(),
        open: BTreeMap::new(),
        n: 0,
        hash: NO_HASH.to_owned(),
        last: None,
        highest: numbers.last().copied().unwrap_or(0),
        lowest: numbers.first().copied().unwrap_or(1),
        damage: None,
    };
    // The newest file that begins as it should; what is before it is in its first line.
    let from = numbers
        .iter()
        .rposition(|number| begins_well(&files::path(dir, *number)))
        .unwrap_or(0);
    for &number in &numbers[from..] {
        read(dir, number, &mut state)?;
    }
    if state.damage.is_some() {
        state.last = None;
    }
    state.open = state.totals.open.clone();
    Ok(state)
}

fn begins_well(path: &Path) -> bool {
    let mut first = Vec::new();
    File::open(path)
        .and_then(|file| files::line(&mut BufReader::new(file), &mut first))
        .is_ok()
        && first.strip_suffix(b"\n").is_some_and(
            |line| matches!(record::open(line), Ok((r, _)) if matches!(r.body, Body::Begin(_))),
        )
}

fn read(dir: &Path, number: u64, state: &mut Recovered) -> io::Result<()> {
    let path = files::path(dir, number);
    let mut reader = BufReader::new(File::open(&path)?);
    let mut line = Vec::new();
    let mut size = 0;
    loop {
        files::line(&mut reader, &mut line)?;
        if line.is_empty() {
            break;
        }
        let Some(whole) = line.strip_suffix(b"\n") else {
            let last = number == state.highest;
            if last && size > 0 {
                tracing::warn!(path = %path.display(), "removing an incomplete last line of the audit log");
                fs::OpenOptions::new()
                    .write(true)
                    .open(&path)?
                    .set_len(size)?;
                break;
            }
            state.damage = Some(format!("{} has an incomplete line", path.display()));
            break;
        };
        match record::open(whole) {
            Ok((record, hash)) => {
                let begin = matches!(record.body, Body::Begin(_));
                if record.prev != state.hash && !(begin && state.n == 0) {
                    state.damage = Some(format!(
                        "{} is not in order at record {}",
                        path.display(),
                        record.n
                    ));
                }
                state.totals.apply(record.n, &record.body);
                state.n = record.n.max(state.n);
                state.hash = hash;
            }
            Err(why) => {
                state.damage = Some(format!(
                    "a line of {} cannot be used: {why}",
                    path.display()
                ));
            }
        }
        size += line.len() as u64;
    }
    state.last = (size > 0).then_some((number, size));
    Ok(())
}
