//! Where files are written: a small trait, so that tests can stand a simulated disk with crashes and errors in its place.

use crate::bytes::{AlignedBytes, Map};
use crate::error::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// Positioned reads and writes with an explicit durability point. Offsets are bytes.
pub trait Storage: Send + Sync {
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
    /// Makes room for the bytes `offset..offset + len` where the system can do so without writing them; the length stays. A full disk
    /// is an error; a system that cannot reserve is none.
    fn reserve(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        Ok(())
    }
    /// Gives back what was reserved behind the end and is not written, as far as the system can: for what turned out not to be needed.
    fn release(&mut self) -> io::Result<()> {
        Ok(())
    }
    /// Returns only when everything written so far would survive a power cut.
    fn sync(&mut self) -> io::Result<()>;
    /// Asks the system to read these bytes ahead, and returns at once: a hint. False if it cannot be asked so.
    fn will_need(&self, offset: u64, len: u64) -> bool {
        let _ = (offset, len);
        false
    }
    /// The bytes `offset..offset + len` as a slice that stays: a map where the system has one, else a copy.
    fn map(&self, offset: u64, len: usize) -> io::Result<Map> {
        let mut bytes = AlignedBytes::zeroed("a copy of a file", len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        self.read_exact_at(&mut bytes, offset)?;
        Ok(Map::aligned(bytes))
    }
}

/// [`Storage`] on a real file.
pub struct FileStorage {
    file: File,
    path: PathBuf,
    /// Systems without positioned reads move one shared file position instead.
    #[cfg(not(unix))]
    position: std::sync::Mutex<()>,
}

impl FileStorage {
    fn new(file: File, path: &Path) -> FileStorage {
        FileStorage {
            file,
            path: path.into(),
            #[cfg(not(unix))]
            position: Default::default(),
        }
    }

    /// Creates a new file; fails if one exists.
    pub fn create(path: &Path) -> Result<FileStorage> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(|e| Error::io("create", path, e))?;
        Ok(FileStorage::new(file, path))
    }

    /// [`FileStorage::create`] of a file that only its owner may read and write, where the system has such a thing.
    pub fn create_private(path: &Path) -> Result<FileStorage> {
        let mut options = OpenOptions::new();
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.read(true).write(true).create_new(true).open(path).map_err(|e| Error::io("create", path, e))?;
        Ok(FileStorage::new(file, path))
    }

    /// [`FileStorage::create_private`] of a file that belongs to `other`, will stand in its place perhaps, and is to be read and written by
    /// whom `other` may be: its permissions and, as far as the system lets us, its owner and group are taken over. Without such a file it
    /// stays private.
    pub fn create_like(path: &Path, other: &Path) -> Result<FileStorage> {
        let storage = FileStorage::create_private(path)?;
        #[cfg(unix)]
        if let (Ok(wanted), Ok(mine)) = (std::fs::metadata(other), storage.file.metadata()) {
            use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
            let group = Some(wanted.gid()).filter(|gid| *gid != mine.gid());
            let owner = Some(wanted.uid()).filter(|uid| *uid != mine.uid());
            let same =
                |owner: Option<u32>, group: Option<u32>| owner.is_none() && group.is_none() || fchown(&storage.file, owner, group).is_ok();
            // What another group was let do is not what ours is let do.
            let of_group = if same(owner, group) || same(None, group) { 0o777 } else { 0o707 };
            let mode = std::fs::Permissions::from_mode(wanted.mode() & of_group);
            if let Err(e) = storage.file.set_permissions(mode) {
                log::debug!("{} keeps its own permissions: {e}", path.display());
            }
        }
        #[cfg(not(unix))]
        let _ = other;
        Ok(storage)
    }

    /// Where the file stands that `path` names, however it is linked to; `path` itself if there is none.
    pub fn real_path(path: &Path) -> PathBuf {
        std::fs::canonicalize(path).unwrap_or_else(|_| path.into())
    }

    /// Opens an existing file for reading and writing.
    pub fn open(path: &Path) -> Result<FileStorage> {
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(|e| Error::io("open", path, e))?;
        Ok(FileStorage::new(file, path))
    }

