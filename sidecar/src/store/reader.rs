//! A cursor that pulls from the journal: replay and live are one path.

use super::{
    record::event_json,
    session::Session,
    tail::{Found, Piece, Run, Tail},
};
use contract::{
    Cursor,
    event::{Gap, GapReason},
};
use journal::ReadError;
use std::sync::Arc;

/// Most bytes read from the journal at once.
const BATCH_BYTES: usize = 256 * 1024;
/// The same for what readers near the end share.
const SHARED_BYTES: usize = 64 * 1024;
/// How many events before the last one "near the end" is.
const NEAR: u64 = 1024;

/// A position in a session, ready to be read on from.
pub(crate) struct Reader {
    session: Arc<Session>,
    tail: Arc<Tail>,
    /// Number of the last event that the reader has.
    after: u64,
}

/// The cursor lies in the future.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("lies in the future: the last event is {last}")]
pub(crate) struct FutureCursor {
    pub last: u64,
}

/// The journal could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReaderError {
    #[error("the journal cannot be read")]
    Read(#[from] ReadError),
    #[error("the reading thread ended")]
    Thread(#[from] tokio::task::JoinError),
}

impl Reader {
    /// A reader from `cursor` on, or from the first event. A cursor that cannot be served gives one
    /// gap and goes on with what is left.
    pub(crate) fn open(
        session: Arc<Session>,
        cursor: Option<Cursor>,
    ) -> Result<(Self, Option<Gap>), FutureCursor> {
        let position = session.log().position();
        let kept = position.first.saturating_sub(1);
        let (after, gap) = match cursor {
            Some(cursor) if cursor.epoch != session.epoch() => (
                kept,
                Some(Gap {
                    from: 1,
                    to: kept,
                    reason: GapReason::EpochChanged,
                }),
            ),
            Some(cursor) if cursor.n > position.last => {
                return Err(FutureCursor {
                    last: position.last,
                });
            }
            Some(cursor) if cursor.n < kept => (
                kept,
                Some(Gap {
                    from: cursor.n + 1,
                    to: kept,
                    reason: GapReason::Trimmed,
                }),
            ),
            Some(cursor) => (cursor.n, None),
            None if kept > 0 => (
                kept,
                Some(Gap {
                    from: 1,
                    to: kept,
                    reason: GapReason::Trimmed,
                }),
            ),
            None => (0, None),
        };
        let tail = session.tail();
        let reader = Self {
            session,
            tail,
            after,
        };
        Ok((reader, gap))
    }

    #[cfg(test)]
    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    pub(crate) fn after(&self) -> u64 {
        self.after
    }

    pub(crate) fn cursor(&self) -> Cursor {
        Cursor {
            epoch: self.session.epoch(),
            n: self.after,
        }
    }

    /// The next events as a stream sends them; `None` when there is no more now. With `until` the
    /// piece ends with the last event of that turn or a later one, and says so. Cancel safe: the
    /// position moves only when it returns.
    pub(crate) async fn next_sse(
        &mut self,
        until: Option<u32>,
    ) -> Result<Option<Piece>, ReaderError> {
        let next = self.after + 1;
        let last = self.session.log().position().last;
        if last < next {
            return Ok(None);
        }
        let run = if last - self.after > NEAR {
            self.run(BATCH_BYTES).await?
        } else {
            match self.tail.find(next).await {
                Found::Here(run) => Some(run),
                Found::Missing(reading) => {
                    let run = self.run(SHARED_BYTES).await?;
                    run.inspect(|run| reading.share(run))
                }
            }
        };
        let Some(run) = run else { return Ok(None) };
        let piece = run.piece(self.after, until);
        self.after = piece.last;
        Ok(Some(piece))
    }

    /// Up to `limit` events as their number and JSON.
    pub(crate) async fn page(&mut self, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, ReaderError> {
        let mut page: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut bytes = 0;
        while page.len() < limit && bytes < 4 * BATCH_BYTES {
            let Some(batch) = self.batch(BATCH_BYTES).await? else {
                break;
            };
            for (n, payload) in batch.iter().take(limit - page.len()) {
                let json = event_json(payload).unwrap_or(b"null");
                bytes += json.len();
                page.push((n, json.to_vec()));
                self.after = n;
            }
        }
        Ok(page)
    }

    /// What comes next, in its sent form.
    async fn run(&self, max_bytes: usize) -> Result<Option<Arc<Run>>, ReaderError> {
        let epoch = self.session.epoch();
        let batch = self.batch(max_bytes).await?;
        Ok(batch
            .and_then(|batch| Run::new(epoch, &batch))
            .map(Arc::new))
    }

    async fn batch(&self, max_bytes: usize) -> Result<Option<journal::Batch>, ReaderError> {
        let log = Arc::clone(self.session.log());
        let after = self.after;
        if log.position().last <= after {
            return Ok(None);
        }
        let batch = tokio::task::spawn_blocking(move || log.read(after, max_bytes)).await??;
        Ok(Some(batch).filter(|batch| !batch.is_empty()))
    }
}
