//! A small client: builds requests in each dialect and puts the answers together again.

use std::sync::LazyLock;
use std::time::Duration;

use scripted_model::{Options, ScriptedModel};
use serde_json::{Value, json};

pub(crate) const DIALECTS: [Dialect; 3] = [Dialect::Chat, Dialect::Responses, Dialect::Messages];

/// Nothing here takes long; a test that waits for this has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Chat,
    Responses,
    Messages,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) thinking: String,
    /// Identifier, name, arguments.
    pub(crate) tools: Vec<(String, String, String)>,
    pub(crate) finish: Option<String>,
    /// Input, cached and output tokens.
    pub(crate) usage: Option<(u64, u64, u64)>,
    /// Whether the stream's own terminator came.
    pub(crate) done: bool,
    pub(crate) error: Option<Value>,
    /// Events whose data is no JSON.
    pub(crate) broken: usize,
}

pub(crate) async fn start() -> ScriptedModel {
    ScriptedModel::start(Options::default()).await.unwrap()
}

pub(crate) fn http() -> reqwest::Client {
    static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Each test has its own runtime, so connections cannot be kept between them.
        let builder = reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0);
        builder.timeout(PATIENCE).build().unwrap()
    });
    CLIENT.clone()
}

impl Dialect {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Responses => "/some/prefix/responses",
            Self::Messages => "/v1/messages",
        }
    }

    pub(crate) fn list(self) -> &'static str {
        if self == Self::Responses {
            "input"
        } else {
            "messages"
        }
    }

    pub(crate) fn body(self, stream: bool, messages: &[Value]) -> Value {
        json!({"model": "m-1", "stream": stream, "max_tokens": 9, self.list(): messages})
    }

    /// What an agent adds to the conversation after an answer and its tools' results.
    pub(crate) fn history(self, answer: &Answer) -> Vec<Value> {
        let tools = &answer.tools;
        let args = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
        match self {
            Self::Chat => {
                let calls: Vec<Value> = tools
                    .iter()
                    .map(|(id, name, args)| {
                        json!({"id": id, "type": "function",
                            "function": {"name": name, "arguments": args}})
                    })
                    .collect();
                let said = json!({"role": "assistant", "content": answer.text,
                    "tool_calls": calls});
                let result = |(id, ..): &(String, String, String)| json!({"role": "tool", "tool_call_id": id, "content": "SCENARIO:no"});
                std::iter::once(said)
                    .chain(tools.iter().map(result))
                    .collect()
            }
            Self::Responses => {
                let said = json!({"role": "assistant",
                    "content": [{"type": "output_text", "text": answer.text}]});
                let call = |(id, name, args): &(String, String, String)| {
                    json!({"type": "function_call", "call_id": id, "name": name,
                        "arguments": args})
                };
                let result = |(id, ..): &(String, String, String)| {
                    json!({"type": "function_call_output", "call_id": id,
                        "output": "SCENARIO:no"})
                };
                let calls = tools.iter().map(call).chain(tools.iter().map(result));
                std::iter::once(said).chain(calls).collect()
            }
            Self::Messages => {
                let mut content = vec![json!({"type": "text", "text": answer.text})];
                content.extend(tools.iter().map(|(id, name, text)| {
                    json!({"type": "tool_use", "id": id, "name": name, "input": args(text)})
                }));
                let results: Vec<Value> = tools
                    .iter()
                    .map(|(id, ..)| {
                        json!({"type": "tool_result", "tool_use_id": id,
                            "content": "SCENARIO:no"})
                    })
                    .collect();
                let mut turns = vec![json!({"role": "assistant", "content": content})];
                if !results.is_empty() {
                    turns.push(json!({"role": "user", "content": results}));
                }
                turns
            }
        }
    }

    pub(crate) fn read(self, stream: bool, body: &str) -> Answer {
        match (stream, self) {
            (true, _) => self.read_stream(body),
            (false, Self::Chat) => chat_document(&serde_json::from_str(body).unwrap()),
            (false, Self::Responses) => responses_document(&serde_json::from_str(body).unwrap()),
            (false, Self::Messages) => messages_document(&serde_json::from_str(body).unwrap()),
        }
    }

    fn read_stream(self, body: &str) -> Answer {
        let mut out = Answer::default();
        for event in body.split("\n\n").filter(|e| !e.is_empty()) {
            let field = |name: &str| event.lines().find_map(|l| l.strip_prefix(name));
            let Some(data) = field("data: ") else {
                continue;
            };
            if data == "[DONE]" {
                assert_eq!(self, Self::Chat);
                out.done = true;
                continue;
            }
            let Ok(data) = serde_json::from_str::<Value>(data) else {
                out.broken += 1;
                continue;
            };
            if self != Self::Chat {
                assert_eq!(field("event: "), data["type"].as_str(), "{event}");
            }
            match self {
                Self::Chat => chat_event(&mut out, &data),
                Self::Responses => responses_event(&mut out, &data),
                Self::Messages => messages_event(&mut out, &data),
            }
        }
        out
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("").to_owned()
}

