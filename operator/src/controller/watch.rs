//! The watches: three caches and one stream of what to look at.

use crate::{
    metrics::Metrics,
    session::names::{INSTANCE, MANAGED_BY, MANAGER},
};
use crds::OpenCodeSession;
use futures::{Stream, StreamExt, stream::BoxStream};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt, reflector,
        reflector::{ObjectRef, Store},
        watcher,
        watcher::{Event, InitialListStrategy},
    },
};
use serde::de::DeserializeOwned;
use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    fmt::Debug,
    hash::{Hash, Hasher},
};

/// A reason for a round.
#[derive(Clone, Debug)]
pub enum Trigger {
    /// Look at this session.
    Look(ObjectRef<OpenCodeSession>),
    /// A session is gone: forget what is kept about it.
    Gone {
        /// Its name.
        object: ObjectRef<OpenCodeSession>,
        /// Its UID.
        uid: String,
    },
}

/// The caches, and what fills them and tells of changes; it must be polled.
pub struct Caches {
    /// Sessions that could be parsed.
    pub sessions: Store<OpenCodeSession>,
    /// Pods with our label.
    pub pods: Store<Pod>,
    /// Claims with our label.
    pub claims: Store<PersistentVolumeClaim>,
    /// Every reason for a round.
    pub triggers: BoxStream<'static, Trigger>,
}

pub(super) fn start(client: &Client, namespace: Option<&str>, metrics: &Metrics) -> Caches {
    let children = watcher::Config::default().labels(&format!("{MANAGED_BY}={MANAGER}"));
    let (sessions, session_events) =
        cache::<OpenCodeSession>(client, namespace, watcher::Config::default(), metrics);
    let (pods, pod_events) = cache::<Pod>(client, namespace, children.clone(), metrics);
    let (claims, claim_events) =
        cache::<PersistentVolumeClaim>(client, namespace, children, metrics);
    let triggers = futures::stream::select_all([
        session_events
            .scan(Seen::default(), |seen, event| {
                let triggers = session_triggers(seen, event);
                async move { Some(triggers) }
            })
            .flat_map(futures::stream::iter)
            .boxed(),
        pod_events
            .scan(Seen::default(), |seen, event| {
                let triggers = child_triggers(seen, event, pod_view);
                async move { Some(triggers) }
            })
            .flat_map(futures::stream::iter)
            .boxed(),
        claim_events
            .scan(Seen::default(), |seen, event| {
                let triggers = child_triggers(seen, event, claim_view);
                async move { Some(triggers) }
            })
            .flat_map(futures::stream::iter)
            .boxed(),
    ])
    .boxed();
    Caches {
        sessions,
        pods,
        claims,
        triggers,
    }
}

/// A cache and the events that went into it. Objects that cannot be parsed are passed over: the cache
/// keeps what was understood last.
fn cache<K>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
    metrics: &Metrics,
) -> (
    Store<K>,
    impl Stream<Item = Event<K>> + Send + 'static + use<K>,
)
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + DeserializeOwned
        + Clone
        + Debug
        + Send
        + Sync
        + 'static,
{
    let api: Api<DeserializeGuard<K>> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let (store, writer) = reflector::store();
    let kept: Store<K> = store.clone();
    let metrics = metrics.clone();
    // Pages, not a streamed list: the latter needs a recent API server.
    let config = config.any_semantic();
    debug_assert!(matches!(
        config.initial_list_strategy,
        InitialListStrategy::ListWatch
    ));
    let events = watcher(api, config)
        .default_backoff()
        .scan(HashMap::new(), move |known: &mut HashMap<String, String>, event| {
            let event = match event {
                Ok(event) => parsed(event, known, &kept, &metrics),
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "watch interrupted; it goes on by itself");
                    metrics.error(crate::reason::Reason::WatchInterrupted);
                    None
                }
            };
            async move { Some(event) }
        })
        .filter_map(|event| async move { event });
    let events = reflector::reflector(writer, events.map(Ok::<_, watcher::Error>))
        .filter_map(|event| async move { event.ok() });
    (store, events)
}

