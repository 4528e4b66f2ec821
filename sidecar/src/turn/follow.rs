//! Follows OpenCode through one turn.

use super::{Drive, End};
use crate::{
    agent::{
        opencode::{Activity, OpenCodeError, PromptBody},
        router::{FromAgent, Subscription},
        rules::Rules,
        wire::{OcEvent, OcKind, SessionStatus},
    },
    store::{record::Note, session::JournalError},
};
use contract::event::{StatusKind, TurnError};
use std::time::Duration;
use tokio::time::Instant;

/// How often OpenCode is asked whether it still works, though its stream says nothing.
const LOOK_SLOW: Duration = Duration::from_secs(10);
/// The same, when something suggests that the turn is over.
const LOOK_FAST: Duration = Duration::from_millis(100);
/// How long an idle OpenCode may leave a turn without an end before it counts as given up.
const GIVE_UP: Duration = Duration::from_secs(5);
/// How long OpenCode may take to come back after it died, for its stored messages to be read.
const COME_BACK: Duration = Duration::from_secs(20);

/// Most bytes of names of changed files in one event.
const FILES_BYTES: usize = 1024 * 1024;

/// What one look at OpenCode found.
enum Look {
    /// As far as OpenCode tells what it does.
    Working(Option<Activity>),
    /// Idle, but the turn has no end yet.
    Undecided,
    End(End),
}

impl Drive {
    /// One connection's worth of the turn. `None`: not begun yet and the agent went away; try again
    /// when it is back.
    pub(super) async fn follow(&mut self) -> Result<Option<End>, JournalError> {
        let agent = self.agent().clone();
        self.heard = true;
        self.process = Some(agent.state().borrow().generation);
        let mut events = agent.router().subscribe(self.oc_session());
        let again = self.delivered;
        if let Err(error) = self.deliver().await? {
            return Ok(self.not_delivered(&error));
        }
        if again {
            self.take_up_asks().await?;
            self.settle().await?;
        } else {
            self.emit_status(StatusKind::Running, "the agent has the prompt")
                .await?;
        }
        self.app.changed();
        self.listen(&mut events, again).await.map(Some)
    }

    /// Makes OpenCode's session and gives it the prompt, each exactly once.
    async fn deliver(&mut self) -> Result<Result<(), OpenCodeError>, JournalError> {
        let agent = self.agent().clone();
        let opencode = agent.opencode();
        let rules = Rules::of(&self.app.config.pod(), self.enabled_tools()).for_opencode();
        let title = self.session.id().to_string();
        if let Err(error) = opencode
            .ensure_session(self.oc_session(), &title, &rules)
            .await
        {
            return Ok(Err(error));
        }
        if self.delivered {
            return Ok(Ok(()));
        }
        // A crash between the prompt and the note below leaves a message that OpenCode knows.
        let known = match opencode
            .has_message(self.oc_session(), &self.message_id)
            .await
        {
            Ok(known) => known,
            Err(error) => return Ok(Err(error)),
        };
        if !known {
            let (provider_id, model_id) = self.target.opencode_model();
            let body = PromptBody {
                message_id: self.message_id.clone(),
                text: self.prompt.clone(),
                system: self.system_prompt(),
                provider_id: provider_id.to_owned(),
                model_id: model_id.to_owned(),
            };
            // What is said of the session from here on is about this turn, and OpenCode may have it.
            self.run = self.agent().router().expect_run(self.oc_session());
            self.session.state().delivered = true;
            if let Err(error) = opencode.prompt(self.oc_session(), &body).await {
                return Ok(Err(error));
            }
        }
        self.app.metrics.turn_waited(self.began.elapsed());
        self.spans.delivered();
        self.delivered = true;
        self.session.state().delivered = true;
        self.session.note(Note::Delivered { turn: self.number })?;
        tracing::info!(session_id = %self.session.id(), turn = self.number, "OpenCode has the prompt");
        Ok(Ok(()))
    }

    fn system_prompt(&self) -> Option<String> {
        let pod = self.app.config.pod();
        let parts: Vec<&str> = [
            pod.system_prompt.as_deref(),
            self.session.created.system_prompt.as_deref(),
        ]
        .into_iter()
        .flatten()
        .collect();
        (!parts.is_empty()).then(|| parts.join("\n\n"))
    }

