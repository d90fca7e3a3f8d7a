//! Where files are written: a small trait, so that tests can stand a simulated disk with crashes and errors in its place.

use crate::error::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// Positioned reads and writes with an explicit durability point. Offsets are bytes.
pub trait Storage: Send {
    /// Present length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// True if there is not a single byte.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Fills `buf` from `offset`, or fails.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `buf` at `offset`, growing the file where needed.
    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts or extends to `len` bytes.
    fn set_len(&mut self, len: u64) -> io::Result<()>;
    /// Returns only when everything written so far would survive a power cut.
    fn sync(&mut self) -> io::Result<()>;
}

/// [`Storage`] on a real file.
pub struct FileStorage {
    file: File,
    path: PathBuf,
}

impl FileStorage {
    /// Creates a new file; fails if one exists.
    pub fn create(path: &Path) -> Result<FileStorage> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(|e| Error::io("create", path, e))?;
        Ok(FileStorage { file, path: path.into() })
    }

    /// Opens an existing file for reading and writing.
    pub fn open(path: &Path) -> Result<FileStorage> {
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(|e| Error::io("open", path, e))?;
        Ok(FileStorage { file, path: path.into() })
    }

    /// Takes the writer's lock, which the system drops with the process; [`Error::Busy`] if another process has it.
    pub fn try_lock(&self) -> Result<()> {
        match self.file.try_lock() {
            Ok(()) => Ok(()),
            Err(std::fs::TryLockError::WouldBlock) => {
                Err(Error::Busy(format!("{} is being written by another process", self.path.display())))
            }
            Err(std::fs::TryLockError::Error(e)) => Err(Error::io("lock", &self.path, e)),
        }
    }

    /// The file, for mapping.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(unix)]
impl Storage for FileStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buf, offset)
    }
    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, buf, offset)
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}
