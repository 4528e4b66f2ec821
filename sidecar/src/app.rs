//! Everything that the sidecar is made of, and what begins with it.

use crate::{
    activity::{self, Facts},
    agent::supervisor::Agent,
    checkpoints::{Keeper, gate::Held},
    config::Config,
    egress::Refused,
    keys::ProviderKeys,
    metrics::Metrics,
    proxy::{Bindings, Ledger, Observation, Target, What},
    settings::Settings,
    spans::{Calls, TurnSpans},
    store::{
        BeginError, NewTurn, Store, Unfinished,
        record::{Created, Idempotency, Note, TurnNote},
        session::{Running, Session, now},
    },
    turn::{self, Turn},
};
use contract::{
    Event, EventBody, FieldError, SessionId,
    event::{MAIN_AGENT, Status, StatusKind},
    session::ModelConfig,
};
use journal::Health;
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

/// The parts.
pub(crate) struct App {
    pub settings: Settings,
    pub config: Config,
    pub keys: ProviderKeys,
    pub store: Store,
    pub checkpoints: Keeper,
    pub agent: Agent,
    pub bindings: Bindings,
    pub ledger: Arc<Ledger>,
    pub metrics: Metrics,
    /// Where the agent wanted to go and may not.
    pub refused: Arc<Refused>,
    /// Spans of turns and of their model calls.
    pub calls: Calls,
    pub shutdown: CancellationToken,
    /// Running turns: the process ends after them.
    pub turns: TaskTracker,
    pub summary: OnceLock<watch::Receiver<contract::summary::Summary>>,
    pub news: watch::Sender<()>,
}

/// How long until a prompt that was refused is tried again.
const PROMPT_AGAIN: std::time::Duration = std::time::Duration::from_secs(2);

/// A request for a turn.
pub(crate) struct TurnRequest {
    pub prompt: String,
    pub author: String,
    pub idempotency: Option<Idempotency>,
    /// `traceparent` of the request.
    pub trace: Option<String>,
}

/// A request for a session.
pub(crate) struct NewSession {
    pub id: SessionId,
    pub model_config: Option<ModelConfig>,
    pub system_prompt: Option<String>,
    /// OpenCode's session to go on with, of which nobody else knows.
    pub conversation: Option<String>,
}

/// Why a session or turn was not begun.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("the model cannot be used")]
    Model(Vec<FieldError>),
    #[error(transparent)]
    Begin(#[from] BeginError),
}

impl App {
    /// Something changed that the summary tells.
    pub(crate) fn changed(&self) {
        self.news.send_replace(());
    }

    /// A session as the API tells it, with what it does or why nothing happens.
    pub(crate) fn told(&self, session: &Session) -> contract::session::Session {
        let reason = {
            let facts = self.facts(session);
            activity::sentence(&session.state().doing, &facts, now())
        };
        contract::session::Session {
            reason,
            spend: self.ledger.spend_of(session.id().as_str()),
            budget_left: self.budget_left(),
            ..session.body()
        }
    }

    /// What a session's turn waits for; `None`: it works, or there is none.
    pub(crate) fn waits_for(&self, session: &Session) -> Option<String> {
        let facts = self.facts(session);
        activity::waits_for(&session.state().doing, &facts)
    }

    fn facts(&self, session: &Session) -> Facts {
        let agent = self.agent.state().borrow().clone();
        let workspace = self.checkpoints.gate.held().map(|held| match held {
            Held::Taking => "a checkpoint of it is being taken",
            Held::Restoring => "it is being brought back to a checkpoint",
        });
        let journal = match &*self.store.health().borrow() {
            Health::Ok => None,
            Health::Full => Some("the volume is full"),
            Health::Failed(_) => Some("the volume failed"),
        };
        let (target, mut facts) = {
            let state = session.state();
            let approvals = state.asks.list(session.id());
            let facts = Facts {
                running: state.running.is_some(),
                status: state.status,
                delivered: state.delivered,
                journal,
                key_missing: None,
                key_required: session.created.own_key && state.request_key.is_none(),
                agent_ready: agent.ready,
                agent_message: agent.message,
                unsupported: agent.unsupported,
                approvals,
                workspace,
            };
            (state.target.clone(), facts)
        };
        if facts.running && !facts.delivered {
            let missing = target.and_then(|target| target.key_missing(&self.keys));
            facts.key_missing = missing.map(|provider| {
                let source = self.config.pod().key_sources.get(&provider).cloned();
                source.unwrap_or_else(|| format!("the key of provider {provider}"))
            });
        }
        facts
    }

