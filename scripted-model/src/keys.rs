//! Which API keys are let in, and how keys look in the log.

use std::fmt::Write as _;
use std::path::PathBuf;

use axum::http::{HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};

/// Headers that carry a credential; their values never reach the log.
const SECRET: [&str; 6] = [
    "authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "proxy-authorization",
    "cookie",
];

/// SHA-256 of a key in lower-case hexadecimal, as it stands in the request log.
#[must_use]
pub fn key_digest(key: &str) -> String {
    Sha256::digest(key.as_bytes())
        .iter()
        .fold(String::with_capacity(64), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        })
}

/// The keys that are let in; with neither a list nor a file, every request is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys {
    pub(crate) listed: Vec<String>,
    /// One key per line; read at each request, so that a key can be changed under way.
    pub(crate) file: Option<PathBuf>,
}

/// Why a request is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Missing,
    Wrong(String),
}

impl Keys {
    /// A key file that cannot be read holds no keys.
    pub(crate) async fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if self.listed.is_empty() && self.file.is_none() {
            return Ok(());
        }
        let given = presented(headers).ok_or(Refusal::Missing)?;
        if self.listed.contains(&given) {
            return Ok(());
        }
        if let Some(path) = &self.file {
            let text = tokio::fs::read_to_string(path).await.unwrap_or_default();
            if text
                .lines()
                .any(|line| !line.trim().is_empty() && line.trim() == given)
            {
                return Ok(());
            }
        }
        Err(Refusal::Wrong(given))
    }
}

/// The key of a request: `x-api-key`, or the bearer token.
pub(crate) fn presented(headers: &HeaderMap) -> Option<String> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let bearer = || {
        let (scheme, token) = text("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    };
    let key = text("x-api-key").or_else(bearer)?.trim();
    (!key.is_empty()).then(|| key.to_owned())
}

/// Providers show a key's ends only.
pub(crate) fn masked(key: &str) -> String {
    let chars: Vec<char> = key.chars().collect();
    if chars.len() < 16 {
        return "*".repeat(chars.len());
    }
    let tail: String = chars[chars.len() - 4..].iter().collect();
    let head: String = chars[..4].iter().collect();
    format!("{head}{}{tail}", "*".repeat(chars.len() - 8))
}

/// A header's value for the log.
pub(crate) fn logged(name: &str, value: &HeaderValue) -> String {
    let text = String::from_utf8_lossy(value.as_bytes());
    if !SECRET.contains(&name) {
        return text.into_owned();
    }
    match text.split_once(' ') {
        Some((scheme, secret)) if name.ends_with("authorization") => {
            format!("{scheme} {}", key_digest(secret.trim()))
        }
        _ => key_digest(text.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter()
            .map(|(n, v)| (n.parse().unwrap(), HeaderValue::from_static(v)))
            .collect()
    }

    #[tokio::test]
    async fn without_keys_everyone_is_let_in_and_with_keys_no_one_else() {
        let bearer = headers(&[("authorization", "bearer one")]);
        Keys::default().check(&HeaderMap::new()).await.unwrap();
        let keys = Keys {
            listed: vec!["one".into()],
            file: None,
        };
        keys.check(&bearer).await.unwrap();
        keys.check(&headers(&[("x-api-key", "one")])).await.unwrap();
        for wrong in ["Bearer On", "Bearer one1", "Bearer ONE"] {
            let refused = keys
                .check(&headers(&[("authorization", wrong)]))
                .await
                .unwrap_err();
            assert!(matches!(refused, Refusal::Wrong(_)), "{wrong}");
        }
        for none in ["one", "Basic one", "Bearer ", ""] {
            let refused = keys
                .check(&headers(&[("authorization", none)]))
                .await
                .unwrap_err();
            assert_eq!(refused, Refusal::Missing, "{none}");
        }
    }

    #[tokio::test]
    async fn the_key_file_is_read_at_each_request_and_fails_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let keys = Keys {
            listed: vec![],
            file: Some(path.clone()),
        };
        let one = headers(&[("x-api-key", "one")]);
        keys.check(&one).await.unwrap_err();
        std::fs::write(&path, "zero\r\none\n\n").unwrap();
        keys.check(&one).await.unwrap();
        std::fs::write(&path, "two").unwrap();
        keys.check(&one).await.unwrap_err();
        std::fs::write(&path, "").unwrap();
        keys.check(&one).await.unwrap_err();
    }

    #[test]
    fn logged_headers_hold_digests_instead_of_keys() {
        let digest = key_digest("sk-1");
        assert_eq!(digest.len(), 64);
        let value = |s: &'static str| HeaderValue::from_static(s);
        assert_eq!(
            logged("authorization", &value("Bearer sk-1")),
            format!("Bearer {digest}")
        );
        assert_eq!(logged("x-api-key", &value("sk-1")), digest);
        assert_eq!(logged("authorization", &value("sk-1")), digest);
        assert_eq!(logged("x-session-id", &value("ses_1")), "ses_1");
        assert_eq!(masked("short"), "*****");
        assert_eq!(masked("sk-0123456789abcdef"), "sk-0***********cdef");
    }
}
