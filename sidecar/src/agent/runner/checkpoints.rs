//! Requests about checkpoints. What the runner says is held to what was asked for: roots are hashes,
//! lists and texts are cut, no more files or bytes are taken than were allowed.

use super::{Lines, Runner, RunnerError, within};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use contract::{
    checkpoint::{CheckpointDiff, Difference, Skipped},
    runner::{Reply, Request, TakePolicy, TakenCheckpoint},
};
use std::time::Duration;

/// The runner's own bound for one piece of work is 300 s, after 60 s of waiting for other work. A restore
/// is three of them.
const WORK: Duration = Duration::from_secs(370);
const RESTORE: Duration = Duration::from_secs(970);
/// Names of left out files that are kept.
const SKIPPED_MAX: usize = 20;
/// Longest path that is kept or shown, in bytes: Linux' own bound.
const PATH_MAX: usize = 4096;

/// A restored workspace.
#[derive(Debug)]
pub(crate) struct RestoredWorkspace {
    pub(crate) written: u64,
    pub(crate) removed: u64,
    pub(crate) exact: bool,
}

/// How much of a comparison is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiffBounds {
    pub(crate) files: u64,
    /// Of all hunks.
    pub(crate) bytes: u64,
}

impl Runner {
    /// Takes a checkpoint of the workspace.
    pub(crate) async fn take_checkpoint(
        &self,
        policy: TakePolicy,
        guide: Option<String>,
    ) -> Result<TakenCheckpoint, RunnerError> {
        let request = Request::CheckpointTake { policy, guide };
        match self.call(&request, WORK).await? {
            Reply::Taken(taken) => checked(taken),
            _ => Err(RunnerError::Unexpected),
        }
    }

    /// Makes the workspace what it was, all of it or nothing. Asking again is the same as once.
    pub(crate) async fn restore_checkpoint(
        &self,
        root: String,
        policy: TakePolicy,
    ) -> Result<RestoredWorkspace, RunnerError> {
        let request = Request::CheckpointRestore { root, policy };
        match self.call(&request, RESTORE).await? {
            Reply::Restored {
                before: _,
                written,
                removed,
                exact,
            } => Ok(RestoredWorkspace {
                written,
                removed,
                exact,
            }),
            _ => Err(RunnerError::Unexpected),
        }
    }

    /// What differs between two checkpoints; `None` is one of nothing.
    pub(crate) async fn diff_checkpoints(
        &self,
        from: Option<String>,
        to: Option<String>,
        bounds: DiffBounds,
    ) -> Result<CheckpointDiff, RunnerError> {
        let DiffBounds { files, bytes } = bounds;
        let request = Request::CheckpointDiff {
            from,
            to,
            files,
            bytes,
        };
        let work = async {
            let mut lines = self.ask(&request).await?;
            let mut diff = CheckpointDiff {
                files: Vec::new(),
                truncated: false,
            };
            let mut left = bytes;
            loop {
                match next(&mut lines).await? {
                    Reply::Difference(file) => {
                        left = left
                            .checked_sub(file.hunks.len() as u64)
                            .ok_or(RunnerError::Unexpected)?;
                        if diff.files.len() as u64 >= files {
                            return Err(RunnerError::Unexpected);
                        }
                        diff.files.push(shown(file)?);
                    }
                    Reply::End { truncated } => {
                        diff.truncated = truncated;
                        return Ok(diff);
                    }
                    _ => return Err(RunnerError::Unexpected),
                }
            }
        };
        within(WORK, work).await
    }

