//! What is kept, what is left out, what comes back.

use crate::support::{Place, Thing, chmod, limits};
use checkpoint::{Error, Limits};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, symlink},
        net::UnixListener,
    },
};

#[test]
fn everything_comes_back_as_it_was() {
    let place = Place::new();
    place.write("a.txt", "one\n");
    place.write("sub/deep/b.bin", [0, 1, 2, 255]);
    place.write("run.sh", "#!/bin/sh\n");
    place.write("sub/.git/HEAD", "ref: refs/heads/x\n");
    place.write(".git/config", "[core]\n");
    place.write("%modes", "an odd name");
    place.write("%2Egit", "another");
    chmod(&place.w("run.sh"), 0o755);
    chmod(&place.w("a.txt"), 0o600);
    fs::create_dir_all(place.w("empty/er")).unwrap();
    chmod(&place.w("empty"), 0o2750);
    symlink("../../etc/passwd", place.w("link")).unwrap();
    symlink("nowhere", place.w("sub/broken")).unwrap();
    let odd = OsStr::from_bytes(b"odd \xff\n\"name");
    fs::write(place.w("").join(odd), "odd").unwrap();
    fs::hard_link(place.w("a.txt"), place.w("hard")).unwrap();
    let before = place.seen();
    let taken = place.take();
    assert_eq!((taken.skipped_count, taken.changing), (0, 0));

    fs::remove_dir_all(place.w(".git")).unwrap();
    fs::remove_dir_all(place.w("sub")).unwrap();
    place.write("sub", "now a file");
    fs::remove_file(place.w("run.sh")).unwrap();
    place.write("run.sh/is/a/folder", "x");
    fs::remove_dir_all(place.w("empty")).unwrap();
    place.write("a.txt", "two\n");
    chmod(&place.w("%modes"), 0o755);
    fs::remove_file(place.w("link")).unwrap();
    symlink("elsewhere", place.w("link")).unwrap();
    place.write("new/file", "new");
    let changed = place.seen();

    let restored = place.restore(taken.root);
    assert_eq!(place.seen(), before);
    assert!(restored.exact);
    // A link was two names of one file; writing through it would have changed both.
    assert_ne!(
        fs::metadata(place.w("a.txt")).unwrap().ino(),
        fs::metadata(place.w("hard")).unwrap().ino()
    );
    // And back again to what it was before the restore.
    assert!(place.restore(restored.before.root).exact);
    assert_eq!(place.seen(), changed);
}

#[test]
fn an_unchanged_folder_costs_nothing() {
    let place = Place::new();
    for n in 0..200 {
        place.write(&format!("d{}/f{n}", n % 10), format!("{n}"));
    }
    let first = place.take();
    assert_eq!((first.files, place.packs()), (200, 1));
    let again = place.take();
    assert_eq!((again.root, again.new_objects), (first.root, 0));
    assert_eq!(place.packs(), 1);
    place.write("d3/f3", "other");
    let third = place.take();
    // The file, its folder, the top.
    assert_eq!((third.new_objects, place.packs()), (3, 2));
}

#[test]
fn a_change_in_the_same_instant_with_the_same_size_is_seen() {
    let place = Place::new();
    let mut last = None;
    for n in 0..30 {
        place.write("f", format!("{n:05}"));
        let root = place.take().root;
        assert_ne!(Some(root), last, "{n}");
        last = Some(root);
    }
}

#[test]
fn an_old_time_does_not_hide_a_change() {
    let place = Place::new();
    place.write("f", "aaaa");
    place.settled("f");
    let first = place.take();
    let times = fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
    let file = fs::File::options().write(true).open(place.w("f")).unwrap();
    file.set_times(times).unwrap();
    let old = place.take();
    assert_eq!(old.root, first.root);
    place.write("f", "bbbb");
    file.set_times(times).unwrap();
    assert_ne!(place.take().root, first.root);
}

#[test]
fn ignored_files_stay_out_and_survive_a_restore() {
    let place = Place::new();
    place.git(&["init", "-q"]);
    place.write(".gitignore", "/target/\n*.log\n!keep.log\n");
    place.write("src/.gitignore", "gen\n");
    place.write("src/gen", "generated");
    place.write("src/a.rs", "a");
    place.write("target/big", "big");
    place.write("target/forced", "tracked although ignored");
    place.write("x.log", "log");
    place.write("keep.log", "kept");
    place.write("nested/.git/HEAD", "x");
    place.write("nested/x.log", "not ignored there");
    place.git(&["add", "-f", "target/forced"]);
    let taken = place.take();
    let names = |root| {
        let mut names = Vec::new();
        let done = place.all.diff(None, Some(root), limits().time, &mut |d| {
            names.push(d.path);
            Ok(true)
        });
        assert!(done.unwrap());
        names
    };
    assert_eq!(
        names(taken.root),
        [
            ".gitignore",
            "keep.log",
            "nested/x.log",
            "src/.gitignore",
            "src/a.rs",
            "target/forced"
        ]
    );
    let all = place
        .all
        .take(&Limits {
            include_ignored: true,
            ..limits()
        })
        .unwrap();
    assert_eq!(names(all.root).len(), 9);

    place.write("src/a.rs", "changed");
    place.write("target/big", "bigger");
    fs::remove_file(place.w("target/forced")).unwrap();
    let before = place.seen();
    assert!(place.restore(taken.root).exact);
    let after = place.seen();
    assert_eq!(after[&b"src/a.rs"[..]], Thing::File(0o644, b"a".to_vec()));
    assert_eq!(after[&b"target/big"[..]], before[&b"target/big"[..]]);
    assert!(after.contains_key(&b"target/forced"[..]) && after.contains_key(&b"x.log"[..]));
    // A folder that comes to be ignored as a whole is still restored where the checkpoint has it.
    place.write(".gitignore", "*\n");
    fs::remove_file(place.w("src/a.rs")).unwrap();
    place.restore(taken.root);
    assert_eq!(place.seen()[&b"src/a.rs"[..]], after[&b"src/a.rs"[..]]);
}

