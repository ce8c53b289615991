//! Files, as the journal, the segments and the checkpoints use them.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading only.
    Read,
    /// An existing file, for reading and writing.
    ReadWrite,
    /// For reading and writing; created empty when it is missing, kept as it is when not.
    CreateOrOpen,
    /// For reading and writing; it is an error if it exists.
    CreateNew,
    /// For reading and writing; emptied if it exists.
    Truncate,
}

/// ENFILE and EMFILE, which have no [`io::ErrorKind`] of their own: the system, or this process, has no file descriptor left.
const NO_DESCRIPTOR: [i32; 2] = [23, 24];

/// Is the operation refused for want of something that may be there again later, room on the disk, of a quota, or a file descriptor? What was to be written is
/// where it was then, and may be written again. No sync is refused so ([`DiskFile::sync_data`]).
#[must_use]
pub fn wants_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        || error.raw_os_error().is_some_and(|code| NO_DESCRIPTOR.contains(&code))
}

/// The directories of one node. Operations on directory entries are durable only after [`Disk::sync_dir`] of the parent.
pub trait Disk: Clone + Debug + Send + Sync + 'static {
    /// An open file.
    type File: DiskFile;
    /// A lock that another process cannot take while it is held.
    type Lock: Send + Sync + 'static;

    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> impl Future<Output = io::Result<Self::File>> + Send;
    /// Creates a directory and its parents; no error if it exists.
    fn create_dir_all(&self, path: &Path) -> impl Future<Output = io::Result<()>> + Send;
    /// Names of a directory's entries, sorted. `NotFound` when the directory is missing.
    fn read_dir(&self, path: &Path) -> impl Future<Output = io::Result<Vec<String>>> + Send;
    /// Renames a file or directory, replacing a file at `to`.
    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>> + Send;
    /// Removes a file. Open handles keep working.
    fn remove_file(&self, path: &Path) -> impl Future<Output = io::Result<()>> + Send;
    /// Removes a directory with all it holds.
    fn remove_dir_all(&self, path: &Path) -> impl Future<Output = io::Result<()>> + Send;
    /// Makes the entries of a directory durable. Its errors are as those of [`DiskFile::sync_data`], unless the directory cannot be opened: nothing
    /// was synced then, and [`wants_room`] may tell that it can be later.
    fn sync_dir(&self, path: &Path) -> impl Future<Output = io::Result<()>> + Send;
    /// Bytes that may still be written to the file system that `path` lies on, which must exist.
    fn free_bytes(&self, path: &Path) -> impl Future<Output = io::Result<u64>> + Send;
    /// Locks `path` (a file, created when missing) for this process. `WouldBlock` when another holds it.
    fn lock(&self, path: &Path) -> impl Future<Output = io::Result<Self::Lock>> + Send;

    /// A whole file, which must not be longer than `len_max` bytes (`InvalidData` otherwise).
    fn read_file(&self, path: &Path, len_max: u64) -> impl Future<Output = io::Result<Vec<u8>>> + Send {
        async move {
            let file = self.open(path, OpenMode::Read).await?;
            let len = file.len().await?;
            if len > len_max {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{} is longer than {len_max} bytes", path.display()),
                ));
            }
            file.read_at(0, len as usize).await
        }
    }

    /// Replaces a file so that after a crash either the old or the new content is there: [`Disk::stage_file`], then
    /// [`Disk::put_in_place`].
    fn replace_file(&self, path: &Path, content: Bytes) -> impl Future<Output = io::Result<()>> + Send {
        async move {
            let staged = self.stage_file(path, content).await?;
            self.put_in_place(&staged, path).await
        }
    }

    /// Writes the new content of `path` beside it, synced; gives its path.
    fn stage_file(&self, path: &Path, content: Bytes) -> impl Future<Output = io::Result<PathBuf>> + Send {
        async move {
            let mut beside: PathBuf = path.to_path_buf();
            let mut name = path.file_name().unwrap_or_default().to_os_string();
            name.push(".tmp");
            beside.set_file_name(name);
            let file = self.open(&beside, OpenMode::Truncate).await?;
            file.write_and_sync(0, vec![content]).await?;
            Ok(beside)
        }
    }

    /// Renames what [`Disk::stage_file`] wrote, and syncs the directory.
    fn put_in_place(&self, staged: &Path, path: &Path) -> impl Future<Output = io::Result<()>> + Send {
        async move {
            self.rename(staged, path).await?;
            self.sync_dir(path.parent().unwrap_or(Path::new("."))).await
        }
    }
}

/// An open file with positioned reads and writes. Cheap to share; calls on it may run at the same time.
#[expect(
    clippy::len_without_is_empty,
    reason = "a file's length is asked of the disk; emptiness is not a question of its own"
)]
pub trait DiskFile: Clone + Debug + Send + Sync + 'static {
    /// Up to `len` bytes from `offset`; fewer only at the end of the file.
    fn read_at(&self, offset: u64, len: usize) -> impl Future<Output = io::Result<Vec<u8>>> + Send;
    /// Writes all buffers one after another from `offset`. Durable only after a sync.
    fn write_at(&self, offset: u64, buffers: Vec<Bytes>) -> impl Future<Output = io::Result<()>> + Send;
    /// [`DiskFile::write_at`] and then [`DiskFile::sync_data`], in one trip to the disk thread.
    fn write_and_sync(&self, offset: u64, buffers: Vec<Bytes>) -> impl Future<Output = io::Result<()>> + Send;
    /// fdatasync: content and length are durable. After an error the unsynced content is unknown: never retry it. So that nobody does
    /// who waits for room on a disk, the error is none of those that [`wants_room`] knows.
    fn sync_data(&self) -> impl Future<Output = io::Result<()>> + Send;
    /// Lets the system begin to write these bytes to the disk, so that a later sync finds little left to do and holds up no other file's. A hint: nothing
    /// is waited for, and nothing is durable because of it.
    fn write_back(&self, offset: u64, len: u64) -> impl Future<Output = ()> + Send;
    /// Makes sure that `len` bytes are allocated, zero-filled where nothing was written, and that the length is at least `len`.
    fn allocate(&self, len: u64) -> impl Future<Output = io::Result<()>> + Send;
    /// Cuts or extends the file.
    fn set_len(&self, len: u64) -> impl Future<Output = io::Result<()>> + Send;
    /// The file's length in bytes.
    fn len(&self) -> impl Future<Output = io::Result<u64>> + Send;
}
