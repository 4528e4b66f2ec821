//! OpenCode asked directly, past the sidecar: what it stored is what events are compared with.

use crate::{Session, eventually, node, session::READY};
use contract::SessionId;
use serde_json::Value;
use std::collections::BTreeMap;

/// The agent's image has no HTTP client, but bash. Password and path come by standard input, so that no argument has them.
const ASK: &str = r#"
exec 3<>/dev/tcp/127.0.0.1/4096 || exit 7
printf 'GET %s HTTP/1.0\r\nHost: 127.0.0.1\r\nConnection: close\r\nAuthorization: Basic %s\r\n\r\n' \
  "$path" "$(printf 'opencode:%s' "$password" | base64 -w 0)" >&3
cat <&3
"#;

/// GET on OpenCode of the session's pod.
pub async fn get(session: &Session, path: &str) -> Result<Value, String> {
    let uid = session.pod_uid().await;
    let pids = node::find(&uid, "opencode");
    let pid = pids.first().ok_or("OpenCode does not run")?;
    let password =
        node::variable(*pid, "OPENCODE_SERVER_PASSWORD").ok_or("OpenCode has no password")?;
    let script = format!("path='{path}'; password='{password}'\n{ASK}");
    let args = [
        "exec",
        "-i",
        session.name.as_str(),
        "-c",
        "agent",
        "--",
        "bash",
    ];
    let said = session.ns.try_kubectl(&args, &script).await;
    let (head, body) = said
        .out
        .split_once("\r\n\r\n")
        .ok_or_else(|| format!("no answer: {} {}", said.out, said.err))?;
    if !head.starts_with("HTTP/1.1 200") && !head.starts_with("HTTP/1.0 200") {
        return Err(said.out.chars().take(300).collect());
    }
    let body = if head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        unchunk(body)?
    } else {
        body.to_owned()
    };
    serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))
}

fn unchunk(mut rest: &str) -> Result<String, String> {
    let mut whole = Vec::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)
            .map_err(|e| e.to_string())?;
        if size == 0 {
            break;
        }
        let bytes = after.as_bytes();
        whole.extend_from_slice(bytes.get(..size).ok_or("a chunk is cut")?);
        rest = after.get(size + 2..).ok_or("a chunk ends badly")?;
    }
    String::from_utf8(whole).map_err(|e| e.to_string())
}

/// What OpenCode stored of a session: assistant's texts by part, tool outputs by part; empty ones left out.
#[derive(Debug, Default)]
pub struct Stored {
    /// Text of each part.
    pub texts: BTreeMap<String, String>,
    /// Output of each tool that is done.
    pub outputs: BTreeMap<String, String>,
}

/// Asks OpenCode for all messages of a session of ours.
pub async fn stored(session: &Session, id: &SessionId) -> Stored {
    let known = session
        .client()
        .await
        .session(id)
        .await
        .expect("the session is known");
    let theirs = known
        .opencode_session_id
        .expect("OpenCode has a session for it");
    let messages = eventually("OpenCode's stored messages", READY, || async {
        get(
            session,
            &format!("/session/{theirs}/message?directory=/workspace"),
        )
        .await
    })
    .await;
    let mut stored = Stored::default();
    for message in messages.as_array().expect("a list of messages") {
        if message["info"]["role"] != "assistant" {
            continue;
        }
        for part in message["parts"].as_array().expect("a list of parts") {
            let id = part["id"].as_str().unwrap_or_default().to_owned();
            match part["type"].as_str() {
                Some("text") => {
                    let text = part["text"].as_str().unwrap_or_default();
                    if !text.is_empty() {
                        stored.texts.insert(id, text.to_owned());
                    }
                }
                Some("tool") if part["state"]["status"] == "completed" => {
                    let output = part["state"]["output"].as_str().unwrap_or_default();
                    stored.outputs.insert(id, output.to_owned());
                }
                _ => {}
            }
        }
    }
    stored
}
