use super::*;
use crate::store::record::Record;
use contract::{
    Event, EventBody,
    event::{MAIN_AGENT, Status, StatusKind},
};
use jiff::Timestamp;
use journal::{Journal, Options};
use serde_json::Value;
use std::time::{Duration, Instant};

/// A journal of two sessions with so many events each.
fn journal(dir: &Path, counts: [u64; 2]) -> Journal<Record> {
    let journal = Journal::open(dir, Options::default()).unwrap();
    for (name, count) in ["one", "two"].into_iter().zip(counts) {
        let log = journal.create(name).unwrap();
        for n in 1..=count {
            let status = Status::new(StatusKind::Step, format!("step {n}"));
            log.append(Record::Event(Event {
                turn: 1,
                ts: Timestamp::UNIX_EPOCH,
                agent: MAIN_AGENT.into(),
                body: EventBody::Status(status),
            }))
            .unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while log.position().last < count {
            assert!(Instant::now() < deadline, "it never became durable");
            std::thread::yield_now();
        }
    }
    journal
}

/// What a command prints, and whether it found damage.
fn run(args: &[&str]) -> (String, bool) {
    let command = Command::try_parse_from(["journal"].iter().chain(args)).unwrap();
    let mut out = Vec::new();
    let damaged = match &command.action {
        Action::Dump(dump) => run_dump(dump, &mut out),
        Action::Verify(folder) => run_verify(folder, &mut out),
    };
    (String::from_utf8(out).unwrap(), damaged.unwrap())
}

fn segment(dir: &Path) -> PathBuf {
    let mut files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    files
        .find(|path| path.extension().is_some_and(|e| e == "seg"))
        .unwrap()
}

#[test]
fn events_are_printed_while_the_journal_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let _journal = journal(dir.path(), [5, 3]);
    let folder = dir.path().to_str().unwrap();
    let (text, damaged) = run(&["dump", folder]);
    assert!(!damaged);
    let lines: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let seen: Vec<_> = lines
        .iter()
        .map(|l| (l["session"].as_str().unwrap(), l["n"].as_u64().unwrap()))
        .collect();
    assert_eq!(
        seen,
        [
            ("one", 1),
            ("one", 2),
            ("one", 3),
            ("one", 4),
            ("one", 5),
            ("two", 1),
            ("two", 2),
            ("two", 3)
        ]
    );
    assert_eq!(lines[1]["event"]["progress"], "step 2");
    let one = dir.path().join("one");
    let (text, _) = run(&[
        "dump",
        one.to_str().unwrap(),
        "--after",
        "2",
        "--limit",
        "2",
    ]);
    assert_eq!(text.lines().count(), 2);
    assert!(text.starts_with(r#"{"session":"one","n":3,"#), "{text}");
    assert_eq!(run(&["dump", folder, "--limit", "0"]).0, "");
    let (text, damaged) = run(&["verify", folder]);
    assert!(!damaged);
    assert!(
        text.contains("one: epoch ") && text.contains("events 1 to 5"),
        "{text}"
    );
    assert!(text.ends_with("whole: 2 sessions, 8 events\n"), "{text}");
}

#[test]
fn damage_is_told_and_what_is_whole_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    journal(dir.path(), [5, 3]).close().unwrap();
    let folder = dir.path().to_str().unwrap();
    let path = segment(&dir.path().join("one"));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (text, damaged) = run(&["verify", folder]);
    assert!(damaged && text.contains("DAMAGED at byte"), "{text}");
    assert!(text.contains("damaged: 1 of 2 sessions"), "{text}");
    let (text, damaged) = run(&["dump", folder]);
    assert!(damaged);
    assert!(
        text.contains(r#""session":"one","n":1"#) && text.contains(r#""session":"two","n":3"#),
        "{text}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "nothing is repaired");
}

#[test]
fn a_torn_end_is_no_damage_and_strange_payloads_are_printed() {
    let dir = tempfile::tempdir().unwrap();
    journal(dir.path(), [2, 1]).close().unwrap();
    let path = segment(&dir.path().join("one"));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend_from_slice(&[1, 2, 3]);
    std::fs::write(&path, &bytes).unwrap();
    let (text, damaged) = run(&["verify", dir.path().to_str().unwrap()]);
    assert!(!damaged && text.contains("torn end of 3 bytes"), "{text}");
}

#[test]
fn a_folder_that_is_not_there_is_an_error() {
    let command = Command::try_parse_from(["journal", "verify", "/no/such/folder"]).unwrap();
    let Action::Verify(folder) = &command.action else {
        panic!()
    };
    let error = run_verify(folder, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("/no/such/folder"), "{error}");
    assert!(Command::try_parse_from(["journal", "mend"]).is_err());
}
