//! The search is able to find: each hiding place once, in a pod that is weakened on purpose.

use super::search::{Needles, Report};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::time::Duration;
use tests::{eventually, image, node, run};

fn container(name: &str, more: &Value) -> Value {
    let mut container = json!({
        "name": name,
        // The agent's own image, user and restrictions.
        "image": image("agent"), "imagePullPolicy": "IfNotPresent", "command": ["sleep", "3600"],
        "securityContext": {"runAsUser": 65532, "runAsGroup": 65532, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]}},
    });
    for (field, value) in more.as_object().expect("fields") {
        container[field] = value.clone();
    }
    container
}

#[test]
fn the_same_search_finds_the_key_in_a_weakened_pod() {
    run("weakened", |ns| async move {
        let needles = Needles::new();
        ns.secret("model-key", "key", needles.key()).await;
        let variable = json!([{"name": "MODEL_KEY", "valueFrom": {"secretKeyRef": {"name": "model-key", "key": "key"}}}]);
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "weak"}, "spec": {
            "automountServiceAccountToken": false, "enableServiceLinks": false, "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsNonRoot": true, "fsGroup": 65530, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "key", "secret": {"secretName": "model-key", "defaultMode": 0o440}}, {"name": "tmp", "emptyDir": {}}, {"name": "other", "emptyDir": {}}],
            "containers": [
                container("clean", &json!({})),
                container("variable", &json!({"env": variable})),
                container("file", &json!({"volumeMounts": [{"name": "key", "mountPath": "/keys"}]})),
                // The shell puts the value into the arguments, then the variable is gone from what runs.
                container("argument", &json!({"env": variable, "command": ["sh", "-c",
                    "exec env -i /bin/sh -c 'while :; do sleep 1000; done' \"$MODEL_KEY\""]})),
                container("memory", &json!({})),
                container("descriptor", &json!({"volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]})),
                container("encoded", &json!({"volumeMounts": [{"name": "other", "mountPath": "/tmp"}]})),
            ],
        }});
        ns.kubectl(&["apply", "-f", "-"], &pod.to_string()).await;
        ns.kubectl(
            &["wait", "--for=condition=Ready", "pod/weak", "--timeout=90s"],
            "",
        )
        .await;

        // What comes by standard input is in no argument, no variable and no file: only where the program puts it.
        let keep = |container: &'static str, program: &'static [&'static str]| {
            let ns = ns.clone();
            let key = format!("{}\n", needles.key());
            tokio::spawn(async move {
                let args: Vec<_> = ["exec", "-i", "weak", "-c", container, "--"]
                    .iter()
                    .chain(program)
                    .copied()
                    .collect();
                ns.try_kubectl(&args, &key).await
            })
        };
        let holders = [
            keep(
                "memory",
                &["perl", "-e", "$key = <STDIN>; $0 = 'holder'; sleep 600"],
            ),
            // Written to a file that has no name any more, by a process that then becomes another: only its descriptor leads there.
            keep(
                "descriptor",
                &[
                    "perl",
                    "-e",
                    "open(F, '+>', '/tmp/held'); syswrite(F, scalar <STDIN>); unlink '/tmp/held'; fcntl(F, 2, 0); exec {'sleep'} 'holder', 600",
                ],
            ),
            keep(
                "encoded",
                &[
                    "sh",
                    "-c",
                    "base64 -w 0 > /tmp/encoded; exec perl -e '$0 = \"holder\"; sleep 600'",
                ],
            ),
        ];
        for container in ["memory", "descriptor", "encoded"] {
            eventually("the holder", Duration::from_secs(30), || async {
                let said = ns
                    .try_kubectl(
                        &[
                            "exec",
                            "weak",
                            "-c",
                            container,
                            "--",
                            "sh",
                            "-c",
                            "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep '^h'",
                        ],
                        "",
                    )
                    .await;
                if said.out.contains("holder") {
                    Ok(())
                } else {
                    Err(said.out + &said.err)
                }
            })
            .await;
        }
        let cases: [(&str, &[&str]); 7] = [
            ("clean", &[]),
            (
                "variable",
                &["environment of this process", "environ ", "memory "],
            ),
            ("file", &["file /keys/"]),
            ("argument", &["cmdline "]),
            ("memory", &["memory "]),
            ("descriptor", &["descriptor "]),
            ("encoded", &["file /tmp/encoded"]),
        ];
        for (container, finds) in cases {
            let report = Report::of(&ns, "weak", container, &needles).await;
            eprintln!("FIGURE weakened by {container}: {:?}", report.found);
            for find in finds {
                assert!(
                    report.has(find),
                    "{container}: {find} was not found: {report:#?}"
                );
            }
            if finds.is_empty() {
                assert_eq!(report.found, [""; 0]);
            }
            if container == "descriptor" {
                assert!(
                    report
                        .found
                        .iter()
                        .all(|find| find.starts_with("descriptor ")),
                    "no name leads to it: {report:#?}"
                );
            }
            if container == "memory" {
                assert!(
                    report.found.iter().all(|find| find.starts_with("memory ")),
                    "nothing but memory holds it: {report:#?}"
                );
            }
        }
        let pod = ns.api::<Pod>().get("weak").await.expect("the pod is there");
        let keepers = node::find(&pod.metadata.uid.expect("a UID"), "perl");
        let found = keepers
            .iter()
            .filter(|pid| node::holds(**pid, &needles.forms()).is_some_and(|(holds, _)| holds))
            .count();
        assert_eq!(found, 1, "root finds it in one of {keepers:?}");
        for holder in holders {
            holder.abort();
        }
    });
}
