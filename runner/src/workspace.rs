//! Looks into the workspace as the agent's own user, never out of it.

use crate::home::failure;
use crate::status::random_hex;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use contract::runner::{Entry, Failure, LINE_MAX, Reply};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, fsync, openat, openat2, statat,
    unlinkat,
};
use rustix::io::Errno;
use std::collections::BinaryHeap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// Most entries of one answer.
pub const ENTRIES_MAX: usize = 10_000;
/// Most bytes of one answer.
pub const READ_MAX: u64 = 1024 * 1024;
/// Bytes of entries as JSON, with room for what stands around them.
const ENTRIES_BYTES_MAX: usize = LINE_MAX - 4096;
const SCAN_LIMIT: Duration = Duration::from_secs(10);

/// The entries of a folder.
#[must_use]
pub fn list(root: &Path, path: &str) -> Reply {
    open(root, path, OFlags::RDONLY | OFlags::DIRECTORY)
        .and_then(|folder| entries(&folder))
        .unwrap_or_else(|error| failed("list", path, &error))
}

fn entries(folder: &OwnedFd) -> io::Result<Reply> {
    // Keeps the first names only, so that a folder of millions takes no memory.
    let mut first: BinaryHeap<CString> = BinaryHeap::new();
    let mut truncated = false;
    let started = Instant::now();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        first.push(name.to_owned());
        if first.len() > ENTRIES_MAX {
            first.pop();
            truncated = true;
            if started.elapsed() > SCAN_LIMIT {
                break;
            }
        }
    }
    let mut entries = Vec::with_capacity(first.len());
    let mut bytes = 0;
    for name in first.into_sorted_vec() {
        // It may be gone by now.
        let Ok(stat) = statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => "file",
            FileType::Directory => "dir",
            FileType::Symlink => "symlink",
            _ => "other",
        };
        let entry = Entry {
            name: name.to_string_lossy().into_owned(),
            kind: kind.to_owned(),
            size: u64::try_from(stat.st_size).unwrap_or(0),
        };
        bytes += serde_json::to_vec(&entry)?.len() + 1;
        if bytes > ENTRIES_BYTES_MAX {
            truncated = true;
            break;
        }
        entries.push(entry);
    }
    Ok(Reply::Entries { entries, truncated })
}

/// A piece of a regular file; past its end: no bytes.
#[must_use]
pub fn read(root: &Path, path: &str, offset: u64, length: u64) -> Reply {
    // Without NONBLOCK the opening of a pipe would wait for its other end.
    open(
        root,
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
    )
    .and_then(|file| piece(file, offset, length))
    .unwrap_or_else(|error| failed("read", path, &error))
}

