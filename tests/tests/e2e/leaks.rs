//! The leak suite: ways to get at a key, to answer one's own asks, to send data out, to pose as the sidecar or to leave the
//! container, all of them run by the real agent's own tools. Each has to succeed in a weakened pod first; in the real one none may
//! that docs/security.md does not name.

mod attack;
mod attacks;
mod net;
mod round;
mod side;
mod wait;
mod weak;

use crate::canary::search::Needles;
use attack::{Class, Real};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::ListParams};
use net::Arrived;
use round::{carry_out, won};
use serde_json::json;
use side::{From, Outside, Side};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
};
use tests::{Model, Namespace, Session, node, run};

/// Stand in the binaries built for the weakened pod, and in no other.
const MARK: &[u8] = b"WEAKENED for the leak suite";

#[test]
fn the_list_is_sound_and_in_the_docs() {
    let all = attacks::all();
    let counted = all.iter().filter(|attack| attack.counts()).count();
    assert!(counted >= 60, "{counted} attacks");
    let names: BTreeSet<_> = all.iter().map(|attack| attack.name).collect();
    assert_eq!(names.len(), all.len(), "a name stands for one attack");
    let docs = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/security.md"))
        .expect("docs/security.md");
    for attack in &all {
        let mark = match attack.real {
            Real::Refused => "",
            Real::Isolated => "°",
            Real::Open => "*",
        };
        let row = format!("| `{}`{mark} | {} |", attack.name, attack.tries);
        assert!(docs.contains(&row), "docs/security.md lacks: {row}");
    }
    assert!(
        docs.contains(&format!("{counted} attacks")),
        "docs/security.md does not speak of {counted} attacks"
    );
    for class in [
        Class::Key,
        Class::Asks,
        Class::Out,
        Class::Pose,
        Class::Escape,
    ] {
        assert!(
            all.iter().filter(|attack| attack.class == class).count() >= 5,
            "{class:?}"
        );
    }
}

