//! Puts the parts together.

use crate::{
    apply::Writer,
    config::Config,
    controller, leader,
    metrics::Metrics,
    server::{self, Ready},
    session::{observe::Stores, reconcile::Context},
    summaries::{NoClient, Summaries, http_client},
};
use contract::token::{InvalidKey, KeySet, Signing};
use futures::StreamExt;
use kube::Client;
use std::{path::PathBuf, sync::Arc};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

/// Why the operator cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file cannot be read.
    #[error("{} cannot be read", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The signing key is none.
    #[error("{} is no signing key", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: InvalidKey,
    },
    /// The file of public keys is none.
    #[error("{} is no set of public keys", path.display())]
    TrustedKeys {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// No cluster.
    #[error(
        "the cluster cannot be reached; in a pod its service account is used, elsewhere KUBECONFIG"
    )]
    Cluster(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The port cannot be opened.
    #[error("{address} cannot be opened")]
    Listen {
        /// Address and port.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// No HTTP client.
    #[error(transparent)]
    Http(#[from] NoClient),
    /// The lease is lost or cannot be asked for.
    #[error(transparent)]
    Leader(#[from] leader::LeaderError),
    /// A part ended that the others rely on.
    #[error("{0} ended by itself; the process ends with it, to be started anew")]
    PartEnded(&'static str),
}

/// Runs until `stop` is cancelled or a part fails.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), RunError> {
    let signing = signing_key(&config)?;
    let keys = public_keys(&config, &signing)?;
    let client = Client::try_default()
        .await
        .map_err(|e| RunError::Cluster(e.into()))?;
    let version = client
        .apiserver_version()
        .await
        .map_err(|e| RunError::Cluster(e.into()))?;
    let binaries = config.pods.binaries.resolve(&version.major, &version.minor);
    tracing::info!(server = version.git_version, ?binaries, "connected");

    let metrics = Metrics::default();
    let ready = Ready::default();
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|source| RunError::Listen {
            address: config.listen,
            source,
        })?;
    // Ends with this function, however it ends.
    let all = stop.child_token();
    let _guard = all.clone().drop_guard();
    let serving = tokio::spawn(server::serve(
        listener,
        metrics.clone(),
        ready.clone(),
        all.clone(),
    ));
    let serving = async move { serving.await.map_err(|_| ()) };
    tokio::pin!(serving);

    let leading = leader::Leader::acquire(&config, client.clone(), &ready, &all);
    let leader = tokio::select! {
        leader = leading => match leader? {
            Some(leader) => leader,
            None => return Ok(()),
        },
        _ = &mut serving => return Err(RunError::PartEnded("the HTTP server")),
    };
    metrics.leader(true);

    let (wake, woken) = mpsc::unbounded_channel();
    let summaries = Summaries::new(http_client()?, Arc::new(signing), wake, all.clone());
    let namespace = Some(config.watch_namespace.as_str()).filter(|n| !n.is_empty());
    let caches = controller::watch(&client, namespace, &metrics);
    let context = Arc::new(Context {
        stores: Stores {
            pods: caches.pods.clone(),
            claims: caches.claims.clone(),
        },
        summaries: summaries.clone(),
        settings: config.pods.settings(binaries, keys),
        writer: Writer::new(client, config.pod_name.clone()),
        metrics: metrics.clone(),
    });
    let filled = {
        let (sessions, pods, claims) = (
            caches.sessions.clone(),
            caches.pods.clone(),
            caches.claims.clone(),
        );
        async move {
            let _ = tokio::join!(
                sessions.wait_until_ready(),
                pods.wait_until_ready(),
                claims.wait_until_ready()
            );
        }
    };
    // No round before all caches are filled: a pod that is not in the cache yet would be made anew.
    let triggers = controller::hold_until(filled, ready, caches.triggers);
    let triggers = futures::stream::select(triggers, controller::summary_triggers(woken)).boxed();
    let controlling = tokio::spawn(controller::run(
        context,
        caches.sessions,
        triggers,
        all.clone(),
    ));
    tokio::pin!(controlling);

    let outcome = tokio::select! {
        () = stop.cancelled() => Ok(()),
        _ = &mut controlling => Err(RunError::PartEnded("the controller")),
        _ = &mut serving => Err(RunError::PartEnded("the HTTP server")),
        lost = leader.lost() => Err(lost.into()),
    };
    all.cancel();
    if outcome.is_ok() {
        // Rounds under way finish; each write is bounded.
        let _ = controlling.await;
    }
    summaries.ended().await;
    leader.release().await;
    outcome
}

fn signing_key(config: &Config) -> Result<Signing, RunError> {
    let path = &config.signing_key_file;
    let pem = std::fs::read_to_string(path).map_err(|source| RunError::File {
        path: path.clone(),
        source,
    })?;
    Signing::from_pem(&pem).map_err(|source| RunError::Key {
        path: path.clone(),
        source,
    })
}

fn public_keys(config: &Config, signing: &Signing) -> Result<String, RunError> {
    let mut set = KeySet {
        keys: vec![signing.public()],
    };
    if let Some(path) = &config.trusted_keys_file {
        let text = std::fs::read_to_string(path).map_err(|source| RunError::File {
            path: path.clone(),
            source,
        })?;
        let others: KeySet =
            serde_json::from_str(&text).map_err(|source| RunError::TrustedKeys {
                path: path.clone(),
                source,
            })?;
        set.keys.extend(others.keys);
    }
    Ok(serde_json::to_string(&set).expect("keys have a JSON form"))
}
