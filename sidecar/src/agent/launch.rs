//! How OpenCode is started. Pure.
//!
//! Two things guide every line: nothing may wait for a person who is not there, and nothing may be
//! fetched that nobody asked for.

use super::rules::Rules;
use crate::{
    proxy::{Api, alias},
    settings::Settings,
};
use contract::{
    pod::{EgressMode, PodConfig, ProviderKind},
    runner::{Confinement, Launch},
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The version that all of this was tried with.
const VERSION: &str = "1.18.33";
/// Relative to HOME: a catalogue of no models. OpenCode's own costs 100 MB and names models that
/// nobody here has a key for.
const MODELS_FILE: &str = ".config/opencode-operator/models.json";
/// How to start OpenCode for a pod.
///
/// `providers` is the `provider` object of OpenCode's configuration; it holds no key that is worth
/// anything. `agent_home` is HOME in the agent's container. All of it, the password included, can be
/// read by the agent's tools. TMPDIR, PATH and SHELL stay those of the container.
pub(crate) fn launch(
    settings: &Settings,
    pod: &PodConfig,
    password: &str,
    providers: Value,
    agent_home: &str,
) -> Launch {
    let home = agent_home.trim_end_matches('/');
    let config = config(settings, pod, providers);
    let mut env = BTreeMap::from([
        ("TERM", "dumb".to_owned()),
        ("OPENCODE_SERVER_PASSWORD", password.to_owned()),
        (
            "OPENCODE_CONFIG_CONTENT",
            without_substitution(&config.to_string()),
        ),
        ("OPENCODE_MODELS_PATH", format!("{home}/{MODELS_FILE}")),
        // Its database has to be on the volume of HOME, whatever the image says.
        ("XDG_CONFIG_HOME", format!("{home}/.config")),
        ("XDG_DATA_HOME", format!("{home}/.local/share")),
        ("XDG_STATE_HOME", format!("{home}/.local/state")),
        ("XDG_CACHE_HOME", format!("{home}/.cache")),
        // A volume's root may belong to root: git would refuse to look at what the agent works on.
        ("GIT_CONFIG_COUNT", "1".to_owned()),
        ("GIT_CONFIG_KEY_0", "safe.directory".to_owned()),
        ("GIT_CONFIG_VALUE_0", "*".to_owned()),
        // An image with a proxy in its environment must not send model calls through it.
        ("NO_PROXY", no_proxy(pod)),
        ("no_proxy", no_proxy(pod)),
    ]);
    if pod.egress.mode == EgressMode::ProxyOnly {
        // Whatever the image says: there is no other way out. Both spellings are in use.
        let proxy = format!("http://127.0.0.1:{}", settings.egress_port);
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            env.insert(name, proxy.clone());
        }
    }
    for flag in [
        "OPENCODE_DISABLE_AUTOUPDATE",
        "OPENCODE_DISABLE_CLAUDE_CODE",
        "OPENCODE_DISABLE_DEFAULT_PLUGINS",
        "OPENCODE_DISABLE_EXTERNAL_SKILLS",
        "OPENCODE_DISABLE_FFF",
        "OPENCODE_DISABLE_LSP_DOWNLOAD",
        "OPENCODE_DISABLE_MODELS_FETCH",
        "OPENCODE_DISABLE_PROJECT_CONFIG",
        "OPENCODE_DISABLE_SHARE",
        "OPENCODE_PURE",
    ] {
        env.insert(flag, "1".to_owned());
    }
    let port = settings.opencode_port.to_string();
    let args = [
        "serve",
        "--hostname",
        "127.0.0.1",
        "--port",
        &port,
        "--print-logs",
        "--log-level",
        "WARN",
    ];
    Launch {
        program: settings.opencode_program.to_string_lossy().into_owned(),
        args: args.map(str::to_owned).to_vec(),
        env: env
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        home_files: home_files(),
        git_init: true,
        confinement: Confinement {
            api_port: settings.port,
            proxy_port: settings.proxy_port,
            egress_port: settings.egress_port,
            opencode_port: settings.opencode_port,
            egress: pod.egress.mode,
        },
    }
}