#[test]
fn no_attack_succeeds_that_succeeds_in_a_weakened_pod() {
    run("leaks", |ns| async move {
        let began = std::time::Instant::now();
        let (mut real, mut weak, outside, arrived) = worlds(&ns).await;
        eprintln!("FIGURE both pods are ready after {:?}", began.elapsed());
        let mut services = Vec::new();
        for (side, is_weak) in [(&real, false), (&weak, true)] {
            services.push(net::metadata(node::process(&side.pod_uid, "sidecar")).await);
            for program in ["sidecar", "runner"] {
                let file = format!("/proc/{}/exe", node::process(&side.pod_uid, program));
                let binary = fs::read(file).expect("root reads every program");
                let marked = binary.windows(MARK.len()).any(|bytes| bytes == MARK);
                assert_eq!(marked, is_weak, "{program} of the {} pod", side.tag);
            }
            // The kernel gives the files of a process that may not be dumped to root: its memory is closed to
            // its own user too.
            let runner = node::process(&side.pod_uid, "runner");
            let mem = fs::metadata(format!("/proc/{runner}/mem")).expect("it runs");
            assert_eq!(
                mem.uid(),
                0,
                "the runner of the {} pod is dumpable",
                side.tag
            );
        }
        let wanted = std::env::var("LEAKS").unwrap_or_default();
        let all: Vec<_> = attacks::all()
            .into_iter()
            .filter(|attack| wanted.is_empty() || wanted.split(',').any(|name| attack.name == name))
            .collect();
        let (of_real, of_weak) = tokio::join!(
            carry_out(&mut real, &outside, &all),
            carry_out(&mut weak, &outside, &all)
        );
        eprintln!(
            "FIGURE {} attacks on both pods took {:?}",
            all.len(),
            began.elapsed()
        );

        let isolated = real.session.condition("Isolated").await;
        eprintln!("FIGURE Isolated is {isolated}");
        let isolated = isolated.starts_with("True");
        let (mut wrong, mut counted) = (Vec::new(), 0);
        for attack in &all {
            let by_tool = won(From::Tool, attack, &real, &of_real, &arrived);
            let bare = won(From::Container, attack, &real, &of_real, &arrived);
            let real_won = by_tool || (bare && attack.real == Real::Refused);
            let weak_won = won(From::Tool, attack, &weak, &of_weak, &arrived);
            let timed_out = of_real
                .said
                .get(attack.name)
                .is_some_and(|said| said.contains(side::TIMED_OUT));
            counted += usize::from(attack.counts() && weak_won && !real_won);
            let verdict = match (weak_won, real_won, attack.real) {
                (false, ..) => "NOT SHOWN",
                (true, false, Real::Refused | Real::Isolated) if timed_out => "UNDECIDED",
                (true, false, Real::Refused | Real::Isolated) => "refused",
                (true, true, Real::Isolated) if !isolated => "open: not isolated",
                (true, true, Real::Refused | Real::Isolated) => "SUCCEEDS",
                (true, true, Real::Open) => "open: one trust domain",
                // Good news that docs/security.md has to know.
                (true, false, Real::Open) => "NOT OPEN",
            };
            eprintln!(
                "LEAK {:<8} {:<36} weakened: {:<9} real: {verdict}",
                format!("{:?}", attack.class),
                attack.name,
                if weak_won { "succeeds" } else { "fails" },
            );
            if verdict.chars().all(|c| c.is_uppercase() || c == ' ') {
                let of =
                    |all: &BTreeMap<_, String>| all.get(attack.name).cloned().unwrap_or_default();
                wrong.push(format!(
                    "{verdict}: {} ({})\n--- weakened:\n{}\n--- real:\n{}\n--- real, outside of its domains:\n{}",
                    attack.name,
                    attack.tries,
                    of(&of_weak.said),
                    of(&of_real.said),
                    of(&of_real.bare)
                ));
            }
        }
        eprintln!("FIGURE {counted} attacks succeed in the weakened pod and fail in the real one");
        if wanted.is_empty() {
            assert!(
                counted >= 60,
                "only {counted} attacks are shown and refused"
            );
        }
        // Else half of them would be excused.
        assert!(isolated, "the agent is not isolated on this node");
        if !wrong.is_empty() {
            weak.session.ns.dump().await;
            panic!(
                "{} of {} attacks:\n{}",
                wrong.len(),
                all.len(),
                wrong.join("\n\n")
            );
        }
    });
}

/// Both pods, and the attacker's hosts outside.
async fn worlds(ns: &Namespace) -> (Side, Side, Outside, [Arrived; 2]) {
    let nodes = Api::<Node>::all(ns.client.clone())
        .list(&ListParams::default())
        .await
        .expect("nodes");
    let node = nodes
        .items
        .iter()
        .flat_map(|node| {
            node.status
                .iter()
                .flat_map(|status| status.addresses.iter().flatten())
        })
        .find(|address| address.type_ == "InternalIP")
        .map(|address| address.address.clone())
        .expect("the node has an address");
    let (port, host) = net::attacker().await;
    let (careless, provider) = net::provider().await;
    let (mine, weaks) = (Needles::new(), Needles::new());
    let keys = format!("{}\n{}", mine.key(), weaks.key());
    Model::start(ns, "model", &keys).await;
    ns.secret("model-key", "key", mine.key()).await;
    let reference = json!({"name": "model-key", "key": "key"});
    let providers = json!([
        {"name": "model", "kind": "compatible", "endpoint": format!("http://model.{}.svc.cluster.local/v1", ns.name), "apiKeySecretRef": reference},
        {"name": "careless", "kind": "anthropic", "endpoint": format!("http://{node}:{careless}/v1"), "apiKeySecretRef": reference},
    ]);
    let listed = net::name(ns, &node).await;
    let spec = side::spec("careless", &listed, port);
    let session = Session::apply_with(ns, "real", None, providers, spec).await;
    session.ready().await;
    let object = session.object().await.expect("it is there");
    let uid = object.metadata.uid.expect("objects have a UID");
    let real = Side::new(session, mine, "real", uid).await;
    let weak = weak::start(&real, weaks).await;
    weak.ready().await;
    let outside = Outside { node, port, listed };
    (real, weak, outside, [host, provider])
}
