//! How the processes of a stack are started.

use crate::stack::{Setup, TOKEN};
use serde_json::{Value, json};
use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// Writes the pod's configuration, with the provider and model of all stacks that name no other. Every
/// provider is the scripted model.
pub(crate) fn configure(dir: &Path, endpoint: &str, mut config: Value) {
    let base = json!({
        "name": "zebra", "namespace": "dune", "uid": "u-77",
        "providers": [{"name": "scripted", "kind": "compatible"}],
        "model": {"provider": "scripted", "name": "scripted-1"},
    });
    for (name, value) in base.as_object().unwrap() {
        if config[name].is_null() {
            config[name] = value.clone();
        }
    }
    for provider in config["providers"].as_array_mut().unwrap() {
        provider["endpoint"] = endpoint.into();
    }
    // In one step, as the kubelet does it.
    let (new, file) = (dir.join("config/.new"), dir.join("config/config.json"));
    fs::write(&new, config.to_string()).unwrap();
    fs::rename(new, file).unwrap();
}

/// Puts a folder on a small volume: `full-NAME`, with the folder a link into it.
pub(crate) fn mount(dir: &Path, name: &str, size: &str) {
    let volume = dir.join(format!("full-{name}"));
    fs::create_dir_all(volume.join("d")).unwrap();
    let status = Command::new("mount")
        .args([
            "-t",
            "tmpfs",
            "-o",
            &format!("size={size},mode=0700"),
            "surprises",
        ])
        .arg(&volume)
        .status()
        .unwrap();
    assert!(
        status.success(),
        "a small volume cannot be mounted: this test needs root"
    );
    fs::create_dir_all(volume.join("d")).unwrap();
    fs::remove_dir(dir.join(name)).unwrap();
    std::os::unix::fs::symlink(volume.join("d"), dir.join(name)).unwrap();
}

/// Ports that nobody listens on, and that nobody gets by chance before they are used: each is given once by this
/// process, from below those that the kernel gives to whoever connects.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    [(); N].map(|()| {
        loop {
            // Another process of tests begins elsewhere.
            let n = GIVEN.fetch_add(1, Ordering::Relaxed) + std::process::id() * 512;
            let port = u16::try_from(FIRST + n % COUNT).unwrap();
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return port;
            }
        }
    })
}

fn opencode() -> PathBuf {
    let path = std::env::var_os("OPENCODE_BIN").map(PathBuf::from);
    let path = path.unwrap_or_else(|| {
        panic!("set OPENCODE_BIN to OpenCode's binary: this test runs the real one")
    });
    assert!(path.is_file(), "OPENCODE_BIN={} is no file", path.display());
    path
}

pub(crate) fn start_runner(dir: &Path, setup: &Setup) -> Child {
    let beside =
        Path::new(env!("CARGO_BIN_EXE_opencode-sidecar")).with_file_name("opencode-runner");
    let path = std::env::var_os("RUNNER_BIN").map_or(beside, PathBuf::from);
    assert!(
        path.is_file(),
        "{} is missing: cargo build -p runner",
        path.display()
    );
    let log = log(dir, "runner.log");
    Command::new(path)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", dir.join("home"))
        .env("TMPDIR", dir.join("tmp"))
        .env("WORKSPACE_DIR", dir.join("workspace"))
        .env("RUNNER_SOCKET", dir.join("run/runner.sock"))
        .envs(setup.runner_env.iter().copied())
        // It runs in no container: a test may write figures there.
        .env("RUNNER_CGROUP_DIR", dir.join("cgroup"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

pub(crate) fn start_sidecar(
    dir: &Path,
    [port, proxy_port, opencode_port, egress_port]: [u16; 4],
    setup: &Setup,
) -> Child {
    let log = log(dir, "sidecar.log");
    let program = match setup.program {
        None => opencode(),
        Some(script) => {
            let path = dir.join("program");
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        }
    };
    Command::new(env!("CARGO_BIN_EXE_opencode-sidecar"))
        .env_clear()
        .env("HOST", "127.0.0.1")
        .env("PORT", port.to_string())
        .env("PROXY_PORT", proxy_port.to_string())
        .env("EGRESS_PORT", egress_port.to_string())
        .env("OPENCODE_PORT", opencode_port.to_string())
        .env("WORKSPACE_DIR", dir.join("workspace"))
        .env("AGENT_HOME", dir.join("home"))
        .env("CONFIG_DIR", dir.join("config"))
        .env("PROVIDER_KEYS_DIR", dir.join("keys"))
        .env("JOURNAL_DIR", dir.join("journal"))
        .env("RUNNER_SOCKET", dir.join("run/runner.sock"))
        .env("OPENCODE_PROGRAM", program)
        .env("OPENCODE_SHARED_SECRET", TOKEN)
        .envs(setup.env.iter().map(|(name, value)| (*name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn log(dir: &Path, name: &str) -> fs::File {
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join(name))
        .unwrap()
}
