//! The language model's double as a pod: the only double of these tests.

use crate::{Namespace, eventually, image};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::time::Duration;

/// A scripted model in the namespace, reached by sessions as `http://<name>/v1`.
pub struct Model {
    /// Name of its pod and service.
    pub name: String,
    /// Base URL for this process: the request log is at `/requests`.
    pub url: String,
}

impl Model {
    /// Starts one that takes only this key.
    pub async fn start(ns: &Namespace, name: &str, key: &str) -> Self {
        // Keys come from a Secret, as a real provider's would: rotating it is changing the Secret.
        ns.secret(&format!("{name}-accepts"), "keys", key).await;
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": {
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "terminationGracePeriodSeconds": 1,
                "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
                "volumes": [{"name": "keys", "secret": {"secretName": format!("{name}-accepts")}}],
                "containers": [{
                    "name": "scripted-model",
                    "image": image("scripted-model"),
                    "imagePullPolicy": "IfNotPresent",
                    "args": ["--listen", "0.0.0.0:8080", "--require-key-file", "/keys/keys"],
                    "ports": [{"containerPort": 8080}],
                    "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
                    "volumeMounts": [{"name": "keys", "mountPath": "/keys"}],
                    "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
                }],
            }},
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {
                "selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}],
            }},
        ]});
        ns.kubectl(&["apply", "-f", "-"], &list.to_string()).await;
        let pods = ns.api::<Pod>();
        let ip = eventually("the scripted model", Duration::from_secs(60), || async {
            let pod = pods.get(name).await.map_err(|error| error.to_string())?;
            let status = pod.status.ok_or("no status")?;
            let ready = status
                .conditions
                .iter()
                .flatten()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True");
            if !ready {
                return Err(format!("phase {:?}", status.phase));
            }
            status.pod_ip.ok_or_else(|| "no address".to_owned())
        })
        .await;
        Self {
            name: name.to_owned(),
            url: format!("http://{ip}:8080"),
        }
    }

    /// The entry of `spec.providers` for it.
    #[must_use]
    pub fn provider(&self, kind: &str, secret: &str) -> Value {
        json!({
            "name": self.name, "kind": kind, "endpoint": format!("http://{}/v1", self.name),
            "apiKeySecretRef": {"name": secret, "key": "key"},
        })
    }

    /// Requests that it got, oldest first.
    pub async fn requests(&self) -> Vec<Value> {
        let answer: Value = reqwest::get(format!("{}/requests", self.url))
            .await
            .expect("the scripted model answers")
            .json()
            .await
            .expect("its log is JSON");
        match answer {
            Value::Array(list) => list,
            Value::Object(mut object) => match object.remove("requests") {
                Some(Value::Array(list)) => list,
                other => panic!("a log of requests, not {other:?}"),
            },
            other => panic!("a log of requests, not {other}"),
        }
    }
}
