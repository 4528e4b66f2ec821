//! Short-lived tokens: JWT with Ed25519 and nothing else.
//!
//! Gateway and operator sign with a key of their own; pods hold only public keys. A token names one
//! pod (audience: UID of the OpenCodeSession), one user (subject) and what may be done (scopes), and
//! lives at most [`LIFETIME_MAX_SECONDS`]. The algorithm is fixed: the header's `alg` is compared,
//! never obeyed.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey, pkcs8::DecodePrivateKey};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest life of a token.
pub const LIFETIME_MAX_SECONDS: i64 = 60;
/// How far clocks may differ.
pub const LEEWAY_SECONDS: i64 = 5;
/// Longest token text.
pub const TOKEN_MAX: usize = 4096;

/// What a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// Read sessions, streams, diffs.
    #[serde(rename = "sessions:read")]
    SessionsRead,
    /// Create, prompt, cancel, approve.
    #[serde(rename = "sessions:write")]
    SessionsWrite,
    /// The pod's summary and metrics.
    #[serde(rename = "summary:read")]
    SummaryRead,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who signed, `operator` or `gateway`.
    pub iss: String,
    /// On whose behalf.
    pub sub: String,
    /// UID of the OpenCodeSession.
    pub aud: String,
    /// Seconds since 1970.
    pub iat: i64,
    /// Seconds since 1970.
    pub exp: i64,
    /// What may be done.
    pub scopes: Vec<Scope>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
}

/// Why a token is refused. All of them are 401; the difference is for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three parts of base64url JSON.
    #[error("token is malformed")]
    Malformed,
    /// Another algorithm than EdDSA.
    #[error("token has a foreign algorithm")]
    Algorithm,
    /// No public key of this id.
    #[error("token is signed with an unknown key")]
    UnknownKey,
    /// The signature does not fit.
    #[error("token has a wrong signature")]
    Signature,
    /// For another pod.
    #[error("token is meant for another pod")]
    Audience,
    /// Too old, from the future, or living too long.
    #[error("token is expired or lives too long")]
    Expired,
}

/// The private key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("signing key is not an Ed25519 key in PKCS#8 PEM")]
pub struct InvalidKey;

/// A private key with its id. Debug shows the id only.
pub struct Signing {
    key: SigningKey,
    kid: String,
}

impl fmt::Debug for Signing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signing")
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl Signing {
    /// From PKCS#8 PEM, as `openssl genpkey -algorithm ed25519` or Helm's `genPrivateKey "ed25519"`
    /// writes it.
    pub fn from_pem(pem: &str) -> Result<Self, InvalidKey> {
        SigningKey::from_pkcs8_pem(pem.trim())
            .map(Self::from_key)
            .map_err(|_| InvalidKey)
    }

    /// From 32 random bytes.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self::from_key(SigningKey::from_bytes(seed))
    }

    fn from_key(key: SigningKey) -> Self {
        let kid = URL_SAFE_NO_PAD.encode(&key.verifying_key().as_bytes()[..9]);
        Self { key, kid }
    }

    /// What pods are told.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey {
            kid: self.kid.clone(),
            x: URL_SAFE_NO_PAD.encode(self.key.verifying_key().as_bytes()),
        }
    }

    /// A token.
    #[must_use]
    pub fn sign(&self, claims: &Claims) -> String {
        let header = Header {
            alg: "EdDSA".into(),
            typ: "JWT".into(),
            kid: self.kid.clone(),
        };
        let mut text = encode(&header);
        text.push('.');
        text.push_str(&encode(claims));
        let signature = self.key.sign(text.as_bytes());
        text.push('.');
        text.push_str(&URL_SAFE_NO_PAD.encode(signature.to_bytes()));
        text
    }
}

fn encode<T: Serialize>(value: &T) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(value).expect("plain data has a JSON form"))
}

fn decode<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, TokenError> {
    let bytes = URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)
}

/// One public key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    /// Its id.
    pub kid: String,
    /// 32 bytes, base64url.
    pub x: String,
}

