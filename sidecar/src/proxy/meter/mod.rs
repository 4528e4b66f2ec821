//! Counts tokens while an answer passes.
//!
//! What the provider says counts. Until it says so, and where it never does, tokens are estimated:
//! input as a token per four bytes of the request's body, output as a token per four bytes of text,
//! thinking and tool arguments in the answer. An estimate that stays is marked as one.

mod scan;

use contract::spend::Tokens;
use scan::{Found, Scan};
use serde_json::Value;

/// Bytes per token of an estimate: what English and code come to with the usual vocabularies.
const BYTES_PER_TOKEN: u64 = 4;
/// Most tokens of a kind that a provider may claim for one call: what is more is no count.
const CLAIM_MAX: u64 = 1_000_000_000;
/// How a line with data begins.
const FIELD: &[u8] = b"data:";

/// An answer's shape on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Events, a JSON value each.
    Events,
    /// One JSON value.
    Json,
}

/// Counts one call.
#[derive(Debug)]
pub(crate) struct Meter {
    lines: Option<Lines>,
    scan: Scan,
    estimate: Tokens,
    text: u64,
    told: Told,
    /// The provider answered 2xx: it may bill for it.
    answered: bool,
}

/// What the provider said.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    input: Option<u64>,
    output: Option<u64>,
    cached: Option<u64>,
    written: Option<u64>,
    /// Of those, for an hour.
    hour: u64,
    /// The count of output is the final one.
    last: bool,
}

/// Where in a stream of events we are.
#[derive(Debug, Default)]
struct Lines {
    /// Bytes of this line that match [`FIELD`]; all of them: the rest is data.
    matched: usize,
    /// It is some other line.
    other: bool,
    /// It has nothing in it so far.
    empty: bool,
}

impl Meter {
    /// A call with a body of this many bytes, before its answer. `caches`: the provider may ask more for
    /// what it writes to its cache; an estimate takes all of it for that.
    pub(crate) fn new(body: usize, caches: bool) -> Self {
        let sent = (body as u64).div_ceil(BYTES_PER_TOKEN);
        let (input, cache_write) = if caches { (0, sent) } else { (sent, 0) };
        Self {
            lines: None,
            scan: Scan::default(),
            estimate: Tokens {
                input,
                cache_write,
                ..Tokens::default()
            },
            text: 0,
            told: Told::default(),
            answered: false,
        }
    }

    /// The provider answered well; what follows has this shape.
    pub(crate) fn answers(&mut self, shape: Shape) {
        self.answered = true;
        self.lines = (shape == Shape::Events).then(|| Lines {
            empty: true,
            ..Lines::default()
        });
    }

    /// The next bytes of the answer.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        if !self.answered {
            return;
        }
        match &mut self.lines {
            None => self.scan.feed(bytes),
            Some(lines) => lines.feed(bytes, &mut self.scan),
        }
        self.text = self.text.saturating_add(self.scan.take_text());
        self.estimate.output = self.text.div_ceil(BYTES_PER_TOKEN);
        let Found { early, last } = self.scan.take_usage();
        if let Some(usage) = early {
            self.told.take(&usage, true);
        }
        if let Some(usage) = last {
            self.told.take(&usage, false);
        }
    }

    /// Whether the answer holds an error, as one that broke off does whose status was well.
    pub(crate) fn failed(&self) -> bool {
        self.scan.failed()
    }

    /// What is known now: what the provider said, else the estimate. Nothing where it did not answer.
    pub(crate) fn tokens(&self) -> Tokens {
        let Told {
            input,
            output,
            cached,
            written,
            hour,
            last,
        } = self.told;
        Tokens {
            input: input.unwrap_or(self.estimate.input),
            // A count in mid-stream is behind; the larger one is nearer.
            output: match output {
                Some(output) if last => output,
                Some(output) => output.max(self.estimate.output),
                None => self.estimate.output,
            },
            cached_input: cached.unwrap_or(0),
            // Where it told its input, what it did not tell was not written.
            cache_write: written.unwrap_or(if input.is_some() {
                0
            } else {
                self.estimate.cache_write
            }),
            cache_write_hour: hour,
        }
    }

    /// The final count, and whether any of it is estimated. `whole`: the answer came to its end.
    pub(crate) fn finish(&self, whole: bool) -> (Tokens, bool) {
        if !self.answered {
            return (Tokens::default(), false);
        }
        let mut tokens = self.tokens();
        if !whole {
            tokens.output = tokens.output.max(self.estimate.output);
        }
        let told = whole && self.told.input.is_some() && self.told.last;
        (tokens, !told)
    }
}

