//! Scripts by name: the ones compiled in and the ones from files, checked as a whole.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::Value;
use thiserror::Error;

use crate::script::{ErrorBody, Fault, Part, Scenario, ScriptFile, Step, TextPart, ToolPart};
use crate::template::{Num, Template, TemplateError};

const TASKS: &str = include_str!("../scripts/tasks.yaml");
const FAULTS: &str = include_str!("../scripts/faults.yaml");

/// The name under which a prompt brings its own steps.
pub(crate) const INLINE: &str = "script";
/// The scenario for prompts that call none, and for steps after a script's last.
pub(crate) const DEFAULT: &str = "default";
/// The scenario for title requests.
pub(crate) const TITLE: &str = "title";

/// Why scripts were refused. Each names the file, the scenario and the step.
#[derive(Debug, Error)]
pub enum LibraryError {
    /// Not the YAML of scripts.
    #[error("{origin}: {message}")]
    Yaml {
        /// File name or other origin.
        origin: String,
        /// Where and why.
        message: String,
    },
    /// Well-formed, but it could not be played.
    #[error("{origin}: scenario {scenario:?}, step {step}: {message}")]
    Step {
        /// File name or other origin.
        origin: String,
        /// The scenario's name.
        scenario: String,
        /// Counted from 1; 0 is the scenario itself.
        step: usize,
        /// What is wrong.
        message: String,
    },
}

/// Scenarios by name.
#[derive(Clone, Debug)]
pub struct Library {
    scenarios: BTreeMap<String, Scenario>,
}

impl Library {
    /// The scenarios compiled in.
    ///
    /// # Errors
    /// None in a build whose tests passed.
    pub fn builtin() -> Result<Self, LibraryError> {
        // A test starts many servers, and parsing is slow without optimization.
        static PARSED: OnceLock<Library> = OnceLock::new();
        if let Some(library) = PARSED.get() {
            return Ok(library.clone());
        }
        let mut library = Self {
            scenarios: BTreeMap::new(),
        };
        library.add_yaml("scripts/tasks.yaml", TASKS)?;
        library.add_yaml("scripts/faults.yaml", FAULTS)?;
        Ok(PARSED.get_or_init(|| library).clone())
    }

    /// Adds the scenarios of a YAML text; a name that is known is replaced.
    ///
    /// # Errors
    /// Nothing is added if any scenario is refused.
    pub fn add_yaml(&mut self, origin: &str, text: &str) -> Result<(), LibraryError> {
        let file: ScriptFile = parse(origin, text)?;
        for (name, scenario) in &file.scenarios {
            check_scenario(origin, name, scenario)?;
        }
        self.scenarios.extend(file.scenarios);
        Ok(())
    }

    /// A scenario by its name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Scenario> {
        self.scenarios.get(name)
    }

    /// All scenarios in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Scenario)> {
        self.scenarios
            .iter()
            .map(|(name, scenario)| (name.as_str(), scenario))
    }
}

/// Reads and checks the steps a prompt brought with it.
pub(crate) fn inline_steps(text: &str) -> Result<Vec<Step>, LibraryError> {
    let steps: Vec<Step> = parse("prompt", text)?;
    let scenario = Scenario {
        about: String::new(),
        steps,
    };
    check_scenario("prompt", INLINE, &scenario)?;
    Ok(scenario.steps)
}

fn parse<T: serde::de::DeserializeOwned>(origin: &str, text: &str) -> Result<T, LibraryError> {
    serde_saphyr::from_str(text).map_err(|error| LibraryError::Yaml {
        origin: origin.to_owned(),
        message: error.to_string(),
    })
}

fn check_scenario(origin: &str, name: &str, scenario: &Scenario) -> Result<(), LibraryError> {
    let fail = |step: usize, message: String| LibraryError::Step {
        origin: origin.to_owned(),
        scenario: name.to_owned(),
        step,
        message,
    };
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || !name.chars().all(good) {
        return Err(fail(
            0,
            "a name has ASCII letters, digits, - and _ only".into(),
        ));
    }
    if scenario.steps.is_empty() && name != INLINE {
        return Err(fail(0, "steps is empty".into()));
    }
    for (i, step) in scenario.steps.iter().enumerate() {
        check_step(step).map_err(|message| fail(i + 1, message))?;
    }
    Ok(())
}