    /// What is left of the pod's budget, where it has one.
    pub(crate) fn budget_left(&self) -> Option<contract::spend::Budget> {
        let budget = self.config.pod().limits.budget;
        (!budget.is_none()).then(|| budget.left(&self.ledger.spend()))
    }

    fn limit(&self) -> u32 {
        self.config.pod().limits.max_concurrent_sessions
    }

    /// Whether a session could be begun with this model.
    pub(crate) fn check_model(&self, model: Option<&ModelConfig>) -> Result<(), StartError> {
        let target = Target::resolve(&self.config.pod(), model);
        target.map(drop).map_err(StartError::Model)
    }

    /// Records a session with its first turn and starts it.
    pub(crate) async fn create_session(
        self: &Arc<Self>,
        new: NewSession,
        request: TurnRequest,
    ) -> Result<Arc<Session>, StartError> {
        let NewSession {
            id,
            model_config,
            system_prompt,
            conversation,
        } = new;
        let target = Target::resolve(&self.config.pod(), model_config.as_ref())
            .map_err(StartError::Model)?;
        let target = Arc::new(target);
        let request_key = model_config
            .as_ref()
            .and_then(|model| model.api_key.clone());
        let created = Created {
            session_id: id,
            at: now(),
            opencode_session: conversation.unwrap_or_else(crate::agent::ids::session_id),
            own_key: request_key.is_some(),
            model_config: model_config.map(|model| ModelConfig {
                api_key: None,
                ..model
            }),
            system_prompt,
        };
        let note = turn_note(1, request);
        let new = NewTurn {
            note: note.clone(),
            target: Arc::clone(&target),
            limit: self.limit(),
        };
        let (session, running) = self.store.create(created, request_key, new).await?;
        self.spawn(
            Arc::clone(&session),
            note,
            target,
            running,
            false,
            Vec::new(),
        );
        Ok(session)
    }

    /// Records a further turn and starts it.
    pub(crate) async fn create_turn(
        self: &Arc<Self>,
        session: &Arc<Session>,
        request: TurnRequest,
    ) -> Result<(), StartError> {
        let target = Arc::new(self.target(session).map_err(StartError::Model)?);
        let number = session.state().turn + 1;
        let note = turn_note(number, request);
        let new = NewTurn {
            note: note.clone(),
            target: Arc::clone(&target),
            limit: self.limit(),
        };
        let running = self.store.begin_turn(session, new).await?;
        self.spawn(
            Arc::clone(session),
            note,
            target,
            running,
            false,
            Vec::new(),
        );
        Ok(())
    }

    /// Takes up the turns that the last process left.
    pub(crate) fn take_up(self: &Arc<Self>, unfinished: Vec<Unfinished>) {
        for Unfinished { session, turn } in unfinished {
            let Some(running) = session.state().running.clone() else {
                continue;
            };
            // For people: a full disk does not keep the turn from going on.
            let _ = session.note(Note::TakenUp {
                turn: turn.note.turn,
                at: now(),
            });
            match self.target(&session) {
                Ok(target) => {
                    let target = Arc::new(target);
                    session.state().target = Some(Arc::clone(&target));
                    self.bindings.bind(
                        session.created.opencode_session.clone(),
                        Arc::clone(&target),
                    );
                    tracing::info!(session_id = %session.id(), turn = turn.note.turn, delivered = turn.delivered, "taking a turn up again");
                    self.spawn(
                        session,
                        turn.note,
                        target,
                        running,
                        turn.delivered,
                        turn.events,
                    );
                }
                Err(fields) => {
                    let app = Arc::clone(self);
                    self.turns.spawn(async move {
                        turn::refuse(&app, &session, turn.note.turn, &fields, &running).await;
                    });
                }
            }
        }
        for session in self.store.all() {
            if session.state().target.is_none()
                && let Ok(target) = self.target(&session)
            {
                session.state().target = Some(Arc::new(target));
            }
        }
    }

    /// Where a session's model calls go, by the configuration in force.
    fn target(&self, session: &Session) -> Result<Target, Vec<FieldError>> {
        let wanted = session.created.model_config.as_ref();
        let target = Target::restore(&self.config.pod(), wanted, session.created.own_key)?;
        let key = session.state().request_key.clone();
        Ok(match key {
            Some(key) => target.with_key(key),
            None => target,
        })
    }

