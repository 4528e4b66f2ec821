//! The side that talks to providers: one client per HTTP proxy in force, requests built anew.

use super::{
    Target,
    code::Code,
    endpoint,
    refusal::{self, Refusal},
    target::{Api, KeySource},
};
use crate::{config::Config, keys::ProviderKeys};
use contract::pod::PodConfig;
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use reqwest::{Certificate, Client, NoProxy, redirect};
use secrecy::{ExposeSecret, SecretString};
use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Longest wait for a TCP and TLS connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The client for providers cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    #[error("the extra certificate authorities in {path} cannot be read")]
    CaFile { path: PathBuf, source: io::Error },
    #[error("{path} holds no PEM certificates")]
    CaPem { path: PathBuf },
    #[error("the client for model calls cannot be made")]
    Client(#[source] reqwest::Error),
    #[error("the pod's HTTP proxy is no usable URL")]
    HttpProxy,
}

/// Which way out the pod's configuration names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Way {
    http_proxy: Option<String>,
    no_proxy: Option<String>,
}

impl Way {
    fn of(pod: &PodConfig) -> Self {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
        Self {
            http_proxy: given(&pod.http_proxy),
            no_proxy: given(&pod.no_proxy),
        }
    }
}

/// Makes clients, and keeps the one for the configuration in force.
#[derive(Debug)]
pub(crate) struct Clients {
    extra_ca: Vec<Certificate>,
    current: Mutex<Option<(Way, Client)>>,
}

impl Clients {
    pub(crate) fn new(extra_ca_file: Option<&Path>) -> Result<Self, ProxyError> {
        let extra_ca = match extra_ca_file {
            None => Vec::new(),
            // The ConfigMap may come later or be mended; without the sidecar nobody could say what is
            // wrong. Calls that need this authority fail until the pod is made anew.
            Some(path) => read_ca(path).unwrap_or_else(|error| {
                tracing::error!(%error, "network.extraCABundle is not used");
                Vec::new()
            }),
        };
        let clients = Self {
            extra_ca,
            current: Mutex::new(None),
        };
        // What is wrong with TLS itself is to be known at the start, not at the first call.
        let client = clients.build(&Way::default())?;
        *clients.lock() = Some((Way::default(), client));
        Ok(clients)
    }

    /// The client for this configuration. A proxy that cannot be used is an error: calls never go
    /// around it.
    pub(crate) fn get(&self, pod: &PodConfig) -> Result<Client, ProxyError> {
        let way = Way::of(pod);
        let mut current = self.lock();
        if let Some((_, client)) = current.as_ref().filter(|(known, _)| *known == way) {
            return Ok(client.clone());
        }
        let client = self.build(&way)?;
        *current = Some((way, client.clone()));
        Ok(client)
    }

    fn build(&self, way: &Way) -> Result<Client, ProxyError> {
        match self
            .builder(way)?
            .tls_certs_merge(self.extra_ca.clone())
            .build()
        {
            Ok(client) => Ok(client),
            // An image without certificate authorities can still use plain HTTP and its own CA.
            Err(error) => {
                tracing::warn!(%error, "no system certificate authorities: using EXTRA_CA_FILE alone");
                self.builder(way)?
                    .tls_certs_only(self.extra_ca.clone())
                    .build()
                    .map_err(ProxyError::Client)
            }
        }
    }