    fn not_delivered(&self, error: &OpenCodeError) -> Option<End> {
        tracing::warn!(session_id = %self.session.id(), %error, "OpenCode did not take the prompt");
        if error.is_transient() {
            return None;
        }
        if matches!(error, OpenCodeError::Status { .. }) {
            self.session.state().delivered = false;
        }
        Some(End::failed(
            TurnError::AgentError,
            format!("OpenCode refused the prompt: {error}"),
        ))
    }

    /// Listens until the turn's end is known.
    async fn listen(
        &mut self,
        events: &mut Subscription,
        resumed: bool,
    ) -> Result<End, JournalError> {
        let mut suspicion = resumed.then(Instant::now);
        let first = if resumed {
            LOOK_FAST
        } else {
            self.next_look(LOOK_SLOW)
        };
        let mut next_look = Instant::now() + first;
        loop {
            tokio::select! {
                message = events.recv() => match message {
                    Some(FromAgent::Event(event)) => {
                        let over = self.take(&event).await?;
                        self.watch.heard(self.map.has_error(), Instant::now());
                        if over {
                            suspicion.get_or_insert_with(Instant::now);
                            next_look = Instant::now();
                        } else if let Some(finding) = self.loops() {
                            return self.found(finding).await;
                        }
                    }
                    Some(FromAgent::Resync) => {
                        self.take_up_asks().await?;
                        self.settle().await?;
                        suspicion.get_or_insert_with(Instant::now);
                        next_look = Instant::now();
                    }
                    Some(FromAgent::Notice(finding)) => self.notice(&finding, "watch").await?,
                    Some(FromAgent::AgentDown { reason, code }) => {
                        return self.agent_died(code, &reason).await;
                    }
                    None => {
                        let why = "its connection ended";
                        return self.agent_died(TurnError::AgentDied, why).await;
                    }
                },
                () = overdue(self.until_overdue()) => self.expire_asks().await?,
                () = tokio::time::sleep_until(next_look) => match self.look().await? {
                    Look::End(end) => return Ok(end),
                    Look::Working(activity) => {
                        // An answer that did not reach OpenCode would else be waited for for ever.
                        self.take_up_asks().await?;
                        if let Some(activity) = activity
                            && let Some(finding) = self.hangs(activity).await
                        {
                            return self.found(finding).await;
                        }
                        suspicion = None;
                        next_look = Instant::now() + self.next_look(LOOK_SLOW);
                    }
                    Look::Undecided => {
                        let since = *suspicion.get_or_insert_with(Instant::now);
                        if since.elapsed() >= GIVE_UP {
                            return Ok(self.given_up());
                        }
                        next_look = Instant::now() + LOOK_FAST;
                    }
                },
            }
        }
    }

    /// Takes one event over; true where it suggests that the turn is over.
    async fn take(&mut self, event: &OcEvent) -> Result<bool, JournalError> {
        match &event.kind {
            OcKind::PermissionAsked(ask) => self.permission_asked(ask).await?,
            OcKind::PermissionReplied { id, reply } => self.permission_replied(id, reply).await?,
            OcKind::QuestionAsked { id, .. } => self.question_asked(id).await,
            OcKind::SessionCreated { id, .. }
                if self.map.owns(event.session.as_deref().unwrap_or(id)) => {}
            _ => {}
        }
        let mapped = self.map.on_event(event);
        if !mapped.is_empty() {
            self.emit(mapped).await?;
        }
        if let OcKind::SessionCreated {
            id,
            parent_id: Some(_),
            ..
        } = &event.kind
            && self.map.owns(id)
        {
            self.app.bindings.bind_child(id, self.oc_session());
            self.spans.bind(id);
        }
        let root = event.session.as_deref() == Some(self.oc_session());
        Ok(root
            && matches!(
                event.kind,
                OcKind::SessionIdle
                    | OcKind::SessionError(_)
                    | OcKind::SessionStatus(SessionStatus::Idle)
            ))
    }

