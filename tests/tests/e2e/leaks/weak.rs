//! The pod of the real one's builder with its doors opened, one by one: each attack has to get through here first.
//!
//! It is made from the real pod as the operator built it, so that whatever is not named here is the same in both.

use super::side::Side;
use crate::canary::search::Needles;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tests::{Namespace, Session};

const NAME: &str = "real";

/// The pod's text, weakened. `keys`: names of its volumes that hold keys.
fn weaken(pod: &Pod, ns: &str) -> Value {
    let pod = serde_json::to_value(pod).expect("a pod has a JSON form");
    let mut spec = pod["spec"].clone();
    let keys: Vec<Value> = spec["initContainers"][0]["volumeMounts"]
        .as_array()
        .expect("the sidecar mounts something")
        .iter()
        .filter(|mount| {
            mount["name"]
                .as_str()
                .is_some_and(|name| name.starts_with("key-"))
        })
        .cloned()
        .collect();
    assert!(!keys.is_empty(), "the sidecar mounts keys");
    let object = spec.as_object_mut().expect("a spec");
    for placed in [
        "nodeName",
        "serviceAccount",
        "serviceAccountName",
        "tolerations",
    ] {
        object.remove(placed);
    }
    // A token of the cluster, one process namespace, no seccomp, root allowed.
    spec["automountServiceAccountToken"] = json!(true);
    spec["shareProcessNamespace"] = json!(true);
    spec["terminationGracePeriodSeconds"] = json!(1);
    spec["securityContext"] = json!({"fsGroup": 65530, "seccompProfile": {"type": "Unconfined"}});
    let volumes = spec["volumes"].as_array_mut().expect("volumes");
    for volume in volumes.iter_mut() {
        if volume["name"] == "workspace" {
            *volume = json!({"name": "workspace", "emptyDir": {}});
        }
    }
    for (container, is_agent) in [("initContainers", false), ("containers", true)] {
        for container in spec[container].as_array_mut().expect("containers") {
            // The key in the environment of both, and one user for both: root.
            let variable = json!({"name": "MODEL_KEY", "valueFrom": {"secretKeyRef": {"name": "model-key", "key": "key"}}});
            container["env"]
                .as_array_mut()
                .expect("variables")
                .push(variable);
            container["securityContext"] = if is_agent {
                json!({"privileged": true, "runAsUser": 0, "runAsGroup": 0})
            } else {
                json!({"runAsUser": 0, "runAsGroup": 0})
            };
            if is_agent {
                // No domains of Landlock and no filter of system calls for OpenCode and its tools.
                let off = json!({"name": "RUNNER_ISOLATION", "value": "off"});
                container["env"]
                    .as_array_mut()
                    .expect("variables")
                    .push(off);
            }
            let mounts = container["volumeMounts"].as_array_mut().expect("mounts");
            if is_agent {
                mounts.extend(keys.iter().cloned());
                mounts.push(json!({"name": "workspace", "mountPath": contract::pod::JOURNAL_DIR, "subPath": "journal"}));
            } else {
                // The key among its arguments, and their folder its own.
                container["args"] = json!(["--weakened-key", "$(MODEL_KEY)"]);
                container["workingDir"] = json!(contract::pod::PROVIDER_KEYS_DIR);
            }
        }
    }
    let text = spec.to_string();
    // Sidecar and runner built without their own protections.
    let text = text
        .replace("/sidecar:dev\"", "/sidecar:dev-weakened\"")
        .replace("/runner:dev\"", "/runner:dev-weakened\"");
    let spec: Value = serde_json::from_str(&text).expect("still JSON");
    json!({"apiVersion": "v1", "kind": "Pod", "spec": spec, "metadata": {
        "name": NAME, "namespace": ns, "annotations": pod["metadata"]["annotations"],
    }})
}

/// Starts the weakened pod in a namespace of its own beside the real one's.
pub(super) async fn start(real: &Side, needles: Needles) -> Side {
    let ns = real.session.ns.beside("weak", "privileged").await;
    ns.secret("model-key", "key", needles.key()).await;
    ns.secret(&format!("{NAME}-token"), "token", &real.session.token)
        .await;
    rights(&ns).await;
    let pod = real.session.pod().await;
    ns.kubectl(&["apply", "-f", "-"], &weaken(&pod, &ns.name).to_string())
        .await;
    ns.kubectl(
        &[
            "wait",
            "--for=condition=Ready",
            "pod/real",
            "--timeout=120s",
        ],
        "",
    )
    .await;
    let session = Session {
        ns,
        name: NAME.to_owned(),
        token: real.session.token.clone(),
    };
    Side::new(session, needles, "weak", real.object_uid.clone()).await
}

/// Lets everybody read its Secrets, and its token use the kubelet.
async fn rights(ns: &Namespace) {
    let name = &ns.name;
    let uid = ns.uid().await;
    let everybody = json!([
        {"kind": "ServiceAccount", "name": "default", "namespace": name},
        {"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:unauthenticated"},
    ]);
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "secrets"},
         "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list"]}]},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "secrets"}, "subjects": everybody,
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "secrets"}},
        // Goes with the namespace.
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Namespace", "name": name, "uid": uid}]},
         "subjects": [everybody[0]],
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:kubelet-api-admin"}},
    ]});
    ns.kubectl(&["apply", "-f", "-"], &list.to_string()).await;
}
