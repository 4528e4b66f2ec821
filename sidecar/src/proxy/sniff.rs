//! Whether the beginning of a 2xx is that of a model's answer.

use super::meter::Shape;
use http::HeaderValue;

/// What an answer says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Events,
    Json,
    Html,
    Other,
}

impl Kind {
    pub(crate) fn of(value: Option<&HeaderValue>) -> Self {
        let text = value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let kind = text
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        match kind.as_str() {
            "text/event-stream" => Self::Events,
            "text/html" | "application/xhtml+xml" => Self::Html,
            "application/json" => Self::Json,
            other if other.ends_with("+json") => Self::Json,
            _ => Self::Other,
        }
    }
}

/// The shape of an answer that begins so; `stream`: events were asked for. The error is what it is
/// instead.
///
/// Its words count more than its type: servers are found that stream events as plain text.
pub(crate) fn shape(kind: Kind, first: &[u8], stream: bool) -> Result<Shape, &'static str> {
    let first = first
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(first)
        .trim_ascii_start();
    let Some(&byte) = first.first() else {
        return Err("nothing at all");
    };
    if byte == b'<' {
        return Err("a web page or XML");
    }
    let events = FIELDS.iter().any(|field| {
        let length = field.len().min(first.len());
        field[..length] == first[..length]
    });
    let json = matches!(byte, b'{' | b'[');
    match kind {
        Kind::Html => Err("a web page"),
        _ if events => Ok(Shape::Events),
        _ if json && stream => Err("JSON in place of a stream of events"),
        Kind::Events if !json => Ok(Shape::Events),
        _ if json => Ok(Shape::Json),
        _ if stream => Err("something else than a stream of events"),
        _ => Err("something else than JSON"),
    }
}

/// How a stream of events begins.
const FIELDS: [&[u8]; 5] = [b"data:", b"event:", b"id:", b"retry:", b":"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_passes_and_the_rest_has_a_name() {
        let kind = |text: &str| Kind::of(Some(&HeaderValue::from_str(text).unwrap()));
        let good: [(&str, &[u8], bool, Shape); 9] = [
            (
                "text/event-stream; charset=utf-8",
                b"data: {}",
                true,
                Shape::Events,
            ),
            ("TEXT/event-stream", b"\n\n: hello\n", true, Shape::Events),
            (
                "text/event-stream",
                b"unusual: field\n",
                true,
                Shape::Events,
            ),
            ("text/event-stream", b"dat", true, Shape::Events),
            ("text/plain", b"\xef\xbb\xbfevent: x\n", true, Shape::Events),
            ("application/json", b"data: {}", true, Shape::Events),
            ("application/json", b" {\"a\":1}", false, Shape::Json),
            ("text/plain", b"[", false, Shape::Json),
            ("text/event-stream", b"data: {}", false, Shape::Events),
        ];
        for (text, first, stream, expected) in good {
            assert_eq!(
                shape(kind(text), first, stream),
                Ok(expected),
                "{text} {first:?}"
            );
        }
        let bad: [(&str, &[u8], bool); 10] = [
            ("text/event-stream", b"", true),
            ("text/event-stream", b"\r\n \n", true),
            ("text/event-stream", b"<!DOCTYPE html>", true),
            ("text/event-stream", b"{\"error\":1}", true),
            ("application/json", b"{}", true),
            ("text/html", b"data: {}", true),
            ("text/plain", b"Bad gateway", true),
            ("application/json", b"", false),
            ("application/json", b"Bad gateway", false),
            ("text/html", b"{}", false),
        ];
        for (text, first, stream) in bad {
            assert!(
                shape(kind(text), first, stream).is_err(),
                "{text} {first:?}"
            );
        }
        assert_eq!(shape(Kind::of(None), b"data:", true), Ok(Shape::Events));
    }
}
