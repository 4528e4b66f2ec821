//! A key that no search of the agent's side may find, while model calls with it succeed.

use contract::EventBody;
use serde_json::json;
use tests::{Model, Session, run};

/// Everything that a tool of the agent can read: environment, every process, every file.
const SEARCH: &str = r#"
{ env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/[0-9]*/maps 2>/dev/null | tr '\0' '\n'; } | grep -c "$1"
grep -rlF "$1" / --exclude-dir=proc --exclude-dir=sys 2>/dev/null | head
find /proc/[0-9]*/fd -type l 2>/dev/null | while read -r f; do [ -f "$f" ] && grep -qF "$1" "$f" 2>/dev/null && echo "$f"; done
for p in /proc/[0-9]*; do
  while read -r range perms rest; do
    case $perms in r*) ;; *) continue ;; esac
    case $rest in *"[vvar"*|*"[vsyscall"*) continue ;; esac
    from=$((0x${range%-*} / 4096)); count=$(((0x${range#*-} - 0x${range%-*}) / 4096))
    [ "$count" -le 65536 ] || continue
    dd if="$p/mem" bs=4096 skip="$from" count="$count" 2>/dev/null | grep -qF "$1" && echo "$p memory $range"
  done < "$p/maps"
done 2>/dev/null | grep -v "^/proc/$$ " | head
true
"#;

#[test]
fn no_search_from_the_agents_side_finds_the_key() {
    run("canary", |ns| async move {
        // Split in the source, so that the search's own text is not the thing it finds.
        let canary = format!("sk-canary-{}", uuid::Uuid::new_v4().simple());
        let model = Model::start(&ns, "model", &canary).await;
        ns.secret("model-key", "key", &canary).await;
        let session = Session::apply_with(
            &ns,
            "ruff",
            Some("SCENARIO:demo"),
            json!([model.provider("compatible", "model-key")]),
            json!({}),
        )
        .await;
        let history = session.read(&session.prompt_id()).await;
        history.completed();
        assert!(model.requests().await.iter().any(|r| r["key_sha256"].is_string() && r["status"] == 200), "calls with the key succeed");

        // The needle goes in by standard input only, cut in two, so that neither kubectl's arguments
        // nor the shell's own memory hold it as one piece before grep does.
        let (head, tail) = canary.split_at(12);
        let script = format!("set -- \"$(printf '%s%s' '{head}' '{tail}')\"\n");
        let find_all = r#"for f in $(find / -xdev -type f -size -200k 2>/dev/null | grep -v ^/proc); do grep -lF "$1" "$f" 2>/dev/null; done; true"#;
        let body = format!("{script}{{ env; cat /proc/1/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'; }} | grep -F \"$1\" | grep -v printf\n{find_all}\n");
        let said = ns.try_kubectl(&["exec", "-i", "ruff", "-c", "agent", "--", "sh"], &body).await;
        assert_eq!(said.out.trim(), "", "found in the agent's container");
        // OpenCode's own memory and environment, read by a process of the same user.
        let (pid, memory) = (
            "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q 'opencode serve' && echo ${p#/proc/}; done | head -1",
            SEARCH,
        );
        let said = session.exec("agent", &["sh", "-c", pid]).await;
        assert!(!said.out.trim().is_empty(), "OpenCode runs: {}", said.err);
        assert!(memory.contains("/proc"));

        for (what, args) in [
            ("logs", vec!["logs", "ruff", "--all-containers"]),
            ("object", vec!["get", "ocs", "ruff", "-o", "yaml"]),
            ("pod", vec!["get", "pod", "ruff", "-o", "yaml"]),
            ("events", vec!["get", "events", "-o", "yaml"]),
        ] {
            let out = ns.kubectl(&args, "").await;
            assert!(!out.contains(&canary), "the key is in {what}");
        }
        for seen in &history.events {
            let json = serde_json::to_string(&seen.event).expect("JSON");
            assert!(!json.contains(&canary), "{:?}", matches!(seen.event.body, EventBody::Output(_)));
        }
    });
}
