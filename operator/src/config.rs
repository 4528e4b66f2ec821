//! Flags of the operator. Each can be set by an environment variable too.

use crate::session::build::{Binaries, DefaultResources, PodSettings};
use clap::{Args, Parser, ValueEnum};
use std::{net::SocketAddr, path::PathBuf};

/// Turns every OpenCodeSession into a pod with a workspace and keeps it so.
#[derive(Clone, Debug, Parser)]
#[command(name = "opencode-operator", version)]
pub struct Config {
    /// Namespace to look after; empty: all of them.
    #[arg(long, env = "WATCH_NAMESPACE", default_value = "")]
    pub watch_namespace: String,

    /// Where health and metrics are served.
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// File with the Ed25519 key (PKCS#8 PEM) that signs tokens for sidecars.
    #[arg(long, env = "SIGNING_KEY_FILE")]
    pub signing_key_file: PathBuf,

    /// File with public keys of others that pods shall trust, as the gateway's: JSON
    /// `{"keys":[{"kid":..,"x":..}]}`.
    #[arg(long, env = "TRUSTED_KEYS_FILE")]
    pub trusted_keys_file: Option<PathBuf>,

    /// Work only while holding a Lease, so that replicas take turns.
    #[arg(long, env = "LEADER_ELECTION", default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub leader_election: bool,

    /// Name of that Lease.
    #[arg(long, env = "LEASE_NAME", default_value = "opencode-operator")]
    pub lease_name: String,

    /// Name of this pod, for the Lease and Events.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,

    /// Namespace of this pod, for the Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub pod_namespace: String,

    /// What goes into the sessions' pods.
    #[command(flatten)]
    pub pods: PodFlags,
}

/// What goes into the sessions' pods.
#[derive(Clone, Debug, Args)]
pub struct PodFlags {
    /// Image of the sidecar.
    #[arg(long, env = "SIDECAR_IMAGE")]
    pub sidecar_image: String,

    /// Image with the runner at /runner.
    #[arg(long, env = "RUNNER_IMAGE")]
    pub runner_image: String,

    /// Image with OpenCode at /opencode and the runner at /runner.
    #[arg(long, env = "OPENCODE_IMAGE")]
    pub opencode_image: String,

    /// Image of the agent where a session names none.
    #[arg(long, env = "AGENT_IMAGE")]
    pub agent_image: String,

    /// Always, IfNotPresent or Never, for the four images above. Default: the cluster's.
    #[arg(long, env = "IMAGE_PULL_POLICY")]
    pub image_pull_policy: Option<PullPolicy>,

    /// How runner and OpenCode get into the agent container.
    #[arg(long, env = "BINARIES", default_value = "auto")]
    pub binaries: BinariesFlag,

    /// Level of the sidecars' logs.
    #[arg(long, env = "SIDECAR_LOG_LEVEL", default_value = "info")]
    pub sidecar_log_level: String,

    /// Base URL of a collector that takes OTLP over HTTP, for the sidecars' traces; empty: none.
    #[arg(long, env = "SIDECAR_OTLP_ENDPOINT", default_value = "")]
    pub sidecar_otlp_endpoint: String,
}

/// When images are pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PullPolicy {
    /// At every start.
    #[value(name = "Always")]
    Always,
    /// When the node has none.
    #[value(name = "IfNotPresent")]
    IfNotPresent,
    /// Never.
    #[value(name = "Never")]
    Never,
}

/// How runner and OpenCode get into the agent container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BinariesFlag {
    /// Image volumes from Kubernetes 1.36 on, where they are on by default; else copies.
    Auto,
    /// Image volumes.
    ImageVolume,
    /// Copied by init containers.
    Copy,
}

impl BinariesFlag {
    /// Decides for a server of this version, as in `1` and `36+`; what does not parse is old.
    #[must_use]
    pub fn resolve(self, major: &str, minor: &str) -> Binaries {
        let number = |text: &str| {
            text.trim_matches(|c: char| !c.is_ascii_digit())
                .parse::<u32>()
                .unwrap_or(0)
        };
        match self {
            Self::ImageVolume => Binaries::ImageVolume,
            Self::Copy => Binaries::Copy,
            Self::Auto if (number(major), number(minor)) >= (1, 36) => Binaries::ImageVolume,
            Self::Auto => Binaries::Copy,
        }
    }
}

impl PodFlags {
    /// The settings of every pod.
    #[must_use]
    pub fn settings(&self, binaries: Binaries, public_keys: String) -> PodSettings {
        PodSettings {
            sidecar_image: self.sidecar_image.clone(),
            runner_image: self.runner_image.clone(),
            opencode_image: self.opencode_image.clone(),
            agent_image: self.agent_image.clone(),
            image_pull_policy: self.image_pull_policy.map(|policy| {
                match policy {
                    PullPolicy::Always => "Always",
                    PullPolicy::IfNotPresent => "IfNotPresent",
                    PullPolicy::Never => "Never",
                }
                .to_owned()
            }),
            binaries,
            log_level: self.sidecar_log_level.clone(),
            otlp_endpoint: Some(self.sidecar_otlp_endpoint.clone()).filter(|url| !url.is_empty()),
            public_keys,
            default_resources: DefaultResources::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_volumes_are_used_where_they_are_on_by_default() {
        for (minor, expected) in [
            ("33", Binaries::Copy),
            ("35", Binaries::Copy),
            ("36", Binaries::ImageVolume),
            ("37+", Binaries::ImageVolume),
            ("", Binaries::Copy),
        ] {
            assert_eq!(BinariesFlag::Auto.resolve("1", minor), expected, "{minor}");
        }
        assert_eq!(BinariesFlag::Copy.resolve("1", "40"), Binaries::Copy);
    }
}
