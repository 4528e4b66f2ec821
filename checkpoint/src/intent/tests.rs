//! Failures in the midst of a list: each leaves all or nothing, or the list and who goes on with it.

use super::*;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

const STAGING_NAME: &str = ".opencode-operator-restore-test";

struct Place {
    dir: tempfile::TempDir,
    store: Store,
    top: OwnedFd,
}

impl Place {
    /// A workspace with the files `a` and `c`, and `f/b`; what is to come lies beside by its number.
    fn new(new: &[(usize, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        for folder in [
            "f",
            &format!("{STAGING_NAME}/new"),
            &format!("{STAGING_NAME}/old"),
        ] {
            fs::create_dir_all(work.join(folder)).unwrap();
        }
        for (path, text) in [("a", "old a"), ("c", "old c"), ("f/b", "old b")] {
            fs::write(work.join(path), text).unwrap();
        }
        for (number, text) in new {
            let path = format!("{STAGING_NAME}/new/{number}");
            fs::write(work.join(path), text).unwrap();
        }
        fs::create_dir(dir.path().join("home")).unwrap();
        let store = Store::open(&dir.path().join("home"), "store").unwrap();
        let top = sys::open_root(&work).unwrap();
        Self { dir, store, top }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("work").join(path)
    }

    fn note(&self, steps: Vec<Step>) -> Intent {
        Intent::note(&self.store, "root", STAGING_NAME.as_bytes(), steps).unwrap()
    }

    fn run(&self) -> Result<(), Error> {
        pending(&self.store).unwrap().run(&self.store, &self.top)
    }

    /// Every file of the workspace.
    fn files(&self) -> BTreeMap<String, String> {
        fn walk(top: &Path, dir: &Path, all: &mut BTreeMap<String, String>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(top, &path, all);
                } else {
                    let name = path.strip_prefix(top).unwrap().display().to_string();
                    all.insert(name, fs::read_to_string(path).unwrap());
                }
            }
        }
        let mut all = BTreeMap::new();
        let top = self.path("");
        walk(&top, &top, &mut all);
        all
    }

    /// Nothing is left to be taken up, and nothing of the restore lies about.
    fn is_over(&self) -> bool {
        pending(&self.store).is_none() && !self.path(STAGING_NAME).exists()
    }
}

fn put(path: &str, had: bool) -> Step {
    Step::Put {
        path: Hex(path.into()),
        had,
    }
}

fn remove(path: &str) -> Step {
    Step::Remove {
        path: Hex(path.into()),
    }
}

fn untouched() -> BTreeMap<String, String> {
    let files = [("a", "old a"), ("c", "old c"), ("f/b", "old b")];
    files.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

#[test]
fn a_step_that_fails_late_takes_back_all_before_it() {
    let place = Place::new(&[(0, "new a"), (1, "new b"), (4, "new d")]);
    let modes = |place: &Place| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::metadata(place.path("f")).unwrap().permissions().mode() & 0o777
    };
    let before = modes(&place);
    let to = if before == 0o700 { 0o755 } else { 0o700 };
    let mode = Step::Mode {
        path: Hex(b"f".to_vec()),
        from: before,
        to,
    };
    place.note(vec![
        put("a", true),
        put("f/b", true),
        remove("c"),
        mode,
        put("d", false),
    ]);
    // Comes after the list was made: what nobody has a copy of is never overwritten.
    fs::write(place.path("d"), "the agent's").unwrap();
    let error = place.run().unwrap_err();
    assert!(
        matches!(&error, Error::Blocked(why) if why.starts_with("d: ")),
        "{error}"
    );
    let mut wanted = untouched();
    wanted.insert("d".into(), "the agent's".into());
    assert_eq!(place.files(), wanted);
    assert_eq!(modes(&place), before);
    assert!(place.is_over());
}

#[test]
fn a_list_whose_files_are_gone_changes_nothing_and_says_so() {
    let place = Place::new(&[(0, "new a")]);
    place.note(vec![put("a", true)]);
    fs::remove_dir_all(place.path(STAGING_NAME)).unwrap();
    let error = place.run().unwrap_err();
    assert!(matches!(error, Error::Unfinished(_)), "{error}");
    assert_eq!(place.files(), untouched());
    assert!(place.is_over());
}

#[test]
fn what_cannot_be_taken_back_yet_stays_noted_and_is_taken_back_later() {
    let place = Place::new(&[(0, "new b"), (1, "new d")]);
    place.note(vec![put("f/b", true), put("d", false)]);
    // The first step is done when the process dies; then the folder is moved away.
    fs::rename(
        place.path("f/b"),
        place.path(&format!("{STAGING_NAME}/old/0")),
    )
    .unwrap();
    fs::rename(
        place.path(&format!("{STAGING_NAME}/new/0")),
        place.path("f/b"),
    )
    .unwrap();
    fs::rename(place.path("f"), place.path("g")).unwrap();
    fs::write(place.path("d"), "the agent's").unwrap();
    for _ in 0..2 {
        let error = place.run().unwrap_err();
        assert!(
            matches!(&error, Error::Unfinished(why) if why.starts_with("f/b: ")),
            "{error}"
        );
        assert!(pending(&place.store).unwrap().undo);
        let kept = fs::read_to_string(place.path(&format!("{STAGING_NAME}/old/0")));
        assert_eq!(kept.unwrap(), "old b", "the only copy");
    }
    fs::rename(place.path("g"), place.path("f")).unwrap();
    let error = place.run().unwrap_err();
    assert!(matches!(error, Error::Blocked(_)), "{error}");
    let mut wanted = untouched();
    wanted.insert("d".into(), "the agent's".into());
    assert_eq!(place.files(), wanted);
    assert!(place.is_over());
}

#[test]
fn a_list_that_was_carried_out_is_not_carried_out_again() {
    let place = Place::new(&[(0, "new a")]);
    let note = place.note(vec![put("a", true), remove("c")]);
    note.run(&place.store, &place.top).unwrap();
    let mut wanted = untouched();
    wanted.insert("a".into(), "new a".into());
    wanted.remove("c");
    assert_eq!(place.files(), wanted);
    assert!(place.is_over());
    // The process died between the last step and the removal of the list: all is seen to be done.
    let place = Place::new(&[]);
    let old = |number| place.path(&format!("{STAGING_NAME}/old/{number}"));
    place.note(vec![put("a", true), remove("c")]);
    fs::rename(place.path("a"), old(0)).unwrap();
    fs::rename(place.path("c"), old(1)).unwrap();
    fs::write(place.path("a"), "new a, and the agent went on").unwrap();
    place.run().unwrap();
    wanted.insert("a".into(), "new a, and the agent went on".into());
    assert_eq!(place.files(), wanted);
    assert!(place.is_over());
}
