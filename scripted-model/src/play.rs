//! Plays a reply: as a stream at the script's pace, or as one document.

use std::io;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;

use crate::conversation::Dialect;
use crate::encode::{Block, Encoder, Envelope, ErrorText, encoder, whole};
use crate::plan::{Piece, Reply};
use crate::record::Outcome;

/// The stream's receiving end is gone.
struct Gone;

struct Sink {
    tx: mpsc::Sender<io::Result<Bytes>>,
    split: Option<usize>,
}

impl Sink {
    /// One write.
    async fn send(&self, bytes: impl Into<Bytes>) -> Result<(), Gone> {
        let mut bytes: Bytes = bytes.into();
        while !bytes.is_empty() {
            let size = self.split.unwrap_or(usize::MAX).min(bytes.len());
            self.tx
                .send(Ok(bytes.split_to(size)))
                .await
                .map_err(|_| Gone)?;
        }
        Ok(())
    }

    async fn wait(&self, time: Duration) -> Result<(), Gone> {
        if time.is_zero() {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            () = self.tx.closed() => Err(Gone),
        }
    }
}

/// Pauses after each item, which makes the server flush: a delta must not wait for the
/// next one, nor be lost when an error follows it.
pub(crate) fn flushed<S>(items: S) -> impl Stream<Item = S::Item> + Send
where
    S: Stream + Send + Unpin,
{
    let mut items = items;
    let mut pause = false;
    futures::stream::poll_fn(move |cx| {
        if std::mem::take(&mut pause) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let item = std::task::ready!(items.poll_next_unpin(cx));
        pause = item.is_some();
        Poll::Ready(item)
    })
}

/// Streams the reply. `None` is a client that left.
pub(crate) async fn stream(
    dialect: Dialect,
    envelope: Envelope,
    reply: Reply,
    tx: mpsc::Sender<io::Result<Bytes>>,
) -> Option<Outcome> {
    let sink = Sink {
        tx,
        split: reply.split_bytes,
    };
    let encoder = encoder(dialect, envelope, reply.usage);
    play(&sink, encoder, &reply).await.ok()
}

async fn play(sink: &Sink, mut encoder: Box<dyn Encoder>, reply: &Reply) -> Result<Outcome, Gone> {
    // A stream that is broken from its first byte has no beginning either.
    if !matches!(
        reply.pieces.first(),
        Some(Piece::Raw(_) | Piece::EndlessLine(_) | Piece::End)
    ) {
        sink.send(encoder.begin()).await?;
    }
    let mut open: Option<Block> = None;
    for piece in &reply.pieces {
        if let Some(block) = block_of(piece)
            && open.as_ref() != Some(&block)
        {
            if open.take().is_some() {
                sink.send(encoder.close()).await?;
            }
            sink.send(encoder.open(&block)).await?;
            open = Some(block);
        }
        match piece {
            Piece::Text {
                text,
                chunk_chars,
                delay,
                ..
            } => {
                for delta in chunks(text, *chunk_chars) {
                    sink.send(encoder.delta(delta)).await?;
                    sink.wait(*delay).await?;
                }
            }
            Piece::Tool { arguments, .. } => {
                for delta in chunks(arguments, Some(40)) {
                    sink.send(encoder.delta(delta)).await?;
                }
            }
            Piece::Flood { count, text } => {
                for _ in 0..*count {
                    sink.send(encoder.delta(text)).await?;
                }
            }
            Piece::Wait(time) => sink.wait(*time).await?,
            Piece::Raw(bytes) => sink.send(bytes.clone()).await?,
            Piece::EndlessLine(bytes) => {
                sink.send("data: {\"x\":\"").await?;
                for block in filler(*bytes) {
                    sink.send(block).await?;
                }
                return Ok(Outcome::Cut);
            }
            Piece::Error(error) => sink.send(encoder.error(error)).await?,
            Piece::Hang => {
                sink.tx.closed().await;
                return Err(Gone);
            }
            Piece::Abort => {
                let error = io::Error::new(io::ErrorKind::ConnectionAborted, "as scripted");
                sink.tx.send(Err(error)).await.map_err(|_| Gone)?;
                return Ok(Outcome::Cut);
            }
            Piece::End => return Ok(Outcome::Cut),
        }
    }
    // Providers end a stream at their error event.
    if matches!(reply.pieces.last(), Some(Piece::Error(_))) {
        return Ok(Outcome::Complete);
    }
    if open.is_some() {
        sink.send(encoder.close()).await?;
    }
    sink.send(encoder.finish(reply.finish, &reply.usage))
        .await?;
    Ok(Outcome::Complete)
}

