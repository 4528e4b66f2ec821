//! Checkpoints of the workspace, by request of the sidecar. The work itself is in the crate
//! [`checkpoint`]; here are bounds, threads and words.

use crate::{config::Config, log};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use checkpoint::{Branch, Checkpoints, Error, Limits, Oid, Taken};
use contract::checkpoint::{Difference, Skipped};
use contract::runner::{Failure, Reply, Request, TakePolicy, TakenCheckpoint};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};

/// Below HOME, which is on the session's volume and not in the workspace.
const STORE: &str = ".local/share/opencode-operator/checkpoints";
/// Files and folders of one checkpoint: each takes some dozen bytes of memory when it is new.
const FILES_MAX: u64 = 1_000_000;
/// Longest work on one request; the sidecar waits a little longer.
const TIME: Duration = Duration::from_secs(300);
/// Requests at once: one that writes and one that reads.
const AT_ONCE: usize = 2;
/// Names of left out files that are told.
const SKIPPED_MAX: usize = 20;
/// Bytes of a patch in one line.
const CHUNK: usize = 256 * 1024;

/// The checkpoints of this runner's workspace.
#[derive(Debug)]
pub struct Keeper {
    all: Arc<Checkpoints>,
    places: Arc<Semaphore>,
}

impl Keeper {
    /// For the workspace and HOME of `config`; touches nothing yet.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let home = PathBuf::from(config.var("HOME"));
        Self {
            all: Arc::new(Checkpoints::new(config.workspace.clone(), home, STORE)),
            places: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Ends a restore that the last runner did not, before anybody sees the workspace. Blocks.
    pub fn recover(&self) {
        match self.all.recover() {
            Ok(None) => {}
            Ok(Some((_, done))) => log::info("a cut restore is ended", &[("done", done.into())]),
            Err(error) => log::error(
                "a cut restore could not be ended",
                &[("error", error.to_string().into())],
            ),
        }
    }

    /// Begins a request of this kind; its replies come from the receiver, the last one before it ends.
    /// Dropping the receiver ends what only reads; what writes goes on to its end.
    ///
    /// # Errors
    /// What to answer instead.
    pub async fn begin(
        &self,
        request: Request,
        wait: Duration,
    ) -> Result<mpsc::Receiver<Reply>, Reply> {
        let place = tokio::time::timeout(wait, Arc::clone(&self.places).acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            let message = "other work on checkpoints is under way";
            return Err(failed(Failure::TooSlow, message));
        };
        let (sender, replies) = mpsc::channel(2);
        let all = Arc::clone(&self.all);
        tokio::task::spawn_blocking(move || {
            let last = work(&all, request, &sender);
            // Nobody may listen any more.
            let _ = sender.blocking_send(last);
            // Held by the work, which may outlive its connection.
            drop(place);
        });
        Ok(replies)
    }
}

fn work(all: &Checkpoints, request: Request, sender: &mpsc::Sender<Reply>) -> Reply {
    let began = Instant::now();
    let what = match &request {
        Request::CheckpointTake { .. } => "take",
        Request::CheckpointRestore { .. } => "restore",
        Request::CheckpointDiff { .. } => "diff",
        Request::CheckpointPatch { .. } => "patch",
        Request::CheckpointBranch { .. } => "branch",
        Request::CheckpointPrune { .. } => "prune",
        _ => return failed(Failure::BadRequest, "this is no request for checkpoints"),
    };
    let done = answer(all, request, sender);
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    match done {
        Ok(reply) => {
            log::debug("checkpoint", &[("what", what.into()), ("ms", ms.into())]);
            reply
        }
        Err(error) => {
            let text = error.to_string();
            log::warn(
                "checkpoint failed",
                &[
                    ("what", what.into()),
                    ("ms", ms.into()),
                    ("error", text.as_str().into()),
                ],
            );
            failed(failure(&error), &text)
        }
    }
}

fn answer(
    all: &Checkpoints,
    request: Request,
    sender: &mpsc::Sender<Reply>,
) -> Result<Reply, Error> {
    match request {
        Request::CheckpointTake { policy, guide } => {
            let guide = guide.as_deref().map(Oid::parse).transpose()?;
            all.take_beside(&limits(&policy), guide)
                .map(|t| Reply::Taken(taken(t)))
        }
        Request::CheckpointRestore { root, policy } => {
            let target = Oid::parse(&root)?;
            let restored = all.restore(target, &root, &limits(&policy))?;
            Ok(Reply::Restored {
                before: taken(restored.before),
                written: restored.written,
                removed: restored.removed,
                exact: restored.exact,
            })
        }
        Request::CheckpointDiff {
            from,
            to,
            files,
            bytes,
        } => {
            let (mut files, mut bytes) = (files, bytes);
            let (from, to) = (parse(from)?, parse(to)?);
            let all_told = all.diff(from, to, TIME, &mut |file| {
                if files == 0 {
                    return Ok(false);
                }
                files -= 1;
                let mut file = file;
                if file.hunks.len() as u64 > bytes {
                    file.hunks.clear();
                    file.cut = true;
                }
                bytes -= file.hunks.len() as u64;
                sender
                    .blocking_send(Reply::Difference(difference(file)))
                    .map_err(|_| gone())?;
                Ok(true)
            })?;
            Ok(Reply::End {
                truncated: !all_told,
            })
        }
        Request::CheckpointPatch { from, to, bytes } => {
            let (from, to) = (parse(from)?, parse(to)?);
            let mut held = Vec::with_capacity(CHUNK);
            let send = |piece: &[u8]| {
                let data = STANDARD.encode(piece);
                sender
                    .blocking_send(Reply::Chunk { data })
                    .map_err(|_| gone())
            };
            all.patch(from, to, bytes, TIME, &mut |piece| {
                for piece in piece.chunks(CHUNK) {
                    held.extend_from_slice(piece);
                    if held.len() >= CHUNK {
                        send(&held)?;
                        held.clear();
                    }
                }
                Ok(())
            })?;
            if !held.is_empty() {
                send(&held)?;
            }
            Ok(Reply::End { truncated: false })
        }
        Request::CheckpointBranch {
            root,
            name,
            message,
            time,
        } => {
            let branch = Branch {
                name,
                message,
                time,
            };
            let made = all.branch(Oid::parse(&root)?, &branch, TIME)?;
            Ok(Reply::Branch {
                commit: made.commit,
                parent: made.parent,
            })
        }
        Request::CheckpointPrune { keep } => {
            let keep: Vec<Oid> = keep
                .iter()
                .map(|root| Oid::parse(root))
                .collect::<Result<_, _>>()?;
            let store_bytes = all.prune(&keep, TIME)?;
            Ok(Reply::Pruned { store_bytes })
        }
        _ => Err(Error::Invalid(
            "this is no request for checkpoints".to_owned(),
        )),
    }
}

fn parse(root: Option<String>) -> Result<Option<Oid>, Error> {
    root.as_deref().map(Oid::parse).transpose()
}

fn gone() -> Error {
    Error::Invalid("nobody listens any more".to_owned())
}

fn limits(policy: &TakePolicy) -> Limits {
    Limits {
        include_ignored: policy.include_ignored,
        max_files: FILES_MAX,
        max_pack_bytes: policy.max_bytes,
        time: TIME,
    }
}

fn taken(taken: Taken) -> TakenCheckpoint {
    let skipped = taken.skipped.into_iter().take(SKIPPED_MAX);
    TakenCheckpoint {
        root: taken.root.to_string(),
        files: taken.files,
        bytes: taken.bytes,
        stored_bytes: taken.new_bytes,
        store_bytes: taken.store_bytes,
        packs: taken.packs,
        changing: taken.changing,
        skipped: skipped
            .map(|skipped| Skipped {
                path: String::from_utf8_lossy(&skipped.path).into_owned(),
                reason: skipped.why.to_owned(),
            })
            .collect(),
        skipped_count: taken.skipped_count,
    }
}

fn difference(file: checkpoint::Difference) -> Difference {
    let status = match (&file.old_mode, &file.new_mode) {
        (None, _) => "added",
        (_, None) => "deleted",
        _ => "modified",
    };
    Difference {
        path: file.path,
        status: status.to_owned(),
        old_mode: file.old_mode,
        new_mode: file.new_mode,
        binary: file.binary,
        hunks: file.hunks,
        cut: file.cut,
        additions: file.additions,
        deletions: file.deletions,
    }
}

/// The stable reason of an error.
fn failure(error: &Error) -> Failure {
    match error {
        Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            Failure::Denied
        }
        Error::Io { .. } => Failure::Io,
        Error::Full(_) => Failure::DiskFull,
        Error::Quota(_) | Error::TooLarge(_) => Failure::TooLarge,
        Error::Corrupt(_) => Failure::Damaged,
        Error::TooSlow => Failure::TooSlow,
        Error::Blocked(_) => Failure::Blocked,
        Error::Invalid(_) => Failure::BadRequest,
        Error::Unfinished(_) => Failure::Unfinished,
    }
}

fn failed(code: Failure, message: &str) -> Reply {
    Reply::Failed {
        code,
        message: message.to_owned(),
    }
}
