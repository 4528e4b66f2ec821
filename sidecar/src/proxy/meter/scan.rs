//! Looks at JSON as it passes, byte by byte, and keeps only what counts: the object `usage`, and how
//! many bytes of answer there were.
//!
//! Nothing is buffered but a key's beginning and one usage object, so that no answer, however long or
//! hostile, decides how much memory is taken. What a model writes stands inside of strings or below
//! the answer's own fields and cannot pose as the usage, which is taken only from where the API has it.

use serde_json::Value;

/// Longest key that is told from others, in bytes.
const KEY_MAX: usize = 24;
/// Largest usage object, in bytes. The largest seen have about 400.
const USAGE_MAX: usize = 4096;
/// Depth up to which objects are told from arrays.
const DEPTH_MAX: usize = 128;

/// One JSON value on its way. Bytes that are no JSON do no harm: they are just not understood.
#[derive(Debug, Default)]
pub(super) struct Scan {
    depth: usize,
    /// Bit n: the container at depth n + 1 is an object.
    objects: u128,
    /// Keys in force at depths 1 and 2.
    keys: [Vec<u8>; 2],
    /// The last key at any depth.
    last: Vec<u8>,
    /// The next string is a key.
    key_next: bool,
    string: Option<Text>,
    usage: Option<Usage>,
    found: Found,
    text: u64,
    /// An error stood where the APIs have it.
    failed: bool,
}

/// The last usage objects of each kind.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// One that came with the beginning of the answer: its count of output is not the last.
    pub(super) early: Option<Value>,
    pub(super) last: Option<Value>,
}

/// A string under way.
#[derive(Debug, Default)]
struct Text {
    escaped: bool,
    begin: Vec<u8>,
    bytes: u64,
}

/// A usage object under way, that ends at this depth.
#[derive(Debug)]
struct Usage {
    depth: usize,
    early: bool,
    bytes: Vec<u8>,
}