/// The event with a parsed object; `None` for an object that cannot be parsed, which is counted each
/// time and logged once per version of the fault. One that is deleted is deleted as it was `kept`.
fn parsed<K>(
    event: Event<DeserializeGuard<K>>,
    known: &mut HashMap<String, String>,
    kept: &Store<K>,
    metrics: &Metrics,
) -> Option<Event<K>>
where
    K: Resource<DynamicType = ()> + Clone,
{
    if let Event::Delete(DeserializeGuard(Err(invalid))) = &event {
        let meta = &invalid.metadata;
        known.remove(meta.uid.as_deref().unwrap_or_default());
        let mut object = ObjectRef::new(meta.name.as_deref()?);
        object.namespace.clone_from(&meta.namespace);
        let kept = kept.get(&object)?;
        return (kept.meta().uid == meta.uid).then(|| Event::Delete(K::clone(&kept)));
    }
    let mut open = |guard: DeserializeGuard<K>| match guard.0 {
        Ok(mut object) => {
            // Never read, and larger than all the rest.
            object.meta_mut().managed_fields = None;
            known.remove(object.meta().uid.as_deref().unwrap_or_default());
            Some(object)
        }
        Err(invalid) => {
            metrics.unparsable();
            let uid = invalid.metadata.uid.clone().unwrap_or_default();
            if known.get(&uid) != Some(&invalid.error) {
                tracing::error!(
                    kind = %K::kind(&()),
                    namespace = invalid.metadata.namespace,
                    name = invalid.metadata.name,
                    error = invalid.error,
                    "object cannot be parsed and is passed over; is the installed CRD of another version?"
                );
                known.insert(uid, invalid.error);
            }
            None
        }
    };
    Some(match event {
        Event::Apply(object) => Event::Apply(open(object)?),
        Event::Delete(object) => Event::Delete(open(object)?),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(open(object)?),
        Event::InitDone => Event::InitDone,
    })
}

/// Hash of what mattered last, per UID; entries go with their objects.
#[derive(Debug, Default)]
struct Seen(
    HashMap<String, (u64, ObjectRef<OpenCodeSession>)>,
    Option<HashMap<String, (u64, ObjectRef<OpenCodeSession>)>>,
);

impl Seen {
    fn begin(&mut self) {
        self.1 = Some(std::mem::take(&mut self.0));
    }

    /// What was there before a new list and is not any more.
    fn finish(&mut self) -> Vec<(String, ObjectRef<OpenCodeSession>)> {
        let before = self.1.take().unwrap_or_default();
        before
            .into_iter()
            .filter(|(uid, _)| !self.0.contains_key(uid))
            .map(|(uid, (_, object))| (uid, object))
            .collect()
    }

    /// Whether this is news.
    fn note(&mut self, uid: &str, hash: u64, object: &ObjectRef<OpenCodeSession>) -> bool {
        let before = self
            .1
            .as_ref()
            .and_then(|old| old.get(uid))
            .map(|(hash, _)| *hash);
        let replaced = self
            .0
            .insert(uid.to_owned(), (hash, object.clone()))
            .map(|(hash, _)| hash);
        replaced.or(before) != Some(hash)
    }

    fn drop(&mut self, uid: &str) {
        self.0.remove(uid);
    }
}

/// Generation alone would swallow the update that adds a finalizer and, with it, a deletion.
fn session_triggers(seen: &mut Seen, event: Event<OpenCodeSession>) -> Vec<Trigger> {
    let uid = |session: &OpenCodeSession| session.uid().unwrap_or_default();
    match event {
        Event::Apply(session) | Event::InitApply(session) => {
            let object = ObjectRef::from_obj(&session);
            let meta = &session.metadata;
            let view = hash(&(
                meta.generation,
                &meta.finalizers,
                &meta.annotations,
                meta.deletion_timestamp.as_ref().map(|t| t.0),
            ));
            if seen.note(&uid(&session), view, &object) {
                vec![Trigger::Look(object)]
            } else {
                Vec::new()
            }
        }
        Event::Delete(session) => {
            let uid = uid(&session);
            seen.drop(&uid);
            vec![Trigger::Gone {
                object: ObjectRef::from_obj(&session),
                uid,
            }]
        }
        Event::Init => {
            seen.begin();
            Vec::new()
        }
        Event::InitDone => seen
            .finish()
            .into_iter()
            .map(|(uid, object)| Trigger::Gone { object, uid })
            .collect(),
    }
}

