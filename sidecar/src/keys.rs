//! Providers' keys: files of Secret volumes, read anew for every use, so that a rotated Secret needs
//! no restart and no copy of a key stays in memory.

use contract::pod::{PROVIDER_KEY_FILE, PodConfig};
use secrecy::SecretString;
use std::{fs::File, io::Read, path::PathBuf};

/// Longest key, in bytes.
const KEY_MAX: u64 = 16 * 1024;

/// The folder of keys.
#[derive(Clone, Debug)]
pub(crate) struct ProviderKeys {
    dir: PathBuf,
}

impl ProviderKeys {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The key of a provider as it is now, without surrounding white space; `None` where the file is
    /// absent, empty, too long or no text.
    pub(crate) fn get(&self, provider: &str) -> Option<SecretString> {
        if provider.is_empty() || provider.contains(['/', '\0']) || provider.starts_with('.') {
            return None;
        }
        let file = File::open(self.dir.join(provider).join(PROVIDER_KEY_FILE)).ok()?;
        let mut text = String::new();
        let read = file.take(KEY_MAX + 1).read_to_string(&mut text).ok()?;
        let key = text.trim();
        (read as u64 <= KEY_MAX && !key.is_empty()).then(|| SecretString::from(key))
    }

    /// Providers of the configuration whose key is not there.
    pub(crate) fn missing(&self, config: &PodConfig) -> Vec<String> {
        config
            .providers
            .iter()
            .filter(|provider| self.get(&provider.name).is_none())
            .map(|provider| provider.name.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    #[test]
    fn reads_what_is_there_now_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let keys = ProviderKeys::new(dir.path().join("keys"));
        assert!(keys.get("main").is_none());
        let folder = dir.path().join("keys/main");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("key"), " sk-1\n").unwrap();
        assert_eq!(keys.get("main").unwrap().expose_secret(), "sk-1");
        std::fs::write(folder.join("key"), "sk-2").unwrap();
        assert_eq!(keys.get("main").unwrap().expose_secret(), "sk-2");
        std::fs::write(folder.join("key"), "  \n").unwrap();
        assert!(keys.get("main").is_none());
        std::fs::write(folder.join("key"), "k".repeat(20_000)).unwrap();
        assert!(keys.get("main").is_none());
        std::fs::write(dir.path().join("key"), "outside").unwrap();
        for bad in ["..", ".", "", "a/../.."] {
            assert!(keys.get(bad).is_none(), "{bad}");
        }
    }
}
