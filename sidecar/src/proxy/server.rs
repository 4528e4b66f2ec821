//! The proxy's router: from a call of OpenCode to its target and back.

use super::{
    Bindings, ProxyError, What, alias, answer,
    edit::Fields,
    inbound::{self, Received},
    mask::Mask,
    observe::{Call, Metrics, Observer, Unobserved},
    refusal::Refusal,
    serve::LocalPort,
    target::{Api, Target},
    upstream::{self, Clients},
};
use crate::{config::Config, keys::ProviderKeys, settings::Settings};
use axum::{
    Router,
    extract::{Request, State},
    response::Response,
    routing::post,
};
use bytes::Bytes;
use contract::pod::PodConfig;
use http::StatusCode;
use secrecy::ExposeSecret;
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// Bytes of request bodies at once. The agent decides how many calls it makes at once and how large
/// they are; it must not decide how much memory the sidecar takes.
const MEMORY: usize = 64 * 1024 * 1024;
/// Bodies from this size on are read beside the event loop, in bytes.
const LARGE: usize = 256 * 1024;

/// The credential proxy.
pub(crate) struct Proxy {
    bindings: Bindings,
    config: Config,
    keys: ProviderKeys,
    clients: Clients,
    port: u16,
    header_timeout: Duration,
    chunk_timeout: Duration,
    memory: Arc<Semaphore>,
    metrics: Metrics,
    observer: Arc<dyn Observer>,
}

impl Proxy {
    /// Needs the process's TLS provider to be installed. Fails if the extra certificate authorities
    /// cannot be used.
    pub(crate) fn new(
        settings: &Settings,
        config: Config,
        keys: ProviderKeys,
        bindings: Bindings,
    ) -> Result<Self, ProxyError> {
        Ok(Self {
            bindings,
            config,
            keys,
            clients: Clients::new(settings.extra_ca_file.as_deref())?,
            port: settings.proxy_port,
            header_timeout: Duration::from_secs(settings.model_header_timeout),
            chunk_timeout: Duration::from_secs(settings.model_chunk_timeout),
            memory: Arc::new(Semaphore::new(MEMORY)),
            metrics: Metrics::default(),
            observer: Arc::new(Unobserved),
        })
    }

