//! A round of all attacks on one pod, and what came of it.

use super::{
    attack::{Attack, How, Real, Sign, When},
    net::Arrived,
    side::{self, From, Outside, Side},
};
use contract::SessionId;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};
use tests::{figure, node};

/// Attacks of one turn.
const BATCH: usize = 20;

/// What came of the attacks on one pod.
#[derive(Default)]
pub(super) struct Outcome {
    /// What each printed.
    pub(super) said: BTreeMap<&'static str, String>,
    /// The same from outside of the runner's domains.
    pub(super) bare: BTreeMap<&'static str, String>,
    /// What clients of the sidecar heard.
    pub(super) heard: String,
    /// Asks that were still open at the end.
    pub(super) unanswered: BTreeSet<String>,
}

/// Whether an attack had success.
pub(super) fn won(
    from: From,
    attack: &Attack,
    side: &Side,
    outcome: &Outcome,
    arrived: &[Arrived],
) -> bool {
    let said = match from {
        From::Tool => &outcome.said,
        From::Container => &outcome.bare,
    };
    let said = said.get(attack.name).map_or("", String::as_str);
    let nonce = side.nonce(from, attack.name);
    let at_all = |needles: &[&str]| arrived.iter().any(|host| host.together(needles));
    match attack.sign {
        Sign::Key => side.needles.in_text(said),
        Sign::Says(text) => said.contains(text),
        Sign::Sends => at_all(&[&nonce]),
        // Not at the provider, who has it.
        Sign::SendsKey => arrived[0].together(&[&nonce, side.needles.key()]),
        Sign::Answers => {
            let ask = side
                .asks
                .get(attack.name)
                .expect("an ask was put in front of it");
            !outcome.unanswered.contains(ask)
        }
        Sign::Poses => outcome.heard.contains(&nonce),
    }
}

/// All attacks on one pod, in the order in which they disturb each other least.
pub(super) async fn carry_out(side: &mut Side, outside: &Outside, all: &[Attack]) -> Outcome {
    let mut outcome = Outcome::default();
    let mut clock = Clock(side.tag, Instant::now());
    // What others said in this pod, and sessions from before.
    side.turn("SCENARIO:say <<<CONFIDENTIAL-7c1d is not for you>>>")
        .await;
    side.equip().await;
    let asked: Vec<_> = all
        .iter()
        .filter(|attack| matches!(attack.sign, Sign::Answers))
        .map(|attack| attack.name)
        .collect();
    let asks = SessionId::new("asks").expect("an id");
    if !asked.is_empty() {
        side.ask(&asked).await;
    }

    clock.phase("equipment and asks");
    let shells = |when: Option<When>| -> Vec<(&'static str, &'static str)> {
        let of = |attack: &&Attack| attack.later.map(|(when, _)| when) == when;
        let script = |attack: &Attack| match attack.how {
            How::Shell(script) => Some((attack.name, script)),
            How::Tool(..) => None,
        };
        all.iter().filter(of).filter_map(script).collect()
    };
    let fruits = |when: When| -> Vec<(&'static str, &'static str)> {
        let fruit = |attack: &Attack| {
            attack
                .later
                .filter(|(at, _)| *at == when)
                .map(|(_, script)| (attack.name, script))
        };
        all.iter().filter_map(fruit).collect()
    };

    // At once; those that pose last, with somebody there to be deceived.
    let poses: BTreeSet<_> = all
        .iter()
        .filter(|attack| matches!(attack.sign, Sign::Poses))
        .map(|attack| attack.name)
        .collect();
    let (posing, plain): (Vec<_>, Vec<_>) = shells(None)
        .into_iter()
        .partition(|(name, _)| poses.contains(name));
    for batch in plain.chunks(BATCH) {
        outcome.said.extend(side.run(outside, batch).await);
        let refused = |name: &str| {
            all.iter()
                .any(|attack| attack.name == name && attack.real == Real::Refused)
        };
        let bare: Vec<_> = batch
            .iter()
            .filter(|(name, _)| refused(name))
            .copied()
            .collect();
        if side.tag == "real" && !bare.is_empty() {
            outcome.bare.extend(side.run_bare(outside, &bare).await);
        }
        clock.phase("a batch");
    }
    if !asked.is_empty() {
        outcome.unanswered = side.pending(&asks).await.into_iter().collect();
        side.session
            .client()
            .await
            .cancel(&asks)
            .await
            .expect("cancelled");
    }
    for attack in all
        .iter()
        .filter(|attack| matches!(attack.how, How::Tool(..)))
    {
        let said = side.tool(outside, attack).await;
        outcome.said.insert(attack.name, said);
    }
    clock.phase("other tools");
    if !posing.is_empty() {
        let bound = side.run(outside, &posing).await;
        for (name, said) in &bound {
            if said.contains("BOUND") {
                side.touch(&format!("go-{name}")).await;
                outcome.heard += &side.listen(&side.nonce(From::Tool, name)).await;
                side.touch(&format!("stop-{name}")).await;
            }
        }
        outcome.said.extend(bound);
        clock.phase("posing");
    }

    // In a turn that is cancelled.
    for (name, script) in shells(Some(When::Cancel)) {
        let prompt = side::bash(&side.command(From::Tool, outside, &[(name, script)]));
        let id = side.session.create("cancelled", &prompt).await;
        // The command has to have left its process behind.
        side.wait_file("beat").await;
        let client = side.session.client().await;
        client.cancel(&id).await.expect("cancelled");
        let said = side.run(outside, &fruits(When::Cancel)).await;
        outcome.said.extend(said);
        clock.phase("cancelling");
    }

    let waiting = shells(Some(When::Sidecar));
    if !waiting.is_empty() {
        side.run(outside, &waiting).await;
        let before = node::process(&side.pod_uid, "sidecar");
        node::kill(before);
        let back = async {
            side.another("sidecar", before).await;
            side.ready().await;
        };
        // Until it is back: whoever poses has had his time by then.
        let (heard, ()) = side.listen_until(back).await;
        outcome.heard += &heard;
        let said = side.run(outside, &fruits(When::Sidecar)).await;
        outcome.said.extend(said);
        clock.phase("the sidecar's death");
    }
    // Last, because what was planted stays.
    let planted = shells(Some(When::Restart));
    if !planted.is_empty() {
        side.run(outside, &planted).await;
        side.renew_agent().await;
        let work = json!([{"parts": [
            {"tool": {"name": "grep", "args": {"pattern": "nothing-like-this", "path": "/workspace"}}},
            {"tool": {"name": "bash", "args": {"command": "date >/workspace/date.leak; date >/workspace/date.txt", "description": "Work"}}},
            {"tool": {"name": "write", "args": {"filePath": "/workspace/work.js", "content": "let x  =  1"}}},
        ]}]);
        side.turn_with_consent("work", &format!("SCENARIO:script <<<{work}>>>"))
            .await;
        let said = side.run(outside, &fruits(When::Restart)).await;
        outcome.said.extend(said);
        clock.phase("what was planted");
    }
    outcome
}

/// Tells what takes how long.
struct Clock(&'static str, Instant);

impl Clock {
    fn phase(&mut self, name: &str) {
        let took = self.1.elapsed();
        figure(&format!(
            "{} pod, {name}: {:.1} s",
            self.0,
            took.as_secs_f32()
        ));
        self.1 = Instant::now();
    }
}
