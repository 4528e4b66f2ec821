//! What of each text was said already, so that the rest can be added after any gap.
//!
//! Of an assistant's text only its length and a running SHA-256 are kept; of a running tool's output
//! the last [`TAIL_MAX`] bytes, because OpenCode shows it through a window that moves.

use contract::event::{Output, OutputSource};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Entries that a [`Seen`] keeps.
pub(crate) const MAX_SEEN: usize = 10_000;
/// What is kept of a running tool's output: OpenCode shows 30,000 UTF-16 units, which are at most
/// 90,000 bytes.
pub(crate) const TAIL_MAX: usize = 96 * 1024;
/// Tools whose output is followed at the same time; beyond that the oldest one is forgotten, and what
/// it shows next replaces what was said of it.
pub(crate) const MAX_TAILS: usize = 64;
/// How OpenCode marks an output whose beginning it dropped.
const CUT: &str = "...\n\n";

/// The first `max` bytes of a text at most, whole characters, marked where something is missing.
pub(crate) fn clip(text: &str, max: usize) -> Cow<'_, str> {
    const MARK: &str = "…";
    if text.len() <= max {
        return Cow::Borrowed(text);
    }
    let keep = text.floor_char_boundary(max.saturating_sub(MARK.len()));
    Cow::Owned(format!("{}{MARK}", &text[..keep]))
}

/// What is known by id, in bounded memory. Beyond [`MAX_SEEN`] entries the one with the lowest id is
/// folded: ids of OpenCode ascend in time, so all that sorts at or below the highest folded id counts
/// as done with and is never looked at again. What came to such an id later is lost to the stream;
/// OpenCode still has it.
#[derive(Debug)]
pub(crate) struct Seen<V> {
    entries: BTreeMap<String, V>,
    folded: Option<String>,
}

impl<V> Default for Seen<V> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            folded: None,
        }
    }
}

impl<V> Seen<V> {
    /// The entry, made with `new` where it is missing. Nothing if it was folded.
    pub(crate) fn entry(&mut self, id: &str, new: impl FnOnce() -> V) -> Option<&mut V> {
        if !self.entries.contains_key(id) {
            if self.is_folded(id) {
                return None;
            }
            self.entries.insert(id.to_owned(), new());
            if self.entries.len() > MAX_SEEN {
                let lowest = self.entries.pop_first().map(|(id, _)| id);
                self.folded = lowest.max(self.folded.take());
            }
        }
        self.entries.get_mut(id)
    }

    /// The entry, if there is one.
    pub(crate) fn get(&self, id: &str) -> Option<&V> {
        self.entries.get(id)
    }

    /// Enters what is new; whether it was.
    pub(crate) fn first(&mut self, id: &str, value: V) -> bool {
        if self.entries.contains_key(id) {
            return false;
        }
        self.entry(id, || value).is_some()
    }

    fn is_folded(&self, id: &str) -> bool {
        self.folded.as_deref().is_some_and(|folded| id <= folded)
    }
}

/// Texts of the assistant: how much of each was said.
#[derive(Debug, Default)]
pub(crate) struct TextLedger {
    parts: Seen<Said>,
}

#[derive(Debug, Default)]
struct Said {
    bytes: u64,
    hash: Sha256,
    /// No more pieces are believed until the whole text is known: something was missed, or it ended.
    closed: bool,
}

impl TextLedger {
    /// The next piece of a text, as it is typed. Nothing when the text is closed, see
    /// [`TextLedger::settle`] and [`TextLedger::hold`].
    pub(crate) fn delta(&mut self, part: &str, text: &str) -> Option<Output> {
        let said = self.entry(part)?;
        if said.closed {
            return None;
        }
        said.say(part, text)
    }

    /// The whole text is known: what of it is missing, or all of it in a piece with `replace` where
    /// something else was said. Closes the text.
    pub(crate) fn settle(&mut self, part: &str, full: &str) -> Option<Output> {
        let said = self.entry(part)?;
        said.closed = true;
        if let Some(rest) = said.rest_of(full) {
            return said.say(part, rest);
        }
        *said = Said {
            closed: true,
            ..Said::default()
        };
        let text = full.to_owned();
        said.hash.update(full);
        said.bytes = full.len() as u64;
        Some(Output {
            text,
            part_id: part.to_owned(),
            offset: 0,
            source: OutputSource::Assistant,
            replace: true,
        })
    }

