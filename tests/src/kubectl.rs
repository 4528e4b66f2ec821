//! kubectl as a person uses it: for what kube's client would make long.

use std::process::Stdio;
use tokio::{io::AsyncWriteExt, process::Command};

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Exit code 0.
    pub ok: bool,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Runs kubectl with these arguments and this input.
pub async fn kubectl(args: &[&str], input: &str) -> Said {
    let mut child = Command::new("kubectl")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("kubectl is on PATH: run `make test`, or `eval \"$(deploy/local/cluster.sh env)\"` first");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_owned();
    let writer = tokio::spawn(async move {
        // A command that does not read its input ends early; that is no failure.
        stdin.write_all(input.as_bytes()).await.ok();
    });
    let output = child.wait_with_output().await.expect("kubectl runs");
    writer.await.expect("writing does not panic");
    Said {
        ok: output.status.success(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
