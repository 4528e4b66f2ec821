//! One operator at a time, by a Lease.

use crate::{config::Config, server::Ready};
use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

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
        let mut builder = LeaseManagerBuilder::new(client, &config.lease_name)
            .with_namespace(&config.pod_namespace)
            .with_duration(15)
            .with_grace(5);
        if let Some(name) = &config.pod_name {
            builder = builder.with_identity(name);
        }
        let manager = builder.build().await.map_err(LeaderError::Lease)?;
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
        Ok(Some(Self::Holding { held, task }))
    }

    /// Returns when the right is lost; never without a Lease.
    pub async fn lost(&self) -> LeaderError {
        match self {
            Self::Alone => std::future::pending().await,
            Self::Holding { held, .. } => {
                let mut held = held.clone();
                let _ = held.wait_for(|leads| !*leads).await;
                LeaderError::Lost
            }
        }
    }

    /// Gives the Lease back, so that the next need not wait for its end.
    pub async fn release(self) {
        if let Self::Holding { held, task } = self {
            drop(held);
            match task.await {
                Ok(Ok(manager)) => {
                    if let Err(error) = manager.release().await {
                        tracing::debug!(%error, "the Lease was not given back");
                    }
                }
                Ok(Err(error)) => tracing::debug!(%error, "the Lease's task ended"),
                Err(error) => tracing::warn!(%error, "the Lease's task ended"),
            }
        }
    }
}