    /// The text so far is known, but is not final: only adds, never replaces.
    pub(crate) fn extend(&mut self, part: &str, so_far: &str) -> Option<Output> {
        let said = self.entry(part)?;
        let rest = said.rest_of(so_far)?;
        said.say(part, rest)
    }

    /// Pieces may have been missed: waits for the whole text.
    pub(crate) fn hold(&mut self, part: &str) {
        if let Some(said) = self.entry(part) {
            said.closed = true;
        }
    }

    /// Takes note of a piece that was said before a restart. What follows it is unknown, so the text
    /// is held.
    pub(crate) fn restore(&mut self, output: &Output) {
        let Some(said) = self.entry(&output.part_id) else {
            return;
        };
        if output.replace {
            *said = Said::default();
        }
        said.hash.update(&output.text);
        said.bytes += output.text.len() as u64;
        said.closed = true;
    }

    fn entry(&mut self, part: &str) -> Option<&mut Said> {
        self.parts.entry(part, Said::default)
    }
}

impl Said {
    /// The end of `full` that was not said, if what was said is its beginning.
    fn rest_of<'a>(&self, full: &'a str) -> Option<&'a str> {
        let at = usize::try_from(self.bytes).ok()?;
        let (begin, rest) = full.split_at_checked(at)?;
        (Sha256::digest(begin) == self.hash.clone().finalize()).then_some(rest)
    }

    fn say(&mut self, part: &str, text: &str) -> Option<Output> {
        if text.is_empty() {
            return None;
        }
        let offset = self.bytes;
        self.hash.update(text);
        self.bytes += text.len() as u64;
        Some(Output {
            text: text.to_owned(),
            part_id: part.to_owned(),
            offset,
            source: OutputSource::Assistant,
            replace: false,
        })
    }
}

/// Output of one running tool: turns what OpenCode shows (all so far, or its end) into pieces.
#[derive(Debug, Default)]
pub(crate) struct ToolTail {
    /// Something was said, but what is forgotten.
    lost: bool,
    said: u64,
    /// The end of what was said.
    tail: String,
}

impl ToolTail {
    /// What is new in `shown`, in time linear in its length. Where nothing of it joins what was said
    /// before, all of it with `replace`.
    ///
    /// Where a tool repeats itself so much that the window looks the same at two places, the longest
    /// overlap is taken: repeated lines may be said fewer times than printed.
    pub(crate) fn show(&mut self, call: &str, shown: &str) -> Option<Output> {
        if self.said == 0 {
            return self.say(call, shown, self.lost);
        }
        // Nothing was dropped of the tail yet, so it is all that was said.
        if self.said == self.tail.len() as u64
            && let Some(rest) = shown.strip_prefix(self.tail.as_str())
        {
            return self.say(call, rest, false);
        }
        if let Some(window) = shown.strip_prefix(CUT) {
            // Half a character at the cut reads as U+FFFD and joins nothing.
            let window = window.strip_prefix('\u{FFFD}').unwrap_or(window);
            let joined = overlap(self.tail.as_bytes(), window.as_bytes());
            if joined > 0 && window.is_char_boundary(joined) {
                return self.say(call, &window[joined..], false);
            }
        }
        self.say(call, shown, true)
    }

    fn restore(&mut self, output: &Output) {
        if output.replace {
            *self = Self::default();
        }
        self.push(&output.text);
    }

    fn say(&mut self, call: &str, text: &str, replace: bool) -> Option<Output> {
        if text.is_empty() && !replace {
            return None;
        }
        if replace {
            *self = Self::default();
        }
        let offset = self.said;
        self.push(text);
        Some(Output {
            text: text.to_owned(),
            part_id: call.to_owned(),
            offset,
            source: OutputSource::Tool,
            replace,
        })
    }

    fn push(&mut self, text: &str) {
        self.said += text.len() as u64;
        if text.len() >= TAIL_MAX {
            self.tail.clear();
            self.tail
                .push_str(&text[text.ceil_char_boundary(text.len() - TAIL_MAX)..]);
            return;
        }
        self.tail.push_str(text);
        // Twice the size before it is cut, so that a byte is moved at most once on average.
        if self.tail.len() > 2 * TAIL_MAX {
            let from = self.tail.ceil_char_boundary(self.tail.len() - TAIL_MAX);
            self.tail.drain(..from);
        }
    }
}

/// Output of the tools that run at the same time, in bounded memory.
#[derive(Debug, Default)]
pub(crate) struct ToolTails {
    running: BTreeMap<String, ToolTail>,
}

