//! `make bench-journal`: the journal beside SQLite and beside bare loops, on the same disk, in turns, in
//! one run. For reading, not for passing: a shared machine is noisy. Prints the table that
//! docs/benchmarks.md holds.
//!
//! Arguments: a folder to work in (default: the current one) and names of groups (`batch`, `durable`,
//! `reads`, `slow`, `replay`; default: all). `OPENCODE_SIDECAR` names the sidecar's binary for `replay`.

mod batch;
mod durable;
mod ours;
mod reads;
mod replay;
mod slow;
mod sqlite;
mod table;

use std::{path::PathBuf, process::ExitCode};
use table::{Failure, Table};

type Group = fn(&std::path::Path, &mut Table) -> Result<(), Failure>;

const GROUPS: [(&str, Group); 5] = [
    ("batch", batch::run),
    ("durable", durable::run),
    ("reads", reads::run),
    ("slow", slow::run),
    ("replay", replay::run),
];

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let dir = args
        .next()
        .map_or_else(|| PathBuf::from("."), PathBuf::from);
    let chosen: Vec<_> = args.collect();
    let mut table = Table::default();
    for (name, run) in GROUPS {
        if !chosen.is_empty() && !chosen.iter().any(|c| c == name) {
            continue;
        }
        table::progress(name);
        let result = tempfile::tempdir_in(&dir)
            .map_err(Failure::from)
            .and_then(|dir| run(dir.path(), &mut table));
        if let Err(error) = result {
            table::progress(&format!("error: {name}: {error}"));
            return ExitCode::FAILURE;
        }
    }
    table.print();
    ExitCode::SUCCESS
}
