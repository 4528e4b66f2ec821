//! Calls about checkpoints.

use super::{ClientError, SidecarClient, checked};
use crate::{
    checkpoint::{
        Branch, Checkpoint, CheckpointDiff, CheckpointList, CreateBranch, Fork, Restored,
    },
    session::Session,
};
use bytes::Bytes;
use reqwest::Method;
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;

/// Bound of calls about checkpoints: those of a large workspace take minutes.
pub const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(900);

impl SidecarClient {
    /// `GET /checkpoints`.
    pub async fn checkpoints(&self) -> Result<CheckpointList, ClientError> {
        self.call::<(), _>(Method::GET, "/checkpoints", None).await
    }

    /// `POST /checkpoints`.
    pub async fn take_checkpoint(&self) -> Result<Checkpoint, ClientError> {
        self.change::<(), _>("/checkpoints", None).await
    }

    /// `GET /checkpoints/{from}/diff/{to}`; `empty` is a checkpoint of nothing.
    pub async fn diff(&self, from: &str, to: &str) -> Result<CheckpointDiff, ClientError> {
        let path = format!("/checkpoints/{from}/diff/{to}");
        self.call::<(), _>(Method::GET, &path, None).await
    }

    /// `GET /checkpoints/{from}/patch/{to}`.
    pub async fn patch(&self, from: &str, to: &str) -> Result<Bytes, ClientError> {
        let request = self
            .request(Method::GET, &format!("/checkpoints/{from}/patch/{to}"))
            .timeout(CHECKPOINT_TIMEOUT);
        let response = checked(request.send().await.map_err(ClientError::Transport)?).await?;
        response.bytes().await.map_err(ClientError::Transport)
    }

    /// `POST /checkpoints/{id}/restore`.
    pub async fn restore(&self, checkpoint: &str) -> Result<Restored, ClientError> {
        self.change::<(), _>(&format!("/checkpoints/{checkpoint}/restore"), None)
            .await
    }

    /// `POST /checkpoints/{id}/fork`.
    pub async fn fork(&self, checkpoint: &str, body: &Fork) -> Result<Session, ClientError> {
        self.change(&format!("/checkpoints/{checkpoint}/fork"), Some(body))
            .await
    }

    /// `POST /checkpoints/{id}/branch`.
    pub async fn branch(
        &self,
        checkpoint: &str,
        body: &CreateBranch,
    ) -> Result<Branch, ClientError> {
        self.change(&format!("/checkpoints/{checkpoint}/branch"), Some(body))
            .await
    }

    /// A POST that may take as long as a large workspace does.
    async fn change<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        let mut request = self.request(Method::POST, path).timeout(CHECKPOINT_TIMEOUT);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = checked(request.send().await.map_err(ClientError::Transport)?).await?;
        let status = response.status().as_u16();
        response
            .json()
            .await
            .map_err(|_| ClientError::Unexpected { status })
    }
}
