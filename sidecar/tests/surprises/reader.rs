//! A reader that insists that nothing is lost, doubled or reordered.

use contract::{
    Cursor, Event, EventBody, SessionId,
    client::{SidecarClient, SseEvent},
    event::{Complete, ErrorEvent, OutputSource, StatusKind, TurnError},
};
use futures::StreamExt;
use std::{collections::BTreeMap, time::Duration};

/// All numbered events of one session, in order and without holes.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    pub(crate) events: Vec<Event>,
    cursor: Option<Cursor>,
}

impl Reader {
    pub(crate) fn cursor(&self) -> Option<Cursor> {
        self.cursor
    }

    /// Takes one SSE event over. Panics where a number is missing, doubled or out of order, the history
    /// is another one, or a turn goes on after its end.
    pub(crate) fn take(&mut self, sse: &SseEvent) {
        let Some(id) = &sse.id else {
            assert_ne!(sse.event, "gap", "a gap: {}", sse.data);
            return;
        };
        let cursor: Cursor = id.parse().unwrap();
        let last = self.cursor.map_or(0, |cursor| cursor.n);
        assert_eq!(
            cursor.n,
            last + 1,
            "event {} after {last} of {:#?}",
            cursor.n,
            self.events
        );
        assert!(
            self.cursor.is_none_or(|last| last.epoch == cursor.epoch),
            "another history"
        );
        self.cursor = Some(cursor);
        let event: Event = serde_json::from_str(&sse.data).unwrap();
        assert_eq!(event.body.name(), sse.event);
        let over = self
            .events
            .iter()
            .rev()
            .find(|event| event.body.ends_turn())
            .map_or(0, |end| end.turn);
        assert!(event.turn > over, "after the end of turn {over}: {event:?}");
        self.events.push(event);
    }

    /// Reads until `done`, reconnecting whenever the connection is cut or refused.
    pub(crate) async fn until(
        &mut self,
        client: &SidecarClient,
        id: &SessionId,
        done: impl Fn(&Self) -> bool,
    ) {
        while !done(self) {
            match client.stream(id, self.cursor(), true).await {
                Ok(Some(mut stream)) => {
                    while !done(self)
                        && let Some(Ok(event)) = stream.next().await
                    {
                        self.take(&event);
                    }
                }
                Ok(None) => panic!("204 to a reader that follows"),
                Err(contract::client::ClientError::Transport(_)) => {}
                Err(error) => panic!("refused: {error}"),
            }
            if !done(self) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Ends of turns so far.
    pub(crate) fn ends(&self) -> usize {
        self.events
            .iter()
            .filter(|event| event.body.ends_turn())
            .count()
    }

    pub(crate) fn bodies(&self) -> impl DoubleEndedIterator<Item = &EventBody> {
        self.events.iter().map(|event| &event.body)
    }

    /// How the last turn ended: `complete`, `cancelled`, or the code of its error.
    pub(crate) fn end(&self) -> End<'_> {
        match self.bodies().next_back() {
            Some(EventBody::Complete(complete)) => End::Complete(complete),
            Some(EventBody::Error(error)) if error.fatal => End::Failed(error),
            Some(EventBody::Status(status)) if status.status == StatusKind::Cancelled => {
                End::Cancelled
            }
            other => panic!("no end: {other:?}"),
        }
    }

    /// The last turn's result; panics unless it is complete.
    pub(crate) fn complete(&self) -> &Complete {
        match self.end() {
            End::Complete(complete) => complete,
            other => panic!("not complete: {other:?} of {:#?}", self.events),
        }
    }

    /// The last turn's error; panics unless it has this code.
    pub(crate) fn failed(&self, code: TurnError) -> &ErrorEvent {
        match self.end() {
            End::Failed(error) if error.code == code => error,
            other => panic!("not {code:?}: {other:?} of {:#?}", self.events),
        }
    }

    pub(crate) fn statuses(&self, kind: StatusKind) -> Vec<&contract::event::Status> {
        self.bodies()
            .filter_map(|body| match body {
                EventBody::Status(status) if status.status == kind => Some(status),
                _ => None,
            })
            .collect()
    }

    /// Text of each part, by the pieces' own offsets. Panics on a hole or an overlap.
    pub(crate) fn texts(&self, source: OutputSource) -> BTreeMap<String, String> {
        let mut texts: BTreeMap<String, String> = BTreeMap::new();
        for body in self.bodies() {
            if let EventBody::Output(output) = body
                && output.source == source
            {
                let text = texts.entry(output.part_id.clone()).or_default();
                if output.replace {
                    text.clear();
                }
                assert_eq!(
                    output.offset,
                    text.len() as u64,
                    "{output:?} after {text:?}"
                );
                text.push_str(&output.text);
            }
        }
        texts
    }

    /// Every call has at most one result, after it; in a complete turn exactly one.
    pub(crate) fn check_calls(&self) {
        let mut open = BTreeMap::new();
        for event in &self.events {
            match &event.body {
                EventBody::ToolCall(call) => {
                    assert!(open.insert(&call.call_id, event.turn).is_none());
                }
                EventBody::ToolResult(result) => {
                    assert!(
                        open.remove(&result.call_id).is_some(),
                        "a result without its call: {result:?}"
                    );
                }
                EventBody::Complete(_) => {
                    assert!(
                        !open.values().any(|turn| *turn == event.turn),
                        "calls without result: {open:?}"
                    );
                }
                _ => {}
            }
        }
    }
}

/// How a turn ended.
#[derive(Debug)]
pub(crate) enum End<'a> {
    Complete(&'a Complete),
    Failed(&'a ErrorEvent),
    Cancelled,
}

/// Whether the assistant said something.
pub(crate) fn speaks(reader: &Reader) -> bool {
    reader.bodies().any(|body| matches!(body, EventBody::Output(output) if output.source == OutputSource::Assistant))
}

/// Whether a tool was called.
pub(crate) fn calls(reader: &Reader) -> bool {
    reader
        .bodies()
        .any(|body| matches!(body, EventBody::ToolCall(_)))
}