    /// The same as a patch of at most `most` bytes.
    pub(crate) async fn patch_checkpoints(
        &self,
        from: Option<String>,
        to: Option<String>,
        most: u64,
    ) -> Result<Vec<u8>, RunnerError> {
        let request = Request::CheckpointPatch {
            from,
            to,
            bytes: most,
        };
        let work = async {
            let mut lines = self.ask(&request).await?;
            let mut patch = Vec::new();
            loop {
                match next(&mut lines).await? {
                    Reply::Chunk { data } => {
                        let piece = STANDARD.decode(data).map_err(|_| RunnerError::Unexpected)?;
                        if (patch.len() + piece.len()) as u64 > most {
                            return Err(RunnerError::Unexpected);
                        }
                        patch.extend_from_slice(&piece);
                    }
                    Reply::End { .. } => return Ok(patch),
                    _ => return Err(RunnerError::Unexpected),
                }
            }
        };
        within(WORK, work).await
    }

    /// Writes a checkpoint as a branch; its commit and that one's parent.
    pub(crate) async fn branch_checkpoint(
        &self,
        root: String,
        name: String,
        message: String,
        time: i64,
    ) -> Result<(String, Option<String>), RunnerError> {
        let request = Request::CheckpointBranch {
            root,
            name,
            message,
            time,
        };
        let is_commit = |text: &String| is_hex(text) && matches!(text.len(), 40 | 64);
        match self.call(&request, WORK).await? {
            Reply::Branch { commit, parent }
                if is_commit(&commit) && parent.as_ref().is_none_or(is_commit) =>
            {
                Ok((commit, parent))
            }
            _ => Err(RunnerError::Unexpected),
        }
    }

    /// Forgets all checkpoints but these; bytes of the store.
    pub(crate) async fn prune_checkpoints(&self, keep: Vec<String>) -> Result<u64, RunnerError> {
        match self.call(&Request::CheckpointPrune { keep }, WORK).await? {
            Reply::Pruned { store_bytes } => Ok(store_bytes),
            _ => Err(RunnerError::Unexpected),
        }
    }
}

async fn next(lines: &mut Lines) -> Result<Reply, RunnerError> {
    match lines.next().await? {
        Reply::Failed { code, message } => Err(RunnerError::Failed { code, message }),
        reply => Ok(reply),
    }
}

fn checked(mut taken: TakenCheckpoint) -> Result<TakenCheckpoint, RunnerError> {
    if taken.root.len() != 64 || !is_hex(&taken.root) {
        return Err(RunnerError::Unexpected);
    }
    taken.skipped.truncate(SKIPPED_MAX);
    for Skipped { path, reason } in &mut taken.skipped {
        cut(path, PATH_MAX / SKIPPED_MAX);
        cut(reason, 64);
    }
    Ok(taken)
}

fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn shown(mut file: Difference) -> Result<Difference, RunnerError> {
    if !matches!(file.status.as_str(), "added" | "deleted" | "modified") {
        return Err(RunnerError::Unexpected);
    }
    for mode in [&mut file.old_mode, &mut file.new_mode]
        .into_iter()
        .flatten()
    {
        cut(mode, 6);
    }
    cut(&mut file.path, PATH_MAX);
    Ok(file)
}

fn cut(text: &mut String, most: usize) {
    text.truncate(text.floor_char_boundary(most));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(root: &str) -> TakenCheckpoint {
        TakenCheckpoint {
            root: root.to_owned(),
            files: 1,
            bytes: 1,
            stored_bytes: 1,
            store_bytes: 1,
            packs: 1,
            changing: 0,
            skipped: vec![
                Skipped {
                    path: "ü".repeat(100_000),
                    reason: "r".repeat(100_000),
                };
                1000
            ],
            skipped_count: 1000,
        }
    }

    #[test]
    fn what_the_runner_says_is_cut_or_refused() {
        let good = checked(taken(&"0a".repeat(32))).unwrap();
        let size: usize = good
            .skipped
            .iter()
            .map(|s| s.path.len() + s.reason.len())
            .sum();
        assert!(good.skipped.len() == SKIPPED_MAX && size < 6000, "{size}");
        for bad in ["", "0a", &"0A".repeat(32), &"../".repeat(22)[..64]] {
            assert!(checked(taken(bad)).is_err(), "{bad}");
        }
    }
}