    /// Asks OpenCode whether it is done and, if so, takes over what it stored.
    async fn look(&mut self) -> Result<Look, JournalError> {
        match self.agent().opencode().activity(self.oc_session()).await {
            Ok(Activity::Idle) => {}
            Ok(activity @ (Activity::Busy | Activity::Retry)) => {
                return Ok(Look::Working(Some(activity)));
            }
            Err(error) => {
                tracing::debug!(session_id = %self.session.id(), %error, "OpenCode's status is not to be had");
                return Ok(Look::Working(None));
            }
        }
        if !self.settle().await? {
            return Ok(Look::Undecided);
        }
        let outcome = self.map.outcome();
        if let Some(error) = outcome.error {
            return Ok(Look::End(End::Failed(error)));
        }
        if outcome.completed {
            return Ok(Look::End(End::Complete(contract::event::Complete {
                final_message: outcome.final_message,
                files_modified: bounded(outcome.files_modified),
                usage: outcome.usage,
                finish: outcome.finish,
            })));
        }
        Ok(Look::Undecided)
    }

    /// Adds what is missing from OpenCode's stored messages; false where they were not to be had.
    pub(super) async fn settle(&mut self) -> Result<bool, JournalError> {
        let agent = self.agent().clone();
        let opencode = agent.opencode();
        let root = self.oc_session().to_owned();
        let mut queue = vec![root];
        let mut complete = true;
        while let Some(session) = queue.pop() {
            match opencode.children(&session).await {
                Ok(children) => {
                    for child in children {
                        let mapped =
                            self.map
                                .adopt_child(&child.id, &session, child.title.as_deref());
                        self.emit(mapped).await?;
                        if self.map.owns(&child.id) {
                            self.app.bindings.bind_child(&child.id, self.oc_session());
                            self.spans.bind(&child.id);
                            agent.router().add_child(&child.id, self.oc_session());
                            queue.push(child.id);
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "sub-agents are not to be had");
                    complete = false;
                }
            }
            match opencode.messages(&session).await {
                Ok(messages) => {
                    let mapped = self.map.on_messages(&session, &messages);
                    self.emit(mapped).await?;
                }
                Err(error) => {
                    tracing::warn!(session_id = %self.session.id(), %error, "stored messages are not to be had");
                    complete = false;
                }
            }
        }
        Ok(complete)
    }

    /// OpenCode is idle and the turn has no end: say what can be known.
    fn given_up(&self) -> End {
        let outcome = self.map.outcome();
        let rejected = self.session.state().asks.was_rejected();
        if self.refused || rejected {
            return End::failed(
                TurnError::Rejected,
                "a tool call was refused and the agent stopped; say in the next prompt how to go on",
            );
        }
        if outcome.aborted {
            return End::failed(
                TurnError::AgentError,
                "OpenCode stopped the turn by itself; what it did is kept, send a prompt to go on",
            );
        }
        if outcome.has_assistant {
            return End::failed(
                TurnError::Interrupted,
                "the agent stopped in mid-turn (it or its pod was restarted); what it did is kept, \
                 send a prompt to go on",
            );
        }
        End::failed(
            TurnError::AgentError,
            "OpenCode took the prompt and did nothing; its log (container `agent`) may say why",
        )
    }

    /// OpenCode died. When it is back its stored messages are read, so that nothing that it kept is
    /// missing; the turn is never run again by itself.
    async fn agent_died(&mut self, code: TurnError, reason: &str) -> Result<End, JournalError> {
        let mut state = self.agent().state();
        let back = tokio::time::timeout(COME_BACK, state.wait_for(|state| state.ready)).await;
        if matches!(back, Ok(Ok(_))) {
            drop(back);
            self.settle().await?;
        }
        Ok(End::failed(
            code,
            format!(
                "OpenCode ended in mid-turn: {reason}. What it stored is kept; send a prompt to go on"
            ),
        ))
    }
}

/// Returns after this time; never without one.
async fn overdue(left: Option<Duration>) {
    match left {
        Some(left) => tokio::time::sleep(left).await,
        None => std::future::pending().await,
    }
}

/// Names of files up to a sum of bytes: what names them is not trusted to be modest.
fn bounded(mut files: Vec<String>) -> Vec<String> {
    let mut left = FILES_BYTES;
    let fits = files.iter().take_while(|file| {
        left = left.saturating_sub(file.len() + 1);
        left > 0
    });
    let fits = fits.count();
    if fits < files.len() {
        tracing::warn!(
            left_out = files.len() - fits,
            "the list of changed files is cut"
        );
        files.truncate(fits);
    }
    files
}
