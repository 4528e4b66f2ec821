//! Which of OpenCode's sessions calls which model.

use super::target::Target;
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

/// Most children held: their ids come from OpenCode, which is not trusted to be modest. A child
/// beyond it counts for the pod.
const CHILDREN_MAX: usize = 10_000;

/// Targets by OpenCode's session id. Clones share one table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bindings(Arc<RwLock<Table>>);

#[derive(Debug, Default)]
struct Table {
    roots: HashMap<String, Arc<Target>>,
    /// Child to root.
    children: HashMap<String, String>,
}

impl Bindings {
    /// From now on this session calls `target`; what was bound before is forgotten.
    pub(crate) fn bind(&self, opencode_session_id: impl Into<String>, target: Arc<Target>) {
        let id = opencode_session_id.into();
        self.write(|table| {
            table.children.remove(&id);
            table.roots.insert(id, target);
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

    /// The target of a session or of a child's root.
    pub(crate) fn get(&self, opencode_session_id: &str) -> Option<Arc<Target>> {
        self.read(|table| {
            let root = table
                .children
                .get(opencode_session_id)
                .map_or(opencode_session_id, String::as_str);
            table.roots.get(root).cloned()
        })
    }

    /// The target, if just one session is bound.
    pub(crate) fn only(&self) -> Option<Arc<Target>> {
        self.read(|table| {
            let mut targets = table.roots.values();
            targets.next().filter(|_| targets.next().is_none()).cloned()
        })
    }

    fn read<T>(&self, look: impl FnOnce(&Table) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, change: impl FnOnce(&mut Table)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
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
            model: model.into(),
            temperature: None,
            max_tokens: None,
            context_window: None,
        })
    }

    fn model(bindings: &Bindings, id: &str) -> Option<String> {
        bindings.get(id).map(|target| target.model.clone())
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
        assert_eq!(bindings.only().unwrap().model, "one");
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
        assert_eq!(bindings.only().unwrap().model, "three");
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
}
