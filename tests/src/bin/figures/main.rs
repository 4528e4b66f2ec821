//! `make bench`: figures of the whole path on the cluster in use, medians with spread. For reading, not
//! for passing: a shared machine is noisy.

mod added;
mod alone;
mod recovery;

use contract::{EventBody, event::OutputSource};
use futures::StreamExt;
use serde_json::json;
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tests::{
    Model, Namespace, Recorder, Session, eventually,
    kubectl::kubectl,
    run,
    session::{KEY, READY, TURN},
};

/// Runs of each figure.
const RUNS: usize = 5;

fn main() {
    run("figures", |ns| async move {
        let mut report = String::new();
        starts(&ns, &mut report).await;
        turns(&ns, &mut report).await;
        recovery::sidecar_killed(&ns, &mut report).await;
        recovery::recycled(&ns, &mut report).await;
        println_report(&report);
    });
}

#[expect(clippy::print_stdout, reason = "the report is this program's result")]
fn println_report(report: &str) {
    println!("{report}");
}

/// `name: median (least to most)` of milliseconds.
fn row(report: &mut String, name: &str, mut values: Vec<f64>, unit: &str) {
    values.sort_by(f64::total_cmp);
    let (Some(first), Some(last)) = (values.first(), values.last()) else {
        return;
    };
    let median = values[values.len() / 2];
    writeln!(
        report,
        "| {name} | {median:.1} {unit} | {first:.1} to {last:.1} | {} |",
        values.len()
    )
    .expect("a String takes everything");
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Apply → pod Ready → first event, and what of it is not the kubelet's and OpenCode's own.
async fn starts(ns: &Namespace, report: &mut String) {
    let model = Model::start(ns, "model", KEY).await;
    ns.secret("model-key", "key", KEY).await;
    let (mut to_ready, mut to_event, mut to_turn, mut ours) = (vec![], vec![], vec![], vec![]);
    let mut shares = added::Shares::default();
    for i in 0..RUNS {
        let name = format!("start-{i}");
        let seen = added::watch(ns, &name);
        let began = Instant::now();
        let providers = json!([model.provider("compatible", "model-key")]);
        let session =
            Session::apply_with(ns, &name, Some("SCENARIO:hello"), providers, json!({})).await;
        let mut recorder = Recorder::default();
        let id = session.prompt_id();
        let mut stream = recorder.open(&session, &id).await.expect("a stream");
        let first = stream.next().await.expect("an event").expect("read");
        recorder.take(&first);
        to_event.push(ms(began.elapsed()));
        session.wait_condition("PodReady", "True", READY).await;
        session.ready().await;
        to_ready.push(ms(began.elapsed()));
        recorder.read_to_end(&session, &id).await;
        let _ = recorder.completed();
        to_turn.push(ms(began.elapsed()));
        ours.push(container_to_ready(&session).await);
        shares
            .take(&session, seen.await.expect("the watch ends"))
            .await;
        ns.kubectl(&["delete", "ocs", &name, "--wait=true"], "")
            .await;
    }
    row(report, "apply → first event readable", to_event, "ms");
    row(report, "apply → Ready (a turn could run)", to_ready, "ms");
    row(report, "apply → turn of one model call done", to_turn, "ms");
    shares.report(report);
    row(
        report,
        "agent container started → pod Ready (1 s granularity of Kubernetes)",
        ours,
        "ms",
    );
}

async fn container_to_ready(session: &Session) -> f64 {
    let pod = session.pod().await;
    let status = pod.status.expect("a status");
    let ready = status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == "Ready")
        .and_then(|c| c.last_transition_time.clone());
    let started = status
        .container_statuses
        .iter()
        .flatten()
        .find(|c| c.name == "agent")
        .and_then(|c| c.state.as_ref()?.running.as_ref()?.started_at.clone());
    match (ready, started) {
        (Some(ready), Some(started)) => {
            (ready.0.as_second() - started.0.as_second()) as f64 * 1000.0
        }
        _ => f64::NAN,
    }
}