fn child_triggers<K>(seen: &mut Seen, event: Event<K>, view: fn(&K) -> u64) -> Vec<Trigger>
where
    K: Resource<DynamicType = ()>,
{
    match event {
        Event::Apply(child) | Event::InitApply(child) => session_of(&child)
            .filter(|object| {
                seen.note(
                    child.meta().uid.as_deref().unwrap_or_default(),
                    view(&child),
                    object,
                )
            })
            .map(Trigger::Look)
            .into_iter()
            .collect(),
        // Always news: a name became free.
        Event::Delete(child) => {
            seen.drop(child.meta().uid.as_deref().unwrap_or_default());
            session_of(&child).map(Trigger::Look).into_iter().collect()
        }
        Event::Init => {
            seen.begin();
            Vec::new()
        }
        Event::InitDone => seen
            .finish()
            .into_iter()
            .map(|(_, object)| Trigger::Look(object))
            .collect(),
    }
}

/// By label and not by owner: a retained claim has no owner, and a pod of an earlier session of the
/// same name keeps this one waiting.
fn session_of<K: Resource<DynamicType = ()>>(child: &K) -> Option<ObjectRef<OpenCodeSession>> {
    let meta = child.meta();
    let name = meta.labels.as_ref()?.get(INSTANCE)?;
    Some(ObjectRef::new(name).within(meta.namespace.as_deref()?))
}

/// What of a pod is worth a round: the kubelet writes several times while a pod starts.
fn pod_view(pod: &Pod) -> u64 {
    let status = pod.status.as_ref();
    let conditions: Vec<_> = status
        .and_then(|s| s.conditions.as_ref())
        .into_iter()
        .flatten()
        .filter(|c| match c.type_.as_str() {
            "Ready" => c.status == "True",
            "PodScheduled" => c.status == "False",
            other => other.starts_with("PodResize"),
        })
        .map(|c| (&c.type_, &c.status, &c.reason))
        .collect();
    let waiting: Vec<_> = status
        .into_iter()
        .flat_map(|s| {
            s.init_container_statuses
                .iter()
                .flatten()
                .chain(s.container_statuses.iter().flatten())
        })
        .filter_map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.as_deref())
        .filter(|reason| !matches!(*reason, "PodInitializing" | "ContainerCreating"))
        .collect();
    hash(&(
        &pod.metadata.annotations,
        pod.metadata.deletion_timestamp.as_ref().map(|t| t.0),
        status
            .and_then(|s| s.phase.as_deref())
            .filter(|phase| matches!(*phase, "Failed" | "Succeeded")),
        status.and_then(|s| s.pod_ip.as_deref()),
        conditions,
        waiting,
    ))
}

fn claim_view(claim: &PersistentVolumeClaim) -> u64 {
    let requests = claim
        .spec
        .as_ref()
        .and_then(|s| s.resources.as_ref())
        .and_then(|r| r.requests.as_ref());
    let owners: Vec<_> = claim
        .metadata
        .owner_references
        .iter()
        .flatten()
        .map(|o| &o.uid)
        .collect();
    hash(&(
        &claim.metadata.annotations,
        claim.metadata.deletion_timestamp.as_ref().map(|t| t.0),
        owners,
        requests.and_then(|r| r.get("storage")).map(|q| &q.0),
        claim.status.as_ref().and_then(|s| s.phase.as_deref()),
    ))
}

