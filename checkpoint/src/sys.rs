//! System calls below open folders: one name at a time, links never followed, so that nothing that is
//! swapped meanwhile leads elsewhere.

use crate::error::{Context as _, Error};
use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, RawDir, RenameFlags, Stat, fchmod, fstat,
        mkdirat, openat, renameat_with, statat, unlinkat,
    },
    io::Errno,
};
use std::{
    fs::File,
    io::Write as _,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

const DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens a folder that somebody trusted named.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).context("open a folder")
}

/// Opens a folder below an open one.
pub(crate) fn open_dir(at: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    openat(at, name, DIR, Mode::empty())
}

/// Opens the folder at a path of names; an empty path is the folder itself.
pub(crate) fn open_path(at: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut fd = openat(at, ".", DIR, Mode::empty())?;
    for name in path
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty())
    {
        if name == b".." || name == b"." {
            return Err(Errno::XDEV);
        }
        fd = open_dir(&fd, name)?;
    }
    Ok(fd)
}

/// Opens the folder that a path lies in, and the path's last name.
pub(crate) fn open_parent(at: impl AsFd, path: &[u8]) -> Result<(OwnedFd, &[u8]), Errno> {
    let cut = path.iter().rposition(|byte| *byte == b'/');
    let (parent, name) = match cut {
        Some(cut) => (&path[..cut], &path[cut + 1..]),
        None => (&b""[..], path),
    };
    if name.is_empty() || name == b".." || name == b"." {
        return Err(Errno::XDEV);
    }
    Ok((open_path(at, parent)?, name))
}

/// Opens a regular file for reading; anything else is `ELOOP` or `EINVAL`.
pub(crate) fn open_file(at: impl AsFd, name: &[u8]) -> Result<(File, Stat), Errno> {
    // Without NONBLOCK the opening of a pipe would wait for its other end.
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = openat(at, name, flags, Mode::empty())?;
    let stat = fstat(&fd)?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(Errno::INVAL);
    }
    Ok((File::from(fd), stat))
}

/// A new file, readable and writable by us.
pub(crate) fn create(at: impl AsFd, name: &[u8], mode: u32) -> Result<File, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::from_raw_mode(mode)).map(File::from)
}

/// Makes a folder unless it is there, and opens it.
pub(crate) fn ensure_dir(at: impl AsFd, name: &[u8], mode: u32) -> Result<OwnedFd, Errno> {
    match mkdirat(&at, name, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => open_dir(at, name),
        Err(error) => Err(error),
    }
}

/// What a name is; `None`: nothing.
pub(crate) fn look(at: impl AsFd, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The names in a folder.
pub(crate) fn names(dir: &OwnedFd, most: usize) -> Result<Vec<Vec<u8>>, Error> {
    // A descriptor of its own: reading moves its position.
    let own = open_path(dir, b"").context("open a folder")?;
    let mut names = Vec::new();
    let mut buffer = [MaybeUninit::<u8>::uninit(); 16 * 1024];
    let mut entries = RawDir::new(own, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry.context("read a folder")?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
        if names.len() > most {
            return Err(Error::TooLarge(format!("more than {most} files")));
        }
    }
    Ok(names)
}

/// Replaces a small file: a new one renamed over it, synced.
pub(crate) fn replace(at: &OwnedFd, name: &[u8], content: &[u8]) -> Result<(), Error> {
    let temporary = [b"tmp-", random().as_bytes()].concat();
    let written = (|| {
        let mut file = create(at, &temporary, 0o600).context("write a file")?;
        file.write_all(content).context("write a file")?;
        file.sync_all().context("write a file")?;
        rename(at, &temporary, at, name, true).context("write a file")?;
        sync_dir(at)
    })();
    if written.is_err() {
        let _ = unlinkat(at, &temporary[..], AtFlags::empty());
    }
    written
}

/// Renames; without `over` fails with `EEXIST` where the new name is taken.
pub(crate) fn rename(
    from: impl AsFd,
    name: &[u8],
    to: impl AsFd,
    new: &[u8],
    over: bool,
) -> Result<(), Errno> {
    let flags = if over {
        RenameFlags::empty()
    } else {
        RenameFlags::NOREPLACE
    };
    match renameat_with(&from, name, &to, new, flags) {
        // Some file systems know no flags; a name appears only by a race then.
        Err(Errno::INVAL | Errno::NOSYS) if !over => {
            if look(&to, new)?.is_some() {
                return Err(Errno::EXIST);
            }
            renameat_with(from, name, to, new, RenameFlags::empty())
        }
        renamed => renamed,
    }
}

pub(crate) fn sync_dir(dir: &OwnedFd) -> Result<(), Error> {
    rustix::fs::fsync(dir).context("sync a folder")
}

/// Removes a name and all below it, whatever modes folders have.
pub(crate) fn remove_all(at: &OwnedFd, name: &[u8], depth: u32) -> Result<(), Errno> {
    match unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    if depth == 0 {
        return Err(Errno::LOOP);
    }
    let dir = open_locked(at, name)?;
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            remove_all(&dir, name, depth - 1)?;
        }
    }
    unlinkat(at, name, AtFlags::REMOVEDIR)
}

/// Opens a folder and makes it writable for us.
fn open_locked(at: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let dir = match open_dir(at, name) {
        Err(Errno::ACCESS) => {
            chmod(at, name, 0o700)?;
            open_dir(at, name)?
        }
        opened => opened?,
    };
    let mode = fstat(&dir)?.st_mode & 0o7777;
    if mode & 0o700 != 0o700 {
        fchmod(&dir, Mode::from_raw_mode(mode | 0o700))?;
    }
    Ok(dir)
}

/// Changes the mode of a file or folder, never of what a link leads to.
pub(crate) fn chmod(at: impl AsFd, name: &[u8], mode: u32) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(mode);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(&at, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&fd)?.st_mode).is_symlink() {
        return Err(Errno::LOOP);
    }
    // A descriptor that is only a path cannot be changed by itself, its entry in /proc can.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    rustix::fs::chmod(path, mode)
}

/// 16 random hexadecimal digits.
pub(crate) fn random() -> String {
    let mut bytes = [0; 8];
    // Only names: without randomness the process id and time would do, and the call does not fail.
    let _ = getrandom::fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
