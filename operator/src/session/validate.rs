//! From the raw spec to what the rest works with; after this nobody reads the spec.
//!
//! The schema refuses most of what is wrong when it is applied. Everything is checked here again: an
//! object may be older than a rule.

mod guard;
mod spend;

use super::names::Identity;
use crate::reason::Reason;
use contract::pod::{
    self, Egress, EgressMode, EgressRule, McpServer, ModelChoice, PodConfig, ProviderConfig,
    ProviderKind, ToolRule,
};
use crds::{
    OpenCodeSession, OpenCodeSessionSpec,
    quantity::Bytes,
    session::{
        NAME_MAX,
        agent::{self, Agent, Resources, Sidecar},
        model::{self, Provider, SecretKeyRef},
        network::{self, ConfigMapKeyRef, ExtraCaBundle, Network, Proxy},
        workspace::{
            DEFAULT_JOURNAL_STORAGE, DEFAULT_STORAGE, Journal, Retention, RetentionPolicy,
            Workspace,
        },
    },
};
use std::collections::BTreeSet;

/// Most bytes of the configuration in its annotation; all annotations of an object share 256 KiB.
pub const CONFIG_MAX: usize = 224 * 1024;

/// A session as declared, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Validated {
    /// Whose.
    pub identity: Identity,
    /// What the sidecar is told; `prompt_consumed` is not known here and false.
    pub config: PodConfig,
    /// Where the work lies.
    pub workspace: WorkspaceVolume,
    /// The agent's image, if not the operator's own.
    pub agent_image: Option<String>,
    /// Names of Secrets for the image's registry.
    pub image_pull_secrets: Vec<String>,
    /// Resources of the agent.
    pub agent_resources: Resources,
    /// Variables of the agent.
    pub agent_env: Vec<(String, String)>,
    /// Resources of the sidecar.
    pub sidecar_resources: Resources,
    /// Bearer token for direct access.
    pub shared_secret: Option<SecretKeyRef>,
    /// Where each provider's key lies.
    pub provider_keys: Vec<ProviderKey>,
    /// More certificate authorities.
    pub extra_ca: Option<ConfigMapKeyRef>,
    /// No pod is wanted.
    pub suspend: bool,
}

/// A provider's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderKey {
    /// Name of the provider.
    pub provider: String,
    /// Where its key lies.
    pub secret: SecretKeyRef,
}

/// Where the work lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkspaceVolume {
    /// A claim of the operator's, with the journal on it.
    Own {
        /// Size.
        storage: Bytes,
        /// Class, if not the default one.
        class: Option<String>,
        /// Whether it stays when the session goes.
        retain: bool,
        /// For how many days it is meant to stay.
        days: Option<i32>,
    },
    /// A claim that the user brings, and one of the operator's for the journal.
    Existing {
        /// Its name.
        claim: String,
        /// Size of the journal's claim.
        journal: Bytes,
    },
}

