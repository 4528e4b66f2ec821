//! Puts the parts together and takes them apart again.

use crate::{
    agent::{
        launch,
        supervisor::{Agent, AgentOptions},
    },
    api,
    app::App,
    audit::{Audit, Bounds},
    checkpoints::{self, Keeper},
    config::{Config, ConfigError},
    egress::{self, Egress},
    keys::ProviderKeys,
    metrics::Metrics,
    proxy::{self, Bindings, Ledger, Proxy, ProxyError},
    secret, serve,
    settings::Settings,
    spans::Calls,
    store::{Store, StoreError},
    summary,
    watchdog::Patience,
};
use bootstrap::trace::Traces;
use contract::pod::Limits;
use opentelemetry::KeyValue;
use std::{
    error::Error,
    io,
    net::Ipv4Addr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Longest time for turns to end after SIGTERM; the pod's grace period is 30 s.
const TURNS_END: Duration = Duration::from_secs(17);

/// News of model calls that wait to be told; what does not fit is dropped.
const OBSERVATIONS: usize = 256;

/// Why the sidecar could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Something of the system.
    #[error("a system call failed")]
    Io(#[from] io::Error),
    /// The journal's folder cannot be made.
    #[error("the folder {path} cannot be made or written")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A port is taken.
    #[error("port {port} cannot be opened")]
    Port {
        /// Which.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// The configuration is unusable.
    #[error("the configuration cannot be used")]
    Config(#[source] Box<dyn Error + Send + Sync>),
    /// The journal is unusable.
    #[error("the journal cannot be used")]
    Store(#[source] Box<dyn Error + Send + Sync>),
    /// The credential proxy cannot be made.
    #[error("the credential proxy cannot be made")]
    Proxy(#[source] Box<dyn Error + Send + Sync>),
    /// The exporter of traces cannot be made.
    #[error("traces cannot be sent")]
    Traces(#[source] Box<dyn Error + Send + Sync>),
    /// A part that all others need ended.
    #[error("{0} ended")]
    Part(&'static str),
}

impl RunError {
    /// The error and all its causes in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        text
    }
}

impl From<ConfigError> for RunError {
    fn from(error: ConfigError) -> Self {
        Self::Config(Box::new(error))
    }
}

impl From<StoreError> for RunError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

impl From<ProxyError> for RunError {
    fn from(error: ProxyError) -> Self {
        Self::Proxy(Box::new(error))
    }
}

/// Who is told of model calls: sessions' readers and the collector of traces.
struct Told {
    news: tokio::sync::mpsc::Sender<proxy::Observation>,
    calls: Calls,
}

impl proxy::Observer for Told {
    fn observe(&self, observation: proxy::Observation) {
        self.news.observe(observation);
    }

    fn ended(&self, call: &proxy::Ended<'_>) {
        self.calls.ended(call);
    }
}

/// Runs until SIGTERM or SIGINT, or until a part fails that others need.
pub async fn run(mut settings: Settings) -> Result<(), RunError> {
    let shutdown = bootstrap::shutdown_token()?;
    // Ports first: whoever in the pod comes later must not pose as us.
    let api_listener = bind(settings.host, settings.port).await?;
    let proxy_listener = bind(Ipv4Addr::LOCALHOST.into(), settings.proxy_port).await?;
    let egress_listener = bind(Ipv4Addr::LOCALHOST.into(), settings.egress_port).await?;
    // Without Kubernetes any free port will do.
    settings.egress_port = egress_listener.local_addr()?.port();
    // The mount may be open to others (some volumes are 0777): the journal gets a folder of its own.
    let journal_dir = settings.journal_dir.join("sessions");
    make_dir(&journal_dir)?;
    let private = settings.journal_dir.join("private");
    make_dir(&private)?;
    let password = secret::load_or_make(&private).map_err(|source| RunError::Folder {
        path: private.clone(),
        source,
    })?;
    let limits = Limits {
        max_concurrent_sessions: settings.max_concurrent_sessions,
        turn_timeout_seconds: settings.session_timeout,
        ..Limits::default()
    };
    let config = Config::load(&settings.config_dir, &limits, shutdown.clone())?;
    let keys = ProviderKeys::new(settings.provider_keys_dir.clone());
    let bindings = Bindings::default();
    let (store, unfinished) = Store::open(&journal_dir)?;
    let audit_dir = settings.journal_dir.join("audit");
    make_dir(&audit_dir)?;
    let (audit, totals) =
        Audit::open(&audit_dir, Bounds::default()).map_err(|source| RunError::Folder {
            path: audit_dir,
            source,
        })?;
    let ledger = Ledger::new(audit, totals);
    let metrics = Metrics::new();
    store.on_sync(metrics.sync_observer());
    let traces = Traces::from_env("opencode-sidecar", || {
        let pod = config.pod();
        vec![
            KeyValue::new("k8s.namespace.name", pod.namespace.clone()),
            KeyValue::new("service.instance.id", pod.uid.clone()),
            KeyValue::new("opencode.object", pod.name.clone()),
        ]
    })
    .map_err(|error| RunError::Traces(Box::new(error)))?;
    let calls = Calls::new(traces);
    let (observer, mut observations) = tokio::sync::mpsc::channel(OBSERVATIONS);
    let (to_proxy, to_ledger) = (bindings.clone(), Arc::clone(&ledger));
    let proxy = Proxy::new(&settings, config.clone(), keys.clone(), to_proxy, to_ledger)?
        .with_observer(Arc::new(Told {
            news: observer,
            calls: calls.clone(),
        }));
    metrics.register(|registry| proxy.metrics().register(registry));
    let egress = Egress::new(config.clone());
    metrics.register(|registry| egress.metrics.register(registry));
    // Outlives `shutdown`: ending turns still need the agent and, through it, the proxy.
    let last = CancellationToken::new();
    let launch = launches(&settings, &config, &password, last.clone());
    let patience = derived(&config, last.clone(), |config: &Config| {
        Patience::from(&config.pod().limits.watchdog)
    });
    let options = AgentOptions::new(&settings, password, launch, patience, metrics.watch.clone());
    let (agent, agent_task) = Agent::spawn(options, last.clone());
    agent.router().bind_children(bindings.clone());
    let checkpoints = Keeper::new();
    metrics.register(|registry| checkpoints.metrics.register(registry));
    let app = Arc::new(App {
        settings,
        config,
        keys,
        store,
        checkpoints,
        agent,
        bindings,
        ledger: Arc::clone(&ledger),
        metrics,
        refused: Arc::clone(&egress.refused),
        calls,
        shutdown: shutdown.clone(),
        turns: TaskTracker::new(),
        summary: OnceLock::new(),
        news: watch::Sender::new(()),
    });
    checkpoints::recover(&app);
    app.take_up(unfinished);
    // Set exactly once, here.
    let _ = app.summary.set(summary::spawn(&app));
    let prompt = tokio::spawn({
        let app = Arc::clone(&app);
        async move { app.start_prompt().await }
    });
    tokio::spawn({
        let app = Arc::clone(&app);
        async move {
            while let Some(observation) = observations.recv().await {
                app.observed(&observation);
            }
        }
    });
    #[cfg(not(feature = "weakened"))]
    let (proxy_task, egress_task) = (
        tokio::spawn(proxy::serve(proxy_listener, proxy.router(), last.clone())),
        tokio::spawn(egress::serve(egress_listener, egress, last.clone())),
    );
    #[cfg(feature = "weakened")]
    let (proxy_task, egress_task) = {
        // Built as ever, so that everything else is what it is in the real one.
        drop((proxy.router(), proxy::serve, egress, egress::serve));
        crate::weakened::announce(&app.config, &app.keys, &app.settings.provider_keys_dir);
        let naive = |listener| {
            let (config, keys) = (app.config.clone(), app.keys.clone());
            tokio::spawn(crate::weakened::serve(listener, config, keys, last.clone()))
        };
        (naive(proxy_listener), naive(egress_listener))
    };
    let api_task = tokio::spawn(serve::serve(
        api_listener,
        api::router(Arc::clone(&app)),
        shutdown.clone(),
    ));
    tracing::info!(api = %app.settings.api_addr(), "ready for requests");

    let result = wait(
        &app.shutdown,
        &app.store,
        &ledger,
        agent_task,
        proxy_task,
        egress_task,
    )
    .await;
    shutdown.cancel();
    app.turns.close();
    if tokio::time::timeout(TURNS_END, app.turns.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            turns = app.turns.len(),
            "turns were still under way at the end"
        );
    }
    for (name, task) in [("the API", api_task), ("the pod's prompt", prompt)] {
        if task.await.is_err() {
            tracing::error!(part = name, "panicked");
        }
    }
    last.cancel();
    // Ends of calls that are written behind everybody's back.
    if tokio::task::spawn_blocking(move || ledger.close())
        .await
        .is_err()
    {
        tracing::error!("the audit log was not closed");
    }
    // Waits for the collector for a moment.
    let ended = tokio::task::spawn_blocking(move || app.calls.traces().end());
    if ended.await.is_err() {
        tracing::error!("the last spans were not sent");
    }
    tracing::info!("stopped");
    result
}

/// Waits for the signal; a part that others rely on and that ends before it ends the process.
async fn wait(
    shutdown: &CancellationToken,
    store: &Store,
    ledger: &Ledger,
    agent: tokio::task::JoinHandle<()>,
    proxy: tokio::task::JoinHandle<()>,
    egress: tokio::task::JoinHandle<()>,
) -> Result<(), RunError> {
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        _ = agent => Err(RunError::Part("the agent's supervisor")),
        _ = proxy => Err(RunError::Part("the credential proxy")),
        _ = egress => Err(RunError::Part("the egress proxy")),
        // A failed sync is final for this process; the next one reads what is really there.
        () = store.failed() => Err(RunError::Part("the journal")),
        () = ledger.failed() => Err(RunError::Part("the audit log of model calls")),
    }
}

async fn bind(host: std::net::IpAddr, port: u16) -> Result<TcpListener, RunError> {
    #[cfg(feature = "weakened")]
    let bound = crate::weakened::bind(host, port);
    #[cfg(not(feature = "weakened"))]
    let bound = TcpListener::bind((host, port)).await;
    bound.map_err(|source| RunError::Port { port, source })
}

fn make_dir(path: &Path) -> Result<(), RunError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| RunError::Folder {
            path: path.to_owned(),
            source,
        })
}

/// How OpenCode is to be started, renewed with the configuration. The supervisor restarts a running
/// OpenCode for a new launch only between turns.
fn launches(
    settings: &Settings,
    config: &Config,
    password: &str,
    last: CancellationToken,
) -> watch::Receiver<contract::runner::Launch> {
    let make = {
        let settings = settings.clone();
        let password = password.to_owned();
        move |config: &Config| {
            launch::launch(
                &settings,
                &config.pod(),
                &password,
                proxy::alias::opencode_providers_with(
                    settings.proxy_port,
                    Duration::from_secs(settings.model_header_timeout),
                    Duration::from_secs(settings.model_chunk_timeout),
                ),
                &settings.agent_home,
            )
        }
    };
    derived(config, last, make)
}

/// What follows from the configuration, renewed with it.
fn derived<T: PartialEq + Send + Sync + 'static>(
    config: &Config,
    last: CancellationToken,
    make: impl Fn(&Config) -> T + Send + 'static,
) -> watch::Receiver<T> {
    let (sender, receiver) = watch::channel(make(config));
    let config = config.clone();
    tokio::spawn(async move {
        let mut pod = config.watch_pod();
        while let Some(Ok(())) = last.run_until_cancelled(pod.changed()).await {
            pod.borrow_and_update();
            let value = make(&config);
            sender.send_if_modified(|old| {
                let differs = *old != value;
                if differs {
                    *old = value;
                }
                differs
            });
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn for_ever() -> tokio::task::JoinHandle<()> {
        tokio::spawn(std::future::pending())
    }

    #[tokio::test]
    async fn whatever_others_rely_on_ends_the_process_when_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let calls = tempfile::tempdir().unwrap();
        let open_ledger = || {
            let (audit, totals) = Audit::open(calls.path(), Bounds::default()).unwrap();
            Ledger::new(audit, totals)
        };
        let ledger = open_ledger();
        let shutdown = CancellationToken::new();
        let part = |result: Result<(), RunError>| result.unwrap_err().to_string();

        let ended = tokio::spawn(async {});
        let why = part(wait(&shutdown, &store, &ledger, ended, for_ever(), for_ever()).await);
        assert!(why.contains("supervisor"), "{why}");
        let ended = tokio::spawn(async {});
        let why = part(wait(&shutdown, &store, &ledger, for_ever(), ended, for_ever()).await);
        assert!(why.contains("credential proxy"), "{why}");
        let ended = tokio::spawn(async {});
        let why = part(wait(&shutdown, &store, &ledger, for_ever(), for_ever(), ended).await);
        assert!(why.contains("egress proxy"), "{why}");
        let broken = open_ledger();
        broken.fail();
        let why = part(
            wait(
                &shutdown,
                &store,
                &broken,
                for_ever(),
                for_ever(),
                for_ever(),
            )
            .await,
        );
        assert!(why.contains("audit log"), "{why}");
        store.fail();
        let why = part(
            wait(
                &shutdown,
                &store,
                &ledger,
                for_ever(),
                for_ever(),
                for_ever(),
            )
            .await,
        );
        assert!(why.contains("journal"), "{why}");
        let (store, _) = Store::open(tempfile::tempdir().unwrap().path()).unwrap();
        shutdown.cancel();
        wait(
            &shutdown,
            &store,
            &ledger,
            for_ever(),
            for_ever(),
            for_ever(),
        )
        .await
        .unwrap();
    }
}
