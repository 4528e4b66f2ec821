//! Reads a request body of any dialect into one shape: who spoke, and what was asked.

use serde_json::Value;

use crate::template::Directive;

/// The wire format, told from the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Chat,
    Responses,
    Messages,
}

impl Dialect {
    pub(crate) fn of_path(path: &str) -> Option<Self> {
        let path = path.trim_end_matches('/');
        if path.ends_with("/chat/completions") {
            Some(Self::Chat)
        } else if path.ends_with("/responses") {
            Some(Self::Responses)
        } else if path.ends_with("/messages") {
            Some(Self::Messages)
        } else {
            None
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    System,
    User,
    Assistant,
    Tool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) role: Role,
    pub(crate) text: String,
}

/// A request, read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conversation {
    pub(crate) turns: Vec<Turn>,
    /// System text from wherever the dialect keeps it.
    pub(crate) system: String,
    pub(crate) stream: bool,
    /// Chat only: whether the stream ends with token counts.
    pub(crate) stream_usage: bool,
    pub(crate) model: String,
    /// Entries in the request's own list, before any merging.
    pub(crate) message_count: usize,
    pub(crate) tools: Vec<String>,
}

/// Which answer the request is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) directive: Option<Directive>,
    /// Assistant turns after the message that chose the script.
    pub(crate) step: usize,
    /// Index of that message.
    pub(crate) turn: usize,
}

impl Conversation {
    /// `Err` is the provider's complaint about a field.
    pub(crate) fn read(dialect: Dialect, body: &Value) -> Result<Self, String> {
        let list = if dialect == Dialect::Responses {
            "input"
        } else {
            "messages"
        };
        let mut out = Self {
            stream: body["stream"].as_bool().unwrap_or(false),
            stream_usage: body["stream_options"]["include_usage"]
                .as_bool()
                .unwrap_or(true),
            model: body["model"]
                .as_str()
                .ok_or("Missing required parameter: 'model'.")?
                .to_owned(),
            tools: tool_names(&body["tools"]),
            ..Self::default()
        };
        let single;
        let items = match &body[list] {
            Value::Array(items) => items.as_slice(),
            Value::String(text) if dialect == Dialect::Responses => {
                single = [serde_json::json!({"role": "user", "content": text})];
                single.as_slice()
            }
            _ => return Err(format!("Missing required parameter: '{list}'.")),
        };
        out.message_count = items.len();
        out.turns = match dialect {
            Dialect::Chat => items.iter().filter_map(chat_turn).collect(),
            Dialect::Responses => merged(items.iter().filter_map(responses_turn)),
            Dialect::Messages => items.iter().filter_map(messages_turn).collect(),
        };
        let mut system = match dialect {
            Dialect::Chat => String::new(),
            Dialect::Responses => flat(&body["instructions"]),
            Dialect::Messages => flat(&body["system"]),
        };
        for turn in out.turns.iter().filter(|t| t.role == Role::System) {
            if !system.is_empty() {
                system.push('\n');
            }
            system.push_str(&turn.text);
        }
        out.system = system;
        Ok(out)
    }

    pub(crate) fn place(&self) -> Place {
        let found = self
            .turns
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, t)| t.role == Role::User);
        let found = found
            .into_iter()
            .find_map(|(i, t)| Some((i, Directive::find(&t.text)?)));
        let (turn, directive) = match found {
            Some((turn, directive)) => (turn, Some(directive)),
            None => {
                let last = self.turns.iter().rposition(|t| t.role == Role::User);
                (last.unwrap_or(0), None)
            }
        };
        let later = self.turns.iter().skip(turn);
        let step = later.filter(|t| t.role == Role::Assistant).count();
        Place {
            directive,
            step,
            turn,
        }
    }

    pub(crate) fn is_title_request(&self) -> bool {
        let system = self.system.to_lowercase();
        system.contains("title generator") || system.contains("you output only a thread title")
    }

    pub(crate) fn user_messages(&self) -> usize {
        self.turns.iter().filter(|t| t.role == Role::User).count()
    }

    pub(crate) fn last_user(&self) -> Option<&str> {
        self.turns
            .iter()
            .rfind(|t| t.role == Role::User)
            .map(|t| t.text.as_str())
    }

    /// The line after the first `REMEMBER:` in user messages before index `before`.
    pub(crate) fn remembered(&self, before: usize) -> Option<String> {
        let users = self
            .turns
            .iter()
            .take(before)
            .filter(|t| t.role == Role::User);
        users.into_iter().find_map(|t| {
            let (_, rest) = t.text.split_once("REMEMBER:")?;
            Some(rest.lines().next().unwrap_or("").trim().to_owned())
        })
    }
}

fn chat_turn(message: &Value) -> Option<Turn> {
    let role = match message["role"].as_str()? {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" | "function" => Role::Tool,
        _ => return None,
    };
    Some(Turn {
        role,
        text: flat(&message["content"]),
    })
}

fn responses_turn(item: &Value) -> Option<Turn> {
    let bare = |role| {
        Some(Turn {
            role,
            text: String::new(),
        })
    };
    match item["type"].as_str() {
        Some("reasoning") => None,
        Some("item_reference") => {
            // A stored reasoning item is no turn of its own either.
            let id = item["id"].as_str().unwrap_or("");
            if id.starts_with("rs_") {
                None
            } else {
                bare(Role::Assistant)
            }
        }
        Some(kind) if kind.ends_with("_call_output") => bare(Role::Tool),
        Some(kind) if kind.ends_with("_call") => bare(Role::Assistant),
        _ => chat_turn(item),
    }
}