/// What is wrong with a spec that the API server accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The name does not leave room for children's names.
    #[error(
        "metadata.name is longer than {NAME_MAX} characters; create an object with a shorter name"
    )]
    NameTooLong,
    /// Two entries of one name.
    #[error("spec.{list} has two entries named {name:?}; rename one")]
    DuplicateName {
        /// Which list.
        list: &'static str,
        /// The name.
        name: String,
    },
    /// A model of a provider that is not declared.
    #[error(
        "spec.{field}.provider {provider:?} is no entry of spec.providers; add it or choose another"
    )]
    UnknownProvider {
        /// `model` or `smallModel`.
        field: &'static str,
        /// The provider.
        provider: String,
    },
    /// A model that its provider does not list.
    #[error(
        "spec.{field}.name {model:?} is not listed by provider {provider:?}; add it there or choose another"
    )]
    UnknownModel {
        /// `model` or `smallModel`.
        field: &'static str,
        /// The provider.
        provider: String,
        /// The model.
        model: String,
    },
    /// A compatible provider without an endpoint.
    #[error("spec.providers {provider:?} is of kind compatible and has no endpoint; set it")]
    EndpointMissing {
        /// The provider.
        provider: String,
    },
    /// A number out of its range.
    #[error("spec.{field} is out of range; {rule}")]
    OutOfRange {
        /// Path in the spec.
        field: &'static str,
        /// What is allowed.
        rule: &'static str,
    },
    /// Fields that exclude each other.
    #[error("spec.{field} excludes {other}; remove one of them")]
    Excluded {
        /// Path in the spec.
        field: &'static str,
        /// Path in the spec.
        other: &'static str,
    },
    /// A path that leaves the workspace.
    #[error(
        "spec.agent.instructions {path:?} is no path inside of the workspace; write it as in docs/rules.md"
    )]
    InstructionPath {
        /// The path.
        path: String,
    },
    /// A variable that the operator sets.
    #[error("spec.agent.env {name:?} is set by the operator; choose another name")]
    ReservedVariable {
        /// The variable.
        name: String,
    },
    /// A budget of money and a model without a price.
    #[error(
        "spec.limits.budget.costUSD needs a price for spec.{field}; add {model:?} to prices of its provider, or remove costUSD"
    )]
    ModelUnpriced {
        /// `model` or `smallModel`.
        field: &'static str,
        /// The model.
        model: String,
    },
    /// All texts together do not fit into an annotation.
    #[error(
        "prompt, systemPrompt and the rest take {bytes} bytes as JSON, at most {CONFIG_MAX} fit; put long texts into files of the workspace"
    )]
    ConfigTooLarge {
        /// How many.
        bytes: usize,
    },
}

impl Invalid {
    /// Reason of condition, Event and metric.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NameTooLong => Reason::NameTooLong,
            Self::DuplicateName { .. } => Reason::DuplicateName,
            Self::UnknownProvider { .. } => Reason::UnknownProvider,
            Self::UnknownModel { .. } => Reason::UnknownModel,
            Self::EndpointMissing { .. } => Reason::EndpointMissing,
            Self::OutOfRange { .. } => Reason::OutOfRange,
            Self::Excluded { .. } => Reason::ExcludedFields,
            Self::InstructionPath { .. } => Reason::InstructionPathInvalid,
            Self::ReservedVariable { .. } => Reason::ReservedVariable,
            Self::ModelUnpriced { .. } => Reason::ModelUnpriced,
            Self::ConfigTooLarge { .. } => Reason::ConfigTooLarge,
        }
    }
}

