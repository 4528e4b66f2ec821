//! Logs as they are written, killed, cut and edited.

use super::{
    Audit, AuditError, Bounds, Ended, Started, files,
    record::{Counted, NO_HASH, Who},
    recover::recover,
    verify::verify,
};
use contract::spend::{AuditHead, Tokens};
use sha2::{Digest as _, Sha256};
use std::{fs, path::Path};

const SMALL: Bounds = Bounds {
    bytes: 1200,
    files: 3,
};

fn who(session: &str) -> Who {
    Who {
        session: Some(session.into()),
        turn: Some(3),
        author: Some("walrus".into()),
        api: "chat".into(),
        provider: Some("acme".into()),
        model: Some("m-1".into()),
        ..Who::default()
    }
}

fn started(call: u64) -> Started {
    Started {
        call,
        who: who("heron"),
        input_tokens: 500,
        cost_nano_usd: Some(7),
    }
}

fn ended(call: Option<u64>) -> Ended {
    let tokens = Tokens {
        input: 10,
        output: 5,
        cached_input: 1,
        cache_write: 4,
        ..Tokens::default()
    };
    Ended {
        call,
        who: who("heron"),
        outcome: "ok".into(),
        status: Some(200),
        tokens: Counted {
            cost_nano_usd: Some(100),
            ..Counted::new(tokens, false, None)
        },
        ms: 12,
        ..Ended::default()
    }
}

/// A log of so many calls; answers its head.
async fn write(dir: &Path, bounds: Bounds, calls: u64) -> AuditHead {
    let (audit, totals) = Audit::open(dir, bounds).unwrap();
    for call in totals.next_call..totals.next_call + calls {
        audit.start(started(call)).await.unwrap();
        audit.end(ended(Some(call))).await.unwrap().unwrap();
    }
    audit.close();
    audit.head().borrow().clone().unwrap()
}

fn found(dir: &Path, head: Option<&str>) -> Vec<String> {
    verify(dir, head).unwrap().findings
}

#[tokio::test]
async fn sums_survive_restarts_and_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let mut heads = Vec::new();
    for round in 1..=10 {
        heads.push(write(dir.path(), SMALL, 3).await);
        let totals = recover(dir.path()).unwrap().totals;
        assert_eq!(
            (totals.spend.calls, totals.spend.cost_nano_usd),
            (3 * round, 300 * round)
        );
        assert_eq!(totals.sessions["heron"].1, totals.spend);
        assert_eq!(totals.next_call, 3 * round);
        assert_eq!(
            found(dir.path(), Some(&heads.last().unwrap().hash)),
            [""; 0]
        );
    }
    let numbers = files::numbers(dir.path()).unwrap();
    assert_eq!(numbers.len(), 3, "{numbers:?}");
    assert!(numbers[0] > 1);
    let size: u64 = numbers
        .iter()
        .map(|n| files::path(dir.path(), *n).metadata().unwrap().len())
        .sum();
    assert!(size < 3 * 3000, "{size}");
    // An older head is still a good anchor, as long as its file is there.
    let oldest = fs::read_to_string(files::path(dir.path(), numbers[0])).unwrap();
    let first: serde_json::Value = serde_json::from_str(oldest.lines().next().unwrap()).unwrap();
    assert_eq!(found(dir.path(), first["hash"].as_str()), [""; 0]);
    assert_eq!(found(dir.path(), Some(&"ab".repeat(32))).len(), 1);
}

/// Makes the log what the version before wrote: without tokens written to a cache, its chain closed.
fn make_older(dir: &Path) {
    const NEW: &str = ",\"cache_write_tokens\":";
    const PREV: &str = "\"prev\":\"";
    let mut prev = NO_HASH.to_owned();
    for number in files::numbers(dir).unwrap() {
        let path = files::path(dir, number);
        let mut older = String::new();
        for line in fs::read_to_string(&path).unwrap().lines() {
            let mut body = line.rsplit_once(",\"hash\":\"").unwrap().0.to_owned();
            while let Some(at) = body.find(NEW) {
                let number = &body[at + NEW.len()..];
                let digits = number.bytes().take_while(u8::is_ascii_digit).count();
                body.replace_range(at..at + NEW.len() + digits, "");
            }
            let at = body.find(PREV).unwrap() + PREV.len();
            body.replace_range(at..at + prev.len(), &prev);
            prev = format!("{:x}", Sha256::digest(&body));
            older.push_str(&format!("{body},\"hash\":\"{prev}\"}}\n"));
        }
        assert!(!older.contains("cache_write"));
        fs::write(path, older).unwrap();
    }
}