fn numbers(usage: &Value, input: &str, cached: &[&str], output: &str) -> Option<(u64, u64, u64)> {
    let cached = cached.iter().fold(usage, |value, key| &value[*key]);
    Some((
        usage[input].as_u64()?,
        cached.as_u64()?,
        usage[output].as_u64()?,
    ))
}

fn chat_usage(usage: &Value) -> Option<(u64, u64, u64)> {
    let cached = ["prompt_tokens_details", "cached_tokens"];
    numbers(usage, "prompt_tokens", &cached, "completion_tokens")
}

fn chat_event(out: &mut Answer, data: &Value) {
    if data["error"].is_object() {
        out.error = Some(data["error"].clone());
        return;
    }
    out.usage = out.usage.or(chat_usage(&data["usage"]));
    let choice = &data["choices"][0];
    let delta = &choice["delta"];
    out.text += delta["content"].as_str().unwrap_or("");
    out.thinking += delta["reasoning_content"].as_str().unwrap_or("");
    for call in delta["tool_calls"].as_array().into_iter().flatten() {
        let index = call["index"].as_u64().unwrap() as usize;
        if call["id"].is_string() {
            assert_eq!(index, out.tools.len());
            out.tools.push((
                text(&call["id"]),
                text(&call["function"]["name"]),
                String::new(),
            ));
        }
        out.tools[index].2 += call["function"]["arguments"].as_str().unwrap();
    }
    if let Some(finish) = choice["finish_reason"].as_str() {
        out.finish = Some(finish.to_owned());
    }
}

