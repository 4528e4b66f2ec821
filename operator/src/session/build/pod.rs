//! The pod.

use super::{Binaries, PodSettings, hash};
use crate::session::{
    names::{RESOURCES, TEMPLATE_HASH},
    validate::{Validated, WorkspaceVolume},
};
use contract::pod::{
    API_PORT, CONFIG_ANNOTATION, CONFIG_DIR, CONFIG_FILE, HOME_DIR, JOURNAL_DIR, KEYS_ANNOTATION,
    KEYS_FILE, OPENCODE_DIR, PROVIDER_KEY_FILE, PROVIDER_KEYS_DIR, PodConfig, RUNNER_DIR,
    SHARED_SECRET_FILE, SOCKET_DIR, SOCKET_FILE, WORKSPACE_DIR,
};
use crds::session::{agent::Resources, model::SecretKeyRef, network::ConfigMapKeyRef};
use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapVolumeSource, Container, ContainerPort, DownwardAPIVolumeFile,
        DownwardAPIVolumeSource, EmptyDirVolumeSource, EnvVar, HTTPGetAction, ImageVolumeSource,
        KeyToPath, LocalObjectReference, ObjectFieldSelector, PersistentVolumeClaimVolumeSource,
        Pod, PodSecurityContext, PodSpec, Probe, ResourceRequirements, SeccompProfile,
        SecretVolumeSource, SecurityContext, Volume, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use std::collections::BTreeMap;

/// Name of the agent's container.
pub const AGENT: &str = "agent";
/// Name of the sidecar, a native one (an init container that stays).
pub const SIDECAR: &str = "sidecar";
/// User and group of the agent.
pub const AGENT_ID: i64 = 65532;
/// User and group of the sidecar: what it holds must stay unreadable to the agent.
pub const SIDECAR_ID: i64 = 65531;
/// Group of the volumes, shared by both.
pub const VOLUME_GROUP: i64 = 65530;
/// Where the sidecar finds more certificate authorities.
pub const EXTRA_CA_DIR: &str = "/etc/opencode-operator-ca";
const EXTRA_CA_FILE: &str = "ca.crt";

/// The pod. `prompt_consumed`: the prompt was taken up before and must not start again.
#[must_use]
pub fn build_pod(validated: &Validated, settings: &PodSettings, prompt_consumed: bool) -> Pod {
    let spec = build_spec(validated, settings);
    let mut metadata = validated
        .identity
        .child(validated.identity.pod(), "session", true);
    metadata.annotations.get_or_insert_default().extend([
        (
            CONFIG_ANNOTATION.to_owned(),
            config_json(validated, prompt_consumed),
        ),
        (KEYS_ANNOTATION.to_owned(), settings.public_keys.clone()),
        (TEMPLATE_HASH.to_owned(), template_hash(&spec)),
        (RESOURCES.to_owned(), resources_json(validated, settings)),
    ]);
    Pod {
        metadata,
        spec: Some(spec),
        status: None,
    }
}

/// The configuration's annotation.
#[must_use]
pub fn config_json(validated: &Validated, prompt_consumed: bool) -> String {
    let config = PodConfig {
        prompt_consumed,
        ..validated.config.clone()
    };
    serde_json::to_string(&config).expect("a configuration has a JSON form")
}

/// Resources of both containers: the agent's and the sidecar's.
#[must_use]
pub fn build_resources(
    validated: &Validated,
    settings: &PodSettings,
) -> (ResourceRequirements, ResourceRequirements) {
    let defaults = &settings.default_resources;
    (
        requirements(
            &validated.agent_resources,
            &defaults.agent_requests,
            &defaults.agent_limits,
        ),
        requirements(
            &validated.sidecar_resources,
            &defaults.sidecar_requests,
            &defaults.sidecar_limits,
        ),
    )
}

/// The resources' annotation: what was applied last. The pod's own fields cannot tell, because admission
/// (a LimitRange) may have added to them.
#[must_use]
pub fn resources_json(validated: &Validated, settings: &PodSettings) -> String {
    let (agent, sidecar) = build_resources(validated, settings);
    serde_json::to_string(&serde_json::json!({ AGENT: agent, SIDECAR: sidecar }))
        .expect("resources have a JSON form")
}