impl Lines {
    fn feed(&mut self, bytes: &[u8], scan: &mut Scan) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let end = rest.iter().position(|&byte| byte == b'\n');
            let (line, after) = match end {
                Some(end) => (&rest[..end], &rest[end + 1..]),
                None => (rest, &rest[rest.len()..]),
            };
            self.part(line, scan);
            if end.is_some() {
                if self.empty {
                    scan.next_value();
                }
                *self = Self {
                    empty: true,
                    ..Self::default()
                };
            }
            rest = after;
        }
    }

    fn part(&mut self, mut line: &[u8], scan: &mut Scan) {
        if line.iter().any(|&byte| byte != b'\r') {
            self.empty = false;
        }
        while !self.other && self.matched < FIELD.len() {
            let Some((&byte, after)) = line.split_first() else {
                return;
            };
            if byte == FIELD[self.matched] {
                self.matched += 1;
                line = after;
            } else {
                self.other = true;
            }
        }
        if !self.other {
            scan.feed(line);
        }
    }
}

impl Told {
    /// Takes a usage object of any of the three APIs; a later one wins field by field.
    fn take(&mut self, usage: &Value, early: bool) {
        let count = |value: &Value| value.as_u64().filter(|n| *n <= CLAIM_MAX);
        let field = |name: &str| count(&usage[name]);
        let details = &usage["prompt_tokens_details"];
        let cached = field("cache_read_input_tokens")
            .or_else(|| count(&details["cached_tokens"]))
            .or_else(|| count(&usage["input_tokens_details"]["cached_tokens"]))
            .or_else(|| field("prompt_cache_hit_tokens"));
        // OpenAI counts cached tokens as input, too; Anthropic counts three separate kinds. Of gateways that
        // tell both ways the dearer reading counts.
        let separate = usage.get("cache_read_input_tokens").is_some()
            || usage.get("cache_creation_input_tokens").is_some();
        let written =
            field("cache_creation_input_tokens").or_else(|| count(&details["cache_write_tokens"]));
        let input = field("prompt_tokens").or_else(|| field("input_tokens"));
        if let Some(input) = input {
            self.input = Some(if separate {
                input
            } else {
                input.saturating_sub(cached.unwrap_or(0).saturating_add(written.unwrap_or(0)))
            });
        }
        self.cached = cached.or(self.cached);
        self.written = written.or(self.written);
        self.hour =
            count(&usage["cache_creation"]["ephemeral_1h_input_tokens"]).unwrap_or(self.hour);
        let output = field("completion_tokens").or_else(|| field("output_tokens"));
        if let Some(output) = output {
            self.last = !early;
            self.output = Some(output);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"0123456789\"}}]}\n\n: note\n\n\
                        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":30,\
                        \"prompt_tokens_details\":{\"cached_tokens\":40}}}\n\ndata: [DONE]\n\n";
    const RESPONSES: &str = "event: x\r\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\r\n\r\n\
                             data: {\"delta\":\"0123456789\"}\r\n\r\ndata: {\"response\":{\"output\":[{\"content\":[{\"text\":\"0123456789\"}]}],\
                             \"usage\":{\"input_tokens\":100,\"input_tokens_details\":{\"cached_tokens\":40},\"output_tokens\":30}}}\r\n\r\n";
    const MESSAGES: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":50,\
                            \"cache_creation_input_tokens\":10,\"cache_read_input_tokens\":40,\"output_tokens\":2}}}\n\n\
                            event: content_block_delta\ndata: {\"delta\":{\"type\":\"text_delta\",\"text\":\"0123456789\"}}\n\n\
                            event: message_delta\ndata: {\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":30}}\n\n";

    fn tokens(input: u64, output: u64, cached_input: u64) -> Tokens {
        Tokens {
            input,
            output,
            cached_input,
            ..Tokens::default()
        }
    }

    #[test]
    fn every_api_is_counted_alike_however_it_is_cut() {
        for text in [CHAT, RESPONSES, MESSAGES] {
            for size in [1, 2, 3, 7, 64, text.len()] {
                let mut meter = Meter::new(4000, false);
                meter.answers(Shape::Events);
                for chunk in text.as_bytes().chunks(size) {
                    meter.feed(chunk);
                }
                let mut counted = tokens(60, 30, 40);
                if text == MESSAGES {
                    (counted.input, counted.cache_write) = (50, 10);
                }
                assert_eq!(meter.finish(true), (counted, false), "{size}: {text}");
            }
        }
    }

