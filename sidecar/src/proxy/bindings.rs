//! Which of OpenCode's sessions calls which model.

use super::target::Target;
use contract::event::TurnError;
use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Most children held: their ids come from OpenCode, which is not trusted to be modest. A child
/// beyond it counts for the pod.
const CHILDREN_MAX: usize = 10_000;

/// Targets by OpenCode's session id. Clones share one table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bindings {
    table: Arc<RwLock<Table>>,
    news: Arc<watch::Sender<()>>,
}

#[derive(Debug, Default)]
struct Table {
    roots: HashMap<String, Bound>,
    /// Child to root.
    children: HashMap<String, String>,
}

/// What a session's calls go to and count for.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    /// OpenCode's session at the root.
    pub(crate) root: String,
    pub(crate) target: Arc<Target>,
    pub(crate) turn: Option<Arc<TurnLink>>,
}

/// A turn as the proxy knows it: whom its calls are for, and a way to end it.
#[derive(Debug)]
pub(crate) struct TurnLink {
    pub(crate) session: String,
    pub(crate) turn: u32,
    pub(crate) author: String,
    stop: OnceLock<(TurnError, String)>,
    stopped: CancellationToken,
}

impl TurnLink {
    pub(crate) fn new(
        session: impl Into<String>,
        turn: u32,
        author: impl Into<String>,
    ) -> Arc<Self> {
        Arc::new(Self {
            session: session.into(),
            turn,
            author: author.into(),
            stop: OnceLock::new(),
            stopped: CancellationToken::new(),
        })
    }

    /// Ends the turn with this error; the first reason counts.
    pub(crate) fn stop(&self, code: TurnError, message: impl Into<String>) {
        let _ = self.stop.set((code, message.into()));
        self.stopped.cancel();
    }

    /// Waits until the turn is to end, and says why. Cancel safe.
    pub(crate) async fn stopped(&self) -> (TurnError, String) {
        self.stopped.cancelled().await;
        let why = self.stop.get().cloned();
        why.unwrap_or((
            TurnError::AgentError,
            "the model proxy stopped the turn".into(),
        ))
    }
}

impl Bindings {
    /// From now on this session calls `target`; what was bound before is forgotten.
    pub(crate) fn bind(&self, opencode_session_id: impl Into<String>, target: Arc<Target>) {
        self.insert(opencode_session_id.into(), target, None);
    }

    /// The same for a turn, to which the calls count and which they may end.
    pub(crate) fn bind_turn(
        &self,
        opencode_session_id: impl Into<String>,
        target: Arc<Target>,
        turn: Arc<TurnLink>,
    ) {
        self.insert(opencode_session_id.into(), target, Some(turn));
    }

    fn insert(&self, root: String, target: Arc<Target>, turn: Option<Arc<TurnLink>>) {
        self.write(|table| {
            table.children.remove(&root);
            let bound = Bound {
                root: root.clone(),
                target,
                turn,
            };
            table.roots.insert(root, bound);
        });
    }

    /// A sub-agent's session calls what its parent calls, whenever that changes. Does nothing if the
    /// parent is not bound, or the child is bound itself.
    pub(crate) fn bind_child(&self, child: impl Into<String>, parent: &str) {
        let child = child.into();
        self.write(|table| {
            let root = if table.roots.contains_key(parent) {
                parent.to_owned()
            } else if let Some(root) = table.children.get(parent) {
                root.clone()
            } else {
                return;
            };
            let room = table.children.len() < CHILDREN_MAX || table.children.contains_key(&child);
            if room && !table.roots.contains_key(&child) {
                table.children.insert(child, root);
            }
        });
    }

    /// Forgets a session and its children, or one child.
    pub(crate) fn unbind(&self, opencode_session_id: &str) {
        self.write(|table| {
            table.children.remove(opencode_session_id);
            if table.roots.remove(opencode_session_id).is_some() {
                table.children.retain(|_, root| root != opencode_session_id);
            }
        });
    }

    /// What a session is bound to, or a child's root.
    pub(crate) fn get(&self, opencode_session_id: &str) -> Option<Bound> {
        self.read(|table| {
            let root = table
                .children
                .get(opencode_session_id)
                .map_or(opencode_session_id, String::as_str);
            table.roots.get(root).cloned()
        })
    }