fn config(settings: &Settings, pod: &PodConfig, providers: Value) -> Value {
    let names: Vec<&String> = providers
        .as_object()
        .into_iter()
        .flat_map(Map::keys)
        .collect();
    let mut config = json!({
        "autoupdate": false,
        "share": "disabled",
        "snapshot": true,
        // Both would start programs that the workspace brings along, beside the tools' own domain.
        "formatter": false,
        "lsp": false,
        "enabled_providers": names,
        // OpenCode's defaults ask before it reads an `.env` or a folder outside, or when a call repeats:
        // nobody may be there, so only what the pod's rules put to people is asked.
        "permission": Rules::of(pod, None).for_configuration(),
        "instructions": instructions(settings, pod),
        "mcp": mcp(pod),
    });
    // Every prompt names its model; this is for what OpenCode does on its own.
    if let Some(provider) = default_provider(pod, &providers) {
        let model = Value::String(format!("{provider}/{}", alias::SMALL));
        config["model"] = model.clone();
        config["small_model"] = model;
    }
    config["provider"] = providers;
    config
}

/// The provider of the small model, else of the model, else the first one.
fn default_provider(pod: &PodConfig, providers: &Value) -> Option<String> {
    let choice = pod.small_model.as_ref().or(pod.model.as_ref());
    let declared =
        choice.and_then(|choice| pod.providers.iter().find(|p| p.name == choice.provider));
    let wanted = declared
        .or(pod.providers.first())
        .map(|provider| match provider.kind {
            ProviderKind::Openai => Api::Responses.id(),
            ProviderKind::Anthropic => Api::Messages.id(),
            ProviderKind::Compatible => Api::Chat.id(),
        });
    let all = providers.as_object()?;
    wanted
        .filter(|id| all.contains_key(*id))
        .map(str::to_owned)
        .or_else(|| all.keys().next().cloned())
}

fn instructions(settings: &Settings, pod: &PodConfig) -> Vec<String> {
    if pod.instructions.is_empty() {
        let default = settings.workspace_dir.join("AGENTS.md");
        return vec![default.to_string_lossy().into_owned()];
    }
    // Anything else would be looked up in the workspace's parents or fetched from the network.
    pod.instructions
        .iter()
        .filter(|path| path.starts_with('/'))
        .cloned()
        .collect()
}

fn mcp(pod: &PodConfig) -> Value {
    let servers = pod.mcp_servers.iter().map(|server| {
        // Nobody is there to log in with a browser.
        let value = json!({"type": "remote", "url": server.url, "enabled": true, "oauth": false});
        (server.name.clone(), value)
    });
    Value::Object(servers.collect())
}

fn no_proxy(pod: &PodConfig) -> String {
    let own = ["127.0.0.1", "localhost", "::1"];
    // Those of the way to the models: with no way but the egress proxy nothing else is reached directly.
    let theirs = pod
        .no_proxy
        .as_deref()
        .filter(|_| pod.egress.mode == EgressMode::Open);
    let all: Vec<&str> = own.into_iter().chain(theirs).collect();
    all.join(",")
}

fn home_files() -> BTreeMap<String, String> {
    // With this lock and the folder OpenCode holds its plugin package for installed; without them it
    // asks the npm registry for it.
    let lock = json!({"packages": {"": {"dependencies": {"@opencode-ai/plugin": VERSION}}}});
    BTreeMap::from([
        (
            ".config/opencode/package-lock.json".to_owned(),
            lock.to_string(),
        ),
        (
            ".config/opencode/node_modules/.keep".to_owned(),
            String::new(),
        ),
        (MODELS_FILE.to_owned(), "{}".to_owned()),
    ])
}

