//! Where a session's model calls go. Resolved once per session from the pod's configuration and
//! what the request wants; every wrong field is named.

use super::{
    alias,
    endpoint::{self, Endpoint},
};
use crate::keys::ProviderKeys;
use contract::{
    error::FieldError,
    pod::{ModelChoice, PodConfig, ProviderConfig, ProviderKind},
    session::{ModelConfig, Provider},
    spend::Price,
};
use secrecy::{ExposeSecret, SecretString};
use std::fmt;
use url::Url;

/// Longest model name, in bytes.
const MODEL_MAX: usize = 256;
/// Longest key of a request, in bytes.
const KEY_MAX: usize = 16 * 1024;
/// Most tokens of one answer that may be configured.
const TOKENS_MAX: u32 = 1_000_000;

/// Shape of a provider's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Api {
    /// OpenAI's responses.
    Responses,
    /// Anthropic's messages.
    Messages,
    /// OpenAI's chat completions.
    Chat,
}

impl Api {
    pub(crate) const ALL: [Self; 3] = [Self::Responses, Self::Messages, Self::Chat];

    /// OpenCode's name of the provider, and first segment of the proxy's path.
    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::Responses => "responses",
            Self::Messages => "messages",
            Self::Chat => "chat",
        }
    }

    /// The SDK that OpenCode speaks it with.
    pub(crate) fn npm(self) -> &'static str {
        match self {
            Self::Responses => "@ai-sdk/openai",
            Self::Messages => "@ai-sdk/anthropic",
            Self::Chat => "@ai-sdk/openai-compatible",
        }
    }

    /// What comes after a base URL.
    pub(crate) fn operation(self) -> &'static str {
        match self {
            Self::Responses => "responses",
            Self::Messages => "messages",
            Self::Chat => "chat/completions",
        }
    }

    fn kind(self) -> ProviderKind {
        match self {
            Self::Responses => ProviderKind::Openai,
            Self::Messages => ProviderKind::Anthropic,
            Self::Chat => ProviderKind::Compatible,
        }
    }

    /// As users write it.
    pub(super) fn vendor(self) -> &'static str {
        match self {
            Self::Responses => "openai",
            Self::Messages => "anthropic",
            Self::Chat => "local",
        }
    }
}

impl From<ProviderKind> for Api {
    fn from(kind: ProviderKind) -> Self {
        match kind {
            ProviderKind::Openai => Self::Responses,
            ProviderKind::Anthropic => Self::Messages,
            ProviderKind::Compatible => Self::Chat,
        }
    }
}

impl From<Provider> for Api {
    fn from(provider: Provider) -> Self {
        match provider {
            Provider::Openai => Self::Responses,
            Provider::Anthropic => Self::Messages,
            Provider::Local => Self::Chat,
        }
    }
}

/// Whose key is used.
#[derive(Clone, Debug)]
pub(crate) enum KeySource {
    /// The mounted key of the pod's provider of this name.
    Provider(String),
    /// The key that came with the request; in memory only.
    Request(SecretString),
    /// It came with a request and is gone since a restart.
    Forgotten,
}

/// A model, where it is and how it is asked.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) api: Api,
    /// Base URL without a slash at the end of its path, as in `https://api.openai.com/v1`.
    pub(crate) base: Url,
    pub(crate) key: KeySource,
    /// The pod's provider of this endpoint, if it declares one.
    pub(crate) provider: Option<String>,
    /// Name at the provider.
    pub(crate) model: String,
    pub(crate) temperature: Option<f64>,
    pub(crate) max_tokens: Option<u32>,
    /// Tokens that fit, where the pod's configuration says.
    pub(crate) context_window: Option<u32>,
}

impl Target {
    /// What `wanted` (or the pod's own model) means in this pod.
    ///
    /// A mounted key goes only to the endpoint declared for it: whoever names another endpoint
    /// brings a key.
    pub(crate) fn resolve(
        pod: &PodConfig,
        wanted: Option<&ModelConfig>,
    ) -> Result<Self, Vec<FieldError>> {
        match (wanted, &pod.model) {
            (Some(wanted), _) => Self::of_request(pod, wanted, wanted.api_key.is_some())?
                .affordable(pod, "model_config.model"),
            (None, Some(choice)) => Self::of_choice(pod, choice)?.affordable(pod, "spec.model"),
            (None, None) => Err(vec![FieldError::new(
                "model_config",
                "required: this pod has no model of its own; send model_config or set spec.model",
            )]),
        }
    }

    /// The same after a restart: `wanted` was stored without its key, and `had_key` says whether
    /// there was one. The key is then [`KeySource::Forgotten`] until [`Self::with_key`].
    pub(crate) fn restore(
        pod: &PodConfig,
        wanted: Option<&ModelConfig>,
        had_key: bool,
    ) -> Result<Self, Vec<FieldError>> {
        match wanted {
            Some(wanted) if had_key => {
                Self::of_request(pod, wanted, true)?.affordable(pod, "model_config.model")
            }
            _ => Self::resolve(pod, wanted),
        }
    }