#[test]
fn what_is_no_file_is_left_out_and_named_and_left_alone() {
    let place = Place::new();
    place.write("f", "f");
    mknodat(
        CWD,
        place.w("pipe"),
        FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let _socket = UnixListener::bind(place.w("socket")).unwrap();
    let taken = place.take();
    let told: Vec<_> = taken.skipped.iter().map(|s| (&s.path[..], s.why)).collect();
    assert_eq!(told, [(&b"pipe"[..], "a pipe"), (b"socket", "a socket")]);
    place.write("f", "g");
    place.restore(taken.root);
    assert_eq!(place.seen()[&b"pipe"[..]], Thing::Other);
    assert_eq!(place.seen()[&b"socket"[..]], Thing::Other);
}

#[test]
fn bounds_are_errors_that_say_which() {
    let place = Place::new();
    for n in 0..20 {
        place.write(&format!("f{n}"), "x");
    }
    let few = Limits {
        max_files: 10,
        ..limits()
    };
    let error = place.all.take(&few).unwrap_err();
    assert!(matches!(&error, Error::TooLarge(_)), "{error}");
    let noise: Vec<u8> = (0..400_000_u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes())
        .collect();
    place.write("big", noise);
    let small = Limits {
        max_pack_bytes: 100_000,
        ..limits()
    };
    let error = place.all.take(&small).unwrap_err();
    assert!(matches!(error, Error::Quota(100_000)), "{error}");
    assert_eq!(place.packs(), 0, "nothing half is left");
    assert_eq!(
        fs::read_dir(place.store("objects/pack")).unwrap().count(),
        0
    );
    let mut deep = place.w("");
    for _ in 0..300 {
        deep.push("d");
    }
    fs::create_dir_all(deep).unwrap();
    let error = place.all.take(&limits()).unwrap_err();
    assert!(matches!(&error, Error::TooLarge(_)), "{error}");
}

#[test]
fn pruning_forgets_the_rest_and_keeps_what_is_kept() {
    let place = Place::new();
    let mut roots = Vec::new();
    for n in 0..60_u32 {
        let noise: Vec<u8> = (0..5000).map(|i| ((i * n * 7919) >> 3) as u8).collect();
        place.write("big", noise);
        place.write(&format!("f{n}"), format!("{n}"));
        roots.push((place.take().root, place.seen()));
    }
    let last = &roots[roots.len() - 1];
    let before = place
        .all
        .prune(
            &roots.iter().map(|r| r.0).collect::<Vec<_>>(),
            limits().time,
        )
        .unwrap();
    assert!(place.packs() <= 41, "{}", place.packs());
    place.restore(roots[3].0);
    assert_eq!(place.seen(), roots[3].1);
    place.restore(last.0);
    let kept = [roots[30].0, last.0];
    let after = place.all.prune(&kept, limits().time).unwrap();
    assert!(after < before / 3, "{before} {after}");
    assert!(matches!(
        place.all.restore(roots[3].0, "r", &limits()).unwrap_err(),
        Error::Corrupt(_)
    ));
    assert_eq!(place.seen(), last.1, "a refused restore changes nothing");
    place.restore(roots[30].0);
    assert_eq!(place.seen(), roots[30].1);
    // Again and again, also with nothing to do.
    place.all.prune(&kept, limits().time).unwrap();
    place.all.prune(&kept, limits().time).unwrap();
    place.restore(last.0);
    assert_eq!(place.seen(), last.1);
    place.all.prune(&[], limits().time).unwrap();
    assert_eq!(place.packs(), 0);
    assert_eq!(place.take().files, 61);
}

#[test]
fn read_only_folders_are_restored_and_removed() {
    let place = Place::new();
    place.write("ro/in/f", "1");
    chmod(&place.w("ro/in"), 0o555);
    chmod(&place.w("ro"), 0o555);
    let first = (place.take().root, place.seen());
    chmod(&place.w("ro"), 0o755);
    chmod(&place.w("ro/in"), 0o755);
    fs::remove_dir_all(place.w("ro")).unwrap();
    let second = (place.take().root, place.seen());
    place.restore(first.0);
    assert_eq!(place.seen(), first.1);
    place.restore(second.0);
    assert_eq!(place.seen(), second.1);
    assert_eq!(
        fs::read_dir(place.w("")).unwrap().count(),
        0,
        "no room is left behind"
    );
}
