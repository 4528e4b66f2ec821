//! Checkpoints by request, spoken as the sidecar does.

use crate::harness::Runner;
use contract::runner::{Failure, Reply, Request, TakePolicy};
use std::fs;

fn policy() -> TakePolicy {
    TakePolicy {
        include_ignored: false,
        max_bytes: 1 << 30,
    }
}

fn take(runner: &Runner) -> String {
    let request = Request::CheckpointTake {
        policy: policy(),
        guide: None,
    };
    match runner.ask(&request) {
        Reply::Taken(taken) => taken.root,
        other => panic!("{other:?}"),
    }
}

fn restore(runner: &Runner, root: &str) -> Reply {
    runner.ask(&Request::CheckpointRestore {
        root: root.to_owned(),
        policy: policy(),
    })
}

fn code(reply: &Reply) -> Option<Failure> {
    match reply {
        Reply::Failed { code, .. } => Some(*code),
        _ => None,
    }
}

/// All replies to one request.
fn replies(runner: &Runner, request: &Request) -> Vec<Reply> {
    let mut line = serde_json::to_vec(request).unwrap();
    line.push(b'\n');
    let answer = runner.raw(&line);
    answer
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_workspace_is_kept_compared_and_brought_back() {
    let runner = Runner::start();
    fs::create_dir_all(runner.path("w")).unwrap();
    fs::create_dir_all(runner.path("h")).unwrap();
    fs::write(runner.path("w/a"), "one\n").unwrap();
    let first = take(&runner);
    fs::write(runner.path("w/a"), "two\n").unwrap();
    fs::write(runner.path("w/b"), "new\n").unwrap();
    let second = take(&runner);
    let diff = Request::CheckpointDiff {
        from: Some(first.clone()),
        to: Some(second.clone()),
        files: 10,
        bytes: 1000,
    };
    let told = replies(&runner, &diff);
    let [
        Reply::Difference(a),
        Reply::Difference(b),
        Reply::End { truncated: false },
    ] = &told[..]
    else {
        panic!("{told:?}");
    };
    assert_eq!((a.path.as_str(), a.status.as_str()), ("a", "modified"));
    assert_eq!((b.path.as_str(), b.status.as_str()), ("b", "added"));
    let patch = Request::CheckpointPatch {
        from: Some(first.clone()),
        to: Some(second),
        bytes: 1000,
    };
    let told = replies(&runner, &patch);
    assert!(
        matches!(&told[..], [Reply::Chunk { .. }, Reply::End { .. }]),
        "{told:?}"
    );
    let reply = restore(&runner, &first);
    assert!(
        matches!(
            &reply,
            Reply::Restored {
                exact: true,
                written: 1,
                removed: 1,
                ..
            }
        ),
        "{reply:?}"
    );
    assert_eq!(fs::read_to_string(runner.path("w/a")).unwrap(), "one\n");
    assert!(!runner.path("w/b").exists());
}

#[test]
fn what_is_not_there_is_refused() {
    let runner = Runner::start();
    fs::create_dir_all(runner.path("w")).unwrap();
    fs::create_dir_all(runner.path("h")).unwrap();
    fs::write(runner.path("w/a"), "one\n").unwrap();
    for (root, failure) in [
        ("0".repeat(64), Failure::Damaged),
        ("x".to_owned(), Failure::BadRequest),
        ("../../../etc/passwd".to_owned(), Failure::BadRequest),
    ] {
        assert_eq!(code(&restore(&runner, &root)), Some(failure), "{root}");
    }
    let branch = Request::CheckpointBranch {
        root: take(&runner),
        name: "x".to_owned(),
        message: String::new(),
        time: 0,
    };
    assert_eq!(code(&runner.ask(&branch)), Some(Failure::Blocked));
    assert_eq!(fs::read_to_string(runner.path("w/a")).unwrap(), "one\n");
}
