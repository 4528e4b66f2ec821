//! The checkpoint at the end of a turn.

use super::Drive;
use crate::{
    checkpoints::{self, Cause},
    store::session::now,
};
use contract::{
    ErrorCode, Event, EventBody,
    checkpoint::CheckpointDetail,
    event::{MAIN_AGENT, Status, StatusKind},
    pod::CheckpointMode,
};
use std::time::Duration;

/// How long the end of a turn waits for its checkpoint, which then goes on by itself.
const CHECKPOINT_BOUND: Duration = Duration::from_secs(10);

impl Drive {
    /// Keeps the workspace as it is now. Whatever comes of it, the turn ends: an event says what came.
    pub(super) async fn checkpoint(&mut self) {
        let entered = self.app.checkpoints.gate.entered();
        self.working = None;
        let wanted = self.app.config.pod().checkpoints.mode == CheckpointMode::AfterTurn;
        if !wanted || !self.heard || self.app.shutdown.is_cancelled() {
            return;
        }
        let cause = Cause::Turn(self.session.id().clone(), self.number, entered);
        let taking = checkpoints::begin(&self.app, cause);
        let (text, detail) = match tokio::time::timeout(CHECKPOINT_BOUND, taking).await {
            Ok(Ok(Ok(checkpoint))) => {
                let id = &checkpoint.checkpoint_id;
                let mixed = if checkpoint.mixed {
                    "; another turn ran meanwhile"
                } else {
                    ""
                };
                let text = format!("checkpoint {id} of the workspace was taken{mixed}");
                let detail = CheckpointDetail {
                    checkpoint_id: Some(checkpoint.checkpoint_id),
                    root: Some(checkpoint.root),
                    mixed: checkpoint.mixed,
                    failed: None,
                };
                (text, detail)
            }
            Ok(Ok(Err(failure))) => {
                let detail = CheckpointDetail {
                    failed: Some(failure.code),
                    ..CheckpointDetail::default()
                };
                (format!("no checkpoint of the workspace: {failure}"), detail)
            }
            Ok(Err(_)) => {
                let detail = CheckpointDetail {
                    failed: Some(ErrorCode::Internal),
                    ..CheckpointDetail::default()
                };
                ("no checkpoint of the workspace: it broke off".into(), detail)
            }
            Err(_) => (
                "the checkpoint of the workspace takes longer; GET /checkpoints has it when it is done".into(),
                CheckpointDetail::default(),
            ),
        };
        let mut status = Status::new(StatusKind::Checkpoint, text);
        status.detail = serde_json::to_value(detail).ok();
        // Not waited for: the end comes after it, and says what is wrong with the journal.
        let _ = self.session.append(Event {
            turn: self.number,
            ts: now(),
            agent: MAIN_AGENT.into(),
            body: EventBody::Status(status),
        });
    }
}
