//! Answers of the proxy itself, in the shape of the provider's errors, so that OpenCode shows them
//! as it shows theirs.

use super::{breaker::Loop, code::Code, ledger::Exhausted, target::Api};
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use contract::event::TurnError;
use http::StatusCode;
use serde_json::json;

/// What the proxy says of a provider that is not there; the end of a turn is named after it.
pub(crate) const UNREACHABLE: &str = "the model provider cannot be reached";
/// And of one that is silent; followed by a time.
pub(crate) const SILENT: &str = "the model provider did not begin to answer within";

/// Why a call is not answered by the provider. OpenCode repeats what is 5xx and gives up on 4xx.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// Stable, for people and tests.
    pub(crate) code: Code,
    /// Ends the turn with this: OpenCode would go on all the same, or tell it in riddles.
    pub(crate) ends_turn: Option<TurnError>,
    message: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            ends_turn: None,
            message: message.into(),
        }
    }

    /// One that ends the turn. 400, since OpenCode tries 408, 409, 429 and 5xx again, and takes 401, 402
    /// and 403 for a refused key.
    fn fatal(turn: TurnError, code: Code, message: impl Into<String>) -> Self {
        Self {
            ends_turn: Some(turn),
            ..Self::new(StatusCode::BAD_REQUEST, code, message)
        }
    }

    /// For people.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn budget(exhausted: &Exhausted) -> Self {
        let message = exhausted.message();
        Self::fatal(TurnError::BudgetExhausted, Code::BudgetExhausted, message)
    }

    pub(crate) fn unpriced(model: &str) -> Self {
        let message = super::target::unpriced(model);
        Self::fatal(TurnError::ModelUnpriced, Code::ModelUnpriced, message)
    }

    pub(crate) fn looping(why: Loop) -> Self {
        Self::fatal(TurnError::CallLoop, why.code(), why.message())
    }

    pub(crate) fn unrecorded() -> Self {
        let message = "the audit log of model calls cannot be written, so no call is made: free space on the \
                       volume of the journal, or enlarge it, then send the prompt again";
        Self::fatal(TurnError::DiskFull, Code::AuditUnwritable, message)
    }

    pub(crate) fn endpoint_changed(provider: &str) -> Self {
        let message = format!(
            "the endpoint of provider {provider:?} was changed while the turn ran, and its key goes only to the \
             endpoint declared now: send the prompt again"
        );
        Self::fatal(TurnError::EndpointChanged, Code::EndpointChanged, message)
    }

    /// Trying again helps nobody.
    pub(crate) fn untrusted(host: &str) -> Self {
        let message = format!(
            "the certificate of {host} is not trusted: name its authority in spec.network.extraCABundle, or check \
             providers[].endpoint"
        );
        Self::fatal(
            TurnError::ProviderUnreachable,
            Code::UntrustedCertificate,
            message,
        )
    }

    pub(crate) fn garbled(status: StatusCode, what: &str) -> Self {
        let message = format!(
            "the model's provider answered {} with {what}, which is no answer of a model: check \
             providers[].endpoint and what stands between",
            status.as_u16()
        );
        Self::fatal(TurnError::ProviderGarbled, Code::BadAnswer, message)
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::InvalidRequest, message)
    }

    pub(crate) fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Code::PayloadTooLarge,
            format!("the request is larger than {} MiB", super::BODY_MAX >> 20),
        )
    }

    pub(crate) fn unknown_model(alias: &str) -> Self {
        let alias: String = alias.chars().take(64).collect();
        Self::new(
            StatusCode::NOT_FOUND,
            Code::ModelNotFound,
            format!("the model proxy knows no model {alias:?}"),
        )
    }

    pub(crate) fn no_target() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            Code::SessionNotFound,
            "the model proxy has no model of this API for this session",
        )
    }

    pub(crate) fn key_missing(provider: &str) -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            Code::KeyMissing,
            format!(
                "the key of provider {provider:?} is missing or cannot be used: check its Secret"
            ),
        )
    }

    pub(crate) fn key_forgotten() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            Code::KeyRequired,
            "the key that came with this session is gone since a restart: send api_key again with \
             the next turn",
        )
    }

    pub(crate) fn busy() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Code::Busy,
            "too many large requests to models at once",
        )
    }

    pub(crate) fn timeout(seconds: u64) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            Code::Timeout,
            format!("{SILENT} {seconds} s"),
        )
    }

    pub(crate) fn upstream(code: Code, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, code, message)
    }

    /// The answer for callers of this API.
    pub(crate) fn into_response(self, api: Api) -> Response {
        let Self {
            status,
            code,
            ends_turn: _,
            message,
        } = self;
        let body = match api {
            Api::Messages => json!({
                "type": "error",
                "error": {"type": anthropic_type(status), "message": message},
            }),
            Api::Chat | Api::Responses => {
                let kind = if status.is_server_error() {
                    "server_error"
                } else {
                    "invalid_request_error"
                };
                json!({"error": {"message": message, "type": kind, "param": null, "code": code.as_str()}})
            }
        };
        (status, Json(body)).into_response()
    }
}

/// <https://docs.anthropic.com/en/api/errors>
fn anthropic_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        404 => "not_found_error",
        413 => "request_too_large",
        503 => "overloaded_error",
        504 => "timeout_error",
        500..=599 => "api_error",
        _ => "invalid_request_error",
    }
}