#[test]
fn what_was_sent_counts_whatever_became_of_it() {
    let tokens = ended(None).tokens;
    assert_eq!(tokens.sent(), 10 + 1 + 4);
    assert_eq!(tokens.spend().tokens(), tokens.sent() + 5);
}

#[tokio::test]
async fn a_log_of_the_version_before_goes_on_with_its_sums() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), SMALL, 3).await;
    assert!(
        files::numbers(dir.path()).unwrap().len() > 1,
        "one begins with sums"
    );
    make_older(dir.path());
    let head = write(dir.path(), Bounds::default(), 1).await;
    assert_eq!(found(dir.path(), Some(&head.hash)), [""; 0]);
    let spend = recover(dir.path()).unwrap().totals.spend;
    assert_eq!(
        (spend.calls, spend.input_tokens, spend.cost_nano_usd),
        (4, 40, 400)
    );
    assert_eq!(spend.cache_write_tokens, 4, "what was counted as such");
}

#[tokio::test]
async fn calls_that_never_ended_count_by_their_estimate() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, _) = Audit::open(dir.path(), Bounds::default()).unwrap();
    audit.start(started(0)).await.unwrap();
    audit.start(started(1)).await.unwrap();
    audit.end(ended(Some(1))).await.unwrap().unwrap();
    // As after a kill: the rest of a line that was being written.
    audit.close();
    let path = files::path(dir.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(b"{\"n\":9,\"pre");
    fs::write(&path, bytes).unwrap();
    assert_eq!(found(dir.path(), None).len(), 1, "the torn line");

    let (audit, totals) = Audit::open(dir.path(), Bounds::default()).unwrap();
    assert_eq!(totals.spend.calls, 2);
    assert_eq!(totals.spend.input_tokens, 510);
    assert_eq!(totals.spend.cost_nano_usd, 107);
    assert_eq!(totals.spend.estimated_calls, 1);
    audit.close();
    assert_eq!(found(dir.path(), None), [""; 0]);
    assert_eq!(
        recover(dir.path()).unwrap().totals.spend.calls,
        2,
        "once only"
    );
}

#[tokio::test]
async fn refusals_are_no_calls() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, _) = Audit::open(dir.path(), Bounds::default()).unwrap();
    audit.end(ended(None)).await.unwrap().unwrap();
    audit.close();
    assert_eq!(recover(dir.path()).unwrap().totals.spend.calls, 0);
}

#[tokio::test]
async fn every_edited_byte_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let head = write(dir.path(), SMALL, 4).await;
    assert!(files::numbers(dir.path()).unwrap().len() > 1);
    let mut tried = 0;
    for number in files::numbers(dir.path()).unwrap() {
        let path = files::path(dir.path(), number);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            for flip in [0x01, 0x20, 0x80] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                fs::write(&path, &bad).unwrap();
                assert!(
                    !found(dir.path(), Some(&head.hash)).is_empty(),
                    "byte {at} of {number}"
                );
                tried += 1;
            }
        }
        fs::write(&path, &good).unwrap();
    }
    assert!(tried > 5000, "{tried}");
    assert_eq!(found(dir.path(), Some(&head.hash)), [""; 0]);
}

#[tokio::test]
async fn every_removed_swapped_or_doubled_line_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let head = write(dir.path(), SMALL, 5).await.hash;
    let numbers = files::numbers(dir.path()).unwrap();
    let lines: Vec<(u64, Vec<u8>)> = numbers
        .iter()
        .flat_map(|number| {
            let text = fs::read(files::path(dir.path(), *number)).unwrap();
            let lines: Vec<_> = text
                .split_inclusive(|b| *b == b'\n')
                .map(<[u8]>::to_vec)
                .collect();
            lines.into_iter().map(|line| (*number, line))
        })
        .collect();
    let put = |lines: &[(u64, Vec<u8>)]| {
        for number in &numbers {
            let text: Vec<u8> = lines
                .iter()
                .filter(|(n, _)| n == number)
                .flat_map(|(_, l)| l.clone())
                .collect();
            fs::write(files::path(dir.path(), *number), text).unwrap();
        }
    };
    for a in 0..lines.len() {
        let mut cut = lines.clone();
        cut.remove(a);
        put(&cut);
        assert!(
            !found(dir.path(), Some(&head)).is_empty(),
            "without line {a}"
        );
        let mut twice = lines.clone();
        twice.insert(a, lines[a].clone());
        put(&twice);
        assert!(!found(dir.path(), Some(&head)).is_empty(), "line {a} twice");
        for b in 0..a {
            let mut swapped = lines.clone();
            (swapped[a].1, swapped[b].1) = (lines[b].1.clone(), lines[a].1.clone());
            put(&swapped);
            assert!(
                !found(dir.path(), Some(&head)).is_empty(),
                "lines {a} and {b}"
            );
        }
        // A cut of the end, to any line and to any byte of it.
        put(&lines[..a]);
        assert!(!found(dir.path(), Some(&head)).is_empty(), "cut before {a}");
    }
    put(&lines);
    assert_eq!(found(dir.path(), Some(&head)), [""; 0]);
    // Whole files: the first, one within, the last.
    for number in &numbers {
        let path = files::path(dir.path(), *number);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(
            !found(dir.path(), Some(&head)).is_empty(),
            "without file {number}"
        );
        fs::write(&path, bytes).unwrap();
    }
}

