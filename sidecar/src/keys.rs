//! Providers' keys: files of Secret volumes, read anew for every use, so that a rotated Secret needs
//! no restart and no copy of a key stays in memory.

use contract::{
    pod::{PROVIDER_KEY_FILE, PodConfig},
    summary::RefusedKey,
};
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    fs::File,
    io::Read,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Longest key, in bytes.
const KEY_MAX: u64 = 16 * 1024;

/// Refusals of one key that are told as news, and the time between two.
const TOLD_MAX: u32 = 5;
const TOLD_EVERY: SignedDuration = SignedDuration::from_mins(1);

/// The folder of keys. Clones share what is known of refused ones.
#[derive(Clone, Debug)]
pub(crate) struct ProviderKeys {
    dir: PathBuf,
    refused: Arc<Mutex<HashMap<String, Refused>>>,
}

/// A key that its provider refused: known again by its SHA-256.
#[derive(Clone, Debug)]
struct Refused {
    key: [u8; 32],
    at: Timestamp,
    told: u32,
}

impl ProviderKeys {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            refused: Arc::default(),
        }
    }

    /// A provider of the pod's configuration answered 401 or 403 to this key.
    pub(crate) fn refused(&self, provider: &str, key: &SecretString, now: Timestamp) {
        let key = digest(key);
        let mut all = self.all_refused();
        match all.get_mut(provider).filter(|refused| refused.key == key) {
            None => {
                let refused = Refused {
                    key,
                    at: now,
                    told: 1,
                };
                all.insert(provider.to_owned(), refused);
            }
            // News again, for the operator to look for a new key again; not for ever.
            Some(refused)
                if refused.told < TOLD_MAX && now.duration_since(refused.at) >= TOLD_EVERY =>
            {
                refused.at = now;
                refused.told += 1;
            }
            Some(_) => {}
        }
    }

    /// It took this key.
    pub(crate) fn accepted(&self, provider: &str, key: &SecretString) {
        let mut all = self.all_refused();
        if all
            .get(provider)
            .is_some_and(|refused| refused.key == digest(key))
        {
            all.remove(provider);
        }
    }

    /// Providers of the configuration whose key was refused and is still the same, by name.
    pub(crate) fn still_refused(&self, config: &PodConfig) -> Vec<RefusedKey> {
        let mut all = self.all_refused();
        all.retain(|provider, refused| {
            config.providers.iter().any(|p| p.name == *provider)
                && self
                    .get(provider)
                    .is_some_and(|key| digest(&key) == refused.key)
        });
        let mut list: Vec<_> = all
            .iter()
            .map(|(provider, refused)| RefusedKey {
                provider: provider.clone(),
                at: refused.at,
            })
            .collect();
        list.sort_by(|a, b| a.provider.cmp(&b.provider));
        list
    }

    fn all_refused(&self) -> MutexGuard<'_, HashMap<String, Refused>> {
        // Plain data: nothing is half changed.
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
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

fn digest(key: &SecretString) -> [u8; 32] {
    Sha256::digest(key.expose_secret().as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::pod::{ProviderConfig, ProviderKind};

    #[test]
    fn a_refused_key_is_told_until_it_changes_and_not_too_often() {
        let dir = tempfile::tempdir().unwrap();
        let keys = ProviderKeys::new(dir.path().to_owned());
        let config = PodConfig {
            providers: vec![ProviderConfig {
                name: "main".into(),
                kind: ProviderKind::Openai,
                endpoint: None,
                models: Vec::new(),
                prices: Vec::new(),
            }],
            ..PodConfig::default()
        };
        let put = |key: &str| {
            std::fs::create_dir_all(dir.path().join("main")).unwrap();
            std::fs::write(dir.path().join("main/key"), key).unwrap();
        };
        let start = Timestamp::from_second(1_700_000_000).unwrap();
        let at = |seconds: i64| start + SignedDuration::from_secs(seconds);
        put("sk-one");
        keys.refused("main", &"sk-one".into(), at(0));
        keys.refused("main", &"sk-one".into(), at(59));
        assert_eq!(
            keys.still_refused(&config),
            [RefusedKey {
                provider: "main".into(),
                at: at(0)
            }]
        );
        for n in 1..100 {
            keys.refused("main", &"sk-one".into(), at(60 * n));
        }
        assert_eq!(
            keys.still_refused(&config)[0].at,
            at(240),
            "five times in all"
        );
        keys.accepted("main", &"sk-other".into());
        assert_eq!(keys.still_refused(&config).len(), 1);
        put("sk-two");
        assert!(keys.still_refused(&config).is_empty());
        keys.refused("main", &"sk-two".into(), at(7000));
        keys.refused("gone", &"sk-two".into(), at(7000));
        assert_eq!(keys.still_refused(&config).len(), 1);
        keys.accepted("main", &"sk-two".into());
        assert!(keys.still_refused(&config).is_empty());
        let debug = format!("{keys:?}");
        assert!(!debug.contains("sk-"), "{debug}");
    }

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
