//! The way back: status and bytes as they came, chunk by chunk, the key starred.

use super::{call::Call, code::Code, mask::Mask, observe::What, refusal::Refusal, sniff};
use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER},
};
use std::{io, pin::Pin, time::Duration};
use tokio::time::{Instant, timeout, timeout_at};

/// Longest wait that a provider may ask OpenCode for, in seconds: OpenCode would obey an hour.
const RETRY_AFTER_MAX: u32 = 60;
/// White space before an answer after which it is taken for one, in bytes.
const WHITE_MAX: usize = 4096;
/// Headers that pass as they came.
const PASSED: [HeaderName; 3] = [
    CONTENT_TYPE,
    HeaderName::from_static("request-id"),
    HeaderName::from_static("x-request-id"),
];

/// How long a provider may be silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// When the answer must have begun, with its first byte.
    pub(crate) begin: Instant,
    /// The same as a span, for people.
    pub(crate) header: Duration,
    /// Between two chunks.
    pub(crate) chunk: Duration,
}

/// Turns a provider's answer into ours. The call ends when its last chunk was passed on.
///
/// A 2xx is looked at before it is passed on: one that is neither a stream of events nor JSON, as the
/// request asked, or that is empty, would set OpenCode asking again for ever.
pub(crate) async fn pass_on(
    upstream: reqwest::Response,
    mask: Mask,
    mut call: Box<Call>,
    patience: Patience,
    stream: bool,
) -> Result<Response, (Refusal, Box<Call>)> {
    let status = upstream.status();
    call.answered(status.as_u16());
    if status.is_redirection() {
        let message = "the model provider redirects elsewhere, which is not followed: check the \
                       provider's endpoint";
        return Err((Refusal::upstream(Code::Redirect, message), call));
    }
    if status.is_informational() {
        let message = "the model provider changes the protocol";
        return Err((Refusal::upstream(Code::BadAnswer, message), call));
    }
    let plain = upstream
        .headers()
        .get_all(CONTENT_ENCODING)
        .iter()
        .all(|value| value.as_bytes().eq_ignore_ascii_case(b"identity"));
    if !plain {
        let message = "the model provider compresses its answer, which was not asked for";
        return Err((Refusal::upstream(Code::BadAnswer, message), call));
    }
    let headers = headers(upstream.headers(), &mask);
    let kind = sniff::Kind::of(upstream.headers().get(CONTENT_TYPE));
    let mut chunks = upstream.bytes_stream().boxed();
    let mut first = Bytes::new();
    if status.is_success() {
        first = match begin(&mut chunks, patience).await {
            Ok(first) => first,
            Err((refusal, what)) => {
                call.failed(what);
                return Err((refusal, call));
            }
        };
        match sniff::shape(kind, &first, stream) {
            Ok(shape) => call.answers(shape),
            Err(what) => return Err((Refusal::garbled(status, what), call)),
        }
    }
    let body = Passing {
        first,
        chunks,
        mask,
        call,
        chunk_timeout: patience.chunk,
    };
    let mut response = Response::new(Body::from_stream(body.into_stream()));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

type Chunks = Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>;

/// Waits for the first bytes that are not white space; answers all up to then, nothing where the answer
/// is empty.
async fn begin(chunks: &mut Chunks, patience: Patience) -> Result<Bytes, (Refusal, What)> {
    let mut first = Bytes::new();
    loop {
        match timeout_at(patience.begin, chunks.next()).await {
            Ok(Some(Ok(chunk))) => {
                first = if first.is_empty() {
                    chunk
                } else {
                    [first, chunk].concat().into()
                };
                if first.len() > WHITE_MAX || !first.iter().all(u8::is_ascii_whitespace) {
                    return Ok(first);
                }
            }
            Ok(None) => return Ok(first),
            Ok(Some(Err(_))) => {
                let message = "the model provider's answer broke off before it began";
                return Err((Refusal::upstream(Code::Cut, message), What::Cut));
            }
            Err(_) => return Err((Refusal::timeout(patience.header.as_secs()), What::Timeout)),
        }
    }
}

fn headers(from: &HeaderMap, mask: &Mask) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for name in &PASSED {
        if let Some(value) = from.get(name).filter(|value| !mask.is_in(value.as_bytes())) {
            headers.insert(name, value.clone());
        }
    }
    let wait = from.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    if let Some(wait) = wait.and_then(|text| retry_after(text, jiff::Timestamp::now())) {
        headers.insert(RETRY_AFTER, HeaderValue::from(wait));
    }
    headers
}