fn block_of(piece: &Piece) -> Option<Block> {
    match piece {
        Piece::Text { thinking: true, .. } => Some(Block::Thinking),
        Piece::Text { .. } | Piece::Flood { .. } => Some(Block::Text),
        Piece::Tool { id, name, .. } => Some(Block::Tool {
            id: id.clone(),
            name: name.clone(),
        }),
        Piece::Wait(_)
        | Piece::Raw(_)
        | Piece::EndlessLine(_)
        | Piece::Error(_)
        | Piece::Hang
        | Piece::Abort
        | Piece::End => None,
    }
}

/// Splits a text into deltas: words with the space around them, or so many characters.
fn chunks(text: &str, chars: Option<usize>) -> impl Iterator<Item = &str> {
    let mut left = text;
    std::iter::from_fn(move || {
        if left.is_empty() {
            return None;
        }
        let end = match chars {
            Some(n) => left.char_indices().nth(n).map(|(i, _)| i),
            None => word_end(left),
        };
        let (delta, rest) = left.split_at(end.unwrap_or(left.len()));
        left = rest;
        Some(delta)
    })
}

/// Where the second word begins.
fn word_end(text: &str) -> Option<usize> {
    let (mut word, mut space) = (false, false);
    for (i, c) in text.char_indices() {
        match (c.is_whitespace(), word, space) {
            (true, true, _) => space = true,
            (true, false, _) => {}
            (false, true, true) => return Some(i),
            (false, _, _) => word = true,
        }
    }
    None
}

/// So many bytes of one letter, in blocks that share their memory.
pub(crate) fn filler(bytes: u64) -> impl Iterator<Item = Bytes> + Send {
    let block = Bytes::from(vec![b'a'; 64 * 1024]);
    let mut left = bytes;
    std::iter::from_fn(move || {
        let size = left.min(block.len() as u64);
        left -= size;
        (size > 0).then(|| block.slice(..size as usize))
    })
}

/// A reply without streaming.
#[derive(Debug)]
pub(crate) enum Whole {
    Document(String),
    /// The document's first half; then the connection breaks, or the body just ends.
    Half {
        text: String,
        abort: bool,
    },
    Raw(Bytes),
    EndlessLine(u64),
    Error(ErrorText),
    Hang,
}

/// Waits as long as the stream would have taken and returns everything at once.
pub(crate) async fn document(dialect: Dialect, envelope: &Envelope, reply: &Reply) -> Whole {
    let mut blocks: Vec<(Block, String)> = Vec::new();
    let mut half = None;
    for piece in &reply.pieces {
        if let Some(block) = block_of(piece)
            && blocks.last().is_none_or(|(last, _)| *last != block)
        {
            blocks.push((block, String::new()));
        }
        let mut add = |text: &str| {
            if let Some((_, content)) = blocks.last_mut() {
                content.push_str(text);
            }
        };
        match piece {
            Piece::Text {
                text,
                chunk_chars,
                delay,
                ..
            } => {
                add(text);
                if !delay.is_zero() {
                    let deltas = chunks(text, *chunk_chars).count() as u32;
                    tokio::time::sleep(delay.saturating_mul(deltas)).await;
                }
            }
            Piece::Tool { arguments, .. } => add(arguments),
            Piece::Flood { count, text } => (0..*count).for_each(|_| add(text)),
            Piece::Wait(time) => tokio::time::sleep(*time).await,
            Piece::Raw(bytes) => return Whole::Raw(bytes.clone()),
            Piece::EndlessLine(bytes) => return Whole::EndlessLine(*bytes),
            Piece::Error(error) => return Whole::Error(error.clone()),
            Piece::Hang => return Whole::Hang,
            Piece::Abort | Piece::End => {
                half = Some(*piece == Piece::Abort);
                break;
            }
        }
    }
    let text = whole(dialect, envelope, &blocks, reply.finish, &reply.usage).to_string();
    match half {
        None => Whole::Document(text),
        Some(abort) => {
            let mut middle = text.len() / 2;
            while !text.is_char_boundary(middle) {
                middle += 1;
            }
            Whole::Half {
                text: text[..middle].to_owned(),
                abort,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deltas_add_up_to_the_text() {
        for text in [
            "",
            " ",
            "one",
            "  two  words \n\n three\r\n",
            "\u{1f680} \u{0}x\u{a0}ü",
        ] {
            assert_eq!(chunks(text, None).collect::<String>(), text);
            assert_eq!(chunks(text, Some(1)).collect::<String>(), text);
            assert_eq!(chunks(text, Some(1)).count(), text.chars().count());
        }
        assert_eq!(
            chunks(" a  b c", None).collect::<Vec<_>>(),
            [" a  ", "b ", "c"]
        );
    }

    #[test]
    fn filler_has_the_length_asked_for() {
        let sum = |n| filler(n).map(|b| b.len() as u64).sum::<u64>();
        assert_eq!(
            (sum(0), sum(1), sum(65_536), sum(200_001)),
            (0, 1, 65_536, 200_001)
        );
    }
}
