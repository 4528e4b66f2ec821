//! Edits of a request's body: `model`, `temperature` and the most tokens of an answer at the top
//! level. Every other value keeps its bytes: numbers that no float holds, escapes, order.

use super::target::{Api, Target};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::{collections::HashSet, fmt};

/// Most fields at the top level; the APIs know about thirty.
const FIELDS_MAX: usize = 256;
const MODEL: &str = "model";
const TEMPERATURE: &str = "temperature";
const MAX_TOKENS: &str = "max_tokens";
const MAX_COMPLETION_TOKENS: &str = "max_completion_tokens";
const MAX_OUTPUT_TOKENS: &str = "max_output_tokens";

/// A JSON object, its values unread.
#[derive(Debug)]
pub(crate) struct Fields<'a>(Vec<(String, &'a RawValue)>);

/// The body is not what a model's API takes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EditError {
    #[error("the body is no JSON object: {0}")]
    Json(serde_json::Error),
    #[error("the body names no model")]
    Model,
}

impl<'a> Fields<'a> {
    /// Reads the top level. A name that comes twice is refused: two readers would differ on it.
    pub(crate) fn read(body: &'a [u8]) -> Result<Self, EditError> {
        serde_json::from_slice(body).map_err(EditError::Json)
    }

    /// The model asked for.
    pub(crate) fn model(&self) -> Result<String, EditError> {
        let (_, value) = self
            .0
            .iter()
            .find(|(name, _)| name == MODEL)
            .ok_or(EditError::Model)?;
        serde_json::from_str(value.get()).map_err(|_| EditError::Model)
    }

    /// Whether the answer is to come as a stream of events.
    pub(crate) fn wants_stream(&self) -> bool {
        let stream = self.0.iter().find(|(name, _)| name == "stream");
        stream.is_some_and(|(_, value)| value.get() == "true")
    }

    /// The body for `target`.
    pub(crate) fn write(&self, target: &Target) -> Vec<u8> {
        let size: usize = self
            .0
            .iter()
            .map(|(n, v)| n.len() + v.get().len() + 8)
            .sum();
        let mut out = Object::new(size + target.model.len() + 128);
        let temperature = target.temperature.map(|value| json(&value));
        let tokens = target.max_tokens.map(|value| json(&value));
        let (mut has_temperature, mut has_tokens) = (false, false);
        for (name, value) in &self.0 {
            let edited = match name.as_str() {
                MODEL => Some(json(&target.model)),
                TEMPERATURE => {
                    has_temperature = true;
                    temperature.clone()
                }
                MAX_TOKENS | MAX_COMPLETION_TOKENS | MAX_OUTPUT_TOKENS => {
                    has_tokens |= limits(target.api).contains(&name.as_str());
                    tokens.clone()
                }
                _ => None,
            };
            out.put(name, edited.as_deref().unwrap_or(value.get()));
        }
        if let Some(value) = temperature.filter(|_| !has_temperature) {
            out.put(TEMPERATURE, &value);
        }
        if let Some(value) = tokens.filter(|_| !has_tokens) {
            out.put(limits(target.api)[0], &value);
        }
        out.end()
    }
}

/// Names of the limit that an API reads, the usual one first.
fn limits(api: Api) -> &'static [&'static str] {
    match api {
        Api::Responses => &[MAX_OUTPUT_TOKENS],
        Api::Messages => &[MAX_TOKENS],
        Api::Chat => &[MAX_TOKENS, MAX_COMPLETION_TOKENS],
    }
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("a string or a finite number has a JSON form")
}

/// An object while it is written.
struct Object(Vec<u8>);