/// Whole seconds, at most [`RETRY_AFTER_MAX`]; `None` for what is neither seconds nor a date.
fn retry_after(text: &str, now: jiff::Timestamp) -> Option<u32> {
    let text = text.trim();
    let seconds = match text.parse::<f64>() {
        Ok(seconds) => seconds,
        Err(_) => {
            let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
            date.duration_since(now).as_secs_f64()
        }
    };
    if seconds.is_nan() {
        return None;
    }
    let seconds = seconds.ceil().clamp(0.0, f64::from(RETRY_AFTER_MAX));
    (0..=RETRY_AFTER_MAX).find(|&whole| f64::from(whole) >= seconds)
}

/// A body on its way.
struct Passing {
    /// What came already.
    first: Bytes,
    chunks: Chunks,
    mask: Mask,
    call: Box<Call>,
    chunk_timeout: Duration,
}

impl Passing {
    fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        stream::unfold(Some(self), |state| async move {
            let mut state = state?;
            let (item, go_on) = state.next().await?;
            Some((item, go_on.then_some(state)))
        })
    }

    /// The next piece to pass on and whether more may follow; `None` at the end. The call's end is
    /// recorded before it is told.
    async fn next(&mut self) -> Option<(io::Result<Bytes>, bool)> {
        loop {
            let first = std::mem::take(&mut self.first);
            let next = if first.is_empty() {
                timeout(self.chunk_timeout, self.chunks.next()).await
            } else {
                Ok(Some(Ok(first)))
            };
            match next {
                Ok(Some(Ok(chunk))) => {
                    if let Err(exhausted) = self.call.metered(&chunk) {
                        tracing::warn!(
                            budget = exhausted.which,
                            "a model's answer is cut: its budget is used up"
                        );
                        self.call.record().await;
                        return Some((Err(io::ErrorKind::ConnectionAborted.into()), false));
                    }
                    let chunk = self.mask.push(chunk);
                    if !chunk.is_empty() {
                        self.call.passed(&chunk);
                        return Some((Ok(chunk), true));
                    }
                }
                Ok(None) => {
                    let rest = self.mask.finish();
                    self.call.passed(&rest);
                    self.call.completed();
                    self.call.record().await;
                    return (!rest.is_empty()).then_some((Ok(rest), false));
                }
                Ok(Some(Err(_))) => {
                    self.call.failed(What::Cut);
                    self.call.record().await;
                    return Some((Err(io::ErrorKind::ConnectionAborted.into()), false));
                }
                Err(_) => {
                    self.call.failed(What::Timeout);
                    self.call.record().await;
                    return Some((Err(io::ErrorKind::TimedOut.into()), false));
                }
            }
        }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        if self.mask.found() > 0 {
            tracing::warn!(
                times = self.mask.found(),
                "a provider echoed its key: starred"
            );
            self.call.metrics().count_echoes(self.mask.found());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_away_for_an_hour() {
        let now: jiff::Timestamp = "2026-01-05T10:00:00Z".parse().unwrap();
        for (text, wait) in [
            ("0", Some(0)),
            ("7", Some(7)),
            ("1.2", Some(2)),
            ("60", Some(60)),
            ("3600", Some(60)),
            ("1e300", Some(60)),
            ("inf", Some(60)),
            ("-5", Some(0)),
            ("Mon, 05 Jan 2026 10:00:20 GMT", Some(20)),
            ("Mon, 05 Jan 2026 11:00:00 GMT", Some(60)),
            ("Mon, 05 Jan 2026 09:00:00 GMT", Some(0)),
            ("NaN", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(text, now), wait, "{text}");
        }
    }
}
