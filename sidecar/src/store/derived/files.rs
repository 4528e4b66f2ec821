//! Reading and writing the two files so that each is whole at any instant.

use super::{digest::Digest, state};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

pub(super) const DECISIONS: &str = "decisions.md";
pub(super) const STATE: &str = "state.json";
/// The last whole `state.json` before the present one.
pub(super) const STATE_OLD: &str = "state.json.old";

pub(super) fn size(path: &Path) -> Option<u64> {
    Some(fs::metadata(path).ok()?.len())
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// Where a file is made before it gets its name.
fn staged(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    path.with_file_name(name)
}

pub(super) fn append(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .append(true)
        .open(path)?
        .write_all(text.as_bytes())
}

/// The state in `state.json`, or in the copy before it.
pub(super) fn read_state(dir: &Path) -> Option<Digest> {
    [STATE, STATE_OLD]
        .iter()
        .find_map(|name| parse(&dir.join(name)))
}

/// Whether `state.json` itself can be read.
pub(super) fn is_whole(dir: &Path) -> bool {
    parse(&dir.join(STATE)).is_some()
}

fn parse(path: &Path) -> Option<Digest> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(state::SIZE_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .ok()?;
    state::parse(&bytes)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "not used"))
        .ok()
}

/// Puts a new `state.json` in place; the one before is kept if it is whole.
pub(super) fn replace_state(dir: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = dir.join(STATE);
    let new = staged(&path);
    let made = create(&new).and_then(|mut file| {
        file.write_all(bytes)?;
        // Else a power loss could leave the new name on an empty file.
        file.sync_data()
    });
    made.inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })?;
    if is_whole(dir) {
        fs::rename(&path, dir.join(STATE_OLD))?;
    }
    fs::rename(&new, &path)
}

/// Compares a file with what it should be.
pub(super) struct Compare {
    file: Option<BufReader<File>>,
    bytes: u64,
}

impl Compare {
    pub(super) fn open(path: &Path) -> Self {
        Self {
            file: File::open(path).ok().map(BufReader::new),
            bytes: 0,
        }
    }

    pub(super) fn take(&mut self, text: &str) {
        self.bytes += text.len() as u64;
        let Some(file) = &mut self.file else { return };
        let mut there = vec![0; text.len()];
        if file.read_exact(&mut there).is_err() || there != text.as_bytes() {
            self.file = None;
        }
    }

    /// The file's size, if it is as it should be.
    pub(super) fn same(self) -> Option<u64> {
        let mut file = self.file?;
        file.fill_buf()
            .is_ok_and(<[u8]>::is_empty)
            .then_some(self.bytes)
    }
}

/// A file that is made anew.
pub(super) struct Fresh {
    file: BufWriter<File>,
    staged: PathBuf,
    bytes: u64,
    result: io::Result<()>,
}

impl Fresh {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let staged = staged(path);
        Ok(Self {
            file: BufWriter::new(create(&staged)?),
            staged,
            bytes: 0,
            result: Ok(()),
        })
    }

    pub(super) fn take(&mut self, text: &str) {
        if self.result.is_ok() {
            self.result = self.file.write_all(text.as_bytes());
            self.bytes += text.len() as u64;
        }
    }

    /// Gives it its name; its size.
    pub(super) fn finish(mut self, path: &Path) -> io::Result<u64> {
        let result = self.result.and_then(|()| self.file.flush());
        let result = result.and_then(|()| fs::rename(&self.staged, path));
        if let Err(error) = result {
            let _ = fs::remove_file(&self.staged);
            return Err(error);
        }
        Ok(self.bytes)
    }
}
