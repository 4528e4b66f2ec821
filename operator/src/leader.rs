//! One operator at a time, by a Lease.

use crate::{config::Config, server::Ready};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use std::time::Duration;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long a Lease counts after its last renewal, in seconds.
const LEASE_SECONDS: u64 = 15;
/// How often the holder looks at its own Lease.
const LOOK: Duration = Duration::from_secs(3);
/// Longest time to give the Lease back; the next leader otherwise waits for its end.
const RELEASE: Duration = Duration::from_secs(3);

/// Why this process cannot lead.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// The Lease cannot be read or written.
    #[error(
        "the Lease cannot be used; is the operator allowed to get, create and patch leases in its namespace?"
    )]
    Lease(#[source] kube_lease_manager::LeaseManagerError),
    /// Somebody else leads now.
    #[error("the Lease was lost to another process")]
    Lost,
}

/// The right to work, for as long as it is held.
#[derive(Debug)]
pub enum Leader {
    /// Leader election is off.
    Alone,
    /// The Lease is held.
    Holding {
        /// Whether it still is.
        held: watch::Receiver<bool>,
        /// Renews it until `held` is dropped.
        task: JoinHandle<kube_lease_manager::Result<LeaseManager>>,
        /// Where the Lease is.
        leases: Box<Api<Lease>>,
        /// Its name.
        name: String,
        /// What it names us.
        identity: String,
    },
}

impl Leader {
    /// Waits until this process may work; `None` if `stop` came first. While it waits, it is ready: a
    /// rolling update must not wait for it to lead.
    pub async fn acquire(
        config: &Config,
        client: Client,
        ready: &Ready,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, LeaderError> {
        if !config.leader_election {
            return Ok(Some(Self::Alone));
        }
        let identity = config
            .pod_name
            .clone()
            .unwrap_or_else(|| format!("operator-{}", std::process::id()));
        let leases = Box::new(Api::namespaced(client.clone(), &config.pod_namespace));
        let manager = LeaseManagerBuilder::new(client, &config.lease_name)
            .with_namespace(&config.pod_namespace)
            .with_identity(&identity)
            .with_duration(LEASE_SECONDS)
            .with_grace(5)
            .build()
            .await
            .map_err(LeaderError::Lease)?;
        let (mut held, task) = manager.watch().await;
        ready.set();
        tracing::info!(lease = config.lease_name, "waiting to lead");
        tokio::select! {
            leads = held.wait_for(|leads| *leads) => {
                if leads.is_err() {
                    return Err(LeaderError::Lost);
                }
            }
            () = stop.cancelled() => return Ok(None),
        }
        tracing::info!(lease = config.lease_name, "leading");
        Ok(Some(Self::Holding {
            held,
            task,
            leases,
            name: config.lease_name.clone(),
            identity,
        }))
    }

    /// Returns when the right is lost; never without a Lease.
    pub async fn lost(&self) -> LeaderError {
        match self {
            Self::Alone => std::future::pending().await,
            Self::Holding {
                held,
                leases,
                name,
                identity,
                ..
            } => {
                let mut held = held.clone();
                tokio::select! {
                    _ = held.wait_for(|leads| !*leads) => {}
                    () = expired(leases, name, identity) => {}
                }
                LeaderError::Lost
            }
        }
    }

    /// Gives the Lease back, so that the next need not wait for its end.
    pub async fn release(self) {
        if let Self::Holding { held, task, .. } = self {
            drop(held);
            let giving_back = async {
                match task.await {
                    Ok(Ok(manager)) => {
                        if let Err(error) = manager.release().await {
                            tracing::debug!(%error, "the Lease was not given back");
                        }
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "the Lease's task ended"),
                    Err(error) => tracing::warn!(%error, "the Lease's task ended"),
                }
            };
            if timeout(RELEASE, giving_back).await.is_err() {
                tracing::info!("the Lease was not given back in time; it ends by itself");
            }
        }
    }
}

/// Returns when the Lease is no longer ours by its own words, or could not be looked at for as long as
/// it counts. The library's own word is not enough: it does not take back its yes when renewals fail.
async fn expired(leases: &Api<Lease>, name: &str, identity: &str) {
    let mut good = Instant::now();
    while good.elapsed() < Duration::from_secs(LEASE_SECONDS) {
        sleep(LOOK).await;
        if let Ok(Ok(lease)) = timeout(LOOK, leases.get(name)).await
            && holds(&lease, identity, Timestamp::now())
        {
            good = Instant::now();
        }
    }
    tracing::warn!(lease = name, "the Lease was not renewed in time");
}

/// Whether a Lease names us and was renewed within its time.
fn holds(lease: &Lease, identity: &str, now: Timestamp) -> bool {
    lease.spec.as_ref().is_some_and(|spec| {
        let ours = spec.holder_identity.as_deref() == Some(identity);
        let age = spec
            .renew_time
            .as_ref()
            .map(|renewed| now.as_second() - renewed.0.as_second());
        ours && age.is_some_and(|age| age < LEASE_SECONDS.cast_signed())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_lease_holds_while_it_names_us_and_is_fresh() {
        let lease = |holder: &str| -> Lease {
            serde_json::from_value(json!({"metadata": {"name": "l"},
                "spec": {"holderIdentity": holder, "renewTime": "2026-01-01T00:00:00.000000Z"}}))
            .unwrap()
        };
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert!(holds(&lease("me"), "me", at("2026-01-01T00:00:14Z")));
        assert!(!holds(&lease("me"), "me", at("2026-01-01T00:00:15Z")));
        assert!(!holds(&lease("you"), "me", at("2026-01-01T00:00:01Z")));
        assert!(!holds(&Lease::default(), "me", at("2026-01-01T00:00:01Z")));
    }
}
