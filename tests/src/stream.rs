//! A reader that notes what it got and insists that nothing is lost, doubled or reordered.

use crate::Session;
use contract::{
    Cursor, Epoch, Event, EventBody, SessionId,
    client::{ClientError, SseEvent, SseStream},
    event::{OutputSource, StatusKind, TurnError},
};
use futures::StreamExt;
use std::{collections::BTreeMap, time::Duration};

/// An event with its number.
#[derive(Clone, Debug)]
pub struct SeenEvent {
    /// Its number.
    pub n: u64,
    /// The event.
    pub event: Event,
    /// Its bytes as sent.
    pub raw: String,
}

/// Everything that a reader got, in order and without holes.
#[derive(Debug, Default)]
pub struct Recorder {
    /// Numbered events.
    pub events: Vec<SeenEvent>,
    /// Gaps that the stream confessed.
    pub gaps: Vec<contract::event::Gap>,
    /// Connections made.
    pub connections: u32,
    epoch: Option<Epoch>,
}

impl Recorder {
    /// Where to go on.
    #[must_use]
    pub fn cursor(&self) -> Option<Cursor> {
        let n = self.events.last()?.n;
        Some(Cursor {
            epoch: self.epoch?,
            n,
        })
    }

    /// Takes one SSE event over. Panics when a number is missing, doubled or out of order.
    pub fn take(&mut self, sse: &SseEvent) {
        let Some(id) = &sse.id else {
            if sse.event == "gap" {
                let event: Event = serde_json::from_str(&sse.data).expect("a gap");
                if let EventBody::Gap(gap) = event.body {
                    self.gaps.push(gap);
                }
            }
            return;
        };
        let cursor: Cursor = id.parse().expect("an id is a cursor");
        let last = self.events.last().map_or(0, |seen| seen.n);
        assert_eq!(
            cursor.n,
            last + 1,
            "events {last} then {} of {self:#?}",
            cursor.n
        );
        assert!(
            self.epoch.is_none_or(|epoch| epoch == cursor.epoch),
            "the epoch changed without a gap"
        );
        self.epoch = Some(cursor.epoch);
        let event: Event =
            serde_json::from_str(&sse.data).expect("an event is JSON of the contract");
        assert_eq!(event.body.name(), sse.event);
        self.events.push(SeenEvent {
            n: cursor.n,
            event,
            raw: sse.data.clone(),
        });
    }

