//! What the schema lets through, or let through when the object was made.

use crate::fixtures::{MINIMAL, identity, session, valid};
use contract::pod::{CheckpointMode, OnTimeout, ProviderKind, ToolAction};
use operator::session::validate::{Invalid, WorkspaceVolume, validate};

fn reason(yaml: &str) -> &'static str {
    let session: crds::OpenCodeSession = serde_saphyr::from_str(yaml).unwrap();
    validate(&identity(&session), &session)
        .unwrap_err()
        .reason()
        .as_str()
}

#[test]
fn a_minimal_session_gets_the_defaults() {
    let validated = valid(&session(""));
    assert_eq!(validated.config.limits.turn_timeout_seconds, 3600);
    assert_eq!(validated.config.limits.max_concurrent_sessions, 5);
    assert_eq!(validated.config.instructions, ["/workspace/AGENTS.md"]);
    assert_eq!(validated.config.providers[0].kind, ProviderKind::Anthropic);
    let WorkspaceVolume::Own {
        storage,
        class,
        retain,
        days,
    } = validated.workspace
    else {
        panic!()
    };
    assert_eq!(
        (storage.to_string().as_str(), class, retain, days),
        ("10Gi", None, false, None)
    );
}

#[test]
fn every_field_arrives() {
    let validated = valid(&session(
        "  smallModel: {provider: acme, name: tiny, temperature: 0.5, maxTokens: 7}
  prompt: do it
  systemPrompt: be kind
  agent: {tools: [{name: bash, action: ask}], instructions: [docs/x.md], mcpServers: [{name: m, url: 'http://m.test'}]}
  network: {proxy: {httpProxy: 'http://p.test:1', noProxy: a}, extraCABundle: {configMap: {name: cas}}}
  limits: {maxConcurrentSessions: 2, turnTimeout: 1m30s, watchdog: {toolIdle: 2m, sameCall: 0, recycleAfter: 48h}}
  approvals: {policy: [{tool: bash, pattern: 'rm *', action: deny}, {tool: edit, action: ask}], timeout: 1h, onTimeout: allow}
  checkpoints: {mode: on-demand, keep: 3, maxSize: 1Gi, includeIgnored: true}
",
    ));
    let config = validated.config;
    assert_eq!(config.small_model.unwrap().max_tokens, Some(7));
    assert_eq!(config.prompt.as_deref(), Some("do it"));
    assert_eq!(config.system_prompt.as_deref(), Some("be kind"));
    assert_eq!(config.tools[0].action, ToolAction::Ask);
    assert_eq!(config.instructions, ["/workspace/docs/x.md"]);
    assert_eq!(config.mcp_servers[0].url, "http://m.test");
    assert_eq!(
        (config.http_proxy.as_deref(), config.no_proxy.as_deref()),
        (Some("http://p.test:1"), Some("a"))
    );
    assert_eq!(config.limits.turn_timeout_seconds, 90);
    let watchdog = config.limits.watchdog;
    assert_eq!((watchdog.tool_idle_seconds, watchdog.same_call), (120, 0));
    assert_eq!(watchdog.recycle_after_seconds, 48 * 3600);
    assert_eq!((watchdog.silence_seconds, watchdog.max_steps), (600, 1000));
    let approvals = config.approvals;
    assert_eq!(approvals.policy[0].pattern.as_deref(), Some("rm *"));
    assert_eq!(
        (
            approvals.policy[1].pattern.as_deref(),
            approvals.policy[1].action
        ),
        (None, ToolAction::Ask)
    );
    assert_eq!(
        (approvals.timeout_seconds, approvals.on_timeout),
        (3600, OnTimeout::Allow)
    );
    let checkpoints = config.checkpoints;
    assert_eq!(checkpoints.mode, CheckpointMode::OnDemand);
    assert_eq!((checkpoints.keep, checkpoints.max_bytes), (3, 1 << 30));
    assert!(checkpoints.include_ignored);
    assert_eq!(validated.extra_ca.unwrap().key, "ca.crt");
    assert!(!config.prompt_consumed);
}

