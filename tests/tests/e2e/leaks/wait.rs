//! Waiting for what happens in a pod under attack, and listening to it as its clients do.

use super::side::Side;
use std::time::Duration;
use tests::{eventually, node, session::READY};

/// Longest time to wait for an impostor's answer.
const LISTEN: Duration = Duration::from_secs(5);
/// Between looks at a condition.
const PAUSE: Duration = Duration::from_millis(20);

impl Side {
    /// Waits until the pod takes turns.
    pub(super) async fn ready(&self) {
        let url = self.session.url().await;
        eventually("the pod to take turns", READY, || async {
            let answer = reqwest::get(format!("{url}/ready")).await;
            let answer = answer.map_err(|error| error.to_string())?;
            let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
            if status.is_success() && !text.contains(&self.random) {
                Ok(())
            } else {
                Err(format!("{status}: {text}"))
            }
        })
        .await;
    }

    /// kill -9 of OpenCode, from the node, until another takes turns.
    pub(super) async fn renew_agent(&self) {
        let before = node::process(&self.pod_uid, "opencode");
        node::kill(before);
        self.another("opencode", before).await;
        self.ready().await;
    }

    /// Waits for a process of this program that is not this one.
    pub(super) async fn another(&self, program: &str, before: u32) {
        let what = format!("another {program} than {before}");
        eventually(&what, READY, || async {
            let found = node::find(&self.pod_uid, program);
            if found.iter().any(|pid| *pid != before) {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        })
        .await;
    }

    /// Makes a file where the attacks are.
    pub(super) async fn touch(&self, file: &str) {
        let path = format!("/tmp/leaks/{file}");
        let said = self.session.exec("agent", &["touch", &path]).await;
        assert!(said.ok, "{path}: {}", said.err);
    }

    /// Waits for a file that an attack makes.
    pub(super) async fn wait_file(&self, file: &str) {
        let path = format!("/tmp/leaks/{file}");
        eventually(&path, READY, || async {
            let said = self.session.exec("agent", &["test", "-e", &path]).await;
            if said.ok { Ok(()) } else { Err(said.err) }
        })
        .await;
    }

    /// What clients of the sidecar get until `needle` is in it; at most for some seconds.
    pub(super) async fn listen(&self, needle: &str) -> String {
        let mut heard = String::new();
        let all = async {
            while !heard.contains(needle) {
                self.call(&mut heard).await;
            }
        };
        // Silence is an answer too.
        tokio::time::timeout(LISTEN, all).await.ok();
        heard
    }

    /// What clients of the sidecar get until something else is done.
    pub(super) async fn listen_until<T>(&self, done: impl Future<Output = T>) -> (String, T) {
        let mut heard = String::new();
        let end = tokio::select! {
            end = done => end,
            () = async { loop { self.call(&mut heard).await } } => unreachable!("it has no end"),
        };
        (heard, end)
    }

    /// One call of a client, and what an impostor said to it.
    async fn call(&self, heard: &mut String) {
        let http = reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_secs(1))
            .build()
            .expect("a client");
        let url = format!("http://{}:3003/sessions/none/status", self.pod_ip);
        if let Ok(answer) = http.get(&url).bearer_auth(&self.session.token).send().await {
            let text = answer.text().await.unwrap_or_default();
            if text.contains(&self.random) && !heard.contains(&text) {
                heard.push_str(&text);
                heard.push('\n');
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
