//! What people read is what the journal says, whatever happens to the files.

use super::{Bell, Scribe, digest::Digest, files, state, words};
use crate::store::{
    Store,
    record::{Always, Note, Record},
    session::{Running, Session, now},
    tests::{created, turn},
};
use contract::{
    Event, EventBody, Usage,
    approval::Decision,
    event::{
        ApprovalEvent, ApprovalState, Complete, ErrorEvent, MAIN_AGENT, Output, OutputSource,
        Status, StatusKind, TurnError,
    },
};
use journal::{Health, Journal, Log};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

const NAMES: [&str; 2] = [files::STATE, files::DECISIONS];

fn event(turn: u32, body: EventBody) -> Event {
    Event {
        turn,
        ts: now(),
        agent: MAIN_AGENT.into(),
        body,
    }
}

fn approval(state: ApprovalState, by: Option<&str>) -> EventBody {
    EventBody::Approval(ApprovalEvent {
        approval_id: "per_1".into(),
        state,
        permission: "bash".into(),
        patterns: vec!["rm -rf `burrow`".into(), "ls\n# heading".into()],
        tool: None,
        call_id: None,
        until: None,
        decided: None,
        by: by.map(Into::into),
        message: by.map(|_| "go\u{7} on".into()),
    })
}

fn text(n: u64) -> EventBody {
    EventBody::Output(Output {
        text: "x".into(),
        part_id: "prt_1".into(),
        offset: n,
        source: OutputSource::Assistant,
        replace: false,
    })
}

async fn end(store: &Store, session: &Session, running: &Running, turn: u32, body: EventBody) {
    let ticket = session.end(event(turn, body)).unwrap();
    store.durable(session, ticket).await.unwrap();
    session.ended(running);
}

/// Three turns: one with all that decides, one cancelled, one failed; the fourth is left under way.
async fn story(store: &Store) {
    let (session, running) = store.create(created("hare"), None, turn(1)).await.unwrap();
    session.append(event(1, text(0))).unwrap();
    session
        .append(event(1, approval(ApprovalState::Pending, None)))
        .unwrap();
    let answer = approval(ApprovalState::Approved, Some("alice"));
    let ticket = session.append(event(1, answer)).unwrap();
    store.durable(&session, ticket).await.unwrap();
    let always = Always {
        permission: "bash".into(),
        patterns: vec!["ls".into()],
        decision: Decision::Once,
    };
    session.note(Note::Always(always)).unwrap();
    let mut step = Status::new(StatusKind::Step, "step 1 ended");
    step.usage = Some(Usage {
        input_tokens: 7,
        ..Usage::default()
    });
    session.append(event(1, EventBody::Status(step))).unwrap();
    let complete = Complete {
        files_modified: vec!["a".into()],
        ..Complete::default()
    };
    end(store, &session, &running, 1, EventBody::Complete(complete)).await;
    let ends = [
        EventBody::Status(Status::new(StatusKind::Cancelled, "the turn was cancelled")),
        EventBody::Error(ErrorEvent {
            error: "it ended".into(),
            fatal: true,
            code: TurnError::AgentDied,
        }),
    ];
    for (number, body) in (2..).zip(ends) {
        let running = store.begin_turn(&session, turn(number)).await.unwrap();
        end(store, &session, &running, number, body).await;
    }
    store.begin_turn(&session, turn(4)).await.unwrap();
    session.note(Note::TakenUp { turn: 4, at: now() }).unwrap();
    for (kind, why) in [
        (StatusKind::Watchdog, "the tool digs in vain"),
        (StatusKind::AgentRestarted, "it did not obey"),
    ] {
        let status = EventBody::Status(Status::new(kind, why));
        session.append(event(4, status)).unwrap();
    }
    let ticket = session.append(event(4, text(0))).unwrap();
    store.durable(&session, ticket).await.unwrap();
}

fn read(dir: &Path) -> [String; 2] {
    NAMES.map(|name| std::fs::read_to_string(dir.join("hare").join(name)).unwrap())
}

/// A busy machine takes its time.
fn without_durations(text: &str) -> String {
    let digit = |c: char| c.is_ascii_digit();
    let mut parts = text.split(" after ");
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |all, part| {
        all + " after …" + part.trim_start_matches(digit)
    })
}

/// A start and an end: the files are as the journal says.
fn restart(dir: &Path) -> [String; 2] {
    drop(Store::open(dir).unwrap());
    read(dir)
}

#[tokio::test]
async fn deleting_or_garbling_the_files_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    story(&store).await;
    drop(store);
    let [state, decisions] = read(dir.path());
    let digest = state::parse(state.as_bytes()).unwrap();
    assert_eq!(
        (
            digest.turn,
            digest.turns_complete,
            digest.turns_failed,
            digest.turns_cancelled
        ),
        (4, 1, 1, 1)
    );
    assert_eq!(
        (
            digest.usage.input_tokens,
            digest.restarts,
            digest.first_event
        ),
        (7, 2, 1)
    );
    for part in [
        "# hare\n",
        "turn 1 was asked for by `",
        "turn 1: consent is needed for `bash` of `rm -rf 'burrow'`, `ls # heading` (approval `per_1`)",
        "turn 1: `alice` allowed `bash`",
        ": `go on`\n",
        "`bash` of `ls` needs no consent in this session",
        "turn 1 was completed after … s, 1 file changed",
        "turn 2 was cancelled after … s",
        "turn 3 failed after … s (agent_died): `it ended`",
        "took turn 4 up again",
        "turn 4: the watchdog saw: `the tool digs in vain`",
        "turn 4: OpenCode was restarted: `it did not obey`",
    ] {
        let said = without_durations(&decisions);
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
    // The agent's text is worth no line: how much of it `state.json` counts is settled by the next start.
    let expected = restart(dir.path());
    assert_eq!(expected[1], decisions);
    assert_eq!(restart(dir.path()), expected, "nothing happened");
    let paths = NAMES.map(|name| dir.path().join("hare").join(name));
    for path in &paths {
        std::fs::remove_file(path).unwrap();
        assert_eq!(
            restart(dir.path()),
            expected,
            "{} was deleted",
            path.display()
        );
    }
    paths
        .iter()
        .for_each(|path| std::fs::remove_file(path).unwrap());
    assert_eq!(restart(dir.path()), expected, "both were deleted");
    for path in &paths {
        let whole = std::fs::read(path).unwrap();
        let mut longer = whole.clone();
        longer.extend_from_slice(b"- more\n");
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for garbled in [
            &b""[..],
            b"\xff\x00",
            &whole[..whole.len() / 2],
            &longer,
            &flipped,
        ] {
            std::fs::write(path, garbled).unwrap();
            assert_eq!(
                restart(dir.path()),
                expected,
                "{} was garbled",
                path.display()
            );
        }
    }
}

