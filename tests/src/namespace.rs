//! A namespace per test, labelled `restricted`, with a dump of all that is in it when the test fails.

use crate::kubectl::kubectl;
use futures::FutureExt;
use k8s_openapi::api::core::v1::Namespace as KubeNamespace;
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use serde_json::json;
use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::{OnceLock, PoisonError, RwLock},
};

/// A namespace of one test.
#[derive(Clone)]
pub struct Namespace {
    /// Its random name.
    pub name: String,
    /// A client of the cluster.
    pub client: Client,
}

fn tls() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        // Installed before by another test: the same provider.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
    });
}

/// Held by every test; alone by those that disturb what all share.
static CLUSTER: RwLock<()> = RwLock::new(());

/// Runs a test in a namespace of its own. Removes the namespace when the test passes; shows what is
/// in it, then removes it, when it fails.
pub fn run<F, Fut>(name: &str, test: F)
where
    F: FnOnce(Namespace) -> Fut,
    Fut: Future<Output = ()>,
{
    let _shared = CLUSTER.read().unwrap_or_else(PoisonError::into_inner);
    run_in_namespace(name, test);
}

/// The same, with no other test of this process beside it: for those that kill the operator or need both cores.
pub fn run_alone<F, Fut>(name: &str, test: F)
where
    F: FnOnce(Namespace) -> Fut,
    Fut: Future<Output = ()>,
{
    let _alone = CLUSTER.write().unwrap_or_else(PoisonError::into_inner);
    run_in_namespace(name, test);
}

fn run_in_namespace<F, Fut>(name: &str, test: F)
where
    F: FnOnce(Namespace) -> Fut,
    Fut: Future<Output = ()>,
{
    tls();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let client = Client::try_default()
            .await
            .expect("KUBECONFIG names a cluster: run `make test`, or `eval \"$(deploy/local/cluster.sh env)\"` first");
        let random = uuid::Uuid::new_v4().simple().to_string();
        let namespace = Namespace { name: format!("e2e-{name}-{}", &random[..6]), client };
        namespace.create("restricted", None).await;
        let result = AssertUnwindSafe(test(namespace.clone())).catch_unwind().await;
        if let Err(panic) = result {
            namespace.dump().await;
            namespace.delete().await;
            std::panic::resume_unwind(panic);
        }
        namespace.delete().await;
    });
}

impl Namespace {
    /// Another one, which goes with this one. `level`: its Pod Security.
    pub async fn beside(&self, suffix: &str, level: &str) -> Self {
        let other = Self {
            name: format!("{}-{suffix}", self.name),
            client: self.client.clone(),
        };
        other.create(level, Some(self)).await;
        other
    }

    /// Its UID.
    pub async fn uid(&self) -> String {
        let api = Api::<KubeNamespace>::all(self.client.clone());
        let this = api.get(&self.name).await.expect("the namespace is there");
        this.metadata.uid.expect("objects have a UID")
    }

    async fn create(&self, level: &str, owner: Option<&Self>) {
        let mut owners = Vec::new();
        if let Some(owner) = owner {
            owners.push(json!({"apiVersion": "v1", "kind": "Namespace", "name": owner.name, "uid": owner.uid().await}));
        }
        let body: KubeNamespace = serde_json::from_value(json!({
            "metadata": {
                "name": self.name,
                "labels": {"pod-security.kubernetes.io/enforce": level},
                "ownerReferences": owners,
            }
        }))
        .expect("a namespace");
        Api::<KubeNamespace>::all(self.client.clone())
            .create(&PostParams::default(), &body)
            .await
            .expect("the namespace is made");
    }

    async fn delete(&self) {
        let api = Api::<KubeNamespace>::all(self.client.clone());
        if let Err(error) = api.delete(&self.name, &DeleteParams::default()).await {
            eprintln!("the namespace {} was not removed: {error}", self.name);
        }
    }

    /// An API of this namespace.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// kubectl in this namespace; panics when it fails.
    pub async fn kubectl(&self, args: &[&str], input: &str) -> String {
        let said = self.try_kubectl(args, input).await;
        assert!(said.ok, "kubectl {args:?} failed: {}", said.err);
        said.out
    }

    /// kubectl in this namespace.
    pub async fn try_kubectl(&self, args: &[&str], input: &str) -> crate::kubectl::Said {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend_from_slice(args);
        kubectl(&all, input).await
    }

    /// Makes a Secret with one key.
    pub async fn secret(&self, name: &str, key: &str, value: &str) {
        let yaml = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {key: value}});
        self.kubectl(&["apply", "-f", "-"], &yaml.to_string()).await;
    }

    /// Shows what is in it on standard error.
    pub async fn dump(&self) {
        let show: [&[&str]; 4] = [
            &["get", "opencodesessions", "-o", "yaml"],
            &["get", "pods,pvc", "-o", "wide"],
            &["get", "events", "--sort-by=.lastTimestamp"],
            &["describe", "pods"],
        ];
        for args in show {
            let said = self.try_kubectl(args, "").await;
            eprintln!(
                "--- kubectl {} ---\n{}{}",
                args.join(" "),
                said.out,
                said.err
            );
        }
        let pods = self.try_kubectl(&["get", "pods", "-o", "name"], "").await;
        for pod in pods.out.lines() {
            let said = self
                .try_kubectl(
                    &["logs", pod, "--all-containers", "--prefix", "--tail=80"],
                    "",
                )
                .await;
            eprintln!("--- logs of {pod} ---\n{}{}", said.out, said.err);
        }
        let said = kubectl(
            &[
                "-n",
                "opencode-operator-system",
                "logs",
                "deployment/opencode-operator",
                "--since=3m",
            ],
            "",
        )
        .await;
        let lines: Vec<_> = said
            .out
            .lines()
            .filter(|line| line.contains(&self.name))
            .collect();
        eprintln!(
            "--- what the operator said of {} ---\n{}",
            self.name,
            lines.join("\n")
        );
    }
}
