//! The real git as a judge: of the store, of patches, of branches.

use crate::support::{Place, chmod, git, limits};
use checkpoint::{Branch, Error, Oid};
use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink},
    process::Command,
};

fn patch(place: &Place, old: Option<Oid>, new: Oid) -> Vec<u8> {
    let mut patch = Vec::new();
    place
        .all
        .patch(old, Some(new), 1 << 26, limits().time, &mut |bytes| {
            patch.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
    patch
}

fn fill(place: &Place) {
    let lines: String = (0..100).map(|n| format!("line {n}\n")).collect();
    place.write("text", &lines);
    place.write("no newline", "a\nb");
    place.write("binary", [0, 1, 2, 3].repeat(1000));
    place.write("gone", "soon\n");
    place.write("mode", "x\n");
    place.write("becomes-link", "x\n");
    place.write("becomes-dir", "x\n");
    place.write("was-dir/f", "x\n");
    place.write("empty", "");
    fs::write(
        place.w("").join(OsStr::from_bytes(b"odd\xff\t\"name")),
        "odd\n",
    )
    .unwrap();
    symlink("text", place.w("link")).unwrap();
}

fn change(place: &Place) {
    let lines: String = (0..100)
        .map(|n| match n {
            5 => "five\n".into(),
            60 => String::new(),
            n => format!("line {n}\n"),
        })
        .collect();
    place.write("text", &lines);
    place.write("no newline", "a\nc");
    let noise: Vec<u8> = (0..200_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    place.write("binary", noise);
    place.write("large", "0123456789\n".repeat(200_000));
    fs::remove_file(place.w("gone")).unwrap();
    chmod(&place.w("mode"), 0o755);
    fs::remove_file(place.w("becomes-link")).unwrap();
    symlink("text", place.w("becomes-link")).unwrap();
    fs::remove_file(place.w("becomes-dir")).unwrap();
    place.write("becomes-dir/f", "y\n");
    fs::remove_dir_all(place.w("was-dir")).unwrap();
    place.write("was-dir", "y\n");
    place.write("new/empty", "");
    fs::remove_file(place.w("empty")).unwrap();
    fs::write(
        place.w("").join(OsStr::from_bytes(b"odd\xff\t\"name")),
        "odder\n",
    )
    .unwrap();
    fs::remove_file(place.w("link")).unwrap();
    symlink("mode", place.w("link")).unwrap();
}

#[test]
fn git_finds_nothing_wrong_with_the_store() {
    let place = Place::new();
    fill(&place);
    place.write("sub/.git/config", "x");
    fs::create_dir(place.w("void")).unwrap();
    let first = place.take();
    change(&place);
    chmod(&place.w("text"), 0o600);
    let second = place.take();
    place
        .all
        .prune(&[first.root, second.root], limits().time)
        .unwrap();
    let store = place.store("");
    git(&store, &["fsck", "--full", "--strict"]);
    for root in [first.root, second.root] {
        let listed = git(&store, &["ls-tree", "-r", &root.to_string()]);
        assert!(listed.contains("\tsub/%2Egit/config\n"), "{listed}");
    }
    let shown = git(
        &store,
        &["cat-file", "blob", &format!("{}:no newline", second.root)],
    );
    assert_eq!(shown, "a\nc");
}

#[test]
fn git_applies_patches() {
    let place = Place::new();
    fill(&place);
    let first = place.take();
    let copy = tempfile::tempdir().unwrap();
    git(copy.path(), &["init", "-q"]);
    // From nothing, then from one to the next.
    let file = copy.path().join(".git/p");
    fs::write(&file, patch(&place, None, first.root)).unwrap();
    git(copy.path(), &["apply", ".git/p"]);
    let same = |copy: &std::path::Path| {
        let mut there = crate::support::seen(copy);
        there.retain(|path, _| !path.starts_with(b".git"));
        let here = place.seen();
        assert_eq!(
            there.keys().collect::<Vec<_>>(),
            here.keys().collect::<Vec<_>>()
        );
        assert_eq!(there, here);
    };
    same(copy.path());
    git(copy.path(), &["add", "-A"]);
    git(copy.path(), &["commit", "-qm", "x"]);
    change(&place);
    let second = place.take();
    let text = patch(&place, Some(first.root), second.root);
    fs::write(&file, &text).unwrap();
    git(copy.path(), &["apply", "--check", ".git/p"]);
    git(copy.path(), &["apply", "--index", ".git/p"]);
    same(copy.path());
    // And back.
    git(copy.path(), &["apply", "-R", "--index", ".git/p"]);
    assert_eq!(git(copy.path(), &["status", "--porcelain"]), "");
    let stat = git(copy.path(), &["apply", "--numstat", ".git/p"]);
    assert!(stat.contains("1\t2\ttext\n"), "{stat}");
    let error = place
        .all
        .patch(
            None,
            Some(second.root),
            1000,
            limits().time,
            &mut |_| Ok(()),
        )
        .unwrap_err();
    assert!(matches!(error, Error::TooLarge(_)), "{error}");
}

fn branch(name: &str) -> Branch {
    Branch {
        name: name.into(),
        message: "as it was".into(),
        time: 1_700_000_000,
    }
}

#[test]
fn a_branch_is_one_more_ref_and_nothing_else() {
    for format in ["sha1", "sha256"] {
        let place = Place::new();
        place.git(&[
            "init",
            "-q",
            "-b",
            "main",
            &format!("--object-format={format}"),
        ]);
        fill(&place);
        place.write(".gitignore", "ignored\n");
        place.write("ignored", "x");
        place.write("nested/.git/HEAD", "ref: refs/heads/main\n");
        place.write("nested/f", "plain\n");
        fs::create_dir(place.w("void")).unwrap();
        let unborn = place
            .all
            .branch(place.take().root, &branch("first"), limits().time)
            .unwrap();
        assert_eq!(unborn.parent, None);
        place.git(&["add", "text"]);
        place.git(&["commit", "-qm", "one"]);
        place.git(&["pack-refs", "--all"]);
        let root = place.take().root;
        change(&place);
        let status = place.git(&["status", "--porcelain"]);
        let head = place.git(&["rev-parse", "HEAD"]);
        let made = place
            .all
            .branch(root, &branch("checkpoint/c1"), limits().time)
            .unwrap();
        assert_eq!(made.parent.as_deref(), Some(head.trim()));
        assert_eq!(
            place.git(&["rev-parse", "checkpoint/c1"]).trim(),
            made.commit
        );
        assert_eq!(place.git(&["status", "--porcelain"]), status);
        assert_eq!(place.git(&["rev-parse", "HEAD"]), head);
        place.git(&["fsck", "--full", "--strict"]);
        let listed = place.git(&["ls-tree", "-r", "--name-only", "checkpoint/c1"]);
        assert!(
            listed.contains("nested/f\n")
                && !listed.contains("HEAD")
                && !listed.contains("ignored\n"),
            "{listed}"
        );
        assert!(listed.contains("was-dir/f\n"), "{listed}");
        for (name, why) in [
            ("checkpoint/c1", "exists"),
            ("checkpoint", "exists"),
            ("main", "exists"),
            ("main/x", "exists"),
            ("a..b", "no name"),
        ] {
            let error = place
                .all
                .branch(root, &branch(name), limits().time)
                .unwrap_err();
            assert!(error.to_string().contains(why), "{name}: {error}");
        }
    }
}

#[test]
fn nothing_of_a_hostile_repository_is_run_or_followed() {
    let place = Place::new();
    place.write("f", "f");
    let error = place
        .all
        .branch(place.take().root, &branch("x"), limits().time)
        .unwrap_err();
    assert!(matches!(error, Error::Blocked(_)), "{error}");
    place.git(&["init", "-q"]);
    let evidence = place.dir.path().join("evidence");
    let run = format!("touch {}", evidence.display());
    for (name, value) in [
        ("core.fsmonitor", &run),
        ("core.hooksPath", &"hooks".to_owned()),
        ("filter.x.clean", &run),
        ("core.sshCommand", &run),
        ("diff.external", &run),
    ] {
        place.git(&["config", name, value]);
    }
    place.write(".gitattributes", "* filter=x\n");
    for hook in [
        "pre-commit",
        "reference-transaction",
        "post-checkout",
        "post-index-change",
    ] {
        place.write(&format!("hooks/{hook}"), format!("#!/bin/sh\n{run}\n"));
        chmod(&place.w(&format!("hooks/{hook}")), 0o755);
    }
    let first = place.take();
    place.write("f", "g");
    let second = place.take();
    let shown = Command::new("git")
        .args(["--git-dir"])
        .arg(place.store(""))
        .args(["cat-file", "blob", &format!("{}:f", second.root)])
        .output()
        .unwrap();
    assert_eq!(shown.stdout, b"g", "stored as it is, without filters");
    place
        .all
        .branch(second.root, &branch("x"), limits().time)
        .unwrap();
    patch(&place, Some(first.root), second.root);
    place.restore(first.root);
    assert!(!evidence.exists());
    // Links in .git lead nowhere.
    let outside = place.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::remove_dir_all(place.w(".git/refs/heads")).unwrap();
    symlink(&outside, place.w(".git/refs/heads")).unwrap();
    assert!(
        place
            .all
            .branch(first.root, &branch("y"), limits().time)
            .is_err()
    );
    fs::remove_dir_all(place.w(".git/objects")).unwrap();
    symlink(&outside, place.w(".git/objects")).unwrap();
    assert!(
        place
            .all
            .branch(first.root, &branch("z"), limits().time)
            .is_err()
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}