/// Hash of all that needs a new pod when it changes: everything but the resources.
fn template_hash(spec: &PodSpec) -> String {
    let mut spec = spec.clone();
    for container in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        container.resources = None;
    }
    hash(&spec)
}

fn build_spec(validated: &Validated, settings: &PodSettings) -> PodSpec {
    let (agent_resources, sidecar_resources) = build_resources(validated, settings);
    let mut init = Vec::new();
    if settings.binaries == Binaries::Copy {
        init.push(installer(
            "install-runner",
            &settings.runner_image,
            "/runner",
            RUNNER_DIR,
            "runner",
            settings,
        ));
        init.push(installer(
            "install-opencode",
            &settings.opencode_image,
            "/opencode",
            OPENCODE_DIR,
            "opencode",
            settings,
        ));
    }
    init.push(sidecar(validated, settings, sidecar_resources));
    PodSpec {
        containers: vec![agent(validated, settings, agent_resources)],
        init_containers: Some(init),
        volumes: Some(volumes(validated, settings)),
        image_pull_secrets: Some(
            validated
                .image_pull_secrets
                .iter()
                .map(|name| LocalObjectReference { name: name.clone() })
                .collect::<Vec<_>>(),
        )
        .filter(|list| !list.is_empty()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        share_process_namespace: Some(false),
        restart_policy: Some("Always".into()),
        termination_grace_period_seconds: Some(30),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            fs_group: Some(VOLUME_GROUP),
            // A large workspace must not be walked at every start.
            fs_group_change_policy: Some("OnRootMismatch".into()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        ..PodSpec::default()
    }
}

fn agent(
    validated: &Validated,
    settings: &PodSettings,
    resources: ResourceRequirements,
) -> Container {
    let own_image = validated.agent_image.is_none();
    let socket = format!("{SOCKET_DIR}/{SOCKET_FILE}");
    let mut variables = vec![
        env("HOME", HOME_DIR),
        env("TMPDIR", "/tmp"),
        env("WORKSPACE_DIR", WORKSPACE_DIR),
        env("RUNNER_SOCKET", &socket),
        env("RUNNER_PEER_UID", &SIDECAR_ID.to_string()),
    ];
    variables.extend(
        validated
            .agent_env
            .iter()
            .map(|(name, value)| env(name, value)),
    );
    Container {
        name: AGENT.into(),
        image: Some(
            validated
                .agent_image
                .as_ref()
                .unwrap_or(&settings.agent_image)
                .clone(),
        ),
        image_pull_policy: settings.image_pull_policy.clone().filter(|_| own_image),
        command: Some(vec![format!("{RUNNER_DIR}/runner")]),
        working_dir: Some(WORKSPACE_DIR.into()),
        env: Some(variables),
        resources: Some(resources),
        security_context: Some(security_context(AGENT_ID)),
        volume_mounts: Some(vec![
            sub_path("workspace", WORKSPACE_DIR, "workspace"),
            sub_path("workspace", HOME_DIR, "home"),
            mount("agent-tmp", "/tmp"),
            mount("socket", SOCKET_DIR),
            read_only("runner", RUNNER_DIR),
            read_only("opencode", OPENCODE_DIR),
        ]),
        ..Container::default()
    }
}

fn sidecar(
    validated: &Validated,
    settings: &PodSettings,
    resources: ResourceRequirements,
) -> Container {
    let socket = format!("{SOCKET_DIR}/{SOCKET_FILE}");
    let mut variables = vec![
        env("WORKSPACE_DIR", WORKSPACE_DIR),
        env("PORT", &API_PORT.to_string()),
        env("LOG_LEVEL", &settings.log_level),
        env("JOURNAL_DIR", JOURNAL_DIR),
        env("RUNNER_SOCKET", &socket),
    ];
    if let Some(endpoint) = &settings.otlp_endpoint {
        variables.push(env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint));
    }
    let journal = match &validated.workspace {
        WorkspaceVolume::Own { .. } => "workspace",
        WorkspaceVolume::Existing { .. } => "journal",
    };
    let mut mounts = vec![
        sub_path(journal, JOURNAL_DIR, "journal"),
        mount("sidecar-tmp", "/tmp"),
        mount("socket", SOCKET_DIR),
        read_only("config", CONFIG_DIR),
    ];
    for key in &validated.provider_keys {
        mounts.push(read_only(
            &key_volume(&key.provider),
            &format!("{PROVIDER_KEYS_DIR}/{}", key.provider),
        ));
    }
    if validated.shared_secret.is_some() {
        let (folder, _) = split(SHARED_SECRET_FILE);
        mounts.push(read_only("shared-secret", folder));
    }
    if validated.extra_ca.is_some() {
        variables.push(env(
            "EXTRA_CA_FILE",
            &format!("{EXTRA_CA_DIR}/{EXTRA_CA_FILE}"),
        ));
        mounts.push(read_only("extra-ca", EXTRA_CA_DIR));
    }
    Container {
        name: SIDECAR.into(),
        image: Some(settings.sidecar_image.clone()),
        image_pull_policy: settings.image_pull_policy.clone(),
        // A native sidecar: up before the agent, stopped after it, so that the last events of the
        // agent are still recorded.
        restart_policy: Some("Always".into()),
        env: Some(variables),
        ports: Some(vec![ContainerPort {
            name: Some("api".into()),
            container_port: i32::from(API_PORT),
            ..ContainerPort::default()
        }]),
        readiness_probe: Some(Probe {
            http_get: Some(probe("/ready")),
            period_seconds: Some(2),
            timeout_seconds: Some(2),
            failure_threshold: Some(2),
            ..Probe::default()
        }),
        // Generous: a restart of the sidecar costs more than a slow answer.
        liveness_probe: Some(Probe {
            http_get: Some(probe("/healthz")),
            initial_delay_seconds: Some(10),
            period_seconds: Some(10),
            timeout_seconds: Some(5),
            failure_threshold: Some(6),
            ..Probe::default()
        }),
        resources: Some(resources),
        security_context: Some(security_context(SIDECAR_ID)),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn installer(
    name: &str,
    image: &str,
    file: &str,
    folder: &str,
    volume: &str,
    settings: &PodSettings,
) -> Container {
    Container {
        name: name.into(),
        image: Some(image.into()),
        image_pull_policy: settings.image_pull_policy.clone(),
        command: Some(
            ["/runner", "install", "--from", file, "--to", folder]
                .map(str::to_owned)
                .into(),
        ),
        resources: Some(ResourceRequirements {
            requests: Some(quantities(&[
                ("cpu".into(), "10m".into()),
                ("memory".into(), "16Mi".into()),
            ])),
            limits: Some(quantities(&[("memory".into(), "64Mi".into())])),
            claims: None,
        }),
        security_context: Some(security_context(AGENT_ID)),
        volume_mounts: Some(vec![mount(volume, folder)]),
        ..Container::default()
    }
}

fn volumes(validated: &Validated, settings: &PodSettings) -> Vec<Volume> {
    let identity = &validated.identity;
    let mut volumes = Vec::new();
    match &validated.workspace {
        WorkspaceVolume::Own { .. } => volumes.push(claim("workspace", identity.workspace_claim())),
        WorkspaceVolume::Existing {
            claim: existing, ..
        } => {
            volumes.push(claim("workspace", existing.clone()));
            volumes.push(claim("journal", identity.journal_claim()));
        }
    }
    volumes.push(empty_dir("agent-tmp", None));
    volumes.push(empty_dir("sidecar-tmp", None));
    // In memory, because only there the kubelet sets the sticky bit: on disk either container could
    // replace the other's socket.
    volumes.push(empty_dir("socket", Some("1Mi")));
    volumes.push(binaries("runner", &settings.runner_image, settings));
    volumes.push(binaries("opencode", &settings.opencode_image, settings));
    volumes.push(Volume {
        name: "config".into(),
        downward_api: Some(DownwardAPIVolumeSource {
            items: Some(vec![
                annotation_file(CONFIG_FILE, CONFIG_ANNOTATION),
                annotation_file(KEYS_FILE, KEYS_ANNOTATION),
            ]),
            default_mode: Some(0o444),
        }),
        ..Volume::default()
    });
    for key in &validated.provider_keys {
        volumes.push(secret(
            &key_volume(&key.provider),
            &key.secret,
            PROVIDER_KEY_FILE,
        ));
    }
    if let Some(shared) = &validated.shared_secret {
        let (_, file) = split(SHARED_SECRET_FILE);
        volumes.push(secret("shared-secret", shared, file));
    }
    if let Some(ConfigMapKeyRef { name, key }) = &validated.extra_ca {
        volumes.push(Volume {
            name: "extra-ca".into(),
            config_map: Some(ConfigMapVolumeSource {
                name: name.clone(),
                items: Some(vec![KeyToPath {
                    key: key.clone(),
                    path: EXTRA_CA_FILE.into(),
                    mode: None,
                }]),
                optional: Some(true),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    volumes
}

fn security_context(id: i64) -> SecurityContext {
    SecurityContext {
        run_as_user: Some(id),
        run_as_group: Some(id),
        run_as_non_root: Some(true),
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        privileged: Some(false),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".into()]),
            add: None,
        }),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".into(),
            localhost_profile: None,
        }),
        ..SecurityContext::default()
    }
}

fn requirements(
    declared: &Resources,
    default_requests: &[(String, String)],
    default_limits: &[(String, String)],
) -> ResourceRequirements {
    let Resources { requests, limits } = declared;
    // Defaults fill in only where nothing at all is declared: a default request above a declared limit
    // would be refused.
    let defaults = requests.is_empty() && limits.is_empty();
    let pick = |declared: &BTreeMap<String, Quantity>, default: &[(String, String)]| {
        let map = if defaults {
            quantities(default)
        } else {
            declared.clone()
        };
        Some(map).filter(|map| !map.is_empty())
    };
    ResourceRequirements {
        requests: pick(requests, default_requests),
        limits: pick(limits, default_limits),
        claims: None,
    }
}

fn quantities(list: &[(String, String)]) -> BTreeMap<String, Quantity> {
    list.iter()
        .map(|(name, value)| (name.clone(), Quantity(value.clone())))
        .collect()
}

fn env(name: &str, value: &str) -> EnvVar {
    EnvVar {
        name: name.into(),
        value: Some(value.into()),
        value_from: None,
    }
}

fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: volume.into(),
        mount_path: path.into(),
        ..VolumeMount::default()
    }
}

fn read_only(volume: &str, path: &str) -> VolumeMount {
    VolumeMount {
        read_only: Some(true),
        ..mount(volume, path)
    }
}

fn sub_path(volume: &str, path: &str, sub: &str) -> VolumeMount {
    VolumeMount {
        sub_path: Some(sub.into()),
        ..mount(volume, path)
    }
}

fn probe(path: &str) -> HTTPGetAction {
    HTTPGetAction {
        path: Some(path.into()),
        port: IntOrString::Int(i32::from(API_PORT)),
        ..HTTPGetAction::default()
    }
}

fn claim(name: &str, claim_name: String) -> Volume {
    Volume {
        name: name.into(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name,
            read_only: None,
        }),
        ..Volume::default()
    }
}

fn empty_dir(name: &str, memory: Option<&str>) -> Volume {
    Volume {
        name: name.into(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: memory.map(|_| "Memory".to_owned()),
            size_limit: memory.map(|size| Quantity(size.into())),
        }),
        ..Volume::default()
    }
}

