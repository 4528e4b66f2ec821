//! One HTTP request to OpenCode per connection, bounded in time and bytes.
//!
//! A connection of its own for every call costs 50 µs on loopback and spares the guessing whether a
//! kept one belongs to a process that has died since. No proxy, redirect, name lookup or TLS is
//! involved: the address is always 127.0.0.1.

use super::opencode::OpenCodeError;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret, SecretString};
use std::{io, net::Ipv4Addr, time::Duration};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

/// OpenCode's user name for Basic auth.
const USER: &str = "opencode";
/// What of an answer's head and of one read of its body is kept, in bytes.
const BUFFER: usize = 256 * 1024;
/// What of a refusal's body is kept for people, in bytes.
const EXCERPT: usize = 2 * 1024;

/// Where OpenCode listens and how it knows us.
pub(super) struct Http {
    port: u16,
    auth: HeaderValue,
}

/// One request. The body, if there is one, is JSON.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// Name for errors.
    pub(super) name: &'static str,
    pub(super) method: Method,
    /// Path and query, encoded.
    pub(super) path: String,
    pub(super) body: Option<Bytes>,
    /// For the whole answer.
    pub(super) within: Duration,
    /// Most bytes of the answer's body.
    pub(super) most: usize,
}

/// An answer whose body is still on its way. Dropping it closes the connection.
pub(super) struct Answer {
    pub(super) body: Incoming,
    _connection: AbortOnDropHandle<()>,
}

impl Http {
    pub(super) fn new(port: u16, password: &SecretString) -> Self {
        let text = STANDARD.encode(format!("{USER}:{}", password.expose_secret()));
        let mut auth = HeaderValue::try_from(format!("Basic {text}"))
            .unwrap_or_else(|_| HeaderValue::from_static("Basic"));
        auth.set_sensitive(true);
        Self { port, auth }
    }

    /// Sends and reads the whole answer; any status but 2xx is an error.
    pub(super) async fn send(&self, call: &Call) -> Result<Bytes, OpenCodeError> {
        let answer = async {
            let (status, mut answer) = self.begin(call).await?;
            answer.check(call.name, status).await?;
            answer.read(call.name, call.most).await
        };
        within(call.name, call.within, answer).await
    }

    /// Sends and tells the status; the body is not read.
    pub(super) async fn status(&self, call: &Call) -> Result<StatusCode, OpenCodeError> {
        let answer = async { Ok(self.begin(call).await?.0) };
        within(call.name, call.within, answer).await
    }

    /// Sends and returns when the head of a 2xx answer is here; its body has no bound.
    pub(super) async fn open(&self, call: &Call) -> Result<Answer, OpenCodeError> {
        let answer = async {
            let (status, mut answer) = self.begin(call).await?;
            answer.check(call.name, status).await?;
            Ok(answer)
        };
        within(call.name, call.within, answer).await
    }

    async fn begin(&self, call: &Call) -> Result<(StatusCode, Answer), OpenCodeError> {
        let unreachable = |source: io::Error| OpenCodeError::Unreachable {
            call: call.name,
            source,
        };
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
            .await
            .map_err(unreachable)?;
        let broken = |error: hyper::Error| unreachable(io::Error::other(error));
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // Its errors come out of the request's or the body's future.
            let _ = connection.await;
        }));
        let request = Request::builder()
            .method(&call.method)
            .uri(&call.path)
            .header(header::HOST, format!("127.0.0.1:{}", self.port))
            .header(header::AUTHORIZATION, &self.auth)
            .header(header::CONNECTION, "close");
        let request = match &call.body {
            Some(body) => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::new(body.clone())),
            None => request.body(Full::default()),
        }
        .map_err(|error| unreachable(io::Error::other(error)))?;
        let response: Response<Incoming> = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        let answer = Answer {
            body,
            _connection: connection,
        };
        Ok((head.status, answer))
    }
}

impl Answer {
    async fn check(&mut self, call: &'static str, status: StatusCode) -> Result<(), OpenCodeError> {
        if status.is_success() {
            return Ok(());
        }
        // An endless refusal is cut, not an error of its own.
        let mut body = BytesMut::new();
        while body.len() < EXCERPT
            && let Some(Ok(frame)) = self.body.frame().await
        {
            if let Some(data) = frame.data_ref() {
                body.extend_from_slice(&data[..data.len().min(EXCERPT - body.len())]);
            }
        }
        Err(OpenCodeError::Status {
            call,
            code: status.as_u16(),
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }

    async fn read(&mut self, call: &'static str, most: usize) -> Result<Bytes, OpenCodeError> {
        let mut whole = BytesMut::new();
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| OpenCodeError::Unreachable {
                call,
                source: io::Error::other(error),
            })?;
            let Some(data) = frame.data_ref() else {
                continue;
            };
            if whole.len() + data.len() > most {
                return Err(OpenCodeError::TooLarge { call, most });
            }
            whole.extend_from_slice(data);
        }
        Ok(whole.freeze())
    }
}

async fn within<T>(
    call: &'static str,
    after: Duration,
    answer: impl Future<Output = Result<T, OpenCodeError>>,
) -> Result<T, OpenCodeError> {
    // On the heap: a request's future is large and callers nest several.
    match tokio::time::timeout(after, Box::pin(answer)).await {
        Ok(answer) => answer,
        Err(_) => Err(OpenCodeError::Timeout { call, after }),
    }
}
