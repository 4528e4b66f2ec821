//! What operator, sidecar and runner add to the starts of the kubelet and of OpenCode: the time that
//! each of them holds a start up, by the clocks of their own logs (one machine, one clock).

use crate::{alone, ms, row};
use crds::OpenCodeSession;
use futures::TryStreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, watcher};
use std::time::{Duration, Instant};
use tests::{Namespace, Session};
use tokio::task::JoinHandle;

/// Milliseconds of each share, one per start.
#[derive(Default)]
pub(crate) struct Shares {
    operator: Vec<f64>,
    sidecar: Vec<f64>,
    runner: Vec<f64>,
    noticing: Vec<f64>,
    sum: Vec<f64>,
    start: Pair,
    prompt: Pair,
}

/// The same of OpenCode's own work: in the session, and without us in the same container.
#[derive(Default)]
struct Pair {
    ours: Vec<f64>,
    alone: Vec<f64>,
}

/// Time between the object and its pod coming into being, both as a watch sees them.
pub(crate) fn watch(ns: &Namespace, name: &str) -> JoinHandle<Duration> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let objects = watcher(ns.api::<OpenCodeSession>(), config.clone()).touched_objects();
    let pods = watcher(ns.api::<Pod>(), config).touched_objects();
    tokio::spawn(async move {
        tokio::pin!(objects, pods);
        let object = async {
            objects.try_next().await.expect("a watch of objects");
            Instant::now()
        };
        let pod = async {
            pods.try_next().await.expect("a watch of pods");
            Instant::now()
        };
        let (object, pod) = tokio::join!(object, pod);
        pod.saturating_duration_since(object)
    })
}

impl Shares {
    pub(crate) async fn take(&mut self, session: &Session, operator: Duration) {
        let sidecar = logs(session, "sidecar").await;
        let agent = logs(session, "agent").await;
        let between = |from: Timestamp, to: Timestamp| {
            ms(to.duration_since(from).try_into().unwrap_or_default())
        };
        let listening = at(&agent, "opencode server listening on");
        let spawned = at(&agent, "OpenCode started");
        let answers = at(&sidecar, "OpenCode answers");
        let shares = [
            ms(operator),
            between(at(&sidecar, "starting"), at(&sidecar, "ready for requests")),
            between(at(&agent, "listening"), spawned),
            between(listening, answers),
        ];
        let [operator, start, runner, noticing] = shares;
        self.operator.push(operator);
        self.sidecar.push(start);
        self.runner.push(runner);
        self.noticing.push(noticing);
        self.sum.push(shares.iter().sum());
        self.start.ours.push(between(spawned, listening));
        self.prompt
            .ours
            .push(between(answers, at(&sidecar, "OpenCode has the prompt")));
        let alone = alone::start(session).await;
        self.start.alone.push(alone.listening);
        self.prompt.alone.push(alone.prompt);
    }

    pub(crate) fn report(self, report: &mut String) {
        for (name, values) in [
            ("added: object there → pod created", self.operator),
            (
                "added: sidecar's process → its ports and journal open",
                self.sidecar,
            ),
            ("added: runner's process → OpenCode's process", self.runner),
            (
                "added: OpenCode listens → sidecar has its first answer",
                self.noticing,
            ),
            ("added: sum of these (aim 150)", self.sum),
            (
                "OpenCode's own: its process → it listens, confined",
                self.start.ours,
            ),
            (
                "the same in the same container, without us",
                self.start.alone,
            ),
            (
                "OpenCode's own: first answer → it has the prompt (event stream, session, prompt)",
                self.prompt.ours,
            ),
            (
                "the same requests in the same container, without us",
                self.prompt.alone,
            ),
        ] {
            row(report, name, values, "ms");
        }
    }
}

/// Lines of a container's log.
async fn logs(session: &Session, container: &str) -> Vec<serde_json::Value> {
    let text = session
        .ns
        .kubectl(&["logs", &session.name, "-c", container], "")
        .await;
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// When a line that begins like this was written first.
fn at(log: &[serde_json::Value], begins: &str) -> Timestamp {
    let line = log
        .iter()
        .find(|line| {
            line["message"]
                .as_str()
                .is_some_and(|m| m.starts_with(begins))
        })
        .unwrap_or_else(|| panic!("no line {begins:?} in {log:#?}"));
    line["timestamp"]
        .as_str()
        .and_then(|time| time.parse().ok())
        .unwrap_or_else(|| panic!("no time in {line}"))
}
