//! The log of requests that tests assert on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Still under way.
    Open,
    /// The server sent everything the script has.
    Complete,
    /// The script broke the connection or ended the stream early.
    Cut,
    /// The client left before the end (or the server was stopped).
    ClientGone,
}

/// One request as it arrived.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Counts requests since the start, from 1; does not restart when the log is cleared.
    pub seq: u64,
    /// When the head and body had been read.
    pub time: jiff::Timestamp,
    /// HTTP method.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// Headers in lower case; keys are replaced by their SHA-256 in hexadecimal.
    pub headers: BTreeMap<String, String>,
    /// SHA-256 of the API key in hexadecimal.
    pub key_sha256: Option<String>,
    /// `x-session-id`, else `x-session-affinity`.
    pub session: Option<String>,
    /// Length of the body in bytes.
    pub body_bytes: usize,
    /// The model asked for.
    pub model: Option<String>,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// `max_tokens` (chat, Anthropic).
    pub max_tokens: Option<u64>,
    /// `max_completion_tokens` (chat).
    pub max_completion_tokens: Option<u64>,
    /// `max_output_tokens` (responses).
    pub max_output_tokens: Option<u64>,
    /// Entries in the list of messages or input items.
    pub message_count: usize,
    /// Names of the tools offered.
    pub tools: Vec<String>,
    /// The last 16 KiB of the system text.
    pub system: String,
    /// The last 4 KiB of the newest user message.
    pub last_user: Option<String>,
    /// Whether this is the agent asking for a title.
    pub title_request: bool,
    /// The script played.
    pub scenario: Option<String>,
    /// Its step, from 0.
    pub step: Option<usize>,
    /// HTTP status sent; none if the connection ended before one was.
    pub status: Option<u16>,
    /// How the exchange ended.
    pub outcome: Outcome,
}

/// What `GET /requests` answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RequestPage {
    /// Requests since the start.
    pub total: u64,
    /// Requests no longer in the list.
    pub forgotten: u64,
    /// The newest requests, oldest first.
    pub requests: Vec<RequestRecord>,
}

#[derive(Debug, Default)]
struct Ring {
    total: u64,
    records: VecDeque<RequestRecord>,
}

/// A bounded list of the newest requests.
#[derive(Debug)]
pub struct RequestLog {
    capacity: usize,
    ring: Mutex<Ring>,
    changed: watch::Sender<()>,
}

impl RequestLog {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            ring: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the record under the next number.
    pub(crate) fn push(self: &Arc<Self>, mut record: RequestRecord) -> Ticket {
        let mut ring = self.ring();
        ring.total += 1;
        record.seq = ring.total;
        let seq = record.seq;
        ring.records.push_back(record);
        while ring.records.len() > self.capacity {
            ring.records.pop_front();
        }
        drop(ring);
        self.changed.send_replace(());
        Ticket {
            log: Arc::clone(self),
            seq,
            closed: false,
        }
    }

    fn update(&self, seq: u64, change: impl FnOnce(&mut RequestRecord)) {
        if let Some(record) = self.ring().records.iter_mut().rfind(|r| r.seq == seq) {
            change(record);
        }
        self.changed.send_replace(());
    }

    pub(crate) fn clear(&self) {
        self.ring().records.clear();
        self.changed.send_replace(());
    }

    pub(crate) fn page(&self) -> RequestPage {
        let ring = self.ring();
        RequestPage {
            total: ring.total,
            forgotten: ring.total - ring.records.len() as u64,
            requests: ring.records.iter().cloned().collect(),
        }
    }

    /// Waits until the list satisfies `enough` and returns it. Cancel safe.
    pub(crate) async fn wait_until(
        &self,
        mut enough: impl FnMut(&[RequestRecord]) -> bool,
    ) -> Vec<RequestRecord> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let requests = self.page().requests;
            if enough(&requests) {
                return requests;
            }
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Reports how a recorded request went on; dropped early, it reports a lost client.
#[derive(Debug)]
pub(crate) struct Ticket {
    log: Arc<RequestLog>,
    seq: u64,
    closed: bool,
}

impl Ticket {
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    pub(crate) fn status(&self, status: u16) {
        self.log.update(self.seq, |r| r.status = Some(status));
    }

    pub(crate) fn close(mut self, outcome: Outcome) {
        self.closed = true;
        self.log.update(self.seq, |r| r.outcome = outcome);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.closed {
            self.log
                .update(self.seq, |r| r.outcome = Outcome::ClientGone);
        }
    }
}

/// The last `max` bytes of a text, at a character's border.
pub(crate) fn tail(text: &str, max: usize) -> String {
    let mut from = text.len().saturating_sub(max);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text[from..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_never_splits_a_character() {
        assert_eq!(tail("aé", 1), "");
        assert_eq!(tail("aé", 2), "é");
        assert_eq!(tail("abc", 9), "abc");
    }
}
