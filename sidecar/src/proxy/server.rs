//! The proxy's router: from a call of OpenCode to its target and back.

use super::{
    Bindings, Ledger, ProxyError, What, alias,
    answer::{self, Patience},
    bindings::Bound,
    breaker::Digest,
    call::{Call, Shared},
    code::Code,
    content::Content,
    edit::Fields,
    inbound::{self, Received},
    mask::Mask,
    observe::{Metrics, Observer, Unobserved},
    refusal::Refusal,
    serve::LocalPort,
    target::{Api, KeySource, Target},
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
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest as _, Sha256};
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// How long a call of an unknown session waits for news of it: OpenCode's event about a sub-agent and
/// the sub-agent's first call come by different ways. Then it counts for the pod.
const CHILD_PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of request bodies at once. The agent decides how many calls it makes at once and how large
/// they are; it must not decide how much memory the sidecar takes.
const MEMORY: usize = 64 * 1024 * 1024;
/// Bodies from this size on are read beside the event loop, in bytes.
const LARGE: usize = 256 * 1024;

/// The credential proxy.
pub(crate) struct Proxy {
    bindings: Bindings,
    clients: Clients,
    port: u16,
    header_timeout: Duration,
    chunk_timeout: Duration,
    memory: Arc<Semaphore>,
    shared: Shared,
}

impl Proxy {
    /// Needs the process's TLS provider to be installed. Fails if the extra certificate authorities
    /// cannot be used.
    pub(crate) fn new(
        settings: &Settings,
        config: Config,
        keys: ProviderKeys,
        bindings: Bindings,
        ledger: Arc<Ledger>,
    ) -> Result<Self, ProxyError> {
        Ok(Self {
            bindings,
            clients: Clients::new(settings.extra_ca_file.as_deref())?,
            port: settings.proxy_port,
            header_timeout: Duration::from_secs(settings.model_header_timeout),
            chunk_timeout: Duration::from_secs(settings.model_chunk_timeout),
            memory: Arc::new(Semaphore::new(MEMORY)),
            shared: Shared {
                metrics: Metrics::default(),
                observer: Arc::new(Unobserved),
                ledger,
                breaker: Arc::default(),
                config,
                keys,
            },
        })
    }