#[tokio::test]
async fn the_last_good_copy_stays_when_the_present_one_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    story(&store).await;
    drop(store);
    let folder = dir.path().join("hare");
    let present = files::read_state(&folder).unwrap();
    let old = std::fs::read(folder.join(files::STATE_OLD)).unwrap();
    let old = state::parse(&old).unwrap();
    assert!(old.last_event <= present.last_event);
    std::fs::write(folder.join(files::STATE), b"garbage").unwrap();
    assert_eq!(files::read_state(&folder), Some(old.clone()));
    // Garbage does not take the good copy's place.
    files::replace_state(&folder, &state::encode(&present)).unwrap();
    std::fs::write(folder.join(files::STATE), b"garbage").unwrap();
    assert_eq!(files::read_state(&folder), Some(old));
}

async fn until(what: &str, mut f: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !f() {
        assert!(Instant::now() < deadline, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn files_that_cannot_be_written_break_no_turn_and_come_later() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let (session, running) = store.create(created("hare"), None, turn(1)).await.unwrap();
    let folder = dir.path().join("hare");
    until("state.json", || folder.join(files::STATE).exists()).await;
    // A folder cannot be replaced by a file.
    std::fs::remove_file(folder.join(files::DECISIONS)).unwrap();
    std::fs::create_dir(folder.join(files::DECISIONS)).unwrap();
    std::fs::write(folder.join(files::DECISIONS).join("x"), b"").unwrap();
    end(
        &store,
        &session,
        &running,
        1,
        EventBody::Complete(Complete::default()),
    )
    .await;
    let running = store.begin_turn(&session, turn(2)).await.unwrap();
    end(
        &store,
        &session,
        &running,
        2,
        EventBody::Complete(Complete::default()),
    )
    .await;
    std::fs::remove_dir_all(folder.join(files::DECISIONS)).unwrap();
    let has_both = || {
        std::fs::read_to_string(folder.join(files::DECISIONS))
            .is_ok_and(|text| text.contains("turn 2 was completed"))
    };
    until("decisions.md", || {
        store.bell.again();
        has_both()
    })
    .await;
}

/// A log of one event, whose files a scribe of its own keeps.
fn log(dir: &Path) -> (Journal<Record>, Arc<Log<Record>>, PathBuf) {
    let journal = Journal::open(dir, journal::Options::default()).unwrap();
    let log = journal.create("hare").unwrap();
    let complete = EventBody::Complete(Complete::default());
    log.append(Record::Event(event(1, complete))).unwrap();
    (journal, log, dir.join("hare"))
}

#[tokio::test]
async fn nothing_is_written_while_the_disk_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let (_journal, log, folder) = log(dir.path());
    until("the event", || log.position().last == 1).await;
    let (health, told) = tokio::sync::watch::channel(Health::Full);
    let bell = Bell::default();
    let scribe = Scribe::spawn(dir.path(), bell.clone(), told, [log].into_iter()).unwrap();
    until("the look", || bell.wanted().logs.is_empty()).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(NAMES.iter().all(|name| !folder.join(name).exists()));
    health.send_replace(Health::Ok);
    until("the files", || {
        bell.again();
        NAMES.iter().all(|name| folder.join(name).exists())
    })
    .await;
    drop(scribe);
}

#[test]
fn any_flipped_bit_of_state_json_is_noticed() {
    let digest = Digest {
        session_id: "hare".into(),
        epoch: "00000000000000aa".into(),
        last_event: 7,
        reason: "wörks \"well\"\n".into(),
        open_approvals: [("per_1".into(), "bash".into())].into(),
        ..Digest::default()
    };
    let bytes = state::encode(&digest);
    assert_eq!(state::parse(&bytes).unwrap(), digest);
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(read) = state::parse(&flipped) {
            assert_eq!(read, digest, "bit {bit}");
        }
    }
    assert!(state::parse(&vec![b' '; state::SIZE_MAX + 1]).is_err());
}

#[test]
fn what_others_wrote_is_one_short_line() {
    assert_eq!(words::plain("a\r\n\n\tb\u{1b}[31m  c ", 100), "a b [31m c");
    assert_eq!(words::plain("äöü", 4), "äö…");
    let error = EventBody::Error(ErrorEvent {
        error: "`\n# x <script>\n".repeat(1000),
        fatal: true,
        code: TurnError::ProviderError,
    });
    let line = words::of_event(&event(1, error), None).unwrap();
    assert!(
        line.len() < 600 && line.matches('\n').count() == 1,
        "{line}"
    );
    assert_eq!(line.matches('`').count(), 2, "{line}");
}
