//! What the prompt says (`SCENARIO:name words <<<block>>>`) and the `{{placeholders}}`
//! by which a script repeats it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

const MARK: &str = "SCENARIO:";

/// A scenario call found in a user message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Directive {
    pub(crate) name: String,
    /// Words between the name and the block or the end of the line.
    words: Vec<String>,
    /// The line after the name.
    line: String,
    /// The line after the first word.
    after_first: String,
    block: Option<String>,
}

impl Directive {
    /// Finds the first call in `text`.
    ///
    /// The block starts at the first `<<<` on the call's own line and ends at the last
    /// `>>>` of the message, so that it may hold here-strings and further calls.
    pub(crate) fn find(text: &str) -> Option<Self> {
        let mut from = 0;
        while let Some(at) = text[from..].find(MARK) {
            let after = &text[from + at + MARK.len()..];
            let end = after
                .find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'))
                .unwrap_or(after.len());
            if end > 0 {
                return Some(Self::parse(&after[..end], &after[end..]));
            }
            from += at + MARK.len();
        }
        None
    }

    fn parse(name: &str, rest: &str) -> Self {
        let line_end = rest.find('\n').unwrap_or(rest.len());
        let (line, block) = match rest[..line_end].find("<<<") {
            Some(open) => (&rest[..open], Some(block(&rest[open + 3..]))),
            None => (&rest[..line_end], None),
        };
        let line = line.trim();
        let after_first = line
            .split_once(char::is_whitespace)
            .map_or("", |(_, r)| r.trim_start());
        Self {
            name: name.to_owned(),
            words: line.split_whitespace().map(str::to_owned).collect(),
            line: line.to_owned(),
            after_first: after_first.to_owned(),
            block,
        }
    }
}

fn block(text: &str) -> String {
    let inner = text.rfind(">>>").map_or(text, |end| &text[..end]);
    let inner = inner
        .strip_prefix("\r\n")
        .or_else(|| inner.strip_prefix('\n'))
        .unwrap_or(inner);
    inner.to_owned()
}

/// What placeholders stand for in one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vars {
    pub(crate) directive: Directive,
    /// Number of the repetition, from 1.
    pub(crate) n: u64,
    pub(crate) step: usize,
    pub(crate) user_messages: usize,
    pub(crate) remembered: Option<String>,
    pub(crate) model: String,
    pub(crate) session: Option<String>,
}

/// Why a placeholder could not be filled.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum TemplateError {
    #[error(
        "unknown placeholder {{{{{0}}}}}; known: all, rest, 1..9, n, step, scenario, \
         user_messages, remembered, model, session"
    )]
    Unknown(String),
    #[error("placeholder {{{{{0}}}}} needs a value in the prompt, as in {MARK}name VALUE")]
    Missing(String),
    #[error("placeholder is not closed: {0:?}")]
    Open(String),
    #[error("{0:?} is not a whole number")]
    NotANumber(String),
}

impl Vars {
    /// `Ok(None)` is a known placeholder without a value.
    fn get(&self, key: &str) -> Result<Option<String>, TemplateError> {
        let d = &self.directive;
        let filled = |s: &String| (!s.is_empty()).then(|| s.clone());
        Ok(match key {
            "all" => d.block.clone().or_else(|| filled(&d.line)),
            "rest" => d.block.clone().or_else(|| filled(&d.after_first)),
            "n" => Some(self.n.to_string()),
            "step" => Some(self.step.to_string()),
            "scenario" => filled(&d.name),
            "user_messages" => Some(self.user_messages.to_string()),
            "remembered" => self.remembered.clone(),
            "model" => Some(self.model.clone()),
            "session" => self.session.clone(),
            _ => match key.parse::<usize>() {
                Ok(i @ 1..=9) => d.words.get(i - 1).cloned(),
                _ => return Err(TemplateError::Unknown(key.to_owned())),
            },
        })
    }
}

/// Text with placeholders: `{{name}}`, or `{{name|default}}`. Filled in one pass, so
/// that braces in a prompt are never taken for placeholders.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Template(pub String);

impl Template {
    pub(crate) fn fill(&self, vars: &Vars) -> Result<String, TemplateError> {
        fill(&self.0, vars)
    }