fn binaries(name: &str, image: &str, settings: &PodSettings) -> Volume {
    match settings.binaries {
        Binaries::ImageVolume => Volume {
            name: name.into(),
            image: Some(ImageVolumeSource {
                reference: Some(image.into()),
                pull_policy: settings.image_pull_policy.clone(),
            }),
            ..Volume::default()
        },
        Binaries::Copy => empty_dir(name, None),
    }
}

fn annotation_file(path: &str, annotation: &str) -> DownwardAPIVolumeFile {
    DownwardAPIVolumeFile {
        path: path.into(),
        field_ref: Some(ObjectFieldSelector {
            api_version: None,
            field_path: format!("metadata.annotations['{annotation}']"),
        }),
        ..DownwardAPIVolumeFile::default()
    }
}

/// Optional, so that a missing Secret is reported by the sidecar and not by a pod that hangs.
fn secret(volume: &str, reference: &SecretKeyRef, file: &str) -> Volume {
    Volume {
        name: volume.into(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(reference.name.clone()),
            items: Some(vec![KeyToPath {
                key: reference.key.clone(),
                path: file.into(),
                mode: None,
            }]),
            optional: Some(true),
            default_mode: Some(0o440),
        }),
        ..Volume::default()
    }
}

fn key_volume(provider: &str) -> String {
    format!("key-{provider}")
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/')
        .expect("paths of the contract are absolute")
}
