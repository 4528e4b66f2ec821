//! The sidecar's environment, read once at the start.

use clap::Parser;
use contract::pod;
use secrecy::SecretString;
use std::{net::SocketAddr, path::PathBuf};

/// Session API over a real OpenCode.
#[derive(Clone, Debug, Parser)]
#[command(name = "opencode-sidecar", version)]
pub struct Settings {
    /// The agent's workspace, as the agent sees it.
    #[arg(long, env = "WORKSPACE_DIR", default_value = pod::WORKSPACE_DIR)]
    pub workspace_dir: PathBuf,
    /// Port of the API, on all addresses unless HOST says otherwise.
    #[arg(long, env = "PORT", default_value_t = pod::API_PORT)]
    pub port: u16,
    /// Address of the API.
    #[arg(long, env = "HOST", default_value = "0.0.0.0")]
    pub host: std::net::IpAddr,
    /// Port of the credential proxy on 127.0.0.1.
    #[arg(long, env = "PROXY_PORT", default_value_t = pod::PROXY_PORT)]
    pub proxy_port: u16,
    /// Port of the egress proxy on 127.0.0.1.
    #[arg(long, env = "EGRESS_PORT", default_value_t = pod::EGRESS_PORT)]
    pub egress_port: u16,
    /// Port of OpenCode on 127.0.0.1.
    #[arg(long, env = "OPENCODE_PORT", default_value_t = pod::OPENCODE_PORT)]
    pub opencode_port: u16,
    /// Longest turn in seconds, where the pod's configuration does not say.
    #[arg(long, env = "SESSION_TIMEOUT", default_value_t = 3600)]
    pub session_timeout: u64,
    /// Turns at once, where the pod's configuration does not say.
    #[arg(long, env = "MAX_CONCURRENT_SESSIONS", default_value_t = 5)]
    pub max_concurrent_sessions: u32,
    /// Bearer token for a backend that talks to this sidecar directly.
    #[arg(long, env = "OPENCODE_SHARED_SECRET", hide_env_values = true)]
    pub shared_secret: Option<SecretString>,
    /// File with such a token, read anew for every request.
    #[arg(long, env = "OPENCODE_SHARED_SECRET_FILE", default_value = pod::SHARED_SECRET_FILE)]
    pub shared_secret_file: PathBuf,
    /// Folder with the pod's configuration and public keys.
    #[arg(long, env = "CONFIG_DIR", default_value = pod::CONFIG_DIR)]
    pub config_dir: PathBuf,
    /// Folder with the providers' keys.
    #[arg(long, env = "PROVIDER_KEYS_DIR", default_value = pod::PROVIDER_KEYS_DIR)]
    pub provider_keys_dir: PathBuf,
    /// Journal folder.
    #[arg(long, env = "JOURNAL_DIR", default_value = pod::JOURNAL_DIR)]
    pub journal_dir: PathBuf,
    /// The runner's socket.
    #[arg(long, env = "RUNNER_SOCKET", default_value_os_t = PathBuf::from(pod::SOCKET_DIR).join(pod::SOCKET_FILE))]
    pub runner_socket: PathBuf,
    /// OpenCode's binary, as the agent container sees it.
    #[arg(long, env = "OPENCODE_PROGRAM", default_value_os_t = PathBuf::from(pod::OPENCODE_DIR).join("opencode"))]
    pub opencode_program: PathBuf,
    /// The agent's HOME, as the agent sees it.
    #[arg(long, env = "AGENT_HOME", default_value = pod::HOME_DIR)]
    pub agent_home: String,
    /// A key on the command line, where everybody reads it.
    #[cfg(feature = "weakened")]
    #[arg(long, hide = true)]
    pub weakened_key: Option<String>,
    /// PEM bundle of more certificate authorities for model calls.
    #[arg(long, env = "EXTRA_CA_FILE")]
    pub extra_ca_file: Option<PathBuf>,
    /// Longest wait for a provider's answer to begin, in seconds.
    #[arg(long, env = "MODEL_HEADER_TIMEOUT", default_value_t = 120)]
    pub model_header_timeout: u64,
    /// Longest silence within a provider's answer, in seconds.
    #[arg(long, env = "MODEL_CHUNK_TIMEOUT", default_value_t = 120)]
    pub model_chunk_timeout: u64,
}

impl Settings {
    /// Where the API listens.
    #[must_use]
    pub fn api_addr(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }
}
