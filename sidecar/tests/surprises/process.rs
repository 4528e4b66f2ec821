//! Processes of a test: started plainly, ended surely.

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Ends what a stack started when the test process is gone, also by SIGKILL: then its end of the pipe
/// closes. The pids are read from a file at that time.
pub(crate) struct Guard {
    child: Child,
    pids: PathBuf,
}

impl Guard {
    pub(crate) fn new(dir: &Path) -> Self {
        let pids = dir.join("pids");
        fs::write(&pids, "").unwrap();
        let script = r#"trap '' INT TERM; cat >/dev/null
            kill $(cat "$1/pids") 2>/dev/null
            for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do kill -0 $(cat "$1/pids") 2>/dev/null || break; sleep 0.2; done
            umount -l "$1"/full-* 2>/dev/null; rm -rf "$1""#;
        let child = Command::new("sh")
            .args(["-c", script, "guard"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, pids }
    }

    /// Watches over one more process.
    pub(crate) fn add(&self, pid: u32) {
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(&self.pids)
            .unwrap();
        writeln!(file, "{pid}").unwrap();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // All that was watched over is gone by now.
        let _ = fs::write(&self.pids, "");
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

pub(crate) fn signal(process: u32, signal: Signal) {
    kill_process(pid(process), signal).unwrap();
}

pub(crate) fn kill(process: u32) {
    signal(process, Signal::KILL);
}

/// Whether the process is there and no zombie.
pub(crate) fn lives(process: u32) -> bool {
    test_kill_process(pid(process)).is_ok()
        && status(process, "State:").is_some_and(|state| !state.starts_with('Z'))
}

/// Ends a child: SIGTERM, and SIGKILL after a while.
pub(crate) fn end(child: &mut Child) {
    if child.try_wait().is_ok_and(|gone| gone.is_some()) {
        return;
    }
    let _ = kill_process(pid(child.id()), Signal::TERM);
    let deadline = Instant::now() + Duration::from_secs(10);
    while child.try_wait().is_ok_and(|gone| gone.is_none()) {
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A line of `/proc/PID/status`, without its name.
fn status(process: u32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .map(|rest| rest.trim().to_owned())
}

fn kib(process: u32, name: &str) -> u64 {
    let line = status(process, name).unwrap();
    line.split(' ').next().unwrap().parse().unwrap()
}

/// Memory in MiB: now, and the most it ever was.
pub(crate) fn memory(process: u32) -> (u64, u64) {
    (kib(process, "VmRSS:") / 1024, kib(process, "VmHWM:") / 1024)
}

/// Processes whose command line has `words`.
pub(crate) fn with_words(words: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(words) && pid != std::process::id() && lives(pid) {
            found.push(pid);
        }
    }
    found
}
