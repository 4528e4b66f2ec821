//! Space kept back for the day the disk is full, so that how it ended can be recorded.
//!
//! It is given up in slices: others may write to the same disk, and whatever is free is theirs as
//! well as ours.

use std::io;
use std::path::{Path, PathBuf};

use crate::fs::{Fs, FsFile, Mode, write_all};

const SLICES: u64 = 8;

/// Files of allocated blocks.
pub(crate) struct Reserve {
    dir: PathBuf,
    slice_bytes: u64,
    /// The slices that are allocated, of `0..SLICES`.
    held: Vec<u64>,
}

impl Reserve {
    pub(crate) fn new(dir: &Path, bytes: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            slice_bytes: bytes.div_ceil(SLICES),
            held: Vec::new(),
        }
    }

    fn path(&self, slice: u64) -> PathBuf {
        self.dir.join(format!(".reserve-{slice}"))
    }

    /// Allocates what is missing. After an error some of it may be held.
    pub(crate) fn take(&mut self, fs: &dyn Fs) -> io::Result<()> {
        if self.slice_bytes == 0 {
            return Ok(());
        }
        for slice in 0..SLICES {
            if !self.held.contains(&slice) {
                let path = self.path(slice);
                self.allocate(fs, &path).inspect_err(|_| {
                    let _ = fs.remove(&path);
                })?;
                self.held.push(slice);
            }
        }
        Ok(())
    }

    /// A file from before the last start still has its blocks, and keeps them.
    fn allocate(&self, fs: &dyn Fs, path: &Path) -> io::Result<()> {
        let file = match fs.open(path, Mode::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs.open(path, Mode::Create)?,
            other => other?,
        };
        match file.allocate(0, self.slice_bytes) {
            // Some network file systems cannot; written zeros take space as well.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.fill(&*file),
            other => other,
        }
    }

    fn fill(&self, file: &dyn FsFile) -> io::Result<()> {
        let zeros = vec![0; 64 << 10];
        let mut at = 0;
        while at < self.slice_bytes {
            let len = (self.slice_bytes - at).min(zeros.len() as u64) as usize;
            write_all(file, &zeros[..len], at)?;
            at += len as u64;
        }
        Ok(())
    }

    /// Gives a slice back to the disk; false if none is left.
    pub(crate) fn release(&mut self, fs: &dyn Fs) -> bool {
        match self.held.pop() {
            // If it cannot be removed the next write fails and asks for the next one.
            Some(slice) => {
                let _ = fs.remove(&self.path(slice));
                true
            }
            None => false,
        }
    }
}
