//! The program: its start, its refusals, its end.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Output, Stdio};

use crate::client::http;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scripted-model"));
    command
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(args: &[&str]) -> (Output, String) {
    let output = program().args(args).output().unwrap();
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    (output, text)
}

/// Kills its child when a test fails half-way.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn it_serves_until_sigterm_and_logs_to_standard_error_only() {
    let key = "sk-program-key-0123456789";
    let child = program()
        .args(["--listen", "127.0.0.1:0", "--word-delay-ms", "0"])
        .env("SCRIPTED_MODEL_KEYS", format!("other,{key}"))
        .spawn()
        .unwrap();
    let mut child = Guard(child);
    let mut stderr = BufReader::new(child.0.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    let addr = line.trim().rsplit(' ').next().unwrap().to_owned();

    let body = serde_json::json!({"model": "m\n1", "messages": [
        {"role": "user", "content": "SCENARIO:hello"}]});
    let url = format!("http://{addr}/v1/chat/completions");
    let client = http();
    let refused = client.post(&url).json(&body).send().await.unwrap();
    assert_eq!(refused.status(), 401);
    let answer = client
        .post(&url)
        .bearer_auth(key)
        .json(&body)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);

    let pid = child.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    assert!(child.0.wait().unwrap().success());
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines.len(), 2, "{log}");
    assert!(
        lines[0].ends_with("401") && lines[1].ends_with("200"),
        "{log}"
    );
    assert!(
        lines[1].contains("scenario=hello step=0") && lines[1].contains("model=m?1"),
        "{log}"
    );
    assert!(!log.contains(key));
    let mut out = String::new();
    child
        .0
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut out)
        .unwrap();
    assert_eq!(out, "");
}

#[test]
fn scripts_are_checked_with_clear_messages() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good.yaml");
    std::fs::write(
        &good,
        "scenarios: {mine: {about: My own., steps: [{parts: [hang]}]}}",
    )
    .unwrap();
    let good = good.to_str().unwrap();
    assert!(run(&["--check", "--scripts", good]).0.status.success());
    let (output, _) = run(&["--list", "--scripts", good]);
    let list = String::from_utf8(output.stdout).unwrap();
    assert!(
        list.contains("mine             My own.") && list.contains("\nhello "),
        "{list}"
    );

    let bad = dir.path().join("bad.yaml");
    std::fs::write(
        &bad,
        "scenarios: {mine: {steps: [{parts: [{say: '{{who}}'}]}]}}",
    )
    .unwrap();
    let (output, text) = run(&["--check", "--scripts", bad.to_str().unwrap()]);
    assert!(!output.status.success());
    assert!(
        text.contains("bad.yaml: scenario \"mine\", step 1: part 1: "),
        "{text}"
    );
    let (output, text) = run(&["--scripts", "/nonexistent.yaml"]);
    assert!(
        !output.status.success() && text.contains("/nonexistent.yaml"),
        "{text}"
    );
}

#[test]
fn a_taken_port_is_an_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let (output, text) = run(&["--listen", &addr]);
    assert!(!output.status.success());
    assert!(
        text.contains(&format!("cannot listen on {addr}: ")),
        "{text}"
    );
}
