//! Request bodies: read within bounds, checked field by field, every wrong one named.

use super::error::ApiError;
use axum::body::Body;
use contract::{
    ErrorCode, FieldError, SessionId,
    approval::{Answer, Decision},
    checkpoint::{CreateBranch, Fork},
    session::{CreateSession, CreateTurn, ModelConfig, PROMPT_MAX, Provider},
};
use http::{HeaderMap, header::CONTENT_TYPE};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use secrecy::SecretString;
use serde_json::{Map, Value};
use std::time::Duration;

/// Largest body in bytes: a prompt of 5 MiB whose every character is escaped still fits.
pub(crate) const BODY_MAX: usize = 16 * 1024 * 1024;
/// Longest time for a body to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Longest system prompt, in bytes.
const SYSTEM_PROMPT_MAX: usize = 256 * 1024;
/// Longest short text, in bytes.
const NAME_MAX: usize = 256;
/// Longest key, in bytes.
const KEY_MAX: usize = 16 * 1024;

/// Reads a JSON object.
pub(crate) async fn read(
    headers: &HeaderMap,
    body: Body,
) -> Result<(Map<String, Value>, Vec<u8>), ApiError> {
    let json = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|value| value.trim().eq_ignore_ascii_case("application/json"));
    if !json {
        return Err(ApiError::new(
            ErrorCode::UnsupportedMediaType,
            "the body must be JSON: send the header Content-Type: application/json",
        ));
    }
    let read = tokio::time::timeout(BODY_TIME, Limited::new(body, BODY_MAX).collect()).await;
    let bytes = match read {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return Err(ApiError::new(
                ErrorCode::PayloadTooLarge,
                format!("the body is larger than {BODY_MAX} bytes"),
            ));
        }
        Ok(Err(_)) => return Err(field("body", "was cut off")),
        Err(_) => return Err(field("body", "did not arrive within 30 seconds")),
    };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) => Ok((object, bytes.to_vec())),
        Ok(_) => Err(field("body", "must be a JSON object")),
        Err(error) => Err(field("body", &format!("is not valid JSON: {error}"))),
    }
}

/// For requests that need no body: none, or an empty object.
pub(crate) async fn none(body: Body) -> Result<(), ApiError> {
    let read = tokio::time::timeout(BODY_TIME, Limited::new(body, 1024).collect()).await;
    let bytes = match read {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(_)) => return Err(field("body", "must be absent or {}")),
        Err(_) => return Err(field("body", "did not arrive within 30 seconds")),
    };
    let empty = bytes.is_empty()
        || serde_json::from_slice::<Map<String, Value>>(&bytes).is_ok_and(|body| body.is_empty());
    if empty {
        Ok(())
    } else {
        Err(field("body", "must be absent or {}"))
    }
}

fn field(name: &str, rule: &str) -> ApiError {
    ApiError::invalid(vec![FieldError::new(name, rule)])
}

/// Takes fields out of an object and collects what is wrong with them.
struct Checker {
    object: Map<String, Value>,
    path: String,
    wrong: Vec<FieldError>,
}

impl Checker {
    fn new(object: Map<String, Value>, path: &str) -> Self {
        Self {
            object,
            path: path.to_owned(),
            wrong: Vec::new(),
        }
    }

    fn wrong(&mut self, name: &str, rule: impl Into<String>) {
        self.wrong
            .push(FieldError::new(format!("{}{name}", self.path), rule));
    }

