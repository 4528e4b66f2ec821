//! What every daemon does first: one TLS provider, JSON logs, one token that ends everything.

#[cfg(any(test, feature = "lint"))]
pub mod exposition;
mod log;
pub mod trace;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Installs the process-wide TLS provider (ring, because kube brings it anyway and two would double
/// the binary) and JSON logs on stderr.
///
/// `LOG_LEVEL` holds a level or a filter as in `info,sidecar=debug`; what does not parse is `info`,
/// with a warning. Calling it twice is harmless.
pub fn init(service: &'static str) {
    let installed = rustls::crypto::ring::default_provider().install_default();
    let wanted = std::env::var("LOG_LEVEL")
        .unwrap_or_default()
        .to_lowercase();
    let parsed = if wanted.is_empty() {
        Ok(EnvFilter::new("info"))
    } else {
        EnvFilter::try_new(&wanted)
    };
    let refused = parsed.is_err();
    let filter = parsed.unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .fmt_fields(tracing_subscriber::fmt::format::JsonFields::new())
        .event_format(log::Flat)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .finish();
    let fresh = tracing::subscriber::set_global_default(subscriber).is_ok();
    if refused {
        tracing::warn!(service, "LOG_LEVEL is no level or filter; using info");
    }
    if fresh {
        tracing::info!(service, version = env!("CARGO_PKG_VERSION"), "starting");
    }
    if installed.is_err() {
        tracing::debug!("a TLS provider was installed before");
    }
}

/// A token that is cancelled by the first SIGTERM or SIGINT.
///
/// Must be called within a tokio runtime. Fails only if the process may not handle signals.
pub fn shutdown_token() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let cancel = token.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping");
        cancel.cancel();
    });
    Ok(token)
}
