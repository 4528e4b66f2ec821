//! What OpenCode asks for in mid-turn: permissions become approvals, questions are refused.
//!
//! An ask is decided by the pod's rules, else by a standing consent of the session, else by somebody
//! through the API, else by its deadline. See [`crate::store::session::Settle`] for what a crash leaves.

use super::Drive;
use crate::{
    agent::{
        rules::{Rules, Ruling},
        wire::Permission,
    },
    store::session::{JournalError, Settle, now, settled},
};
use contract::{
    EventBody,
    approval::Decision,
    event::{ApprovalEvent, ApprovalState, DecidedBy},
    pod::OnTimeout,
};
use std::time::Duration;

/// What to do with an ask.
enum Todo {
    /// It waits for somebody.
    Wait,
    /// It was answered before; OpenCode did not hear of it.
    Repeat(Decision, Option<String>),
    Settle(Settle),
}

impl Drive {
    /// A permission is asked for, or still is: called for every look at what OpenCode holds, so that a
    /// changed policy counts for what waits too.
    pub(super) async fn permission_asked(&mut self, ask: &Permission) -> Result<(), JournalError> {
        let ruling = self.ruling(ask);
        let (todo, pending) = {
            let state = self.session.state();
            let pending = state.asks.pending.contains_key(&ask.id);
            let todo = match (state.asks.answered.get(&ask.id), ruling) {
                (Some(answered), _) => Todo::Repeat(answered.decision, answered.message.clone()),
                (None, Ruling::Allow(by)) => Todo::Settle(by_policy(Decision::Once, by)),
                (None, Ruling::Deny(by)) => Todo::Settle(by_policy(Decision::Reject, by)),
                (None, Ruling::Ask) if state.asks.consents(&ask.permission, &ask.patterns) => {
                    Todo::Settle(Settle {
                        decision: Decision::Once,
                        decided: DecidedBy::Consent,
                        by: "standing consent of this session".into(),
                        message: None,
                    })
                }
                (None, Ruling::Ask) => Todo::Wait,
            };
            (todo, pending)
        };
        match todo {
            Todo::Wait if pending => Ok(()),
            Todo::Wait => {
                let timeout = self.app.config.pod().approvals.timeout_seconds;
                let timeout = Duration::from_secs(timeout);
                let mut event = self.approval(ask);
                event.until = now().checked_add(timeout).ok();
                self.session
                    .emit(self.number, [(self.asker(ask), EventBody::Approval(event))])
                    .await?;
                self.app.changed();
                Ok(())
            }
            Todo::Repeat(decision, message) => {
                self.tell(&ask.id, decision, message.as_deref()).await;
                Ok(())
            }
            Todo::Settle(settle) if pending => self.settle_ask(&ask.id, settle).await,
            Todo::Settle(settle) => {
                let event = settled(self.approval(ask), &settle);
                let events = [(self.asker(ask), EventBody::Approval(event))];
                let ticket = self.session.emit_last(self.number, events).await?;
                self.app.metrics.watch.settled(&settle);
                self.app.store.durable(&self.session, ticket).await?;
                let answered = settle.answered();
                self.tell(&ask.id, answered.decision, answered.message.as_deref())
                    .await;
                Ok(())
            }
        }
    }

    /// Settles an ask that waits, unless somebody was faster.
    async fn settle_ask(&mut self, id: &str, settle: Settle) -> Result<(), JournalError> {
        let Some(ticket) = self.session.settle(id, &settle)? else {
            return Ok(());
        };
        self.app.metrics.watch.settled(&settle);
        self.app.store.durable(&self.session, ticket).await?;
        self.app.changed();
        if settle.decided != DecidedBy::Agent {
            let answered = settle.answered();
            self.tell(id, answered.decision, answered.message.as_deref())
                .await;
        }
        Ok(())
    }

    async fn tell(&self, id: &str, decision: Decision, message: Option<&str>) {
        let opencode = self.agent().opencode();
        if let Err(error) = opencode.reply_permission(id, decision, message).await {
            tracing::warn!(session_id = %self.session.id(), approval_id = id, %error, "an answer did not reach OpenCode; it is told again");
        }
    }

    /// Answers what nobody answered in time.
    pub(super) async fn expire_asks(&mut self) -> Result<(), JournalError> {
        let overdue = self.session.state().asks.overdue(now());
        let approvals = self.app.config.pod().approvals.clone();
        for id in overdue {
            let decision = match approvals.on_timeout {
                OnTimeout::Deny => Decision::Reject,
                OnTimeout::Allow => Decision::Once,
            };
            let message = (decision == Decision::Reject).then(|| {
                "Nobody answered in time whether this may run, so it does not. Go on without it, or say what is needed."
                    .to_owned()
            });
            let settle = Settle {
                decision,
                decided: DecidedBy::Deadline,
                by: "deadline".into(),
                message,
            };
            self.settle_ask(&id, settle).await?;
        }
        Ok(())
    }

