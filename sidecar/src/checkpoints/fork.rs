//! A new conversation that begins where a checkpoint's session stood.

use super::Failure;
use crate::{
    app::App,
    store::{record::Note, session::Session},
};
use contract::{ErrorCode, checkpoint::Checkpoint};
use std::sync::Arc;

/// Copies the conversation as it was at the checkpoint; OpenCode's id of the copy. `None`: the checkpoint
/// belongs to no session.
pub(crate) async fn conversation(
    app: &App,
    checkpoint: &Checkpoint,
) -> Result<Option<String>, Failure> {
    let (Some(id), Some(turn)) = (&checkpoint.session_id, checkpoint.turn) else {
        return Ok(None);
    };
    let Some(session) = app.store.get(id) else {
        return Err(Failure::new(
            ErrorCode::CheckpointFailed,
            format!("the checkpoint's session {id} is no longer there"),
        ));
    };
    let end = message_of(&session, turn.saturating_add(1)).await?;
    let opencode = app.agent.opencode();
    let copied = opencode
        .fork(&session.created.opencode_session, end.as_deref())
        .await;
    copied.map(Some).map_err(|error| {
        Failure::new(
            ErrorCode::AgentUnavailable,
            format!("the agent did not copy the conversation: {error}"),
        )
    })
}

/// Id of the user's message that began a turn; `None`: there is no such turn.
async fn message_of(session: &Arc<Session>, turn: u32) -> Result<Option<String>, Failure> {
    let log = Arc::clone(session.log());
    let scanned = tokio::task::spawn_blocking(move || {
        let mut found = None;
        log.scan(&mut |frame| {
            if frame.event.is_none()
                && let Ok(Note::Turn(note)) = serde_json::from_slice(frame.payload)
                && note.turn == turn
            {
                found = Some(note.message_id);
            }
        })
        .map(|()| found)
    });
    let failed = |error: &dyn std::error::Error| {
        tracing::error!(session_id = %session.id(), %error, "a journal cannot be read");
        Failure::new(ErrorCode::Internal, "the session's journal cannot be read")
    };
    match scanned.await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(failed(&error)),
        Err(error) => Err(failed(&error)),
    }
}
