//! OpenCode's HTTP API, as far as it is used. All answers are untrusted: bounded and parsed.
//!
//! Every call is cancel safe in that it may be dropped at any time; whether OpenCode acted on a dropped
//! one is not known. Calls that may be repeated without harm are sent once more after a timeout: a
//! request that OpenCode gets in the instant of its start may stay without an answer.

mod error;
mod prepare;
mod types;

pub(crate) use error::{GarbageError, OpenCodeError};
pub(crate) use types::{Activity, Bounds, Child, PermissionRule, PromptBody, Question};

use super::{
    http::{Answer, Call, Http},
    wire::{Message, OcEvent, OcKind, Permission},
};
use bytes::Bytes;
use contract::{approval::Decision, session::FileDiff};
use http::Method;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::sync::Semaphore;

const MIB: usize = 1024 * 1024;
/// Most entries of a list that is no list of messages.
const ITEMS_MAX: usize = 10_000;

/// Client of one OpenCode; clones share it.
#[derive(Clone)]
pub(crate) struct OpenCode {
    inner: Arc<Inner>,
}

struct Inner {
    http: Http,
    directory: String,
    bounds: Bounds,
    /// One large answer at a time: each may take 64 MiB, and its parsed form as much again.
    large: Semaphore,
}

impl std::fmt::Debug for OpenCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenCode")
            .field("directory", &self.inner.directory)
            .finish_non_exhaustive()
    }
}

