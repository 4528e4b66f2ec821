//! The sidecar of an OpenCodeSession's pod. All it does is in the library.

use clap::Parser;
use sidecar::{Settings, audit, event_schema_json, journal_command, openapi_json, run};
use std::{io::Write, process::ExitCode};

fn main() -> ExitCode {
    // Generated documents, for `make generate`, and the logs for people.
    match std::env::args().nth(1).as_deref() {
        Some("openapi") => return print(&openapi_json()),
        Some("event-schema") => return print(&event_schema_json()),
        Some("journal") => return journal_command(std::env::args_os().skip(1)),
        Some("audit") => return audit(std::env::args_os().skip(2)),
        _ => {}
    }
    let settings = Settings::parse();
    bootstrap::init("opencode-sidecar");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(settings)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = error.chain(), "the sidecar ends");
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
