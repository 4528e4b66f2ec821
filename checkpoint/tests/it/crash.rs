//! SIGKILL at any moment, and disks that are full.

use crate::support::{Place, Thing, chmod, limits, seen};
use checkpoint::{Checkpoints, Error, Oid};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Not a test of its own: what the others start and kill.
#[test]
fn child() {
    let Ok(dir) = std::env::var("CHECKPOINT_DIR") else {
        return;
    };
    let dir = Path::new(&dir);
    let all = Checkpoints::new(dir.join("w"), dir.join("h"), "x/store");
    fs::write(dir.join("ready"), "").unwrap();
    match std::env::var("CHECKPOINT_TARGET") {
        Ok(target) => drop(
            all.restore(Oid::parse(&target).unwrap(), "child", &limits())
                .unwrap(),
        ),
        Err(_) => drop(all.take(&limits()).unwrap()),
    }
}

/// Runs [`child`] and kills it after `after`, counted from when it begins to work. True: it was done.
fn kill(place: &Place, target: Option<Oid>, after: Duration) -> bool {
    let ready = place.dir.path().join("ready");
    let _ = fs::remove_file(&ready);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "crash::child"])
        .env("CHECKPOINT_DIR", place.dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some(target) = target {
        command.env("CHECKPOINT_TARGET", target.to_string());
    }
    let mut child = command.spawn().unwrap();
    let started = Instant::now();
    while !ready.exists() {
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_micros(200));
    }
    let begun = Instant::now();
    while begun.elapsed() < after {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    let _ = child.kill();
    child.wait().unwrap().success()
}

/// A root and what the folder was then.
type Seen = (Oid, BTreeMap<Vec<u8>, Thing>);

fn two_states() -> (Place, [Seen; 2]) {
    let place = Place::new();
    for n in 0..150 {
        place.write(&format!("d{}/f{n}", n % 7), format!("{n}").repeat(500));
    }
    place.write("type", "a file");
    place.write("mode", "x");
    let first = (place.take().root, place.seen());
    for n in (0..150).step_by(2) {
        place.write(
            &format!("d{}/f{n}", n % 7),
            format!("changed {n}").repeat(300),
        );
    }
    fs::remove_dir_all(place.w("d3")).unwrap();
    fs::remove_file(place.w("type")).unwrap();
    place.write("type/now/a", "folder");
    chmod(&place.w("mode"), 0o755);
    let second = (place.take().root, place.seen());
    (place, [first, second])
}

#[test]
fn a_killed_restore_is_all_or_nothing() {
    let (place, states) = two_states();
    let mut ended = [0, 0, 0];
    let (mut now, mut longest) = (1, Duration::from_millis(120));
    for round in 0..40_u32 {
        let target = 1 - now;
        let after = longest * (round % 20) / 20;
        let done = kill(&place, Some(states[target].0), after);
        let pending = place.store("restore.json").exists();
        let recovered = place.all.recover().unwrap();
        assert!(recovered.is_some() || !pending);
        let seen = seen(&place.w(""));
        let is = |state: usize| {
            // Room that was made and not yet used is removed by the next restore; it is no content.
            let mut seen = seen.clone();
            seen.retain(|path, _| !path.starts_with(b".opencode-operator-restore-"));
            seen == states[state].1
        };
        assert!(is(0) || is(1), "round {round}: neither");
        if done || recovered.is_some() {
            assert!(is(target), "round {round}");
        }
        if done {
            longest = longest.min(after.max(Duration::from_millis(20)));
        }
        ended[usize::from(done) + usize::from(recovered.is_some()) * 2] += 1;
        now = usize::from(is(1));
    }
    eprintln!("cut before / done / cut and finished: {ended:?}");
    place.restore(states[0].0);
    assert_eq!(place.seen(), states[0].1);
}

#[test]
fn a_killed_checkpoint_leaves_the_others_whole() {
    let (place, states) = two_states();
    for round in 0..20 {
        place.write("d1/f1", format!("{round}").repeat(100_000));
        place.write(&format!("n/{round}"), "n");
        kill(&place, None, Duration::from_millis(round * 2));
    }
    let now = (place.take().root, place.seen());
    for state in [&states[0], &now, &states[1]] {
        place.restore(state.0);
        assert_eq!(place.seen(), state.1);
    }
    place.all.prune(&[now.0], limits().time).unwrap();
    place.restore(now.0);
    assert_eq!(place.seen(), now.1);
    let left = fs::read_dir(place.store("objects/pack")).unwrap();
    assert!(
        !left
            .into_iter()
            .any(|e| e.unwrap().file_name().to_string_lossy().starts_with("tmp-"))
    );
}

/// A folder on a small volume of its own.
struct Volume(tempfile::TempDir);

impl Volume {
    fn new(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "checkpoint"])
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(
            status.success(),
            "a small volume cannot be mounted: this test needs root"
        );
        fs::create_dir(dir.path().join("w")).unwrap();
        fs::create_dir(dir.path().join("h")).unwrap();
        Self(dir)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Bytes that nothing makes smaller.
fn noise(seed: u32, bytes: u32) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..bytes).map(next).collect()
}

#[test]
fn a_full_volume_refuses_and_breaks_nothing() {
    let volume = Volume::new("8m");
    let (w, h) = (volume.0.path().join("w"), volume.0.path().join("h"));
    let all = Checkpoints::new(w.clone(), h.clone(), "store");
    fs::write(w.join("a"), noise(1, 1_000_000)).unwrap();
    let first = all.take(&limits()).unwrap();
    fs::write(w.join("a"), noise(2, 1_000_000)).unwrap();
    let second = all.take(&limits()).unwrap();
    fs::write(w.join("b"), noise(3, 3_200_000)).unwrap();
    let error = all.take(&limits()).unwrap_err();
    assert!(matches!(error, Error::Full(_)), "{error}");
    // Nothing is left of it: as much is free as before.
    let packs = || fs::read_dir(h.join("store/objects/pack")).unwrap().count();
    assert_eq!(packs(), 4);
    let before = seen(&w);
    let error = all.restore(first.root, "r", &limits()).unwrap_err();
    assert!(matches!(error, Error::Full(_)), "{error}");
    assert_eq!(seen(&w), before);
    fs::remove_file(w.join("b")).unwrap();
    assert!(all.restore(first.root, "r", &limits()).unwrap().exact);
    assert_eq!(fs::read(w.join("a")).unwrap(), noise(1, 1_000_000));
    // No room at all for what must be written beside: refused before anything is touched.
    let ballast = fs::File::create(volume.0.path().join("ballast")).unwrap();
    let free = rustix::fs::fstatvfs(&ballast).unwrap();
    let room = free.f_bavail * free.f_frsize;
    ballast.set_len(0).unwrap();
    fs::write(
        volume.0.path().join("ballast"),
        noise(9, u32::try_from(room).unwrap() - 500_000),
    )
    .unwrap();
    let before = seen(&w);
    let error = all.restore(second.root, "r", &limits()).unwrap_err();
    assert!(matches!(error, Error::Full(_)), "{error}");
    assert_eq!(seen(&w), before);
}