    fn builder(&self, way: &Way) -> Result<reqwest::ClientBuilder, ProxyError> {
        let builder = Client::builder()
            // Also: nothing from the environment.
            .no_proxy()
            // A redirect would carry the key to a place that nobody declared.
            .redirect(redirect::Policy::none())
            .referer(false)
            // OpenCode repeats calls; two layers of it would multiply.
            .retry(reqwest::retry::never())
            .http1_only()
            .connect_timeout(CONNECT_TIMEOUT);
        let Some(url) = &way.http_proxy else {
            return Ok(builder);
        };
        // The error of a bad URL quotes it, and it may hold a password.
        let proxy = reqwest::Proxy::all(url).map_err(|_| ProxyError::HttpProxy)?;
        let except = way.no_proxy.as_deref().and_then(NoProxy::from_string);
        Ok(builder.proxy(proxy.no_proxy(except)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Way, Client)>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_ca(path: &Path) -> Result<Vec<Certificate>, ProxyError> {
    let path = path.to_owned();
    let pem = match fs::read(&path) {
        Ok(pem) => pem,
        Err(source) => return Err(ProxyError::CaFile { path, source }),
    };
    match Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) | Err(_) => Err(ProxyError::CaPem { path }),
    }
}

/// The key of a call, as it is now. The refusal may have news for readers with it.
///
/// A mounted key goes only to the endpoint that is declared for it when it is used: the key is read
/// first and the declaration after it, so that a key which came with a new endpoint is never taken to
/// the old one by a turn that began before.
pub(crate) fn key(
    target: &Target,
    keys: &ProviderKeys,
    config: &Config,
) -> Result<SecretString, (Refusal, Option<super::What>)> {
    match &target.key {
        KeySource::Request(key) => Ok(key.clone()),
        KeySource::Forgotten => Err((Refusal::key_forgotten(), Some(super::What::KeyForgotten))),
        KeySource::Provider(provider) => {
            let key = keys
                .get(provider)
                .filter(|key| key.expose_secret().bytes().all(|b| b.is_ascii_graphic()))
                .ok_or_else(|| {
                    let provider = provider.clone();
                    let refusal = Refusal::key_missing(&provider);
                    (refusal, Some(super::What::KeyMissing { provider }))
                })?;
            if is_declared(&config.pod_now(), provider, target) {
                Ok(key)
            } else {
                Err((Refusal::endpoint_changed(provider), None))
            }
        }
    }
}

fn is_declared(pod: &PodConfig, provider: &str, target: &Target) -> bool {
    let declared = pod.providers.iter().find(|p| p.name == provider);
    declared.is_some_and(|declared| {
        Api::from(declared.kind) == target.api
            && endpoint::of(declared).is_ok_and(|endpoint| endpoint.into_url() == target.base)
    })
}

/// Adds the key to what goes out.
pub(crate) fn authorize(
    headers: &mut HeaderMap,
    api: Api,
    key: &SecretString,
) -> Result<(), Refusal> {
    let key = key.expose_secret();
    let (name, text) = match api {
        Api::Messages => (API_KEY, key.to_owned()),
        Api::Chat | Api::Responses => (AUTHORIZATION, format!("Bearer {key}")),
    };
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| Refusal::bad_request("the key is no header value"))?;
    value.set_sensitive(true);
    headers.insert(name, value);
    Ok(())
}

/// Where a call goes.
pub(crate) fn url(target: &Target) -> url::Url {
    let mut url = target.base.clone();
    let base = url.path().trim_end_matches('/');
    let path = format!("{base}/{}", target.api.operation());
    url.set_path(&path);
    url
}

/// What went wrong before an answer, for the log: the kinds only, since the text of inner errors
/// may quote what was sent.
pub(crate) fn kind(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() {
        "timeout"
    } else if untrusted(error) {
        "certificate"
    } else if error.is_connect() {
        "connect"
    } else if error.is_builder() {
        "request"
    } else {
        "broken answer"
    }
}

/// Whether the other side showed a certificate that we do not take.
fn untrusted(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        // Its `source` is that of what it covers, not what it covers.
        return error.get_ref().is_some_and(|inner| untrusted(inner));
    }
    matches!(
        error.downcast_ref(),
        Some(rustls::Error::InvalidCertificate(_))
    ) || error.source().is_some_and(untrusted)
}

/// Sends a call and waits for the head of its answer.
pub(crate) async fn send(
    client: &Client,
    target: &Arc<Target>,
    headers: HeaderMap,
    body: Vec<u8>,
    patience: Duration,
) -> Result<reqwest::Response, (Refusal, super::What)> {
    let request = client.post(url(target)).headers(headers).body(body).send();
    match tokio::time::timeout(patience, request).await {
        Ok(Ok(response)) => Ok(response),
        Err(_) => Err((Refusal::timeout(patience.as_secs()), super::What::Timeout)),
        Ok(Err(error)) => {
            tracing::warn!(
                kind = kind(&error),
                host = target.base.host_str().unwrap_or("-"),
                "the model provider did not answer"
            );
            if untrusted(&error) {
                let host = target.base.host_str().unwrap_or("-");
                return Err((Refusal::untrusted(host), super::What::Untrusted));
            }
            let refusal = if error.is_timeout() {
                Refusal::timeout(CONNECT_TIMEOUT.as_secs())
            } else {
                Refusal::upstream(Code::Unreachable, refusal::UNREACHABLE)
            };
            Err((refusal, super::What::Unreachable))
        }
    }
}
