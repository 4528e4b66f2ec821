//! What the environment says.

use contract::pod;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Search path where the image sets none; the same as common container runtimes use.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_GRACE: Duration = Duration::from_millis(5000);
/// A grace beyond this is no grace but a mistake.
pub const GRACE_MAX: Duration = Duration::from_secs(600);

/// Settings of a runner.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen (`RUNNER_SOCKET`).
    pub socket: PathBuf,
    /// The agent's workspace (`WORKSPACE_DIR`).
    pub workspace: PathBuf,
    /// Time between SIGTERM and SIGKILL where no request says it (`RUNNER_GRACE_MS`).
    pub grace: Duration,
    /// The only user whose processes may ask; absent: any that can open the socket and runs not below the
    /// runner (`RUNNER_PEER_UID`).
    pub peer_uid: Option<u32>,
    /// Whether OpenCode is isolated: always, unless `RUNNER_ISOLATION` is `off`, which is for tests that
    /// show what isolation is good for.
    pub isolate: bool,
    /// Where the container's cgroup is (`RUNNER_CGROUP_DIR`).
    pub cgroup: PathBuf,
    /// What OpenCode inherits: everything but `RUNNER_*`, with PATH, HOME and TMPDIR always set.
    pub child_env: BTreeMap<OsString, OsString>,
}

impl Config {
    /// Reads the settings; what does not parse is the default, because a runner that does not come up
    /// cannot say what is wrong.
    #[must_use]
    pub fn from_env(vars: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let mut env: BTreeMap<OsString, OsString> = vars.collect();
        for ours in ["RUNNER_SOCKET", "WORKSPACE_DIR", "HOME", "TMPDIR", "PATH"] {
            if env
                .get(&OsString::from(ours))
                .is_some_and(|value| value.is_empty())
            {
                env.remove(&OsString::from(ours));
            }
        }
        let socket = env.get(&OsString::from("RUNNER_SOCKET")).map_or_else(
            || PathBuf::from(pod::SOCKET_DIR).join(pod::SOCKET_FILE),
            PathBuf::from,
        );
        let grace = env
            .get(&OsString::from("RUNNER_GRACE_MS"))
            .and_then(|v| v.to_str()?.parse().ok())
            .map_or(DEFAULT_GRACE, Duration::from_millis)
            .min(GRACE_MAX);
        let peer_uid = env
            .get(&OsString::from("RUNNER_PEER_UID"))
            .and_then(|v| v.to_str()?.parse().ok());
        let isolate = env
            .get(&OsString::from("RUNNER_ISOLATION"))
            .is_none_or(|v| v != "off");
        let cgroup = env
            .get(&OsString::from("RUNNER_CGROUP_DIR"))
            .map_or_else(|| PathBuf::from(crate::cgroup::ROOT), PathBuf::from);
        env.retain(|name, _| !name.as_encoded_bytes().starts_with(b"RUNNER_"));
        let workspace = env
            .entry("WORKSPACE_DIR".into())
            .or_insert_with(|| pod::WORKSPACE_DIR.into())
            .clone()
            .into();
        env.entry("HOME".into())
            .or_insert_with(|| pod::HOME_DIR.into());
        env.entry("TMPDIR".into()).or_insert_with(|| "/tmp".into());
        env.entry("PATH".into())
            .or_insert_with(|| DEFAULT_PATH.into());
        Self {
            socket,
            workspace,
            grace,
            peer_uid,
            cgroup,
            isolate,
            child_env: env,
        }
    }

    /// A variable as OpenCode gets it from the container.
    #[must_use]
    pub fn var(&self, name: &str) -> OsString {
        self.child_env
            .get(&OsString::from(name))
            .cloned()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(vars: &[(&str, &str)]) -> Config {
        Config::from_env(vars.iter().map(|(k, v)| (k.into(), v.into())))
    }

    #[test]
    fn defaults_are_those_of_the_pod() {
        let config = config(&[]);
        assert_eq!(
            config.socket,
            PathBuf::from("/run/opencode-operator/runner.sock")
        );
        assert_eq!(config.workspace, PathBuf::from("/workspace"));
        assert_eq!(config.var("HOME"), "/home/agent");
        assert_eq!(config.var("PATH"), DEFAULT_PATH);
        assert_eq!(config.grace, DEFAULT_GRACE);
    }

    #[test]
    fn own_variables_stay_and_given_ones_pass() {
        let config = config(&[
            ("RUNNER_SOCKET", "/x/y.sock"),
            ("RUNNER_GRACE_MS", "99999999999"),
            ("RUNNER_OTHER", "z"),
            ("GOFLAGS", "-mod=vendor"),
            ("EMPTY", ""),
            ("TMPDIR", ""),
            ("HOME", "/h"),
        ]);
        assert_eq!(
            config.child_env.get(&OsString::from("EMPTY")),
            Some(&OsString::new())
        );
        assert_eq!(config.var("TMPDIR"), "/tmp");
        assert_eq!(config.socket, PathBuf::from("/x/y.sock"));
        assert_eq!(config.grace, GRACE_MAX);
        assert_eq!(config.var("GOFLAGS"), "-mod=vendor");
        assert_eq!(config.var("HOME"), "/h");
        assert!(
            !config
                .child_env
                .keys()
                .any(|k| k.to_string_lossy().starts_with("RUNNER_"))
        );
    }

    #[test]
    fn a_grace_that_is_no_number_is_the_default() {
        assert_eq!(config(&[("RUNNER_GRACE_MS", "soon")]).grace, DEFAULT_GRACE);
    }
}