    /// Tells this observer of calls.
    #[must_use]
    pub(crate) fn with_observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = observer;
        self
    }

    /// The counters, to be registered.
    pub(crate) fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// All routes. Under [`super::serve`] requests are held to the listener's port, elsewhere to the
    /// settings'.
    pub(crate) fn router(self) -> Router {
        let route = |api| {
            post(move |State(proxy): State<Arc<Self>>, request| async move {
                proxy.answer(api, request).await
            })
        };
        Router::new()
            .route("/chat/v1/chat/completions", route(Api::Chat))
            .route("/responses/v1/responses", route(Api::Responses))
            .route("/messages/v1/messages", route(Api::Messages))
            .fallback(nothing_here)
            .method_not_allowed_fallback(post_only)
            .with_state(Arc::new(self))
    }

    async fn answer(self: Arc<Self>, api: Api, request: Request) -> Response {
        let call = Box::new(Call::begin(api, &self.metrics, &self.observer));
        match self.call(api, request, call).await {
            Ok(response) => response,
            Err((refusal, mut call)) => {
                call.refused(refusal.status.as_u16());
                tracing::debug!(code = refusal.code, "refused a model call");
                refusal.into_response(api)
            }
        }
    }

    async fn call(
        self: &Arc<Self>,
        api: Api,
        request: Request,
        mut call: Box<Call>,
    ) -> Result<Response, (Refusal, Box<Call>)> {
        macro_rules! or_refuse {
            ($result:expr) => {
                match $result {
                    Ok(value) => value,
                    Err(refusal) => return Err((refusal, call)),
                }
            };
        }
        macro_rules! or_tell {
            ($result:expr) => {
                match $result {
                    Ok(value) => value,
                    Err((refusal, what)) => {
                        call.failed(what);
                        return Err((refusal, call));
                    }
                }
            };
        }
        let (parts, body) = request.into_parts();
        let port = parts
            .extensions
            .get::<LocalPort>()
            .map_or(self.port, |port| port.0);
        let head = or_refuse!(inbound::check(api, &parts, port));
        call.of_session(head.session.clone());
        let received = or_refuse!(inbound::read(&parts.headers, body, &self.memory).await);
        let Received { bytes, share } = received;
        let (target, body) = or_refuse!(self.prepare(api, head.session, bytes).await);
        call.of_model(target.label());

        let key = or_tell!(upstream::key(&target, &self.keys));
        let mut headers = head.headers;
        or_refuse!(upstream::authorize(&mut headers, api, &key));
        let client = self.clients.get(&self.config.pod()).map_err(|error| {
            tracing::error!(%error, "no client for model calls");
            let message = "the pod's HTTP proxy cannot be used: check its URL";
            (Refusal::upstream("http_proxy", message), What::Unreachable)
        });
        let client = or_tell!(client);
        let sent = upstream::send(&client, &target, headers, body, self.header_timeout).await;
        let response = or_tell!(sent);
        drop(share);
        let mask = Mask::new(key.expose_secret());
        answer::pass_on(response, mask, call, self.chunk_timeout)
    }

    /// Reads the body, finds the target and writes the body for it.
    async fn prepare(
        self: &Arc<Self>,
        api: Api,
        session: Option<String>,
        bytes: Bytes,
    ) -> Result<(Arc<Target>, Vec<u8>), Refusal> {
        let proxy = Arc::clone(self);
        let large = bytes.len() >= LARGE;
        let work = move || {
            let fields =
                Fields::read(&bytes).map_err(|error| Refusal::bad_request(error.to_string()))?;
            let alias = fields
                .model()
                .map_err(|error| Refusal::bad_request(error.to_string()))?;
            let target = proxy.choose(api, session.as_deref(), &alias)?;
            let body = fields.write(&target);
            Ok((target, body))
        };
        if !large {
            return work();
        }
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(_) => Err(Refusal::busy()),
        }
    }

    /// The target of a call: of its session, or else of the pod, or else of the only session there
    /// is; the first that speaks the API of the route. For the small alias the pod's small model
    /// comes first.
    fn choose(&self, api: Api, session: Option<&str>, alias: &str) -> Result<Arc<Target>, Refusal> {
        if !alias::is_known(alias) {
            return Err(Refusal::unknown_model(alias));
        }
        let pod = self.config.pod();
        let small = || (alias == alias::SMALL).then(|| small_of(&pod)).flatten();
        let bound = || session.and_then(|id| self.bindings.get(id));
        let fits = |target: &Arc<Target>| target.api == api;
        small()
            .filter(fits)
            .or_else(|| bound().filter(fits))
            .or_else(|| model_of(&pod).filter(fits))
            .or_else(|| self.bindings.only().filter(fits))
            .ok_or_else(Refusal::no_target)
    }
}

fn model_of(pod: &PodConfig) -> Option<Arc<Target>> {
    let choice = pod.model.as_ref()?;
    resolved(Target::of_choice(pod, choice), "model")
}

fn small_of(pod: &PodConfig) -> Option<Arc<Target>> {
    let choice = pod.small_model.as_ref()?;
    resolved(Target::of_choice(pod, choice), "small model")
}

fn resolved<E: std::fmt::Debug>(target: Result<Target, E>, which: &str) -> Option<Arc<Target>> {
    target
        .inspect_err(|wrong| tracing::warn!(?wrong, which, "the pod's model cannot be used"))
        .ok()
        .map(Arc::new)
}

async fn nothing_here() -> Response {
    let message = "the model proxy has no such path";
    Refusal::new(StatusCode::NOT_FOUND, "not_found", message).into_response(Api::Chat)
}

async fn post_only() -> Response {
    let message = "the model proxy takes POST here";
    let status = StatusCode::METHOD_NOT_ALLOWED;
    Refusal::new(status, "method_not_allowed", message).into_response(Api::Chat)
}
