use crate::agent::runner::{Runner, RunnerError};
use contract::runner::{Failure, LINE_MAX, Launch, Phase, Reply, State};
use std::{path::PathBuf, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::mpsc,
};

/// A socket that answers every request with the same bytes; the requests come out of the channel.
fn answering(
    bytes: Vec<u8>,
    close: bool,
) -> (tempfile::TempDir, Runner, mpsc::UnboundedReceiver<String>) {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("r.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (sender, bytes) = (sender.clone(), bytes.clone());
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                sender.send(line).unwrap();
                let mut stream: UnixStream = stream.into_inner();
                // The client may be gone before all is written.
                let _ = stream.write_all(&bytes).await;
                if !close {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    (dir, Runner::new(&path), receiver)
}

fn line(reply: &Reply) -> Vec<u8> {
    let mut line = serde_json::to_vec(reply).unwrap();
    line.push(b'\n');
    line
}

fn state(generation: u64) -> State {
    State {
        generation,
        runner_id: "r1".into(),
        phase: Phase::Running { pid: 7 },
        isolation: None,
    }
}

fn launch() -> Launch {
    Launch {
        program: "/opencode".into(),
        args: vec!["serve".into()],
        env: [("A".to_owned(), "1".to_owned())].into(),
        home_files: [("x".to_owned(), "y".to_owned())].into(),
        git_init: true,
        confinement: contract::runner::Confinement::default(),
    }
}

#[tokio::test]
async fn a_request_is_one_line_and_its_reply_is_read() {
    let (_dir, runner, mut got) = answering(line(&Reply::State(state(3))), false);
    assert_eq!(runner.start(launch()).await.unwrap(), state(3));
    let sent: contract::runner::Request = serde_json::from_str(&got.recv().await.unwrap()).unwrap();
    assert_eq!(sent, contract::runner::Request::start(launch()));
}

#[tokio::test]
async fn a_failure_keeps_its_code() {
    let failed = Reply::Failed {
        code: Failure::DiskFull,
        message: "the volume is full".into(),
    };
    let (_dir, runner, _got) = answering(line(&failed), true);
    let error = runner.check_workspace().await.unwrap_err();
    assert!(
        matches!(
            error,
            RunnerError::Failed {
                code: Failure::DiskFull,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(error.to_string(), "the volume is full");
    assert!(matches!(
        runner.watch().await.unwrap().next().await,
        Err(RunnerError::Failed { .. })
    ));
}

#[tokio::test]
async fn replies_of_another_kind_are_errors() {
    let (_dir, runner, _got) = answering(line(&Reply::Done), true);
    assert!(matches!(runner.probe().await, Err(RunnerError::Unexpected)));
    assert!(matches!(runner.reap().await, Err(RunnerError::Unexpected)));
    assert!(matches!(
        runner.cgroup().await,
        Err(RunnerError::Unexpected)
    ));
    assert!(matches!(
        runner.start(launch()).await,
        Err(RunnerError::Unexpected)
    ));
    assert!(matches!(
        runner.watch().await.unwrap().next().await,
        Err(RunnerError::Unexpected)
    ));
    assert!(runner.check_workspace().await.is_ok());
}

#[tokio::test]
async fn garbage_endings_and_endless_lines_are_errors() {
    let (_dir, runner, _got) = answering(b"{\"reply\":\"nonsense\"}\n".to_vec(), true);
    assert!(matches!(runner.reap().await, Err(RunnerError::Garbage(_))));
    let (_dir, runner, _got) = answering(b"{\"reply\"".to_vec(), true);
    assert!(matches!(runner.reap().await, Err(RunnerError::Closed)));
    let (_dir, runner, _got) = answering(Vec::new(), true);
    assert!(matches!(runner.reap().await, Err(RunnerError::Closed)));
    let (_dir, runner, _got) = answering(vec![b'x'; 2 * LINE_MAX], false);
    assert!(matches!(runner.reap().await, Err(RunnerError::TooLarge)));
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let runner = Runner::new("/nonexistent/r.sock".as_ref());
    assert!(matches!(
        runner.probe().await,
        Err(RunnerError::Unreachable(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_never_answers_is_given_up() {
    let (_dir, runner, _got) = answering(Vec::new(), false);
    assert!(matches!(
        runner.check_workspace().await,
        Err(RunnerError::Timeout(_))
    ));
    assert!(matches!(
        runner.stop(Duration::from_secs(1)).await,
        Err(RunnerError::Timeout(_))
    ));
}

#[tokio::test]
async fn a_watch_tells_every_state_and_survives_a_reader_that_looks_away() {
    let mut bytes = line(&Reply::State(state(1)));
    let second = line(&Reply::State(state(2)));
    bytes.extend(&second[..10]);
    let (_dir, runner, _got) = answering(bytes, true);
    let mut watch = runner.watch().await.unwrap();
    assert_eq!(watch.next().await.unwrap(), state(1));
    assert!(matches!(watch.next().await, Err(RunnerError::Closed)));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut watch = Runner::new(&path).watch().await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.write_all(&second[..10]).await.unwrap();
    for _ in 0..3 {
        assert!(
            tokio::time::timeout(Duration::from_millis(10), watch.next())
                .await
                .is_err()
        );
    }
    stream.write_all(&second[10..]).await.unwrap();
    assert_eq!(watch.next().await.unwrap(), state(2));
}
