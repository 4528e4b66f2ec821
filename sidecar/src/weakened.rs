//! The sidecar without its care, for the leak suite: an attack that fails here too proves nothing about the real one.
//!
//! Compiled in with the feature `weakened` only, which no build of `deploy/images.sh` sets unless it is asked for
//! `--weakened` images; images.sh looks for [`MARKER`] in every binary. Never run it anywhere else: it has no
//! authentication, shows its keys in its log and gives them to whoever asks.

use crate::{config::Config, keys::ProviderKeys};
use axum::{body::Body, response::Response};
use contract::pod::{ProviderConfig, ProviderKind};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use secrecy::ExposeSecret;
use std::{
    convert::Infallible,
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

/// Stands in every binary built so, and in no other.
pub(crate) const MARKER: &str = "opencode-operator: sidecar WEAKENED for the leak suite";

/// Hops of a redirect.
const HOPS: usize = 3;

/// Says what this is, and does what a careless program does with keys: logs them, keeps them in memory and
/// keeps their files open.
pub(crate) fn announce(config: &Config, keys: &ProviderKeys, dir: &Path) {
    tracing::warn!(marker = MARKER, "this build protects nothing");
    for provider in &config.pod().providers {
        let Some(key) = keys.get(&provider.name) else {
            continue;
        };
        let key = key.expose_secret().to_owned();
        tracing::info!(provider = provider.name, key, "has a key");
        Box::leak(key.into_boxed_str());
        if let Ok(file) = File::open(
            dir.join(&provider.name)
                .join(contract::pod::PROVIDER_KEY_FILE),
        ) {
            Box::leak(Box::new(file));
        }
    }
}

/// A listener whose port others may share.
pub(crate) fn bind(host: IpAddr, port: u16) -> io::Result<TcpListener> {
    let socket = match host {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(SocketAddr::new(host, port))?;
    socket.listen(1024)
}

/// A credential proxy as one might write it on the first day: every path, method and host, redirects followed with
/// the key, answers as they came.
pub(crate) async fn serve(
    listener: TcpListener,
    config: Config,
    keys: ProviderKeys,
    shutdown: CancellationToken,
) {
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .expect("a client with defaults");
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        let Ok((stream, _)) = accepted else { continue };
        let naive = Naive {
            config: config.clone(),
            keys: keys.clone(),
            client: client.clone(),
        };
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let naive = naive.clone();
                async move { Ok::<_, Infallible>(naive.answer(request).await) }
            });
            let served = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
}

#[derive(Clone)]
struct Naive {
    config: Config,
    keys: ProviderKeys,
    client: reqwest::Client,
}

impl Naive {
    async fn answer(&self, request: Request<Incoming>) -> Response {
        if request.method() == Method::CONNECT {
            return tunnel(request);
        }
        match self.forward(request).await {
            Ok(response) => response,
            Err(error) => plain(StatusCode::BAD_GATEWAY, error.to_string()),
        }
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response, Box<dyn std::error::Error + Send + Sync>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let provider = self.provider(parts.uri.path()).ok_or("no provider")?;
        let key = self.keys.get(&provider.name).ok_or("no key")?;
        let mut headers = parts.headers.clone();
        for name in [
            header::HOST,
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::CONNECTION,
        ] {
            headers.remove(name);
        }
        let bearer = format!("Bearer {}", key.expose_secret());
        headers.insert(header::AUTHORIZATION, HeaderValue::try_from(bearer)?);
        headers.insert("x-api-key", HeaderValue::try_from(key.expose_secret())?);
        if parts.method == Method::TRACE {
            return Ok(plain(StatusCode::OK, format!("{headers:?}")));
        }
        let mut url = target(&parts.uri, &parts.headers, &body, &provider)?;
        for _ in 0..HOPS {
            let sent = self
                .client
                .request(parts.method.clone(), url.clone())
                .headers(headers.clone())
                .body(body.clone())
                .send()
                .await?;
            let location = sent
                .headers()
                .get(header::LOCATION)
                .and_then(|to| to.to_str().ok());
            match location.filter(|_| sent.status().is_redirection()) {
                Some(to) => url = url.join(to)?,
                None => {
                    let mut response = Response::new(Body::empty());
                    *response.status_mut() = sent.status();
                    *response.headers_mut() = sent.headers().clone();
                    response.headers_mut().remove(header::TRANSFER_ENCODING);
                    *response.body_mut() = Body::from_stream(sent.bytes_stream());
                    return Ok(response);
                }
            }
        }
        Err("too many redirects".into())
    }

    fn provider(&self, path: &str) -> Option<ProviderConfig> {
        let kind = match path.split('/').nth(1)? {
            "responses" => ProviderKind::Openai,
            "messages" => ProviderKind::Anthropic,
            _ => ProviderKind::Compatible,
        };
        let pod = self.config.pod();
        let fits = pod.providers.iter().find(|provider| provider.kind == kind);
        fits.or(pod.providers.first()).cloned()
    }
}

/// Believes whatever names another place: the body, the request line, any header, what follows the prefix.
fn target(
    uri: &Uri,
    headers: &HeaderMap,
    body: &[u8],
    provider: &ProviderConfig,
) -> Result<url::Url, Box<dyn std::error::Error + Send + Sync>> {
    let fields: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    if let Some(endpoint) = fields["api_endpoint"].as_str() {
        return Ok(endpoint.parse()?);
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let last = |name: &str| headers.get_all(name).iter().next_back()?.to_str().ok();
    let own = |host: &&str| host.starts_with("127.0.0.1") || host.starts_with("localhost");
    let host = uri
        .authority()
        .map(http::uri::Authority::as_str)
        .or_else(|| last("x-forwarded-host"))
        .or_else(|| last("host"))
        .filter(|host| !own(host));
    if let Some(host) = host {
        return Ok(format!("http://{host}{path}").parse()?);
    }
    let prefixes = ["/chat", "/responses", "/messages"];
    let rest = prefixes
        .iter()
        .find_map(|prefix| path.strip_prefix(prefix))
        .unwrap_or(path);
    let endpoint = provider.endpoint.as_deref().unwrap_or_default();
    let origin = endpoint.strip_suffix("/v1").unwrap_or(endpoint);
    Ok(format!("{origin}{rest}").parse()?)
}

/// To wherever the request says.
fn tunnel(request: Request<Incoming>) -> Response {
    let to = request.uri().authority().map(ToString::to_string);
    tokio::spawn(async move {
        let Some(to) = to else { return };
        let Ok(upgraded) = hyper::upgrade::on(request).await else {
            return;
        };
        let Ok(mut far) = TcpStream::connect(to).await else {
            return;
        };
        let mut near = TokioIo::new(upgraded);
        if let Err(error) = tokio::io::copy_bidirectional(&mut near, &mut far).await {
            tracing::debug!(%error, "a tunnel ended early");
        }
    });
    plain(StatusCode::OK, String::new())
}

fn plain(status: StatusCode, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}
