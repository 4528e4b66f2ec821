//! Taking up a turn after a restart: the journal says what readers were told.

use super::{Call, Mark, Session, TurnMap};
use contract::event::{MAIN_AGENT, OutputSource, Status, StatusKind};
use contract::{Event, EventBody};
use serde_json::Value;

impl TurnMap {
    /// Takes note of a journaled event of this turn; call it for all of them in order, before
    /// anything else.
    pub(crate) fn restore(&mut self, event: &Event) {
        match &event.body {
            EventBody::Output(output) => match output.source {
                OutputSource::Assistant => self.texts.restore(output),
                OutputSource::Tool => {
                    if let Some(call) = self.calls.entry(&output.part_id, Call::default) {
                        self.tails.restore(output, call.spoke);
                        call.spoke = true;
                    }
                }
            },
            EventBody::ToolCall(said) => {
                if let Some(call) = self.calls.entry(&said.call_id, Call::default) {
                    call.called = true;
                    call.tool.clone_from(&said.tool);
                }
            }
            EventBody::ToolResult(result) => {
                if let Some(call) = self.calls.entry(&result.call_id, Call::default) {
                    call.done = true;
                    self.tails.end(&result.call_id);
                }
            }
            EventBody::Status(status) => self.restore_status(&event.agent, status),
            EventBody::Error(_) => {
                if let Some(session) = self.by_agent(&event.agent)
                    && event.agent != MAIN_AGENT
                {
                    session.failed = true;
                }
            }
            // The turn's driver says these.
            EventBody::Complete(_) | EventBody::Approval(_) | EventBody::Gap(_) => {}
        }
    }

    fn restore_status(&mut self, agent: &str, status: &Status) {
        let detail = |key: &str| status.detail.as_ref().and_then(|detail| detail.get(key));
        let text = |key: &str| detail(key).and_then(Value::as_str);
        if let Some(part) = text("part_id")
            && self.parts.first(part, Mark::Done)
            && let Some(usage) = status.usage
        {
            self.usage += usage;
        }
        if status.status == StatusKind::SubAgent {
            if let Some(child) = text("session").filter(|child| !self.owns(child)) {
                let session = Session::named(agent.to_owned());
                self.sessions.insert(child.to_owned(), session);
            }
            return;
        }
        let step = detail("step").and_then(Value::as_u64);
        let attempt = detail("attempt").and_then(Value::as_u64);
        let list = status.detail.clone();
        let Some(session) = self.by_agent(agent) else {
            return;
        };
        match status.status {
            StatusKind::Running => session.running = true,
            StatusKind::Retrying => session.retry = attempt,
            StatusKind::Step => {
                let step = step.and_then(|step| u32::try_from(step).ok()).unwrap_or(0);
                session.steps = session.steps.max(step);
                session.retry = None;
            }
            StatusKind::Todo => session.todos = list,
            StatusKind::Queued
            | StatusKind::WaitingForKey
            | StatusKind::Thinking
            | StatusKind::Compacting
            | StatusKind::SubAgent
            | StatusKind::AgentRestarted
            | StatusKind::Watchdog
            | StatusKind::Checkpoint
            | StatusKind::Cancelled => {}
        }
    }

    fn by_agent(&mut self, agent: &str) -> Option<&mut Session> {
        self.sessions
            .values_mut()
            .find(|session| session.agent.as_deref() == Some(agent))
    }
}
