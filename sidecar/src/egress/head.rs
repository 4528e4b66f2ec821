//! The head of a request to the proxy.

use super::policy::Destination;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest head, in bytes.
const HEAD_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub to: Destination,
    pub how: How,
    /// What came after the head.
    pub rest: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum How {
    /// A tunnel.
    Connect,
    /// Plain HTTP: this head goes to the server.
    Forward(Vec<u8>),
}

/// Why there is nothing to answer with, or what.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadHead {
    #[error("the connection ended before its head did")]
    Gone,
    #[error("{0}")]
    Wrong(&'static str),
}

/// Reads the head of a connection's only request.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Asked, BadHead> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        if let Some(asked) = parse(&bytes)? {
            return Ok(asked);
        }
        if bytes.len() >= HEAD_MAX {
            return Err(BadHead::Wrong("the head is longer than 16 KiB"));
        }
        let room = (HEAD_MAX - bytes.len()) as u64;
        match (&mut *stream).take(room).read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return Err(BadHead::Gone),
            Ok(_) => {}
        }
    }
}

/// `None`: more is needed.
fn parse(bytes: &[u8]) -> Result<Option<Asked>, BadHead> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(BadHead::Wrong("there are more than 64 headers"));
        }
        Err(_) => return Err(BadHead::Wrong("this is no HTTP request")),
    };
    let (method, target) = (
        request.method.unwrap_or_default(),
        request.path.unwrap_or_default(),
    );
    let rest = bytes[length..].to_vec();
    if method == "CONNECT" {
        let to =
            Destination::parse(target, None).ok_or(BadHead::Wrong("CONNECT wants host:port"))?;
        let how = How::Connect;
        return Ok(Some(Asked { to, how, rest }));
    }
    const USAGE: &str = "this is a proxy: use CONNECT host:port or an absolute http:// URL";
    let (scheme, after) = target.split_once("://").ok_or(BadHead::Wrong(USAGE))?;
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(BadHead::Wrong(USAGE));
    }
    let end = after.find(['/', '?']).unwrap_or(after.len());
    let (authority, path) = after.split_at(end);
    let to = Destination::parse(authority, Some(80)).ok_or(BadHead::Wrong(USAGE))?;
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut head = format!("{method} {slash}{path} HTTP/1.1\r\nhost: {authority}\r\n").into_bytes();
    for header in request.headers.iter() {
        // Of this connection, not of the request. `host` is what the decision was made on.
        let own = ["host", "connection", "keep-alive", "upgrade", "te"];
        if own.iter().any(|own| header.name.eq_ignore_ascii_case(own))
            || header.name.to_ascii_lowercase().starts_with("proxy-")
        {
            continue;
        }
        head.extend_from_slice(header.name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(header.value);
        head.extend_from_slice(b"\r\n");
    }
    // One request each: a further one might be meant for another host.
    head.extend_from_slice(b"connection: close\r\n\r\n");
    let how = How::Forward(head);
    Ok(Some(Asked { to, how, rest }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(bytes: &[u8]) -> Result<Asked, BadHead> {
        let mut stream = bytes;
        read(&mut stream).await
    }

    fn to(host: &str, port: u16) -> Destination {
        Destination {
            host: host.into(),
            port,
        }
    }

    #[tokio::test]
    async fn tunnels_and_absolute_urls_are_understood() {
        let asked = read_all(b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\nhello")
            .await
            .unwrap();
        assert_eq!(asked.to, to("a.test", 443));
        assert_eq!(asked.how, How::Connect);
        assert_eq!(asked.rest, b"hello");
        let asked = read_all(
            b"GET http://A.test/x?y=1 HTTP/1.1\r\nHost: other.test\r\nAccept: */*\r\nProxy-Authorization: x\r\n\
              Connection: keep-alive\r\n\r\n",
        )
        .await
        .unwrap();
        assert_eq!(asked.to, to("a.test", 80));
        let How::Forward(head) = asked.how else {
            panic!("{asked:?}");
        };
        assert_eq!(
            String::from_utf8(head).unwrap(),
            "GET /x?y=1 HTTP/1.1\r\nhost: A.test\r\nAccept: */*\r\nconnection: close\r\n\r\n"
        );
    }

    #[tokio::test]
    async fn everything_else_is_refused_within_bounds() {
        for (bytes, word) in [
            (&b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n"[..], "proxy"),
            (b"GET https://a.test/ HTTP/1.1\r\n\r\n", "proxy"),
            (b"GET http://u:p@a.test/ HTTP/1.1\r\n\r\n", "proxy"),
            (b"CONNECT a.test HTTP/1.1\r\n\r\n", "host:port"),
            (b"CONNECT http://a.test:443/ HTTP/1.1\r\n\r\n", "host:port"),
            (b"\x16\x03\x01\x02\x00\x01", "no HTTP"),
            (
                b"CONNECT a.test:443 HTTP/1.1\r\nbad header\r\n\r\n",
                "no HTTP",
            ),
        ] {
            match read_all(bytes).await {
                Err(BadHead::Wrong(rule)) => assert!(rule.contains(word), "{rule}"),
                other => panic!("{:?}: {other:?}", String::from_utf8_lossy(bytes)),
            }
        }
        assert_eq!(read_all(b"CONNECT a.test:443 HT").await, Err(BadHead::Gone));
        let mut long = b"CONNECT a.test:443 HTTP/1.1\r\nx: ".to_vec();
        long.resize(2 * HEAD_MAX, b'x');
        assert!(matches!(
            read_all(&long).await,
            Err(BadHead::Wrong(rule)) if rule.contains("16 KiB")
        ));
        let many = format!(
            "CONNECT a.test:443 HTTP/1.1\r\n{}\r\n",
            "x: y\r\n".repeat(HEADERS_MAX + 1)
        );
        assert!(matches!(
            read_all(many.as_bytes()).await,
            Err(BadHead::Wrong(rule)) if rule.contains("64")
        ));
    }
}
