//! What is built, from YAML through the real validation.

use crate::fixtures::{session, settings, valid};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, VolumeMount};
use operator::session::{
    build::{Binaries, claim::build_claim, journal_claim::build_journal_claim, pod::build_pod},
    names::TEMPLATE_HASH,
};

const RICH: &str = "  agent:
    image: registry.test/own:1
    imagePullSecrets: [{name: pull}]
    env: [{name: GOFLAGS, value: -v}]
    resources: {requests: {cpu: 1}, limits: {memory: 1Gi}}
  sidecar: {sharedSecretRef: {name: shared, key: bearer}}
  network: {extraCABundle: {configMap: {name: cas, key: root.pem}}}
";

fn pod(more: &str, binaries: Binaries) -> Pod {
    let mut settings = settings();
    settings.binaries = binaries;
    build_pod(&valid(&session(more)), &settings, false)
}

fn spec(pod: &Pod) -> &PodSpec {
    pod.spec.as_ref().unwrap()
}

fn containers(pod: &Pod) -> Vec<&Container> {
    let spec = spec(pod);
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .collect()
}

fn container<'a>(pod: &'a Pod, name: &str) -> &'a Container {
    containers(pod)
        .into_iter()
        .find(|c| c.name == name)
        .unwrap()
}

fn mounts(container: &Container) -> &[VolumeMount] {
    container.volume_mounts.as_deref().unwrap_or_default()
}

/// Every shape of pod that the builder makes.
fn all_shapes() -> Vec<Pod> {
    let mut pods = Vec::new();
    for more in ["", RICH, "  workspace: {existingClaim: brought}\n"] {
        for binaries in [Binaries::ImageVolume, Binaries::Copy] {
            pods.push(pod(more, binaries));
        }
    }
    pods
}

#[test]
fn every_container_keeps_the_restricted_pod_security_standard() {
    for pod in all_shapes() {
        let spec = spec(&pod);
        assert!(spec.host_network.is_none() && spec.host_pid.is_none() && spec.host_ipc.is_none());
        assert_eq!(spec.automount_service_account_token, Some(false));
        assert_eq!(spec.enable_service_links, Some(false));
        assert_ne!(spec.share_process_namespace, Some(true));
        for volume in spec.volumes.iter().flatten() {
            assert!(volume.host_path.is_none(), "{}", volume.name);
        }
        let pod_context = spec.security_context.as_ref().unwrap();
        assert_eq!(pod_context.run_as_non_root, Some(true));
        for container in containers(&pod) {
            let name = &container.name;
            let context = container.security_context.as_ref().unwrap();
            assert_eq!(context.allow_privilege_escalation, Some(false), "{name}");
            assert_eq!(context.run_as_non_root, Some(true), "{name}");
            assert_eq!(context.read_only_root_filesystem, Some(true), "{name}");
            assert!(context.run_as_user.is_some_and(|id| id > 0), "{name}");
            assert_ne!(context.privileged, Some(true), "{name}");
            let capabilities = context.capabilities.as_ref().unwrap();
            assert_eq!(
                capabilities.drop.as_deref(),
                Some(&["ALL".to_owned()][..]),
                "{name}"
            );
            assert!(capabilities.add.is_none(), "{name}");
            assert_eq!(
                context.seccomp_profile.as_ref().unwrap().type_,
                "RuntimeDefault",
                "{name}"
            );
            assert!(
                container
                    .ports
                    .iter()
                    .flatten()
                    .all(|p| p.host_port.is_none()),
                "{name}"
            );
        }
    }
}

#[test]
fn no_container_mounts_both_a_credential_and_the_workspace() {
    for pod in all_shapes() {
        let volumes = spec(&pod).volumes.as_ref().unwrap();
        let secret = |mount: &VolumeMount| {
            volumes
                .iter()
                .any(|v| v.name == mount.name && v.secret.is_some())
        };
        let work =
            |mount: &VolumeMount| matches!(mount.sub_path.as_deref(), Some("workspace" | "home"));
        for container in containers(&pod) {
            let both = mounts(container).iter().any(secret) && mounts(container).iter().any(work);
            assert!(!both, "{}", container.name);
            if container.name != "sidecar" {
                assert!(!mounts(container).iter().any(secret), "{}", container.name);
                let journal = mounts(container)
                    .iter()
                    .any(|m| m.sub_path.as_deref() == Some("journal"));
                assert!(!journal, "{}", container.name);
            }
        }
        assert!(mounts(container(&pod, "sidecar")).iter().any(secret));
    }
}

