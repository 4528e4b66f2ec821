//! Parts of messages: texts, tools, steps, patches.

use super::{Call, Heard, Mapped, Mark, TurnMap};
use crate::agent::text::clip;
use crate::agent::wire::{Part, PartKind, ToolState};
use contract::event::{Output, Status, StatusKind, ToolCall, ToolResult};
use contract::{EventBody, Usage};
use serde_json::{Value, json};
use std::path::{Component, Path};

/// Longest piece of a text in one event, in bytes.
const MAX_PIECE: usize = 64 * 1024;
/// Largest arguments of a call, as JSON in bytes; larger ones are shown by their beginning.
const MAX_INPUT: usize = 256 * 1024;
/// Longest result of a call, in bytes. OpenCode itself cuts at 50 KiB.
const MAX_RESULT: usize = 256 * 1024;
/// Longest title of a result, in bytes.
const MAX_TITLE: usize = 1024;
/// Most files of a turn that are listed.
const MAX_FILES: usize = 10_000;
/// Most calls that are found by OpenCode's id.
const MAX_CALL_IDS: usize = 10_000;
/// The tool that OpenCode puts in place of one that does not exist or was called wrongly.
const INVALID: &str = "invalid";

impl TurnMap {
    /// A part in its present state. `final_text` says that its text will not change any more, even
    /// if it has no end.
    pub(super) fn part(
        &mut self,
        session: &str,
        part: &Part,
        final_text: bool,
        out: &mut Vec<Mapped>,
    ) {
        if part.id.is_empty() || part.message_id.is_empty() {
            return;
        }
        let summary = match self.messages.get(&part.message_id) {
            Some(Heard::Answer) => false,
            Some(Heard::Summary) => true,
            Some(Heard::User | Heard::Own) => return self.user_part(session, part, out),
            Some(Heard::Foreign) | None => return,
        };
        match &part.kind {
            PartKind::Text {
                text,
                ended,
                synthetic,
                ignored,
            } => {
                if !summary && !synthetic && !ignored {
                    self.text(session, part, text, *ended || final_text, out);
                }
            }
            PartKind::Reasoning { .. } => {
                if !summary && self.parts.first(&part.id, Mark::Done) {
                    let mut status = Status::new(StatusKind::Thinking, "The model thinks.");
                    status.detail = Some(json!({ "part_id": part.id }));
                    self.say(session, EventBody::Status(status), out);
                }
            }
            PartKind::Tool {
                tool,
                call_id,
                state,
            } => self.tool(session, part, tool, call_id, state, out),
            PartKind::StepStart => {
                if !summary && self.parts.first(&part.id, Mark::Done) {
                    self.step_began(session, &part.id, out);
                }
            }
            PartKind::StepFinish { reason, tokens, .. } => {
                if self.parts.first(&part.id, Mark::Done) {
                    self.usage += *tokens;
                    if !summary {
                        self.step_ended(session, &part.id, reason, *tokens, out);
                    }
                }
            }
            PartKind::Patch { files } => {
                for file in files {
                    self.changed(file);
                }
            }
            PartKind::Compaction | PartKind::Other(_) => {}
        }
    }

    pub(super) fn delta(
        &mut self,
        session: &str,
        message: &str,
        part: &str,
        delta: &str,
        out: &mut Vec<Mapped>,
    ) {
        // A part that was not announced is none of ours, or its announcement was missed: then its
        // whole text comes at its end.
        if self.parts.get(part) == Some(&Mark::Text)
            && self.messages.get(message) == Some(&Heard::Answer)
        {
            let piece = self.texts.delta(part, delta);
            self.output(session, piece, out);
        }
    }

    fn text(
        &mut self,
        session: &str,
        part: &Part,
        text: &str,
        is_final: bool,
        out: &mut Vec<Mapped>,
    ) {
        let Some(Mark::Text) = self.parts.entry(&part.id, || Mark::Text) else {
            return;
        };
        if !is_final {
            let piece = self.texts.extend(&part.id, text);
            return self.output(session, piece, out);
        }
        let piece = self.texts.settle(&part.id, text);
        if session == self.root {
            self.answers.text(&part.message_id, &part.id, text);
        }
        self.output(session, piece, out);
    }

    fn tool(
        &mut self,
        session: &str,
        part: &Part,
        tool: &str,
        call_id: &str,
        state: &ToolState,
        out: &mut Vec<Mapped>,
    ) {
        if !call_id.is_empty() {
            if self.call_ids.len() >= MAX_CALL_IDS && !self.call_ids.contains_key(call_id) {
                self.call_ids.pop_first();
            }
            self.call_ids.insert(call_id.to_owned(), part.id.clone());
        }
        if session == self.root {
            self.answers.tool(&part.message_id);
        }
        let Some(call) = self.calls.entry(&part.id, Call::default) else {
            return;
        };
        if call.tool.is_empty() {
            tool.clone_into(&mut call.tool);
        }
        if call.done && call.called {
            self.after_tool(session, state, out);
            return;
        }
        let (input, printed) = match state {
            ToolState::Pending => return,
            ToolState::Running { input, output, .. } => (input, output),
            ToolState::Completed {
                input,
                metadata_output,
                ..
            }
            | ToolState::Error {
                input,
                metadata_output,
                ..
            } => (input, metadata_output),
        };
        let invalid = tool == INVALID;
        let name = Some(input)
            .filter(|_| invalid)
            .and_then(|input| input.get("tool"))
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
            .map_or(tool.into(), |name| clip(name, 256))
            .into_owned();
        let mut said = Vec::new();
        if !call.called {
            call.called = true;
            said.push(EventBody::ToolCall(ToolCall {
                call_id: part.id.clone(),
                tool: name.clone(),
                input: bounded_input(input),
            }));
        }
        let piece = printed
            .as_deref()
            .and_then(|printed| self.tails.show(&part.id, call.spoke, printed));
        call.spoke |= piece.is_some();
        if let Some(result) = result(&part.id, name, invalid, state) {
            call.done = true;
            self.tails.end(&part.id);
            said.extend(piece.into_iter().flat_map(pieces));
            said.push(EventBody::ToolResult(result));
        } else {
            said.extend(piece.into_iter().flat_map(pieces));
        }
        for body in said {
            self.say(session, body, out);
        }
        self.after_tool(session, state, out);
    }

