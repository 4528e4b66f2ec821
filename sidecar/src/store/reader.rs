//! A cursor that pulls from the journal: replay and live are one path.

use super::{
    record::event_json,
    session::Session,
    tail::{Found, Piece, Place, Run, Tail},
};
use bytes::Bytes;
use contract::{
    Cursor,
    event::{Gap, GapReason},
};
use journal::ReadError;
use std::sync::Arc;
use tokio::sync::{Semaphore, oneshot};

/// Most bytes read from the journal at once, by a reader that has one of [`PLACES`].
const BATCH_BYTES: usize = 256 * 1024;
/// The same for all others: what readers near the end share, and those that got no place.
const SMALL_BYTES: usize = 8 * 1024;
/// How many events before the last one "near the end" is.
const NEAR: u64 = 1024;
/// Large pieces that all streams of the process may hold, 16 MiB in all (as sent, one has up to a third more
/// than on disk): with thousands of readers that do not read, memory is bounded by this and a small
/// piece for each. Nobody waits for one.
static PLACES: Semaphore = Semaphore::const_new(48);

/// A position in a session, ready to be read on from.
pub(crate) struct Reader {
    session: Arc<Session>,
    tail: Arc<Tail>,
    /// Number of the last event that the reader has.
    after: u64,
    /// Answers once the last piece is gone: a stream holds one at most.
    sent: Option<oneshot::Receiver<()>>,
}

/// A piece on its way; the reader goes on when it is dropped.
struct OnItsWay {
    bytes: Bytes,
    /// Whose bytes these are.
    _run: Arc<Run>,
    _sent: oneshot::Sender<()>,
}

impl AsRef<[u8]> for OnItsWay {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
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
            sent: None,
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
    /// piece ends with the last event of that turn or a later one, and says so. Waits until the bytes
    /// of the piece before were dropped. Cancel safe: the position moves only when it returns.
    pub(crate) async fn next_sse(
        &mut self,
        until: Option<u32>,
    ) -> Result<Option<Piece>, ReaderError> {
        if let Some(sent) = &mut self.sent {
            // It is dropped without a word.
            let _ = sent.await;
            self.sent = None;
        }
        let next = self.after + 1;
        let last = self.session.log().position().last;
        if last < next {
            return Ok(None);
        }
        let run = if let Some(run) = self.tail.get(next) {
            Some(run)
        } else if last - self.after > NEAR {
            let place = PLACES.try_acquire().ok();
            let most = place.as_ref().map_or(SMALL_BYTES, |_| BATCH_BYTES);
            self.run(most, place).await?
        } else {
            match self.tail.find(next).await {
                Found::Here(run) => Some(run),
                Found::Missing(reading) => {
                    let run = self.run(SMALL_BYTES, None).await?;
                    run.inspect(|run| reading.share(run))
                }
            }
        };
        let Some(run) = run else { return Ok(None) };
        self.tail.remember(&run);
        let mut piece = run.piece(self.after, until);
        self.after = piece.last;
        let (dropped, sent) = oneshot::channel();
        self.sent = Some(sent);
        piece.bytes = Bytes::from_owner(OnItsWay {
            bytes: piece.bytes,
            _run: run,
            _sent: dropped,
        });
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
    async fn run(
        &self,
        max_bytes: usize,
        place: Option<Place>,
    ) -> Result<Option<Arc<Run>>, ReaderError> {
        let epoch = self.session.epoch();
        let batch = self.batch(max_bytes).await?;
        Ok(batch
            .and_then(|batch| Run::new(epoch, &batch, place))
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