    /// Checks the placeholders' names.
    pub(crate) fn check(&self) -> Result<(), TemplateError> {
        match self.fill(&Vars::default()) {
            Err(TemplateError::Missing(_)) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn fill(text: &str, vars: &Vars) -> Result<String, TemplateError> {
    let mut out = String::with_capacity(text.len());
    let mut left = text;
    let mut missing = None;
    while let Some((before, after)) = left.split_once("{{") {
        let (inner, rest) = after
            .split_once("}}")
            .ok_or_else(|| TemplateError::Open(after.chars().take(40).collect()))?;
        let (key, default) = match inner.split_once('|') {
            Some((key, default)) => (key, Some(default)),
            None => (inner, None),
        };
        out.push_str(before);
        match vars.get(key.trim())?.or_else(|| default.map(str::to_owned)) {
            Some(value) => out.push_str(&value),
            None => missing = missing.or(Some(key.trim().to_owned())),
        }
        left = rest;
    }
    out.push_str(left);
    missing.map_or(Ok(out), |key| Err(TemplateError::Missing(key)))
}

/// Fills every string inside a JSON value.
pub(crate) fn fill_json(
    value: &serde_json::Value,
    vars: &Vars,
) -> Result<serde_json::Value, TemplateError> {
    use serde_json::Value;
    Ok(match value {
        Value::String(s) => Value::String(fill(s, vars)?),
        Value::Array(items) => Value::Array(
            items
                .iter()
                .map(|v| fill_json(v, vars))
                .collect::<Result<_, _>>()?,
        ),
        Value::Object(map) => Value::Object(
            map.iter()
                .map(|(k, v)| Ok((k.clone(), fill_json(v, vars)?)))
                .collect::<Result<_, _>>()?,
        ),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    })
}

/// A whole number, or a placeholder that becomes one: `400` or `"{{1|400}}"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Num {
    /// A number written in the script.
    Fixed(u64),
    /// A number taken from the prompt.
    Param(Template),
}

impl Num {
    pub(crate) fn get(&self, vars: &Vars) -> Result<u64, TemplateError> {
        match self {
            Self::Fixed(n) => Ok(*n),
            Self::Param(template) => {
                let text = template.fill(vars)?;
                text.trim()
                    .parse()
                    .map_err(|_| TemplateError::NotANumber(text))
            }
        }
    }

    pub(crate) fn check(&self) -> Result<(), TemplateError> {
        match self.get(&Vars {
            n: 1,
            ..Vars::default()
        }) {
            Err(TemplateError::Missing(_)) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl From<u64> for Num {
    fn from(n: u64) -> Self {
        Self::Fixed(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(text: &str) -> Directive {
        Directive::find(text).unwrap()
    }

    fn vars(text: &str) -> Vars {
        Vars {
            directive: find(text),
            ..Vars::default()
        }
    }

    fn filled(template: &str, prompt: &str) -> Result<String, TemplateError> {
        fill(template, &vars(prompt))
    }

    #[test]
    fn a_name_ends_at_punctuation() {
        assert_eq!(
            find("please run SCENARIO:slow-tools, thanks").name,
            "slow-tools"
        );
        assert_eq!(find("SCENARIO:hello.").name, "hello");
        assert_eq!(find("\u{1f680}SCENARIO:hello\u{1f680}").name, "hello");
        assert_eq!(find("SCENARIO: then SCENARIO:x").name, "x");
        assert_eq!(Directive::find("SCENARIO:"), None);
        assert_eq!(Directive::find("scenario:hello"), None);
    }

    #[test]
    fn the_first_call_of_a_message_wins_and_its_block_may_hold_calls() {
        let d = find("SCENARIO:task <<<SCENARIO:bash <<<cat <<<x>>> >>>\nSCENARIO:hello");
        assert_eq!(d.name, "task");
        assert_eq!(d.block.as_deref(), Some("SCENARIO:bash <<<cat <<<x>>> "));
    }

    #[test]
    fn words_and_blocks_reach_the_script() {
        let write = "SCENARIO:write a/b.txt <<<\nline 1\nline 2\n>>> and more";
        assert_eq!(
            filled("{{1}}|{{rest}}", write).unwrap(),
            "a/b.txt|line 1\nline 2\n"
        );
        assert_eq!(
            filled("{{all}}", "SCENARIO:bash ls -la\nnext").unwrap(),
            "ls -la"
        );
        assert_eq!(
            filled("{{rest}}", "SCENARIO:write f two words").unwrap(),
            "two words"
        );
        assert_eq!(
            filled("{{2|no}} {{all|none}}", "SCENARIO:x").unwrap(),
            "no none"
        );
        assert_eq!(
            filled("{{all}}", "SCENARIO:say <<<open end").unwrap(),
            "open end"
        );
    }

    #[test]
    fn braces_in_the_prompt_stay_as_they_are() {
        assert_eq!(
            filled("{{all}}", "SCENARIO:say <<<{{1}} }} {{>>>").unwrap(),
            "{{1}} }} {{"
        );
    }

    #[test]
    fn what_cannot_be_filled_is_an_error() {
        assert_eq!(
            filled("{{1}}", "SCENARIO:x"),
            Err(TemplateError::Missing("1".into()))
        );
        assert_eq!(
            filled("{{nope}}", "SCENARIO:x"),
            Err(TemplateError::Unknown("nope".into()))
        );
        assert!(matches!(
            filled("a {{1", "SCENARIO:x"),
            Err(TemplateError::Open(_))
        ));
        let num = Num::Param(Template("{{1|5}}".into()));
        assert_eq!(num.get(&vars("SCENARIO:x")), Ok(5));
        assert_eq!(num.get(&vars("SCENARIO:x 7")), Ok(7));
        assert_eq!(
            num.get(&vars("SCENARIO:x -1")),
            Err(TemplateError::NotANumber("-1".into()))
        );
        assert!(Num::Param(Template("{{1|five}}".into())).check().is_err());
    }
}
