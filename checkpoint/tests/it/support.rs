//! A folder with a store beside it.

use checkpoint::{Checkpoints, Limits, Oid, Restored, Taken};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, UNIX_EPOCH},
};

pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) all: Checkpoints,
}

pub(crate) fn limits() -> Limits {
    Limits {
        include_ignored: false,
        max_files: 100_000,
        max_pack_bytes: 1 << 30,
        time: Duration::from_secs(120),
    }
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("w")).unwrap();
        fs::create_dir(dir.path().join("h")).unwrap();
        let all = Checkpoints::new(dir.path().join("w"), dir.path().join("h"), "x/store");
        Self { dir, all }
    }

    pub(crate) fn w(&self, path: &str) -> PathBuf {
        self.dir.path().join("w").join(path)
    }

    pub(crate) fn store(&self, path: &str) -> PathBuf {
        self.dir.path().join("h/x/store").join(path)
    }

    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.w(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Waits until a file is so old that a checkpoint trusts its times.
    pub(crate) fn settled(&self, path: &str) {
        // A hundred milliseconds are too young for the cache.
        let old = Duration::from_millis(150);
        let changed = fs::metadata(self.w(path)).unwrap();
        let changed = UNIX_EPOCH
            + Duration::new(
                changed.ctime().try_into().unwrap(),
                changed.ctime_nsec().try_into().unwrap(),
            );
        while changed.elapsed().is_ok_and(|age| age < old) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn take(&self) -> Taken {
        self.all.take(&limits()).unwrap()
    }

    pub(crate) fn restore(&self, root: Oid) -> Restored {
        self.all.restore(root, "r", &limits()).unwrap()
    }

    pub(crate) fn seen(&self) -> BTreeMap<Vec<u8>, Thing> {
        seen(&self.w(""))
    }

    pub(crate) fn packs(&self) -> usize {
        fs::read_dir(self.store("objects/pack"))
            .unwrap()
            .filter(|entry| {
                entry
                    .as_ref()
                    .unwrap()
                    .file_name()
                    .as_bytes()
                    .ends_with(b".pack")
            })
            .count()
    }

    /// Git in the workspace, with nobody's configuration.
    pub(crate) fn git(&self, args: &[&str]) -> String {
        git(&self.w(""), args)
    }
}

pub(crate) fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@t"])
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "git {args:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// What a path is, as far as a checkpoint keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Thing {
    File(u32, Vec<u8>),
    Link(Vec<u8>),
    Dir(u32),
    Other,
}

pub(crate) fn seen(top: &Path) -> BTreeMap<Vec<u8>, Thing> {
    fn walk(dir: &Path, top: &Path, all: &mut BTreeMap<Vec<u8>, Thing>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(top).unwrap().as_os_str().as_bytes();
            let mode = meta.mode() & 0o3777;
            let thing = if meta.is_dir() {
                walk(&path, top, all);
                Thing::Dir(mode)
            } else if meta.is_symlink() {
                Thing::Link(fs::read_link(&path).unwrap().as_os_str().as_bytes().into())
            } else if meta.is_file() {
                Thing::File(mode, fs::read(&path).unwrap())
            } else {
                Thing::Other
            };
            all.insert(name.to_vec(), thing);
        }
    }
    let mut all = BTreeMap::new();
    walk(top, top, &mut all);
    all
}

pub(crate) fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
