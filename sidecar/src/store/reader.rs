//! A cursor that pulls from the journal: replay and live are one path.

use super::{record::event_json, session::Session};
use bytes::Bytes;
use contract::{
    Cursor, Event,
    event::{Gap, GapReason},
};
use journal::ReadError;
use std::sync::Arc;

/// Most bytes read from the journal at once.
const BATCH_BYTES: usize = 256 * 1024;

/// Events as a stream sends them.
pub(crate) struct Piece {
    pub bytes: Bytes,
    /// The last one ends the turn that the reader came for.
    pub ends: bool,
}

/// A position in a session, ready to be read on from.
pub(crate) struct Reader {
    session: Arc<Session>,
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
        Ok((Self { session, after }, gap))
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
        let Some(batch) = self.batch(BATCH_BYTES).await? else {
            return Ok(None);
        };
        let epoch = self.session.epoch();
        let mut piece = Piece {
            bytes: Bytes::new(),
            ends: false,
        };
        let mut out = Vec::with_capacity(BATCH_BYTES / 4);
        for (n, payload) in batch.iter() {
            out.extend_from_slice(b"id: ");
            out.extend_from_slice(Cursor { epoch, n }.to_string().as_bytes());
            out.push(b'\n');
            out.extend_from_slice(payload);
            self.after = n;
            if until.is_some_and(|until| ended_turn(payload).is_some_and(|turn| turn >= until)) {
                piece.ends = true;
                break;
            }
        }
        piece.bytes = Bytes::from(out);
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

/// The turn that a stored event ends, if it ends one.
fn ended_turn(payload: &[u8]) -> Option<u32> {
    let may = [
        &b"event: complete\n"[..],
        b"event: error\n",
        b"event: status\n",
    ]
    .iter()
    .any(|prefix| payload.starts_with(prefix));
    if !may {
        return None;
    }
    let event: Event = serde_json::from_slice(event_json(payload)?).ok()?;
    event.body.ends_turn().then_some(event.turn)
}