    /// The same; while turns are under way, an unknown session is waited for: a sub-agent may call
    /// before OpenCode's event about it was read. Cancel safe.
    pub(crate) async fn find(
        &self,
        opencode_session_id: &str,
        patience: Duration,
    ) -> Option<Bound> {
        let mut news = self.news.subscribe();
        let known = async {
            loop {
                let bound = self.get(opencode_session_id);
                if bound.is_some() || self.read(|table| table.roots.is_empty()) {
                    return bound;
                }
                // The sender lives in `self`.
                if news.changed().await.is_err() {
                    return None;
                }
            }
        };
        tokio::time::timeout(patience, known)
            .await
            .unwrap_or_default()
    }

    /// The only session that is bound, if there is just one.
    pub(crate) fn only(&self) -> Option<Bound> {
        self.read(|table| {
            let mut targets = table.roots.values();
            targets.next().filter(|_| targets.next().is_none()).cloned()
        })
    }

    fn read<T>(&self, look: impl FnOnce(&Table) -> T) -> T {
        look(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, change: impl FnOnce(&mut Table)) {
        change(&mut self.table.write().unwrap_or_else(PoisonError::into_inner));
        self.news.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::{Api, target::KeySource};

    fn target(model: &str) -> Arc<Target> {
        Arc::new(Target {
            api: Api::Chat,
            base: "http://models.test/v1".parse().unwrap(),
            key: KeySource::Provider("p".into()),
            provider: None,
            model: model.into(),
            temperature: None,
            max_tokens: None,
            context_window: None,
        })
    }

    fn model(bindings: &Bindings, id: &str) -> Option<String> {
        bindings.get(id).map(|bound| bound.target.model.clone())
    }

    #[test]
    fn children_follow_their_root() {
        let bindings = Bindings::default();
        bindings.bind_child("lost", "nobody");
        bindings.bind("a", target("one"));
        bindings.bind_child("a1", "a");
        bindings.bind_child("a11", "a1");
        assert!(bindings.get("lost").is_none());
        assert_eq!(model(&bindings, "a11").unwrap(), "one");
        assert_eq!(bindings.only().unwrap().target.model, "one");
        bindings.bind("a", target("two"));
        assert_eq!(model(&bindings, "a1").unwrap(), "two");
        bindings.bind("b", target("three"));
        bindings.bind_child("b", "a");
        assert_eq!(model(&bindings, "b").unwrap(), "three");
        assert!(bindings.only().is_none());
        bindings.unbind("a11");
        assert!(bindings.get("a11").is_none());
        bindings.clone().unbind("a");
        assert!(bindings.get("a").is_none() && bindings.get("a1").is_none());
        assert_eq!(bindings.only().unwrap().target.model, "three");
    }

    #[test]
    fn a_flood_of_children_is_bounded() {
        let bindings = Bindings::default();
        bindings.bind("a", target("one"));
        for n in 0..CHILDREN_MAX + 10 {
            bindings.bind_child(format!("c{n}"), "a");
        }
        assert!(bindings.get("c0").is_some());
        assert!(bindings.get(&format!("c{CHILDREN_MAX}")).is_none());
        bindings.unbind("a");
        assert!(bindings.get("c0").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_is_waited_for_while_its_parent_works() {
        let bindings = Bindings::default();
        let patience = Duration::from_secs(2);
        let began = tokio::time::Instant::now();
        assert!(bindings.find("kid", patience).await.is_none());
        assert_eq!(
            began.elapsed(),
            Duration::ZERO,
            "no turn that could have children"
        );
        bindings.bind("a", target("one"));
        bindings.bind("b", target("two"));
        assert!(bindings.find("kid", patience).await.is_none());
        assert_eq!(began.elapsed(), patience);
        let late = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            bindings.bind_child("other", "a");
            bindings.bind_child("kid", "b");
        };
        let (found, ()) = tokio::join!(bindings.find("kid", patience), late);
        assert_eq!(found.unwrap().target.model, "two");
        assert_eq!(began.elapsed(), patience + Duration::from_millis(700));
    }

    #[tokio::test]
    async fn the_first_reason_ends_a_turn() {
        let link = TurnLink::new("heron", 2, "walrus");
        link.stop(TurnError::BudgetExhausted, "one");
        link.stop(TurnError::CallLoop, "two");
        assert_eq!(
            link.stopped().await,
            (TurnError::BudgetExhausted, "one".into())
        );
    }
}
