//! An OpenCodeSession of a test.

use crate::{Model, Namespace, Recorder, eventually, kubectl::Said};
use contract::{
    SessionId,
    client::SidecarClient,
    session::{CreateSession, CreateTurn},
};
use crds::session::OpenCodeSession;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

/// How long a pod may take to become ready on a busy machine.
pub const READY: Duration = Duration::from_secs(90);
/// How long a scripted turn may take on a busy machine.
pub const TURN: Duration = Duration::from_secs(90);
/// The key that the double accepts, unless a test says otherwise.
pub const KEY: &str = "sk-test-0123456789";

/// A session and what talks to it.
pub struct Session {
    /// Its namespace.
    pub ns: Namespace,
    /// Its name.
    pub name: String,
    /// Bearer of its sidecar.
    pub token: String,
}

impl Session {
    /// Model, Secrets and an object named `name` with this prompt, applied; `patch` is merged over the
    /// spec.
    pub async fn apply(
        ns: &Namespace,
        name: &str,
        prompt: Option<&str>,
        patch: Value,
    ) -> (Self, Model) {
        let model = Model::start(ns, "model", KEY).await;
        ns.secret("model-key", "key", KEY).await;
        let session = Self::apply_with(
            ns,
            name,
            prompt,
            json!([model.provider("compatible", "model-key")]),
            patch,
        )
        .await;
        (session, model)
    }

    /// The same with providers of one's own; the first is the one in use.
    pub async fn apply_with(
        ns: &Namespace,
        name: &str,
        prompt: Option<&str>,
        providers: Value,
        patch: Value,
    ) -> Self {
        let token = uuid::Uuid::new_v4().simple().to_string();
        ns.secret(&format!("{name}-token"), "token", &token).await;
        let mut spec = json!({
            "model": {"provider": providers[0]["name"], "name": "scripted-1"},
            "providers": providers,
            "workspace": {"storage": "1Gi"},
            "sidecar": {"sharedSecretRef": {"name": format!("{name}-token"), "key": "token"}},
        });
        if let Some(prompt) = prompt {
            spec["prompt"] = json!(prompt);
        }
        merge(&mut spec, patch);
        let object = json!({
            "apiVersion": "opencode-operator.dev/v1alpha1", "kind": "OpenCodeSession",
            "metadata": {"name": name}, "spec": spec,
        });
        ns.kubectl(&["apply", "-f", "-"], &object.to_string()).await;
        Self {
            ns: ns.clone(),
            name: name.to_owned(),
            token,
        }
    }

    /// The object now.
    pub async fn object(&self) -> Result<OpenCodeSession, String> {
        self.ns
            .api::<OpenCodeSession>()
            .get(&self.name)
            .await
            .map_err(|error| error.to_string())
    }

    /// Merges into the spec.
    pub async fn patch(&self, spec: Value) {
        self.ns
            .api::<OpenCodeSession>()
            .patch(
                &self.name,
                &PatchParams::default(),
                &Patch::Merge(json!({"spec": spec})),
            )
            .await
            .expect("the spec is taken");
    }

    /// `status: reason` of a condition, or what is there instead.
    pub async fn condition(&self, kind: &str) -> String {
        match self.object().await {
            Ok(object) => object
                .status
                .unwrap_or_default()
                .conditions
                .iter()
                .find(|condition| condition.type_ == kind)
                .map_or_else(
                    || "absent".into(),
                    |c| format!("{}: {}: {}", c.status, c.reason, c.message),
                ),
            Err(error) => error,
        }
    }

    /// Waits until a condition begins like this, as in `True` or `False: KeyMissing`.
    pub async fn wait_condition(&self, kind: &str, begins: &str, within: Duration) -> String {
        eventually(
            &format!("condition {kind} {begins} of {}", self.name),
            within,
            || async {
                let seen = self.condition(kind).await;
                if seen.starts_with(begins) {
                    Ok(seen)
                } else {
                    Err(seen)
                }
            },
        )
        .await
    }

    /// Waits until the pod takes turns.
    pub async fn ready(&self) {
        self.wait_condition("Ready", "True", READY).await;
    }

    /// The pod, once it has an address.
    pub async fn pod(&self) -> Pod {
        let pods = self.ns.api::<Pod>();
        eventually("the pod's address", READY, || async {
            let pod = pods
                .get(&self.name)
                .await
                .map_err(|error| error.to_string())?;
            let has = pod
                .status
                .as_ref()
                .is_some_and(|status| status.pod_ip.is_some());
            if has {
                Ok(pod)
            } else {
                Err("no address".to_owned())
            }
        })
        .await
    }

    /// Base URL of the sidecar's API. Tests run where pods can be reached.
    pub async fn url(&self) -> String {
        let pod = self.pod().await;
        let ip = pod
            .status
            .and_then(|status| status.pod_ip)
            .expect("waited for above");
        format!("http://{ip}:3003")
    }