fn check_step(step: &Step) -> Result<(), String> {
    let Step {
        parts,
        fault,
        times,
        repeat,
        finish: _,
        usage: _,
        split_bytes,
    } = step;
    match (fault, times) {
        (None, None) if parts.is_empty() => return Err("give parts or a fault".into()),
        (None, Some(_)) => return Err("times needs a fault".into()),
        (Some(_), Some(_)) if parts.is_empty() => {
            return Err("times needs parts to follow the fault".into());
        }
        (Some(_), None) if !parts.is_empty() => {
            return Err("a fault with parts needs times".into());
        }
        (None | Some(_), None | Some(_)) => {}
    }
    if *split_bytes == Some(0) {
        return Err("split_bytes is 0".into());
    }
    [times, repeat].into_iter().flatten().try_for_each(num)?;
    fault.as_ref().map_or(Ok(()), check_fault)?;
    parts.iter().enumerate().try_for_each(|(i, part)| {
        check_part(part).map_err(|message| format!("part {}: {message}", i + 1))
    })
}

fn check_fault(fault: &Fault) -> Result<(), String> {
    let (status, headers) = match fault {
        Fault::Hang | Fault::Drop => return Ok(()),
        Fault::Error(f) => {
            check_error(&f.error)?;
            num(&f.status)?;
            let Num::Fixed(status) = f.status else {
                return Ok(());
            };
            (status, &f.headers)
        }
        Fault::Answer(f) => (u64::from(f.status), &f.headers),
    };
    if !(200..=599).contains(&status) {
        return Err(format!("status {status} is not in 200..=599"));
    }
    for (name, value) in headers {
        axum::http::HeaderName::try_from(name).map_err(|e| format!("header {name:?}: {e}"))?;
        axum::http::HeaderValue::try_from(value).map_err(|e| format!("header {name:?}: {e}"))?;
    }
    Ok(())
}

fn check_part(part: &Part) -> Result<(), String> {
    match part {
        Part::Say(t) | Part::Think(t) => template(t),
        Part::Text(TextPart {
            text,
            words,
            letters,
            delay_ms,
            chunk_chars,
        }) => {
            let given = [text.is_some(), words.is_some(), letters.is_some()];
            if given.into_iter().filter(|g| *g).count() != 1 {
                return Err("give text, words or letters, and only one".into());
            }
            if *chunk_chars == Some(0) {
                return Err("chunk_chars is 0".into());
            }
            text.iter().try_for_each(template)?;
            words
                .iter()
                .chain(letters)
                .chain(delay_ms)
                .try_for_each(num)
        }
        Part::Tool(ToolPart { name, args, raw }) => {
            if args.is_some() && raw.is_some() {
                return Err("give args or raw, and only one".into());
            }
            if args.as_ref().is_some_and(|a| !a.is_object()) {
                return Err("args is not a mapping; use raw for anything else".into());
            }
            template(name)?;
            raw.iter().try_for_each(template)?;
            args.as_ref().map_or(Ok(()), json)
        }
        Part::Flood { count, text: _ } => num(count),
        Part::WaitMs(n) | Part::EndlessLine { max_bytes: n } => num(n),
        Part::StreamError(error) => check_error(error),
        Part::RawHex(text) => hex(text).map(|_| ()),
        Part::Raw(_) | Part::Hang | Part::Abort | Part::End => Ok(()),
    }
}

pub(crate) fn hex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Option<Vec<u32>> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16))
        .collect();
    match digits {
        Some(digits) if digits.len() % 2 == 0 => Ok(digits
            .chunks_exact(2)
            .map(|pair| (pair[0] * 16 + pair[1]) as u8)
            .collect()),
        _ => Err("raw_hex is not pairs of hexadecimal digits".into()),
    }
}