#[test]
fn the_two_containers_have_different_users_and_the_sidecar_is_native() {
    let pod = pod("", Binaries::ImageVolume);
    let user = |name| {
        container(&pod, name)
            .security_context
            .as_ref()
            .unwrap()
            .run_as_user
    };
    assert_ne!(user("agent"), user("sidecar"));
    assert_eq!(
        container(&pod, "sidecar").restart_policy.as_deref(),
        Some("Always")
    );
    assert!(
        spec(&pod)
            .init_containers
            .iter()
            .flatten()
            .any(|c| c.name == "sidecar")
    );
    assert_eq!(
        container(&pod, "agent").command.as_ref().unwrap()[0],
        "/opt/opencode-operator/runner/runner"
    );
    assert!(container(&pod, "sidecar").startup_probe.is_none());
}

#[test]
fn names_labels_and_owner_lead_back_to_the_session() {
    let pod = pod("", Binaries::ImageVolume);
    let meta = &pod.metadata;
    assert_eq!(meta.name.as_deref(), Some("quokka"));
    assert_eq!(
        meta.labels.as_ref().unwrap()["app.kubernetes.io/instance"],
        "quokka"
    );
    let owner = &meta.owner_references.as_ref().unwrap()[0];
    assert_eq!(
        (owner.uid.as_str(), owner.controller),
        ("11111111-aaaa", Some(true))
    );
}

#[test]
fn secrets_are_optional_and_carry_exactly_the_named_key() {
    let pod = pod(RICH, Binaries::ImageVolume);
    let volumes = spec(&pod).volumes.as_ref().unwrap();
    let secret = |name: &str| {
        volumes
            .iter()
            .find(|v| v.name == name)
            .unwrap()
            .secret
            .clone()
            .unwrap()
    };
    let key = secret("key-acme");
    assert_eq!(
        (key.secret_name.as_deref(), key.optional),
        (Some("acme-secret"), Some(true))
    );
    let items = key.items.unwrap();
    assert_eq!(
        (items.len(), items[0].key.as_str(), items[0].path.as_str()),
        (1, "token", "key")
    );
    let shared = secret("shared-secret").items.unwrap();
    assert_eq!(
        (shared[0].key.as_str(), shared[0].path.as_str()),
        ("bearer", "token")
    );
    let sidecar = container(&pod, "sidecar");
    let path = |volume: &str| {
        mounts(sidecar)
            .iter()
            .find(|m| m.name == volume)
            .map(|m| m.mount_path.clone())
            .unwrap()
    };
    assert_eq!(path("key-acme"), "/var/run/opencode-operator/keys/acme");
    assert_eq!(
        path("shared-secret"),
        "/var/run/opencode-operator/shared-secret"
    );
    assert_eq!(path("extra-ca"), "/etc/opencode-operator-ca");
}

#[test]
fn binaries_come_from_image_volumes_or_by_copy() {
    let mounted = pod("", Binaries::ImageVolume);
    let image = |pod: &Pod, name: &str| {
        let volume = spec(pod)
            .volumes
            .iter()
            .flatten()
            .find(|v| v.name == name)
            .unwrap()
            .clone();
        volume.image.and_then(|i| i.reference)
    };
    assert_eq!(
        image(&mounted, "opencode").as_deref(),
        Some("registry.test/oc:9")
    );
    assert_eq!(
        image(&mounted, "runner").as_deref(),
        Some("registry.test/rn:9")
    );
    let copied = pod("", Binaries::Copy);
    assert_eq!(image(&copied, "opencode"), None);
    let install = container(&copied, "install-opencode")
        .command
        .clone()
        .unwrap()
        .join(" ");
    assert_eq!(
        install,
        "/runner install --from /opencode --to /opt/opencode-operator/opencode"
    );
    // Before the sidecar: a native sidecar lets the next init container start when it is up.
    let order: Vec<_> = spec(&copied)
        .init_containers
        .iter()
        .flatten()
        .map(|c| c.name.as_str())
        .collect();
    assert_eq!(order, ["install-runner", "install-opencode", "sidecar"]);
}

