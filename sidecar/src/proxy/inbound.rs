//! What is accepted from OpenCode: one strict form, everything else is refused.

use super::{BODY_MAX, code::Code, refusal::Refusal, target::Api};
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST,
        TRANSFER_ENCODING, UPGRADE, USER_AGENT,
    },
    request::Parts,
};
use http_body_util::BodyExt;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// OpenCode's session, in every call of a model.
pub(crate) const SESSION_HEADER: &str = "x-session-id";
/// Longest id of a session, in bytes.
const SESSION_MAX: usize = 128;
/// Headers that go on to the provider as they came.
const FORWARDED: [HeaderName; 5] = [
    ACCEPT,
    USER_AGENT,
    HeaderName::from_static("anthropic-version"),
    HeaderName::from_static("anthropic-beta"),
    HeaderName::from_static("openai-beta"),
];
/// Headers of which a second one would make two readers disagree.
const ONCE: [HeaderName; 5] = [
    HOST,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    TRANSFER_ENCODING,
    HeaderName::from_static(SESSION_HEADER),
];
/// Longest time for a whole body to arrive over loopback.
const BODY_TIME: Duration = Duration::from_secs(60);
/// Silence after which the rest of a refused body is not waited for.
const DRAIN_SILENCE: Duration = Duration::from_secs(1);

/// What a request's head says.
#[derive(Debug)]
pub(crate) struct Head {
    /// OpenCode's session.
    pub(crate) session: Option<String>,
    /// Headers for the provider, still without credentials.
    pub(crate) headers: HeaderMap,
}

/// Checks a head. `port` is the proxy's own.
pub(crate) fn check(api: Api, parts: &Parts, port: u16) -> Result<Head, Refusal> {
    let headers = &parts.headers;
    if parts.uri.scheme().is_some() || parts.uri.authority().is_some() {
        return Err(Refusal::bad_request("the request's target must be a path"));
    }
    if parts.uri.query().is_some() {
        return Err(Refusal::bad_request("no query is accepted"));
    }
    for name in ONCE.iter().chain(&FORWARDED) {
        if headers.get_all(name).iter().nth(1).is_some() {
            return Err(Refusal::bad_request(format!("{name} came twice")));
        }
    }
    check_host(headers.get(HOST), port)?;
    if headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH) {
        return Err(Refusal::bad_request("two lengths"));
    }
    if headers.contains_key(UPGRADE) {
        return Err(Refusal::bad_request("no upgrade is accepted"));
    }
    if headers.contains_key(CONTENT_ENCODING) || !is_json(headers.get(CONTENT_TYPE)) {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Code::UnsupportedMediaType,
            "the body must be plain application/json",
        ));
    }
    let session = match headers.get(SESSION_HEADER) {
        None => None,
        Some(value) => Some(session_id(value)?),
    };
    let mut out = HeaderMap::new();
    for name in &FORWARDED {
        let foreign = match api {
            Api::Messages => name.as_str().starts_with("openai-"),
            Api::Chat | Api::Responses => name.as_str().starts_with("anthropic-"),
        };
        if let Some(value) = headers.get(name).filter(|_| !foreign) {
            out.insert(name, value.clone());
        }
    }
    out.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // What comes back is searched for the key, so it must not be compressed.
    out.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    Ok(Head {
        session,
        headers: out,
    })
}

/// Another host is a browser or a rebound name, not OpenCode.
fn check_host(host: Option<&HeaderValue>, port: u16) -> Result<(), Refusal> {
    let host = host.and_then(|host| host.to_str().ok());
    let ours = host.is_some_and(|host| {
        ["127.0.0.1", "localhost"]
            .iter()
            .any(|name| host.strip_prefix(name) == Some(&format!(":{port}")))
    });
    if ours {
        Ok(())
    } else {
        Err(Refusal::new(
            StatusCode::MISDIRECTED_REQUEST,
            Code::WrongHost,
            "this is the model proxy, which answers to its own name only",
        ))
    }
}

fn is_json(value: Option<&HeaderValue>) -> bool {
    let Some(text) = value.and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let mut parts = text.split(';').map(str::trim);
    let json = parts
        .next()
        .is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"));
    json && parts.all(|parameter| parameter.eq_ignore_ascii_case("charset=utf-8"))
}

fn session_id(value: &HeaderValue) -> Result<String, Refusal> {
    value
        .to_str()
        .ok()
        .filter(|id| (1..=SESSION_MAX).contains(&id.len()))
        .filter(|id| {
            id.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        })
        .map(ToOwned::to_owned)
        .ok_or_else(|| Refusal::bad_request("x-session-id is no session id"))
}

/// A body, and its share of the memory for bodies.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    pub(crate) share: Option<OwnedSemaphorePermit>,
}

/// Reads a whole body of at most [`BODY_MAX`] bytes, as far as `memory` (bytes) has room. What is
/// over is read and dropped, so that the refusal arrives before the connection breaks.
pub(crate) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    memory: &Arc<Semaphore>,
) -> Result<Received, Refusal> {
    let declared = headers
        .get(CONTENT_LENGTH)
        .map(|value| value.to_str().ok().and_then(|text| text.parse().ok()));
    let declared: Option<usize> = match declared {
        Some(None) => return Err(Refusal::bad_request("content-length is no number")),
        Some(length) => length,
        None => None,
    };
    if declared.is_some_and(|length| length > BODY_MAX) {
        drain(&mut body).await;
        return Err(Refusal::too_large());
    }
    match timeout(BODY_TIME, read_all(&mut body, memory)).await {
        Ok(Ok(received)) => Ok(received),
        Ok(Err(refusal)) => {
            drain(&mut body).await;
            Err(refusal)
        }
        Err(_) => Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            Code::RequestTimeout,
            "the request's body did not arrive in time",
        )),
    }
}

async fn read_all(body: &mut Body, memory: &Arc<Semaphore>) -> Result<Received, Refusal> {
    let mut bytes = BytesMut::new();
    let mut share: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refusal::bad_request("the request's body broke off"))?;
        let Ok(data) = frame.into_data() else {
            continue; // Trailers say nothing to us.
        };
        if data.len() > BODY_MAX - bytes.len() {
            return Err(Refusal::too_large());
        }
        let size = u32::try_from(data.len()).map_err(|_| Refusal::too_large())?;
        let more = Arc::clone(memory)
            .try_acquire_many_owned(size)
            .map_err(|_| Refusal::busy())?;
        match &mut share {
            Some(share) => share.merge(more),
            None => share = Some(more),
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Received {
        bytes: bytes.freeze(),
        share,
    })
}

async fn drain(body: &mut Body) {
    let mut left = 2 * BODY_MAX;
    while let Ok(Some(Ok(frame))) = timeout(DRAIN_SILENCE, body.frame()).await {
        let size = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(size) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}
