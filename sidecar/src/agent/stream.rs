//! OpenCode's events as they happen: `GET /event`, one JSON text per `data:` line.
//!
//! OpenCode cannot repeat events: whatever was not read is told as [`StreamItem::Skipped`] or by the
//! stream's end, and the reader reconciles with the stored messages.

use super::{
    http::Answer,
    opencode::{OpenCode, OpenCodeError},
    wire::OcEvent,
};
use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use std::{io, time::Duration};
use tokio::time::Instant;

/// Longest line, in bytes.
pub(crate) const LINE_MAX: usize = 16 * 1024 * 1024;
/// What a line's buffer may keep when the line is done, in bytes.
const KEEP: usize = 256 * 1024;

/// What comes out of the stream.
#[derive(Debug, PartialEq)]
pub(crate) enum StreamItem {
    /// An event and the length of its line in bytes.
    Event(Box<OcEvent>, usize),
    /// A line that was too long or made no sense: something happened, not known what.
    Skipped,
}

/// Why the stream ended. After any of these another one has to be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("the event stream cannot be opened")]
    Open(#[from] OpenCodeError),
    #[error("nothing came through the event stream for {0:?}")]
    Silent(Duration),
    #[error("a line of the event stream was not finished within {0:?}")]
    Slow(Duration),
    #[error("OpenCode closed the event stream")]
    Closed,
    #[error("the event stream broke")]
    Broken(#[source] io::Error),
}

/// An open stream. Dropping it closes the connection.
pub(crate) struct EventStream {
    answer: Answer,
    chunk: Bytes,
    lines: Lines,
    silence: Duration,
    line_within: Duration,
    /// Time spent waiting for the rest of the current line. Time in which nobody asks does not count.
    waited: Duration,
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream").finish_non_exhaustive()
    }
}

impl EventStream {
    /// Opens the stream. When this returns OpenCode has said its first word, so all that happens from
    /// now on comes through.
    ///
    /// # Errors
    /// No connection, any status but 200, or no first event in time.
    pub(crate) async fn open(opencode: &OpenCode) -> Result<Self, StreamError> {
        let bounds = opencode.bounds();
        let mut stream = Self {
            answer: opencode.open_events().await?,
            chunk: Bytes::new(),
            lines: Lines::new(LINE_MAX),
            silence: bounds.quick,
            line_within: bounds.line,
            waited: Duration::ZERO,
        };
        stream.next().await?;
        stream.silence = bounds.silence;
        Ok(stream)
    }

    /// The next item. Cancel safe: an item that was not returned comes with the next call.
    ///
    /// # Errors
    /// The stream is over.
    pub(crate) async fn next(&mut self) -> Result<StreamItem, StreamError> {
        loop {
            while !self.chunk.is_empty() {
                if let Some(line) = self.lines.take(&mut self.chunk) {
                    self.waited = Duration::ZERO;
                    if let Some(item) = read(&line) {
                        return Ok(item);
                    }
                }
            }
            if self.waited >= self.line_within {
                return Err(StreamError::Slow(self.line_within));
            }
            let asked = Instant::now();
            let frame = tokio::time::timeout(self.silence, self.answer.body.frame())
                .await
                .map_err(|_| StreamError::Silent(self.silence))?;
            if self.lines.is_within() {
                self.waited += asked.elapsed();
            }
            match frame {
                None => return Err(StreamError::Closed),
                Some(Err(error)) => return Err(StreamError::Broken(io::Error::other(error))),
                Some(Ok(frame)) => self.chunk = frame.into_data().unwrap_or_default(),
            }
        }
    }
}

/// `None` for what carries nothing: empty lines, comments and fields that OpenCode does not use.
fn read(line: &Line<'_>) -> Option<StreamItem> {
    let Line::Whole(line) = line else {
        return Some(StreamItem::Skipped);
    };
    let data = line.strip_prefix(b"data:")?;
    Some(match OcEvent::parse(data.trim_ascii()) {
        Ok(event) => StreamItem::Event(Box::new(event), line.len()),
        Err(error) => {
            tracing::debug!(%error, bytes = line.len(), "skipped an event of OpenCode");
            StreamItem::Skipped
        }
    })
}

/// Cuts bytes into lines, with at most `most` bytes in hand.
struct Lines {
    most: usize,
    held: Vec<u8>,
    /// The current line was too long; its rest is thrown away as it comes.
    too_long: bool,
    /// `held` was given out and is to be emptied before it is used again.
    done: bool,
}

/// A line without its end.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    Whole(&'a [u8]),
    TooLong,
}

impl Lines {
    fn new(most: usize) -> Self {
        Self {
            most,
            held: Vec::new(),
            too_long: false,
            done: false,
        }
    }

    /// Whether a line has begun and not ended.
    fn is_within(&self) -> bool {
        self.too_long || (!self.done && !self.held.is_empty())
    }

    /// Takes bytes up to the end of a line; `None`: `chunk` is used up and the line goes on.
    fn take(&mut self, chunk: &mut Bytes) -> Option<Line<'_>> {
        if self.done {
            self.done = false;
            self.held.clear();
            // One huge line must not cost its memory for ever.
            self.held.shrink_to(KEEP);
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let piece = chunk.split_to(end.unwrap_or(chunk.len()));
        if !self.too_long && self.held.len() + piece.len() > self.most {
            self.too_long = true;
            self.held = Vec::new();
        }
        if !self.too_long {
            self.held.extend_from_slice(&piece);
        }
        end?;
        chunk.advance(1);
        self.done = true;
        if std::mem::take(&mut self.too_long) {
            return Some(Line::TooLong);
        }
        let line = self.held.as_slice();
        Some(Line::Whole(line.strip_suffix(b"\r").unwrap_or(line)))
    }
}

/// Any bytes as a stream, in pieces of any length: the same lines come out however it is cut.
pub(crate) fn fuzz_lines(data: &[u8]) {
    const MOST: usize = 300;
    let cut = |size: usize| {
        let mut lines = Lines::new(MOST);
        let mut out = Vec::new();
        for piece in data.chunks(size) {
            let mut chunk = Bytes::copy_from_slice(piece);
            while !chunk.is_empty() {
                if let Some(line) = lines.take(&mut chunk) {
                    let _ = read(&line);
                    out.push(match line {
                        Line::Whole(line) => Some(line.to_vec()),
                        Line::TooLong => None,
                    });
                }
            }
            assert!(lines.held.len() <= MOST);
        }
        out
    };
    let whole = cut(data.len().max(1));
    assert!(whole.iter().flatten().all(|line| line.len() <= MOST));
    for size in [1, 7, 64] {
        assert_eq!(cut(size), whole);
    }
}
