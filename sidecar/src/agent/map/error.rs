//! What OpenCode calls an error, for people.

use crate::agent::text::clip;
use crate::agent::wire::OcError;
use crate::proxy::{SILENT, UNREACHABLE};
use contract::event::{ErrorEvent, TurnError};
use std::borrow::Cow;

/// Longest text of an error, in bytes.
const MAX_ERROR: usize = 2 * 1024;
/// Shortest run of letters and digits that is taken for a key.
const KEY_MIN: usize = 20;

/// Somebody asked for it: not an error of the turn.
pub(super) fn is_abort(error: &OcError) -> bool {
    error.name == "MessageAbortedError"
}

/// An error with its reason and what to do next.
pub(super) fn explain(error: &OcError, fatal: bool) -> ErrorEvent {
    let words = provider_words(&error.message);
    let code = match classify(error) {
        TurnError::AgentError if words.is_some() => TurnError::ProviderError,
        code => code,
    };
    let (what, next) = sentences(code);
    let message = without_keys(first_line(words.as_deref().unwrap_or(&error.message)));
    let said = match (message.trim(), error.status_code) {
        ("", None) => String::new(),
        ("", Some(status)) => format!(" (HTTP {status})"),
        (message, None) => format!(": {}", message.trim_end_matches('.')),
        (message, Some(status)) => {
            format!(" (HTTP {status}): {}", message.trim_end_matches('.'))
        }
    };
    let room = MAX_ERROR - what.len() - next.len() - 3;
    ErrorEvent {
        error: format!("{what}{}. {next}", clip(&said, room)),
        fatal,
        code,
    }
}

/// What a provider said, where OpenCode passes its error on as it came: an event of the stream, as JSON.
fn provider_words(message: &str) -> Option<String> {
    let json: serde_json::Value = serde_json::from_str(message.trim()).ok()?;
    let words = json
        .get("message")
        .or_else(|| json.get("error")?.get("message"))?;
    words.as_str().map(str::to_owned)
}

fn sentences(code: TurnError) -> (&'static str, &'static str) {
    match code {
        TurnError::ProviderAuth => (
            "The model's provider refused the key",
            "Check the key and what it is allowed to do, then start a new turn.",
        ),
        TurnError::ProviderRateLimit => (
            "The model's provider refused because a limit of requests or money is reached",
            "Wait, or raise the limit with the provider, then start a new turn.",
        ),
        TurnError::ProviderError => (
            "The model's provider answered with an error",
            "Start a new turn; if it happens again, look at the provider's status page.",
        ),
        TurnError::ProviderUnreachable => (
            "The model's provider did not answer, or stopped in the middle of its answer",
            "Check the endpoint and the network policy, then start a new turn.",
        ),
        TurnError::ProviderGarbled => (
            "The model's provider gave answers that make no sense",
            "Check that the endpoint is a model API of the right kind.",
        ),
        TurnError::ModelNotFound => (
            "The model does not exist or may not be used",
            "Choose another model.",
        ),
        TurnError::ContextOverflow => (
            "The conversation no longer fits into the model's context",
            "Start a new session, or choose a model with a larger context.",
        ),
        TurnError::ContentFilter => (
            "The provider's content filter stopped the model",
            "Put the request in other words.",
        ),
        TurnError::DiskFull => (
            "The agent could not write its data; its volume is probably full",
            "Free space or enlarge the volume, then start a new turn.",
        ),
        TurnError::KeyRequired
        | TurnError::Rejected
        | TurnError::TurnTimeout
        | TurnError::AgentDied
        | TurnError::AgentUnresponsive
        | TurnError::AgentSilent
        | TurnError::ToolStalled
        | TurnError::Loop
        | TurnError::Interrupted
        | TurnError::AgentError
        | TurnError::ShuttingDown
        | TurnError::BudgetExhausted
        | TurnError::ModelUnpriced
        | TurnError::CallLoop
        | TurnError::EndpointChanged => (
            "OpenCode failed",
            "Start a new turn; if it happens again, start a new session.",
        ),
    }
}

