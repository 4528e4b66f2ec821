//! The operator's process.

use clap::Parser;
use operator::{config::Config, run::run};
use std::{error::Error, process::ExitCode};

#[tokio::main]
async fn main() -> ExitCode {
    let config = Config::parse();
    bootstrap::init("operator");
    let stop = match bootstrap::shutdown_token() {
        Ok(stop) => stop,
        Err(error) => {
            tracing::error!(%error, "signals cannot be handled");
            return ExitCode::FAILURE;
        }
    };
    match run(config, stop).await {
        Ok(()) => {
            tracing::info!("stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(error = &error as &dyn Error, "ended");
            ExitCode::FAILURE
        }
    }
}