    /// The pod's choice among its providers.
    pub(crate) fn of_choice(
        pod: &PodConfig,
        choice: &ModelChoice,
    ) -> Result<Self, Vec<FieldError>> {
        let mut wrong = Wrong::in_choice();
        wrong.check_model("name", &choice.name);
        wrong.check_numbers(choice.temperature, choice.max_tokens);
        let declared = pod.providers.iter().find(|p| p.name == choice.provider);
        if declared.is_none() {
            wrong.add(
                "provider",
                format!("the pod declares no provider {:?}", choice.provider),
            );
        }
        let declared = declared.and_then(|provider| {
            let context = listed(provider, &choice.name);
            if context.is_none() {
                wrong.add("name", not_listed(&[provider]));
            }
            let endpoint = endpoint::of(provider)
                .map_err(|rule| wrong.add("provider", rule))
                .ok()?;
            Some((provider, endpoint, context?))
        });
        match declared {
            Some((provider, endpoint, context_window)) if wrong.none() => Ok(Self {
                api: provider.kind.into(),
                base: endpoint.into_url(),
                key: KeySource::Provider(provider.name.clone()),
                provider: Some(provider.name.clone()),
                model: choice.name.clone(),
                temperature: choice.temperature,
                max_tokens: choice.max_tokens,
                context_window,
            }),
            _ => Err(wrong.fields),
        }
    }

    fn of_request(
        pod: &PodConfig,
        wanted: &ModelConfig,
        own_key: bool,
    ) -> Result<Self, Vec<FieldError>> {
        let api = Api::from(wanted.provider);
        let mut wrong = Wrong::in_request();
        wrong.check_model("model", &wanted.model);
        let model = match &wanted.model_version {
            None => wanted.model.clone(),
            Some(version) => {
                wrong.check_model("model_version", version);
                format!("{}-{version}", wanted.model)
            }
        };
        if model.len() > MODEL_MAX && wrong.none() {
            wrong.add(
                "model_version",
                format!("model and version: at most {MODEL_MAX} bytes"),
            );
        }
        wrong.check_numbers(wanted.temperature, wanted.max_tokens);
        if let Some(key) = &wanted.api_key {
            let key = key.expose_secret();
            if key.is_empty() || key.len() > KEY_MAX || !key.bytes().all(|b| b.is_ascii_graphic()) {
                wrong.add(
                    "api_key",
                    format!("1 to {KEY_MAX} visible ASCII characters"),
                );
            }
        }
        let place = place(
            pod,
            api,
            wanted.api_endpoint.as_deref(),
            &model,
            own_key,
            &mut wrong,
        );
        let Some(place) = place.filter(|_| wrong.none()) else {
            return Err(wrong.fields);
        };
        let key = match (&wanted.api_key, &place.provider) {
            (Some(key), _) => KeySource::Request(key.clone()),
            (None, _) if own_key => KeySource::Forgotten,
            (None, Some(provider)) => KeySource::Provider(provider.clone()),
            (None, None) => {
                wrong.add(
                    "api_key",
                    "required for an endpoint that the pod does not declare",
                );
                return Err(wrong.fields);
            }
        };
        Ok(Self {
            api,
            base: place.base.into_url(),
            key,
            provider: place.provider,
            model,
            temperature: wanted.temperature,
            max_tokens: wanted.max_tokens,
            context_window: place.context_window,
        })
    }

    /// What its model costs, where the pod's configuration says.
    pub(crate) fn price<'a>(&self, pod: &'a PodConfig) -> Option<&'a Price> {
        let name = self.provider.as_deref()?;
        let provider = pod.providers.iter().find(|p| p.name == name)?;
        provider
            .prices
            .iter()
            .find(|price| price.model == self.model)
    }

    /// Where it is, for people: the provider's name, else the host.
    pub(crate) fn place(&self) -> String {
        let host = || self.base.host_str().unwrap_or("-").to_owned();
        self.provider.clone().unwrap_or_else(host)
    }

    /// A budget of money holds only for models with a price.
    fn affordable(self, pod: &PodConfig, field: &str) -> Result<Self, Vec<FieldError>> {
        if pod.limits.budget.cost_nano_usd.is_none() || self.price(pod).is_some() {
            return Ok(self);
        }
        Err(vec![FieldError::new(field, unpriced(&self.model))])
    }

    /// The same with a key that came with a request.
    #[must_use]
    pub(crate) fn with_key(&self, key: SecretString) -> Self {
        Self {
            key: KeySource::Request(key),
            ..self.clone()
        }
    }

    /// OpenCode's names for it: provider and model.
    pub(crate) fn opencode_model(&self) -> (&'static str, &'static str) {
        (self.api.id(), alias::for_context(self.context_window))
    }

    /// For people, as in `anthropic/claude-x`.
    pub(crate) fn label(&self) -> String {
        format!("{}/{}", self.api.vendor(), self.model)
    }

    /// The provider whose mounted key is not there now, if it is that that is missing.
    pub(crate) fn key_missing(&self, keys: &ProviderKeys) -> Option<String> {
        match &self.key {
            KeySource::Provider(provider) if keys.get(provider).is_none() => Some(provider.clone()),
            KeySource::Provider(_) | KeySource::Request(_) | KeySource::Forgotten => None,
        }
    }
}