/// Checks a session and turns it into what the rest works with. The first mistake found is returned.
pub fn validate(identity: &Identity, session: &OpenCodeSession) -> Result<Validated, Invalid> {
    if identity.name.len() > NAME_MAX {
        return Err(Invalid::NameTooLong);
    }
    let OpenCodeSessionSpec {
        providers,
        model,
        small_model,
        prompt,
        system_prompt,
        workspace,
        journal,
        agent,
        approvals,
        checkpoints,
        network,
        sidecar,
        limits,
        suspend,
    } = &session.spec;
    let Agent {
        image,
        image_pull_secrets,
        resources: agent_resources,
        env,
        tools,
        instructions,
        mcp_servers,
    } = agent;
    let Network {
        extra_ca_bundle,
        proxy,
        egress: network::Egress {
            mode: egress_mode,
            allow,
        },
    } = network;
    let Sidecar {
        resources: sidecar_resources,
        shared_secret_ref,
    } = sidecar;

    unique("providers", providers.iter().map(|p| &p.name))?;
    unique("agent.tools", tools.iter().map(|t| &t.name))?;
    unique("agent.mcpServers", mcp_servers.iter().map(|m| &m.name))?;
    unique("agent.env", env.iter().map(|e| &e.name))?;
    for e in env {
        let reserved = ["OPENCODE_", "RUNNER_"];
        if RESERVED.contains(&e.name.as_str()) || reserved.iter().any(|p| e.name.starts_with(p)) {
            return Err(Invalid::ReservedVariable {
                name: e.name.clone(),
            });
        }
    }
    let (http_proxy, no_proxy) = match proxy {
        Some(Proxy {
            http_proxy,
            no_proxy,
        }) => (Some(http_proxy.clone()), no_proxy.clone()),
        None => (None, None),
    };
    let config = PodConfig {
        name: identity.name.clone(),
        namespace: identity.namespace.clone(),
        uid: identity.uid.clone(),
        providers: providers.iter().map(provider).collect::<Result<_, _>>()?,
        key_sources: providers.iter().map(key_source).collect(),
        model: Some(choice("model", model, providers)?),
        small_model: small_model
            .as_ref()
            .map(|m| choice("smallModel", m, providers))
            .transpose()?,
        prompt: prompt.clone(),
        prompt_consumed: false,
        system_prompt: system_prompt.clone(),
        instructions: instructions
            .iter()
            .map(|p| instruction(p))
            .collect::<Result<_, _>>()?,
        tools: tools.iter().map(tool).collect(),
        approvals: guard::approvals(approvals)?,
        checkpoints: guard::checkpoints(checkpoints)?,
        mcp_servers: mcp_servers
            .iter()
            .map(|agent::McpServer { name, url }| McpServer {
                name: name.clone(),
                url: url.clone(),
            })
            .collect(),
        limits: guard::limits(limits)?,
        http_proxy,
        no_proxy,
        egress: Egress {
            mode: match egress_mode {
                network::EgressMode::Open => EgressMode::Open,
                network::EgressMode::ProxyOnly => EgressMode::ProxyOnly,
            },
            allow: allow
                .iter()
                .map(
                    |network::EgressRule {
                         host,
                         ports,
                         private,
                     }| {
                        let port = |port: &i32| u16::try_from(*port).ok().filter(|port| *port != 0);
                        let ports: Option<Vec<u16>> = ports.iter().map(port).collect();
                        Ok(EgressRule {
                            host: host.clone(),
                            ports: ports.ok_or(Invalid::OutOfRange {
                                field: "network.egress.allow.ports",
                                rule: "each must lie between 1 and 65535",
                            })?,
                            private: *private,
                        })
                    },
                )
                .collect::<Result<_, Invalid>>()?,
        },
        audit_content: journal.audit_content,
    };
    spend::affordable(&config)?;
    let bytes = serde_json::to_vec(&config).map_or(usize::MAX, |json| json.len());
    if bytes > CONFIG_MAX {
        return Err(Invalid::ConfigTooLarge { bytes });
    }
    Ok(Validated {
        identity: identity.clone(),
        config,
        workspace: volume(workspace, journal)?,
        agent_image: image.clone(),
        image_pull_secrets: image_pull_secrets.iter().map(|r| r.name.clone()).collect(),
        agent_resources: agent_resources.clone(),
        agent_env: env
            .iter()
            .map(|e| (e.name.clone(), e.value.clone()))
            .collect(),
        sidecar_resources: sidecar_resources.clone(),
        shared_secret: shared_secret_ref.clone(),
        provider_keys: providers
            .iter()
            .map(|p| ProviderKey {
                provider: p.name.clone(),
                secret: p.api_key_secret_ref.clone(),
            })
            .collect(),
        extra_ca: extra_ca_bundle
            .as_ref()
            .map(|ExtraCaBundle { config_map }| config_map.clone()),
        suspend: *suspend,
    })
}

const RESERVED: [&str; 3] = ["HOME", "TMPDIR", "WORKSPACE_DIR"];

fn unique<'a>(list: &'static str, names: impl Iterator<Item = &'a String>) -> Result<(), Invalid> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(Invalid::DuplicateName {
                list,
                name: name.clone(),
            });
        }
    }
    Ok(())
}

fn provider(provider: &Provider) -> Result<ProviderConfig, Invalid> {
    let Provider {
        name,
        kind,
        endpoint,
        api_key_secret_ref: _,
        models,
        prices,
    } = provider;
    let kind = match kind {
        model::ProviderKind::Openai => ProviderKind::Openai,
        model::ProviderKind::Anthropic => ProviderKind::Anthropic,
        model::ProviderKind::Compatible if endpoint.is_none() => {
            return Err(Invalid::EndpointMissing {
                provider: name.clone(),
            });
        }
        model::ProviderKind::Compatible => ProviderKind::Compatible,
    };
    let models = models
        .iter()
        .map(|m| pod::Model {
            name: m.name.clone(),
            context_window: m.context_window.and_then(|n| u32::try_from(n).ok()),
        })
        .collect();
    Ok(ProviderConfig {
        name: name.clone(),
        kind,
        endpoint: endpoint.clone(),
        models,
        prices: spend::prices(prices)?,
    })
}