fn hash<T: Hash>(value: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn guard(value: Value) -> DeserializeGuard<OpenCodeSession> {
        serde_json::from_value(value).unwrap()
    }

    fn session(spec: &Value) -> Value {
        json!({
            "apiVersion": "opencode-operator.dev/v1alpha1", "kind": "OpenCodeSession",
            "metadata": {"name": "wombat", "namespace": "hole", "uid": "u", "generation": 1,
                "managedFields": [{"manager": "x"}]},
            "spec": spec,
        })
    }

    fn good() -> Value {
        session(&json!({
            "providers": [{"name": "a", "kind": "openai", "apiKeySecretRef": {"name": "s", "key": "k"}}],
            "model": {"provider": "a", "name": "m"},
        }))
    }

    #[test]
    fn an_object_that_cannot_be_parsed_is_counted_and_stops_nothing() {
        let metrics = Metrics::default();
        let mut known = HashMap::new();
        let (kept, mut writer) = reflector::store();
        let bad = session(&json!({"providers": "none"}));
        for event in [
            Event::Apply(guard(bad.clone())),
            Event::InitApply(guard(bad.clone())),
        ] {
            assert!(parsed(event, &mut known, &kept, &metrics).is_none());
        }
        assert!(
            metrics.text().contains("unparsable_objects_total 2"),
            "{}",
            metrics.text()
        );
        assert_eq!(known.len(), 1, "logged once");
        let gone = parsed(
            Event::Delete(guard(bad.clone())),
            &mut known,
            &kept,
            &metrics,
        );
        assert!(gone.is_none(), "it was never known");
        assert!(known.is_empty());

        parsed(
            Event::Apply(guard(bad.clone())),
            &mut known,
            &kept,
            &metrics,
        );
        let Some(Event::Apply(read)) =
            parsed(Event::Apply(guard(good())), &mut known, &kept, &metrics)
        else {
            panic!("a good object passes");
        };
        assert!(read.metadata.managed_fields.is_none());
        assert!(known.is_empty(), "it was mended");

        // It was good once, is no longer, and goes: it goes from the cache, too.
        writer.apply_watcher_event(&Event::Apply(read));
        let gone = parsed(
            Event::Delete(guard(bad.clone())),
            &mut known,
            &kept,
            &metrics,
        );
        writer.apply_watcher_event(&gone.expect("it was known"));
        assert!(kept.state().is_empty());

        // Another object of that name is left alone.
        writer.apply_watcher_event(&Event::Apply(self::read(good())));
        let mut other = bad;
        other["metadata"]["uid"] = json!("of another");
        assert!(parsed(Event::Delete(guard(other)), &mut known, &kept, &metrics).is_none());
        assert_eq!(kept.state().len(), 1);
    }

    fn read(value: Value) -> OpenCodeSession {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn our_own_status_is_no_news_and_finalizers_deletion_and_annotations_are() {
        let mut seen = Seen::default();
        let mut news = |value: &Value| {
            !session_triggers(&mut seen, Event::Apply(read(value.clone()))).is_empty()
        };
        let mut object = good();
        assert!(news(&object));
        object["status"] = json!({"phase": "Ready"});
        assert!(!news(&object));
        for (field, value) in [
            ("generation", json!(2)),
            ("finalizers", json!(["x/y"])),
            ("annotations", json!({"a": "b"})),
            ("deletionTimestamp", json!("2031-01-01T00:00:00Z")),
        ] {
            object["metadata"][field] = value;
            assert!(news(&object), "{field}");
            assert!(!news(&object), "{field} again");
        }
    }

    #[test]
    fn what_vanished_between_two_lists_is_noticed() {
        let mut seen = Seen::default();
        session_triggers(&mut seen, Event::Apply(read(good())));
        session_triggers(&mut seen, Event::Init);
        let mut other = good();
        other["metadata"]["uid"] = json!("v");
        other["metadata"]["name"] = json!("koala");
        assert_eq!(
            session_triggers(&mut seen, Event::InitApply(read(other))).len(),
            1
        );
        let gone = session_triggers(&mut seen, Event::InitDone);
        assert!(
            matches!(&gone[..], [Trigger::Gone { uid, .. }] if uid == "u"),
            "{gone:?}"
        );
    }

    #[test]
    fn of_a_starting_pod_only_what_matters_is_news() {
        let pod = |status: Value| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"name": "wombat", "namespace": "hole", "uid": "p",
                "labels": {INSTANCE: "wombat"}}, "status": status}),
            )
            .unwrap()
        };
        let mut seen = Seen::default();
        let mut news =
            |status| !child_triggers(&mut seen, Event::Apply(pod(status)), pod_view).is_empty();
        assert!(news(json!({"phase": "Pending"})));
        assert!(!news(
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]})
        ));
        assert!(!news(
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]})
        ));
        assert!(news(json!({"phase": "Running", "podIP": "10.0.0.1"})));
        assert!(news(
            json!({"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]})
        ));
        assert!(news(json!({"phase": "Failed", "podIP": "10.0.0.1"})));
    }
}
