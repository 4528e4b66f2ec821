//! The conditions: one function each, from what is.

mod pod;
mod workspace;

use super::Input;
use crate::{
    apply::Applied,
    reason::{Reason, Weight},
    session::{
        decide::Step,
        observe::Foreign,
        validate::{ProviderKey, Validated},
    },
};
use contract::summary::{Isolation, IsolationReason};

/// The session takes turns.
pub const READY: &str = "Ready";
/// Every provider's key is there.
pub const SECRETS_RESOLVED: &str = "SecretsResolved";
/// The volumes are there.
pub const WORKSPACE_READY: &str = "WorkspaceReady";
/// The pod is ready.
pub const POD_READY: &str = "PodReady";
/// OpenCode answers.
pub const AGENT_READY: &str = "AgentReady";
/// The agent's tools are kept from the ports of the pod.
pub const ISOLATED: &str = "Isolated";
/// Present only when so: the image cannot run OpenCode.
pub const AGENT_IMAGE_UNSUPPORTED: &str = "AgentImageUnsupported";
/// Reason of [`WORKSPACE_READY`]: the volume stays as large as it is.
pub const REASON_EXPANSION_REFUSED: &str = Reason::ExpansionRefused.as_str();

const MESSAGE_MAX: usize = 1024;

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    True,
    False,
    Unknown,
}

impl Verdict {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// A condition without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) type_: &'static str,
    pub(super) verdict: Verdict,
    pub(super) reason: Reason,
    pub(super) message: String,
}

impl Draft {
    fn new(
        type_: &'static str,
        verdict: Verdict,
        reason: Reason,
        message: impl AsRef<str>,
    ) -> Self {
        let message: String = message
            .as_ref()
            .chars()
            .filter(|c| !c.is_control() || *c == '\n')
            .collect();
        Self {
            type_,
            verdict,
            reason,
            message: super::cut(&message, MESSAGE_MAX),
        }
    }

    /// Whether somebody must do something before the session can start.
    pub(super) fn blocks(&self) -> bool {
        self.verdict != Verdict::True && self.reason.weight() == Weight::Trouble
    }
}

/// Reasons that are worth an Event; all others are steps on the way. What is not ours is worth one too.
pub(super) fn is_trouble(reason: &str) -> bool {
    Reason::parse(reason).is_none_or(|reason| reason.weight() == Weight::Trouble)
}

pub(super) fn drafts(input: &Input<'_>) -> Vec<Draft> {
    let (validated, plan) = match input.wanted {
        Ok(wanted) => wanted,
        Err(invalid) => {
            // Nothing is done for a spec that makes no sense; what runs goes on.
            let mut drafts = vec![Draft::new(
                READY,
                Verdict::False,
                invalid.reason(),
                invalid.to_string(),
            )];
            drafts.extend(
                [
                    SECRETS_RESOLVED,
                    WORKSPACE_READY,
                    POD_READY,
                    AGENT_READY,
                    ISOLATED,
                ]
                .map(|type_| {
                    Draft::new(
                        type_,
                        Verdict::Unknown,
                        Reason::NotReported,
                        "The spec is wrong; see condition Ready.",
                    )
                }),
            );
            return drafts;
        }
    };
    let workspace = workspace::workspace(input, validated);
    let secrets = secrets(input, validated);
    let pod = pod::pod(input, validated);
    let (agent, unsupported) = agent(input);
    let isolated = isolated(input);
    // In place it was refused, and a new pod would cut a turn.
    let resize_refused = matches!(
        tried(input, |s| matches!(s, Step::Resize { .. })),
        Some(Applied::Refused(_))
    );
    let ready = ready(
        validated.suspend,
        plan.update_waits || resize_refused,
        &[&workspace, &pod, &secrets, &agent],
    );
    let mut drafts = vec![ready, secrets, workspace, pod, agent, isolated];
    drafts.extend(unsupported);
    drafts
}

fn ready(suspended: bool, update_waits: bool, parts: &[&Draft]) -> Draft {
    if suspended {
        return Draft::new(
            READY,
            Verdict::False,
            Reason::Suspended,
            "spec.suspend is true; set it to false to go on with the same volume.",
        );
    }
    // Trouble explains more than the waiting that follows from it.
    let first = parts
        .iter()
        .find(|d| d.blocks())
        .or_else(|| parts.iter().find(|d| d.verdict != Verdict::True));
    match first {
        Some(draft) => Draft::new(READY, Verdict::False, draft.reason, &draft.message),
        None if update_waits => Draft::new(
            READY,
            Verdict::True,
            Reason::UpdateWaits,
            "The session takes turns. A change of the spec needs a new pod and waits until no turn runs.",
        ),
        None => Draft::new(
            READY,
            Verdict::True,
            Reason::Ready,
            "The session takes turns.",
        ),
    }
}