/// The provider's name, and where its key is to be found, in words.
fn key_source(provider: &Provider) -> (String, String) {
    let SecretKeyRef { name, key } = &provider.api_key_secret_ref;
    (provider.name.clone(), format!("Secret {name}, key {key}"))
}

fn choice(
    field: &'static str,
    model: &model::Model,
    providers: &[Provider],
) -> Result<ModelChoice, Invalid> {
    let model::Model {
        provider,
        name,
        temperature,
        max_tokens,
    } = model;
    let Some(found) = providers.iter().find(|p| &p.name == provider) else {
        return Err(Invalid::UnknownProvider {
            field,
            provider: provider.clone(),
        });
    };
    if !found.models.is_empty() && !found.models.iter().any(|m| &m.name == name) {
        return Err(Invalid::UnknownModel {
            field,
            provider: provider.clone(),
            model: name.clone(),
        });
    }
    if temperature.is_some_and(|t| !(0.0..=2.0).contains(&t)) {
        return Err(Invalid::OutOfRange {
            field: "model.temperature",
            rule: "it must lie between 0 and 2",
        });
    }
    let max_tokens = max_tokens
        .map(|n| {
            u32::try_from(n)
                .ok()
                .filter(|n| *n > 0)
                .ok_or(Invalid::OutOfRange {
                    field: "model.maxTokens",
                    rule: "it must be at least 1",
                })
        })
        .transpose()?;
    Ok(ModelChoice {
        provider: provider.clone(),
        name: name.clone(),
        temperature: *temperature,
        max_tokens,
    })
}

fn instruction(path: &str) -> Result<String, Invalid> {
    let inside = !path.is_empty()
        && !path.starts_with('/')
        && !path.contains(|c: char| c.is_control())
        && path.split('/').all(|part| part != "..");
    if inside {
        Ok(format!("{}/{path}", pod::WORKSPACE_DIR))
    } else {
        Err(Invalid::InstructionPath {
            path: path.to_owned(),
        })
    }
}

fn tool(rule: &agent::ToolRule) -> ToolRule {
    let agent::ToolRule { name, action } = rule;
    ToolRule {
        name: name.clone(),
        action: guard::action(*action),
    }
}

fn volume(workspace: &Workspace, journal: &Journal) -> Result<WorkspaceVolume, Invalid> {
    let Workspace {
        storage,
        storage_class_name,
        existing_claim,
        retention,
    } = workspace;
    let Journal {
        storage: journal,
        audit_content: _,
    } = journal;
    let size = |field: &'static str, text: Option<&String>, default: &str| {
        text.map_or(default, String::as_str)
            .parse::<Bytes>()
            .ok()
            .filter(|b| b.0 > 0 && b.0 <= 1 << 62)
            .ok_or(Invalid::OutOfRange {
                field,
                rule: "write it as in 10Gi",
            })
    };
    let retain = matches!(
        retention,
        Some(Retention {
            policy: RetentionPolicy::Retain,
            ..
        })
    );
    if let Some(claim) = existing_claim {
        let excluded = |other| {
            Err(Invalid::Excluded {
                field: "workspace.existingClaim",
                other,
            })
        };
        if storage.is_some() {
            return excluded("workspace.storage");
        }
        if storage_class_name.is_some() {
            return excluded("workspace.storageClassName");
        }
        if retain {
            return excluded("workspace.retention.policy Retain");
        }
        return Ok(WorkspaceVolume::Existing {
            claim: claim.clone(),
            journal: size("journal.storage", journal.as_ref(), DEFAULT_JOURNAL_STORAGE)?,
        });
    }
    Ok(WorkspaceVolume::Own {
        storage: size("workspace.storage", storage.as_ref(), DEFAULT_STORAGE)?,
        class: storage_class_name.clone(),
        retain,
        days: retention.as_ref().filter(|_| retain).and_then(|r| r.days),
    })
}