impl Object {
    fn new(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity);
        bytes.push(b'{');
        Self(bytes)
    }

    fn put(&mut self, name: &str, value: &str) {
        if self.0.len() > 1 {
            self.0.push(b',');
        }
        self.0.extend_from_slice(json(&name).as_bytes());
        self.0.push(b':');
        self.0.extend_from_slice(value.as_bytes());
    }

    fn end(mut self) -> Vec<u8> {
        self.0.push(b'}');
        self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TopLevel;

        impl<'de> Visitor<'de> for TopLevel {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                let mut seen = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if fields.len() == FIELDS_MAX {
                        return Err(A::Error::custom("too many fields"));
                    }
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom("a field came twice"));
                    }
                    fields.push((name, map.next_value()?));
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(TopLevel).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::target::KeySource;

    fn target(api: Api, temperature: Option<f64>, max_tokens: Option<u32>) -> Target {
        Target {
            api,
            base: "https://models.test/v1".parse().unwrap(),
            key: KeySource::Forgotten,
            provider: None,
            model: "real \"1\"".into(),
            temperature,
            max_tokens,
            context_window: None,
        }
    }

    fn edit(body: &str, target: &Target) -> String {
        let bytes = Fields::read(body.as_bytes()).unwrap().write(target);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn every_other_value_keeps_its_bytes() {
        let body = " {\"z\":1e400, \"model\" : \"c128k\",\n\"a\":[0.1000, -0,1E+2 ,\
                    123456789012345678901234567890],\"t\":\"\\u00e9\\ud83d\\ude00\\/ é\",\
                    \"model2\":{\"model\":\"c128k\",\"model\":\"twice\"},\"temperature\":0.30,\
                    \"max_tokens\":32000,\"n\":null } ";
        assert_eq!(
            edit(body, &target(Api::Chat, None, None)),
            "{\"z\":1e400,\"model\":\"real \\\"1\\\"\",\"a\":[0.1000, -0,1E+2 ,\
             123456789012345678901234567890],\"t\":\"\\u00e9\\ud83d\\ude00\\/ é\",\
             \"model2\":{\"model\":\"c128k\",\"model\":\"twice\"},\"temperature\":0.30,\
             \"max_tokens\":32000,\"n\":null}"
        );
    }

    #[test]
    fn configured_values_replace_or_join() {
        let chat = target(Api::Chat, Some(0.0), Some(64));
        assert_eq!(
            edit(
                r#"{"model":"x","temperature":1,"max_completion_tokens":9}"#,
                &chat
            ),
            r#"{"model":"real \"1\"","temperature":0.0,"max_completion_tokens":64}"#
        );
        for (api, name) in [
            (Api::Chat, "max_tokens"),
            (Api::Messages, "max_tokens"),
            (Api::Responses, "max_output_tokens"),
        ] {
            assert_eq!(
                edit(r#"{"model":"x"}"#, &target(api, Some(1.5), Some(7))),
                format!(r#"{{"model":"real \"1\"","temperature":1.5,"{name}":7}}"#)
            );
        }
        // A limit that the API does not read is no way around the one that it reads.
        assert_eq!(
            edit(
                r#"{"model":"x","max_output_tokens":1}"#,
                &target(Api::Messages, None, Some(7))
            ),
            r#"{"model":"real \"1\"","max_output_tokens":7,"max_tokens":7}"#
        );
        assert_eq!(
            edit(r#"{"mod\u0065l":"x"}"#, &target(Api::Chat, None, None)),
            r#"{"model":"real \"1\""}"#,
            "an escaped name is the same name"
        );
    }

    #[test]
    fn refuses_what_two_readers_would_read_differently() {
        for bad in [
            "",
            "null",
            "[]",
            "\"model\"",
            "{\"model\":\"x\"",
            "{\"model\":\"x\"} {}",
            "{\"model\":\"x\",\"model\":\"y\"}",
            "{\"model\":\"x\",\"mod\\u0065l\":\"y\"}",
            "{\"a\":1,\"model\":\"x\",\"a\":1}",
            "{\"model\":\"x\",}",
            "{'model':'x'}",
            "{\"model\":\"x\",\"n\":NaN}",
            "{\"model\":\"x\",\"n\":01}",
            "{\"\\ud800\":1}",
            "\u{feff}{\"model\":\"x\"}",
        ] {
            assert!(Fields::read(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(Fields::read(b"{\"model\":\"\xff\"}").is_err());
        for no_model in [
            "{}",
            "{\"model\":1}",
            "{\"model\":null}",
            "{\"model\":[\"x\"]}",
        ] {
            assert!(Fields::read(no_model.as_bytes()).unwrap().model().is_err());
        }
        let many: Vec<_> = (0..=FIELDS_MAX).map(|n| format!("\"f{n}\":0")).collect();
        assert!(Fields::read(format!("{{{}}}", many.join(",")).as_bytes()).is_err());
    }

    #[test]
    fn depth_is_no_danger() {
        let deep = format!(
            "{{\"model\":\"x\",\"d\":{}{}}}",
            "[".repeat(500_000),
            "]".repeat(500_000)
        );
        let edited = edit(&deep, &target(Api::Chat, None, None));
        assert_eq!(edited.len(), deep.len() + "real \\\"1\\\"".len() - 1);
    }
}