#[test]
fn what_the_user_chose_is_used() {
    let pod = pod(RICH, Binaries::ImageVolume);
    let agent = container(&pod, "agent");
    assert_eq!(agent.image.as_deref(), Some("registry.test/own:1"));
    assert_eq!(
        agent.image_pull_policy, None,
        "the operator's policy is for its own images"
    );
    assert!(agent.env.iter().flatten().any(|e| e.name == "GOFLAGS"));
    let resources = agent.resources.as_ref().unwrap();
    assert_eq!(resources.requests.as_ref().unwrap()["cpu"].0, "1");
    assert!(
        !resources.requests.as_ref().unwrap().contains_key("memory"),
        "no default is mixed in"
    );
    assert_eq!(
        spec(&pod).image_pull_secrets.as_ref().unwrap()[0].name,
        "pull"
    );
}

#[test]
fn only_what_needs_a_new_pod_changes_the_template_hash() {
    let hash = |more: &str| {
        pod(more, Binaries::ImageVolume)
            .metadata
            .annotations
            .unwrap()[TEMPLATE_HASH]
            .clone()
    };
    let plain = hash("");
    for same in [
        "  prompt: x\n",
        "  systemPrompt: x\n",
        "  limits: {turnTimeout: 2h}\n",
        "  agent: {resources: {limits: {memory: 3Gi}}}\n",
        "  sidecar: {resources: {limits: {memory: 300Mi}}}\n",
    ] {
        assert_eq!(hash(same), plain, "{same}");
    }
    for other in [
        "  agent: {image: 'other:1'}\n",
        "  agent: {env: [{name: A, value: b}]}\n",
        "  sidecar: {sharedSecretRef: {name: a, key: b}}\n",
        "  workspace: {existingClaim: c}\n",
    ] {
        assert_ne!(hash(other), plain, "{other}");
    }
}

#[test]
fn claims_follow_the_retention() {
    let claim = |more: &str| build_claim(&valid(&session(more)));
    let plain = claim("").unwrap();
    assert_eq!(plain.metadata.name.as_deref(), Some("quokka-workspace"));
    assert!(plain.metadata.owner_references.is_some());
    let kept =
        claim("  workspace: {storage: 3Gi, retention: {policy: Retain, days: 9}}\n").unwrap();
    assert!(kept.metadata.owner_references.is_none());
    assert_eq!(
        kept.metadata.annotations.unwrap()["opencode-operator.dev/retention-days"],
        "9"
    );
    let brought = session("  workspace: {existingClaim: mine}\n  journal: {storage: 2Gi}\n");
    assert!(build_claim(&valid(&brought)).is_none());
    let journal = build_journal_claim(&valid(&brought)).unwrap();
    assert_eq!(journal.metadata.name.as_deref(), Some("quokka-journal"));
    let pod = build_pod(&valid(&brought), &settings(), false);
    let names: Vec<_> = spec(&pod)
        .volumes
        .iter()
        .flatten()
        .filter_map(|v| {
            v.persistent_volume_claim
                .as_ref()
                .map(|c| (v.name.as_str(), c.claim_name.as_str()))
        })
        .collect();
    assert_eq!(
        names,
        [("workspace", "mine"), ("journal", "quokka-journal")]
    );
}

#[test]
fn only_the_sidecar_is_told_of_the_collector() {
    let mut settings = settings();
    let shown = |settings: &_| {
        let pod = build_pod(&valid(&session("")), settings, false);
        serde_json::to_value(pod.spec.unwrap()).unwrap()
    };
    assert!(!shown(&settings).to_string().contains("OTEL_"));
    settings.otlp_endpoint = Some("http://collector.test:4318".into());
    let spec = shown(&settings);
    let told = spec
        .to_string()
        .matches("OTEL_EXPORTER_OTLP_ENDPOINT")
        .count();
    assert_eq!(told, 1);
    let sidecar = spec["initContainers"].to_string();
    assert!(sidecar.contains("http://collector.test:4318"), "{sidecar}");
}
