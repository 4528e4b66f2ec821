//! What the sidecars say: one stream per pod, kept open, never written to.
//!
//! A task follows a pod from its first address until the pod leaves the cache. The last summary of
//! each is kept; a change of it asks for a round of that session.

use crate::session::names::Identity;
use contract::{
    client::{ClientError, SidecarClient},
    summary::Summary,
    token::{Claims, Scope, Signing},
};
use crds::OpenCodeSession;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// First pause before another attempt; it doubles.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause before another attempt.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Figures of use alone ask for a round at most this often.
const USAGE_EVERY: Duration = Duration::from_secs(10);
/// Time for a connection to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest silence of a stream: the sidecar sends a comment every 10 s.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// What a sidecar said last.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its words.
    pub summary: Arc<Summary>,
    /// Whether the stream is open: what it said still holds.
    pub connected: bool,
    /// Since when a key is missing.
    pub missing_since: Option<Timestamp>,
}

#[derive(Debug)]
struct Entry {
    pod_uid: String,
    /// Where its sidecar is listened to.
    base: String,
    stop: CancellationToken,
    /// Ends a pause between attempts.
    answers: Arc<Notify>,
    seen: Option<Seen>,
}

/// The last summary of every pod, and the tasks that follow them.
#[derive(Clone, Debug)]
pub struct Summaries {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// By UID of the session.
    entries: Mutex<HashMap<String, Entry>>,
    http: reqwest::Client,
    signing: Arc<Signing>,
    wake: mpsc::UnboundedSender<ObjectRef<OpenCodeSession>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// No HTTP client could be made.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client for sidecars could not be made")]
pub struct NoClient(#[source] reqwest::Error);

/// The HTTP client for sidecars.
pub fn http_client() -> Result<reqwest::Client, NoClient> {
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(SILENCE_MAX)
        // Addresses of pods are never behind a proxy, whatever the environment says.
        .no_proxy()
        .build()
        .map_err(NoClient)
}

impl Summaries {
    /// Follows nobody yet. `wake` gets the sessions whose summary changed; all tasks end with `stop`.
    #[must_use]
    pub fn new(
        http: reqwest::Client,
        signing: Arc<Signing>,
        wake: mpsc::UnboundedSender<ObjectRef<OpenCodeSession>>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                entries: Mutex::default(),
                http,
                signing,
                wake,
                tasks: TaskTracker::new(),
                stop,
            }),
        }
    }

    /// What the sidecar of this very pod said last.
    #[must_use]
    pub fn get(&self, session_uid: &str, pod_uid: &str) -> Option<Seen> {
        let entries = self.inner.lock();
        entries
            .get(session_uid)
            .filter(|e| e.pod_uid == pod_uid)?
            .seen
            .clone()
    }

    /// Records what a sidecar said, as its stream would.
    pub fn record(&self, identity: &Identity, pod_uid: &str, summary: Summary, now: Timestamp) {
        let mut entries = self.inner.lock();
        let entry = entries
            .entry(identity.uid.clone())
            .or_insert_with(|| Entry {
                pod_uid: pod_uid.to_owned(),
                base: String::new(),
                stop: self.inner.stop.child_token(),
                answers: Arc::default(),
                seen: None,
            });
        if entry.pod_uid != pod_uid {
            return;
        }
        let missing_since = (!summary.missing_keys.is_empty()).then(|| {
            entry
                .seen
                .as_ref()
                .and_then(|s| s.missing_since)
                .unwrap_or(now)
        });
        entry.seen = Some(Seen {
            summary: Arc::new(summary),
            connected: true,
            missing_since,
        });
    }

    /// Follows the pod whose sidecar is at `base`, unless it is followed already; another pod of the same
    /// session is no longer followed. `ready`: the kubelet says that it answers, so that a pause
    /// between attempts makes no sense any more.
    pub fn follow(
        &self,
        identity: &Identity,
        pod_uid: &str,
        base: String,
        ready: bool,
        pods: &Store<Pod>,
    ) {
        let answers = Arc::new(Notify::new());
        let stop = {
            let mut entries = self.inner.lock();
            match entries.get(&identity.uid) {
                // A pod whose sandbox was made anew keeps its UID and has another address.
                Some(entry) if entry.pod_uid == pod_uid && entry.base == base => {
                    if ready && !entry.seen.as_ref().is_some_and(|seen| seen.connected) {
                        entry.answers.notify_one();
                    }
                    return;
                }
                Some(entry) => entry.stop.cancel(),
                None => {}
            }
            let stop = self.inner.stop.child_token();
            entries.insert(
                identity.uid.clone(),
                Entry {
                    pod_uid: pod_uid.to_owned(),
                    base: base.clone(),
                    stop: stop.clone(),
                    answers: Arc::clone(&answers),
                    seen: None,
                },
            );
            stop
        };
        let follower = Follower {
            summaries: self.clone(),
            identity: identity.clone(),
            pod_uid: pod_uid.to_owned(),
            base,
            answers,
            pods: pods.clone(),
        };
        self.inner.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = follower.run() => {}
            }
            follower.forget();
        });
    }

    /// Waits until every task has ended; cancel `stop` first.
    pub async fn ended(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Follower {
    summaries: Summaries,
    identity: Identity,
    pod_uid: String,
    base: String,
    answers: Arc<Notify>,
    pods: Store<Pod>,
}

impl Follower {
    async fn run(&self) {
        let mut backoff = BACKOFF_MIN;
        let mut attempt: u32 = 0;
        while self.pod_exists() {
            let began = Instant::now();
            match self.listen().await {
                Ok(()) => tracing::debug!(session = %self.name(), "summary stream ended"),
                Err(ClientError::Transport(error)) => {
                    tracing::debug!(session = %self.name(), %error, "sidecar not reached");
                }
                Err(error) => {
                    tracing::warn!(session = %self.name(), %error, "summary stream refused");
                }
            }
            self.disconnected();
            if began.elapsed() > BACKOFF_MAX {
                backoff = BACKOFF_MIN;
            }
            attempt = attempt.wrapping_add(1);
            tokio::select! {
                () = sleep(jittered(backoff, &self.pod_uid, attempt)) => {}
                () = self.answers.notified() => {}
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn listen(&self) -> Result<(), ClientError> {
        let inner = &self.summaries.inner;
        let now = Timestamp::now().as_second();
        let token = inner.signing.sign(&Claims {
            iss: "operator".into(),
            sub: "system:opencode-operator".into(),
            aud: self.identity.uid.clone(),
            iat: now,
            exp: now + contract::token::LIFETIME_MAX_SECONDS,
            scopes: vec![Scope::SummaryRead],
        });
        let client = SidecarClient::new(inner.http.clone(), self.base.as_str(), token.into());
        let mut stream = client.summaries().await?;
        let mut woken: Option<Instant> = None;
        let mut last: Option<Summary> = None;
        // Usage that was not worth a round yet; told when the pause is over.
        let mut owed = false;
        loop {
            let pause = woken.map_or(Duration::ZERO, |w| USAGE_EVERY.saturating_sub(w.elapsed()));
            let next = tokio::select! {
                next = stream.next() => next,
                () = sleep(pause), if owed => {
                    owed = false;
                    woken = Some(Instant::now());
                    self.wake();
                    continue;
                }
            };
            let Some(summary) = next else { return Ok(()) };
            let summary = summary?;
            let news = last.as_ref().is_none_or(|last| {
                Summary {
                    usage: summary.usage,
                    spend: summary.spend,
                    budget_left: summary.budget_left,
                    audit: summary.audit.clone(),
                    ..last.clone()
                } != summary
            });
            owed = !news;
            last = Some(summary.clone());
            self.summaries
                .record(&self.identity, &self.pod_uid, summary, Timestamp::now());
            if news {
                woken = Some(Instant::now());
                self.wake();
            }
        }
    }

    fn pod_exists(&self) -> bool {
        let key = ObjectRef::new(&self.identity.pod()).within(&self.identity.namespace);
        self.pods
            .get(&key)
            .is_some_and(|pod| pod.uid().as_ref() == Some(&self.pod_uid))
    }

    fn disconnected(&self) {
        let changed = self
            .summaries
            .inner
            .lock()
            .get_mut(&self.identity.uid)
            .filter(|e| e.pod_uid == self.pod_uid)
            .and_then(|e| e.seen.as_mut())
            .is_some_and(|seen| std::mem::replace(&mut seen.connected, false));
        if changed {
            self.wake();
        }
    }

    fn forget(&self) {
        let mut entries = self.summaries.inner.lock();
        if entries
            .get(&self.identity.uid)
            // Of this very follower: another one may follow the same pod at its new address.
            .is_some_and(|e| Arc::ptr_eq(&e.answers, &self.answers))
        {
            entries.remove(&self.identity.uid);
        }
    }

    fn wake(&self) {
        let session = ObjectRef::new(&self.identity.name).within(&self.identity.namespace);
        // Nobody listens any more only when the process ends.
        let _ = self.summaries.inner.wake.send(session);
    }

    fn name(&self) -> String {
        format!("{}/{}", self.identity.namespace, self.identity.name)
    }
}

/// Between half of the pause and the whole, so that pods which lost one operator do not come back in
/// step. Spread by a hash: nothing here needs to be unpredictable.
fn jittered(pause: Duration, seed: &str, attempt: u32) -> Duration {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (seed, attempt).hash(&mut hasher);
    let share = u32::try_from(hasher.finish() % 512).unwrap_or(0);
    pause / 2 + pause * share / 1024
}
