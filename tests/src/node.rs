//! The node as root sees it: the processes of a pod, the files of a volume. Tests that use it must run on the node:
//! the built-in cluster has one, this machine. (`kubectl debug` is no way out: it needs a privileged pod.)

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::Api;
use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::Namespace;

/// Process of the pod with this UID whose program has this file name. Panics where there is none, or where this is not the node.
#[must_use]
pub fn process(pod_uid: &str, program: &str) -> u32 {
    let found = find(pod_uid, program);
    assert!(
        !found.is_empty(),
        "no process {program} of pod {pod_uid}: it does not run, or this is not the node, or not root \
         (these tests need the built-in cluster)"
    );
    found[0]
}

/// The same; empty where there is none. The oldest comes first.
#[must_use]
pub fn find(pod_uid: &str, program: &str) -> Vec<u32> {
    let all = processes(pod_uid).into_iter();
    all.filter(|(_, name)| name == program)
        .map(|(pid, _)| pid)
        .collect()
}

/// Every process of the pod with this UID, with the file name of its program. The oldest comes first, not the one with the lowest
/// number: numbers begin anew once they are used up.
#[must_use]
pub fn processes(pod_uid: &str) -> Vec<(u32, String)> {
    // cgroup drivers write the UID with dashes or with underscores.
    let names = [pod_uid.to_owned(), pod_uid.replace('-', "_")];
    let mut found: Vec<(u64, u32, String)> = fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| {
            let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
            let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
            let program = exe.file_name()?.to_string_lossy().into_owned();
            names
                .iter()
                .any(|name| group.contains(name.as_str()))
                .then_some((start(pid)?, pid, program))
        })
        .collect();
    found.sort_unstable();
    let named = |(_, pid, program)| (pid, program);
    found.into_iter().map(named).collect()
}

/// When a process began, in clock ticks since boot; `None` once it ended.
fn start(pid: u32) -> Option<u64> {
    stat(pid, 19)?.parse().ok()
}

/// A field of `/proc/PID/stat`, counted behind the name.
fn stat(pid: u32, field: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, behind_name) = stat.rsplit_once(')')?;
    behind_name.split_whitespace().nth(field).map(str::to_owned)
}

/// Whether environment, arguments or memory of a process hold one of these texts, and how many bytes were read; `None` if it ended
/// meanwhile, as tools do. One that became another program meanwhile is read again. Meant for small processes: a large one takes
/// minutes.
#[must_use]
pub fn holds(pid: u32, needles: &[String]) -> Option<(bool, usize)> {
    loop {
        let before = image(pid)?;
        let (holds, read) = search(pid, needles)?;
        let same = image(pid) == Some(before);
        if same || holds {
            return Some((holds, read));
        }
    }
}

/// What a process runs: changes when it becomes another program, `None` once it ended.
fn image(pid: u32) -> Option<(PathBuf, String)> {
    /// Place of the stack's start in `/proc/PID/stat`, counted behind the name: it differs from program to program.
    const STACK: usize = 25;
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some((program, stat(pid, STACK)?))
}

/// One look at all of a process; `None` if it had ended at its begin.
fn search(pid: u32, needles: &[String]) -> Option<(bool, usize)> {
    let (mut holds, mut read) = (false, 0);
    let mut look = |bytes: &[u8]| {
        read += bytes.len();
        holds |= any_in(bytes, needles);
    };
    for file in ["environ", "cmdline"] {
        look(&fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default());
    }
    let memory = match fs::File::open(format!("/proc/{pid}/mem")) {
        Ok(memory) => memory,
        Err(error) => {
            // One that is ending has no memory any more, and no program either.
            assert!(image(pid).is_none(), "root reads every memory: {error}");
            return None;
        }
    };
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))
        .unwrap_or_default()
        .lines()
    {
        let mut words = line.split_whitespace();
        let (Some((from, to)), Some(may)) = (
            words.next().and_then(|range| range.split_once('-')),
            words.next(),
        ) else {
            continue;
        };
        let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16))
        else {
            continue;
        };
        // What is reserved and not used is larger than any machine.
        let Ok(length @ 1..=0x0400_0000) = usize::try_from(to - from) else {
            continue;
        };
        let mut bytes = vec![0; length];
        if may.starts_with('r') && memory.read_exact_at(&mut bytes, from).is_ok() {
            look(&bytes);
        }
    }
    Some((holds, read))
}

/// Whether bytes hold one of these texts of ASCII: decoding leaves ASCII as it is, and finding text is fast even without optimization.
fn any_in(bytes: &[u8], needles: &[String]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    needles.iter().any(|needle| text.contains(needle.as_str()))
}

/// kill -9, now.
pub fn kill(pid: u32) {
    let status = Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()
        .expect("kill runs");
    assert!(status.success(), "process {pid} could not be killed");
}

/// A variable of a process's environment.
#[must_use]
pub fn variable(pid: u32, name: &str) -> Option<String> {
    let all = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let text = String::from_utf8_lossy(&all).into_owned();
    text.split('\0').find_map(|pair| {
        pair.strip_prefix(name)?
            .strip_prefix('=')
            .map(str::to_owned)
    })
}

/// Name of a claim's volume and its folder on this node.
pub async fn volume(ns: &Namespace, claim: &str) -> (String, PathBuf) {
    let claim = ns
        .api::<PersistentVolumeClaim>()
        .get(claim)
        .await
        .expect("the claim is there");
    let name = claim
        .spec
        .and_then(|spec| spec.volume_name)
        .expect("the claim is bound");
    let volume = Api::<PersistentVolume>::all(ns.client.clone())
        .get(&name)
        .await
        .expect("the volume is there");
    let spec = volume.spec.expect("a spec");
    let path = spec
        .local
        .map(|local| local.path)
        .or_else(|| spec.host_path.map(|host| host.path))
        .expect("a volume of the node's own disk: these tests need the built-in cluster");
    (name, path.into())
}

/// Files below a folder that hold one of these texts; also counts the files that were read.
#[must_use]
pub fn files_with(folder: &Path, needles: &[String]) -> (Vec<PathBuf>, usize) {
    let (mut found, mut read, mut todo) = (Vec::new(), 0, vec![folder.to_owned()]);
    while let Some(next) = todo.pop() {
        let Ok(kind) = fs::symlink_metadata(&next).map(|meta| meta.file_type()) else {
            continue;
        };
        if kind.is_dir() {
            let entries = fs::read_dir(&next).into_iter().flatten();
            todo.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
        } else if kind.is_file() {
            // Gone in the meantime: the agent works on it.
            let Ok(bytes) = fs::read(&next) else { continue };
            read += 1;
            if any_in(&bytes, needles) {
                found.push(next);
            }
        }
    }
    (found, read)
}
