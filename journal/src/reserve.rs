//! Space kept back for the day the disk is full, so that how it ended can be recorded.

use std::io;
use std::path::{Path, PathBuf};

use crate::fs::{Fs, FsFile, Mode, write_all};

/// A file of allocated blocks.
pub(crate) struct Reserve {
    path: PathBuf,
    bytes: u64,
    file: Option<Box<dyn FsFile>>,
}

impl Reserve {
    pub(crate) fn new(dir: &Path, bytes: u64) -> Self {
        Self {
            path: dir.join(".reserve"),
            bytes,
            file: None,
        }
    }

    /// Allocates the space. On an error none is held.
    pub(crate) fn take(&mut self, fs: &dyn Fs) -> io::Result<()> {
        if self.bytes == 0 || self.file.is_some() {
            return Ok(());
        }
        let allocated = fs.open(&self.path, Mode::Create).and_then(|file| {
            match file.allocate(0, self.bytes) {
                // Some network file systems cannot; written zeros take space as well.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => self.fill(&*file)?,
                other => other?,
            }
            Ok(file)
        });
        match allocated {
            Ok(file) => {
                self.file = Some(file);
                Ok(())
            }
            Err(error) => {
                let _ = fs.remove(&self.path);
                Err(error)
            }
        }
    }

    fn fill(&self, file: &dyn FsFile) -> io::Result<()> {
        let zeros = vec![0; 64 << 10];
        let mut at = 0;
        while at < self.bytes {
            let len = (self.bytes - at).min(zeros.len() as u64) as usize;
            write_all(file, &zeros[..len], at)?;
            at += len as u64;
        }
        Ok(())
    }

    /// Gives the space back to the disk; whether there was any.
    pub(crate) fn release(&mut self, fs: &dyn Fs) -> bool {
        self.file.take().is_some() && fs.remove(&self.path).is_ok()
    }
}