    /// A client of the sidecar, once it answers.
    pub async fn client(&self) -> SidecarClient {
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(3))
            // Streams have a comment every 10 s: silence means that the pod is gone.
            .read_timeout(Duration::from_secs(35))
            .build()
            .expect("a client");
        let url = eventually(
            "the sidecar's port (are pod addresses reachable from here?)",
            READY,
            || async {
                // The address of this moment: the pod may be replaced under way.
                let url = self.url().await;
                let answer = http
                    .get(format!("{url}/healthz"))
                    .timeout(Duration::from_secs(2))
                    .send()
                    .await;
                answer.map(|_| url).map_err(|error| error.to_string())
            },
        )
        .await;
        SidecarClient::new(http, url, self.token.clone().into())
    }

    /// Starts a session through the API, as a backend does.
    pub async fn create(&self, id: &str, prompt: &str) -> SessionId {
        let id = SessionId::new(id).expect("a session id");
        let body = CreateSession {
            session_id: id.clone(),
            prompt: prompt.to_owned(),
            model_config: None,
            system_prompt: None,
        };
        self.client()
            .await
            .create_session(&body)
            .await
            .expect("the session is taken");
        id
    }

    /// A further turn.
    pub async fn turn(&self, id: &SessionId, prompt: &str) {
        let body = CreateTurn {
            prompt: prompt.to_owned(),
            api_key: None,
        };
        self.client()
            .await
            .create_turn(id, &body)
            .await
            .expect("the turn is taken");
    }

    /// UID of the pod and how often each of its containers was started again, by name.
    pub async fn restarts(&self) -> (String, BTreeMap<String, i32>) {
        let pod = self.pod().await;
        let status = pod.status.unwrap_or_default();
        let all = status
            .init_container_statuses
            .iter()
            .flatten()
            .chain(status.container_statuses.iter().flatten());
        let counts = all.map(|c| (c.name.clone(), c.restart_count)).collect();
        (pod.metadata.uid.expect("pods have a UID"), counts)
    }

    /// UID of the pod.
    pub async fn pod_uid(&self) -> String {
        self.restarts().await.0
    }

    /// Waits until an object of this kind and name is gone from the namespace.
    pub async fn gone(&self, kind: &str, name: &str, within: Duration) {
        eventually(&format!("{kind} {name} to be gone"), within, || async {
            let said = self
                .ns
                .kubectl(&["get", kind, name, "--ignore-not-found", "-o", "name"], "")
                .await;
            if said.is_empty() { Ok(()) } else { Err(said) }
        })
        .await;
    }

    /// The id of the session of `spec.prompt`.
    #[must_use]
    pub fn prompt_id(&self) -> SessionId {
        SessionId::new(self.name.clone()).expect("an object's name is a session id")
    }

    /// Reads a session from its first event to the end of its last turn, through every cut.
    pub async fn read(&self, id: &SessionId) -> Recorder {
        let mut recorder = Recorder::default();
        tokio::time::timeout(TURN, recorder.read_to_end(self, id))
            .await
            .unwrap_or_else(|_| {
                panic!("the turn did not end within {TURN:?}; so far: {recorder:#?}")
            });
        recorder
    }

    /// What the sidecar tells Prometheus.
    pub async fn metrics(&self) -> Result<String, String> {
        let client = reqwest::Client::builder().no_proxy().build();
        let answer = client
            .expect("a client")
            .get(format!("{}/metrics", self.url().await))
            .bearer_auth(&self.token)
            .timeout(Duration::from_secs(10))
            .send()
            .await;
        let answer = answer.and_then(reqwest::Response::error_for_status);
        let text = answer.map_err(|error| error.to_string())?.text().await;
        text.map_err(|error| error.to_string())
    }

    /// Runs a command in a container.
    pub async fn exec(&self, container: &str, command: &[&str]) -> Said {
        let mut args = vec!["exec", self.name.as_str(), "-c", container, "--"];
        args.extend_from_slice(command);
        self.ns.try_kubectl(&args, "").await
    }

    /// A file of the workspace; panics when it is not there.
    pub async fn file(&self, path: &str) -> String {
        let said = self
            .exec("agent", &["cat", &format!("/workspace/{path}")])
            .await;
        assert!(said.ok, "no file {path}: {}", said.err);
        said.out
    }
}

/// RFC 7386.
fn merge(into: &mut Value, patch: Value) {
    match patch {
        Value::Object(patch) => {
            if !into.is_object() {
                *into = json!({});
            }
            let object = into.as_object_mut().expect("made one above");
            for (name, value) in patch {
                if value.is_null() {
                    object.remove(&name);
                } else {
                    merge(object.entry(name).or_insert(Value::Null), value);
                }
            }
        }
        other => *into = other,
    }
}
