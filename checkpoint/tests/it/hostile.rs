//! The agent can write wherever the store and the folder are.

use crate::support::{Place, limits};
use checkpoint::{Error, Limits};
use std::{
    fs,
    os::unix::fs::symlink,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// Stops a thread also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn every_damage_to_the_store_is_found_before_anything_changes() {
    let place = Place::new();
    for n in 0..6 {
        place.write(&format!("d/f{n}"), format!("content {n} ").repeat(20));
    }
    let target = place.take();
    place.write("d/f0", "changed");
    fs::remove_file(place.w("d/f1")).unwrap();
    let now = place.seen();
    let pack = place.store("objects/pack");
    let files: Vec<_> = fs::read_dir(&pack)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    let (mut refused, mut same) = (0, 0);
    for file in files {
        let good = fs::read(&file).unwrap();
        let step = (good.len() / 120).max(1);
        for at in (0..good.len()).step_by(step) {
            for damage in 0..2 {
                let mut bad = good.clone();
                if damage == 0 {
                    bad[at] ^= 0x41;
                } else {
                    bad.truncate(at);
                }
                let others: Vec<_> = fs::read_dir(&pack)
                    .unwrap()
                    .map(|e| e.unwrap().path())
                    .filter(|p| *p != file)
                    .collect();
                fs::write(&file, &bad).unwrap();
                let before = place.seen();
                match place.all.restore(target.root, "r", &limits()) {
                    Ok(_) => {
                        // What was damaged was not needed, or the folder still had it.
                        assert!(place.seen().contains_key(&b"d/f1"[..]));
                        same += 1;
                        fs::remove_file(place.w("d/f1")).unwrap();
                        place.write("d/f0", "changed");
                        assert_eq!(place.seen(), now);
                    }
                    Err(error) => {
                        assert!(matches!(error, Error::Corrupt(_)), "{error:?}");
                        assert_eq!(place.seen(), before, "{} at {at}", file.display());
                        refused += 1;
                    }
                }
                // As it was, without what the attempt added.
                for entry in fs::read_dir(&pack).unwrap() {
                    let path = entry.unwrap().path();
                    if path != file && !others.contains(&path) {
                        fs::remove_file(path).unwrap();
                    }
                }
                let _ = fs::remove_file(place.store("cache.json"));
                fs::write(&file, &good).unwrap();
            }
        }
    }
    eprintln!("{refused} refused, {same} harmless");
    assert!(refused > 100);
    place.restore(target.root);
}

#[test]
fn a_lying_cache_lies_only_about_what_is_checkpointed() {
    let place = Place::new();
    place.write("f", "f");
    place.write("g", "g");
    place.settled("g");
    let first = place.take();
    place.take();
    let cache = fs::read_dir(place.store(""))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| {
            p.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("cache-")
        })
        .unwrap();
    let good = fs::read(&cache).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        fs::write(&cache, &bad).unwrap();
        // Whatever it says: no panic, no endless loop, no memory without bound.
        let _ = place.all.take(&limits());
        fs::write(&cache, &good[..at]).unwrap();
        let _ = place.all.take(&limits());
        let _ = fs::remove_file(place.store("cache.json"));
        assert_eq!(place.take().root, first.root);
        let name = serde_free_name(&place);
        fs::write(place.store(&name), &good).unwrap();
        let _ = fs::write(&cache, &good);
    }
}

fn serde_free_name(place: &Place) -> String {
    let head = fs::read_to_string(place.store("cache.json")).unwrap();
    let start = head.find("cache-").unwrap();
    head[start..start + 22].to_owned()
}

#[test]
fn a_store_behind_a_link_is_refused() {
    let place = Place::new();
    place.write("f", "f");
    let outside = place.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, place.dir.path().join("h/x")).unwrap();
    assert!(place.all.take(&limits()).is_err());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn swapping_folders_for_links_meanwhile_leads_nowhere() {
    let place = Place::new();
    let outside = place.dir.path().join("outside");
    fs::create_dir_all(outside.join("sub")).unwrap();
    fs::write(outside.join("sub/secret"), "SECRET").unwrap();
    fs::write(outside.join("f"), "SECRET").unwrap();
    for n in 0..40 {
        place.write(&format!("d/sub/f{n}"), "good");
    }
    place.write("f", "good");
    let target = place.take();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = fs::rename(place.w("d"), place.w("d-away"));
                let _ = symlink(&outside, place.w("d"));
                let _ = fs::remove_file(place.w("f"));
                let _ = symlink(outside.join("f"), place.w("f"));
                std::thread::yield_now();
                let _ = fs::remove_file(place.w("d"));
                let _ = fs::rename(place.w("d-away"), place.w("d"));
                let _ = fs::remove_file(place.w("f"));
                let _ = fs::write(place.w("f"), "good");
            }
        });
        let _stop = Stop(&stop);
        let until = Instant::now() + Duration::from_secs(6);
        let mut roots = Vec::new();
        while Instant::now() < until {
            if let Ok(taken) = place.all.take(&limits()) {
                roots.push(taken.root);
            }
            let _ = place.all.restore(target.root, "r", &limits());
        }
        assert!(roots.len() > 3);
        for root in roots {
            place
                .all
                .diff(None, Some(root), limits().time, &mut |file| {
                    assert!(!file.hunks.contains("SECRET"), "{file:?}");
                    Ok(true)
                })
                .unwrap();
        }
    });
    let names: Vec<_> = fs::read_dir(&outside)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(fs::read(outside.join("f")).unwrap(), b"SECRET");
    assert_eq!(fs::read_dir(outside.join("sub")).unwrap().count(), 1);
    let _ = fs::remove_file(place.w("d"));
    let _ = fs::rename(place.w("d-away"), place.w("d"));
    place.restore(target.root);
}

#[test]
fn files_that_change_while_they_are_read_end_and_are_told() {
    let place = Place::new();
    place.write("big", vec![b'x'; 8 << 20]);
    place.write("small", "s");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let big = fs::File::options()
                .write(true)
                .open(place.w("big"))
                .unwrap();
            let mut n = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                big.set_len((4 << 20) + (n * 4096) % (4 << 20)).unwrap();
                fs::write(
                    place.w("small"),
                    vec![b's'; usize::try_from(n % 50).unwrap()],
                )
                .unwrap();
            }
        });
        let _stop = Stop(&stop);
        let mut changing = 0;
        for _ in 0..4 {
            let taken = place.all.take(&limits()).unwrap();
            changing += taken.changing;
            place
                .all
                .diff(None, Some(taken.root), limits().time, &mut |_| Ok(true))
                .unwrap();
        }
        assert!(changing > 0);
    });
}

#[test]
fn a_walk_that_takes_too_long_ends() {
    let place = Place::new();
    for n in 0..50 {
        place.write(&format!("f{n}"), "x".repeat(200_000));
    }
    let brief = Limits {
        time: Duration::from_millis(1),
        ..limits()
    };
    let error = place.all.take(&brief).unwrap_err();
    assert!(matches!(error, Error::TooSlow), "{error}");
}

#[test]
fn patterns_made_to_be_slow_are_not() {
    let place = Place::new();
    place.write(".gitignore", format!("{}b\n", "*a".repeat(40)).repeat(50));
    place.write(&"a".repeat(200), "x");
    place.write(&format!("d/{}", "a".repeat(240)), "x");
    let began = Instant::now();
    place.take();
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
}