    /// Tells a session's readers what became of a model call, where OpenCode itself says it late or
    /// in riddles.
    pub(crate) fn observed(&self, observation: &Observation) {
        let text = match &observation.what {
            What::Timeout => "the provider was silent for too long and was cut off",
            What::Unreachable => "the provider cannot be reached",
            What::Cut => "the provider's answer broke off",
            What::Upstream { .. }
            | What::KeyMissing { .. }
            | What::KeyForgotten
            // The turn ends with it at once.
            | What::Untrusted => return,
        };
        let Some(named) = observation.session.as_deref() else {
            return;
        };
        let session = self.store.all().into_iter().find(|session| {
            session.created.opencode_session == named && session.state().running.is_some()
        });
        let Some(session) = session else { return };
        let event = Event {
            turn: session.state().turn,
            ts: now(),
            agent: MAIN_AGENT.into(),
            body: EventBody::Status(Status::new(StatusKind::Retrying, text)),
        };
        if let Err(error) = session.append(event) {
            tracing::warn!(session_id = %session.id(), %error, "a reader is not told of a model call");
        }
    }

    fn spawn(
        self: &Arc<Self>,
        session: Arc<Session>,
        note: TurnNote,
        target: Arc<Target>,
        running: Running,
        delivered: bool,
        events: Vec<contract::Event>,
    ) {
        let spans = TurnSpans::begin(
            &self.calls,
            session.id(),
            &session.created.opencode_session,
            note.turn,
            &target,
            note.trace.as_deref(),
        );
        let turn = Turn {
            spans,
            session,
            number: note.turn,
            message_id: note.message_id,
            prompt: note.prompt,
            author: note.author,
            target,
            running,
            delivered,
            events,
        };
        self.changed();
        // Within the span of the request that brought it, where one did: its id stands in all lines.
        let span = tracing::info_span!(
            "turn",
            session_id = %turn.session.id(),
            turn = turn.number,
            trace_id = turn.spans.trace_id()
        );
        let run = turn::run(Arc::clone(self), turn).instrument(span);
        self.turns.spawn(Box::pin(run));
    }

    /// Starts the session of the pod's own prompt, at most once ever: when the configuration has one,
    /// it was not taken up before and the journal does not know it. What refuses it now (as many turns
    /// as are allowed, a full volume) is asked again.
    pub(crate) async fn start_prompt(self: &Arc<Self>) {
        let mut config = self.config.watch_pod();
        loop {
            let pod = Arc::clone(&config.borrow_and_update());
            let wanted = pod.prompt.clone().filter(|_| !pod.prompt_consumed);
            let refused = match (wanted, SessionId::new(pod.name.clone())) {
                (None, _) => false,
                (Some(prompt), Ok(id)) => {
                    self.store.get(&id).is_none() && !self.begin_prompt(id, prompt).await
                }
                (Some(_), Err(error)) => {
                    tracing::error!(name = pod.name, %error, "the object's name is no session id");
                    false
                }
            };
            let news = async {
                tokio::select! {
                    changed = config.changed() => changed.is_ok(),
                    () = tokio::time::sleep(PROMPT_AGAIN), if refused => true,
                }
            };
            if self.shutdown.run_until_cancelled(news).await != Some(true) {
                return;
            }
        }
    }

    /// False: refused for now.
    async fn begin_prompt(self: &Arc<Self>, id: SessionId, prompt: String) -> bool {
        let request = TurnRequest {
            prompt,
            author: "spec.prompt".into(),
            idempotency: None,
            trace: None,
        };
        let new = NewSession {
            id: id.clone(),
            model_config: None,
            system_prompt: None,
            conversation: None,
        };
        match self.create_session(new, request).await {
            Ok(_) => tracing::info!(session_id = %id, "started the pod's prompt"),
            Err(StartError::Begin(BeginError::Exists)) => {}
            Err(error) => {
                tracing::error!(session_id = %id, ?error, "the pod's prompt was not started; trying again");
                return false;
            }
        }
        true
    }
}

fn turn_note(turn: u32, request: TurnRequest) -> TurnNote {
    let at = now();
    TurnNote {
        turn,
        at,
        message_id: crate::agent::ids::message_id(at.as_millisecond().unsigned_abs()),
        prompt: request.prompt,
        author: request.author,
        idempotency: request.idempotency,
        trace: request.trace,
    }
}