fn chat_document(data: &Value) -> Answer {
    let choice = &data["choices"][0];
    let message = &choice["message"];
    let call = |c: &Value| {
        let f = &c["function"];
        (text(&c["id"]), text(&f["name"]), text(&f["arguments"]))
    };
    Answer {
        text: text(&message["content"]),
        thinking: text(&message["reasoning_content"]),
        tools: message["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
            .map(call)
            .collect(),
        finish: choice["finish_reason"].as_str().map(str::to_owned),
        usage: chat_usage(&data["usage"]),
        ..Answer::default()
    }
}

fn responses_event(out: &mut Answer, data: &Value) {
    match data["type"].as_str().unwrap() {
        "response.output_text.delta" => out.text += data["delta"].as_str().unwrap(),
        "response.reasoning_summary_text.delta" => {
            out.thinking += data["delta"].as_str().unwrap();
        }
        "response.output_item.added" if data["item"]["type"] == "function_call" => {
            let item = &data["item"];
            out.tools
                .push((text(&item["call_id"]), text(&item["name"]), String::new()));
        }
        "response.function_call_arguments.delta" => {
            out.tools.last_mut().unwrap().2 += data["delta"].as_str().unwrap();
        }
        "response.completed" | "response.incomplete" => {
            let whole = responses_document(&data["response"]);
            // The closing event repeats everything; both must agree.
            assert_eq!((&whole.text, &whole.thinking), (&out.text, &out.thinking));
            assert_eq!(whole.tools, out.tools);
            (out.finish, out.usage, out.done) = (whole.finish, whole.usage, true);
        }
        "error" => out.error = Some(data.clone()),
        _ => {}
    }
}

fn responses_document(data: &Value) -> Answer {
    let mut out = Answer::default();
    for item in data["output"].as_array().unwrap() {
        match item["type"].as_str().unwrap() {
            "message" => out.text += item["content"][0]["text"].as_str().unwrap(),
            "reasoning" => out.thinking += item["summary"][0]["text"].as_str().unwrap(),
            "function_call" => out.tools.push((
                text(&item["call_id"]),
                text(&item["name"]),
                text(&item["arguments"]),
            )),
            other => panic!("{other}"),
        }
    }
    out.finish = match (data["status"].as_str().unwrap(), out.tools.is_empty()) {
        ("completed", true) => Some("stop".into()),
        ("completed", false) => Some("tool_calls".into()),
        _ => data["incomplete_details"]["reason"]
            .as_str()
            .map(str::to_owned),
    };
    let cached = ["input_tokens_details", "cached_tokens"];
    out.usage = numbers(&data["usage"], "input_tokens", &cached, "output_tokens");
    out
}

fn messages_usage(usage: &Value) -> Option<(u64, u64, u64)> {
    let (fresh, cached, output) = numbers(
        usage,
        "input_tokens",
        &["cache_read_input_tokens"],
        "output_tokens",
    )?;
    Some((fresh + cached, cached, output))
}

fn messages_event(out: &mut Answer, data: &Value) {
    let delta = &data["delta"];
    match data["type"].as_str().unwrap() {
        "content_block_start" if data["content_block"]["type"] == "tool_use" => {
            let block = &data["content_block"];
            out.tools
                .push((text(&block["id"]), text(&block["name"]), String::new()));
        }
        "content_block_delta" => match delta["type"].as_str().unwrap() {
            "text_delta" => out.text += delta["text"].as_str().unwrap(),
            "thinking_delta" => out.thinking += delta["thinking"].as_str().unwrap(),
            "input_json_delta" => {
                out.tools.last_mut().unwrap().2 += delta["partial_json"].as_str().unwrap();
            }
            "signature_delta" => {}
            other => panic!("{other}"),
        },
        "message_delta" => {
            out.finish = Some(text(&delta["stop_reason"]));
            out.usage = messages_usage(&data["usage"]);
        }
        "message_stop" => out.done = true,
        "error" => out.error = Some(data["error"].clone()),
        _ => {}
    }
}

fn messages_document(data: &Value) -> Answer {
    let mut out = Answer {
        finish: data["stop_reason"].as_str().map(str::to_owned),
        usage: messages_usage(&data["usage"]),
        ..Answer::default()
    };
    for block in data["content"].as_array().unwrap() {
        match block["type"].as_str().unwrap() {
            "text" => out.text += block["text"].as_str().unwrap(),
            "thinking" => out.thinking += block["thinking"].as_str().unwrap(),
            "tool_use" => {
                let input = match &block["input"] {
                    Value::String(raw) => raw.clone(),
                    input => input.to_string(),
                };
                out.tools
                    .push((text(&block["id"]), text(&block["name"]), input));
            }
            other => panic!("{other}"),
        }
    }
    out
}

pub(crate) async fn send(
    model: &ScriptedModel,
    dialect: Dialect,
    body: &Value,
) -> reqwest::Result<reqwest::Response> {
    let url = format!("http://{}{}", model.addr, dialect.path());
    http()
        .post(url)
        .header("x-session-id", "ses_1")
        .json(body)
        .send()
        .await
}

pub(crate) async fn prompt(
    model: &ScriptedModel,
    dialect: Dialect,
    stream: bool,
    prompt: &str,
) -> reqwest::Result<reqwest::Response> {
    let body = dialect.body(stream, &[json!({"role": "user", "content": prompt})]);
    send(model, dialect, &body).await
}

/// The answer to a single prompt.
pub(crate) async fn ask(
    model: &ScriptedModel,
    dialect: Dialect,
    stream: bool,
    text: &str,
) -> Answer {
    let response = prompt(model, dialect, stream, text).await.unwrap();
    assert_eq!(response.status(), 200);
    dialect.read(stream, &response.text().await.unwrap())
}