    /// Whether the last event ends a turn.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.events
            .last()
            .is_some_and(|seen| seen.event.body.ends_turn())
    }

    /// Opens the stream from where this reader is; `None` when there is nothing more to come.
    pub async fn open(&mut self, session: &Session, id: &SessionId) -> Option<SseStream> {
        self.connect(session, id, false).await
    }

    /// The same; with `follow` it stays open at the end of the turn.
    pub async fn connect(
        &mut self,
        session: &Session,
        id: &SessionId,
        follow: bool,
    ) -> Option<SseStream> {
        self.connections += 1;
        loop {
            // Asked for anew each time: another pod has another address.
            let client = session.client().await;
            match client.stream(id, self.cursor(), follow).await {
                Ok(stream) => return stream,
                // Not recorded yet.
                Err(ClientError::Api { status: 404, .. }) if self.events.is_empty() => {}
                // On its way down or up.
                Err(ClientError::Api { status: 503, .. } | ClientError::Transport(_)) => {}
                Err(error) => panic!("the stream is refused: {error}; so far: {self:#?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Reads until `seen` is true of what was read, resuming after every cut.
    pub async fn read_until(
        &mut self,
        session: &Session,
        id: &SessionId,
        mut seen: impl FnMut(&Self) -> bool,
    ) {
        loop {
            let Some(mut stream) = self.open(session, id).await else {
                panic!("204 before what was waited for: {self:#?}");
            };
            while let Some(Ok(event)) = stream.next().await {
                self.take(&event);
                if seen(self) {
                    return;
                }
            }
            assert!(
                !self.ended(),
                "the turn ended before what was waited for: {self:#?}"
            );
        }
    }

    /// Reads until the session's turn has ended, resuming after every cut.
    pub async fn read_to_end(&mut self, session: &Session, id: &SessionId) {
        loop {
            let Some(mut stream) = self.open(session, id).await else {
                assert!(self.ended(), "204 although no turn has ended: {self:#?}");
                return;
            };
            while let Some(Ok(event)) = stream.next().await {
                self.take(&event);
            }
            if self.ended() {
                return;
            }
        }
    }

    /// Names of all events.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        self.events
            .iter()
            .map(|seen| seen.event.body.name())
            .collect()
    }

    /// Text of each part of the assistant, by the pieces' own offsets. Panics on a hole or an overlap.
    #[must_use]
    pub fn texts(&self, source: OutputSource) -> BTreeMap<String, String> {
        let mut texts: BTreeMap<String, String> = BTreeMap::new();
        for seen in &self.events {
            if let EventBody::Output(output) = &seen.event.body
                && output.source == source
            {
                let text = texts.entry(output.part_id.clone()).or_default();
                if output.replace {
                    text.clear();
                }
                assert_eq!(
                    output.offset,
                    text.len() as u64,
                    "event {} of part {}",
                    seen.n,
                    output.part_id
                );
                text.push_str(&output.text);
            }
        }
        texts
    }

    /// The last event of each turn.
    #[must_use]
    pub fn ends(&self) -> Vec<&Event> {
        self.events
            .iter()
            .map(|seen| &seen.event)
            .filter(|event| event.body.ends_turn())
            .collect()
    }

    /// Whether the last event is this status.
    #[must_use]
    pub fn says(&self, kind: StatusKind) -> bool {
        matches!(self.events.last().map(|seen| &seen.event.body), Some(EventBody::Status(s)) if s.status == kind)
    }

    /// Why the last turn failed; panics when it did not fail.
    pub fn failed(&self) -> TurnError {
        match self.events.last().map(|seen| &seen.event.body) {
            Some(EventBody::Error(error)) if error.fatal => error.code,
            other => panic!(
                "the turn has not failed but ended with {other:?}; events: {:#?}",
                self.events
            ),
        }
    }

    /// Insists that what an earlier reader got is the beginning of this, byte for byte.
    pub fn continues(&self, earlier: &Self) {
        assert_eq!(self.epoch, earlier.epoch, "another history");
        for (now, before) in self.events.iter().zip(&earlier.events) {
            assert_eq!(
                (now.n, &now.raw),
                (before.n, &before.raw),
                "a stored event changed"
            );
        }
        assert!(
            self.events.len() >= earlier.events.len(),
            "{} events, before {}",
            self.events.len(),
            earlier.events.len()
        );
    }

    /// The final message; panics when the last turn is not complete.
    pub fn completed(&self) -> &contract::event::Complete {
        match self.events.last().map(|seen| &seen.event.body) {
            Some(EventBody::Complete(complete)) => complete,
            other => panic!(
                "the turn is not complete but ended with {other:?}; events: {:#?}",
                self.events
            ),
        }
    }

    /// Checks what must hold for every history: each turn has exactly one end and nothing after it, every
    /// call has exactly one result where its turn is complete.
    pub fn check(&self) {
        let mut over = 0;
        let mut calls: BTreeMap<&str, u32> = BTreeMap::new();
        for seen in &self.events {
            assert!(
                seen.event.turn > over,
                "event {} comes after the end of its turn",
                seen.n
            );
            match &seen.event.body {
                EventBody::ToolCall(call) => {
                    assert!(
                        calls.insert(&call.call_id, 0).is_none(),
                        "call {} twice",
                        call.call_id
                    );
                }
                EventBody::ToolResult(result) => {
                    let count = calls
                        .get_mut(result.call_id.as_str())
                        .expect("a call before its result");
                    *count += 1;
                    assert_eq!(*count, 1, "result of {} twice", result.call_id);
                }
                _ => {}
            }
            if seen.event.body.ends_turn() {
                over = seen.event.turn;
            }
        }
        drop(self.texts(OutputSource::Assistant));
        drop(self.texts(OutputSource::Tool));
    }
}
