//! Finds what was done to a log: edits, cuts, other orders.

use super::{
    files,
    record::{self, Body, NO_HASH, Record, VERSION},
};
use contract::spend::AuditHead;
use std::{
    fs::File,
    io::{self, BufReader},
    path::Path,
};

/// Findings told; a broken log has more than anybody reads.
const FINDINGS_MAX: usize = 20;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) files: usize,
    pub(crate) records: u64,
    /// Number of the first record that is there; more than 1 where older files were removed.
    pub(crate) first: u64,
    pub(crate) head: Option<AuditHead>,
    /// What is wrong, for people; empty: nothing.
    pub(crate) findings: Vec<String>,
    /// The anchor was met.
    anchored: bool,
    oldest: u64,
}

impl Report {
    fn find(&mut self, what: impl Into<String>) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(what.into());
        }
    }
}

/// Reads a whole log. `anchor` is a head that was seen earlier: the log must still hold that record.
pub(crate) fn verify(dir: &Path, anchor: Option<&str>) -> io::Result<Report> {
    let numbers = files::numbers(dir)?;
    let mut report = Report {
        files: numbers.len(),
        oldest: 1,
        ..Report::default()
    };
    for pair in numbers.windows(2) {
        if pair[1] != pair[0] + 1 {
            report.find(format!(
                "between the files {} and {} some are missing",
                pair[0], pair[1]
            ));
        }
    }
    for &number in &numbers {
        file(dir, number, numbers[0], &mut report, anchor)?;
    }
    if let Some(&lowest) = numbers.first()
        && lowest > report.oldest
    {
        let oldest = report.oldest;
        report.find(format!("the log begins with file {lowest}, but files from {oldest} on were kept: they are cut off"));
    }
    if let Some(anchor) = anchor
        && !report.anchored
    {
        report.find(format!(
            "no record has the hash {anchor}: the log was cut before it, or written anew (or the record is so old that its file was removed)"
        ));
    }
    Ok(report)
}

fn file(
    dir: &Path,
    number: u64,
    lowest: u64,
    report: &mut Report,
    anchor: Option<&str>,
) -> io::Result<()> {
    let path = files::path(dir, number);
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let mut reader = BufReader::new(File::open(&path)?);
    let mut bytes = Vec::new();
    let mut at = 0;
    loop {
        files::line(&mut reader, &mut bytes)?;
        if bytes.is_empty() {
            break;
        }
        at += 1;
        let place = format!("{name} line {at}");
        let Some(line) = bytes.strip_suffix(b"\n") else {
            report.find(format!("{place}: incomplete (a process that dies leaves such a line at the very end; the next one removes it)"));
            break;
        };
        match record::open(line) {
            Err(why) => report.find(format!("{place}: {why}")),
            Ok((record, hash)) => {
                follow(&record, &place, at, (number, lowest), report);
                report.records += 1;
                report.anchored |= anchor == Some(hash.as_str());
                report.head = Some(AuditHead {
                    count: record.n,
                    hash,
                });
            }
        }
    }
    if at == 0 {
        report.find(format!("{name}: empty"));
    }
    Ok(())
}

/// Checks a record against the one before it.
fn follow(
    record: &Record,
    place: &str,
    at: usize,
    (number, lowest): (u64, u64),
    report: &mut Report,
) {
    match &report.head {
        Some(before) => {
            if record.n != before.count + 1 {
                let expected = before.count + 1;
                report.find(format!(
                    "{place}: record {} where {expected} belongs",
                    record.n
                ));
            } else if record.prev != before.hash {
                report.find(format!("{place}: does not follow the record before it"));
            }
        }
        None => {
            report.first = record.n;
            // Only a log whose older files were removed begins later.
            if (number == 1 || record.n == 1)
                != (record.n == 1 && record.prev == NO_HASH && number == 1)
            {
                report.find(format!(
                    "{place}: record {} cannot be the first of file {lowest}",
                    record.n
                ));
            }
        }
    }
    match &record.body {
        Body::Begin(begin) => {
            if at != 1 || begin.file != number {
                report.find(format!(
                    "{place}: the beginning of file {} does not belong here",
                    begin.file
                ));
            }
            if begin.version != VERSION {
                report.find(format!("{place}: version {} is not known", begin.version));
            }
            report.oldest = begin.oldest;
        }
        Body::Start(_) | Body::End(_) if at == 1 => {
            report.find(format!("{place}: the file's beginning is missing"));
        }
        Body::Start(_) | Body::End(_) => {}
    }
}
