//! The first look at a connection's bytes, before any HTTP library forgives them.
//!
//! A library drops what it can repair: a second equal length, a length beside chunks, a bare line
//! feed. Here such a head ends the connection. One connection carries one request, so nothing can
//! hide behind it either.

use tokio::io::{AsyncRead, AsyncReadExt};

/// Largest head of a request, in bytes.
const HEAD_MAX: usize = 32 * 1024;
/// Headers of which a request may have one.
const ONCE: [&str; 6] = [
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "x-session-id",
];

/// Why a connection is not served.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// It ended before a request came, or broke.
    Gone,
    /// The head is not one that a proper client sends.
    Head(&'static str),
}

/// Reads until the head is whole and checks it. Answers all bytes read, which the HTTP server must
/// see again. Not cancel safe: what was read is lost.
pub(crate) async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, Bad> {
    let mut bytes = Vec::with_capacity(4096);
    loop {
        let seen = bytes.len();
        let mut part = stream.take(4096);
        match part.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return Err(Bad::Gone),
            Ok(_) => {}
        }
        let from = seen.saturating_sub(3);
        if let Some(at) = bytes[from..].windows(4).position(|end| end == b"\r\n\r\n") {
            check(&bytes[..from + at]).map_err(Bad::Head)?;
            return Ok(bytes);
        }
        if bytes.len() > HEAD_MAX {
            return Err(Bad::Head("the head is too large"));
        }
    }
}

/// Checks a head without its final empty line.
fn check(head: &[u8]) -> Result<(), &'static str> {
    let text = std::str::from_utf8(head).map_err(|_| "the head is no text")?;
    if text.len() > HEAD_MAX {
        return Err("the head is too large");
    }
    let mut lines = text.split("\r\n");
    check_request_line(lines.next().unwrap_or_default())?;
    let mut seen = Vec::new();
    let mut host = false;
    for line in lines {
        if line.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
            return Err("a control character in a header");
        }
        let (name, value) = line.split_once(':').ok_or("a header without a colon")?;
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err("a header's name is no token");
        }
        let name = name.to_ascii_lowercase();
        let value = value.trim_matches([' ', '\t']);
        match name.as_str() {
            "host" => host = true,
            "content-length" if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) => {
                return Err("content-length is no number");
            }
            "transfer-encoding" if !value.eq_ignore_ascii_case("chunked") => {
                return Err("transfer-encoding is not chunked");
            }
            _ => {}
        }
        if let Some(known) = ONCE.iter().find(|known| **known == name) {
            if seen.contains(known) {
                return Err("a header came twice");
            }
            seen.push(known);
        }
    }
    if seen.contains(&"content-length") && seen.contains(&"transfer-encoding") {
        return Err("two lengths");
    }
    if host { Ok(()) } else { Err("no host") }
}

fn check_request_line(line: &str) -> Result<(), &'static str> {
    let mut parts = line.split(' ');
    let (method, target, version) = (parts.next(), parts.next(), parts.next());
    if parts.next().is_some() {
        return Err("the request line has too many parts");
    }
    if !method.is_some_and(|m| !m.is_empty() && m.bytes().all(|b| b.is_ascii_uppercase())) {
        return Err("the method is no word");
    }
    let path = |t: &str| t.starts_with('/') && t.bytes().all(|b| b.is_ascii_graphic());
    if !target.is_some_and(path) {
        return Err("the request's target must be a path");
    }
    if version == Some("HTTP/1.1") {
        Ok(())
    } else {
        Err("the version must be HTTP/1.1")
    }
}

/// RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "POST /chat/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:3004\r\n\
                        Content-Length: 2\r\nX-Any:\t a b \r\n\r\n{}";

    async fn read(text: &str) -> Result<Vec<u8>, Bad> {
        read_head(&mut text.as_bytes()).await
    }

    #[tokio::test]
    async fn a_proper_head_passes_with_all_that_came() {
        assert_eq!(read(GOOD).await.unwrap(), GOOD.as_bytes());
        let (mut near, mut far) = tokio::io::duplex(1);
        let writer = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            near.write_all(GOOD.as_bytes()).await
        });
        let head = read_head(&mut far).await.unwrap();
        assert_eq!(head, &GOOD.as_bytes()[..GOOD.len() - 2], "byte by byte");
        drop(far);
        writer.await.unwrap().unwrap_err();
    }

    #[tokio::test]
    async fn what_two_readers_would_read_differently_is_refused() {
        for (from, to) in [
            ("POST ", "POST  "),
            ("POST ", "post "),
            ("POST ", " POST "),
            ("POST ", "\r\nPOST "),
            ("/chat", "http://127.0.0.1:3004/chat"),
            ("/chat", "*"),
            ("/chat", "chat"),
            ("/chat", "/ch\tat"),
            ("/chat", "/chät"),
            (" HTTP/1.1", ""),
            (" HTTP/1.1", " HTTP/1.0"),
            (" HTTP/1.1", " HTTP/1.1 "),
            ("\r\nHost", "\nHost"),
            ("\r\nHost", "\r\n Host"),
            ("\r\nHost", "\r\nX: a\rb\r\nHost"),
            ("\r\nHost", "\r\nX: a\0b\r\nHost"),
            ("\r\nHost", "\r\nX: a\n b\r\nHost"),
            ("\r\nHost: 127.0.0.1:3004", ""),
            ("Host:", "Host :"),
            ("Host:", "H\u{f6}st:"),
            ("Host: 127.0.0.1:3004", "Host: 127.0.0.1:3004\r\nHost: evil"),
            (
                "Content-Length: 2",
                "Content-Length: 2\r\ncontent-length: 2",
            ),
            (
                "Content-Length: 2",
                "Content-Length: 2\r\nContent-Length: 3",
            ),
            ("Content-Length: 2", "Content-Length: 2, 2"),
            ("Content-Length: 2", "Content-Length: +2"),
            ("Content-Length: 2", "Content-Length: 0x2"),
            ("Content-Length: 2", "Content-Length:"),
            (
                "Content-Length: 2",
                "Content-Length: 2\r\nTransfer-Encoding: chunked",
            ),
            (
                "Content-Length: 2",
                "Transfer-Encoding: chunked\r\nContent-Length: 2",
            ),
            ("Content-Length: 2", "Transfer-Encoding: gzip, chunked"),
            (
                "Content-Length: 2",
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            ),
            ("Content-Length: 2", "Transfer-Encoding: \x0bchunked"),
            ("X-Any", "X-Session-Id: a\r\nx-session-id"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from:?}");
            assert!(
                matches!(read(&text).await, Err(Bad::Head(_))),
                "{from:?} as {to:?}"
            );
        }
        let large = GOOD.replacen("a b", &"a".repeat(HEAD_MAX), 1);
        assert!(matches!(read(&large).await, Err(Bad::Head(_))));
        assert_eq!(read(&GOOD[..40]).await, Err(Bad::Gone));
        assert_eq!(read("").await, Err(Bad::Gone));
    }
}