    /// Opens an existing file for reading only: every write fails. Works on read-only media.
    pub fn open_read_only(path: &Path) -> Result<FileStorage> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        Ok(FileStorage::new(file, path))
    }

    /// [`FileStorage::open`] and [`FileStorage::try_lock`], and certain that the path still names this file then: the writer before may
    /// have put another one in its place while we waited.
    pub fn open_to_write(path: &Path) -> Result<FileStorage> {
        for _ in 0..16 {
            let storage = FileStorage::open(path)?;
            storage.try_lock()?;
            #[cfg(unix)]
            {
                use std::os::unix::fs::MetadataExt;
                let id = |m: std::fs::Metadata| (m.dev(), m.ino());
                let mine = storage.file.metadata().map_err(|e| Error::io("stat", path, e))?;
                let there = std::fs::metadata(path).map_err(|e| Error::io("stat", path, e))?;
                if id(mine) != id(there) {
                    continue;
                }
            }
            return Ok(storage);
        }
        Err(Error::Busy(format!("{} is being replaced again and again", path.display())))
    }

    /// [`FileStorage::create_like`] at a name where only one who writes at a time has a file, locked: what is there without a lock was left
    /// by a crash, and goes. Whoever has the lock may move the file away or remove it, and nobody else.
    ///
    /// # Errors
    /// [`Error::Busy`] while another one has it.
    pub fn create_alone(path: &Path, other: &Path) -> Result<FileStorage> {
        match FileStorage::open_to_write(path) {
            // Ours by its lock, until it is dropped.
            Ok(_left) => std::fs::remove_file(path).map_err(|e| Error::io("remove", path, e))?,
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let storage = match FileStorage::create_like(path, other) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::Busy(format!("{} is being written by another process", path.display())));
            }
            created => created?,
        };
        // Whoever comes between takes it for one that was left.
        storage.try_lock()?;
        Ok(storage)
    }

    /// Makes the file's name durable (a new file's directory entry is not covered by the file's own sync).
    pub fn sync_directory(&self) -> Result<()> {
        FileStorage::sync_directory_of(&self.path)
    }

    /// Makes the directory entry of `path` durable.
    pub fn sync_directory_of(path: &Path) -> Result<()> {
        #[cfg(not(unix))]
        let _ = path;
        #[cfg(unix)]
        {
            let parent = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            File::open(parent).and_then(|d| d.sync_all()).map_err(|e| Error::io("sync the directory", parent, e))?;
        }
        Ok(())
    }

    /// Takes the writer's lock, which the system drops with the process; [`Error::Busy`] if another process has it.
    pub fn try_lock(&self) -> Result<()> {
        match lock(&self.file) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::Busy(format!("{} is being written by another process", self.path.display()))),
            Err(e) => Err(Error::io("lock", &self.path, e)),
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

/// Gives the lock back, for a copy of the descriptor too: a process that is being started elsewhere in the program has one for a moment.
impl Drop for FileStorage {
    fn drop(&mut self) {
        unlock(&self.file);
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn unlock(file: &File) {
    let _ = rustix::fs::flock(file, rustix::fs::FlockOperation::Unlock);
}
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn unlock(file: &File) {
    let _ = file.unlock();
}

/// Whether the file is now this process's to write. The standard library has no file locks on Android; flock(2) is what it calls on Linux.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn lock(file: &File) -> io::Result<bool> {
    use rustix::fs::{FlockOperation, flock};
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(std::fs::TryLockError::WouldBlock) => Ok(false),
        Err(std::fs::TryLockError::Error(e)) => Err(e),
    }
}

impl Storage for FileStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
    #[cfg(unix)]
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buf, offset)
    }
    #[cfg(unix)]
    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, buf, offset)
    }
    #[cfg(not(unix))]
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        use io::{Read, Seek};
        let _position = self.position.lock().unwrap_or_else(|e| e.into_inner());
        (&self.file).seek(io::SeekFrom::Start(offset))?;
        (&self.file).read_exact(buf)
    }
    #[cfg(not(unix))]
    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        use io::{Seek, Write};
        let _position = self.position.lock().unwrap_or_else(|e| e.into_inner());
        (&self.file).seek(io::SeekFrom::Start(offset))?;
        (&self.file).write_all(buf)
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn reserve(&mut self, offset: u64, len: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        loop {
            match fallocate(&self.file, FallocateFlags::KEEP_SIZE, offset, len) {
                Err(e @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => {
                    // Some file systems keep what they found until then: the disk would stay full, of nothing.
                    let _ = self.release();
                    return Err(e.into());
                }
                Err(Errno::INTR) => {}
                // Reserved, or a file system that does not know how: its writes will tell.
                _ => return Ok(()),
            }
        }
    }
    /// What lies behind the length goes when the length is set, to what it is.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn release(&mut self) -> io::Result<()> {
        self.file.set_len(self.file.metadata()?.len())
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn will_need(&self, offset: u64, len: u64) -> bool {
        rustix::fs::fadvise(&self.file, offset, std::num::NonZeroU64::new(len), rustix::fs::Advice::WillNeed).is_ok()
    }
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn map(&self, offset: u64, len: usize) -> io::Result<Map> {
        Ok(Map::of_file(&self.file, offset, len as u64)?.guarded())
    }
}
