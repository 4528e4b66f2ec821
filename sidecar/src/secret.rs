//! OpenCode's password: made once per volume, so that a restarted sidecar finds its OpenCode again.
//!
//! Tools can read it from OpenCode's environment, so it guards nothing against them; it keeps other
//! pods' mistakes and plain web pages out.

use std::{fs, io, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

const NAME: &str = "opencode-password";
const BYTES: usize = 24;

/// Reads the password of the folder, or makes one.
pub(crate) fn load_or_make(dir: &Path) -> io::Result<String> {
    let path = dir.join(NAME);
    match fs::read_to_string(&path) {
        Ok(text) if text.len() == 2 * BYTES && text.bytes().all(|b| b.is_ascii_hexdigit()) => {
            return Ok(text);
        }
        Ok(_) => tracing::warn!(path = %path.display(), "not a password: making a new one"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut random = [0; BYTES];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let text: String = random.iter().map(|b| format!("{b:02x}")).collect();
    let temporary = dir.join(format!("{NAME}.new"));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_made_once_and_again_when_broken() {
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_make(dir.path()).unwrap();
        assert_eq!(load_or_make(dir.path()).unwrap(), first);
        fs::write(dir.path().join(NAME), "torn").unwrap();
        let second = load_or_make(dir.path()).unwrap();
        assert_ne!(second, first);
        assert_eq!(load_or_make(dir.path()).unwrap(), second);
    }
}
