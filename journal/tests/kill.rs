//! A process that appends is killed with SIGKILL at any moment, again and again.
#![expect(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use journal::{AppendError, Entry, Journal, Log, Options};

const CHILD: &str = "JOURNAL_KILL_DIR";
const LOGS: [&str; 3] = ["a", "b", "c"];

/// The numbers `first..=last`.
struct Run {
    first: u64,
    last: u64,
}

impl Entry for Run {
    fn is_event(&self) -> bool {
        !self.first.is_multiple_of(7)
    }

    fn merge(&mut self, next: Self) -> Result<(), Self> {
        if self.is_event() != next.is_event() || !next.first.is_multiple_of(3) {
            return Err(next);
        }
        self.last = next.last;
        Ok(())
    }

    fn size(&self) -> usize {
        16
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&self.last.to_le_bytes());
        // Some are large, so that a write can be cut in its middle.
        out.resize(out.len() + (self.first % 50 * 40) as usize, 0xaa);
    }
}

/// The queue is small: what is acknowledged between two syncs has to be read again each round.
fn options() -> Options {
    Options {
        segment_bytes: 200_000,
        queue_bytes: 3000,
        ..Options::default()
    }
}

/// Checks that the numbers follow each other; returns the last.
fn last_number(log: &Log<Run>) -> u64 {
    let mut last = 0;
    let mut events = 0;
    log.scan(&mut |frame| {
        let number = |at: usize| u64::from_le_bytes(frame.payload[at..at + 8].try_into().unwrap());
        assert_eq!(number(0), last + 1, "a number is missing or doubled");
        last = number(8);
        if frame.event.is_some() {
            events += 1;
            assert_eq!(frame.event, Some(events));
        }
    })
    .unwrap();
    assert_eq!(log.position().last, events);
    last
}

/// Not a test of its own: what [`survives_kills`] runs and kills.
#[test]
fn child() {
    let Ok(dir) = std::env::var(CHILD) else {
        return;
    };
    let journal = Journal::open(Path::new(&dir), options()).unwrap();
    let mut logs = journal.logs();
    for name in LOGS {
        if !logs.iter().any(|log| log.name() == name) {
            logs.push(journal.create(name).unwrap());
        }
    }
    let writers: Vec<_> = logs
        .into_iter()
        .map(|log| std::thread::spawn(|| append(log)))
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
}

fn append(log: Arc<Log<Run>>) {
    let begin = last_number(&log);
    let name = log.name().to_owned();
    log.on_durable(Box::new(move |position| {
        // Tickets count appends, and each one is a number.
        let line = format!("\nACK {name} {}\n", begin + position.ticket);
        // The pipe is gone when the parent is.
        if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
            std::process::exit(1);
        }
    }));
    let mut next = begin + 1;
    loop {
        match log.append(Run {
            first: next,
            last: next,
        }) {
            Ok(_) => next += 1,
            Err(AppendError::Backlogged) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn survives_kills() {
    let kills = std::env::var("JOURNAL_KILLS").map_or(200, |v| v.parse().expect("a number"));
    let mut dir = tempfile::tempdir().unwrap();
    let mut epochs = None;
    let mut total = 0;
    for round in 0..kills {
        // All of it is read again each round, so it must not grow for ever.
        if round % 10 == 9 {
            dir = tempfile::tempdir().unwrap();
            epochs = None;
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        // Let it say something, then kill it wherever it is. What it has said by then counts.
        let mut enough = 1 + round * 7 % 60;
        let mut acked = [0; LOGS.len()];
        let mut lines = BufReader::new(stdout);
        let mut line = String::new();
        while lines.read_line(&mut line).unwrap() > 0 {
            // A line cut by the kill has no end and says nothing.
            if let Some(ack) = line.strip_prefix("ACK ").and_then(|l| l.strip_suffix('\n')) {
                let (name, number) = ack.split_once(' ').unwrap();
                let log = LOGS.iter().position(|n| *n == name).unwrap();
                acked[log] = number.parse::<u64>().unwrap();
                enough -= 1;
                if enough == 0 {
                    child.kill().unwrap();
                }
            }
            line.clear();
            if enough == 0 {
                enough = u32::MAX;
            }
        }
        child.wait().unwrap();
        let journal = Journal::<Run>::open(dir.path(), options()).unwrap();
        assert_eq!(journal.repairs(), []);
        let logs = journal.logs();
        for (name, acked) in LOGS.iter().zip(acked) {
            let Some(log) = logs.iter().find(|log| log.name() == *name) else {
                assert_eq!(acked, 0);
                continue;
            };
            let last = last_number(log);
            assert!(
                last >= acked,
                "round {round}: {name} has {last}, {acked} was acknowledged"
            );
            total += last;
        }
        if logs.len() == LOGS.len() {
            let now: Vec<_> = logs.iter().map(|log| log.epoch()).collect();
            assert_eq!(*epochs.get_or_insert(now.clone()), now);
        }
    }
    assert!(total > 0, "the child has written");
}
