//! `opencode-sidecar audit verify|show`: for people, without a running sidecar.

use super::{
    files,
    record::{self, Body, Ended, Record},
    verify::verify,
};
use clap::{Parser, Subcommand};
use contract::spend::usd;
use std::{
    ffi::OsString,
    fs::File,
    io::{self, BufReader, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// The log of model calls.
#[derive(Debug, Parser)]
#[command(name = "opencode-sidecar audit")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find edits, cuts and other orders. Ends with 1 where there are any.
    Verify {
        /// The folder `audit` of the journal's volume, or a copy of it.
        dir: PathBuf,
        /// A head seen earlier, as in the object's `status.usage.audit.hash`: finds that the end was cut.
        #[arg(long, value_parser = head)]
        head: Option<String>,
    },
    /// Print the calls, one a line.
    Show {
        /// The folder.
        dir: PathBuf,
    },
}

fn head(text: &str) -> Result<String, String> {
    let hex = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    hex.then(|| text.to_ascii_lowercase())
        .ok_or_else(|| "64 hexadecimal digits".into())
}

/// Runs the command of these arguments (without the program's name). Results go to stdout, all else to
/// stderr. Ends with 0, with 1 where the log is not as it was written, with 2 for an error.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let name = OsString::from("opencode-sidecar audit");
    let args = match Args::try_parse_from(std::iter::once(name).chain(arguments)) {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()) * 2);
        }
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let result = match args.command {
        Command::Verify { dir, head } => say_verified(&dir, head.as_deref(), &mut out),
        Command::Show { dir } => show(&dir, &mut out).map(|()| true),
    };
    match result.and_then(|good| out.flush().map(|()| good)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: the log cannot be read: {error}");
            ExitCode::from(2)
        }
    }
}

fn say_verified(dir: &Path, head: Option<&str>, out: &mut impl Write) -> io::Result<bool> {
    let report = verify(dir, head)?;
    for finding in &report.findings {
        writeln!(out, "found: {finding}")?;
    }
    let good = report.findings.is_empty();
    let (count, hash) = match &report.head {
        Some(head) => (head.count, head.hash.as_str()),
        None => (0, "none"),
    };
    writeln!(
        out,
        "{}: {} records in {} files, from record {} to {count}, head {hash}",
        if good {
            "good"
        } else {
            "NOT as it was written"
        },
        report.records,
        report.files,
        report.first,
    )?;
    if good && head.is_none() {
        writeln!(
            out,
            "without --head a cut of the end is not found: give the head of the object's status"
        )?;
    }
    Ok(good)
}

fn show(dir: &Path, out: &mut impl Write) -> io::Result<()> {
    for number in files::numbers(dir)? {
        let mut reader = BufReader::new(File::open(files::path(dir, number))?);
        let mut line = Vec::new();
        loop {
            files::line(&mut reader, &mut line)?;
            if line.is_empty() {
                break;
            }
            let Ok((record, _)) = record::open(line.strip_suffix(b"\n").unwrap_or(&line)) else {
                writeln!(
                    out,
                    "(a line of file {number} that cannot be read: run `audit verify`)"
                )?;
                continue;
            };
            if let Record {
                n,
                at,
                body: Body::End(ended),
                ..
            } = &record
            {
                writeln!(out, "{n} {at} {}", words(ended))?;
            }
        }
    }
    Ok(())
}

fn words(ended: &Ended) -> String {
    let Ended {
        call: _,
        who,
        outcome,
        status,
        refused,
        tokens,
        ms,
        not_written,
        request: _,
        answer: _,
    } = ended;
    let or_none = |text: &Option<String>| printable(text.as_deref().unwrap_or("-"));
    let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let mut text = format!(
        "{} turn {} by {} | {}/{} | {outcome} {} | in {} cached {} written {} out {}{} | {} | {ms} ms",
        or_none(&who.session),
        number(who.turn.map(u64::from)),
        or_none(&who.author),
        or_none(&who.provider),
        or_none(&who.model),
        number(status.map(u64::from)),
        tokens.input_tokens,
        tokens.cached_input_tokens,
        tokens.cache_write_tokens,
        tokens.output_tokens,
        if tokens.estimated { " (estimated)" } else { "" },
        tokens.cost_nano_usd.map_or_else(
            || "no price".to_owned(),
            |nano| format!("{} USD", usd(nano))
        ),
    );
    if let Some(refused) = refused {
        text.push_str(&format!(" | refused: {}", printable(refused)));
    }
    if *not_written > 0 {
        text.push_str(&format!(" | and {not_written} more refusals"));
    }
    text
}

/// Names in the log come from callers: nothing of them may steer a terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}