    /// How long until an ask is overdue.
    pub(super) fn until_overdue(&self) -> Option<Duration> {
        let until = self.session.state().asks.next_deadline()?;
        let left = until.duration_since(now());
        Some(Duration::try_from(left).unwrap_or(Duration::ZERO))
    }

    /// OpenCode says that an ask is answered. Our own answers are recorded before it hears them; so one
    /// that still waits here was refused along with another one, or answered past this API.
    pub(super) async fn permission_replied(
        &mut self,
        id: &str,
        reply: &str,
    ) -> Result<(), JournalError> {
        let refused = reply == "reject";
        if !self.session.state().asks.pending.contains_key(id) {
            return Ok(());
        }
        self.refused |= refused;
        let settle = Settle {
            decision: if refused {
                Decision::Reject
            } else {
                Decision::Once
            },
            decided: DecidedBy::Agent,
            by: if refused {
                "OpenCode, which refuses all that a session asks when one of it is refused".into()
            } else {
                tracing::warn!(session_id = %self.session.id(), approval_id = id, "an ask was answered in the agent's container, past this API");
                "somebody in the agent's container, past this API".into()
            },
            message: None,
        };
        self.settle_ask(id, settle).await
    }

    fn ruling(&self, ask: &Permission) -> Ruling {
        let pod = self.app.config.pod();
        Rules::of(&pod, self.enabled_tools()).decide(&ask.permission, &ask.patterns)
    }

    pub(super) fn enabled_tools(&self) -> Option<&[String]> {
        let model = self.session.created.model_config.as_ref();
        model.and_then(|model| model.enabled_tools.as_deref())
    }

    fn asker(&self, ask: &Permission) -> String {
        let session = ask.session.as_deref().unwrap_or_default();
        self.map.agent_of(session).to_owned()
    }

    fn approval(&self, ask: &Permission) -> ApprovalEvent {
        let call_id = ask.call_id.as_deref().and_then(|id| self.map.call_of(id));
        let tool = call_id.as_deref().and_then(|call| self.map.tool_of(call));
        ApprovalEvent {
            approval_id: ask.id.clone(),
            state: ApprovalState::Pending,
            permission: ask.permission.clone(),
            patterns: ask.patterns.clone(),
            tool: tool.map(str::to_owned),
            call_id,
            until: None,
            decided: None,
            by: None,
            message: None,
        }
    }

    /// The question tool is switched off; should OpenCode ask all the same, nobody is there.
    pub(super) async fn question_asked(&mut self, id: &str) {
        tracing::warn!(session_id = %self.session.id(), question = id, "refused a question: nobody can answer it");
        self.refused = true;
        if let Err(error) = self.agent().opencode().reject_question(id).await {
            tracing::warn!(session_id = %self.session.id(), %error, "a refusal did not reach OpenCode");
        }
    }

    /// Asks that OpenCode holds now, as after a reconnect; and those that it holds no longer.
    pub(super) async fn take_up_asks(&mut self) -> Result<(), JournalError> {
        if let Some(asks) = self.open_permissions().await {
            for ask in &asks {
                self.permission_asked(ask).await?;
            }
            let pending: Vec<String> = self.session.state().asks.pending.keys().cloned().collect();
            for id in pending {
                if !asks.iter().any(|ask| ask.id == id) {
                    let settle = Settle {
                        decision: Decision::Reject,
                        decided: DecidedBy::Agent,
                        by: "OpenCode, which no longer waits for it".into(),
                        message: None,
                    };
                    self.settle_ask(&id, settle).await?;
                }
            }
        }
        for id in self.open_questions().await {
            self.question_asked(&id).await;
        }
        Ok(())
    }

    /// Refuses all that is open: an abandoned ask would keep its file locked for everybody.
    pub(super) async fn refuse_asks(&mut self) {
        for ask in self.open_permissions().await.unwrap_or_default() {
            self.tell(&ask.id, Decision::Reject, None).await;
        }
        for id in self.open_questions().await {
            self.question_asked(&id).await;
        }
    }

    /// Permissions that this turn's sessions wait for; `None`: not to be had.
    async fn open_permissions(&self) -> Option<Vec<Permission>> {
        match self.agent().opencode().permissions().await {
            Ok(mut asks) => {
                let ours = |session: &String| self.map.owns(session);
                asks.retain(|ask| ask.session.as_ref().is_some_and(ours));
                Some(asks)
            }
            Err(error) => {
                tracing::warn!(session_id = %self.session.id(), %error, "open permissions are not to be had");
                None
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

fn by_policy(decision: Decision, by: String) -> Settle {
    let message = (decision == Decision::Reject)
        .then(|| format!("Not allowed here ({by}). Go on without it, or say what is needed."));
    Settle {
        decision,
        decided: DecidedBy::Policy,
        by,
        message,
    }
}
