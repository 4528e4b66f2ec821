//! What Prometheus is shown: names, labels, docs.

use bootstrap::exposition::{Expected, wrong};
use crds::session::status::Phase;
use operator::{metrics::Metrics, reason::Reason};
use std::time::Duration;

#[test]
fn what_is_shown_is_conventional_bounded_and_documented() {
    let metrics = Metrics::default();
    metrics.round(Duration::from_millis(7));
    metrics.unparsable();
    metrics.leader(true);
    // The whole breadth of every label.
    for reason in Reason::ALL {
        metrics.error(*reason);
        metrics.pod_deleted(*reason);
    }
    for (n, phase) in Phase::ALL.into_iter().enumerate() {
        metrics.phase(&n.to_string(), Some(phase));
    }
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let reasons: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    let phases = Phase::ALL.map(Phase::as_str);
    let expected = Expected {
        prefix: "opencode_operator_",
        labels: &[("reason", &reasons), ("phase", &phases)],
        docs: &docs,
    };
    let text = metrics.text();
    let wrong = wrong(&text, expected);
    assert!(wrong.is_empty(), "{wrong:#?}\n{text}");
}