impl Scan {
    /// Takes the next bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.byte(byte);
        }
    }

    /// The usage objects that ended since this was asked.
    pub(super) fn take_usage(&mut self) -> Found {
        std::mem::take(&mut self.found)
    }

    /// The value is over, whole or not; the next one begins.
    pub(super) fn next_value(&mut self) {
        *self = Self {
            found: self.take_usage(),
            text: self.text,
            failed: self.failed,
            ..Self::default()
        };
    }

    /// Whether an error stood in any value so far.
    pub(super) fn failed(&self) -> bool {
        self.failed
    }

    /// Bytes of answer since this was asked.
    pub(super) fn take_text(&mut self) -> u64 {
        std::mem::take(&mut self.text)
    }

    fn byte(&mut self, byte: u8) {
        if let Some(usage) = self.usage.as_mut().filter(|u| u.bytes.len() <= USAGE_MAX) {
            usage.bytes.push(byte);
        }
        if let Some(text) = &mut self.string {
            match byte {
                b'"' if !text.escaped => return self.string_ends(),
                b'\\' if !text.escaped => text.escaped = true,
                _ => text.escaped = false,
            }
            text.bytes += 1;
            if text.begin.len() <= KEY_MAX {
                text.begin.push(byte);
            }
            return;
        }
        match byte {
            b'"' => self.string = Some(Text::default()),
            b'{' => self.opens(true),
            b'[' => self.opens(false),
            b'}' | b']' => self.closes(),
            b':' => self.key_next = false,
            b',' => self.key_next = self.in_object(),
            _ => {}
        }
    }

    fn string_ends(&mut self) {
        let Some(text) = self.string.take() else {
            return;
        };
        if !self.key_next {
            if self.is_answer() {
                self.text = self.text.saturating_add(text.bytes);
            }
            return;
        }
        let key = if text.begin.len() <= KEY_MAX {
            text.begin
        } else {
            Vec::new()
        };
        if let Some(at) = self.depth.checked_sub(1).and_then(|n| self.keys.get_mut(n)) {
            at.clone_from(&key);
        }
        self.last = key;
    }

    fn opens(&mut self, object: bool) {
        self.failed |= object && self.is_error();
        if object && self.usage.is_none() && self.is_usage() {
            self.usage = Some(Usage {
                depth: self.depth,
                early: self.depth == 2 && self.keys[0] == b"message",
                bytes: vec![b'{'],
            });
        }
        self.depth = self.depth.saturating_add(1);
        if self.depth <= DEPTH_MAX {
            let bit = 1 << (self.depth - 1);
            self.objects = if object {
                self.objects | bit
            } else {
                self.objects & !bit
            };
        }
        if let Some(key) = self.keys.get_mut(self.depth - 1) {
            key.clear();
        }
        self.key_next = object;
    }

    fn closes(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.key_next = false;
        if self.usage.as_ref().is_some_and(|u| u.depth == self.depth)
            && let Some(usage) = self.usage.take()
        {
            let place = if usage.early {
                &mut self.found.early
            } else {
                &mut self.found.last
            };
            if let Ok(value) = serde_json::from_slice(&usage.bytes) {
                *place = Some(value);
            }
        }
    }

    fn in_object(&self) -> bool {
        (1..=DEPTH_MAX).contains(&self.depth) && self.objects & (1 << (self.depth - 1)) != 0
    }

    /// `usage` of the value itself, or of its `message` (Anthropic) or `response` (OpenAI responses).
    fn is_usage(&self) -> bool {
        let [first, second] = &self.keys;
        match self.depth {
            1 => first == b"usage",
            2 => {
                self.in_object()
                    && matches!(&first[..], b"message" | b"response")
                    && second == b"usage"
            }
            _ => false,
        }
    }

    /// `error` of the value itself, or of its `response` (OpenAI responses).
    fn is_error(&self) -> bool {
        let [first, second] = &self.keys;
        match self.depth {
            1 => first == b"error",
            2 => self.in_object() && first == b"response" && second == b"error",
            _ => false,
        }
    }

    /// Whether a string here is text of the model, thinking and arguments of tools included.
    fn is_answer(&self) -> bool {
        let place = matches!(
            &self.keys[0][..],
            b"delta" | b"choices" | b"content" | b"output"
        );
        place
            && matches!(
                &self.last[..],
                b"delta"
                    | b"content"
                    | b"text"
                    | b"thinking"
                    | b"reasoning"
                    | b"reasoning_content"
                    | b"refusal"
                    | b"arguments"
                    | b"partial_json"
            )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn scan(text: &str) -> (Option<Value>, u64) {
        let mut scan = Scan::default();
        scan.feed(text.as_bytes());
        let Found { early, last } = scan.take_usage();
        (last.or(early), scan.take_text())
    }

    #[test]
    fn errors_are_seen_where_the_apis_have_them() {
        for (text, failed) in [
            (r#"{"error":{"message":"no"}}"#, true),
            (
                r#"{"type":"error","error":{"type":"overloaded_error"}}"#,
                true,
            ),
            (r#"{"response":{"error":{"code":"server_error"}}}"#, true),
            (r#"{"response":{"error":null}}"#, false),
            (
                r#"{"choices":[{"delta":{"content":"\"error\":{}"}}]}"#,
                false,
            ),
            (r#"{"choices":[{"error":{}}]}"#, false),
        ] {
            let mut scan = Scan::default();
            scan.feed(text.as_bytes());
            scan.next_value();
            assert_eq!(scan.failed(), failed, "{text}");
        }
    }

    #[test]
    fn usage_is_taken_from_where_the_apis_have_it() {
        for text in [
            r#"{"choices":[],"usage":{"a":1}}"#,
            r#"{"type":"response.completed","response":{"output":[{"usage":{"a":2}}],"usage":{"a":1}}}"#,
            r#"{"type":"message_start","message":{"usage" : {"a":1},"content":[]}}"#,
            r#"{"usage":{"a":9},"x":1,"usage":{"a":1}}"#,
            r#" {"usage":null,"s":"\"usage\":{\"a\":3}","usage":{"a":1}}"#,
        ] {
            assert_eq!(scan(text).0, Some(json!({"a": 1})), "{text}");
        }
        for text in [
            r#"{"usage":null}"#,
            r#"{"usage":[{"a":1}]}"#,
            r#"[{"usage":{"a":1}}]"#,
            r#"{"s":"\"usage\":{\"a\":1}"}"#,
            r#"{"s":"\\\"usage\":{"}"#,
            r#"{"content":[{"input":{"usage":{"a":1}}}]}"#,
            r#"{"content":{"usage":{"a":1}}}"#,
            r#"{"message":[{"usage":{"a":1}}]}"#,
            r#"{"usag":{"a":1},"usage2":{"a":1}}"#,
            r#"{"usage":{"a":1"#,
            "",
        ] {
            assert_eq!(scan(text).0, None, "{text}");
        }
        let long = format!(r#"{{"usage":{{"a":"{}"}}}}"#, "x".repeat(USAGE_MAX));
        assert_eq!(scan(&long).0, None, "not kept");
    }

    #[test]
    fn only_the_models_words_are_counted() {
        for (text, bytes) in [
            (
                r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":"four"}}]}"#,
                4,
            ),
            (
                r#"{"choices":[{"delta":{"tool_calls":[{"id":"call_1","function":{"name":"bash","arguments":"{\"a\""}}]}}]}"#,
                6,
            ),
            (
                r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"four"}}"#,
                4,
            ),
            (r#"{"type":"response.output_text.delta","delta":"four"}"#, 4),
            (r#"{"type":"response.output_text.done","text":"four"}"#, 0),
            (
                r#"{"content":[{"type":"text","text":"four"}],"model":"m"}"#,
                4,
            ),
            (r#"{"error":{"message":"four"}}"#, 0),
        ] {
            assert_eq!(scan(text).1, bytes, "{text}");
        }
    }

    #[test]
    fn garbage_and_depth_do_no_harm() {
        let deep = "[".repeat(200_000) + &"{\"usage\":".repeat(1000) + &"}".repeat(300_000);
        assert_eq!(scan(&deep).0, None);
        assert_eq!(scan("}}}]]]\"\\").0, None);
        let mut scan = Scan::default();
        scan.feed(&[0xff; 100]);
        scan.feed(br#"{"usage":{"a":1}}"#);
        assert!(
            scan.take_usage().last.is_some(),
            "noise between values is no value"
        );
    }

    proptest::proptest! {
        #[test]
        fn chunks_do_not_matter(cut in 0..90_usize) {
            let text = r#"{"a":"\"","choices":[{"delta":{"content":"x\\ny"}}],"usage":{"a":{"b":[1]}},"c":[]}"#;
            let cut = cut.min(text.len());
            let mut scan = Scan::default();
            scan.feed(&text.as_bytes()[..cut]);
            scan.feed(&text.as_bytes()[cut..]);
            let usage = scan.take_usage().last;
            proptest::prop_assert_eq!(usage, Some(json!({"a": {"b": [1]}})));
            proptest::prop_assert_eq!(scan.take_text(), 5);
        }
    }
}