/// The public keys that a pod trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySet {
    /// All of them.
    pub keys: Vec<PublicKey>,
}

impl KeySet {
    /// The claims of a token that is signed by one of these keys, meant for `audience` and valid
    /// at `now` (seconds since 1970).
    pub fn verify(&self, token: &str, audience: &str, now: i64) -> Result<Claims, TokenError> {
        if token.len() > TOKEN_MAX {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let header: Header = decode(header)?;
        if header.alg != "EdDSA" {
            return Err(TokenError::Algorithm);
        }
        let key = self
            .keys
            .iter()
            .find(|k| k.kid == header.kid)
            .ok_or(TokenError::UnknownKey)?;
        let x: [u8; 32] = URL_SAFE_NO_PAD
            .decode(&key.x)
            .ok()
            .and_then(|x| x.try_into().ok())
            .ok_or(TokenError::UnknownKey)?;
        let key = VerifyingKey::from_bytes(&x).map_err(|_| TokenError::UnknownKey)?;
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| TokenError::Malformed)?;
        let signature = Signature::from_slice(&signature).map_err(|_| TokenError::Malformed)?;
        key.verify_strict(signed.as_bytes(), &signature)
            .map_err(|_| TokenError::Signature)?;
        let claims: Claims = decode(claims)?;
        if claims.aud != audience {
            return Err(TokenError::Audience);
        }
        let too_long = claims.exp.saturating_sub(claims.iat) > LIFETIME_MAX_SECONDS;
        let early = claims.iat > now.saturating_add(LEEWAY_SECONDS);
        let late = claims.exp.saturating_add(LEEWAY_SECONDS) <= now;
        if too_long || early || late {
            return Err(TokenError::Expired);
        }
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        Claims {
            iss: "operator".into(),
            sub: "system:test".into(),
            aud: "uid-1".into(),
            iat: 1000,
            exp: 1060,
            scopes: vec![Scope::SummaryRead],
        }
    }

    fn pair() -> (Signing, KeySet) {
        let signing = Signing::from_seed(&[7; 32]);
        let keys = KeySet {
            keys: vec![signing.public()],
        };
        (signing, keys)
    }

    #[test]
    fn a_token_verifies_for_its_pod_and_time_only() {
        let (signing, keys) = pair();
        let token = signing.sign(&claims());
        assert_eq!(keys.verify(&token, "uid-1", 1030), Ok(claims()));
        assert_eq!(
            keys.verify(&token, "uid-2", 1030),
            Err(TokenError::Audience)
        );
        assert_eq!(keys.verify(&token, "uid-1", 1066), Err(TokenError::Expired));
        assert_eq!(keys.verify(&token, "uid-1", 900), Err(TokenError::Expired));
        let long = signing.sign(&Claims {
            exp: 2000,
            ..claims()
        });
        assert_eq!(keys.verify(&long, "uid-1", 1030), Err(TokenError::Expired));
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let (signing, keys) = pair();
        let token = signing.sign(&claims());
        for i in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[i] = if bytes[i] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(bytes).unwrap();
            assert!(keys.verify(&forged, "uid-1", 1030).is_err(), "position {i}");
        }
    }

    #[test]
    fn none_and_foreign_keys_are_refused() {
        let (_, keys) = pair();
        let other = Signing::from_seed(&[8; 32]).sign(&claims());
        assert_eq!(
            keys.verify(&other, "uid-1", 1030),
            Err(TokenError::UnknownKey)
        );
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT","kid":"x"}"#);
        let none = format!("{header}.{}.", encode(&claims()));
        assert_eq!(
            keys.verify(&none, "uid-1", 1030),
            Err(TokenError::Algorithm)
        );
    }

    #[test]
    fn debug_shows_no_key() {
        let text = format!("{:?}", Signing::from_seed(&[7; 32]));
        assert!(!text.contains('7') || text.contains("kid"), "{text}");
        assert!(!text.contains("SigningKey"), "{text}");
    }
}