fn classify(error: &OcError) -> TurnError {
    let message = error.message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    match error.name.as_str() {
        "ProviderAuthError" => return TurnError::ProviderAuth,
        "ProviderModelNotFoundError" => return TurnError::ModelNotFound,
        "ContextOverflowError" => return TurnError::ContextOverflow,
        "ContentFilterError" => return TurnError::ContentFilter,
        _ => {}
    }
    if says(&["model not found"]) {
        return TurnError::ModelNotFound;
    }
    match error.status_code {
        Some(401 | 403) => return TurnError::ProviderAuth,
        Some(402 | 429) => return TurnError::ProviderRateLimit,
        Some(404) if says(&["model"]) => return TurnError::ModelNotFound,
        Some(_)
            if says(&[
                "insufficient_quota",
                "exceeded your current quota",
                "rate limit",
            ]) =>
        {
            return TurnError::ProviderRateLimit;
        }
        // The proxy's own words.
        Some(502 | 504)
            if [UNREACHABLE, SILENT]
                .iter()
                .any(|said| error.message.contains(said)) =>
        {
            return TurnError::ProviderUnreachable;
        }
        Some(_) => return TurnError::ProviderError,
        None => {}
    }
    if says(&[
        "failed to execute statement",
        "enospc",
        "no space left",
        "disk",
    ]) {
        return TurnError::DiskFull;
    }
    if says(&[
        "timed out",
        "timeout",
        "unable to connect",
        "cannot connect",
        "connection",
        "econn",
        "enotfound",
        "socket",
        "fetch failed",
        "network",
    ]) {
        return TurnError::ProviderUnreachable;
    }
    if says(&["quota", "rate limit", "too many requests"]) {
        return TurnError::ProviderRateLimit;
    }
    match error.name.as_str() {
        "APIError" if error.retryable == Some(true) => TurnError::ProviderUnreachable,
        "APIError" | "MessageOutputLengthError" => TurnError::ProviderError,
        _ => TurnError::AgentError,
    }
}

/// The first line that says something: what follows is a stack trace.
fn first_line(message: &str) -> &str {
    message
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default()
}

/// Blots out what looks like a key: providers repeat the key they refuse. Runs of at least
/// [`KEY_MIN`] letters and digits with both in them, and all that begins like a key.
pub(crate) fn without_keys(text: &str) -> Cow<'_, str> {
    let of_key = |c: char| c.is_ascii_alphanumeric() || "-_*+/=.".contains(c);
    if !text.split(|c| !of_key(c)).any(like_key) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let (word, after) = rest.split_at(rest.find(|c| !of_key(c)).unwrap_or(rest.len()));
        clean.push_str(if like_key(word) { "[removed]" } else { word });
        let gap = after.find(of_key).unwrap_or(after.len());
        clean.push_str(&after[..gap]);
        rest = &after[gap..];
    }
    Cow::Owned(clean)
}

fn like_key(word: &str) -> bool {
    let begins = ["sk-", "sk_", "pk-", "gsk_", "xai-", "AIza", "AKIA", "ghp_"];
    if word.len() >= 8 && begins.iter().any(|begin| word.starts_with(begin)) {
        return true;
    }
    // A name of a model may be long, but it is made of short words; an address has dots and slashes.
    word.split(['-', '.', '/', '_'])
        .any(|run| run.len() >= KEY_MIN && run.bytes().any(|b| b.is_ascii_digit()))
        || (word.len() >= KEY_MIN && word.contains("**"))
}

#[cfg(test)]
mod tests {
    use super::provider_words;

    #[test]
    fn errors_in_mid_stream_are_the_providers_words() {
        assert_eq!(
            provider_words(r#"{"message":"Overloaded","type":"x"}"#).as_deref(),
            Some("Overloaded")
        );
        assert_eq!(
            provider_words(r#"{"error":{"message":"busy"}}"#).as_deref(),
            Some("busy")
        );
        for other in ["Overloaded", "{", "{}", "[1]", r#"{"message":3}"#] {
            assert_eq!(provider_words(other), None, "{other}");
        }
    }
}
