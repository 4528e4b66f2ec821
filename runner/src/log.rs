//! JSON lines on stderr, in the shape of the other processes: `timestamp`, `level`, fields, `message`,
//! `target`.
//!
//! A formatter of its own instead of `tracing-subscriber`, which would be a third of this binary. A
//! thread writes, fed by a bounded queue: whoever reads the container's log may stall (a full disk of
//! the node), and the runner must not stall with it. What does not fit is counted and said.

use serde_json::{Map, Value};
use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Lines that wait for the writer; with the longest ones about 4 MiB.
const QUEUE: usize = 256;

enum Item {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

static WRITER: OnceLock<SyncSender<Item>> = OnceLock::new();
static LOST: AtomicU64 = AtomicU64::new(0);
static DEBUG: OnceLock<bool> = OnceLock::new();

/// Starts the writer. Before it, and in unit tests, lines go nowhere.
pub fn init() {
    let (sender, receiver) = sync_channel(QUEUE);
    let thread = std::thread::Builder::new()
        .name("log".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || write_all(&receiver));
    if thread.is_ok() && WRITER.set(sender).is_ok() {
        let level = std::env::var("LOG_LEVEL")
            .unwrap_or_default()
            .to_lowercase();
        let _ = DEBUG.set(level == "debug" || level == "trace");
    }
}

fn write_all(receiver: &Receiver<Item>) {
    let mut stderr = std::io::stderr();
    for item in receiver {
        // Nothing can be done about a stderr that is gone.
        match item {
            Item::Line(line) => drop(stderr.write_all(&line)),
            Item::Flush(done) => drop(done.send(())),
        }
        let lost = LOST.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let fields = [("lines", lost.into())];
            let line = format(
                "WARN",
                "runner",
                "log lines were lost: the reader is slow",
                &fields,
            );
            drop(stderr.write_all(&line));
        }
    }
}

/// Waits until what was logged is written, at most `limit`.
pub fn flush(limit: Duration) {
    let (done, wait) = sync_channel(1);
    if let Some(writer) = WRITER.get()
        && writer.try_send(Item::Flush(done)).is_ok()
    {
        let _ = wait.recv_timeout(limit);
    }
}

/// Logs for developers, with `LOG_LEVEL=debug`.
pub fn debug(message: &str, fields: &[(&str, Value)]) {
    if DEBUG.get() == Some(&true) {
        submit("DEBUG", "runner", message, fields);
    }
}

/// Logs what happened.
pub fn info(message: &str, fields: &[(&str, Value)]) {
    submit("INFO", "runner", message, fields);
}

/// Logs what is wrong but goes on.
pub fn warn(message: &str, fields: &[(&str, Value)]) {
    submit("WARN", "runner", message, fields);
}

/// Logs what failed.
pub fn error(message: &str, fields: &[(&str, Value)]) {
    submit("ERROR", "runner", message, fields);
}

/// Relays a line of OpenCode.
pub(crate) fn relay(stream: &str, line: &str, truncated: bool) {
    let fields = [("stream", stream.into()), ("truncated", truncated.into())];
    let fields = if truncated { &fields[..] } else { &fields[..1] };
    submit("INFO", "opencode", line, fields);
}

fn submit(level: &str, target: &str, message: &str, fields: &[(&str, Value)]) {
    if let Some(writer) = WRITER.get()
        && writer
            .try_send(Item::Line(format(level, target, message, fields)))
            .is_err()
    {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

fn format(level: &str, target: &str, message: &str, fields: &[(&str, Value)]) -> Vec<u8> {
    let mut line = Map::new();
    line.insert(
        "timestamp".to_owned(),
        jiff::Timestamp::now().to_string().into(),
    );
    line.insert("level".to_owned(), level.into());
    line.insert("message".to_owned(), message.into());
    for (name, value) in fields {
        line.insert((*name).to_owned(), value.clone());
    }
    line.insert("target".to_owned(), target.into());
    let mut text = Value::Object(line).to_string().into_bytes();
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_object_whatever_is_in_the_message() {
        let line = format(
            "INFO",
            "opencode",
            "a\n\"b\"\u{1b}[31m",
            &[("stream", "stderr".into())],
        );
        assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
        let value: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["message"], "a\n\"b\"\u{1b}[31m");
        assert_eq!(value["stream"], "stderr");
        assert!(value["timestamp"].as_str().unwrap().ends_with('Z'));
    }
}