    #[test]
    fn an_answer_that_was_cut_is_estimated() {
        for text in [CHAT, RESPONSES, MESSAGES] {
            let end = text.find("56789").unwrap() + "56789".len();
            let end = end + text[end..].find("\n").unwrap();
            let mut meter = Meter::new(4001, false);
            meter.answers(Shape::Events);
            meter.feed(&text.as_bytes()[..end]);
            let (counted, estimated) = meter.finish(false);
            assert!(estimated, "{text}");
            assert_eq!(counted.output, 3, "ten bytes: {text}");
            let said = text == MESSAGES;
            assert_eq!(counted.input, if said { 50 } else { 1001 });
        }
    }

    #[test]
    fn whole_answers_are_counted_and_errors_cost_nothing() {
        let mut meter = Meter::new(400, false);
        meter.answers(Shape::Json);
        meter.feed(br#"{"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":9,"completion_tokens":8}}"#);
        assert_eq!(meter.finish(true), (tokens(9, 8, 0), false));

        let mut refused = Meter::new(400, false);
        refused.feed(br#"{"usage":{"prompt_tokens":9,"completion_tokens":8}}"#);
        assert_eq!(refused.finish(true), (Tokens::default(), false));
    }

    #[test]
    fn counts_that_cannot_be_are_not_believed() {
        for usage in [
            r#"{"prompt_tokens":-1,"completion_tokens":1.5}"#,
            r#"{"prompt_tokens":"9","completion_tokens":null}"#,
            r#"{"prompt_tokens":18446744073709551615,"completion_tokens":1e30}"#,
            "{}",
        ] {
            let mut meter = Meter::new(40, false);
            meter.answers(Shape::Json);
            meter.feed(
                format!(r#"{{"choices":[{{"text":"12345678"}}],"usage":{usage}}}"#).as_bytes(),
            );
            assert_eq!(meter.finish(true), (tokens(10, 2, 0), true), "{usage}");
        }
    }

    #[test]
    fn anthropics_cache_is_counted_in_every_form_that_is_in_use() {
        let start = r#"{"type":"message_start","message":{"usage":{"input_tokens":4,"cache_creation_input_tokens":900,
            "cache_read_input_tokens":0,"cache_creation":{"ephemeral_5m_input_tokens":600,"ephemeral_1h_input_tokens":300},
            "output_tokens":1,"service_tier":"standard"}}}"#
            .replace('\n', "");
        let wanted = Tokens {
            input: 4,
            output: 30,
            cached_input: 0,
            cache_write: 900,
            cache_write_hour: 300,
        };
        for end in [
            r#"{"usage":{"output_tokens":30}}"#,
            r#"{"usage":{"input_tokens":4,"cache_creation_input_tokens":900,"cache_read_input_tokens":0,"output_tokens":30}}"#,
            r#"{"usage":{"input_tokens":null,"cache_creation_input_tokens":null,"cache_read_input_tokens":null,"output_tokens":30}}"#,
        ] {
            let mut meter = Meter::new(40_000, true);
            meter.answers(Shape::Events);
            meter.feed(format!("data: {start}\n\ndata: {end}\n\n").as_bytes());
            assert_eq!(meter.finish(true), (wanted, false), "{end}");
        }
        let mut whole = Meter::new(40_000, true);
        whole.answers(Shape::Json);
        whole.feed(br#"{"usage":{"input_tokens":4,"cache_creation_input_tokens":900,"cache_creation":{"ephemeral_1h_input_tokens":300},"output_tokens":30}}"#);
        assert_eq!(whole.finish(true), (wanted, false));
        // A gateway that speaks OpenAI's way.
        let mut gateway = Meter::new(40_000, false);
        gateway.answers(Shape::Json);
        gateway.feed(br#"{"usage":{"prompt_tokens":1000,"completion_tokens":30,"prompt_tokens_details":{"cached_tokens":60,"cache_write_tokens":900}}}"#);
        let counted = Tokens {
            input: 40,
            cached_input: 60,
            cache_write_hour: 0,
            ..wanted
        };
        assert_eq!(gateway.finish(true), (counted, false));
    }

    #[test]
    fn what_may_be_written_to_a_cache_is_estimated_as_written() {
        let mut meter = Meter::new(4000, true);
        let estimate = Tokens {
            cache_write: 1000,
            ..Tokens::default()
        };
        assert_eq!(meter.tokens(), estimate);
        meter.answers(Shape::Json);
        meter.feed(br#"{"usage":{"input_tokens":9,"output_tokens":8}}"#);
        assert_eq!(meter.finish(true), (tokens(9, 8, 0), false));
    }
}
