//! Files that a launch wants in HOME, written without following a link that leads out of it.
//!
//! HOME is on a volume that the agent writes between starts, so every folder on the way may have become
//! a link. Each step opens one name below a folder that is already open, and refuses links.

use contract::runner::Failure;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, fstat, fsync, mkdirat, openat, renameat, unlinkat,
};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;

const PATH_MAX: usize = 4096;
const NAME_MAX: usize = 255;

/// Splits a path into its names.
///
/// # Errors
/// For people: absolute, empty, too long, or with `.`, `..`, empty names or zero bytes.
pub fn names(path: &str) -> Result<Vec<&str>, String> {
    let names: Vec<&str> = path.split('/').collect();
    let good = |name: &&str| {
        !matches!(*name, "" | "." | "..") && name.len() <= NAME_MAX && !name.contains('\0')
    };
    if path.len() > PATH_MAX || !names.iter().all(good) {
        return Err(format!("{path:?} is no relative path below HOME"));
    }
    Ok(names)
}

/// Writes one file; an equal one stays as it is, so that a full disk does not forbid a restart.
///
/// # Errors
/// Those of the file system; `ELOOP` or `ENOTDIR` where a folder on the way is a link.
pub fn write(home: &Path, path: &str, content: &str) -> io::Result<()> {
    let names = names(path).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let Some((file, folders)) = names.split_last() else {
        return Err(Errno::INVAL.into());
    };
    let folder_flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at: OwnedFd = rustix::fs::open(home, folder_flags, Mode::empty())?;
    for folder in folders {
        match mkdirat(&at, *folder, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        at = openat(&at, *folder, folder_flags | OFlags::NOFOLLOW, Mode::empty())?;
    }
    if is_equal(&at, file, content) {
        return Ok(());
    }
    replace(&at, file, content)
}

fn is_equal(at: &OwnedFd, file: &str, content: &str) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(fd) = openat(at, file, flags, Mode::empty()) else {
        return false;
    };
    let regular = fstat(&fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
    let mut now = Vec::new();
    regular
        && File::from(fd)
            .take(content.len() as u64 + 1)
            .read_to_end(&mut now)
            .is_ok()
        && now == content.as_bytes()
}

/// A new file renamed over the old name: readers see either, and a link is replaced, not followed.
fn replace(at: &OwnedFd, file: &str, content: &str) -> io::Result<()> {
    let temporary = format!(".runner-{}", crate::status::random_hex());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut new = File::from(openat(at, &*temporary, flags, Mode::from_raw_mode(0o600))?);
    let written = new
        .write_all(content.as_bytes())
        .and_then(|()| fsync(&new).map_err(io::Error::from))
        .and_then(|()| renameat(at, &*temporary, at, file).map_err(io::Error::from));
    if written.is_err() {
        let _ = unlinkat(at, &*temporary, AtFlags::empty());
    }
    written
}

/// The stable reason of a fault of the file system.
#[must_use]
pub fn failure(error: &io::Error) -> Failure {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT) => Failure::DiskFull,
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => Failure::Denied,
        Some(Errno::NOENT | Errno::NOTDIR | Errno::XDEV | Errno::LOOP | Errno::NAMETOOLONG) => {
            Failure::NotFound
        }
        Some(_) => Failure::Io,
        None if error.kind() == io::ErrorKind::InvalidInput => Failure::BadRequest,
        None => Failure::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn paths_that_leave_home_are_refused() {
        for path in [
            "", "/etc/x", "../x", "a/../x", "a/..", ".", "a//b", "a/", "a\0b",
        ] {
            assert!(names(path).is_err(), "{path:?}");
        }
        assert!(names(&"x".repeat(256)).is_err());
        assert_eq!(names(".config/..x/b"), Ok(vec![".config", "..x", "b"]));
    }

    #[test]
    fn files_are_made_with_parents_and_replaced() {
        let home = tempfile::tempdir().unwrap();
        let path = ".config/opencode/package-lock.json";
        write(home.path(), path, "one").unwrap();
        write(home.path(), path, "two").unwrap();
        let file = home.path().join(path);
        assert_eq!(fs::read_to_string(&file).unwrap(), "two");
        let inode = |p: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(p).unwrap());
        let before = inode(&file);
        write(home.path(), path, "two").unwrap();
        assert_eq!(inode(&file), before);
        // Nothing temporary is left.
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn links_are_not_followed() {
        let (home, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(outside.path(), home.path().join("dir")).unwrap();
        let error = write(home.path(), "dir/file", "x").unwrap_err();
        assert_eq!(failure(&error), Failure::NotFound, "{error}");

        let target = outside.path().join("target");
        fs::write(&target, "old").unwrap();
        symlink(&target, home.path().join("link")).unwrap();
        write(home.path(), "link", "new").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "old");
        assert_eq!(fs::read_to_string(home.path().join("link")).unwrap(), "new");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_pipe_or_folder_in_the_way_does_not_hang() {
        let home = tempfile::tempdir().unwrap();
        let fifo = home.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        write(home.path(), "fifo", "x").unwrap();
        assert_eq!(fs::read_to_string(&fifo).unwrap(), "x");
        fs::create_dir(home.path().join("dir")).unwrap();
        assert!(write(home.path(), "dir", "x").is_err());
    }
}