    /// The file that a tool changed and the sub-agent that it runs.
    fn after_tool(&mut self, session: &str, state: &ToolState, out: &mut Vec<Mapped>) {
        let (input, child) = match state {
            ToolState::Pending => return,
            ToolState::Completed {
                input, child, file, ..
            } => {
                // Where there is no git repository OpenCode makes no patches.
                if let Some(file) = file {
                    self.changed(file);
                }
                (input, child)
            }
            ToolState::Running { input, child, .. } | ToolState::Error { input, child, .. } => {
                (input, child)
            }
        };
        if let Some(child) = child {
            let title = input.get("description").and_then(Value::as_str);
            self.adopt(child, session, title);
            self.announce(child, out);
        }
    }

    fn step_began(&mut self, session: &str, part: &str, out: &mut Vec<Mapped>) {
        let Some(state) = self.sessions.get_mut(session) else {
            return;
        };
        state.steps = state.steps.saturating_add(1);
        state.retry = None;
        let step = state.steps;
        let mut status = Status::new(StatusKind::Step, format!("Step {step} began."));
        status.detail = Some(json!({ "part_id": part, "step": step }));
        self.say(session, EventBody::Status(status), out);
    }

    fn step_ended(
        &mut self,
        session: &str,
        part: &str,
        reason: &str,
        usage: Usage,
        out: &mut Vec<Mapped>,
    ) {
        let Some(state) = self.sessions.get_mut(session) else {
            return;
        };
        state.retry = None;
        let step = state.steps;
        let why = match reason {
            "stop" => "the model is done",
            "tool-calls" => "the model called tools",
            "length" => "the model's answer reached its greatest length",
            "content-filter" => "the provider's content filter stopped the model",
            _ => "the provider did not say why the model stopped",
        };
        let mut status = Status::new(StatusKind::Step, format!("Step {step} ended: {why}."));
        status.usage = Some(usage);
        status.detail = Some(json!({ "part_id": part, "step": step, "reason": reason }));
        self.say(session, EventBody::Status(status), out);
    }

    fn changed(&mut self, file: &str) {
        let path = Path::new(file);
        let inside = path
            .strip_prefix(&self.workspace)
            .ok()
            .filter(|inside| !inside.components().any(|part| part == Component::ParentDir));
        let name = inside.unwrap_or(path).to_string_lossy();
        if !name.is_empty() && self.files.len() < MAX_FILES {
            self.files.insert(name.into_owned());
        }
    }

    fn output(&mut self, session: &str, piece: Option<Output>, out: &mut Vec<Mapped>) {
        for body in piece.into_iter().flat_map(pieces) {
            self.say(session, body, out);
        }
    }
}

/// A piece in events of bounded size.
fn pieces(piece: Output) -> Vec<EventBody> {
    if piece.text.len() <= MAX_PIECE {
        return vec![EventBody::Output(piece)];
    }
    let mut rest = piece.text.as_str();
    let mut offset = piece.offset;
    let mut bodies = Vec::new();
    while !rest.is_empty() {
        let (text, after) = rest.split_at(rest.floor_char_boundary(MAX_PIECE));
        bodies.push(EventBody::Output(Output {
            text: text.to_owned(),
            part_id: piece.part_id.clone(),
            offset,
            source: piece.source,
            replace: piece.replace && bodies.is_empty(),
        }));
        offset += text.len() as u64;
        rest = after;
    }
    bodies
}

fn bounded_input(input: &Value) -> Value {
    let json = input.to_string();
    if json.len() <= MAX_INPUT {
        return input.clone();
    }
    json!({ "truncated": true, "bytes": json.len(), "begin": clip(&json, MAX_INPUT / 4) })
}

fn result(call: &str, tool: String, invalid: bool, state: &ToolState) -> Option<ToolResult> {
    let (ok, output, title, exit_code, truncated, start, end) = match state {
        ToolState::Pending | ToolState::Running { .. } => return None,
        ToolState::Completed {
            output,
            title,
            exit,
            truncated,
            start,
            end,
            ..
        } => (
            !invalid,
            output,
            title.as_deref(),
            *exit,
            *truncated,
            start,
            end,
        ),
        ToolState::Error {
            error, start, end, ..
        } => (false, error, None, None, false, start, end),
    };
    let duration = end
        .zip(*start)
        .map(|(end, start)| end.saturating_sub(start));
    Some(ToolResult {
        call_id: call.to_owned(),
        tool,
        ok,
        output: clip(output, MAX_RESULT).into_owned(),
        title: title.map(|title| clip(title, MAX_TITLE).into_owned()),
        exit_code,
        truncated: truncated || output.len() > MAX_RESULT,
        duration_ms: duration.and_then(|duration| u64::try_from(duration).ok()),
    })
}
