//! An agent with no way out but the egress proxy, on a real network.

use contract::EventBody;
use serde_json::json;
use tests::{Model, Namespace, Recorder, Session, run, session::KEY};

/// What the agent's shell said.
fn said(reader: &Recorder) -> String {
    reader
        .events
        .iter()
        .filter_map(|seen| match &seen.event.body {
            EventBody::ToolResult(result) => Some(result.output.clone()),
            _ => None,
        })
        .collect()
}

/// A turn of one command; what it said.
pub(crate) async fn turn(session: &Session, id: &str, command: &str) -> String {
    let id = session
        .create(id, &format!("SCENARIO:bash <<<{command}>>>"))
        .await;
    let reader = session.read(&id).await;
    let _ = reader.completed();
    said(&reader)
}

/// Asks a server for its health through the proxy.
fn through(proxy: &str, host: &str) -> String {
    format!(
        "exec 3<>/dev/tcp/127.0.0.1/${{{proxy}##*:}} && printf 'CONNECT {host}:80 HTTP/1.1\\r\\n\\r\\nGET /healthz HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3; exec 3>&-;"
    )
}

#[test]
fn only_listed_hosts_are_reached_and_only_through_the_proxy() {
    run("egress", |ns: Namespace| async move {
        let model = Model::start(&ns, "mirror", KEY).await;
        Model::start(&ns, "stranger", KEY).await;
        ns.secret("model-key", "key", KEY).await;
        let providers = json!([model.provider("compatible", "model-key")]);
        let egress = |allow| json!({"network": {"egress": {"mode": "proxy-only", "allow": allow}}});
        let listed = egress(json!([{"host": "mirror", "ports": [80]}]));
        let session = Session::apply_with(&ns, "burrow", None, providers, listed).await;
        session.ready().await;

        // Its address is one of a private network, and the entry does not say so.
        let out = turn(&session, "private", &through("HTTPS_PROXY", "mirror")).await;
        assert!(
            out.contains("403") && out.contains("private: true"),
            "{out}"
        );

        // A change of the list needs no new pod.
        let pod = session.pod_uid().await;
        session
            .patch(egress(
                json!([{"host": "mirror", "ports": [80], "private": true}]),
            ))
            .await;
        let mut out = String::new();
        for attempt in 0..20 {
            out = turn(
                &session,
                &format!("listed-{attempt}"),
                &through("http_proxy", "mirror"),
            )
            .await;
            if !out.contains("private: true") {
                break;
            }
        }
        assert!(
            out.contains("200 Connection established") && out.contains(" 200 OK"),
            "{out}"
        );
        assert_eq!(session.pod_uid().await, pod);

        let around = format!(
            "{} (exec 3<>/dev/tcp/mirror/80) && echo went around; (exec 3<>/dev/tcp/{}/8080) && echo went around",
            through("HTTPS_PROXY", "stranger"),
            model
                .url
                .trim_start_matches("http://")
                .trim_end_matches(":8080"),
        );
        let out = turn(&session, "around", &around).await;
        assert!(out.contains("spec.network.egress.allow"), "{out}");
        assert!(!out.contains("went around"), "{out}");
        let report: serde_json::Value = reqwest::Client::new()
            .get(format!("{}/egress", session.url().await))
            .bearer_auth(&session.token)
            .send()
            .await
            .expect("answered")
            .json()
            .await
            .expect("JSON");
        assert_eq!(report["refused"][0]["host"], "stranger", "{report}");
        // What it prints is what a spec takes: applied, the host is listed (and then refused for its address).
        let fragment = report["fragment"].as_str().expect("YAML");
        let spec = format!("spec:\n  {}", fragment.trim_end().replace('\n', "\n  "));
        let patch = ["patch", "ocs", "burrow", "--type=merge", "--patch", &spec];
        ns.kubectl(&patch, "").await;
        let mut out = String::new();
        for attempt in 0..20 {
            let id = format!("learned-{attempt}");
            out = turn(&session, &id, &through("HTTPS_PROXY", "stranger")).await;
            if out.contains("private: true") {
                break;
            }
        }
        assert!(out.contains("private: true"), "{out}");
        let isolated = session.condition("Isolated").await;
        assert!(isolated.starts_with("True"), "{isolated}");
    });
}
