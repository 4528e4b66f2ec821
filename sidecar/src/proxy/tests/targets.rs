//! Where calls may go, and which key goes there.

use crate::proxy::{Api, Target, target::KeySource};
use contract::{
    pod::{Model, ModelChoice, PodConfig, ProviderConfig, ProviderKind},
    session::ModelConfig,
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

fn pod() -> PodConfig {
    let provider = |name: &str, kind, endpoint: Option<&str>, models: &[&str]| ProviderConfig {
        name: name.into(),
        kind,
        endpoint: endpoint.map(Into::into),
        models: models
            .iter()
            .map(|name| Model {
                name: (*name).into(),
                context_window: Some(210_000),
            })
            .collect(),
        prices: Vec::new(),
    };
    PodConfig {
        providers: vec![
            provider("oa-a", ProviderKind::Openai, None, &["gpt-a"]),
            provider(
                "oa-b",
                ProviderKind::Openai,
                Some("https://gate.test/oa/"),
                &["gpt-b"],
            ),
            provider(
                "an",
                ProviderKind::Anthropic,
                Some("https://gate.test/an"),
                &[],
            ),
        ],
        ..PodConfig::default()
    }
}

fn wanted(value: Value) -> ModelConfig {
    serde_json::from_value(value).unwrap()
}

fn resolve(pod: &PodConfig, value: Value) -> Result<Target, Vec<String>> {
    let wanted = wanted(value);
    Target::resolve(pod, Some(&wanted))
        .map_err(|fields| fields.into_iter().map(|wrong| wrong.field).collect())
}

/// Base URL, and the provider or the key itself.
fn place(target: &Target) -> (String, String) {
    let key = match &target.key {
        KeySource::Provider(name) => format!("mounted {name}"),
        KeySource::Request(key) => key.expose_secret().to_owned(),
        KeySource::Forgotten => "forgotten".into(),
    };
    (target.base.to_string(), key)
}

#[test]
fn a_mounted_key_goes_only_where_it_is_declared() {
    let pod = pod();
    let open_ai = "https://api.openai.com/v1";
    for (value, base, key) in [
        (
            json!({"provider": "openai", "model": "gpt-a"}),
            open_ai,
            "mounted oa-a",
        ),
        (
            json!({"provider": "openai", "model": "gpt-b"}),
            "https://gate.test/oa",
            "mounted oa-b",
        ),
        (
            json!({"provider": "openai", "model": "gpt-a", "api_key": "own"}),
            open_ai,
            "own",
        ),
        (
            json!({"provider": "openai", "model": "gpt-a", "api_endpoint": "https://API.openai.com:443/v1/"}),
            open_ai,
            "mounted oa-a",
        ),
        (
            json!({"provider": "openai", "model": "gpt-b", "api_endpoint": "https://gate.test/oa"}),
            "https://gate.test/oa",
            "mounted oa-b",
        ),
        (
            json!({"provider": "anthropic", "model": "any", "model_version": "2025"}),
            "https://gate.test/an",
            "mounted an",
        ),
        (
            json!({"provider": "openai", "model": "x", "api_endpoint": "http://own.test/p", "api_key": "own"}),
            "http://own.test/p",
            "own",
        ),
        (
            json!({"provider": "local", "model": "x", "api_endpoint": "http://own.test", "api_key": "own"}),
            "http://own.test/",
            "own",
        ),
    ] {
        let target = resolve(&pod, value.clone()).unwrap();
        assert_eq!(place(&target), (base.to_owned(), key.to_owned()), "{value}");
    }
    for endpoint in [
        "http://gate.test/oa",
        "https://gate.test:8443/oa",
        "https://gate.test/oa/x",
        "https://gate.test/an",
        "https://gate.test.evil.test/oa",
    ] {
        let value = json!({"provider": "openai", "model": "gpt-b", "api_endpoint": endpoint});
        assert_eq!(
            resolve(&pod, value).unwrap_err(),
            ["model_config.api_key"],
            "{endpoint}"
        );
    }
}

#[test]
fn without_declared_providers_requests_bring_everything() {
    let pod = PodConfig::default();
    for (provider, base) in [
        ("openai", "https://api.openai.com/v1"),
        ("anthropic", "https://api.anthropic.com/v1"),
    ] {
        let target = resolve(
            &pod,
            json!({"provider": provider, "model": "m", "api_key": "own"}),
        )
        .unwrap();
        assert_eq!(place(&target), (base.to_owned(), "own".to_owned()));
        assert_eq!(target.opencode_model().1, "c128k");
        let none = resolve(&pod, json!({"provider": provider, "model": "m"}));
        assert_eq!(none.unwrap_err(), ["model_config.provider"]);
    }
    let local = resolve(
        &pod,
        json!({"provider": "local", "model": "m", "api_key": "own"}),
    );
    assert_eq!(local.unwrap_err(), ["model_config.api_endpoint"]);
    let none = Target::resolve(&pod, None).unwrap_err();
    assert!(none[0].rule.contains("spec.model"), "{none:?}");
}

#[test]
fn every_wrong_field_is_named() {
    let value = json!({
        "provider": "openai", "model": "gp t", "model_version": "", "api_key": "with space",
        "temperature": 2.1, "max_tokens": 0, "api_endpoint": "https://user@gate.test/"
    });
    assert_eq!(
        resolve(&pod(), value).unwrap_err(),
        [
            "model",
            "model_version",
            "temperature",
            "max_tokens",
            "api_key",
            "api_endpoint"
        ]
        .map(|field| format!("model_config.{field}"))
    );
    for (field, bad) in [
        ("model", json!("gpt-c")),
        ("model", json!("")),
        ("model", json!("m".repeat(257))),
        ("model", json!("gpt-a\r\nx: y")),
        ("model_version", json!("é")),
        ("model_version", json!("v".repeat(255))),
        ("temperature", json!(-0.1)),
        ("temperature", json!(1e300)),
        ("max_tokens", json!(1_000_001)),
        ("api_key", json!("")),
        ("api_key", json!("line\nbreak")),
        ("api_key", json!("k".repeat(20_000))),
        ("api_endpoint", json!("gate.test")),
        ("api_endpoint", json!("https://gate.test/?q")),
        ("api_endpoint", json!("https://gate.test/#f")),
    ] {
        let mut value = json!({"provider": "openai", "model": "gpt-a"});
        value[field] = bad.clone();
        let wrong = resolve(&pod(), value).unwrap_err();
        let named = wrong.contains(&format!("model_config.{field}"));
        assert!(named, "{field} {bad}: {wrong:?}");
    }
    let version = json!({"provider": "openai", "model": "gpt", "model_version": "a"});
    assert_eq!(resolve(&pod(), version).unwrap().model, "gpt-a");
    let undeclared = json!({"provider": "openai", "model": "gpt-a", "model_version": "1"});
    assert_eq!(
        resolve(&pod(), undeclared).unwrap_err(),
        ["model_config.model"]
    );
}

#[test]
fn the_pods_choice_is_held_to_its_providers() {
    let choice = |provider: &str, name: &str| PodConfig {
        model: Some(ModelChoice {
            provider: provider.into(),
            name: name.into(),
            temperature: Some(0.5),
            max_tokens: Some(9),
        }),
        ..pod()
    };
    let target = Target::resolve(&choice("oa-b", "gpt-b"), None).unwrap();
    assert_eq!(
        (target.temperature, target.max_tokens),
        (Some(0.5), Some(9))
    );
    assert_eq!(target.opencode_model(), ("responses", "c200k"));
    assert_eq!(target.label(), "openai/gpt-b");
    for (provider, name, field) in [
        ("oa-b", "gpt-a", "spec.model.name"),
        ("nobody", "gpt-a", "spec.model.provider"),
        ("an", "", "spec.model.name"),
    ] {
        let wrong = Target::resolve(&choice(provider, name), None).unwrap_err();
        assert_eq!(wrong[0].field, field);
    }
    let mut bad = choice("an", "x");
    bad.providers[2].endpoint = Some("https://u:SECRET@gate.test".into());
    let wrong = Target::resolve(&bad, None).unwrap_err();
    assert!(!wrong[0].rule.contains("SECRET"));
    bad.providers[2].kind = ProviderKind::Compatible;
    bad.providers[2].endpoint = None;
    assert!(
        Target::resolve(&bad, None).unwrap_err()[0]
            .rule
            .contains("needs an endpoint")
    );
}

#[test]
fn a_key_that_came_with_a_request_is_forgotten_by_a_restart() {
    let value = json!({"provider": "local", "model": "x", "api_endpoint": "http://own.test"});
    let stored = wanted(value);
    let target = Target::restore(&PodConfig::default(), Some(&stored), true).unwrap();
    assert_eq!(place(&target).1, "forgotten");
    assert_eq!(target.api, Api::Chat);
    let again = target.with_key("own-again".into());
    assert_eq!(place(&again).1, "own-again");
    assert!(Target::restore(&PodConfig::default(), Some(&stored), false).is_err());
    // A declared endpoint gives its mounted key to nobody who came with their own.
    let stored = wanted(json!({"provider": "anthropic", "model": "x"}));
    let target = Target::restore(&pod(), Some(&stored), true).unwrap();
    assert_eq!(place(&target).1, "forgotten");
}

#[test]
fn a_budget_of_money_refuses_models_without_a_price() {
    let mut pod = pod();
    pod.limits.budget.cost_nano_usd = Some(1);
    let wanted = json!({"provider": "openai", "model": "gpt-a"});
    assert_eq!(
        resolve(&pod, wanted.clone()).unwrap_err(),
        ["model_config.model"]
    );
    let elsewhere = json!({"provider": "openai", "model": "gpt-a", "api_key": "sk-own",
        "api_endpoint": "https://elsewhere.test/v1"});
    assert_eq!(
        resolve(&pod, elsewhere).unwrap_err(),
        ["model_config.model"]
    );
    pod.providers[0].prices.push(contract::spend::Price {
        model: "gpt-a".into(),
        input: 1,
        output: 2,
        cached_input: None,
        cache_write: None,
    });
    let target = resolve(&pod, wanted).unwrap();
    assert_eq!(target.price(&pod).unwrap().output, 2);
    assert_eq!(target.place(), "oa-a");
    pod.model = Some(ModelChoice {
        provider: "oa-a".into(),
        name: "gpt-b".into(),
        temperature: None,
        max_tokens: None,
    });
    pod.providers[0].models.clear();
    let wrong = Target::resolve(&pod, None).unwrap_err();
    assert_eq!(wrong[0].field, "spec.model");
    assert!(
        wrong[0].rule.contains("providers[].prices"),
        "{:?}",
        wrong[0]
    );
}
