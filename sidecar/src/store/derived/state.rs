//! The form of `state.json`: the SHA-256 of the text of its `state`, then that.

use super::digest::Digest;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

/// The newest form.
const FORMAT: u32 = 1;
/// Longest file that is read, in bytes.
pub(super) const SIZE_MAX: usize = 1 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File<'a> {
    format: u32,
    sha256: String,
    #[serde(borrow)]
    state: &'a RawValue,
}

/// Why a file is no `state.json`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("it is longer than {SIZE_MAX} bytes")]
    TooLong,
    #[error("it is not of the expected form")]
    Form(#[from] serde_json::Error),
    #[error("its format {0} is not known")]
    Format(u32),
    #[error("its checksum is wrong")]
    Checksum,
}

pub(crate) fn encode(digest: &Digest) -> Vec<u8> {
    let state = serde_json::to_string_pretty(digest).expect("plain data has a JSON form");
    let state = RawValue::from_string(state).expect("what was just made is JSON");
    let file = File {
        format: FORMAT,
        sha256: hash(&state),
        state: &state,
    };
    let mut bytes = serde_json::to_vec(&file).expect("plain data has a JSON form");
    bytes.push(b'\n');
    bytes
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Digest, StateError> {
    if bytes.len() > SIZE_MAX {
        return Err(StateError::TooLong);
    }
    let file: File<'_> = serde_json::from_slice(bytes)?;
    if file.format != FORMAT {
        return Err(StateError::Format(file.format));
    }
    if file.sha256 != hash(file.state) {
        return Err(StateError::Checksum);
    }
    Ok(serde_json::from_str(file.state.get())?)
}

fn hash(state: &RawValue) -> String {
    let sum = Sha256::digest(state.get().as_bytes());
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}
