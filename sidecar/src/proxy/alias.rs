//! The static names under which OpenCode knows models. OpenCode's configuration is fixed per
//! process, so the names say only what OpenCode must know: the API's shape and how much fits.

use super::target::Api;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// For titles and summaries.
pub(crate) const SMALL: &str = "small";
/// Used where nobody said how much fits.
const DEFAULT: &str = "c128k";
/// Aliases by the tokens that fit, ascending.
const BY_CONTEXT: [(&str, u32); 5] = [
    ("c32k", 32_000),
    (DEFAULT, 128_000),
    ("c200k", 200_000),
    ("c400k", 400_000),
    ("c1m", 1_000_000),
];
/// Most tokens of an answer that OpenCode asks for where nothing is configured.
const OUTPUT_MAX: u32 = 32_000;
/// How much longer than the proxy OpenCode waits: the proxy's own error is to arrive first.
const PATIENCE: Duration = Duration::from_secs(15);

/// The alias of a model with this context window: the largest that is no larger, so that OpenCode
/// compacts before the provider refuses.
pub(crate) fn for_context(window: Option<u32>) -> &'static str {
    let Some(window) = window else {
        return DEFAULT;
    };
    BY_CONTEXT
        .iter()
        .rev()
        .find(|(_, context)| *context <= window)
        .map_or(BY_CONTEXT[0].0, |(alias, _)| alias)
}

/// Whether OpenCode was told this name.
pub(crate) fn is_known(alias: &str) -> bool {
    alias == SMALL || BY_CONTEXT.iter().any(|(known, _)| *known == alias)
}

/// The `provider` object of OpenCode's configuration, for the default time-outs of [`crate::settings`].
#[cfg(test)]
pub(crate) fn opencode_providers(proxy_port: u16) -> Value {
    let default = Duration::from_secs(120);
    opencode_providers_with(proxy_port, default, default)
}

/// The same for other time-outs of the proxy.
pub(crate) fn opencode_providers_with(
    proxy_port: u16,
    header_timeout: Duration,
    chunk_timeout: Duration,
) -> Value {
    let millis = |timeout: Duration| (timeout + PATIENCE).as_millis();
    let providers = Api::ALL.map(|api| {
        let provider = json!({
            "npm": api.npm(),
            "name": api.id(),
            "options": {
                "baseURL": format!("http://127.0.0.1:{proxy_port}/{}/v1", api.id()),
                "apiKey": "not-a-key",
                "headerTimeout": u64::try_from(millis(header_timeout)).unwrap_or(u64::MAX),
                "chunkTimeout": u64::try_from(millis(chunk_timeout)).unwrap_or(u64::MAX),
            },
            "models": models(),
        });
        (api.id().to_owned(), provider)
    });
    Value::Object(providers.into_iter().collect())
}

fn models() -> Value {
    let small = (SMALL, 128_000);
    let models: Map<String, Value> = std::iter::once(&small)
        .chain(&BY_CONTEXT)
        .map(|&(alias, context)| (alias.to_owned(), model(alias, context)))
        .collect();
    Value::Object(models)
}

fn model(alias: &str, context: u32) -> Value {
    json!({
        "name": alias,
        "tool_call": true,
        "temperature": true,
        // OpenCode compacts once `context - output` is used: with a quarter at the most, three
        // quarters of a small window stay for the conversation.
        "limit": {"context": context, "output": OUTPUT_MAX.min(context / 4)},
        "cost": {"input": 0, "output": 0},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alias_never_promises_more_than_fits() {
        for (window, alias) in [
            (None, "c128k"),
            (Some(0), "c32k"),
            (Some(8_192), "c32k"),
            (Some(32_768), "c32k"),
            (Some(127_999), "c32k"),
            (Some(131_072), "c128k"),
            (Some(200_000), "c200k"),
            (Some(399_999), "c200k"),
            (Some(400_000), "c400k"),
            (Some(1_048_576), "c1m"),
            (Some(u32::MAX), "c1m"),
        ] {
            assert_eq!(for_context(window), alias, "{window:?}");
            assert!(is_known(alias));
        }
        assert!(is_known("small"));
        assert!(!is_known("gpt-5"));
    }

    #[test]
    fn opencode_gets_three_providers_and_no_key() {
        let providers = opencode_providers(13_004);
        let ids: Vec<_> = providers.as_object().unwrap().keys().collect();
        assert_eq!(ids.len(), 3);
        for (id, npm) in [
            ("chat", "@ai-sdk/openai-compatible"),
            ("responses", "@ai-sdk/openai"),
            ("messages", "@ai-sdk/anthropic"),
        ] {
            let provider = &providers[id];
            assert_eq!(provider["npm"], npm);
            assert_eq!(
                provider["options"]["baseURL"],
                format!("http://127.0.0.1:13004/{id}/v1")
            );
            assert_eq!(provider["options"]["apiKey"], "not-a-key");
            assert_eq!(provider["options"]["headerTimeout"], 135_000);
            let models = provider["models"].as_object().unwrap();
            assert_eq!(models.len(), 6);
            for (alias, model) in models {
                assert!(is_known(alias));
                let context = model["limit"]["context"].as_u64().unwrap();
                let output = model["limit"]["output"].as_u64().unwrap();
                assert!(output * 4 <= context, "{alias} leaves room to talk");
                assert_eq!(model["tool_call"], true);
            }
            assert_eq!(models["c200k"]["limit"]["output"], 32_000);
        }
    }
}
