//! Watches the pods and claims of a namespace the whole time: what was there only for a moment counts too.

use crate::Namespace;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{
    Api, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{sync::watch, task::JoinHandle};

/// Label with the name of the session that a child belongs to.
const INSTANCE: &str = "app.kubernetes.io/instance";

/// What was seen of one kind.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// UIDs that ever were, by session.
    pub ever: BTreeMap<String, BTreeSet<String>>,
    /// UIDs that are now, by session.
    pub now: BTreeMap<String, BTreeSet<String>>,
    /// Most at one time, by session.
    pub most: BTreeMap<String, usize>,
}

/// Sees.
pub struct Witness {
    pods: Arc<Mutex<Seen>>,
    claims: Arc<Mutex<Seen>>,
    changes: watch::Sender<u64>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Witness {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Witness {
    /// Begins to watch.
    #[must_use]
    pub fn start(ns: &Namespace) -> Self {
        let (pods, claims) = (Arc::default(), Arc::default());
        let changes = watch::Sender::new(0);
        let tasks = [
            tokio::spawn(see(ns.api::<Pod>(), Arc::clone(&pods), changes.clone())),
            tokio::spawn(see(
                ns.api::<PersistentVolumeClaim>(),
                Arc::clone(&claims),
                changes.clone(),
            )),
        ];
        Self {
            pods,
            claims,
            changes,
            tasks,
        }
    }

    /// What was seen of pods.
    #[must_use]
    pub fn pods(&self) -> Seen {
        lock(&self.pods).clone()
    }

    /// What was seen of claims.
    #[must_use]
    pub fn claims(&self) -> Seen {
        lock(&self.claims).clone()
    }

    /// Told at every change, of whatever kind.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn see<K>(api: Api<K>, seen: Arc<Mutex<Seen>>, changes: watch::Sender<u64>)
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + Debug
        + Send
        + serde::de::DeserializeOwned
        + 'static,
{
    let config = watcher::Config::default().labels(INSTANCE);
    let mut events = watcher(api, config).default_backoff().boxed();
    while let Some(event) = events.next().await {
        let (object, there) = match event {
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => (object, true),
            Ok(watcher::Event::Delete(object)) => (object, false),
            Ok(watcher::Event::Init | watcher::Event::InitDone) => continue,
            Err(error) => {
                eprintln!("the witness looks again: {error}");
                continue;
            }
        };
        let session = object.labels().get(INSTANCE).cloned().unwrap_or_default();
        let uid = object.uid().unwrap_or_default();
        {
            let mut seen = lock(&seen);
            if there {
                seen.ever
                    .entry(session.clone())
                    .or_default()
                    .insert(uid.clone());
                let now = seen.now.entry(session.clone()).or_default();
                now.insert(uid);
                let count = now.len();
                let most = seen.most.entry(session).or_default();
                *most = count.max(*most);
            } else {
                seen.now.entry(session).or_default().remove(&uid);
            }
        }
        changes.send_modify(|n| *n += 1);
    }
}
