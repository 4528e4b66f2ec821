//! The listening socket, at a path that the agent may write to.

use crate::{log, status, sys};
use rustix::fs::Mode;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};

/// A bound socket that knows its file.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    file: Option<(u64, u64)>,
}

impl Socket {
    /// Binds with mode 0660: the sidecar has another uid and comes in by the group of the shared folder.
    /// What lies at the path goes away: a socket of the container's life before, or something that the
    /// agent put there.
    ///
    /// # Errors
    /// The folder cannot be made or written, or the path is too long for a socket (107 bytes).
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        clear(path)?;
        // Never wider than meant, not even for an instant.
        let before = rustix::process::umask(Mode::from_raw_mode(0o117));
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = listener?;
        sys::refuse_files(&listener)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: identity(path),
        })
    }

    /// The next connection. Cancel safe.
    ///
    /// # Errors
    /// Those of accept, as too many open files.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    /// Binds again if the file is gone, or as pid 1 also if it is another: the agent may delete it, on
    /// purpose or by cleaning up. Elsewhere another file is the socket of another runner.
    pub fn repair(&mut self) {
        let now = identity(&self.path);
        if now == self.file || (now.is_some() && !sys::is_init()) {
            return;
        }
        match Self::bind(&self.path) {
            Ok(fresh) => {
                log::warn("the socket was gone; bound it again", &[]);
                *self = fresh;
            }
            Err(error) => {
                log::error(
                    "cannot bind the socket again",
                    &[("error", error.to_string().into())],
                );
            }
        }
    }
}

/// Removes the socket at the end.
pub fn remove(path: &Path) {
    // The folder ends with the pod; a socket left behind is cleared by the next runner.
    let _ = fs::remove_file(path);
}

fn clear(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let aside = format!("{}.{}", path.display(), status::random_hex());
            fs::rename(path, aside)
        }
        _ => Ok(()),
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path)
        .ok()
        .map(|meta| (meta.dev(), meta.ino()))
}