/// OpenCode replaces `{env:NAME}` and `{file:PATH}` in the text of its configuration before it parses
/// it. What users wrote is meant as it stands.
fn without_substitution(json: &str) -> String {
    json.replace("{env:", "\\u007benv:")
        .replace("{file:", "\\u007bfile:")
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::pod::{McpServer, ToolAction, ToolRule};

    fn settings() -> Settings {
        <Settings as clap::Parser>::parse_from([
            "sidecar",
            "--opencode-port",
            "14096",
            "--workspace-dir",
            "/w",
        ])
    }

    fn tools(rules: &[(&str, ToolAction)]) -> PodConfig {
        let tools = rules.iter().map(|(name, action)| ToolRule {
            name: (*name).into(),
            action: *action,
        });
        PodConfig {
            tools: tools.collect(),
            ..PodConfig::default()
        }
    }

    fn content(pod: &PodConfig) -> Value {
        let launch = launch(
            &settings(),
            pod,
            "pw",
            alias::opencode_providers(3004),
            "/h/",
        );
        serde_json::from_str(&launch.env["OPENCODE_CONFIG_CONTENT"]).unwrap()
    }

    #[test]
    fn starts_on_loopback_with_everything_in_home() {
        let launch = launch(&settings(), &PodConfig::default(), "pw", json!({}), "/h/");
        assert_eq!(
            launch.args.join(" "),
            "serve --hostname 127.0.0.1 --port 14096 --print-logs --log-level WARN"
        );
        assert_eq!(launch.env["OPENCODE_SERVER_PASSWORD"], "pw");
        assert_eq!(
            launch.env["OPENCODE_MODELS_PATH"],
            format!("/h/{MODELS_FILE}")
        );
        assert_eq!(launch.home_files[MODELS_FILE], "{}");
        assert_eq!(launch.env["XDG_DATA_HOME"], "/h/.local/share");
        assert!(launch.git_init);
        assert_eq!(launch.confinement.opencode_port, 14096);
        // OpenCode dies of an empty flag.
        assert!(launch.env.iter().all(|(_, value)| !value.is_empty()));
        assert!(
            launch
                .home_files
                .keys()
                .all(|path| !path.starts_with('/') && !path.contains(".."))
        );
    }

    #[test]
    fn nothing_asks_and_only_our_providers_exist() {
        let config = content(&PodConfig::default());
        assert_eq!(
            config["permission"],
            json!({"*": "allow", "doom_loop": "allow", "external_directory": "allow", "question": "deny"})
        );
        let enabled: Vec<&str> = config["enabled_providers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_str().unwrap())
            .collect();
        let given: Vec<&str> = config["provider"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(enabled, given);
        assert!(!given.is_empty());
        assert!(config["small_model"].as_str().unwrap().ends_with("/small"));
        assert_eq!(config["instructions"], json!(["/w/AGENTS.md"]));
    }

    #[test]
    fn the_pods_rules_hold_and_questions_never_do() {
        let pod = tools(&[
            ("write", ToolAction::Ask),
            ("question", ToolAction::Allow),
            ("web*", ToolAction::Deny),
        ]);
        let config = content(&pod);
        assert_eq!(config["permission"]["edit"], "ask");
        assert_eq!(config["permission"]["web*"], "deny");
        assert_eq!(config["permission"]["question"], "deny");
        assert_eq!(
            content(&tools(&[("*", ToolAction::Ask)]))["permission"]["external_directory"],
            "ask"
        );
    }

    #[test]
    fn users_text_is_never_substituted_nor_fetched() {
        let pod = PodConfig {
            instructions: vec![
                "/x/{env:HOME}".into(),
                "https://example.com/x".into(),
                "rel.md".into(),
            ],
            mcp_servers: vec![McpServer {
                name: "docs".into(),
                url: "http://mcp/{file:/etc/passwd}".into(),
            }],
            ..PodConfig::default()
        };
        let launch = launch(&settings(), &pod, "pw", json!({}), "/h");
        let text = &launch.env["OPENCODE_CONFIG_CONTENT"];
        assert!(!text.contains("{env:") && !text.contains("{file:"));
        let config: Value = serde_json::from_str(text).unwrap();
        assert_eq!(config["instructions"], json!(["/x/{env:HOME}"]));
        assert_eq!(
            config["mcp"]["docs"]["url"],
            "http://mcp/{file:/etc/passwd}"
        );
        assert_eq!(config["mcp"]["docs"]["type"], "remote");
    }

    #[test]
    fn equal_configurations_make_equal_launches() {
        let make = || {
            launch(
                &settings(),
                &tools(&[("bash", ToolAction::Ask)]),
                "pw",
                alias::opencode_providers(1),
                "/h",
            )
        };
        assert_eq!(make(), make());
    }
}
