//! How long readers wait after a death, and OpenCode is away while it is started anew.

use crate::{RUNS, ms, row};
use contract::event::OutputSource;
use serde_json::json;
use std::time::{Duration, Instant};
use tests::{Model, Namespace, Recorder, Session, eventually, node, session::KEY};

/// Deaths. The kubelet starts a container that dies again and again later each time, so each death
/// has a pod of its own.
const DEATHS: usize = 3;

/// kill -9 of the sidecar in mid-text → its reader, which comes back every 50 ms, has a further event.
pub(crate) async fn sidecar_killed(ns: &Namespace, report: &mut String) {
    let model = Model::start(ns, "third", KEY).await;
    let mut waits = Vec::new();
    for i in 0..DEATHS {
        let providers = json!([model.provider("compatible", "model-key")]);
        let name = format!("kill-{i}");
        let session = Session::apply_with(ns, &name, None, providers, json!({})).await;
        session.ready().await;
        let id = session.create("victim", "SCENARIO:slow 400 50").await;
        let mut reader = Recorder::default();
        reader.read_until(&session, &id, |r| text(r) > 100).await;
        let (before, pod) = (reader.events.len(), session.pod_uid().await);
        let began = Instant::now();
        node::kill(node::process(&pod, "sidecar"));
        reader
            .read_until(&session, &id, |r| r.events.len() > before)
            .await;
        waits.push(ms(began.elapsed()));
        reader.read_to_end(&session, &id).await;
        reader.check();
        ns.kubectl(&["delete", "ocs", &name, "--wait=true"], "")
            .await;
    }
    row(
        report,
        "sidecar killed (-9) in mid-text → its reader goes on",
        waits,
        "ms",
    );
}

/// The shortest age at which OpenCode is started anew.
const AGE: Duration = Duration::from_secs(60);

/// An idle OpenCode that has come of age: how long it is away by the sidecar's own count, and that the conversation goes on.
pub(crate) async fn recycled(ns: &Namespace, report: &mut String) {
    let model = Model::start(ns, "fourth", KEY).await;
    let providers = json!([model.provider("compatible", "model-key")]);
    let patch = json!({"limits": {"watchdog": {"recycleAfter": format!("{}s", AGE.as_secs())}}});
    let prompt = Some("REMEMBER:ibex SCENARIO:hello");
    let session = Session::apply_with(ns, "old", prompt, providers, patch).await;
    let id = session.prompt_id();
    session.read(&id).await.completed();
    let (mut times, mut sum) = (Vec::new(), 0.0);
    while times.len() < RUNS {
        let wanted = times.len() as f64 + 1.0;
        let now = eventually("OpenCode is started anew", AGE * 3, || async {
            let (count, sum) = away(&session).await?;
            if count >= wanted {
                Ok(sum)
            } else {
                Err(format!("{count} times"))
            }
        })
        .await;
        times.push((now - sum) * 1000.0);
        sum = now;
    }
    session.turn(&id, "SCENARIO:recall").await;
    let history = session.read(&id).await;
    let last = &history.completed().final_message;
    assert!(last.contains("ibex"), "{last}");
    row(
        report,
        "idle OpenCode started anew → it answers, conversation intact (aim 3000)",
        times,
        "ms",
    );
}

/// How often OpenCode was away, and for how many seconds in all.
async fn away(session: &Session) -> Result<(f64, f64), String> {
    let text = session.metrics().await?;
    let value = |name: &str| {
        let name = format!("opencode_sidecar_opencode_away_seconds_{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&name));
        value.and_then(|value| value.parse().ok()).ok_or(name)
    };
    Ok((value("count")?, value("sum")?))
}

fn text(reader: &Recorder) -> usize {
    reader
        .texts(OutputSource::Assistant)
        .values()
        .map(String::len)
        .sum()
}