fn piece(file: OwnedFd, offset: u64, length: u64) -> io::Result<Reply> {
    let stat = fstat(&file)?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(Errno::NOENT.into());
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let wanted = length.min(READ_MAX).min(size.saturating_sub(offset));
    let mut data = vec![0; usize::try_from(wanted).unwrap_or(0)];
    let file = File::from(file);
    let mut got = 0;
    while got < data.len() {
        match file.read_at(&mut data[got..], offset + got as u64) {
            // It became shorter meanwhile.
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Reply::Content {
        data: STANDARD.encode(&data[..got]),
        size,
    })
}

/// Writes a block to a new file and removes it: an unnamed one where the file system can, so that
/// neither `git status` nor a crash ever shows it.
#[must_use]
pub fn check(root: &Path) -> Reply {
    match write_probe(root) {
        Ok(()) => Reply::Done,
        Err(error) => Reply::Failed {
            code: failure(&error),
            message: format!("cannot write to the workspace: {error}"),
        },
    }
}

fn write_probe(root: &Path) -> io::Result<()> {
    let folder = openat(
        CWD,
        root,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mode = Mode::from_raw_mode(0o600);
    let unnamed = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(&folder, ".", unnamed, mode) {
        Ok(file) => return write_block(file),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let name = format!(".opencode-operator-check-{}", random_hex());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let written = openat(&folder, &*name, flags, mode)
        .map_err(io::Error::from)
        .and_then(write_block);
    let removed = unlinkat(&folder, &*name, AtFlags::empty()).map_err(io::Error::from);
    written.and(removed)
}

/// Synced, because many file systems find out only then that they are full.
fn write_block(file: OwnedFd) -> io::Result<()> {
    let mut file = File::from(file);
    file.write_all(&[b'x'; 4096])?;
    Ok(fsync(&file)?)
}

/// Opens strictly beneath `root`: absolute paths, `..` and links that lead out fail, and so do links of
/// `/proc`, which lead to wherever they like.
fn open(root: &Path, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { "." } else { path };
    let flags = flags | OFlags::CLOEXEC;
    let top = openat(
        CWD,
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        match openat2(&top, path, flags, Mode::empty(), resolve) {
            // Something was renamed during a `..`; the kernel asks to try again.
            Err(Errno::AGAIN | Errno::INTR) if tries < 16 => tries += 1,
            // Old kernels, gVisor, old seccomp profiles.
            Err(Errno::NOSYS | Errno::PERM) => return Ok(open_by_steps(top, path, flags)?),
            opened => return Ok(opened?),
        }
    }
}

/// Without the kernel's help: name by name, and no links at all.
fn open_by_steps(top: OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut names = path
        .split('/')
        .filter(|name| !matches!(*name, "" | "."))
        .peekable();
    if path.starts_with('/') {
        return Err(Errno::XDEV);
    }
    let mut at = top;
    while let Some(name) = names.next() {
        if name == ".." {
            return Err(Errno::XDEV);
        }
        let step = if names.peek().is_some() {
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC
        } else {
            flags
        };
        at = openat(&at, name, step | OFlags::NOFOLLOW, Mode::empty())?;
        if names.peek().is_none() {
            return Ok(at);
        }
    }
    openat(&at, ".", flags, Mode::empty())
}

fn failed(what: &str, path: &str, error: &io::Error) -> Reply {
    let code = match error.kind() {
        // A zero byte in the path; rustix makes EINVAL of it.
        io::ErrorKind::InvalidInput => Failure::BadRequest,
        _ => failure(error),
    };
    // Paths come from requests; a long one need not come back.
    let shown: String = path.chars().take(200).collect();
    Reply::Failed {
        code,
        message: format!("cannot {what} {shown:?}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("w");
        fs::create_dir_all(at.join("sub")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        fs::write(at.join("file"), "0123456789").unwrap();
        symlink("../secret", at.join("out")).unwrap();
        symlink("/proc/self/environ", at.join("environ")).unwrap();
        symlink("/etc", at.join("etc")).unwrap();
        symlink("sub/../file", at.join("in")).unwrap();
        symlink("loop", at.join("loop")).unwrap();
        rustix::fs::mknodat(
            CWD,
            at.join("fifo"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        dir
    }

    fn code(reply: Reply) -> Failure {
        match reply {
            Reply::Failed { code, .. } => code,
            other => panic!("{other:?}"),
        }
    }

    fn content(reply: Reply) -> (String, u64) {
        match reply {
            Reply::Content { data, size } => (
                String::from_utf8(STANDARD.decode(data).unwrap()).unwrap(),
                size,
            ),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_piece_is_read_and_the_end_is_no_error() {
        let dir = root();
        let at = dir.path().join("w");
        assert_eq!(content(read(&at, "file", 2, 3)), ("234".to_owned(), 10));
        assert_eq!(content(read(&at, "./in", 8, 100)), ("89".to_owned(), 10));
        assert_eq!(
            content(read(&at, "file", u64::MAX, u64::MAX)),
            (String::new(), 10)
        );
        fs::write(at.join("big"), vec![b'x'; 3_000_000]).unwrap();
        let (data, size) = content(read(&at, "big", 1, u64::MAX));
        assert_eq!((data.len() as u64, size), (READ_MAX, 3_000_000));
    }

    #[test]
    fn nothing_outside_is_ever_read_or_listed() {
        let dir = root();
        let at = dir.path().join("w");
        let paths = [
            "../secret",
            "sub/../../secret",
            "/etc/passwd",
            "out",
            "environ",
            "etc/passwd",
            "fifo",
            "sub",
            "none",
            "loop",
        ];
        for path in paths {
            assert_eq!(code(read(&at, path, 0, 10)), Failure::NotFound, "{path}");
        }
        for path in ["..", "/", "etc", "sub/../..", "file", "fifo"] {
            assert_eq!(code(list(&at, path)), Failure::NotFound, "{path}");
        }
        assert_eq!(code(read(&at, "a\0b", 0, 10)), Failure::BadRequest);
    }

    #[test]
    fn without_openat2_the_same_holds_and_links_are_refused() {
        let dir = root();
        let open = |path: &str, flags| {
            let top = openat(CWD, dir.path().join("w"), OFlags::PATH, Mode::empty()).unwrap();
            open_by_steps(top, path, flags)
        };
        assert!(open("file", OFlags::RDONLY).is_ok());
        assert!(open("sub/", OFlags::RDONLY | OFlags::DIRECTORY).is_ok());
        assert!(open(".", OFlags::RDONLY | OFlags::DIRECTORY).is_ok());
        for path in [
            "../secret",
            "sub/../file",
            "/etc/passwd",
            "out",
            "in",
            "etc/passwd",
            "environ",
        ] {
            assert!(open(path, OFlags::RDONLY).is_err(), "{path}");
        }
    }

    #[test]
    fn a_folder_is_listed_in_order_and_bounded() {
        let dir = root();
        let at = dir.path().join("w");
        let Reply::Entries { entries, truncated } = list(&at, "") else {
            panic!()
        };
        let shown: Vec<_> = entries
            .iter()
            .map(|e| (e.name.as_str(), e.kind.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                ("environ", "symlink"),
                ("etc", "symlink"),
                ("fifo", "other"),
                ("file", "file"),
                ("in", "symlink"),
                ("loop", "symlink"),
                ("out", "symlink"),
                ("sub", "dir")
            ]
        );
        assert_eq!((entries[3].size, truncated), (10, false));

        for n in 0..ENTRIES_MAX + 5 {
            File::create(at.join("sub").join(format!("{n:05}"))).unwrap();
        }
        let Reply::Entries { entries, truncated } = list(&at, "sub") else {
            panic!()
        };
        assert_eq!((entries.len(), truncated), (ENTRIES_MAX, true));
        assert_eq!(entries[0].name, "00000");
        assert_eq!(entries[ENTRIES_MAX - 1].name, "09999");
    }

    #[test]
    fn names_that_grow_as_json_stay_within_the_line() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..4000 {
            File::create(dir.path().join(format!("{n:04}{}", "\u{1}".repeat(250)))).unwrap();
        }
        let reply = list(dir.path(), "");
        assert!(serde_json::to_vec(&reply).unwrap().len() < LINE_MAX);
        let Reply::Entries { entries, truncated } = reply else {
            panic!()
        };
        assert!(truncated && entries.len() > 2000);
    }

    #[test]
    fn the_check_leaves_nothing_and_names_the_fault() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(check(dir.path()), Reply::Done);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(code(check(&dir.path().join("gone"))), Failure::NotFound);
        // Every process may list its own descriptors there, and nobody may write.
        assert_ne!(check(Path::new("/proc/self")), Reply::Done);
    }
}
