//! What OpenCode asks for in mid-turn: permissions become approvals, questions are refused.

use super::Drive;
use crate::{agent::wire::Permission, store::session::JournalError};
use contract::{
    EventBody,
    approval::Decision,
    event::{ApprovalEvent, ApprovalState},
};

impl Drive {
    /// A permission was asked for: answered by a standing consent, else it waits for somebody.
    pub(super) async fn permission_asked(&mut self, ask: &Permission) -> Result<(), JournalError> {
        let known = {
            let state = self.session.state();
            if state.pending.contains_key(&ask.id) {
                return Ok(());
            }
            let standing = state.always.iter().find(|always| {
                always.permission == ask.permission
                    && ask
                        .patterns
                        .iter()
                        .all(|pattern| always.patterns.contains(pattern))
            });
            let answered = state.answered.get(&ask.id).copied();
            answered
                .map(|decision| (decision, false))
                .or(standing.map(|always| (always.decision, true)))
        };
        let call_id = ask.call_id.as_deref().and_then(|id| self.map.call_of(id));
        let mut event = ApprovalEvent {
            approval_id: ask.id.clone(),
            state: ApprovalState::Pending,
            permission: ask.permission.clone(),
            patterns: ask.patterns.clone(),
            call_id,
            by: None,
            message: None,
        };
        let agent = self
            .map
            .agent_of(ask.session.as_deref().unwrap_or_default())
            .to_owned();
        let Some((decision, say)) = known else {
            self.session
                .emit(self.number, [(agent, EventBody::Approval(event))])
                .await?;
            self.app.changed();
            return Ok(());
        };
        if say {
            event.state = if decision == Decision::Reject {
                ApprovalState::Rejected
            } else {
                ApprovalState::Approved
            };
            event.by = Some("standing consent of this session".into());
            self.session
                .emit(self.number, [(agent, EventBody::Approval(event))])
                .await?;
        }
        if let Err(error) = self
            .agent()
            .opencode()
            .reply_permission(&ask.id, decision, None)
            .await
        {
            tracing::warn!(session_id = %self.session.id(), %error, "an answer did not reach OpenCode");
        }
        Ok(())
    }

    /// The question tool is switched off; should OpenCode ask all the same, nobody is there.
    pub(super) async fn question_asked(&mut self, id: &str) {
        tracing::warn!(session_id = %self.session.id(), question = id, "refused a question: nobody can answer it");
        self.refused = true;
        if let Err(error) = self.agent().opencode().reject_question(id).await {
            tracing::warn!(session_id = %self.session.id(), %error, "a refusal did not reach OpenCode");
        }
    }

    /// Asks that OpenCode holds now, as after a reconnect.
    pub(super) async fn take_up_asks(&mut self) -> Result<(), JournalError> {
        for ask in self.open_permissions().await {
            self.permission_asked(&ask).await?;
        }
        for id in self.open_questions().await {
            self.question_asked(&id).await;
        }
        Ok(())
    }

    /// Refuses all that is open: an abandoned ask would keep its file locked for everybody.
    pub(super) async fn refuse_asks(&mut self) {
        for ask in self.open_permissions().await {
            let reply = self
                .agent()
                .opencode()
                .reply_permission(&ask.id, Decision::Reject, None);
            if let Err(error) = reply.await {
                tracing::warn!(session_id = %self.session.id(), %error, "a refusal did not reach OpenCode");
            }
        }
        for id in self.open_questions().await {
            self.question_asked(&id).await;
        }
    }

    /// Permissions that this turn's sessions wait for.
    async fn open_permissions(&self) -> Vec<Permission> {
        match self.agent().opencode().permissions().await {
            Ok(mut asks) => {
                asks.retain(|ask| {
                    ask.session
                        .as_deref()
                        .is_some_and(|session| self.map.owns(session))
                });
                asks
            }
            Err(error) => {
                tracing::warn!(session_id = %self.session.id(), %error, "open permissions are not to be had");
                Vec::new()
            }
        }
    }

    /// Ids of questions that this turn's sessions ask.
    async fn open_questions(&self) -> Vec<String> {
        match self.agent().opencode().questions().await {
            Ok(asks) => asks
                .into_iter()
                .filter(|ask| self.map.owns(&ask.session))
                .map(|ask| ask.id)
                .collect(),
            Err(error) => {
                tracing::warn!(session_id = %self.session.id(), %error, "open questions are not to be had");
                Vec::new()
            }
        }
    }
}
