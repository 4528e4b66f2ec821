//! How long readers wait after a death.

use crate::{ms, row};
use contract::event::OutputSource;
use serde_json::json;
use std::time::Instant;
use tests::{Model, Namespace, Recorder, Session, node, session::KEY};

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

fn text(reader: &Recorder) -> usize {
    reader
        .texts(OutputSource::Assistant)
        .values()
        .map(String::len)
        .sum()
}
