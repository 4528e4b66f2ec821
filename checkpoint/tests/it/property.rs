//! Any tree, any change: what is restored is what was.

use crate::support::{Place, chmod, limits, seen};
use proptest::prelude::*;
use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::PathBuf,
};

#[derive(Clone, Debug)]
enum Do {
    File(Vec<u8>, Vec<u8>, u32),
    Link(Vec<u8>, Vec<u8>),
    Dir(Vec<u8>, u32),
    Remove(Vec<u8>),
    Rename(Vec<u8>, Vec<u8>),
    Mode(Vec<u8>, u32),
}

fn name() -> impl Strategy<Value = &'static [u8]> {
    prop::sample::select(vec![
        &b"a"[..],
        b"b",
        b"a.b",
        b"a-",
        b".git",
        b".gitx",
        b"%25",
        b"%modes",
        b"\xff\xfe",
        b"new\nline",
        b"A",
    ])
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(name(), 1..4).prop_map(|names| names.join(&b'/'))
}

fn mode(write: u32) -> impl Strategy<Value = u32> {
    (0..0o1000_u32).prop_map(move |mode| mode | write)
}

fn step() -> impl Strategy<Value = Do> {
    let content = prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        4 => (path(), content, mode(0o400)).prop_map(|(p, c, m)| Do::File(p, c, m)),
        1 => (path(), name()).prop_map(|(p, t)| Do::Link(p, t.to_vec())),
        2 => (path(), mode(0o700)).prop_map(|(p, m)| Do::Dir(p, m)),
        2 => path().prop_map(Do::Remove),
        2 => (path(), path()).prop_map(|(a, b)| Do::Rename(a, b)),
        1 => (path(), mode(0o700)).prop_map(|(p, m)| Do::Mode(p, m)),
    ]
}

fn run(place: &Place, steps: &[Do]) {
    let at = |path: &[u8]| -> PathBuf { place.w("").join(OsStr::from_bytes(path)) };
    // Steps that make no sense where they are do nothing.
    for step in steps {
        match step {
            Do::File(path, content, mode) => {
                let path = at(path);
                let _ = fs::create_dir_all(path.parent().unwrap());
                if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_file()) {
                    continue;
                }
                let _ = fs::remove_file(&path);
                if fs::write(&path, content).is_ok() {
                    chmod(&path, *mode);
                }
            }
            Do::Link(path, target) => {
                let _ = fs::create_dir_all(at(path).parent().unwrap());
                let _ = symlink(OsStr::from_bytes(target), at(path));
            }
            Do::Dir(path, mode) => {
                if fs::create_dir_all(at(path)).is_ok() && !at(path).is_symlink() {
                    chmod(&at(path), *mode);
                }
            }
            Do::Remove(path) => {
                let _ = fs::remove_file(at(path));
                let _ = fs::remove_dir_all(at(path));
            }
            Do::Rename(from, to) => drop(fs::rename(at(from), at(to))),
            Do::Mode(path, mode) => {
                if fs::symlink_metadata(at(path)).is_ok_and(|meta| !meta.is_symlink()) {
                    chmod(&at(path), *mode);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn what_is_restored_is_what_was(
        first in prop::collection::vec(step(), 0..25),
        second in prop::collection::vec(step(), 0..25),
        third in prop::collection::vec(step(), 0..10),
    ) {
        let place = Place::new();
        let all = checkpoint::Limits { include_ignored: true, ..limits() };
        let mut states = Vec::new();
        for steps in [&first, &second, &third] {
            run(&place, steps);
            states.push((place.all.take(&all).unwrap().root, place.seen()));
        }
        for at in [0, 2, 1, 0] {
            let restored = place.all.restore(states[at].0, "r", &all).unwrap();
            prop_assert_eq!(&seen(&place.w("")), &states[at].1);
            prop_assert!(restored.exact);
            // The same folder has the same root, however it came to be.
            prop_assert_eq!(place.all.take(&all).unwrap().root, states[at].0);
        }
        place.all.prune(&[states[1].0], all.time).unwrap();
        place.all.restore(states[1].0, "r", &all).unwrap();
        prop_assert_eq!(&seen(&place.w("")), &states[1].1);
    }
}
