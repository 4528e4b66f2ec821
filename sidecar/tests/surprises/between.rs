//! A runner whose answers to a restore are lost or bad, by a relay on its socket: turns wait until the
//! end is known, the work is asked for again, and nothing is restored twice.

use crate::stack::{LONG, Setup, Stack, run};
use contract::{
    ErrorCode, EventBody,
    client::ClientError,
    runner::{Failure, Reply, Request},
};
use serde_json::json;
use std::{
    collections::VecDeque,
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional},
    net::{UnixListener, UnixStream},
};

/// What becomes of one request for a restore.
#[derive(Clone, Copy)]
enum Fate {
    /// It is done, and the answer is lost.
    Lost,
    /// It is not done: the runner says that it stopped in the middle.
    Unfinished,
}

/// Stands at the runner's socket from now on; restores beyond `fates` go through.
struct Between {
    real: PathBuf,
    fates: Mutex<VecDeque<Fate>>,
    restores: AtomicUsize,
}

impl Between {
    fn start(stack: &Stack, fates: impl IntoIterator<Item = Fate>) -> Arc<Self> {
        let (path, real) = (
            stack.dir.join("run/runner.sock"),
            stack.dir.join("run/real.sock"),
        );
        fs::rename(&path, &real).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let between = Arc::new(Self {
            real,
            fates: Mutex::new(fates.into_iter().collect()),
            restores: AtomicUsize::new(0),
        });
        let this = Arc::clone(&between);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let this = Arc::clone(&this);
                // Whoever closes first ends it.
                tokio::spawn(async move { this.pass(stream).await.ok() });
            }
        });
        between
    }

    async fn pass(&self, stream: UnixStream) -> std::io::Result<()> {
        let mut near = BufReader::new(stream);
        let mut line = String::new();
        near.read_line(&mut line).await?;
        let mut far = UnixStream::connect(&self.real).await?;
        let is_restore = matches!(
            serde_json::from_str(&line),
            Ok(Request::CheckpointRestore { .. })
        );
        let fate = is_restore
            .then(|| self.fates.lock().unwrap().pop_front())
            .flatten();
        if is_restore {
            self.restores.fetch_add(1, Ordering::SeqCst);
        }
        match fate {
            None => {
                far.write_all(line.as_bytes()).await?;
                copy_bidirectional(&mut near, &mut far).await?;
            }
            Some(Fate::Lost) => {
                far.write_all(line.as_bytes()).await?;
                let mut lost = String::new();
                BufReader::new(far).read_line(&mut lost).await?;
                assert!(lost.contains("restored"), "{lost}");
            }
            Some(Fate::Unfinished) => {
                let reply = Reply::Failed {
                    code: Failure::Unfinished,
                    message: "x: No space left on device".into(),
                };
                let mut reply = serde_json::to_vec(&reply)?;
                reply.push(b'\n');
                near.write_all(&reply).await?;
                near.read_to_end(&mut Vec::new()).await?;
            }
        }
        Ok(())
    }

    fn restores(&self) -> usize {
        self.restores.load(Ordering::SeqCst)
    }
}

/// A workspace with `a.txt`, checkpointed as `c1`, and changed since.
async fn changed() -> Stack {
    let config = json!({
        "limits": {"maxConcurrentSessions": 10, "turnTimeoutSeconds": 600},
        "checkpoints": {"mode": "on-demand"},
    });
    let stack = Stack::start(Setup::default().config(config)).await;
    fs::write(stack.dir.join("workspace/a.txt"), "one\n").unwrap();
    stack.client.take_checkpoint().await.unwrap();
    fs::write(stack.dir.join("workspace/a.txt"), "two\n").unwrap();
    stack
}

/// What a turn that begins now finds in `a.txt`.
async fn what_a_turn_sees(stack: &Stack) -> String {
    let (_, reader) = stack.play("SCENARIO:bash <<<cat a.txt>>>").await;
    reader.complete();
    let mut output = reader.bodies().filter_map(|body| match body {
        EventBody::ToolResult(result) => Some(result.output.trim().to_owned()),
        _ => None,
    });
    output.next().unwrap()
}

async fn refused(stack: &Stack) -> ErrorCode {
    match stack.client.restore("c1").await {
        Err(ClientError::Api { body, .. }) => body.details.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_restore_whose_answer_is_lost_is_asked_for_again_before_a_turn_works() {
    run(async {
        let stack = changed().await;
        let between = Between::start(&stack, [Fate::Lost]);
        assert_eq!(refused(&stack).await, ErrorCode::AgentUnavailable);
        // The caller does not know it, but the turn comes after it.
        assert_eq!(what_a_turn_sees(&stack).await, "one");
        assert_eq!(between.restores(), 2);
        // Its end is on record: a later process leaves the work of turns alone.
        fs::write(stack.dir.join("workspace/a.txt"), "three\n").unwrap();
        stack.kill_sidecar();
        stack.start_sidecar();
        stack.ready().await;
        assert_eq!(what_a_turn_sees(&stack).await, "three");
        assert_eq!(between.restores(), 2);
    });
}

#[test]
fn a_restore_that_stops_in_the_middle_holds_turns_back_until_it_is_done() {
    run(async {
        let stack = changed().await;
        let between = Between::start(&stack, [Fate::Unfinished; 3]);
        assert_eq!(refused(&stack).await, ErrorCode::CheckpointFailed);
        let list = stack.client.checkpoints().await.unwrap();
        let why = list.last_error.unwrap();
        assert!(
            why.contains("c1 was not restored") && why.contains("No space left"),
            "{why}"
        );
        assert_eq!(what_a_turn_sees(&stack).await, "one");
        assert_eq!(between.restores(), 4);
    });
}

#[test]
fn a_restore_that_never_ends_is_given_up_and_turns_go_on() {
    run(async {
        let stack = changed().await;
        let between = Between::start(&stack, [Fate::Unfinished; 30]);
        assert_eq!(refused(&stack).await, ErrorCode::CheckpointFailed);
        let began = tokio::time::Instant::now();
        assert_eq!(what_a_turn_sees(&stack).await, "two");
        assert!(began.elapsed() < LONG);
        assert_eq!(between.restores(), 30);
        assert_eq!(stack.logged("a restore cannot be finished"), 1);
        // A new one may be asked for.
        let done = stack.client.restore("c1").await.unwrap();
        assert!(done.exact);
        assert_eq!(what_a_turn_sees(&stack).await, "one");
    });
}