impl ToolTails {
    /// What is new in what a running call shows, see [`ToolTail::show`]. `spoke` says that pieces of
    /// this call were said before.
    pub(crate) fn show(&mut self, call: &str, spoke: bool, shown: &str) -> Option<Output> {
        self.tail(call, spoke).show(call, shown)
    }

    /// Takes note of a piece that was said before a restart. `spoke` as in [`ToolTails::show`].
    pub(crate) fn restore(&mut self, output: &Output, spoke: bool) {
        self.tail(&output.part_id, spoke).restore(output);
    }

    /// The call is over.
    pub(crate) fn end(&mut self, call: &str) {
        self.running.remove(call);
    }

    fn tail(&mut self, call: &str, spoke: bool) -> &mut ToolTail {
        if self.running.len() >= MAX_TAILS && !self.running.contains_key(call) {
            self.running.pop_first();
        }
        self.running.entry(call.to_owned()).or_insert(ToolTail {
            lost: spoke,
            ..ToolTail::default()
        })
    }
}

/// Length of the longest end of `before` that is a beginning of `after`, by the failure function of
/// Knuth, Morris and Pratt: linear in both.
fn overlap(before: &[u8], after: &[u8]) -> usize {
    let before = &before[before.len() - before.len().min(after.len())..];
    // fallback[i]: the longest proper end of after[..=i] that is also its beginning.
    let mut fallback = vec![0; after.len()];
    let mut matched = 0;
    for at in 1..after.len() {
        while matched > 0 && after[at] != after[matched] {
            matched = fallback[matched - 1];
        }
        matched += usize::from(after[at] == after[matched]);
        fallback[at] = matched;
    }
    matched = 0;
    for byte in before {
        while matched > 0 && (matched == after.len() || after[matched] != *byte) {
            matched = fallback[matched - 1];
        }
        matched += usize::from(after.get(matched) == Some(byte));
    }
    matched
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(ledger: &mut TextLedger, full: &str) -> Option<(u64, String, bool)> {
        let piece = ledger.settle("prt_1", full)?;
        Some((piece.offset, piece.text, piece.replace))
    }

    #[test]
    fn a_settled_text_adds_what_is_missing() {
        let mut ledger = TextLedger::default();
        assert_eq!(ledger.delta("prt_1", ""), None);
        assert_eq!(ledger.delta("prt_1", "Grüß").unwrap().offset, 0);
        assert_eq!(ledger.delta("prt_1", "e").unwrap().offset, 6);
        assert_eq!(
            settled(&mut ledger, "Grüße, 世界"),
            Some((7, ", 世界".into(), false))
        );
        assert_eq!(settled(&mut ledger, "Grüße, 世界"), None);
        assert_eq!(ledger.delta("prt_1", "late"), None);
    }

    #[test]
    fn another_text_replaces() {
        let mut ledger = TextLedger::default();
        ledger.delta("prt_1", "abc");
        assert_eq!(settled(&mut ledger, "abd"), Some((0, "abd".into(), true)));
        assert_eq!(settled(&mut ledger, "abd"), None);
        assert_eq!(settled(&mut ledger, "ab"), Some((0, "ab".into(), true)));
        // Three bytes were said; the third is in the middle of a character here.
        let mut ledger = TextLedger::default();
        ledger.delta("prt_1", "abc");
        assert_eq!(settled(&mut ledger, "abé"), Some((0, "abé".into(), true)));
        assert_eq!(settled(&mut ledger, ""), Some((0, "".into(), true)));
    }

    #[test]
    fn a_restored_text_waits_for_its_end() {
        let mut before = TextLedger::default();
        let mut after = TextLedger::default();
        after.restore(&before.delta("prt_1", "one ").unwrap());
        after.restore(&before.delta("prt_1", "two ").unwrap());
        assert_eq!(after.delta("prt_1", "four"), None);
        assert_eq!(
            after.extend("prt_1", "one two three "),
            before.delta("prt_1", "three ")
        );
        assert_eq!(
            settled(&mut after, "one two three four"),
            Some((14, "four".into(), false))
        );
        let mut again = TextLedger::default();
        again.restore(&before.settle("prt_1", "other").unwrap());
        assert_eq!(settled(&mut again, "other"), None);
    }

    #[test]
    fn folded_ids_are_done_with() {
        let mut seen = Seen::default();
        for number in 0..MAX_SEEN + 2 {
            assert!(seen.first(&format!("prt_{number:06}"), number));
        }
        assert_eq!(seen.entries.len(), MAX_SEEN);
        assert!(!seen.first("prt_000001", 7));
        assert!(!seen.first("prt_000000", 7));
        assert_eq!(seen.get("prt_000002"), Some(&2));
        assert!(seen.first("prt_000002x", 7));
        assert_eq!(seen.get("prt_000002"), None);
    }

    fn show(tail: &mut ToolTail, shown: &str) -> Option<(u64, String, bool)> {
        let piece = tail.show("prt_1", shown)?;
        Some((piece.offset, piece.text, piece.replace))
    }

    #[test]
    fn cumulative_output_becomes_pieces() {
        let mut tail = ToolTail::default();
        assert_eq!(show(&mut tail, ""), None);
        assert_eq!(show(&mut tail, "a\n"), Some((0, "a\n".into(), false)));
        assert_eq!(show(&mut tail, "a\n"), None);
        assert_eq!(show(&mut tail, "a\nb\n"), Some((2, "b\n".into(), false)));
        assert_eq!(
            show(&mut tail, "...\n\nb\nc\n"),
            Some((4, "c\n".into(), false))
        );
        assert_eq!(
            show(&mut tail, "...\n\n\u{FFFD}c\nd\n"),
            Some((6, "d\n".into(), false))
        );
        assert_eq!(
            show(&mut tail, "...\n\nx\ny\n"),
            Some((0, "...\n\nx\ny\n".into(), true))
        );
        assert_eq!(
            show(&mut tail, "...\n\ny\nz\n"),
            Some((9, "z\n".into(), false))
        );
        assert_eq!(show(&mut tail, ""), Some((0, "".into(), true)));
    }

    #[test]
    fn a_tool_may_print_the_mark_itself() {
        let mut tail = ToolTail::default();
        show(&mut tail, "...\n\n");
        assert_eq!(
            show(&mut tail, "...\n\nmore"),
            Some((5, "more".into(), false))
        );
    }

    #[test]
    fn a_window_over_a_long_output_loses_nothing() {
        let mut all = String::new();
        let mut heard = String::new();
        let mut tail = ToolTail::default();
        for number in 0..20_000 {
            all.push_str(&format!("line {number} é\n"));
            if number % 37 == 0 {
                let begin = all.ceil_char_boundary(all.len().saturating_sub(30_000));
                let shown = match begin {
                    0 => all.clone(),
                    _ => format!("{CUT}{}", &all[begin..]),
                };
                if let Some(piece) = tail.show("prt_1", &shown) {
                    assert!(!piece.replace);
                    assert_eq!(piece.offset, heard.len() as u64);
                    heard.push_str(&piece.text);
                }
                assert_eq!(heard, all);
                assert!(tail.tail.len() <= 2 * TAIL_MAX);
            }
        }
    }

    #[test]
    fn the_longest_overlap_is_found_in_linear_time() {
        assert_eq!(overlap(b"", b""), 0);
        assert_eq!(overlap(b"abc", b""), 0);
        assert_eq!(overlap(b"", b"abc"), 0);
        assert_eq!(overlap(b"xaba", b"abab"), 3);
        assert_eq!(overlap(b"abab", b"abab"), 4);
        assert_eq!(overlap(b"zzzabab", b"ab"), 2);
        assert_eq!(overlap(b"abx", b"ab"), 0);
        // Quadratic time would take minutes.
        let before = [b"a".repeat(1_000_000), b"b".to_vec()].concat();
        assert_eq!(overlap(&before, &b"a".repeat(1_000_000)), 0);
        assert_eq!(overlap(&b"a".repeat(1_000_000), &before), 1_000_000);
    }

    #[test]
    fn only_so_many_running_tools_are_followed() {
        let mut tails = ToolTails::default();
        for number in 0..=MAX_TAILS {
            let piece = tails.show(&format!("prt_{number:03}"), false, "a").unwrap();
            assert!(!piece.replace);
        }
        assert_eq!(tails.running.len(), MAX_TAILS);
        assert!(tails.show("prt_000", true, "ab").unwrap().replace);
        assert!(!tails.show("prt_064", true, "ab").unwrap().replace);
        tails.end("prt_064");
        assert_eq!(tails.running.len(), MAX_TAILS - 1);
    }

    #[test]
    fn clipped_texts_are_whole_characters() {
        assert_eq!(clip("abc", 3), "abc");
        assert_eq!(clip("abcd", 3), "…");
        assert_eq!(clip("ééé", 5), "é…");
        for max in 0..3 {
            assert!(clip("ééé", max).len() <= 3);
        }
    }
}