#[test]
fn mistakes_have_reasons() {
    let with = |more: &str| reason(&format!("{MINIMAL}{more}"));
    assert_eq!(
        with("  smallModel: {provider: nobody, name: x}\n"),
        "UnknownProvider"
    );
    assert_eq!(with("  limits: {turnTimeout: 0s}\n"), "OutOfRange");
    assert_eq!(with("  limits: {turnTimeout: 169h}\n"), "OutOfRange");
    assert_eq!(with("  limits: {turnTimeout: soon}\n"), "OutOfRange");
    assert_eq!(with("  approvals: {timeout: 0s}\n"), "OutOfRange");
    assert_eq!(
        with("  limits: {watchdog: {silence: 169h}}\n"),
        "OutOfRange"
    );
    assert_eq!(with("  checkpoints: {keep: 0}\n"), "OutOfRange");
    assert_eq!(with("  checkpoints: {maxSize: 1k}\n"), "OutOfRange");
    assert_eq!(with("  checkpoints: {maxSize: lots}\n"), "OutOfRange");
    assert_eq!(with("  limits: {maxConcurrentSessions: 0}\n"), "OutOfRange");
    assert_eq!(with("  workspace: {storage: lots}\n"), "OutOfRange");
    assert_eq!(
        with("  workspace: {existingClaim: c, storage: 1Gi}\n"),
        "ExcludedFields"
    );
    for path in ["../x", "a/../../x", "/etc/passwd", "''"] {
        assert_eq!(
            with(&format!("  agent: {{instructions: [{path}]}}\n")),
            "InstructionPathInvalid",
            "{path}"
        );
    }
    assert_eq!(
        with("  agent: {env: [{name: OPENCODE_X, value: y}]}\n"),
        "ReservedVariable"
    );
    assert_eq!(
        with("  agent: {env: [{name: A, value: y}, {name: A, value: z}]}\n"),
        "DuplicateName"
    );
    assert_eq!(
        reason(&MINIMAL.replace("quokka", &"q".repeat(53))),
        "NameTooLong"
    );
    assert_eq!(
        reason(&MINIMAL.replace("kind: anthropic", "kind: compatible")),
        "EndpointMissing"
    );
    assert_eq!(
        reason(&MINIMAL.replace("key: token}", "key: token}, models: [{name: other}]")),
        "UnknownModel"
    );
}

#[test]
fn texts_must_fit_into_an_annotation_with_their_escapes() {
    let mut long = session("");
    long.spec.prompt = Some("\u{1}".repeat(50_000));
    let error = validate(&identity(&long), &long).unwrap_err();
    assert!(
        matches!(error, Invalid::ConfigTooLarge { bytes } if bytes > 300_000),
        "{error}"
    );
}

#[test]
fn budgets_and_prices_are_counted_in_whole_numbers() {
    let priced = MINIMAL.replace(
        "kind: anthropic,",
        "kind: anthropic, prices: [{model: some-model, inputPerMillion: '3', outputPerMillion: '15.000001', cachedInputPerMillion: '0.3', cacheWritePerMillion: '3.75'}],",
    );
    assert_ne!(priced, MINIMAL);
    let limits = "  limits: {budget: {tokens: 7, costUSD: '0.25', calls: 9}, loops: {callsPerMinute: 11, sameRequest: 4}}\n";
    let session: crds::OpenCodeSession =
        serde_saphyr::from_str(&format!("{priced}{limits}")).unwrap();
    let config = valid(&session).config;
    let budget = config.limits.budget;
    assert_eq!(
        (budget.tokens, budget.cost_nano_usd, budget.calls),
        (Some(7), Some(250_000_000), Some(9))
    );
    assert_eq!(
        (
            config.limits.loops.calls_per_minute,
            config.limits.loops.same_request
        ),
        (11, 4)
    );
    let price = &config.providers[0].prices[0];
    assert_eq!(
        (
            price.input,
            price.output,
            price.cached_input,
            price.cache_write
        ),
        (3_000_000, 15_000_001, Some(300_000), Some(3_750_000))
    );
    assert!(!config.audit_content);

    assert_eq!(reason(&format!("{MINIMAL}{limits}")), "ModelUnpriced");
    let small = format!("{priced}  smallModel: {{provider: acme, name: tiny}}\n{limits}");
    assert_eq!(reason(&small), "ModelUnpriced");
    for bad in [
        "costUSD: '0'",
        "costUSD: '1e9'",
        "costUSD: '-1'",
        "tokens: 0",
        "calls: -3",
    ] {
        assert_eq!(
            reason(&format!("{priced}  limits: {{budget: {{{bad}}}}}\n")),
            "OutOfRange",
            "{bad}"
        );
    }
    assert_eq!(
        reason(&format!(
            "{MINIMAL}  limits: {{loops: {{sameRequest: 1}}}}\n"
        )),
        "OutOfRange"
    );
}
