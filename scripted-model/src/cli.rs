//! Command line.

use std::error::Error;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use scripted_model::{Library, Options, ScriptedModel};
use tokio::signal::unix::{SignalKind, signal};

/// A language model's double: OpenAI and Anthropic answers from scripts.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Where to listen.
    #[arg(long, env = "SCRIPTED_MODEL_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// A YAML file of further scenarios; may be given several times.
    #[arg(long, env = "SCRIPTED_MODEL_SCRIPTS", value_delimiter = ',')]
    scripts: Vec<PathBuf>,
    /// An API key that is let in; without any, all are.
    #[arg(
        long,
        env = "SCRIPTED_MODEL_KEYS",
        value_delimiter = ',',
        hide_env_values = true
    )]
    require_key: Vec<String>,
    /// A file of API keys that are let in, one per line, read at each request.
    #[arg(long, env = "SCRIPTED_MODEL_KEY_FILE")]
    require_key_file: Option<PathBuf>,
    /// Wait after each word, where a script says nothing else.
    #[arg(long, env = "SCRIPTED_MODEL_WORD_DELAY_MS", default_value_t = 10)]
    word_delay_ms: u64,
    /// A model that GET /models lists; any model is answered.
    #[arg(
        long,
        env = "SCRIPTED_MODEL_MODELS",
        value_delimiter = ',',
        default_value = "scripted-1"
    )]
    models: Vec<String>,
    /// List the scenarios and leave.
    #[arg(long)]
    list: bool,
    /// Check the scripts and leave.
    #[arg(long)]
    check: bool,
}

/// Runs until SIGTERM or SIGINT.
pub(crate) async fn run() -> ExitCode {
    match serve(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                text.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            let _ = writeln!(std::io::stderr(), "scripted-model: {text}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: Args) -> Result<(), Box<dyn Error>> {
    let mut library = Library::builtin()?;
    for path in &args.scripts {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        library.add_yaml(&path.display().to_string(), &text)?;
    }
    if args.list {
        let mut out = std::io::stdout().lock();
        for (name, scenario) in library.iter() {
            writeln!(out, "{name:<16} {}", scenario.about)?;
        }
        return Ok(());
    }
    if args.check {
        return Ok(());
    }
    // Before the port opens, so that a stop right after the start is heard: as the first
    // process of a container, signals without a handler are ignored.
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let model = ScriptedModel::start(Options {
        listen: args.listen,
        scripts: Some(library),
        keys: args
            .require_key
            .into_iter()
            .filter(|key| !key.is_empty())
            .collect(),
        key_file: args.require_key_file,
        word_delay: Duration::from_millis(args.word_delay_ms),
        models: args.models,
        log_requests: true,
        ..Options::default()
    })
    .await?;
    let _ = writeln!(
        std::io::stderr(),
        "scripted-model listens on {}",
        model.addr
    );
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    model.stop().await;
    Ok(())
}