/// Somebody who can compute hashes writes the end anew: only the anchor shows it.
#[tokio::test]
async fn a_forged_end_is_found_by_the_anchor() {
    let dir = tempfile::tempdir().unwrap();
    let head = write(dir.path(), Bounds::default(), 3).await;
    let path = files::path(dir.path(), 1);
    let text = fs::read_to_string(&path).unwrap();
    let kept: Vec<&str> = text.lines().take(3).collect();
    fs::write(&path, kept.join("\n") + "\n").unwrap();
    let forged = write(dir.path(), Bounds::default(), 2).await;
    assert_eq!(forged.count, head.count);
    assert_eq!(found(dir.path(), None), [""; 0]);
    assert_eq!(found(dir.path(), Some(&head.hash)).len(), 1);
}

#[tokio::test]
async fn a_damaged_log_goes_on_in_a_new_file_and_keeps_its_sums() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), Bounds::default(), 3).await;
    let path = files::path(dir.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 200;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (audit, totals) = Audit::open(dir.path(), Bounds::default()).unwrap();
    assert_eq!(
        totals.spend.calls, 3,
        "two that can be read, and one that never ended"
    );
    audit.close();
    assert_eq!(files::numbers(dir.path()).unwrap(), [1, 2]);
    assert!(!found(dir.path(), None).is_empty(), "it stays visible");
    let totals = recover(dir.path()).unwrap().totals;
    assert_eq!(totals.spend.calls, 3);
}

/// A full volume refuses beginnings; ends fit into the reserve.
#[tokio::test]
async fn a_full_volume_refuses_calls_and_still_records_their_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "audit-test"])
        .arg(dir.path())
        .status();
    assert!(
        mounted.is_ok_and(|s| s.success()),
        "a small volume cannot be mounted: this test needs root"
    );
    let (audit, _) = Audit::open(dir.path(), Bounds::default()).unwrap();
    audit.start(started(0)).await.unwrap();
    let filler = dir.path().join("filler");
    let mut size = 256 * 1024;
    while size > 0 {
        if fs::write(&filler, vec![1; size]).is_ok() {
            break;
        }
        size -= 4096;
    }
    // A page may be half free.
    let mut call = 1;
    while audit.start(started(call)).await.is_ok() {
        call += 1;
        assert!(call < 1000);
    }
    assert_eq!(audit.start(started(call)).await, Err(AuditError::Full));
    for call in 0..call {
        audit.end(ended(Some(call))).await.unwrap().unwrap();
    }
    assert_eq!(
        audit.start(started(call)).await,
        Err(AuditError::Full),
        "the reserve is not for these"
    );
    fs::remove_file(&filler).unwrap();
    audit.start(started(call)).await.unwrap();
    audit.end(ended(Some(call))).await.unwrap().unwrap();
    audit.close();
    let findings = found(dir.path(), None);
    let spend = recover(dir.path()).unwrap().totals.spend;
    std::process::Command::new("umount")
        .arg(dir.path())
        .status()
        .unwrap();
    assert_eq!(findings, [""; 0]);
    assert_eq!(spend.calls, call + 1);
}

#[test]
fn many_at_once_share_syncs_and_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .build()
        .unwrap();
    let (audit, _) = Audit::open(dir.path(), SMALL).unwrap();
    let audit = std::sync::Arc::new(audit);
    runtime.block_on(async {
        let tasks = (0..64).map(|call| {
            let audit = std::sync::Arc::clone(&audit);
            tokio::spawn(async move {
                audit.start(started(call)).await.unwrap();
                audit.end(ended(Some(call))).await.unwrap().unwrap();
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    });
    audit.close();
    assert_eq!(found(dir.path(), None), [""; 0]);
    assert_eq!(recover(dir.path()).unwrap().totals.spend.calls, 64);
}