impl OpenCode {
    /// A client of the OpenCode on `127.0.0.1:port` for the sessions of `directory`. Connects when used.
    pub(crate) fn new(
        port: u16,
        password: &SecretString,
        directory: &Path,
        bounds: Bounds,
    ) -> Self {
        let inner = Inner {
            http: Http::new(port, password),
            directory: directory.to_string_lossy().into_owned(),
            bounds,
            large: Semaphore::new(1),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    pub(super) fn bounds(&self) -> Bounds {
        self.inner.bounds
    }

    /// OpenCode's version, if it is well. Asked once: the caller asks again and again.
    pub(crate) async fn health(&self, within: Duration) -> Result<String, OpenCodeError> {
        #[derive(Deserialize)]
        struct Health {
            healthy: bool,
            version: String,
        }
        let call = Call {
            within,
            ..self.call("health", Method::GET, "/global/health".into())
        };
        let health: Health = read("health", &self.inner.http.send(&call).await?)?;
        if health.healthy {
            Ok(clip(health.version, 64))
        } else {
            Err(garbage("health", "it says that it is not healthy"))
        }
    }

    /// Makes the session if it does not exist, and sets title and rules. Whoever calls twice has one
    /// session.
    pub(crate) async fn ensure_session(
        &self,
        id: &str,
        title: &str,
        permission: &[PermissionRule],
    ) -> Result<(), OpenCodeError> {
        #[derive(Deserialize)]
        struct Made {
            data: Id,
        }
        #[derive(Deserialize)]
        struct Id {
            id: String,
        }
        let name = "create session";
        let body = json!({"id": id, "location": {"directory": self.inner.directory}});
        let call = self.slow(name, Method::POST, "/api/session".into());
        let made: Made = read(name, &self.repeat(&with(call, &body)).await?)?;
        if made.data.id != id {
            return Err(garbage(name, "it made a session with another id"));
        }
        let body = json!({"title": title, "permission": permission});
        let call = self.slow("update session", Method::PATCH, session_path(id, ""));
        self.repeat(&with(call, &body)).await.map(drop)
    }

    /// Copies a session's conversation, up to and without the message `end`; the copy's id. Asked once:
    /// each call makes a copy.
    pub(crate) async fn fork(
        &self,
        session: &str,
        end: Option<&str>,
    ) -> Result<String, OpenCodeError> {
        #[derive(Deserialize)]
        struct Copy {
            id: String,
        }
        let name = "fork session";
        let body = end.map_or_else(|| json!({}), |end| json!({"messageID": end}));
        let path = self.in_directory(&session_path(session, "/fork"));
        let call = self.slow(name, Method::POST, path);
        let copy: Copy = read(name, &self.inner.http.send(&with(call, &body)).await?)?;
        let is_id = copy.id.starts_with("ses_")
            && copy.id.len() <= 64
            && copy
                .id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if is_id && copy.id != session {
            Ok(copy.id)
        } else {
            Err(garbage(name, "it made a session with an id that is none"))
        }
    }

    /// Removes a session that nothing runs in, where that is possible.
    pub(crate) async fn forget_session(&self, id: &str) {
        let call = self.call("delete session", Method::DELETE, session_path(id, ""));
        if let Err(error) = self.inner.http.send(&call).await {
            tracing::debug!(%error, "a session is left behind");
        }
    }

    /// Whether the session has the message.
    pub(crate) async fn has_message(
        &self,
        session: &str,
        message: &str,
    ) -> Result<bool, OpenCodeError> {
        let path = session_path(session, &format!("/message/{}", segment(message)));
        let call = self.slow("look for a message", Method::GET, path);
        let status = match self.inner.http.status(&call).await {
            Err(OpenCodeError::Timeout { .. }) => self.inner.http.status(&call).await?,
            status => status?,
        };
        match status.as_u16() {
            200..=299 => Ok(true),
            404 => Ok(false),
            code => Err(OpenCodeError::Status {
                call: call.name,
                code,
                body: String::new(),
            }),
        }
    }

    /// Gives the session a prompt. It is sent once. If no answer comes, OpenCode is asked whether it
    /// has the message: then this is a success. Else the error stands, and the prompt may still be
    /// taken up later: ask [`Self::has_message`] before sending it again.
    pub(crate) async fn prompt(
        &self,
        session: &str,
        prompt: &PromptBody,
    ) -> Result<(), OpenCodeError> {
        let mut body = json!({
            "messageID": prompt.message_id,
            "model": {"providerID": prompt.provider_id, "modelID": prompt.model_id},
            "parts": [{"type": "text", "text": prompt.text}],
        });
        if let Some(system) = &prompt.system {
            body["system"] = json!(system);
        }
        let call = self.slow(
            "prompt",
            Method::POST,
            session_path(session, "/prompt_async"),
        );
        let error = match self.inner.http.send(&with(call, &body)).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let lost = matches!(
            error,
            OpenCodeError::Timeout { .. } | OpenCodeError::Unreachable { .. }
        );
        if lost
            && matches!(
                self.has_message(session, &prompt.message_id).await,
                Ok(true)
            )
        {
            return Ok(());
        }
        Err(error)
    }

    /// Stops what the session does. Succeeds for sessions that do nothing or do not exist.
    pub(crate) async fn abort(&self, session: &str) -> Result<(), OpenCodeError> {
        let call = self.call("abort", Method::POST, session_path(session, "/abort"));
        self.repeat(&call).await.map(drop)
    }

    /// What the session does; one that does not exist does nothing.
    pub(crate) async fn activity(&self, session: &str) -> Result<Activity, OpenCodeError> {
        let name = "status";
        let call = self.call(name, Method::GET, self.in_directory("/session/status"));
        let all: Value = read(name, &self.repeat(&call).await?)?;
        let Some(all) = all.as_object() else {
            return Err(garbage(name, "it is no object"));
        };
        let Some(status) = all.get(session) else {
            return Ok(Activity::Idle);
        };
        match status.get("type").and_then(Value::as_str) {
            Some("busy") => Ok(Activity::Busy),
            Some("retry") => Ok(Activity::Retry),
            Some("idle") => Ok(Activity::Idle),
            _ => Err(garbage(name, "it knows a status that we do not")),
        }
    }

    /// All messages of the session, oldest first; at most 64 MiB.
    pub(crate) async fn messages(&self, session: &str) -> Result<Vec<Message>, OpenCodeError> {
        let name = "messages";
        let call = Call {
            most: 64 * MIB,
            ..self.slow(name, Method::GET, session_path(session, "/message"))
        };
        let _one = self.inner.large.acquire().await;
        let body = self.repeat(&call).await?;
        Message::parse_list(&body).map_err(|source| OpenCodeError::Garbage {
            call: name,
            source: source.into(),
        })
    }

    /// Sub-agents that the session began.
    pub(crate) async fn children(&self, session: &str) -> Result<Vec<Child>, OpenCodeError> {
        let name = "children";
        let call = self.call(name, Method::GET, session_path(session, "/children"));
        let body = self.repeat(&call).await?;
        read_list(name, &body, |value| serde_json::from_value(value).ok())
    }

    /// Permissions that somebody has to decide, of all sessions.
    pub(crate) async fn permissions(&self) -> Result<Vec<Permission>, OpenCodeError> {
        let name = "permissions";
        let call = self.call(name, Method::GET, self.in_directory("/permission"));
        let body = self.repeat(&call).await?;
        read_list(name, &body, permission)
    }

    /// Decides about a permission. OpenCode is never told `always`: it would remember that for every
    /// session, so that becomes `once`.
    pub(crate) async fn reply_permission(
        &self,
        id: &str,
        decision: Decision,
        message: Option<&str>,
    ) -> Result<(), OpenCodeError> {
        let reply = match decision {
            Decision::Once | Decision::Always => "once",
            Decision::Reject => "reject",
        };
        let mut body = json!({"reply": reply});
        if let Some(message) = message {
            body["message"] = json!(message);
        }
        let path = self.in_directory(&format!("/permission/{}/reply", segment(id)));
        self.answer(with(
            self.call("reply to permission", Method::POST, path),
            &body,
        ))
        .await
    }

    /// Questions that wait for an answer, of all sessions.
    pub(crate) async fn questions(&self) -> Result<Vec<Question>, OpenCodeError> {
        let name = "questions";
        let call = self.call(name, Method::GET, self.in_directory("/question"));
        let body = self.repeat(&call).await?;
        read_list(name, &body, |value| serde_json::from_value(value).ok())
    }

    /// Leaves a question without an answer.
    pub(crate) async fn reject_question(&self, id: &str) -> Result<(), OpenCodeError> {
        let path = self.in_directory(&format!("/question/{}/reject", segment(id)));
        self.answer(self.call("reject question", Method::POST, path))
            .await
    }

    /// What the run of a user's message changed; nothing where the workspace is no git repository.
    pub(crate) async fn diff(
        &self,
        session: &str,
        message: &str,
    ) -> Result<Vec<FileDiff>, OpenCodeError> {
        let name = "diff";
        let path = session_path(session, &format!("/diff?messageID={}", segment(message)));
        let call = Call {
            most: 16 * MIB,
            ..self.slow(name, Method::GET, path)
        };
        let _one = self.inner.large.acquire().await;
        let body = self.repeat(&call).await?;
        read_list(name, &body, |value| self.file_diff(value))
    }

    /// Begins to listen to the events of the directory's sessions.
    pub(super) async fn open_events(&self) -> Result<Answer, OpenCodeError> {
        let call = self.call("events", Method::GET, self.in_directory("/event"));
        self.inner.http.open(&call).await
    }

    fn file_diff(&self, value: Value) -> Option<FileDiff> {
        #[derive(Deserialize)]
        struct SnapshotFileDiff {
            file: String,
            #[serde(default)]
            patch: String,
            additions: f64,
            deletions: f64,
            #[serde(default)]
            status: Option<String>,
        }
        let diff: SnapshotFileDiff = serde_json::from_value(value).ok()?;
        let path = Path::new(&diff.file);
        let path = path.strip_prefix(&self.inner.directory).unwrap_or(path);
        let known = |status: &String| matches!(status.as_str(), "added" | "deleted");
        let status = diff.status.filter(known);
        Some(FileDiff {
            path: path.to_string_lossy().into_owned(),
            status: status.unwrap_or_else(|| "modified".to_owned()),
            patch: diff.patch,
            additions: diff.additions as u64,
            deletions: diff.deletions as u64,
        })
    }

    /// Sends; once more after a timeout.
    async fn repeat(&self, call: &Call) -> Result<Bytes, OpenCodeError> {
        match self.inner.http.send(call).await {
            Err(error @ OpenCodeError::Timeout { .. }) => {
                tracing::debug!(%error, "asking once more");
                self.inner.http.send(call).await
            }
            answer => answer,
        }
    }

    /// Answers something that OpenCode asked. If the first try got no answer and the second finds
    /// nothing to answer, then the first was taken.
    async fn answer(&self, call: Call) -> Result<(), OpenCodeError> {
        match self.inner.http.send(&call).await {
            Err(OpenCodeError::Timeout { .. }) => match self.inner.http.send(&call).await {
                Err(error) if error.is_not_found() => Ok(()),
                answer => answer.map(drop),
            },
            answer => answer.map(drop),
        }
    }

    fn call(&self, name: &'static str, method: Method, path: String) -> Call {
        Call {
            name,
            method,
            path,
            body: None,
            within: self.inner.bounds.quick,
            most: 4 * MIB,
        }
    }

    fn slow(&self, name: &'static str, method: Method, path: String) -> Call {
        Call {
            within: self.inner.bounds.slow,
            ..self.call(name, method, path)
        }
    }

    /// Status, permissions, questions and events are told per directory only.
    fn in_directory(&self, path: &str) -> String {
        format!("{path}?directory={}", segment(&self.inner.directory))
    }
}

/// An open permission has the form of the event that asked for it.
fn permission(value: Value) -> Option<Permission> {
    let event = json!({"type": "permission.asked", "properties": value}).to_string();
    match OcEvent::parse(event.as_bytes()).ok()?.kind {
        OcKind::PermissionAsked(permission) => Some(permission),
        _ => None,
    }
}

fn with(call: Call, body: &Value) -> Call {
    Call {
        body: Some(Bytes::from(body.to_string())),
        ..call
    }
}

fn session_path(id: &str, rest: &str) -> String {
    format!("/session/{}{rest}", segment(id))
}

/// Encodes for a path or a query. Ids come from OpenCode too, and must not lead to another path.
fn segment(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes())
        .map(|piece| piece.replace('+', "%20").replace('.', "%2E"))
        .collect()
}

fn clip(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

fn garbage(call: &'static str, what: &'static str) -> OpenCodeError {
    OpenCodeError::Garbage {
        call,
        source: GarbageError::Unexpected(what),
    }
}

fn read<T: serde::de::DeserializeOwned>(
    call: &'static str,
    body: &[u8],
) -> Result<T, OpenCodeError> {
    serde_json::from_slice(body).map_err(|source| OpenCodeError::Garbage {
        call,
        source: source.into(),
    })
}

/// Reads an array; entries that make no sense are left out, so that one does not hide the others.
fn read_list<T>(
    call: &'static str,
    body: &[u8],
    entry: impl Fn(Value) -> Option<T>,
) -> Result<Vec<T>, OpenCodeError> {
    let all: Vec<Value> = read(call, body)?;
    Ok(all.into_iter().take(ITEMS_MAX).filter_map(entry).collect())
}

/// Any bytes as any of OpenCode's answers.
pub(crate) fn fuzz_answers(data: &[u8]) {
    let _ = read_list("children", data, |value| {
        serde_json::from_value::<Child>(value).ok()
    });
    let _ = read_list("questions", data, |value| {
        serde_json::from_value::<Question>(value).ok()
    });
    let _ = read_list("permissions", data, permission);
    let client = OpenCode::new(
        9,
        &SecretString::from("x"),
        Path::new("/workspace"),
        Bounds::default(),
    );
    if let Ok(diffs) = read_list("diff", data, |value| client.file_diff(value)) {
        assert!(
            diffs
                .iter()
                .all(|diff| matches!(diff.status.as_str(), "added" | "deleted" | "modified"))
        );
    }
    if let Ok(text) = std::str::from_utf8(data) {
        // An id never leads to another path.
        assert!(!segment(text).contains(['/', '?', '#', '.']));
        assert!(clip(text.to_owned(), 64).len() <= 64);
    }
}