/// What to do about a model without a price in a pod with a budget of money.
pub(crate) fn unpriced(model: &str) -> String {
    format!(
        "model {model:?} has no price, and this pod has a budget of money (limits.budget.costUSD): add it to \
         providers[].prices of its provider, or use a model that is there"
    )
}

/// Where a request's calls go, before its key is decided.
struct Place {
    base: Endpoint,
    /// Provider whose mounted key may go there.
    provider: Option<String>,
    context_window: Option<u32>,
}

/// Finds the endpoint. Adds to `wrong` and answers `None` where there is none to be had.
fn place(
    pod: &PodConfig,
    api: Api,
    api_endpoint: Option<&str>,
    model: &str,
    own_key: bool,
    wrong: &mut Wrong,
) -> Option<Place> {
    let of_kind = pod.providers.iter().filter(|p| p.kind == api.kind());
    let asked = match api_endpoint.map(Endpoint::parse) {
        Some(Err(rule)) => {
            wrong.add("api_endpoint", rule);
            return None;
        }
        Some(Ok(endpoint)) => Some(endpoint),
        None => None,
    };
    let candidates: Vec<_> = match &asked {
        None => of_kind.collect(),
        Some(asked) => of_kind
            .filter(|p| endpoint::of(p).is_ok_and(|declared| declared == *asked))
            .collect(),
    };
    if let Some((provider, context_window)) = candidates
        .iter()
        .find_map(|p| Some((*p, listed(p, model)?)))
    {
        return match endpoint::of(provider) {
            Ok(base) => Some(Place {
                base,
                provider: Some(provider.name.clone()),
                context_window,
            }),
            Err(rule) => {
                wrong.add("provider", rule);
                None
            }
        };
    }
    if !candidates.is_empty() {
        wrong.add("model", not_listed(&candidates));
        return None;
    }
    if !own_key {
        let (field, rule) = if asked.is_some() {
            let rule = "required: the pod declares no such endpoint for this provider, and a \
                        mounted key goes only to the endpoints declared for it";
            ("api_key", rule.to_owned())
        } else {
            let vendor = api.vendor();
            let rule = format!(
                "the pod declares no provider of kind {vendor}: declare one in spec.providers or \
                 send api_key"
            );
            ("provider", rule)
        };
        wrong.add(field, rule);
        return None;
    }
    let Some(base) = asked.or_else(|| endpoint::public(api.kind())) else {
        wrong.add(
            "api_endpoint",
            "required: provider local has no public endpoint",
        );
        return None;
    };
    Some(Place {
        base,
        provider: None,
        context_window: None,
    })
}

/// `None`: the provider does not offer the model. Otherwise its context window, where declared.
fn listed(provider: &ProviderConfig, model: &str) -> Option<Option<u32>> {
    if provider.models.is_empty() {
        return Some(None);
    }
    let found = provider.models.iter().find(|m| m.name == model)?;
    Some(found.context_window)
}

fn not_listed(providers: &[&ProviderConfig]) -> String {
    let names: Vec<_> = providers
        .iter()
        .flat_map(|p| &p.models)
        .map(|m| m.name.as_str())
        .take(20)
        .collect();
    format!("not declared by the pod, which offers {}", names.join(", "))
}

/// Wrong fields so far.
struct Wrong {
    prefix: &'static str,
    fields: Vec<FieldError>,
}

impl Wrong {
    fn in_request() -> Self {
        Self {
            prefix: "model_config",
            fields: Vec::new(),
        }
    }

    fn in_choice() -> Self {
        Self {
            prefix: "spec.model",
            fields: Vec::new(),
        }
    }

    fn none(&self) -> bool {
        self.fields.is_empty()
    }

    fn add(&mut self, field: &str, rule: impl fmt::Display) {
        let field = format!("{}.{field}", self.prefix);
        self.fields.push(FieldError::new(field, rule.to_string()));
    }

    fn check_model(&mut self, field: &str, name: &str) {
        let visible = name.bytes().all(|b| b.is_ascii_graphic());
        if name.is_empty() || name.len() > MODEL_MAX || !visible {
            self.add(field, format!("1 to {MODEL_MAX} visible ASCII characters"));
        }
    }

    fn check_numbers(&mut self, temperature: Option<f64>, max_tokens: Option<u32>) {
        if temperature.is_some_and(|t| !(0.0..=2.0).contains(&t)) {
            self.add("temperature", "0 to 2");
        }
        if max_tokens.is_some_and(|tokens| !(1..=TOKENS_MAX).contains(&tokens)) {
            self.add("max_tokens", format!("1 to {TOKENS_MAX}"));
        }
    }
}
