//! The log's files.

use std::{
    fs, io,
    io::BufRead,
    path::{Path, PathBuf},
};

/// Longest line that is read, in bytes. Written ones are far shorter.
const LINE_MAX: u64 = 4 * 1024 * 1024;

/// Name of a file by its number.
pub(crate) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("calls-{number:06}.jsonl"))
}

/// Numbers of the files that are there, ascending.
pub(crate) fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("calls-")?.strip_suffix(".jsonl"))
            .and_then(|number| number.parse::<u64>().ok());
        // Only under the name that it would get: others are no files of the log.
        if let Some(number) = number.filter(|n| path(dir, *n).file_name() == Some(&name)) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads the next line with its line feed; empty at the end.
pub(crate) fn line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<()> {
    line.clear();
    io::Read::take(reader.by_ref(), LINE_MAX).read_until(b'\n', line)?;
    Ok(())
}