    /// Tells this observer of calls.
    #[must_use]
    pub(crate) fn with_observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.shared.observer = observer;
        self
    }

    /// The counters, to be registered.
    pub(crate) fn metrics(&self) -> Metrics {
        self.shared.metrics.clone()
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
        let call = Box::new(Call::begin(api, &self.shared));
        match self.call(api, request, call).await {
            Ok(response) => response,
            Err((refusal, mut call)) => {
                call.refused(&refusal);
                call.record().await;
                tracing::debug!(code = refusal.code.as_str(), "refused a model call");
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
                        if let Some(what) = what.into() {
                            call.failed(what);
                        }
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
        let bound = match head.session.as_deref() {
            Some(session) => self.bindings.find(session, CHILD_PATIENCE).await,
            None => None,
        };
        call.of_session(head.session, bound.as_ref());
        let received = or_refuse!(inbound::read(&parts.headers, body, &self.memory).await);
        let Received { bytes, share } = received;
        let request = or_refuse!(self.prepare(api, bound.clone(), bytes).await);
        let Prepared { target, body, .. } = request;

        let pod = self.shared.config.pod();
        let price = target.price(&pod).cloned();
        call.of_target(&target, price.clone(), request.small);
        let root = bound.as_ref().map_or("", |bound| bound.root.as_str());
        let looping = self
            .shared
            .breaker
            .check(root, call.caller(), &request.digest, &pod.limits.loops)
            .map_err(|why| {
                self.shared.metrics.count_loop_stop(why.code().as_str());
                Refusal::looping(why)
            });
        or_refuse!(looping);
        if pod.limits.budget.cost_nano_usd.is_some() && price.is_none() {
            return Err((Refusal::unpriced(&target.model), call));
        }
        let client = self.clients.get(&pod).map_err(|error| {
            tracing::error!(%error, "no client for model calls");
            let message = "the pod's HTTP proxy cannot be used: check its URL";
            (
                Refusal::upstream(Code::HttpProxy, message),
                What::Unreachable,
            )
        });
        let client = or_tell!(client);
        // A call that cannot be made is to cost nothing.
        or_tell!(upstream::key(
            &target,
            &self.shared.keys,
            &self.shared.config
        ));
        or_refuse!(call.admit(request.digest, body.len()).await);
        // And again: the key is the one that is there when it is used, not before a write to the disk.
        let key = upstream::key(&target, &self.shared.keys, &self.shared.config);
        let key = or_tell!(key);
        let mut headers = head.headers;
        or_refuse!(upstream::authorize(&mut headers, api, &key));
        if pod.audit_content {
            call.with_content(Content::of(&body, key.expose_secret()));
        }
        let patience = Patience {
            begin: tokio::time::Instant::now() + self.header_timeout,
            header: self.header_timeout,
            chunk: self.chunk_timeout,
        };
        call.sending();
        let sent = upstream::send(&client, &target, headers, body, self.header_timeout).await;
        let response = or_tell!(sent);
        drop(share);
        self.heed(&target, &key, response.status());
        let mask = Mask::new(key.expose_secret());
        answer::pass_on(response, mask, call, patience, request.stream).await
    }

    /// Remembers whether a mounted key was refused.
    fn heed(&self, target: &Target, key: &SecretString, status: StatusCode) {
        let KeySource::Provider(provider) = &target.key else {
            return;
        };
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            self.shared
                .keys
                .refused(provider, key, jiff::Timestamp::now());
        } else if status.is_success() {
            self.shared.keys.accepted(provider, key);
        }
    }

    /// Reads the body, finds the target and writes the body for it.
    async fn prepare(
        self: &Arc<Self>,
        api: Api,
        bound: Option<Bound>,
        bytes: Bytes,
    ) -> Result<Prepared, Refusal> {
        let proxy = Arc::clone(self);
        let large = bytes.len() >= LARGE;
        let work = move || {
            let fields =
                Fields::read(&bytes).map_err(|error| Refusal::bad_request(error.to_string()))?;
            let alias = fields
                .model()
                .map_err(|error| Refusal::bad_request(error.to_string()))?;
            let target = proxy.choose(api, bound, &alias)?;
            let body = fields.write(&target);
            Ok(Prepared {
                target,
                body,
                digest: Sha256::digest(&bytes).into(),
                stream: fields.wants_stream(),
                small: alias == alias::SMALL,
            })
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
    fn choose(&self, api: Api, bound: Option<Bound>, alias: &str) -> Result<Arc<Target>, Refusal> {
        if !alias::is_known(alias) {
            return Err(Refusal::unknown_model(alias));
        }
        let pod = self.shared.config.pod();
        let small = || (alias == alias::SMALL).then(|| small_of(&pod)).flatten();
        let fits = |target: &Arc<Target>| target.api == api;
        small()
            .filter(fits)
            .or_else(|| bound.map(|bound| bound.target).filter(fits))
            .or_else(|| model_of(&pod).filter(fits))
            .or_else(|| self.bindings.only().map(|bound| bound.target).filter(fits))
            .ok_or_else(Refusal::no_target)
    }
}

/// A request, ready to be sent.
struct Prepared {
    target: Arc<Target>,
    body: Vec<u8>,
    /// Of the body as it came.
    digest: Digest,
    stream: bool,
    small: bool,
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
    Refusal::new(StatusCode::NOT_FOUND, Code::NotFound, message).into_response(Api::Chat)
}

async fn post_only() -> Response {
    let message = "the model proxy takes POST here";
    let status = StatusCode::METHOD_NOT_ALLOWED;
    Refusal::new(status, Code::MethodNotAllowed, message).into_response(Api::Chat)
}
