//! Copies programs to a shared folder, for clusters that cannot mount an image as a volume.

use crate::status::random_hex;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Name of this program at its target.
const OWN_NAME: &str = "opencode-runner";

/// Why a file could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step on a path failed.
    #[error("cannot {step} {path}: {source}")]
    Path {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file to copy has no name.
    #[error("{0} names no file")]
    NoName(PathBuf),
}

/// Copies the files (and this program as `opencode-runner`) into `to`, each with mode 0755 and by rename:
/// a file of that name is complete or the one before.
///
/// # Errors
/// A file cannot be read, or the folder not be written; files copied before stay.
pub fn install(own: bool, from: &[PathBuf], to: &Path) -> Result<(), Error> {
    fs::create_dir_all(to).map_err(|e| error("make the folder", to, e))?;
    if own {
        let exe = Path::new("/proc/self/exe");
        copy(exe, &to.join(OWN_NAME))?;
    }
    for file in from {
        let name = file
            .file_name()
            .ok_or_else(|| Error::NoName(file.clone()))?;
        copy(file, &to.join(name))?;
    }
    // The names are on the disk too.
    File::open(to)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| error("sync", to, e))
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let mut source = File::open(from).map_err(|e| error("read", from, e))?;
    let temporary = to.with_file_name(format!(".install-{}", random_hex()));
    let copied = write(&mut source, &temporary, to);
    if copied.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    copied
}

fn write(source: &mut File, temporary: &Path, to: &Path) -> Result<(), Error> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options
        .open(temporary)
        .map_err(|e| error("create", temporary, e))?;
    io::copy(source, &mut file).map_err(|e| error("write", temporary, e))?;
    // By the descriptor and after the copy: the umask has no say, and nobody runs half a program.
    file.set_permissions(Permissions::from_mode(0o755))
        .map_err(|e| error("set the mode of", temporary, e))?;
    file.sync_all().map_err(|e| error("sync", temporary, e))?;
    fs::rename(temporary, to).map_err(|e| error("replace", to, e))
}

fn error(step: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Path {
        step,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_copied_replaced_and_executable() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = from.path().join("opencode");
        let target = to.path().join("deep/dir");
        for content in ["one", "two two"] {
            fs::write(&file, content).unwrap();
            install(true, std::slice::from_ref(&file), &target).unwrap();
            let installed = target.join("opencode");
            assert_eq!(fs::read_to_string(&installed).unwrap(), content);
            assert_eq!(
                fs::metadata(&installed).unwrap().permissions().mode() & 0o7777,
                0o755
            );
        }
        let own = fs::metadata(std::env::current_exe().unwrap())
            .unwrap()
            .len();
        assert_eq!(fs::metadata(target.join(OWN_NAME)).unwrap().len(), own);
        assert_eq!(fs::read_dir(&target).unwrap().count(), 2);
    }

    #[test]
    fn what_cannot_be_copied_is_named_and_leaves_nothing() {
        let to = tempfile::tempdir().unwrap();
        let gone = PathBuf::from("/no/such/file");
        let error = install(false, &[gone], to.path()).unwrap_err();
        assert!(error.to_string().contains("/no/such/file"), "{error}");
        assert!(install(false, &[to.path().to_owned()], to.path()).is_err());
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0);
    }
}
