//! Where models come from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A provider of models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "self.kind != 'compatible' || has(self.endpoint)",
        "message": "a provider of kind compatible needs an endpoint, as in https://models.example.com/v1",
    },
]))]
pub struct Provider {
    /// Name of this entry, unique in the list: lowercase letters, digits and dashes.
    #[schemars(
        length(min = 1, max = 40),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,

    /// Which API it speaks.
    pub kind: ProviderKind,

    /// Base URL of its API. Default: the public one of the kind; `compatible` has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 1024),
        extend("x-kubernetes-validations" = [
            {
                "rule": "isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != ''",
                "message": "must be an http or https URL, as in https://models.example.com/v1",
            },
            {
                "rule": "!self.contains('@') && !self.contains('?') && !self.contains('#')",
                "message": "must not contain user info, a query or a fragment; put the key into the Secret of apiKeySecretRef",
            },
        ])
    )]
    pub endpoint: Option<String>,

    /// The key of a Secret in this namespace that holds the API key. It may appear later: the session
    /// waits and goes on by itself.
    pub api_key_secret_ref: SecretKeyRef,

    /// Models that may be used. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub models: Vec<ProviderModel>,

    /// What its models cost. Used for `status.usage.costUSD` and for `limits.budget.costUSD`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["model"])
    )]
    pub prices: Vec<Price>,
}

/// What a model costs, in USD per million tokens: decimal numbers as text, with at most six decimals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Price {
    /// Name of the model at the provider.
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = r"^[A-Za-z0-9][-._:/@+A-Za-z0-9]*$")
    )]
    pub model: String,

    /// Of tokens sent, as in `"0.25"`.
    #[schemars(
        length(min = 1, max = 14),
        regex(pattern = r"^(1000000|[0-9]{1,6}(\.[0-9]{1,6})?)$")
    )]
    pub input_per_million: String,

    /// Of tokens received, as in `"2"`.
    #[schemars(
        length(min = 1, max = 14),
        regex(pattern = r"^(1000000|[0-9]{1,6}(\.[0-9]{1,6})?)$")
    )]
    pub output_per_million: String,

    /// Of tokens read from the provider's cache. Default: as `inputPerMillion`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 14),
        regex(pattern = r"^(1000000|[0-9]{1,6}(\.[0-9]{1,6})?)$")
    )]
    pub cached_input_per_million: Option<String>,

    /// Of tokens written to the provider's cache. Default: a quarter more than
    /// `inputPerMillion`, as Anthropic asks for five minutes. Those kept for an hour cost at least twice `inputPerMillion`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 14),
        regex(pattern = r"^(1000000|[0-9]{1,6}(\.[0-9]{1,6})?)$")
    )]
    pub cache_write_per_million: Option<String>,
}

/// Which API a provider speaks: `openai` (responses), `anthropic` (messages) or `compatible` (OpenAI's
/// chat completions, as most other servers offer).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    #[expect(
        missing_docs,
        reason = "a doc comment would turn the enum's schema into a oneOf"
    )]
    Openai,
    #[expect(missing_docs, reason = "see above")]
    Anthropic,
    #[expect(missing_docs, reason = "see above")]
    Compatible,
}

/// A key of a Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub name: String,

    /// Key in the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// A model that a provider offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProviderModel {
    /// Its name at the provider.
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = r"^[A-Za-z0-9][-._:/@+A-Za-z0-9]*$")
    )]
    pub name: String,

    /// Tokens that fit into its context, for models that OpenCode does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 100_000_000))]
    pub context_window: Option<i32>,
}

/// A model chosen from a provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// Name of an entry of `providers`.
    #[schemars(
        length(min = 1, max = 40),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub provider: String,

    /// Its name at the provider.
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = r"^[A-Za-z0-9][-._:/@+A-Za-z0-9]*$")
    )]
    pub name: String,

    /// How freely it answers, 0 to 2. Default: the provider's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2))]
    pub temperature: Option<f64>,

    /// Most tokens of one answer. Default: the provider's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_tokens: Option<i32>,
}