    /// The value of a field; JSON `null` is the same as absent.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.object.remove(name).filter(|value| !value.is_null())
    }

    fn text(&mut self, name: &str, max: usize) -> Option<String> {
        let text = match self.take(name)? {
            Value::String(text) => text,
            other => {
                self.wrong(name, format!("must be a string, not {}", kind(&other)));
                return None;
            }
        };
        if text.is_empty() {
            self.wrong(name, "must not be empty");
        } else if text.len() > max {
            self.wrong(
                name,
                format!("must be at most {max} bytes, has {}", text.len()),
            );
        } else if let Some(bad) = text
            .chars()
            .find(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
        {
            self.wrong(
                name,
                format!("must not contain control characters other than tab and line breaks, has U+{:04X}", u32::from(bad)),
            );
        } else {
            return Some(text);
        }
        None
    }

    fn required_text(&mut self, name: &str, max: usize) -> Option<String> {
        if self.object.get(name).is_none_or(Value::is_null) {
            self.object.remove(name);
            self.wrong(name, "is required");
            return None;
        }
        self.text(name, max)
    }

    /// Nothing may be left.
    fn done(mut self) -> Vec<FieldError> {
        let left: Vec<String> = self.object.keys().take(20).cloned().collect();
        for name in left {
            let shown: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
            self.wrong(&shown, "is not a field of this request");
        }
        self.wrong
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// `POST /checkpoints/{id}/fork`: what begins a session, and `restore`.
pub(crate) fn fork(mut object: Map<String, Value>) -> Result<Fork, ApiError> {
    let restore = match object.remove("restore") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(restore)) => Ok(Some(restore)),
        Some(_) => Err(FieldError::new("restore", "must be true or false")),
    };
    let (session, restore) = match (create_session(object), restore) {
        (Ok(session), Ok(restore)) => (session, restore),
        (Ok(_), Err(wrong)) => return Err(ApiError::invalid(vec![wrong])),
        (Err(error), Ok(_)) => return Err(error),
        (Err(error), Err(wrong)) => return Err(error.and(wrong)),
    };
    Ok(Fork {
        session_id: session.session_id,
        prompt: session.prompt,
        model_config: session.model_config,
        system_prompt: session.system_prompt,
        restore,
    })
}

/// `POST /sessions`.
pub(crate) fn create_session(object: Map<String, Value>) -> Result<CreateSession, ApiError> {
    let mut body = Checker::new(object, "");
    let session_id = match body
        .required_text("session_id", usize::MAX)
        .map(SessionId::new)
    {
        Some(Ok(id)) => Some(id),
        Some(Err(error)) => {
            body.wrong("session_id", error.to_string());
            None
        }
        None => None,
    };
    let prompt = body.required_text("prompt", PROMPT_MAX);
    let system_prompt = body.text("system_prompt", SYSTEM_PROMPT_MAX);
    let model_config = match body.take("model_config") {
        None => None,
        Some(Value::Object(object)) => {
            let (config, wrong) = model_config(object);
            body.wrong.extend(wrong);
            config
        }
        Some(other) => {
            body.wrong(
                "model_config",
                format!("must be an object, not {}", kind(&other)),
            );
            None
        }
    };
    let wrong = body.done();
    match (session_id, prompt) {
        (Some(session_id), Some(prompt)) if wrong.is_empty() => Ok(CreateSession {
            session_id,
            prompt,
            model_config,
            system_prompt,
        }),
        _ => Err(ApiError::invalid(wrong)),
    }
}

fn model_config(object: Map<String, Value>) -> (Option<ModelConfig>, Vec<FieldError>) {
    let mut body = Checker::new(object, "model_config.");
    let provider = match body.required_text("provider", NAME_MAX).as_deref() {
        Some("openai") => Some(Provider::Openai),
        Some("anthropic") => Some(Provider::Anthropic),
        Some("local") => Some(Provider::Local),
        Some(_) => {
            body.wrong("provider", "must be openai, anthropic or local");
            None
        }
        None => None,
    };
    let model = body.required_text("model", NAME_MAX);
    let api_key = body.text("api_key", KEY_MAX).map(SecretString::from);
    let model_version = body.text("model_version", NAME_MAX);
    let api_endpoint = body.text("api_endpoint", 2048);
    let temperature = body
        .take("temperature")
        .and_then(|value| match value.as_f64() {
            Some(number) if (0.0..=2.0).contains(&number) => Some(number),
            _ => {
                body.wrong("temperature", "must be a number from 0 to 2");
                None
            }
        });
    let max_tokens = body.take("max_tokens").and_then(|value| {
        match value
            .as_u64()
            .filter(|n| (1..=1_000_000).contains(n))
            .and_then(|n| u32::try_from(n).ok())
        {
            Some(number) => Some(number),
            None => {
                body.wrong("max_tokens", "must be a whole number from 1 to 1000000");
                None
            }
        }
    });
    let enabled_tools = body
        .take("enabled_tools")
        .and_then(|value| tools(&mut body, value));
    let wrong = body.done();
    let config = provider.zip(model).map(|(provider, model)| ModelConfig {
        provider,
        model,
        api_key,
        temperature,
        max_tokens,
        enabled_tools,
        model_version,
        api_endpoint,
    });
    (config, wrong)
}

