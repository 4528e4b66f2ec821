//! The pod in brief, kept up to date for the operator.

use crate::{app::App, isolation};
use contract::{
    SessionId,
    session::SessionState,
    summary::{
        Activity, AgentSummary, FILES_MODIFIED_MAX, FINAL_MESSAGE_MAX, PromptError, PromptSession,
        Summary,
    },
};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// How often is looked for what gives no news by itself: keys that come or go.
const LOOK: Duration = Duration::from_millis(500);

/// Keeps the summary until shutdown; returns what to watch.
pub(crate) fn spawn(app: &Arc<App>) -> watch::Receiver<Summary> {
    let (sender, receiver) = watch::channel(make(app));
    let app = Arc::clone(app);
    tokio::spawn(async move {
        let mut news = app.news.subscribe();
        let mut agent = app.agent.state();
        let mut config = app.config.watch_pod();
        let mut ticks = tokio::time::interval(LOOK);
        loop {
            let summary = make(&app);
            sender.send_if_modified(|old| {
                let differs = *old != summary;
                if differs {
                    *old = summary;
                }
                differs
            });
            tokio::select! {
                () = app.shutdown.cancelled() => return,
                _ = ticks.tick() => {}
                changed = news.changed() => if changed.is_err() { return },
                changed = agent.changed() => if changed.is_err() { return },
                changed = config.changed() => if changed.is_err() { return },
            }
        }
    });
    receiver
}

fn make(app: &App) -> Summary {
    let pod = app.config.pod();
    let agent = app.agent.state().borrow().clone();
    let mut pending_approvals = 0;
    let mut waits_for_key = false;
    let mut running_turns = 0;
    let mut waiting_turns = 0;
    let mut activity_message = None;
    for session in app.store.all() {
        let key = {
            let state = session.state();
            pending_approvals += u32::try_from(state.asks.pending.len()).unwrap_or(u32::MAX);
            if state.running.is_none() {
                continue;
            }
            waiting_turns += u32::from(!state.delivered && !session.created.own_key);
            state.target.clone()
        };
        running_turns += 1;
        activity_message = activity_message.or_else(|| app.waits_for(&session));
        waits_for_key |= key.is_some_and(|target| target.key_missing(&app.keys).is_some());
    }
    let activity = if pending_approvals > 0 {
        Activity::WaitingForApproval
    } else if waits_for_key {
        Activity::WaitingForKey
    } else if running_turns > 0 {
        Activity::Busy
    } else if agent.ready {
        Activity::Idle
    } else {
        Activity::Starting
    };
    Summary {
        activity,
        activity_message,
        running_turns,
        waiting_turns,
        pending_approvals,
        usage: app.store.usage(),
        spend: app.ledger.spend(),
        budget_left: app.budget_left(),
        audit: app.ledger.head().borrow().clone(),
        missing_keys: app.keys.missing(&pod),
        refused_keys: app.keys.still_refused(&pod),
        agent: AgentSummary {
            ready: agent.ready,
            version: agent.version,
            starts: agent.starts,
            unsupported: agent.unsupported,
            message: agent.message,
        },
        isolation: isolation::told(
            agent.isolation.as_ref(),
            agent.probe.as_ref(),
            pod.egress.mode,
        ),
        prompt_session: prompt_session(app, &pod.name),
        config_hash: pod.hash(),
    }
}

fn prompt_session(app: &App, name: &str) -> Option<PromptSession> {
    let id = SessionId::new(name).ok()?;
    let session = app.store.get(&id)?;
    let state = session.state();
    let first = &state.first_turn;
    let complete = first.complete.as_ref();
    let mut files_modified = complete
        .map(|c| c.files_modified.clone())
        .unwrap_or_default();
    files_modified.truncate(FILES_MODIFIED_MAX);
    Some(PromptSession {
        session_id: id,
        state: match (&first.finished_at, state.status) {
            (None, status) => status.unwrap_or(SessionState::Pending),
            (Some(_), _) if first.complete.is_some() => SessionState::Completed,
            (Some(_), _) if first.cancelled => SessionState::Cancelled,
            (Some(_), _) => SessionState::Failed,
        },
        started_at: first.started_at?,
        finished_at: first.finished_at,
        final_message: complete.map(|c| cut(&c.final_message, FINAL_MESSAGE_MAX)),
        files_modified,
        error: first.error.as_ref().map(|error| PromptError {
            code: error.code,
            message: cut(&error.error, 1024),
        }),
    })
}

/// The longest beginning of `text` with at most `max` bytes.
fn cut(text: &str, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn cutting_keeps_characters_whole() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("aé", 3), "aé");
    }
}