/// Figures of a pod at work.
async fn turns(ns: &Namespace, report: &mut String) {
    let model = Model::start(ns, "second", KEY).await;
    let providers = json!([model.provider("compatible", "model-key")]);
    let session = Session::apply_with(ns, "work", None, providers, json!({})).await;
    session.ready().await;
    let client = session.client().await;
    memory(ns, &session, "idle", report).await;

    // Durable in the journal → in this process: the event's own time against ours, on one machine.
    let id = session.create("latency", "SCENARIO:slow 400 10").await;
    let mut recorder = Recorder::default();
    let mut delays = Vec::new();
    let mut stream = recorder.open(&session, &id).await.expect("a stream");
    while let Some(Ok(event)) = stream.next().await {
        let now = jiff::Timestamp::now();
        recorder.take(&event);
        if let Some(seen) = recorder.events.last()
            && matches!(&seen.event.body, EventBody::Output(_))
            && event.id.is_some()
        {
            delays.push((now.as_millisecond() - seen.event.ts.as_millisecond()) as f64);
        }
    }
    delays.sort_by(f64::total_cmp);
    let at = |q: f64| delays[((delays.len() - 1) as f64 * q) as usize];
    writeln!(report, "| OpenCode's event recorded → client's bytes, p50 / p99 (1 ms granularity) | {:.0} ms / {:.0} ms | to {:.0} | {} |", at(0.5), at(0.99), at(1.0), delays.len()).expect("a String");
    let text: usize = recorder
        .texts(OutputSource::Assistant)
        .values()
        .map(String::len)
        .sum();
    let bytes: usize = recorder
        .events
        .iter()
        .filter(|e| matches!(e.event.body, EventBody::Output(_)))
        .map(|e| serde_json::to_string(&e.event).map_or(0, |s| s.len() + 31))
        .sum();
    writeln!(
        report,
        "| journal bytes per byte of text, words at 10 ms | {:.1} | – | 1 |",
        bytes as f64 / text as f64
    )
    .expect("a String");

    let mut cancels = Vec::new();
    for i in 0..RUNS {
        let id = session
            .create(&format!("cancel-{i}"), "SCENARIO:bash-sleep")
            .await;
        eventually("the tool at work", TURN, || async {
            let page = client
                .events(&id, None, 1000)
                .await
                .map_err(|e| e.to_string())?;
            let called = page.events.iter().any(|e| e.event["type"] == "tool_call");
            if called {
                Ok(())
            } else {
                Err(format!("{} events", page.events.len()))
            }
        })
        .await;
        let began = Instant::now();
        client.cancel(&id).await.expect("cancelled");
        cancels.push(ms(began.elapsed()));
    }
    row(
        report,
        "cancel → idle, tools reaped, recorded (204)",
        cancels,
        "ms",
    );
    let busy = session.create("busy", "SCENARIO:slow 300 20").await;
    memory(ns, &session, "in a turn", report).await;
    session.read(&busy).await.check();
}

/// PSS of our processes, read on this machine: it is the node of the built-in cluster. Beside it what no other process of the
/// same program shares: the rest are pages of the program's file.
async fn memory(ns: &Namespace, session: &Session, when: &str, report: &mut String) {
    let pod = session.name.as_str();
    let runner = "/opt/opencode-operator/runner/runner";
    let in_pod = |words: &str| find(|path| runs(path, words) && is_in(path, pod));
    let pid_1 = in_pod(runner);
    // It has no environment of its own.
    let host = find(|path| runs(path, &format!("{runner}\0offline")) && parent(path) == pid_1);
    for (name, process) in [
        ("sidecar", in_pod("/sidecar")),
        ("runner", pid_1),
        ("process that runs git", host),
        ("operator", find(|path| runs(path, "/operator"))),
    ] {
        let Some((pss, own)) = process.and_then(|process| pss(&process)) else {
            let line = format!("| PSS of the {name}, {when} | not to be seen from here | – | 0 |");
            writeln!(report, "{line}").expect("a String");
            continue;
        };
        row(
            report,
            &format!("PSS of the {name}, {when}"),
            vec![pss],
            "MB",
        );
        row(report, "— of it its own memory", vec![own], "MB");
    }
    let said = kubectl(&["-n", &ns.name, "get", "ocs", "-o", "name"], "").await;
    assert!(said.ok, "{}", said.err);
}

/// The first process, as its folder in `/proc`.
fn find(is_it: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.map(|entry| entry.path()).find(|path| is_it(path))
}

/// Whether its command line begins with these words, each ended by a zero byte.
fn runs(process: &Path, words: &str) -> bool {
    let cmdline = fs::read(process.join("cmdline")).unwrap_or_default();
    cmdline.starts_with(format!("{words}\0").as_bytes())
}

fn is_in(process: &Path, pod: &str) -> bool {
    let environ = fs::read(process.join("environ")).unwrap_or_default();
    let wanted = format!("HOSTNAME={pod}");
    environ
        .split(|b| *b == 0)
        .any(|variable| variable == wanted.as_bytes())
}

fn parent(process: &Path) -> Option<PathBuf> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let pid = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Some(Path::new("/proc").join(pid.trim()))
}

/// PSS of a process, and its anonymous part, in MB.
fn pss(process: &Path) -> Option<(f64, f64)> {
    let rollup = fs::read_to_string(process.join("smaps_rollup")).ok()?;
    let megabytes = |field: &str| {
        let value = rollup.lines().find_map(|line| line.strip_prefix(field))?;
        let kb: f64 = value.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some(kb / 1024.0)
    };
    Some((megabytes("Pss:")?, megabytes("Pss_Anon:")?))
}
