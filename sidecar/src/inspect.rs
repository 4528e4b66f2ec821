//! `opencode-sidecar journal dump|verify`: the journal for people, as in `kubectl exec`. Reads only,
//! beside a running sidecar or on a copied folder.

use crate::store::record::event_json;
use clap::{Args, Parser, Subcommand};
use contract::pod;
use journal::inspect::{self, LogReport};
use serde::Serialize;
use serde_json::value::RawValue;
use std::{
    ffi::OsString,
    io::{self, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Damage was found.
const DAMAGED: u8 = 1;
/// The folder cannot be read.
const UNREADABLE: u8 = 2;

/// Looks into a journal without touching it.
#[derive(Debug, Parser)]
#[command(name = "opencode-sidecar journal")]
struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print events, one line of JSON each. Exit code 1: damage; what is behind it is shown if it can
    /// be read.
    Dump(Dump),
    /// Read every byte and say what is there. Exit code 1: damage.
    Verify(Folder),
}

#[derive(Debug, Args)]
struct Folder {
    /// Folder of one session's journal, or of several; by default the pod's own.
    dir: Option<PathBuf>,
    /// The folder that the sidecar keeps its journal in, where DIR is not given.
    #[arg(long, env = "JOURNAL_DIR", default_value = pod::JOURNAL_DIR, hide = true)]
    journal_dir: PathBuf,
}

#[derive(Debug, Args)]
struct Dump {
    #[command(flatten)]
    folder: Folder,
    /// Only events with a higher number.
    #[arg(long, default_value_t = 0)]
    after: u64,
    /// At most so many events per session.
    #[arg(long)]
    limit: Option<u64>,
    /// Also what only the sidecar itself reads: prompts, who asked, standing consents.
    #[arg(long)]
    notes: bool,
}

/// A line of `dump`.
#[derive(Serialize)]
struct Line<'a> {
    session: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a RawValue>,
    /// What is neither: written by another program.
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<String>,
}

/// Runs `journal …`; `args` begin with the word `journal`.
pub fn journal_command(args: impl Iterator<Item = OsString>) -> ExitCode {
    let command = Command::parse_from(args);
    let mut out = io::BufWriter::new(io::stdout().lock());
    let result = match &command.action {
        Action::Dump(dump) => run_dump(dump, &mut out),
        Action::Verify(folder) => run_verify(folder, &mut out),
    };
    match result.and_then(|damaged| out.flush().map(|()| damaged)) {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::from(DAMAGED),
        // Whoever reads has had enough, as `head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("error: {error}"));
            ExitCode::from(UNREADABLE)
        }
    }
}

fn complain(text: &str) {
    // There is nobody else to tell.
    let _ = writeln!(io::stderr(), "{text}");
}

impl Folder {
    fn logs(&self) -> io::Result<Vec<PathBuf>> {
        let dir = match &self.dir {
            Some(dir) => dir.clone(),
            None => self.journal_dir.join("sessions"),
        };
        let named = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("cannot read {}: {error}", dir.display()),
            )
        };
        inspect::logs(&dir).map_err(named)
    }
}

fn run_dump(dump: &Dump, out: &mut dyn Write) -> io::Result<bool> {
    let mut damaged = false;
    for dir in dump.folder.logs()? {
        let report = dump_log(dump, &dir, out)?;
        for segment in &report.segments {
            if let Some((at, what)) = &segment.damage {
                complain(&format!(
                    "damaged: {} at byte {at}: {what}",
                    segment.path.display()
                ));
            }
        }
        damaged |= report.is_damaged();
    }
    Ok(damaged)
}

fn dump_log(dump: &Dump, dir: &Path, out: &mut dyn Write) -> io::Result<LogReport> {
    let session = dir
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let mut left = dump.limit.unwrap_or(u64::MAX);
    let mut written = Ok(());
    if left == 0 {
        return inspect::dump(dir, 0, &mut |_| ControlFlow::Break(()));
    }
    let report = inspect::dump(dir, dump.after, &mut |frame| {
        if frame.event.is_none() && !dump.notes {
            return ControlFlow::Continue(());
        }
        let json = match frame.event {
            Some(_) => event_json(frame.payload),
            None => Some(frame.payload),
        };
        let json = json.and_then(|json| serde_json::from_slice::<&RawValue>(json).ok());
        let line = Line {
            session: &session,
            n: frame.event,
            event: json.filter(|_| frame.event.is_some()),
            note: json.filter(|_| frame.event.is_none()),
            raw: json
                .is_none()
                .then(|| String::from_utf8_lossy(frame.payload).into_owned()),
        };
        written = serde_json::to_writer(&mut *out, &line)
            .map_err(io::Error::from)
            .and_then(|()| out.write_all(b"\n"));
        left -= u64::from(frame.event.is_some());
        if written.is_err() || left == 0 {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    written.map(|()| report)
}

fn run_verify(folder: &Folder, out: &mut dyn Write) -> io::Result<bool> {
    let (mut logs, mut events, mut damaged) = (0, 0, 0);
    for dir in folder.logs()? {
        let report = inspect::verify(&dir)?;
        describe(&report, out)?;
        logs += 1;
        events += report.segments.iter().map(|s| s.events).sum::<u64>();
        damaged += u64::from(report.is_damaged());
    }
    if damaged == 0 {
        writeln!(out, "whole: {logs} sessions, {events} events")?;
    } else {
        writeln!(
            out,
            "damaged: {damaged} of {logs} sessions. The next start of the sidecar keeps what is in front of the damage, \
             sets the files aside as .bad and tells readers by a gap; copy the folder before that if you need the rest"
        )?;
    }
    Ok(damaged > 0)
}

fn describe(report: &LogReport, out: &mut dyn Write) -> io::Result<()> {
    let epoch = report
        .epoch()
        .map_or("?".to_owned(), |epoch| format!("{epoch:016x}"));
    let (first, last) = (report.first(), report.last());
    writeln!(
        out,
        "{}: epoch {epoch}, events {first} to {last}",
        report.name
    )?;
    for segment in &report.segments {
        let name = segment.path.file_name().unwrap_or_default().display();
        let (bytes, events, notes) = (segment.bytes, segment.events, segment.notes);
        write!(
            out,
            "  {name}  {bytes} bytes  {} frames ({events} events, {notes} notes)",
            events + notes
        )?;
        if let Some(epoch) = segment.epoch {
            write!(out, "  epoch {epoch:016x}")?;
        }
        match &segment.damage {
            Some((at, what)) => write!(out, "  DAMAGED at byte {at}: {what}")?,
            None if segment.replaced => write!(out, "  replaced by a later segment")?,
            None if segment.torn > 0 => write!(
                out,
                "  torn end of {} bytes, never acknowledged",
                segment.torn
            )?,
            None => write!(out, "  whole")?,
        }
        writeln!(out)?;
    }
    for path in &report.aside {
        writeln!(out, "  set aside earlier: {}", path.display())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