fn tried<'a>(input: &'a Input<'_>, is: impl Fn(&Step) -> bool) -> Option<&'a Applied> {
    input
        .applied
        .iter()
        .find(|(step, _)| is(step))
        .map(|(_, applied)| applied)
}

fn foreign_message(kind: &str, name: &str, foreign: &Foreign) -> String {
    let owner = foreign
        .owner
        .as_ref()
        .map(|o| format!(" (controlled by {o})"))
        .unwrap_or_default();
    if foreign.terminating {
        format!("{kind} {name} of somebody else{owner} is being deleted; the name is awaited.")
    } else {
        format!(
            "{kind} {name} exists and does not belong to this session{owner}; it is neither used nor deleted. Delete or rename it, or give this session another name."
        )
    }
}

fn secrets(input: &Input<'_>, validated: &Validated) -> Draft {
    let Some(seen) = &input.observed.summary else {
        return Draft::new(
            SECRETS_RESOLVED,
            Verdict::Unknown,
            Reason::NotReported,
            "The sidecar has not told yet.",
        );
    };
    let missing: Vec<&ProviderKey> = validated
        .provider_keys
        .iter()
        .filter(|key| seen.summary.missing_keys.contains(&key.provider))
        .collect();
    if missing.is_empty() {
        return Draft::new(
            SECRETS_RESOLVED,
            Verdict::True,
            Reason::AllPresent,
            "Every provider has its key.",
        );
    }
    let namespace = &validated.identity.namespace;
    let list: Vec<String> = missing
        .iter()
        .map(|ProviderKey { provider, secret }| {
            let (name, key) = (&secret.name, &secret.key);
            format!(
                "provider {provider}: key {key} of Secret {name} is absent or empty; create it with: kubectl -n {namespace} create secret generic {name} --from-literal={key}=..."
            )
        })
        .collect();
    Draft::new(
        SECRETS_RESOLVED,
        Verdict::False,
        Reason::SecretMissing,
        list.join("\n"),
    )
}

fn agent(input: &Input<'_>) -> (Draft, Option<Draft>) {
    let draft = |verdict, reason, message: &str| Draft::new(AGENT_READY, verdict, reason, message);
    let Some(seen) = &input.observed.summary else {
        return (
            draft(
                Verdict::Unknown,
                Reason::NotReported,
                "The sidecar has not told yet.",
            ),
            None,
        );
    };
    let agent = &seen.summary.agent;
    if let Some(why) = &agent.unsupported {
        let unsupported = Draft::new(
            AGENT_IMAGE_UNSUPPORTED,
            Verdict::True,
            Reason::ImageUnsupported,
            why,
        );
        return (
            draft(Verdict::False, Reason::ImageUnsupported, why),
            Some(unsupported),
        );
    }
    if !seen.connected {
        return (
            draft(
                Verdict::Unknown,
                Reason::NotReported,
                "The sidecar cannot be reached right now.",
            ),
            None,
        );
    }
    if agent.ready {
        let version = agent.version.as_deref().unwrap_or("of unknown version");
        return (
            draft(
                Verdict::True,
                Reason::Answering,
                &format!("OpenCode {version} answers."),
            ),
            None,
        );
    }
    let message = agent.message.as_deref().unwrap_or("OpenCode is starting.");
    (draft(Verdict::False, Reason::Starting, message), None)
}

fn isolated(input: &Input<'_>) -> Draft {
    let Some(seen) = input
        .observed
        .summary
        .as_ref()
        .filter(|seen| seen.summary.agent.ready)
    else {
        return Draft::new(
            ISOLATED,
            Verdict::Unknown,
            Reason::NotReported,
            "The sidecar has not told yet.",
        );
    };
    let Isolation {
        enforced,
        reason,
        message,
    } = &seen.summary.isolation;
    let (verdict, reason) = match (enforced, reason) {
        (true, _) => (Verdict::True, Reason::Enforced),
        (false, IsolationReason::NotReported) => (Verdict::Unknown, Reason::NotReported),
        (false, IsolationReason::LandlockUnavailable) => {
            (Verdict::False, Reason::LandlockUnavailable)
        }
        (false, IsolationReason::Partial) => (Verdict::False, Reason::Partial),
        (false, IsolationReason::SharedUser) => (Verdict::False, Reason::SharedUser),
        // A contradiction is no isolation.
        (false, IsolationReason::Enforced | IsolationReason::NotEnforced) => {
            (Verdict::False, Reason::NotEnforced)
        }
    };
    Draft::new(ISOLATED, verdict, reason, message)
}
