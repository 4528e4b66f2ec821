//! A key that no search of the agent's side may find, while model calls with it succeed; and the same search where it can be found.

mod hiding;
pub(crate) mod search;

use contract::{EventBody, SessionId, event::TurnError};
use search::{Needles, Report};
use serde_json::json;
use tests::{Model, Namespace, Recorder, Session, kubectl::kubectl, node, run, session::KEY};

/// Nothing that anybody may read of the session holds it. Returns how many files of its volume were read as root.
async fn nowhere_else(
    ns: &Namespace,
    session: &Session,
    needles: &Needles,
    histories: &[&Recorder],
) -> usize {
    for args in [
        vec!["logs", "ruff", "--all-containers", "--prefix"],
        vec!["get", "ocs,pods,pvc,events,configmaps", "-o", "yaml"],
        vec!["describe", "ocs,pods,pvc"],
    ] {
        let out = ns.kubectl(&args, "").await;
        assert!(
            !needles.in_text(&out),
            "the key is in what `kubectl {}` says",
            args.join(" ")
        );
    }
    let args = [
        "-n",
        "opencode-operator-system",
        "logs",
        "-l",
        "app.kubernetes.io/name=opencode-operator",
        "--tail=-1",
    ];
    assert!(
        !needles.in_text(&kubectl(&args, "").await.out),
        "the key is in the operator's log"
    );
    for history in histories {
        for seen in &history.events {
            assert!(
                !needles.in_text(&seen.raw),
                "the key is in event {}",
                seen.n
            );
        }
    }
    let http = reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("a client");
    let url = session.url().await;
    for path in [
        "/sessions",
        "/sessions/ruff/status",
        "/sessions/ruff/events?limit=1000",
        "/sessions/ruff/diff",
        "/metrics",
        "/ready",
    ] {
        let answer = http
            .get(format!("{url}{path}"))
            .bearer_auth(&session.token)
            .send()
            .await
            .expect("answered");
        let text = answer.text().await.expect("a text");
        assert!(!needles.in_text(&text), "the key is in {path}");
    }
    // The volume as root sees it: workspace, HOME with OpenCode's database, and the journal.
    let (_, folder) = node::volume(ns, "ruff-workspace").await;
    let (found, read) = node::files_with(&folder, &needles.forms());
    assert!(found.is_empty(), "the key is in {found:?}");
    assert!(read > 10, "only {read} files in {}", folder.display());
    assert!(folder.join("journal/sessions").is_dir());
    read
}

#[test]
fn no_search_from_the_agents_side_finds_the_key() {
    run("canary", |ns| async move {
        let needles = Needles::new();
        let model = Model::start(&ns, "model", needles.key()).await;
        // Refuses the key, and repeats it in its error as providers do.
        let refuses = Model::start(&ns, "refuses", KEY).await;
        ns.secret("model-key", "key", needles.key()).await;
        let providers = json!([
            model.provider("compatible", "model-key"),
            refuses.provider("anthropic", "model-key")
        ]);
        let session =
            Session::apply_with(&ns, "ruff", Some("SCENARIO:demo"), providers, json!({})).await;
        let history = session.read(&session.prompt_id()).await;
        history.completed();
        let accepted = |r: &serde_json::Value| r["key_sha256"].is_string() && r["status"] == 200;
        assert!(
            model.requests().await.iter().any(accepted),
            "calls with the key succeed"
        );

        let refused = SessionId::new("refused").expect("an id");
        let body = serde_json::from_value(json!({
            "session_id": "refused", "prompt": "SCENARIO:hello", "model_config": {"provider": "anthropic", "model": "any-1"},
        }))
        .expect("a request");
        session
            .client()
            .await
            .create_session(&body)
            .await
            .expect("taken");
        let failure = session.read(&refused).await;
        assert_eq!(failure.failed(), TurnError::ProviderAuth);
        assert!(
            refuses.requests().await.iter().any(|r| r["status"] == 401),
            "the key was sent and refused"
        );

        // While a turn is under way, with the key in use, and after it.
        let busy = session.create("busy", "SCENARIO:slow-tools 40").await;
        let mut reader = Recorder::default();
        let works = |r: &Recorder| {
            r.events
                .iter()
                .filter(|e| matches!(e.event.body, EventBody::ToolResult(_)))
                .count()
                >= 2
        };
        reader.read_until(&session, &busy, works).await;
        for when in ["in mid-turn", "afterwards"] {
            let report = Report::of(&ns, "ruff", "agent", &needles).await;
            eprintln!("FIGURE {when}: {}", report.looked_at());
            assert_eq!(report.found, [""; 0], "found {when}");
            report.looked_well("opencode");
            // What keeps others from its memory (the runner does) has nothing to hide either.
            let pod = session.pod_uid().await;
            let small: Vec<_> = node::processes(&pod)
                .into_iter()
                .filter(|(_, program)| {
                    !["opencode", "sidecar", "pause"].contains(&program.as_str())
                })
                .collect();
            // The runner itself, which is the oldest: each tool is a runner too, until it has become a shell.
            let runner = node::process(&pod, "runner");
            assert!(small.iter().any(|(pid, _)| *pid == runner), "{small:?}");
            for (pid, program) in small {
                let Some((holds, read)) = node::holds(pid, &needles.forms()) else {
                    assert!(pid != runner, "the runner ended");
                    continue;
                };
                eprintln!("FIGURE {when}: {read} bytes of {program} were searched as root");
                assert!(!holds, "{program} holds the key");
                assert!(read > 4096, "{program} was not read");
            }
            session
                .client()
                .await
                .cancel(&busy)
                .await
                .expect("cancelled");
        }
        let busy = session.read(&busy).await;
        let read = nowhere_else(&ns, &session, &needles, &[&history, &failure, &busy]).await;
        eprintln!("FIGURE {read} files of the volume were searched as root");
    });
}