fn check_error(error: &ErrorBody) -> Result<(), String> {
    template(&error.message)?;
    error.anthropic_message.iter().try_for_each(template)
}

fn template(t: &Template) -> Result<(), String> {
    t.check().map_err(text)
}

fn num(n: &Num) -> Result<(), String> {
    n.check().map_err(text)
}

fn json(value: &Value) -> Result<(), String> {
    match value {
        Value::String(s) => template(&Template(s.clone())),
        Value::Array(items) => items.iter().try_for_each(json),
        Value::Object(map) => map.values().try_for_each(json),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

fn text(error: TemplateError) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(yaml: &str) -> String {
        Library::builtin()
            .unwrap()
            .add_yaml("mine.yaml", yaml)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn the_built_in_scenarios_are_sound() {
        let library = Library::builtin().unwrap();
        for name in [
            DEFAULT, TITLE, "hello", "demo", "bash", "write", "say", "recall", "err429",
        ] {
            assert!(library.get(name).is_some(), "{name}");
        }
        for (name, scenario) in library.iter() {
            assert!(
                !scenario.about.is_empty(),
                "{name} says nothing about itself"
            );
        }
    }

    #[test]
    fn a_refusal_names_file_scenario_step_and_reason() {
        let one = |step: &str| refused(&format!("scenarios: {{mine: {{steps: [{step}]}}}}"));
        let message = one("{parts: [{say: '{{nope}}'}]}");
        assert!(
            message.starts_with("mine.yaml: scenario \"mine\", step 1: part 1: "),
            "{message}"
        );
        assert!(message.contains("nope"), "{message}");
        for (step, reason) in [
            ("{}", "give parts or a fault"),
            ("{parts: [hang], times: 2}", "times needs a fault"),
            ("{fault: hang, times: 2}", "times needs parts"),
            ("{fault: hang, parts: [hang]}", "needs times"),
            ("{parts: [{text: {}}]}", "text, words or letters"),
            (
                "{parts: [{text: {text: a, words: 3}}]}",
                "text, words or letters",
            ),
            ("{parts: [{tool: {name: a, args: [1]}}]}", "not a mapping"),
            (
                "{parts: [{tool: {name: a, args: {}, raw: '{'}}]}",
                "args or raw",
            ),
            (
                "{parts: [{tool: {name: a, args: {b: ['{{c}}']}}}]}",
                "unknown placeholder",
            ),
            (
                "{fault: {error: {status: 42, error: {message: a}}}}",
                "status 42",
            ),
            ("{fault: {answer: {headers: {'a b': c}}}}", "header"),
            ("{parts: [{wait_ms: '{{1|soon}}'}]}", "not a whole number"),
            ("{parts: [{raw_hex: 'f'}]}", "raw_hex"),
            ("{parts: [{raw_hex: 'fg'}]}", "raw_hex"),
            ("{parts: [hang], split_bytes: 0}", "split_bytes"),
            ("{partz: [hang]}", "partz"),
            ("{parts: [{sing: la}]}", "sing"),
        ] {
            let message = one(step);
            assert!(message.contains(reason), "{step}: {message}");
        }
        assert!(refused("scenarios: {'a b': {steps: [{parts: [hang]}]}}").contains("a name has"));
        assert!(refused("scenarios: {a: {steps: []}}").contains("steps is empty"));
        assert!(refused("scenarios: [").contains("mine.yaml"));
    }

    #[test]
    fn a_later_file_replaces_a_scenario_and_a_bad_one_adds_nothing() {
        let mut library = Library::builtin().unwrap();
        library
            .add_yaml(
                "a",
                "scenarios: {hello: {steps: [{parts: [hang]}, {parts: [hang]}]}}",
            )
            .unwrap();
        assert_eq!(library.get("hello").unwrap().steps.len(), 2);
        let bad = "scenarios: {aa: {steps: [{parts: [hang]}]}, bb: {steps: []}}";
        library.add_yaml("b", bad).unwrap_err();
        assert!(library.get("aa").is_none());
    }
}
