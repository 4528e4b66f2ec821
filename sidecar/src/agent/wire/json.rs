//! Fields of values that may be anything.

use super::ParseError;
use crate::agent::text::clip;
use contract::Usage;
use serde_json::Value;
use std::borrow::Cow;

/// Longest id that is believed, in bytes; OpenCode's own have 30.
const MAX_ID: usize = 256;
/// Longest name of a tool, a kind or a state, in bytes.
pub(super) const MAX_NAME: usize = 256;
/// Longest title or sentence, in bytes.
pub(super) const MAX_LINE: usize = 2 * 1024;
/// Most entries of a list of things to do, patterns or files.
pub(super) const MAX_ITEMS: usize = 1_000;

/// Reads JSON. JavaScript writes half a surrogate pair as an escape of its own where a text was cut
/// inside a character; strict readers refuse that, so it is read as U+FFFD.
pub(super) fn read_json(json: &[u8], what: &'static str) -> Result<Value, ParseError> {
    let first = match serde_json::from_slice(json) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let repaired = repair_surrogates(json);
    if let Cow::Owned(repaired) = repaired
        && let Ok(value) = serde_json::from_slice(&repaired)
    {
        return Ok(value);
    }
    Err(ParseError {
        what,
        source: Some(first),
    })
}

/// Replaces `\uD800`–`\uDFFF` that have no partner by `\uFFFD`.
pub(super) fn repair_surrogates(json: &[u8]) -> Cow<'_, [u8]> {
    let mut repaired: Option<Vec<u8>> = None;
    let mut at = 0;
    while at < json.len() {
        if json[at] != b'\\' {
            at += 1;
            continue;
        }
        match escaped_unit(&json[at..]) {
            Some(0xD800..=0xDBFF)
                if matches!(
                    json.get(at + 6..).and_then(escaped_unit),
                    Some(0xDC00..=0xDFFF)
                ) =>
            {
                at += 12;
            }
            Some(0xD800..=0xDFFF) => {
                let copy = repaired.get_or_insert_with(|| json.to_vec());
                copy[at + 2..at + 6].copy_from_slice(b"FFFD");
                at += 6;
            }
            Some(_) => at += 6,
            // The escaped character is skipped too: it may be a backslash.
            None => at += 2,
        }
    }
    repaired.map_or(Cow::Borrowed(json), Cow::Owned)
}

/// The UTF-16 unit of `\uXXXX` at the beginning of `json`.
pub(super) fn escaped_unit(json: &[u8]) -> Option<u16> {
    let digits = json.strip_prefix(b"\\u")?.get(..4)?;
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

pub(super) fn take(value: &mut Value, key: &str) -> Value {
    value.get_mut(key).map(Value::take).unwrap_or_default()
}

/// A text of any length, moved out instead of copied.
pub(super) fn take_text(value: &mut Value, key: &str) -> Option<String> {
    match take(value, key) {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// An id; one that is empty or absurdly long is none.
pub(super) fn id(value: &Value, key: &str) -> Option<String> {
    let id = value.get(key)?.as_str()?;
    (!id.is_empty() && id.len() <= MAX_ID).then(|| id.to_owned())
}

pub(super) fn line(value: &Value, key: &str, max: usize) -> String {
    let text = value.get(key).and_then(Value::as_str).unwrap_or_default();
    clip(text, max).into_owned()
}

pub(super) fn some_line(value: &Value, key: &str) -> Option<String> {
    Some(line(value, key, MAX_LINE)).filter(|text| !text.is_empty())
}

pub(super) fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(false)
}

pub(super) fn integer(value: &Value, key: &str) -> Option<i64> {
    value.get(key).and_then(Value::as_i64)
}

pub(super) fn strings(value: &Value, key: &str) -> Vec<String> {
    let list = value.get(key).and_then(Value::as_array);
    list.map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .filter_map(Value::as_str)
        .take(MAX_ITEMS)
        .map(|text| clip(text, 2 * MAX_LINE).into_owned())
        .collect()
}

/// `write` names the file it wrote, `edit` the file of its difference.
pub(super) fn changed_file(metadata: &Value) -> Option<String> {
    let file = metadata
        .get("filediff")
        .and_then(|difference| some_line(difference, "file"));
    file.or_else(|| some_line(metadata, "filepath"))
}

pub(super) fn usage(tokens: Option<&Value>) -> Usage {
    let count = |value: Option<&Value>| {
        let value = value?;
        // JavaScript has one kind of number, so a count may come as 1e3.
        value.as_u64().or_else(|| {
            let number = value.as_f64()?;
            (number.is_finite() && number >= 0.0).then_some(number as u64)
        })
    };
    let field = |key| tokens.and_then(|tokens| count(tokens.get(key)));
    let cache = tokens.and_then(|tokens| tokens.get("cache"));
    let cached = |key| cache.and_then(|cache| count(cache.get(key)));
    Usage {
        input_tokens: field("input").unwrap_or(0),
        output_tokens: field("output").unwrap_or(0),
        reasoning_tokens: field("reasoning").unwrap_or(0),
        cache_read_tokens: cached("read").unwrap_or(0),
        cache_write_tokens: cached("write").unwrap_or(0),
    }
}
