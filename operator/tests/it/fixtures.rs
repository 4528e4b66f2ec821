//! Minimal YAML through the real pipeline; names are unlike any constant.

use contract::summary::{Activity, AgentSummary, Isolation, Summary};
use crds::OpenCodeSession;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use operator::session::{
    build::{Binaries, DefaultResources, PodSettings},
    decide,
    names::Identity,
    observe::{Child, Observed},
    validate::{Validated, validate},
};
use operator::summaries::Seen;
use std::sync::{Arc, OnceLock};

pub(crate) const MINIMAL: &str = "
apiVersion: opencode-operator.dev/v1alpha1
kind: OpenCodeSession
metadata: {name: quokka, namespace: burrow, uid: 11111111-aaaa, generation: 3}
spec:
  providers:
  - {name: acme, kind: anthropic, apiKeySecretRef: {name: acme-secret, key: token}}
  model: {provider: acme, name: some-model}
";

/// The minimal session with lines added to its spec (indented by two).
pub(crate) fn session(more: &str) -> OpenCodeSession {
    serde_saphyr::from_str(&format!("{MINIMAL}{more}")).unwrap()
}

pub(crate) fn identity(session: &OpenCodeSession) -> Identity {
    Identity::of(session).unwrap()
}

pub(crate) fn valid(session: &OpenCodeSession) -> Validated {
    validate(&identity(session), session).unwrap()
}

pub(crate) fn settings() -> PodSettings {
    PodSettings {
        sidecar_image: "registry.test/sc:9".into(),
        runner_image: "registry.test/rn:9".into(),
        opencode_image: "registry.test/oc:9".into(),
        agent_image: "registry.test/ag:9".into(),
        image_pull_policy: Some("Never".into()),
        binaries: Binaries::ImageVolume,
        log_level: "warn".into(),
        otlp_endpoint: None,
        public_keys: r#"{"keys":[]}"#.into(),
        default_resources: DefaultResources::default(),
    }
}

pub(crate) fn now() -> Timestamp {
    "2031-05-06T07:08:09Z".parse().unwrap()
}

/// One HTTP client for all tests: making one reads the machine's certificates.
pub(crate) fn http() -> reqwest::Client {
    static HTTP: OnceLock<reqwest::Client> = OnceLock::new();
    bootstrap::init("test");
    HTTP.get_or_init(|| operator::summaries::http_client().unwrap())
        .clone()
}

/// A follower of sidecars that nobody listens to.
pub(crate) fn summaries() -> operator::summaries::Summaries {
    let (wake, _) = tokio::sync::mpsc::unbounded_channel();
    let signing = Arc::new(contract::token::Signing::from_seed(&[7; 32]));
    let stop = tokio_util::sync::CancellationToken::new();
    operator::summaries::Summaries::new(http(), signing, wake, stop)
}

/// Nothing exists but the session.
pub(crate) fn nothing(session: &OpenCodeSession) -> Observed {
    Observed {
        session: Arc::new(session.clone()),
        pod: Child::Absent,
        claim: Child::Absent,
        journal_claim: Child::Absent,
        summary: None,
    }
}

/// The pod as the API server has it some time after its creation.
pub(crate) fn running_pod(validated: &Validated, ready: bool) -> Pod {
    let mut pod = operator::session::build::pod::build_pod(validated, &settings(), false);
    pod.metadata.uid = Some("pod-uid-1".into());
    pod.metadata.resource_version = Some("77".into());
    pod.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        "2031-05-06T07:00:00Z".parse().unwrap(),
    ));
    pod.status = Some(
        serde_json::from_value(serde_json::json!({
            "phase": "Running",
            "podIP": "127.0.0.1",
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        }))
        .unwrap(),
    );
    pod
}

pub(crate) fn bound_claim(validated: &Validated) -> PersistentVolumeClaim {
    let mut claim = operator::session::build::claim::build_claim(validated).unwrap();
    claim.metadata.uid = Some("claim-uid-1".into());
    claim.metadata.resource_version = Some("55".into());
    claim.status = Some(serde_json::from_value(serde_json::json!({"phase": "Bound"})).unwrap());
    claim
}

pub(crate) fn idle() -> Summary {
    Summary {
        activity: Activity::Idle,
        agent: AgentSummary {
            ready: true,
            version: Some("9.8.7".into()),
            starts: 1,
            ..AgentSummary::default()
        },
        isolation: Isolation {
            enforced: true,
            reason: contract::summary::IsolationReason::Enforced,
            message: "Landlock holds.".into(),
        },
        ..Summary::default()
    }
}

pub(crate) fn seen(summary: Summary) -> Seen {
    let missing_since = (!summary.missing_keys.is_empty()).then(now);
    Seen {
        summary: Arc::new(summary),
        connected: true,
        missing_since,
    }
}

/// All is well: claim bound, pod ready, agent idle.
pub(crate) fn settled(session: &OpenCodeSession) -> Observed {
    let validated = valid(session);
    Observed {
        session: Arc::new(session.clone()),
        pod: Child::Own(Arc::new(running_pod(&validated, true))),
        claim: Child::Own(Arc::new(bound_claim(&validated))),
        journal_claim: Child::Absent,
        summary: Some(seen(idle())),
    }
}

pub(crate) fn plan(observed: &Observed) -> decide::Plan {
    let validated = valid(&observed.session);
    let print = decide::fingerprint(&validated, &settings());
    decide::decide(observed, &validated, &print, now())
}