fn tools(body: &mut Checker, value: Value) -> Option<Vec<String>> {
    const RULE: &str = "must be a list of at most 100 tool names of a-z, A-Z, 0-9, _ and -";
    let Value::Array(items) = value else {
        body.wrong("enabled_tools", RULE);
        return None;
    };
    let names: Option<Vec<String>> = items
        .into_iter()
        .map(|item| match item {
            Value::String(name)
                if !name.is_empty()
                    && name.len() <= 64
                    && name
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') =>
            {
                Some(name)
            }
            _ => None,
        })
        .collect();
    match names {
        Some(names) if names.len() <= 100 => Some(names),
        _ => {
            body.wrong("enabled_tools", RULE);
            None
        }
    }
}

/// `POST /sessions/{id}/turns`.
pub(crate) fn create_turn(object: Map<String, Value>) -> Result<CreateTurn, ApiError> {
    let mut body = Checker::new(object, "");
    let prompt = body.required_text("prompt", PROMPT_MAX);
    let api_key = body.text("api_key", KEY_MAX).map(SecretString::from);
    let wrong = body.done();
    match prompt {
        Some(prompt) if wrong.is_empty() => Ok(CreateTurn { prompt, api_key }),
        _ => Err(ApiError::invalid(wrong)),
    }
}

/// `POST /checkpoints/{id}/branch`.
pub(crate) fn branch(object: Map<String, Value>) -> Result<CreateBranch, ApiError> {
    let mut body = Checker::new(object, "");
    let name = body.required_text("name", 200);
    let message = body.text("message", 16 * 1024);
    let wrong = body.done();
    match name {
        Some(name) if wrong.is_empty() => Ok(CreateBranch { name, message }),
        _ => Err(ApiError::invalid(wrong)),
    }
}

/// `POST /sessions/{id}/approvals/{approval_id}`.
pub(crate) fn answer(object: Map<String, Value>) -> Result<Answer, ApiError> {
    let mut body = Checker::new(object, "");
    let decision = match body.required_text("decision", NAME_MAX).as_deref() {
        Some("once") => Some(Decision::Once),
        Some("always") => Some(Decision::Always),
        Some("reject") => Some(Decision::Reject),
        Some(_) => {
            body.wrong("decision", "must be once, always or reject");
            None
        }
        None => None,
    };
    let message = body.text("message", 4096);
    let wrong = body.done();
    match decision {
        Some(decision) if wrong.is_empty() => Ok(Answer { decision, message }),
        _ => Err(ApiError::invalid(wrong)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: &str) -> Map<String, Value> {
        serde_json::from_str(json).unwrap()
    }

    fn fields(json: &str) -> String {
        format!("{:?}", create_session(object(json)).unwrap_err())
    }

    #[test]
    fn every_wrong_field_is_named_at_once() {
        let text = fields(
            r#"{"session_id":"a/b","prompt":"","surprise":1,"model_config":{"provider":"x","model":3,"temperature":9,"max_tokens":0,"enabled_tools":["../x"]}}"#,
        );
        for name in [
            "session_id",
            "prompt",
            "surprise",
            "model_config.provider",
            "model_config.model",
            "model_config.temperature",
            "model_config.max_tokens",
            "model_config.enabled_tools",
        ] {
            assert!(text.contains(&format!("\"{name}\"")), "{name} in {text}");
        }
    }

    #[test]
    fn prompts_are_bounded_and_free_of_control_characters() {
        let long = "x".repeat(PROMPT_MAX + 1);
        assert!(
            fields(&format!(r#"{{"session_id":"a","prompt":"{long}"}}"#))
                .contains("at most 5242880 bytes")
        );
        assert!(fields(r#"{"session_id":"a","prompt":"a\u0000b"}"#).contains("U+0000"));
        let fits = "x".repeat(PROMPT_MAX);
        assert!(
            create_session(object(&format!(
                r#"{{"session_id":"a","prompt":"{fits}"}}"#
            )))
            .is_ok()
        );
        assert!(create_session(object(r#"{"session_id":"a","prompt":"a\n\tb\r\n"}"#)).is_ok());
    }
}
