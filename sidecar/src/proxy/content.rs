//! The beginning of a request and of its answer, for an audit log that is to hold them.

use super::mask::Mask;
use crate::agent::map::without_keys;
use bytes::Bytes;

/// Most of each that is kept, in bytes.
const KEPT: usize = 16 * 1024;

/// What is kept of a call.
pub(crate) struct Content {
    request: String,
    answer: Vec<u8>,
}

impl Content {
    /// Begins with the request. The provider's key is starred and what looks like a key is blotted out.
    pub(crate) fn of(request: &[u8], key: &str) -> Self {
        let mut mask = Mask::new(key);
        let mut text = mask
            .push(Bytes::copy_from_slice(&request[..request.len().min(KEPT)]))
            .to_vec();
        text.extend_from_slice(&mask.finish());
        Self {
            request: clean(&text),
            answer: Vec::new(),
        }
    }

    /// Bytes of the answer, the key starred already.
    pub(crate) fn answer(&mut self, bytes: &[u8]) {
        let room = KEPT.saturating_sub(self.answer.len());
        self.answer
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Request and answer.
    pub(crate) fn end(self) -> (Option<String>, Option<String>) {
        let answer = (!self.answer.is_empty()).then(|| clean(&self.answer));
        (Some(self.request), answer)
    }
}

fn clean(bytes: &[u8]) -> String {
    without_keys(&String::from_utf8_lossy(bytes)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_bounded_and_holds_no_key() {
        let key = "wxyz-1234567890";
        let request = format!(
            "{{\"a\":\"{key} ghp_abcdefgh12345\",\"b\":\"{}\"}}",
            "é".repeat(KEPT)
        );
        let mut content = Content::of(request.as_bytes(), key);
        for _ in 0..100 {
            content.answer(&[b'x'; 1000]);
        }
        let (request, answer) = content.end();
        let request = request.unwrap();
        assert!(
            !request.contains(key) && !request.contains("ghp_abc"),
            "{request:.100}"
        );
        assert!(request.len() <= KEPT + 2);
        assert_eq!(answer.unwrap().len(), KEPT);
    }
}