/// One turn of the model is several items here: text, then each call.
fn merged(turns: impl Iterator<Item = Turn>) -> Vec<Turn> {
    let mut out: Vec<Turn> = Vec::new();
    for turn in turns {
        match out.last_mut() {
            Some(last) if last.role == Role::Assistant && turn.role == Role::Assistant => {
                last.text.push_str(&turn.text);
            }
            _ => out.push(turn),
        }
    }
    out
}

fn messages_turn(message: &Value) -> Option<Turn> {
    let mut turn = chat_turn(message)?;
    let only_results = message["content"].as_array().is_some_and(|blocks| {
        !blocks.is_empty() && blocks.iter().all(|b| b["type"] == "tool_result")
    });
    if turn.role == Role::User && only_results {
        turn.role = Role::Tool;
    }
    Some(turn)
}

/// Text of a string or of a list of blocks. Tool results are left out: what a tool
/// printed must not choose a script.
fn flat(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts = blocks
                .iter()
                .filter_map(|b| b.as_str().or_else(|| b["text"].as_str()));
            texts.collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

fn tool_names(tools: &Value) -> Vec<String> {
    let name = |t: &Value| {
        Some(
            t["function"]["name"]
                .as_str()
                .or(t["name"].as_str())?
                .to_owned(),
        )
    };
    tools
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn place(dialect: Dialect, body: Value) -> (Option<String>, usize) {
        let place = Conversation::read(dialect, &body).unwrap().place();
        (place.directive.map(|d| d.name), place.step)
    }

    #[test]
    fn chat_counts_assistant_turns_after_the_newest_call() {
        let body = json!({"model": "m", "messages": [
            {"role": "system", "content": "SCENARIO:no"},
            {"role": "user", "content": "SCENARIO:old"},
            {"role": "assistant", "content": "SCENARIO:no"},
            {"role": "user", "content": [{"type": "text", "text": "now SCENARIO:new"}]},
            {"role": "assistant", "content": null, "tool_calls": [{}]},
            {"role": "tool", "content": "SCENARIO:no"},
            {"role": "assistant", "content": "x"},
            {"role": "user", "content": "go on"},
        ]});
        assert_eq!(place(Dialect::Chat, body), (Some("new".into()), 2));
    }

    #[test]
    fn responses_merge_the_items_of_one_turn() {
        let body = json!({"model": "m", "instructions": "title generator", "input": [
            {"role": "developer", "content": "SCENARIO:no"},
            {"role": "user", "content": [{"type": "input_text", "text": "SCENARIO:new"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
            {"type": "function_call", "call_id": "1", "name": "x", "arguments": "{}"},
            {"type": "function_call", "call_id": "2", "name": "x", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "SCENARIO:no"},
            {"type": "function_call_output", "call_id": "2", "output": "o"},
            {"type": "item_reference", "id": "rs_2"},
            {"type": "item_reference", "id": "fc_3"},
            {"type": "function_call_output", "call_id": "3", "output": "o"},
        ]});
        let read = Conversation::read(Dialect::Responses, &body).unwrap();
        assert!(read.is_title_request());
        assert_eq!(read.message_count, 11);
        assert_eq!(place(Dialect::Responses, body), (Some("new".into()), 2));
        let body = json!({"model": "m", "input": "SCENARIO:hello"});
        assert_eq!(place(Dialect::Responses, body), (Some("hello".into()), 0));
    }

    #[test]
    fn anthropic_tool_results_are_not_user_messages() {
        let body = json!({"model": "m", "system": [{"type": "text", "text": "sys"}], "messages": [
            {"role": "user", "content": "SCENARIO:one"},
            {"role": "assistant", "content": [{"type": "tool_use"}]},
            {"role": "user", "content": [{"type": "tool_result", "content": "SCENARIO:no"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
        ]});
        assert_eq!(
            place(Dialect::Messages, body.clone()),
            (Some("one".into()), 2)
        );
        let mut body = body;
        body["messages"]
            .as_array_mut()
            .unwrap()
            .push(json!({"role": "user", "content": [
                {"type": "tool_result", "content": "SCENARIO:no"},
                {"type": "text", "text": "SCENARIO:two"},
            ]}));
        let read = Conversation::read(Dialect::Messages, &body).unwrap();
        assert_eq!((read.user_messages(), read.system.as_str()), (2, "sys"));
        assert_eq!(place(Dialect::Messages, body), (Some("two".into()), 0));
    }

    #[test]
    fn only_earlier_user_messages_are_remembered() {
        let body = json!({"model": "m", "messages": [
            {"role": "system", "content": "REMEMBER: no"},
            {"role": "user", "content": "hi. REMEMBER: blue heron \nmore"},
            {"role": "assistant", "content": "REMEMBER: no"},
            {"role": "user", "content": "REMEMBER: second"},
            {"role": "user", "content": "REMEMBER: me SCENARIO:recall"},
        ]});
        let read = Conversation::read(Dialect::Chat, &body).unwrap();
        assert_eq!(
            read.remembered(read.place().turn).as_deref(),
            Some("blue heron")
        );
        assert_eq!(read.remembered(1), None);
    }

    #[test]
    fn a_request_without_model_or_messages_is_refused() {
        for (dialect, body) in [
            (Dialect::Chat, json!({"messages": []})),
            (Dialect::Chat, json!({"model": "m"})),
            (Dialect::Chat, json!({"model": "m", "messages": "hi"})),
            (Dialect::Responses, json!({"model": "m", "messages": []})),
            (Dialect::Messages, json!([])),
        ] {
            Conversation::read(dialect, &body).unwrap_err();
        }
    }
}
