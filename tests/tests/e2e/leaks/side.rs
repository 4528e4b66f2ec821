//! One of the two pods under attack, and how attacks are run in it: by its agent's own tools.

use super::{
    attack::{Attack, How},
    net,
};
use crate::canary::search::Needles;
use contract::{
    EventBody, SessionId,
    approval::{Answer, Decision},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tests::{Recorder, Session, eventually, session::READY};

const LIB: &str = include_str!("lib.sh");
/// Longest time for a turn.
const TURN: Duration = Duration::from_secs(400);
/// Attacks at once in one command.
const AT_ONCE: usize = 4;
/// Longest time for one of them, in seconds.
const ATTACK_TIME: u32 = 14;
/// Stands at the end of what an attack printed that took longer.
pub(super) const TIMED_OUT: &str = "-- timed out --";

/// A pod under attack.
pub(super) struct Side {
    pub(super) session: Session,
    pub(super) needles: Needles,
    /// `real` or `weak`.
    pub(super) tag: &'static str,
    pub(super) object_uid: String,
    pub(super) pod_uid: String,
    pub(super) pod_ip: String,
    /// Stands in every nonce of this pod.
    pub(super) random: String,
    turns: AtomicUsize,
    /// Asks put in front of attacks, by the attack's name.
    pub(super) asks: BTreeMap<&'static str, String>,
}

/// From where an attack is run.
#[derive(Clone, Copy, Debug)]
pub(super) enum From {
    /// A tool of the agent.
    Tool,
    /// The agent's container, as its user, outside of the runner's domains.
    Container,
}

/// Where the attacker is.
#[derive(Clone, Debug)]
pub(super) struct Outside {
    pub(super) node: String,
    pub(super) port: u16,
    /// A name of the node that the egress proxy's list has.
    pub(super) listed: String,
}

impl Side {
    pub(super) async fn new(
        session: Session,
        needles: Needles,
        tag: &'static str,
        object_uid: String,
    ) -> Self {
        let pod = session.pod().await;
        let random = uuid::Uuid::new_v4().simple().to_string()[..6].to_owned();
        Self {
            pod_uid: pod.metadata.uid.expect("pods have a UID"),
            pod_ip: pod
                .status
                .and_then(|status| status.pod_ip)
                .expect("waited for"),
            session,
            needles,
            tag,
            object_uid,
            random,
            turns: AtomicUsize::new(0),
            asks: BTreeMap::new(),
        }
    }

    /// What an attack has to bring somewhere.
    pub(super) fn nonce(&self, from: From, attack: &str) -> String {
        let from = match from {
            From::Tool => "tool",
            From::Container => "bare",
        };
        format!("{}-{from}-{attack}-{}", self.tag, self.random)
    }

    /// Runs scripts by the agent's bash tool, in one turn; what each printed.
    pub(super) async fn run(
        &self,
        outside: &Outside,
        scripts: &[(&'static str, &str)],
    ) -> BTreeMap<&'static str, String> {
        let mut all = self.attempt(outside, scripts).await;
        // On a busy machine an attack may not have come to its point: once more, alone.
        let cut = |name: &str, all: &BTreeMap<_, String>| {
            all.get(name).is_some_and(|said| said.contains(TIMED_OUT))
        };
        for script in scripts
            .iter()
            .filter(|(name, _)| cut(name, &all))
            .copied()
            .collect::<Vec<_>>()
        {
            all.extend(self.attempt(outside, &[script]).await);
        }
        all
    }

    async fn attempt(
        &self,
        outside: &Outside,
        scripts: &[(&'static str, &str)],
    ) -> BTreeMap<&'static str, String> {
        let prompt = bash(&self.command(From::Tool, outside, scripts));
        let said = self.turn(&prompt).await;
        self.cut(scripts, &said)
    }

    /// The same as the agent's user, but from outside of every domain that the runner makes: what fails here too does not need
    /// them.
    pub(super) async fn run_bare(
        &self,
        outside: &Outside,
        scripts: &[(&'static str, &str)],
    ) -> BTreeMap<&'static str, String> {
        let command = self.command(From::Container, outside, scripts);
        let said = self.session.exec("agent", &["bash", "-c", &command]).await;
        self.cut(scripts, &(said.out + &said.err))
    }

    /// What belongs to which.
    fn cut(&self, scripts: &[(&'static str, &str)], said: &str) -> BTreeMap<&'static str, String> {
        let mut out = BTreeMap::new();
        for (name, _) in scripts {
            let begin = format!("=====BEGIN {name}\n");
            let text = said
                .split_once(&begin)
                .map(|(_, rest)| rest.split("\n=====").next().unwrap_or_default().to_owned());
            assert!(text.is_some(), "{}: nothing of {name} in {said}", self.tag);
            out.insert(*name, text.unwrap_or_default());
        }
        out
    }

    /// One command that runs them, a few at once, and shows what they printed.
    pub(super) fn command(
        &self,
        from: From,
        outside: &Outside,
        scripts: &[(&'static str, &str)],
    ) -> String {
        let mut text = format!(
            "mkdir -p /tmp/leaks; cd /tmp/leaks; export NODE={} OUT_PORT={} OUT={}:{} LISTED={} NS={} POD={} POD_IP={} ASKER=asks OBJECT_UID={}\n\
             one() {{ printf %s \"$3\" | base64 -d >\"s-$1.sh\"; NAME=$1 NONCE=$2 ASK=$4 timeout -k 1 {ATTACK_TIME} bash -c '. /tmp/leaks/lib.sh; . \"/tmp/leaks/s-$NAME.sh\"; exit 0' >\"o-$1\" 2>&1 </dev/null; [ $? -lt 124 ] || echo '{TIMED_OUT}' >>\"o-$1\"; }}\n",
            outside.node,
            outside.port,
            outside.node,
            outside.port,
            outside.listed,
            self.session.ns.name,
            self.session.name,
            self.pod_ip,
            self.object_uid
        );
        for (index, (name, script)) in scripts.iter().enumerate() {
            let ask = self.asks.get(name).map_or("per_none", String::as_str);
            // Infallible: into a String.
            let _ = writeln!(
                text,
                "one {name} {} {} {ask} &",
                self.nonce(from, name),
                base64(script)
            );
            if index >= AT_ONCE - 1 {
                text.push_str("wait -n\n");
            }
        }
        text.push_str("wait\n");
        for (name, _) in scripts {
            let _ = writeln!(
                text,
                "printf '\\n=====BEGIN {name}\\n'; tail -c 1200 o-{name} | tr -d '\\0'"
            );
        }
        text.push_str("printf '\\n=====END\\n'\n");
        text
    }

    /// A turn in a session of its own, to its end; what its tools answered.
    pub(super) async fn turn(&self, prompt: &str) -> String {
        let number = self.turns.fetch_add(1, Ordering::Relaxed);
        let id = self
            .session
            .create(&format!("attack-{number}"), prompt)
            .await;
        tools_of(&self.read(&id).await)
    }

    /// Puts what all attacks use where they find it.
    pub(super) async fn equip(&self) {
        let command = format!(
            "mkdir -p /tmp/leaks && echo {} | base64 -d >/tmp/leaks/lib.sh && ln -sfn /var/run/opencode-operator/keys/model/key /workspace/link-to-key",
            base64(LIB)
        );
        let said = self.session.exec("agent", &["sh", "-c", &command]).await;
        assert!(said.ok, "{}", said.err);
    }

    /// A session to the end of its last turn. A turn takes what its attacks take, and more on a busy machine.
    pub(super) async fn read(&self, id: &SessionId) -> Recorder {
        let mut recorder = Recorder::default();
        tokio::time::timeout(TURN, recorder.read_to_end(&self.session, id))
            .await
            .expect("the turn ends");
        recorder
    }

    /// An attack by another tool.
    pub(super) async fn tool(&self, outside: &Outside, attack: &Attack) -> String {
        let How::Tool(tool, arguments) = attack.how else {
            panic!("{} is no tool's", attack.name)
        };
        let arguments = arguments
            .replace("$NONCE", &self.nonce(From::Tool, attack.name))
            .replace("$OUT", &format!("{}:{}", outside.node, outside.port));
        self.turn(&format!("SCENARIO:tool {tool} <<<{arguments}>>>"))
            .await
    }

    /// Puts an ask in front of each of these attacks.
    pub(super) async fn ask(&mut self, attacks: &[&'static str]) {
        let parts: Vec<_> = (0..attacks.len())
            .map(|n| json!({"tool": {"name": "write", "args": {"filePath": format!("/workspace/ask-{n}.txt"), "content": "x"}}}))
            .collect();
        let script = json!([{ "parts": parts }]);
        let id = self
            .session
            .create("asks", &format!("SCENARIO:script <<<{script}>>>"))
            .await;
        let pending = eventually("all asks", READY, || async {
            let pending = self.pending(&id).await;
            if pending.len() >= attacks.len() {
                Ok(pending)
            } else {
                Err(format!("{pending:?}"))
            }
        })
        .await;
        self.asks = attacks.iter().copied().zip(pending).collect();
    }

    /// Asks that nobody answered.
    pub(super) async fn pending(&self, id: &SessionId) -> Vec<String> {
        let url = format!("{}/sessions/{id}/approvals", self.session.url().await);
        let http = reqwest::Client::builder()
            .no_proxy()
            .build()
            .expect("a client");
        let answer = http.get(url).bearer_auth(&self.session.token).send().await;
        let list: Value = answer
            .expect("approvals are listed")
            .json()
            .await
            .expect("JSON");
        let asks = list["approvals"].as_array().into_iter().flatten();
        asks.filter_map(|ask| Some(ask["approval_id"].as_str()?.to_owned()))
            .collect()
    }

    /// Answers whatever is asked in a session, until its turn ends.
    pub(super) async fn turn_with_consent(&self, name: &str, prompt: &str) {
        let id = self.session.create(name, prompt).await;
        let client = self.session.client().await;
        let consent = async {
            loop {
                for ask in self.pending(&id).await {
                    let answer = Answer {
                        decision: Decision::Once,
                        message: None,
                    };
                    // Answered by somebody else in the meantime: fine.
                    client.answer(&id, &ask, &answer).await.ok();
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            () = consent => {}
            _ = self.read(&id) => {}
        }
    }
}

/// The prompt that makes the agent run a command.
pub(super) fn bash(command: &str) -> String {
    format!("SCENARIO:bash <<<{command}>>>")
}

fn tools_of(history: &Recorder) -> String {
    let mut text = String::new();
    for seen in &history.events {
        if let EventBody::ToolResult(result) = &seen.event.body {
            text.push_str(&result.output);
            text.push('\n');
        }
    }
    if text.is_empty() {
        let raw: Vec<_> = history
            .events
            .iter()
            .map(|seen| seen.raw.as_str())
            .collect();
        text = raw.join("\n");
    }
    text
}

fn base64(text: &str) -> String {
    // Three bytes become four letters; a shell does not mind empty lines at the end.
    let padded = text.len().next_multiple_of(3) - text.len();
    crate::canary::search::base64(format!("{text}{}", "\n".repeat(padded)).as_bytes())
}

/// The spec of the pod under attack, over what all tests have. `listed`: a name that may be reached at this port, if it leads to no
/// private address.
pub(super) fn spec(careless: &str, listed: &str, port: u16) -> Value {
    json!({
        "smallModel": {"provider": careless, "name": "any-1"},
        "agent": {"tools": [{"name": "edit", "action": "ask"}]},
        "limits": {"maxConcurrentSessions": 8},
        "network": {"egress": {"mode": "proxy-only", "allow": [
            {"host": listed, "ports": [port]},
            {"host": net::METADATA, "ports": [80], "private": true},
        ]}},
    })
}
