//! One turn, from its prompt to its last event.
//!
//! A turn is a task. It waits for key and agent, gives OpenCode the prompt exactly once, follows what
//! OpenCode says, and ends with exactly one last event, whatever happens in between.

mod asks;
mod checkpoint;
mod follow;
mod stop;
mod watched;

use crate::{
    agent::{map::TurnMap, router::ExpectedRun, supervisor::Agent},
    app::App,
    checkpoints::gate::Working,
    proxy::{Target, TurnLink},
    spans::TurnSpans,
    store::session::{JournalError, Running, Session, now},
    watchdog::{Cause, Finding, turn::TurnWatch},
};
use contract::{
    Event, EventBody,
    event::{Complete, ErrorEvent, MAIN_AGENT, Status, StatusKind, TurnError},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// How often a key that is not there is looked for.
const KEY_POLL: Duration = Duration::from_millis(200);
/// How long a turn that begins waits for a checkpoint that is being taken; it is marked then.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(15);

/// A turn to run.
pub(crate) struct Turn {
    pub spans: TurnSpans,
    pub session: Arc<Session>,
    pub number: u32,
    pub message_id: String,
    pub prompt: String,
    /// Who asked for it.
    pub author: String,
    pub target: Arc<Target>,
    pub running: Running,
    /// OpenCode has the prompt: found in the journal after a restart.
    pub delivered: bool,
    /// Events of this turn before a restart.
    pub events: Vec<Event>,
}

/// How a turn ends.
#[derive(Debug)]
pub(crate) enum End {
    Complete(Complete),
    Failed(ErrorEvent),
    Cancelled,
}

impl End {
    fn failed(code: TurnError, error: impl Into<String>) -> Self {
        Self::Failed(ErrorEvent {
            error: error.into(),
            fatal: true,
            code,
        })
    }
}

impl From<JournalError> for End {
    fn from(error: JournalError) -> Self {
        Self::failed(
            TurnError::DiskFull,
            format!(
                "{error}. The turn was stopped; free space on the volume, then send the prompt again"
            ),
        )
    }
}

/// The task's own state.
struct Drive {
    app: Arc<App>,
    session: Arc<Session>,
    number: u32,
    message_id: String,
    prompt: String,
    target: Arc<Target>,
    delivered: bool,
    map: TurnMap,
    watch: TurnWatch,
    /// A question was refused in this turn: OpenCode then ends without a word.
    refused: bool,
    /// OpenCode may have heard of this turn.
    heard: bool,
    /// Generation of the process that heard of it, once it is known.
    process: Option<u64>,
    /// Whether OpenCode took it up while this process looked on.
    run: ExpectedRun,
    /// When this process took it up.
    began: Instant,
    spans: TurnSpans,
    /// It works on the workspace.
    working: Option<Working>,
}

/// Runs a turn to its end. Never panics on what OpenCode says; the last event is always appended,
/// even to a full volume (the journal keeps a reserve).
pub(crate) async fn run(app: Arc<App>, turn: Turn) {
    let Turn {
        session,
        number,
        message_id,
        prompt,
        author,
        target,
        running,
        delivered,
        events,
        spans,
    } = turn;
    let oc_session = session.created.opencode_session.clone();
    let link = TurnLink::new(session.id().as_str(), number, author);
    app.bindings
        .bind_turn(&oc_session, Arc::clone(&target), Arc::clone(&link));
    let mut map = TurnMap::new(
        oc_session.clone(),
        message_id.clone(),
        app.settings.workspace_dir.clone(),
    );
    let run = app.agent.router().expect_run(&oc_session);
    let resumed = !events.is_empty();
    let mut watch = TurnWatch::new(Instant::now());
    for event in events {
        map.restore(&event);
        watch.note(&event.agent, &event.body, Instant::now());
    }
    let bound = Duration::from_secs(app.config.pod().limits.turn_timeout_seconds);
    let mut drive = Drive {
        app: Arc::clone(&app),
        session: Arc::clone(&session),
        number,
        message_id,
        prompt,
        target,
        delivered,
        map,
        watch,
        refused: false,
        // After a restart nobody knows how far the last process came.
        heard: delivered || resumed,
        process: None,
        run,
        began: Instant::now(),
        spans,
        working: None,
    };
    let started = drive.began;
    let end = tokio::select! {
        biased;
        () = running.cancel.cancelled() => None,
        () = app.shutdown.cancelled() => Some(Ok(End::failed(
            TurnError::ShuttingDown,
            "the pod was told to stop; the conversation is kept, send the next prompt when it is back",
        ))),
        () = tokio::time::sleep_until(started + bound) => Some(Err(Finding::new(
            Cause::TurnTimeout,
            format!("the turn ran longer than limits.turnTimeout ({} s) and was stopped", bound.as_secs()),
        ))),
        // Before what OpenCode makes of it.
        (code, message) = link.stopped() => Some(Ok(End::failed(code, message))),
        end = drive.drive() => Some(Ok(end)),
    };
    // Nobody listens from here on; a planned restart waits until what OpenCode stored is read.
    let ending = drive.agent().router().ending();
    let end = match end {
        None => None,
        Some(Ok(end)) => Some(end),
        Some(Err(finding)) => Some(drive.found(finding).await.unwrap_or_else(End::from)),
    };
    if let Some(End::Failed(error)) = &end
        && error.code == TurnError::ShuttingDown
        && !drive.session.state().delivered
    {
        // OpenCode does not have it: the next process takes it up from the journal, as after a crash.
        tracing::info!(session_id = %session.id(), turn = number, "a turn that waits is left for the next start");
        return;
    }
    let end = match end {
        Some(End::Complete(complete)) => End::Complete(complete),
        Some(end) => {
            drive.stop().await;
            end
        }
        None => {
            drive.stop().await;
            End::Cancelled
        }
    };
    drop(ending);
    // Before the end is recorded: the next turn may bind its own from then on.
    app.bindings.unbind(&oc_session);
    drive.checkpoint().await;
    drive.record(end, &running).await;
    app.changed();
}

impl Drive {
    fn agent(&self) -> &Agent {
        &self.app.agent
    }

    fn oc_session(&self) -> &str {
        &self.session.created.opencode_session
    }

    async fn emit_status(&self, kind: StatusKind, text: &str) -> Result<(), JournalError> {
        let body = EventBody::Status(Status::new(kind, text));
        self.session
            .emit(self.number, [(MAIN_AGENT.to_owned(), body)])
            .await
    }

    async fn emit(&mut self, mapped: Vec<crate::agent::map::Mapped>) -> Result<(), JournalError> {
        let now = Instant::now();
        for said in &mapped {
            self.watch.note(&said.agent, &said.body, now);
            self.spans.event(&said.body);
        }
        self.session
            .emit(self.number, mapped.into_iter().map(|m| (m.agent, m.body)))
            .await
    }

    async fn drive(&mut self) -> End {
        if let Err(end) = self.wait_for_key().await {
            return end;
        }
        loop {
            self.wait_for_agent().await;
            if self.working.is_none() {
                let gate = &self.app.checkpoints.gate;
                self.working = Some(gate.enter(CHECKPOINT_PATIENCE).await);
            }
            match self.follow().await {
                Ok(Some(end)) => return end,
                Ok(None) => {}
                Err(error) => return error.into(),
            }
        }
    }

    /// Waits until the key that the turn needs is there. It comes by itself: the kubelet shows a
    /// Secret that was created later.
    async fn wait_for_key(&self) -> Result<(), End> {
        if self.session.key_required() {
            return Err(End::failed(
                TurnError::KeyRequired,
                "the key that came with this session is never stored and was lost with a restart; \
                 send the turn again with `api_key`",
            ));
        }
        let mut said = false;
        while let Some(provider) = self.target.key_missing(&self.app.keys) {
            if !said {
                said = true;
                let text = format!(
                    "the key of provider {provider} is missing: create its Secret; the turn then begins by itself"
                );
                self.emit_status(StatusKind::WaitingForKey, &text).await?;
                self.app.changed();
            }
            tokio::time::sleep(KEY_POLL).await;
        }
        Ok(())
    }

    async fn wait_for_agent(&self) {
        let mut state = self.agent().state();
        // The sender lives as long as the agent's supervisor, which outlives every turn.
        if state.wait_for(|state| state.ready).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Appends the last event and waits until it is durable.
    async fn record(&mut self, end: End, running: &Running) {
        let body = match end {
            End::Complete(complete) => EventBody::Complete(complete),
            End::Failed(error) => EventBody::Error(error),
            End::Cancelled => {
                EventBody::Status(Status::new(StatusKind::Cancelled, "the turn was cancelled"))
            }
        };
        let name = body.name();
        self.app.metrics.turn_ended(&body, self.began.elapsed());
        self.spans.end(&body);
        let event = Event {
            turn: self.number,
            ts: now(),
            agent: MAIN_AGENT.into(),
            body,
        };
        let recorded = match self.session.end(event) {
            Ok(ticket) => self.app.store.durable(&self.session, ticket).await,
            Err(error) => Err(error),
        };
        if let Err(error) = recorded {
            tracing::error!(session_id = %self.session.id(), turn = self.number, %error, "the end of a turn could not be recorded");
        }
        self.session.ended(running);
        tracing::info!(session_id = %self.session.id(), turn = self.number, end = name, "turn ended");
    }
}

/// Ends a turn that cannot go on because its model is no longer to be had.
pub(crate) async fn refuse(
    app: &App,
    session: &Session,
    turn: u32,
    fields: &[contract::FieldError],
    running: &Running,
) {
    let rules: Vec<String> = fields
        .iter()
        .map(|f| format!("{} {}", f.field, f.rule))
        .collect();
    let body = EventBody::Error(ErrorEvent {
        error: format!(
            "after a restart the turn's model can no longer be used: {}",
            rules.join("; ")
        ),
        fatal: true,
        code: TurnError::ModelNotFound,
    });
    app.metrics.turn_ended(&body, Duration::ZERO);
    let event = Event {
        turn,
        ts: now(),
        agent: MAIN_AGENT.into(),
        body,
    };
    let recorded = match session.end(event) {
        Ok(ticket) => app.store.durable(session, ticket).await,
        Err(error) => Err(error),
    };
    if let Err(error) = recorded {
        tracing::error!(session_id = %session.id(), turn, %error, "the end of a turn could not be recorded");
    }
    session.ended(running);
    app.changed();
}
