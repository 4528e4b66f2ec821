//! Stars in place of the key, should a provider echo it.
//!
//! This is the single exception to "answers pass as they came". It stops echoes, as in "Incorrect
//! API key provided: sk-…"; an endpoint that wants to tell the agent its key can always disguise it.

use bytes::{Bytes, BytesMut};

/// Shorter keys are placeholders of local servers, as in `none`, not secrets: starring them would
/// change answers that merely contain the word.
const KEY_MIN: usize = 8;

/// Replaces the key in a stream of chunks by stars of the same length, also across chunks.
#[derive(Default)]
pub(crate) struct Mask {
    /// The key as it is, and as it stands in URLs and in JSON that escapes slashes.
    forms: Vec<Vec<u8>>,
    /// End of what came so far that may be the beginning of a key.
    held: BytesMut,
    found: u64,
}

impl Mask {
    pub(crate) fn new(key: &str) -> Self {
        if key.len() < KEY_MIN {
            return Self::default();
        }
        let mut forms = vec![key.as_bytes().to_vec()];
        let in_url: String = url::form_urlencoded::byte_serialize(key.as_bytes()).collect();
        let in_json = serde_json::to_string(key).unwrap_or_default();
        let in_json = in_json.trim_matches('"');
        for form in [in_url, in_json.to_owned(), in_json.replace('/', "\\/")] {
            if !forms.iter().any(|known| known == form.as_bytes()) {
                forms.push(form.into_bytes());
            }
        }
        Self {
            forms,
            ..Self::default()
        }
    }

    /// How often the key was there.
    pub(crate) fn found(&self) -> u64 {
        self.found
    }

    /// Whether a short text holds the key.
    pub(crate) fn is_in(&self, text: &[u8]) -> bool {
        self.forms.iter().any(|form| find(text, form).is_some())
    }

    /// What may be passed on now: all but an end that may begin a key. Nothing is copied unless
    /// there is something to star or to hold.
    pub(crate) fn push(&mut self, chunk: Bytes) -> Bytes {
        if self.held.is_empty() && !self.is_in(&chunk) && self.open_end(&chunk) == 0 {
            return chunk;
        }
        let mut text = self.held.split();
        text.extend_from_slice(&chunk);
        for form in &self.forms {
            let mut from = 0;
            while let Some(at) = find(&text[from..], form) {
                let start = from + at;
                from = start + form.len();
                text[start..from].fill(b'*');
                self.found += 1;
            }
        }
        let open = self.open_end(&text);
        self.held = text.split_off(text.len() - open);
        text.freeze()
    }

    /// What is left at the end of the stream.
    pub(crate) fn finish(&mut self) -> Bytes {
        self.held.split().freeze()
    }

    /// Length of the longest end of `text` that begins a form and is not all of it.
    fn open_end(&self, text: &[u8]) -> usize {
        self.forms
            .iter()
            .map(|form| {
                (1..form.len().min(text.len() + 1))
                    .rev()
                    .find(|&n| text.ends_with(&form[..n]))
                    .unwrap_or(0)
            })
            .max()
            .unwrap_or(0)
    }
}

fn find(text: &[u8], form: &[u8]) -> Option<usize> {
    let first = *form.first()?;
    let mut from = 0;
    while let Some(at) = text[from..].iter().position(|&byte| byte == first) {
        let start = from + at;
        if text[start..].starts_with(form) {
            return Some(start);
        }
        from = start + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(key: &str, chunks: &[&[u8]]) -> (String, u64) {
        let mut mask = Mask::new(key);
        let mut out = Vec::new();
        for chunk in chunks {
            out.extend_from_slice(&mask.push(Bytes::copy_from_slice(chunk)));
        }
        out.extend_from_slice(&mask.finish());
        (String::from_utf8(out).unwrap(), mask.found())
    }

    #[test]
    fn stars_the_key_however_it_is_cut() {
        let text = "bad key sk-ab/cd+ef, sksk-ab/cd+efsk-ab/cd+ef! sk-ab/cd";
        let clean = "bad key ***********, sk**********************! sk-ab/cd";
        let (key, n) = ("sk-ab/cd+ef", text.len());
        for a in 0..=n {
            for b in a..=n {
                let bytes = text.as_bytes();
                let (out, found) = run(key, &[&bytes[..a], &bytes[a..b], &bytes[b..]]);
                assert_eq!((out.as_str(), found), (clean, 3), "cut at {a} and {b}");
            }
        }
        let bytes: Vec<_> = text.as_bytes().chunks(1).collect();
        assert_eq!(run(key, &bytes).0, clean);
    }

    #[test]
    fn knows_the_key_in_urls_and_json() {
        assert_eq!(
            run("sk-ab/cd+ef", &[b"?k=sk-ab%2Fcd%2Bef&"]).0,
            format!("?k={}&", "*".repeat(15))
        );
        assert_eq!(
            run("sk-ab/cd+ef", &[b"\"sk-ab\\/c", b"d+ef\""]).0,
            format!("\"{}\"", "*".repeat(12))
        );
        assert_eq!(run("sk\"quoted", &[b"sk\\\"quoted"]).0, "**********");
    }

    #[test]
    fn holds_nothing_that_cannot_become_a_key() {
        let mut mask = Mask::new("sk-secret-1");
        let chunk = Bytes::from_static(b"data: {\"s\":\"sk-secret-2\"}\n\n");
        let out = mask.push(chunk.clone());
        assert_eq!(out, chunk);
        assert_eq!(out.as_ptr(), chunk.as_ptr(), "not copied");
        assert_eq!(mask.push(Bytes::from_static(b"sk-")), Bytes::new());
        assert_eq!(
            mask.push(Bytes::from_static(b"x")),
            Bytes::from_static(b"sk-x")
        );
        assert_eq!(run("none", &[b"none of these"]).0, "none of these");
        assert_eq!(run("", &[b"text"]).0, "text");
    }
}
