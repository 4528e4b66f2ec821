//! The pod's configuration and public keys: files that the kubelet renews.

use contract::{
    pod::{CONFIG_FILE, KEYS_FILE, Limits, PodConfig},
    token::KeySet,
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Largest accepted file, in bytes: the limit of all annotations of an object.
const FILE_MAX: u64 = 512 * 1024;
/// How often files are looked at. The kubelet renews them by swapping a symbolic link.
pub(crate) const POLL: Duration = Duration::from_millis(500);

/// Configuration and keys in force, with news.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pod: watch::Receiver<Arc<PodConfig>>,
    keys: watch::Receiver<Arc<KeySet>>,
    /// Where the pod's configuration comes from; absent where it is fixed.
    source: Option<Arc<Source>>,
}

#[derive(Debug)]
struct Source {
    path: PathBuf,
    pod: watch::Sender<Arc<PodConfig>>,
    fallback: PodConfig,
}

/// A file is there and cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{path} cannot be read")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is larger than {FILE_MAX} bytes")]
    TooLarge { path: PathBuf },
    #[error("{path} is not what the operator writes")]
    Parse {
        path: PathBuf,
        source: serde_json::Error,
    },
}

impl Config {
    /// Reads both files, and again whenever they change until `shutdown`. Absent files mean
    /// defaults: `limits` and no keys. A file that turns bad later keeps what was in force.
    pub(crate) fn load(
        dir: &Path,
        limits: &Limits,
        shutdown: CancellationToken,
    ) -> Result<Self, ConfigError> {
        let fallback = PodConfig {
            limits: limits.clone(),
            ..PodConfig::default()
        };
        let pod = read_json(&dir.join(CONFIG_FILE))?.unwrap_or_else(|| fallback.clone());
        let keys = read_json(&dir.join(KEYS_FILE))?.unwrap_or_default();
        let (pod_tx, pod) = watch::channel(Arc::new(pod));
        let (keys_tx, keys) = watch::channel(Arc::new(keys));
        let dir = dir.to_owned();
        let source = Arc::new(Source {
            path: dir.join(CONFIG_FILE),
            pod: pod_tx,
            fallback,
        });
        let polled = Arc::clone(&source);
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(POLL);
            while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
                polled.renew();
                renew(&dir.join(KEYS_FILE), &keys_tx, &KeySet::default());
            }
        });
        let source = Some(source);
        Ok(Self { pod, keys, source })
    }

    /// One that a test changes.
    #[cfg(test)]
    pub(crate) fn changeable(pod: PodConfig) -> (watch::Sender<Arc<PodConfig>>, Self) {
        let (sender, pod) = watch::channel(Arc::new(pod));
        let keys = watch::channel(Arc::default()).1;
        let source = None;
        (sender, Self { pod, keys, source })
    }

    /// The configuration as the file has it at this moment, for what must not lag behind it.
    pub(crate) fn pod_now(&self) -> Arc<PodConfig> {
        if let Some(source) = &self.source {
            source.renew();
        }
        self.pod()
    }

    /// The configuration in force.
    pub(crate) fn pod(&self) -> Arc<PodConfig> {
        Arc::clone(&self.pod.borrow())
    }

    /// News of it.
    pub(crate) fn watch_pod(&self) -> watch::Receiver<Arc<PodConfig>> {
        self.pod.clone()
    }

    /// The public keys in force.
    pub(crate) fn keys(&self) -> Arc<KeySet> {
        Arc::clone(&self.keys.borrow())
    }
}

impl Source {
    fn renew(&self) {
        renew(&self.path, &self.pod, &self.fallback);
    }
}

fn renew<T>(path: &Path, sender: &watch::Sender<Arc<T>>, fallback: &T)
where
    T: serde::de::DeserializeOwned + PartialEq + Clone,
{
    match read_json::<T>(path) {
        Ok(value) => {
            let value = value.unwrap_or_else(|| fallback.clone());
            let changed = sender.send_if_modified(|old| {
                let differs = **old != value;
                if differs {
                    *old = Arc::new(value);
                }
                differs
            });
            if changed {
                tracing::info!(path = %path.display(), "configuration changed");
            }
        }
        Err(error) => tracing::warn!(%error, "keeping the configuration in force"),
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, ConfigError> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    if size > FILE_MAX {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
        });
    }
    if size == 0 {
        return Ok(None);
    }
    let bytes = std::fs::read(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source,
        })
}
